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
//! mutating admission → `defaults` again → `prepare_create` → `validate_create` (+ metadata) →
//! validating admission → `reserve` → store. Of an update: the same with `prepare_update`,
//! `validate_update`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use api::field::ErrorList;
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::admit::Cluster;
use crate::authn::UserInfo;
use crate::error::Result;
use crate::registry::delete::Propagation;
pub use crate::selectable::{FieldAlias, FieldLabels, SelectableField};

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

/// One column of `kubectl get`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: Text,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub type_: Text,
    /// `name` for the name column, or empty.
    pub format: Text,
    pub description: Text,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i32,
    /// For columns that are data: where in the object the cell is (JSONPath, custom resources).
    pub json_path: Option<Text>,
}

impl Column {
    pub fn new(name: &'static str, type_: &'static str, description: &'static str) -> Self {
        Self {
            name: name.into(),
            type_: type_.into(),
            format: "".into(),
            description: description.into(),
            priority: 0,
            json_path: None,
        }
    }

    /// Shown with `-o wide` only.
    #[must_use]
    pub fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    /// The first column of every table.
    pub fn name() -> Self {
        let mut column = Self::new(
            "Name",
            "string",
            "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
        );
        column.format = "name".into();
        column
    }

    /// The usual last column. Tables of built-in kinds give the age as text: `type` is `string`.
    pub fn age() -> Self {
        Self::new(
            "Age",
            "string",
            "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
        )
    }
}

/// Everything that can be said of a resource as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// In order of preference. The hub (storage) version is `served[hub]`.
    pub served: Vec<Served>,
    pub hub: usize,
    pub kind: Text,
    pub list_kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub namespaced: bool,
    /// API verbs as discovery lists them, sorted.
    pub verbs: Vec<Text>,
    pub status: bool,
    pub scale: Option<ScalePaths>,
    pub subresources: Vec<Subresource>,
    /// The version that objects are stored in, where that is not the hub.
    pub stored_as: Option<Text>,
    /// Under `/registry/`, without slashes at the ends, e.g. `pods`, `services/specs`, `minions`.
    pub storage_prefix: Text,
    pub selectable: Vec<SelectableField>,
    pub field_labels: FieldLabels,
    pub columns: Vec<Column>,
    pub generation: bool,
    pub name_rule: NameRule,
    pub keep_status_on_create: bool,
    /// PUT of a name that does not exist creates it.
    pub create_on_update: bool,
    /// An update without `resourceVersion` is allowed (unconditional). Most kinds allow it.
    pub unconditional_update: bool,
    /// Answered without the store: `TokenReview`, `SubjectAccessReview`, `Binding`, `ComponentStatus`.
    pub virtual_: bool,
    /// Deleting marks the object first and waits this long by default: pods.
    pub graceful: bool,
    /// Seconds that an object lives in the store: events.
    pub ttl: Option<u64>,
    /// Comes from a CustomResourceDefinition.
    pub custom: bool,
    /// Deleting answers the deleted object instead of a `Status`.
    pub returns_deleted: bool,
}

pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Descriptor {
    /// A namespaced resource in one version with all verbs, columns Name and Age, no status.
    /// `plural` also serves as the storage prefix (with the group in front for groups not built in).
    pub fn new(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self {
            served: vec![Served {
                group: group.into(),
                version: version.into(),
                deprecation: None,
                served: true,
                columns: None,
            }],
            hub: 0,
            kind: kind.into(),
            list_kind: format!("{kind}List").into(),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            verbs: ALL_VERBS.iter().map(|verb| Text::from(*verb)).collect(),
            status: false,
            scale: None,
            subresources: Vec::new(),
            stored_as: None,
            storage_prefix: plural.into(),
            selectable: Vec::new(),
            field_labels: FieldLabels::default(),
            columns: vec![Column::name(), Column::age()],
            generation: false,
            name_rule: NameRule::DnsSubdomain,
            keep_status_on_create: false,
            create_on_update: false,
            unconditional_update: true,
            virtual_: false,
            graceful: false,
            ttl: None,
            custom: false,
            returns_deleted: false,
        }
    }

    #[must_use]
    pub fn cluster_scoped(mut self) -> Self {
        self.namespaced = false;
        self
    }

    /// Serves a further group version, less preferred than those before.
    #[must_use]
    pub fn also(mut self, group: &'static str, version: &'static str) -> Self {
        self.served.push(Served {
            group: group.into(),
            version: version.into(),
            deprecation: None,
            served: true,
            columns: None,
        });
        self
    }

    /// Warns users of the version named last.
    #[must_use]
    pub fn deprecated(mut self, warning: &'static str) -> Self {
        if let Some(last) = self.served.last_mut() {
            last.deprecation = Some(warning.into());
        }
        self
    }

    #[must_use]
    pub fn short(mut self, names: &[&'static str]) -> Self {
        self.short_names = names.iter().map(|name| Text::from(*name)).collect();
        self
    }

    #[must_use]
    pub fn categories(mut self, names: &[&'static str]) -> Self {
        self.categories = names.iter().map(|name| Text::from(*name)).collect();
        self
    }

    #[must_use]
    pub fn verbs(mut self, verbs: &[&'static str]) -> Self {
        self.verbs = verbs.iter().map(|verb| Text::from(*verb)).collect();
        self
    }

    #[must_use]
    pub fn with_status(mut self) -> Self {
        self.status = true;
        self
    }

    #[must_use]
    pub fn with_generation(mut self) -> Self {
        self.generation = true;
        self
    }

    #[must_use]
    pub fn with_scale(mut self, spec: &'static str, status: &'static str, selector: &'static str) -> Self {
        let selector = (!selector.is_empty()).then(|| selector.into());
        self.scale = Some(ScalePaths { spec_replicas: spec.into(), status_replicas: status.into(), selector });
        self
    }

    #[must_use]
    pub fn subresource(
        mut self,
        name: &'static str,
        kind: (&'static str, &'static str, &'static str),
        verbs: &'static [&'static str],
    ) -> Self {
        let kind = GroupVersionKind::new(kind.0, kind.1, kind.2);
        self.subresources.push(Subresource { name: name.into(), kind, verbs });
        self
    }

    #[must_use]
    pub fn stored_under(mut self, prefix: &'static str) -> Self {
        self.storage_prefix = prefix.into();
        self
    }

    #[must_use]
    pub fn names(mut self, rule: NameRule) -> Self {
        self.name_rule = rule;
        self
    }

    /// A field that selectors may name; its label is its path.
    #[must_use]
    pub fn selectable(mut self, label: &'static str) -> Self {
        self.selectable.push(SelectableField { label: label.into(), paths: vec![label.into()], absent: "".into() });
        self
    }

    /// Replaces the columns. `columns` starts with [`Column::name`] where there is one.
    #[must_use]
    pub fn columns(mut self, columns: Vec<Column>) -> Self {
        self.columns = columns;
        self
    }

    pub fn hub_group(&self) -> &str {
        &self.served[self.hub].group
    }

    pub fn hub_version(&self) -> &str {
        &self.served[self.hub].version
    }

    pub fn storage_version(&self) -> &str {
        self.stored_as.as_deref().unwrap_or_else(|| self.hub_version())
    }

    /// Group, hub version and kind.
    pub fn hub_kind(&self) -> GroupVersionKind {
        let hub = &self.served[self.hub];
        GroupVersionKind { group: hub.group.clone(), version: hub.version.clone(), kind: self.kind.clone() }
    }

    pub fn find_served(&self, group: &str, version: &str) -> Option<&Served> {
        self.served.iter().find(|served| served.group == group && served.version == version)
    }

    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|allowed| allowed == verb)
    }

    /// `/registry/<prefix>/`.
    pub fn registry_root(&self) -> String {
        format!("/registry/{}/", self.storage_prefix)
    }

    /// Key of an object in the store; `namespace` is empty for cluster-scoped kinds.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if namespace.is_empty() {
            format!("/registry/{}/{name}", self.storage_prefix)
        } else {
            format!("/registry/{}/{namespace}/{name}", self.storage_prefix)
        }
    }
}

/// What hooks may know of the request beside the object.
pub struct Context<'a> {
    pub user: &'a UserInfo,
    /// `create`, `update`, `patch`, ...
    pub verb: &'a str,
    /// API group of the request: a kind served in two groups may have rules for each.
    pub group: &'a str,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    pub name: &'a str,
    /// Empty, `status`, `scale`, `approval`, ...
    pub subresource: &'a str,
    pub dry_run: bool,
    pub now: Timestamp,
    pub cluster: &'a dyn Cluster,
}

/// Something taken for a write that is under way (a Service address). When it is not known what
/// became of the write, neither is called: a repair finds out later.
#[async_trait]
pub trait Reservation: Send {
    /// The write is stored.
    async fn commit(self: Box<Self>, cluster: &dyn Cluster);

    /// The write was refused: what was taken for it is given back.
    async fn release(self: Box<Self>, cluster: &dyn Cluster);
}

