//! CustomResourceDefinitions: serves what they define, a moment after they are written.
//!
//! Layer: beside the registry, which serves custom resources like any other. One task follows the
//! stored definitions: it accepts their names, swaps the set of served resources, and empties what
//! a deleted definition leaves behind. [`resource`] is the pure part.

pub mod convert;
pub mod jsonpath;
mod names;
pub mod resource;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use self::convert::{Converter, Served};
use self::resource::{Custom, SchemaHooks};
use crate::admit::Cluster;
use crate::authn::UserInfo;
use crate::cache::Cache;
use crate::cache::watch::Selection;
use crate::discovery;
use crate::error::Result;
use crate::http::info::RequestInfo;
use crate::registry::delete::DeleteOptions;
use crate::registry::{Call, metadata};
use crate::resource::{Resource, api_version};
use crate::resources::{Endpoint, Resources};
use crate::server::Api;

pub const GROUP: &str = "apiextensions.k8s.io";
pub const PLURAL: &str = "customresourcedefinitions";
/// Keeps a deleted definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
const RETRY: Duration = Duration::from_millis(250);

/// Serves the definitions that are stored now, and follows them from then on.
pub async fn start(api: &Arc<Api>) -> Result<()> {
    let mut server =
        CustomServer { api: api.clone(), built_in: api.resources().all().to_vec(), served: HashMap::new() };
    server.reconcile().await?;
    let supervisor = api.supervisor.clone();
    supervisor.spawn("custom-resources", async move { server.follow().await });
    Ok(())
}

/// What is served of one definition.
struct ServedDefinition {
    /// One for each version, the preferred first.
    endpoints: Vec<Arc<Endpoint>>,
    made_from: MadeFrom,
}

/// Names the parts of a definition that its endpoints are made from: they change when this does.
#[derive(PartialEq)]
struct MadeFrom {
    uid: Value,
    /// One more with every change of the spec.
    generation: Value,
    names: Value,
}

impl MadeFrom {
    fn of(definition: &Value) -> Self {
        let metadata = &definition["metadata"];
        Self {
            uid: metadata["uid"].clone(),
            generation: metadata["generation"].clone(),
            names: definition["status"]["acceptedNames"].clone(),
        }
    }
}

impl ServedDefinition {
    fn stop(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.cache.stop());
    }

    fn prefix(&self) -> &str {
        self.endpoints.first().map_or("", |endpoint| &endpoint.descriptor().storage_prefix)
    }

    /// The version that objects are stored in: nothing has to be converted there.
    fn stored(&self) -> Option<&Arc<Endpoint>> {
        self.endpoints.iter().find(|endpoint| endpoint.descriptor().stored_as.is_none())
    }
}

struct CustomServer {
    api: Arc<Api>,
    built_in: Vec<Arc<Endpoint>>,
    /// By name of the definition.
    served: HashMap<String, ServedDefinition>,
}

