//! The contract between the pipeline and admission plugins: [`Attributes`] of a request,
//! [`Admission`] that may change or reject it, and [`Cluster`], how plugins and hooks see and
//! change other objects.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::Instant;

use crate::authn::UserInfo;
use crate::error::{ApiError, Result};
use crate::resource::{Descriptor, GroupVersionKind, api_version};
use crate::schema::{self, Schema};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As `AdmissionReview` names it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// What is asked, by whom. The object is in the hub version.
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    pub descriptor: &'a Descriptor,
    /// Group and version of the request's path.
    pub group: &'a str,
    pub version: &'a str,
    /// Empty, or e.g. `status`, `eviction`, `exec`.
    pub subresource: &'a str,
    pub operation: Operation,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    /// May be empty at create with `generateName`: see `object`.
    pub name: &'a str,
    /// The new object; null for deletes. For subresources with a kind of their own (`Eviction`,
    /// `Binding`, `PodExecOptions`) that kind's object.
    pub object: Value,
    /// The object before an update or delete.
    pub old: Option<&'a Value>,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`.
    pub options: &'a Value,
    pub dry_run: bool,
    /// When the request is given up; none for what the server does by itself.
    pub deadline: Option<Instant>,
    /// Whether a webhook or a policy patched the object, which may then hold anything.
    pub patched: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    /// Annotations of the audit event.
    pub audit: Vec<(String, String)>,
}

impl Attributes<'_> {
    /// Whether the request is for this resource itself or a subresource of it, by hub group.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.descriptor.plural == plural && self.descriptor.served.iter().any(|served| served.group == group)
    }

    /// `403 Forbidden` with upstream's wording for admission.
    pub fn forbid(&self, why: impl std::fmt::Display) -> ApiError {
        // Before a name is generated its beginning stands for it.
        let metadata = &self.object["metadata"];
        let of_object =
            || ["name", "generateName"].iter().find_map(|key| metadata[*key].as_str().filter(|n| !n.is_empty()));
        let name = if self.name.is_empty() { of_object().unwrap_or("Unknown") } else { self.name };
        ApiError::forbidden(self.group, &self.descriptor.plural, name, why)
    }
}

/// One admission plugin. Plugins run in the order of `admission::build`: first every `mutate`,
/// then every `validate`.
#[async_trait]
pub trait Admission: Send + Sync {
    /// Kubernetes' name of the plugin, e.g. `NamespaceLifecycle`.
    fn name(&self) -> &'static str;

    /// A cheap test whether the other two need to be called.
    fn handles(&self, attributes: &Attributes<'_>) -> bool;

    async fn mutate(&self, _attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        Ok(())
    }

    async fn validate(&self, _attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        Ok(())
    }
}

/// A question to the authorizer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Access<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Of a request that is for no resource.
    pub path: &'a str,
}

/// See [`Cluster::record`].
pub type RecordChange<'a> = &'a mut (dyn FnMut(Option<&Value>) -> Result<Option<Value>> + Send);

/// The cluster's objects for hooks and plugins. Reads come from the watch cache (as upstream's
/// informers: possibly a moment behind) unless they say `live`; resources are named by hub group
/// and plural. Objects are in the hub version.
#[async_trait]
pub trait Cluster: Send + Sync {
    async fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Result<Option<Arc<Value>>>;

    /// Reads the store itself.
    async fn get_live(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Result<Option<Arc<Value>>>;

    /// `namespace` empty: all namespaces.
    async fn list(&self, group: &str, plural: &str, namespace: &str) -> Result<Vec<Arc<Value>>>;

    /// Writes `status` (or the whole object when `subresource` is empty) as the server itself,
    /// without admission, provided that `resourceVersion` in `object` is still current: else 409.
    async fn update(&self, group: &str, plural: &str, subresource: &str, object: Value) -> Result<Arc<Value>>;

    /// Creates as the server itself, without admission.
    async fn create(&self, group: &str, plural: &str, object: Value) -> Result<Arc<Value>>;

    /// Creates as a client of the server's own would: with admission, validation and a record of its
    /// own in the audit log.
    async fn submit(&self, group: &str, plural: &str, object: Value) -> Result<Arc<Value>>;

    /// Deletes as the server itself, at once and without admission, if `object` is still what is
    /// stored: else 409.
    async fn delete(&self, group: &str, plural: &str, object: &Value) -> Result<()>;

    /// Changes a record of the server's own that is no resource, by its key in the store. `change`
    /// gets what is there and says what shall be, none for no change; it is called again when
    /// somebody else was faster.
    async fn record(&self, key: &str, change: RecordChange<'_>) -> Result<()>;

    /// Every group version that a resource is served in.
    fn versions(&self, descriptor: &Descriptor) -> Vec<(String, String)> {
        descriptor.served.iter().map(|served| (served.group.to_string(), served.version.to_string())).collect()
    }

    /// An object of a resource in another version of it.
    async fn convert(&self, _descriptor: &Descriptor, mut object: Value, group: &str, version: &str) -> Result<Value> {
        object["apiVersion"] = api_version(group, version).into();
        Ok(object)
    }

    /// The same for an object of a kind of `group`.
    async fn convert_kind(&self, group: &str, _kind: &str, mut object: Value, version: &str) -> Result<Value> {
        object["apiVersion"] = api_version(group, version).into();
        Ok(object)
    }

    /// The plural of a kind's resource, and whether it is in namespaces.
    fn resource_of(&self, _group: &str, _kind: &str) -> Option<(String, bool)> {
        None
    }

    fn schema(&self, group: &str, version: &str, kind: &str) -> Option<Schema> {
        schema::lookup(&GroupVersionKind::new(group.to_owned(), version.to_owned(), kind.to_owned()))
    }

    /// Whether `user` may do this.
    async fn allowed(&self, user: &UserInfo, access: Access<'_>) -> bool;
}