/// What is particular to one kind. Every method has the behaviour of a plain kind as default.
/// All but `reserve`, `deleted` and `repair` are pure and quick. Objects are in the hub version.
#[async_trait]
pub trait Hooks: Send + Sync + 'static {
    /// Fills in defaults, at create and update, and for objects inside a review or a template.
    fn defaults(&self, _obj: &mut Value) {}

    /// Called after the registry's own preparation (status dropped, metadata set).
    fn prepare_create(&self, _ctx: &Context<'_>, _obj: &mut Value) {}

    /// Called after the registry's own preparation (status kept), before generation is compared.
    fn prepare_update(&self, _ctx: &Context<'_>, _new: &mut Value, _old: &Value) {}

    /// For a write to `status` or another updatable subresource (`ctx.subresource`). The registry
    /// has already put `new`'s part for the subresource into a copy of `old` for `status`; for
    /// others (`approval`, `resize`, `ephemeralcontainers`, `finalize`) this does all of it.
    fn prepare_subresource_update(&self, _ctx: &Context<'_>, _new: &mut Value, _old: &Value) {}

    fn validate_create(&self, _ctx: &Context<'_>, _obj: &Value) -> ErrorList {
        ErrorList::new()
    }

    /// `new` also passes what `validate_create` asks for where upstream does so: call it from here.
    fn validate_update(&self, _ctx: &Context<'_>, _new: &Value, _old: &Value) -> ErrorList {
        ErrorList::new()
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, _new: &Value, _old: &Value) -> ErrorList {
        ErrorList::new()
    }

    /// Texts for `Warning` headers of writes to the object itself.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// As [`Hooks::warnings`], of writes to a subresource.
    fn subresource_warnings(&self, _ctx: &Context<'_>, _new: &Value, _old: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The cells of one table row, as many as the descriptor has columns.
    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![obj["metadata"]["name"].clone(), age(obj, now)]
    }

    /// The row's `conditions`, or null.
    fn row_conditions(&self, _obj: &Value) -> Value {
        Value::Null
    }

    /// How the rows of a list are ordered, where not as the list is.
    fn row_order(&self, _one: &Value, _other: &Value) -> Ordering {
        Ordering::Equal
    }

    /// Between served versions. The registry rewrites `apiVersion` and calls this only when group
    /// or version really differ. Identical schemas need nothing.
    fn convert(&self, _obj: &mut Value, _from: (&str, &str), _to: (&str, &str)) -> Result<()> {
        Ok(())
    }

    /// An object in the hub version as it is stored, where that is another version.
    async fn to_stored(&self, obj: Value) -> Result<Value> {
        Ok(obj)
    }

    /// A stored object in the hub version.
    async fn as_served(&self, obj: Value) -> Result<Value> {
        Ok(obj)
    }

    /// Takes what must be unique in the cluster (addresses, ports) and writes it into `new`.
    async fn reserve(
        &self,
        _ctx: &Context<'_>,
        _new: &mut Value,
        _old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reservation>>> {
        Ok(None)
    }

    /// The object has gone from the store.
    async fn deleted(&self, _cluster: &dyn Cluster, _obj: &Value) {}

    /// For `graceful` kinds: the grace period in seconds that a delete gets when it asks for
    /// `asked` (none: the object's own). 0 deletes at once.
    fn grace_period(&self, _obj: &Value, asked: Option<i64>) -> i64 {
        asked.unwrap_or(0)
    }

    /// Called when an object is marked for deletion (`deletionTimestamp` is set): a namespace
    /// becomes `Terminating`.
    fn begin_delete(&self, _obj: &mut Value) {}

    /// Finalizers that a delete adds: they keep the object until what depends on it is cleaned up.
    fn delete_finalizers(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether something other than `metadata.finalizers` keeps a marked object: a namespace's
    /// `spec.finalizers`.
    fn holds_deletion(&self, _obj: &Value) -> bool {
        false
    }

    /// What writes to `status` leave as it was, and so do not own.
    fn reset_by_status(&self) -> Paths {
        &[&["spec"]]
    }

    /// What writes to the object itself (an empty name) or to a subresource other than `status` own;
    /// none: all but a status that is apart.
    fn ownable(&self, _subresource: &str) -> Option<Ownable> {
        None
    }

    /// What deletion does with dependents when the caller says nothing; none: it takes no notice of
    /// them, whatever the caller says.
    fn default_propagation(&self) -> Option<Propagation> {
        Some(Propagation::Background)
    }

    /// Before requests are served, and every few minutes: bring what `reserve` takes in line with
    /// the stored objects.
    async fn repair(&self, _cluster: &dyn Cluster) -> Result<()> {
        Ok(())
    }
}

/// The `Age` cell: `5s`, `3m20s`, `4d`, or `<unknown>`.
pub fn age(obj: &Value, now: Timestamp) -> Value {
    since(&obj["metadata"]["creationTimestamp"], now)
}

/// How long ago an RFC 3339 timestamp was, in kubectl's words.
pub fn since(timestamp: &Value, now: Timestamp) -> Value {
    let Some(then) = timestamp.as_str().and_then(|text| text.parse::<Timestamp>().ok()) else {
        return "<unknown>".into();
    };
    human_duration(now.duration_since(then).as_secs()).into()
}

/// `k8s.io/apimachinery/pkg/util/duration.HumanDuration` of whole seconds.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    if seconds < 0 {
        return "0s".into();
    }
    let (minutes, hours, days, years) = (seconds / 60, seconds / 3600, seconds / 86400, seconds / 86400 / 365);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// Hooks of a kind with nothing particular.
pub struct Plain;

impl Hooks for Plain {}

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
    fn durations_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn paths_are_read_and_written() {
        let mut obj = json!({"spec": {"replicas": 1}});
        assert_eq!(at(&obj, "spec.replicas"), 1);
        set_at(&mut obj, "status.replicas", 3.into());
        assert_eq!(obj["status"]["replicas"], 3);
        assert!(at(&obj, "spec.none.more").is_null());
    }
}