impl CustomServer {
    async fn follow(&mut self) {
        let Some(endpoint) = self.api.resources().by_hub(GROUP, PLURAL).cloned() else { return };
        let mut changed = endpoint.cache.subscribe();
        let mut seen = 0;
        loop {
            let now = endpoint.cache.read().changed;
            if now != seen {
                match self.reconcile().await {
                    Ok(true) => seen = now,
                    Ok(false) => tokio::time::sleep(RETRY).await,
                    Err(error) => {
                        tracing::debug!(%error, "serving custom resources; trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
                continue;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Brings what is served in line with the definitions. False: something has to be waited for.
    async fn reconcile(&mut self) -> Result<bool> {
        let definitions = self.api.list(GROUP, PLURAL, "").await?;
        let mut settled = true;
        for definition in &definitions {
            if let Some(status) = names::settled(definition, &definitions) {
                let mut changed = (**definition).clone();
                changed["status"] = status;
                match self.api.update(GROUP, PLURAL, "status", changed).await {
                    // Someone wrote it in between: it comes again.
                    Err(error) if error.is_conflict() || error.is_not_found() => {}
                    outcome => drop(outcome?),
                }
            }
        }
        let definitions = self.api.list(GROUP, PLURAL, "").await?;
        self.serve(&definitions);
        for definition in definitions.iter().filter(|definition| metadata::is_deleting(definition)) {
            settled &= self.clean(definition).await?;
        }
        Ok(settled)
    }

    /// Swaps the served resources if they changed.
    fn serve(&mut self, definitions: &[Arc<Value>]) {
        let mut kept = HashSet::new();
        let mut gone = Vec::new();
        let mut changed = false;
        for definition in definitions.iter().filter(|definition| is_established(definition)) {
            let name = metadata::text(definition, "name").to_owned();
            let made_from = MadeFrom::of(definition);
            kept.insert(name.clone());
            if self.served.get(&name).is_some_and(|served| served.made_from == made_from) {
                continue;
            }
            let Some(endpoints) = self.endpoints(definition) else { continue };
            changed = true;
            gone.extend(self.served.insert(name, ServedDefinition { endpoints, made_from }));
        }
        gone.extend(self.served.extract_if(|name, _| !kept.contains(name)).map(|(_, served)| served));
        changed |= !gone.is_empty();
        if changed {
            let mut custom: Vec<&ServedDefinition> = self.served.values().collect();
            custom.sort_by(|a, b| a.prefix().cmp(b.prefix()));
            let custom = custom.into_iter().flat_map(|served| served.endpoints.iter().cloned());
            let all = self.built_in.iter().cloned().chain(custom).collect();
            self.api.set_resources(Resources::new(all));
        }
        // Requests find the new ones by now.
        gone.iter().for_each(ServedDefinition::stop);
    }

    /// An endpoint for each version of a definition.
    fn endpoints(&self, definition: &Value) -> Option<Vec<Arc<Endpoint>>> {
        let mut versions = resource::read(definition, &definition["status"]["acceptedNames"])?;
        versions.sort_by_key(|custom| std::cmp::Reverse(discovery::version_priority(custom.descriptor.hub_version())));
        let converter = Arc::new(Converter::new(definition, &self.api));
        Some(versions.into_iter().map(|custom| self.endpoint(custom, &converter)).collect())
    }

    fn endpoint(&self, custom: Custom, converter: &Arc<Converter>) -> Arc<Endpoint> {
        let Custom { descriptor, schema, constraints } = custom;
        let api_version = api_version(descriptor.hub_group(), descriptor.hub_version());
        let decoder = Arc::new(Served { converter: converter.clone(), api_version, schema: schema.clone() });
        let hooks = SchemaHooks {
            schema: schema.clone(),
            constraints: constraints.map(Arc::new),
            columns: descriptor.columns.clone(),
            decoder: decoder.clone(),
            stored: api_version_of_storage(&descriptor),
        };
        let descriptor = Arc::new(descriptor);
        let cache = Cache::decoding(descriptor.clone(), self.api.store.clone(), &self.api.supervisor, Some(decoder));
        Endpoint::custom(Resource { descriptor, hooks: Arc::new(hooks) }, cache, vec![schema])
    }

    /// Deletes every object of a deleted definition; then lets the definition go.
    async fn clean(&self, definition: &Value) -> Result<bool> {
        if !metadata::finalizers(definition).contains(&CLEANUP) {
            return Ok(true);
        }
        if let Some(served) = self.served.get(metadata::text(definition, "name")) {
            let Some(endpoint) = served.stored() else { return Ok(false) };
            let call = self.cleaning_call(endpoint);
            let left = call.delete_collection(&Selection::default(), &DeleteOptions::default()).await?;
            if !left.is_empty() {
                return Ok(false);
            }
        }
        let name = metadata::text(definition, "name");
        let Some(current) = self.api.get_live(GROUP, PLURAL, "", name).await? else { return Ok(true) };
        let call =
            self.cleaning_call(self.api.resources().by_hub(GROUP, PLURAL).ok_or_else(crate::ApiError::no_such_path)?);
        let call = Call {
            info: Arc::new(RequestInfo { name: name.to_owned(), verb: "update".into(), ..(*call.info).clone() }),
            ..call
        };
        let mut changed = (*current).clone();
        if let Some(finalizers) = changed["metadata"]["finalizers"].as_array_mut() {
            finalizers.retain(|finalizer| finalizer != CLEANUP);
        }
        call.update(&crate::registry::write::Replace { object: changed }).await?;
        Ok(true)
    }

    /// A request of the server itself on a resource.
    fn cleaning_call(&self, endpoint: &Arc<Endpoint>) -> Call {
        let descriptor = endpoint.descriptor();
        let info = RequestInfo {
            is_resource: true,
            verb: "deletecollection".to_owned(),
            group: descriptor.hub_group().to_owned(),
            version: descriptor.hub_version().to_owned(),
            resource: descriptor.plural.to_string(),
            ..RequestInfo::default()
        };
        Call {
            api: self.api.clone(),
            endpoint: endpoint.clone(),
            user: Arc::new(UserInfo::new("system:apiserver", &["system:masters"])),
            info: Arc::new(info),
            query: Default::default(),
            options: Default::default(),
            manager: "kube-apiserver".to_owned(),
            applies: false,
            now: jiff::Timestamp::now(),
            warnings: Default::default(),
            record: None,
        }
    }
}

fn api_version_of_storage(descriptor: &crate::resource::Descriptor) -> String {
    api_version(descriptor.hub_group(), descriptor.storage_version())
}

fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    definition["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn is_established(definition: &Value) -> bool {
    condition(definition, "Established").is_some_and(|condition| condition["status"] == "True")
}
