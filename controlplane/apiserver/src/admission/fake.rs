//! A cluster of fixed objects, for the plugins' tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::admit::{Access, Admission, Attributes, Cluster, Operation, RecordChange};
use crate::authn::UserInfo;
use crate::error::{ApiError, Result};
use crate::kinds::value::{name, namespace};
use crate::resource::Descriptor;

/// Objects by group and plural.
#[derive(Default)]
pub struct Fixed {
    objects: Mutex<Vec<(String, String, Arc<Value>)>>,
    records: Mutex<BTreeMap<String, Value>>,
    pub allows: bool,
    /// Decides instead, by the user's name.
    judge: Option<Box<Judge>>,
}

type Judge = dyn Fn(&str, &Access<'_>) -> bool + Send + Sync;

impl Fixed {
    pub fn with(objects: &[(&str, &str, Value)]) -> Self {
        let objects = objects.iter().map(|(g, p, o)| ((*g).to_owned(), (*p).to_owned(), Arc::new(o.clone()))).collect();
        Self { objects: Mutex::new(objects), ..Self::default() }
    }

    pub fn judged_by(judge: impl Fn(&str, &Access<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self { judge: Some(Box::new(judge)), ..Self::default() }
    }
}

#[async_trait]
impl Cluster for Fixed {
    async fn get(&self, group: &str, plural: &str, ns: &str, wanted: &str) -> Result<Option<Arc<Value>>> {
        let objects = self.objects.lock();
        let found =
            objects.iter().find(|(g, p, o)| g == group && p == plural && namespace(o) == ns && name(o) == wanted);
        Ok(found.map(|(_, _, object)| object.clone()))
    }

    async fn get_live(&self, group: &str, plural: &str, ns: &str, wanted: &str) -> Result<Option<Arc<Value>>> {
        self.get(group, plural, ns, wanted).await
    }

    async fn list(&self, group: &str, plural: &str, ns: &str) -> Result<Vec<Arc<Value>>> {
        let objects = self.objects.lock();
        let fits = |(g, p, o): &&(String, String, Arc<Value>)| {
            g == group && p == plural && (ns.is_empty() || namespace(o) == ns)
        };
        Ok(objects.iter().filter(fits).map(|(_, _, object)| object.clone()).collect())
    }

    async fn update(&self, group: &str, plural: &str, _subresource: &str, object: Value) -> Result<Arc<Value>> {
        let mut objects = self.objects.lock();
        let slot = objects
            .iter_mut()
            .find(|(g, p, o)| {
                g == group && p == plural && namespace(o) == namespace(&object) && name(o) == name(&object)
            })
            .ok_or_else(|| ApiError::not_found(group, plural, name(&object)))?;
        slot.2 = Arc::new(object);
        Ok(slot.2.clone())
    }

    async fn create(&self, group: &str, plural: &str, object: Value) -> Result<Arc<Value>> {
        if self.get(group, plural, namespace(&object), name(&object)).await?.is_some() {
            return Err(ApiError::already_exists(group, plural, name(&object)));
        }
        let object = Arc::new(object);
        self.objects.lock().push((group.to_owned(), plural.to_owned(), object.clone()));
        Ok(object)
    }

    async fn submit(&self, group: &str, plural: &str, object: Value) -> Result<Arc<Value>> {
        self.create(group, plural, object).await
    }

    async fn delete(&self, group: &str, plural: &str, object: &Value) -> Result<()> {
        self.objects.lock().retain(|(g, p, held)| g != group || p != plural || **held != *object);
        Ok(())
    }

    async fn record(&self, key: &str, change: RecordChange<'_>) -> Result<()> {
        let mut records = self.records.lock();
        if let Some(new) = change(records.get(key))? {
            records.insert(key.to_owned(), new);
        }
        Ok(())
    }

    async fn allowed(&self, user: &UserInfo, access: Access<'_>) -> bool {
        self.judge.as_ref().map_or(self.allows, |judge| judge(&user.name, &access))
    }

    fn resource_of(&self, group: &str, kind: &str) -> Option<(String, bool)> {
        let resources = crate::kinds::all();
        let found = resources.iter().find(|r| r.descriptor.kind == kind && r.descriptor.hub_group() == group)?;
        Some((found.descriptor.plural.to_string(), found.descriptor.namespaced))
    }
}

/// One request to admit.
pub struct Request {
    pub user: UserInfo,
    pub descriptor: Arc<Descriptor>,
    pub subresource: &'static str,
    pub operation: Operation,
    pub object: Value,
    pub old: Option<Value>,
    pub warnings: Vec<String>,
    pub audit: Vec<(String, String)>,
}

impl Request {
    pub fn new(group: &str, plural: &str, operation: Operation, object: Value) -> Self {
        let resources = crate::kinds::all();
        let found = resources.iter().find(|r| r.descriptor.plural == plural && r.descriptor.hub_group() == group);
        Self {
            user: UserInfo::admin(),
            descriptor: found.expect("a built-in resource").descriptor.clone(),
            subresource: "",
            operation,
            object,
            old: None,
            warnings: Vec::new(),
            audit: Vec::new(),
        }
    }

    pub fn create(group: &str, plural: &str, object: Value) -> Self {
        Self::new(group, plural, Operation::Create, object)
    }

    /// What tells of which object the request is.
    fn named(&self) -> Value {
        if self.object.is_null() { self.old.clone().unwrap_or_default() } else { self.object.clone() }
    }

    fn attributes<'a>(&'a self, named: &'a Value, options: &'a Value) -> Attributes<'a> {
        Attributes {
            user: &self.user,
            descriptor: &self.descriptor,
            group: self.descriptor.hub_group(),
            version: "v1",
            subresource: self.subresource,
            operation: self.operation,
            namespace: namespace(named),
            name: name(named),
            object: self.object.clone(),
            old: self.old.as_ref(),
            options,
            dry_run: false,
            deadline: None,
            patched: false,
            warnings: Vec::new(),
            audit: Vec::new(),
        }
    }

    /// What `read` makes of the request as plugins see it.
    pub fn with_attributes<T>(&self, read: impl FnOnce(&Attributes<'_>) -> T) -> T {
        read(&self.attributes(&self.named(), &Value::Null))
    }

    /// Runs a plugin; the object is what it left. The message when it refused.
    pub async fn admit(&mut self, plugin: &dyn Admission, cluster: &Fixed) -> Result<(), String> {
        let options = json!({});
        let named = self.named();
        let mut attributes = self.attributes(&named, &options);
        if !plugin.handles(&attributes) {
            return Ok(());
        }
        let outcome = match plugin.mutate(&mut attributes, cluster).await {
            Ok(()) => plugin.validate(&mut attributes, cluster).await,
            refused => refused,
        };
        let Attributes { object, warnings, audit, .. } = attributes;
        (self.object, self.warnings, self.audit) = (object, warnings, audit);
        outcome.map_err(|error| error.message().to_owned())
    }
}
