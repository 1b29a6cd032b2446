//! The contract between the registry and the kinds: what a resource is ([`Descriptor`], data) and
//! what is particular to its kind ([`Hooks`], pure functions on JSON).
//!
//! Objects travel through the pipeline as `serde_json::Value` in the *hub* version: the version a
//! resource is stored in. A request in another served version is converted with
//! [`Hooks::convert`] on the way in and out; hooks only ever see the hub version.
//!
//! What the registry does by itself, so that hooks need not:
//! - metadata: name, generateName, uid, creationTimestamp, resourceVersion, deletionTimestamp,
//!   finalizers, ownerReferences' form, labels' and annotations' syntax, namespace checks, and that
//!   metadata which users may not change is kept (`uid`, `creationTimestamp`, ...);
//! - status is dropped at create and kept at update when the resource has a `status` subresource
//!   ([`Descriptor::keep_status_on_create`] turns the former off); a write to `status` changes only
//!   status and the metadata that status writes may change;
//! - `metadata.generation` is 1 at create and grows when anything outside `metadata` and `status`
//!   changes, if [`Descriptor::generation`];
//! - names are checked with [`Descriptor::name_rule`].
//!
//! Order of a create: decode → `convert` to the hub → schema normalisation → `defaults` →
//! mutating admission → `defaults` again → `prepare_create` → fields of features that are off go
//! ([`Hooks::switched_off`]) → `validate_create` (+ metadata) → validating admission → `reserve` → store. Of an update: the same with `prepare_update`,
//! `validate_update`.

mod column;
mod descriptor;
mod hooks;
mod switched_off;

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value, json};

pub use crate::selectable::{FieldAlias, FieldLabels, SelectableField};
pub use column::{Column, age, human_duration, since};
pub use descriptor::{ALL_VERBS, Descriptor};
pub use hooks::{Context, Hooks, Plain, Reservation};
pub use switched_off::{Feature, SwitchedOff};

pub type Text = Cow<'static, str>;

/// Places of an object, as the names on the way there.
pub type Paths = &'static [&'static [&'static str]];

/// What a write by way of an endpoint can own of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ownable {
    /// All but these places and what is below them.
    AllBut(Paths),
    /// Only these places and what is below them; `*` is every item of a list.
    Only(Paths),
}

/// Of kinds whose status is written without metadata.
pub const ALL_BUT_STATUS: Paths = &[&["spec"], &["metadata"]];

/// A group, version and kind; the group of core is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    pub group: Text,
    pub version: Text,
    pub kind: Text,
}

impl GroupVersionKind {
    pub fn new(group: impl Into<Text>, version: impl Into<Text>, kind: impl Into<Text>) -> Self {
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// `apps/v1`, or `v1` for core.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
}

pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Splits `apps/v1` into group and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// One group and version a resource is served under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub group: Text,
    pub version: Text,
    /// Said in a `Warning` header, e.g. `v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice`.
    pub deprecation: Option<Text>,
    /// Listed by discovery; a version not served is known only for decoding what is stored.
    pub served: bool,
    /// Columns of this version, when they differ from [`Descriptor::columns`] (custom resources).
    pub columns: Option<Vec<Column>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// `[a-z0-9]([-a-z0-9.]*[a-z0-9])?`, at most 253: most kinds.
    DnsSubdomain,
    /// DNS-1123 label, at most 63: namespaces, services.
    DnsLabel,
    /// Anything that is one path segment: RBAC kinds, events.
    PathSegment,
    /// The hooks check it.
    Unchecked,
}

/// A subresource other than `status` and `scale`, served by its own handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// `binding`, `eviction`, `token`, `approval`, `finalize`, `log`, `exec`, ...
    pub name: Text,
    /// The kind that its requests and responses have, e.g. `policy/v1 Eviction`.
    pub kind: GroupVersionKind,
    /// API verbs: `create`, `get`, `update`, `patch`, `delete`.
    pub verbs: &'static [&'static str],
}

/// Where the scale subresource finds its numbers, as dotted paths without a leading dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: Text,
    pub status_replicas: Text,
    /// A path to a string selector, or to a `LabelSelector` object, which is written as text.
    pub selector: Option<Text>,
}

/// A resource the server serves. Cheap to clone.
#[derive(Clone)]
pub struct Resource {
    pub descriptor: Arc<Descriptor>,
    pub hooks: Arc<dyn Hooks>,
}

impl Resource {
    pub fn new(descriptor: Descriptor, hooks: impl Hooks) -> Self {
        Self { descriptor: Arc::new(descriptor), hooks: Arc::new(hooks) }
    }

    pub fn plain(descriptor: Descriptor) -> Self {
        Self::new(descriptor, Plain)
    }
}

/// The value at a dotted path (`spec.replicas`), or null.
pub fn at<'a>(obj: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(obj, |value, key| &value[key])
}

/// Sets the value at a dotted path, making objects on the way.
pub fn set_at(obj: &mut Value, path: &str, value: Value) {
    let mut here = obj;
    for key in path.split('.') {
        if !here.is_object() {
            *here = json!({});
        }
        let map: &mut Map<String, Value> = match here {
            Value::Object(map) => map,
            _ => return,
        };
        here = map.entry(key).or_insert(Value::Null);
    }
    *here = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_and_written() {
        let mut obj = json!({"spec": {"replicas": 1}});
        assert_eq!(at(&obj, "spec.replicas"), 1);
        set_at(&mut obj, "status.replicas", 3.into());
        assert_eq!(obj["status"]["replicas"], 3);
        assert!(at(&obj, "spec.none.more").is_null());
    }
}
