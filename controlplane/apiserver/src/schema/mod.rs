//! Schemas of JSON values: machinery that knows no kind by name.
//!
//! - [`table`]: the embedded table of built-in types;
//! - [`structural`]: schemas of custom resources; [`constraints`]: what they demand of values;
//!   [`source`]: their text;
//! - [`parse`](mod@parse): JSON and YAML to values, finding duplicate fields; [`document`]: what
//!   only the text tells;
//! - [`normalize`](mod@normalize): what decoding into Go's types and encoding again would do;
//!   `numbers`: the same for numbers without a type.
//!
//! A [`Schema`] is a handle on the schema of one kind; [`Node`] is a place in it, which patches and
//! apply walk together with the value.

pub mod constraints;
pub mod document;
pub mod normalize;
mod numbers;
pub mod parse;
pub mod source;
pub mod structural;
pub mod table;

use std::sync::{Arc, LazyLock};

use serde_json::Value;

pub use normalize::{normalize, normalize_literal};
pub use parse::{ContentType, Parsed, parse};
pub use structural::Structural;

use crate::resource::GroupVersionKind;
pub(crate) use api::scalar::{
    base64_bytes, base64_url, go_duration, go_duration_nanos, go_duration_text, micro_time as micro_time_text,
    time as time_text, timestamp as parse_timestamp, to_base64,
};
use table::{Base, Element, ListType, Shape, TypeId};

/// The schema of a kind. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Schema {
    Builtin(TypeId),
    Custom(Arc<Structural>),
}

/// The schema of a built-in kind.
pub fn lookup(gvk: &GroupVersionKind) -> Option<Schema> {
    type_of(&gvk.group, &gvk.version, &gvk.kind).map(Schema::Builtin)
}

/// The table's type for a built-in kind. Kinds of `meta/v1` (`Status`, `DeleteOptions`,
/// `WatchEvent`, ...) belong to every group.
pub fn type_of(group: &str, version: &str, kind: &str) -> Option<TypeId> {
    let package = match group {
        "" => "io.k8s.api.core".to_owned(),
        "meta.k8s.io" => "io.k8s.apimachinery.pkg.apis.meta".to_owned(),
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".to_owned(),
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration".to_owned(),
        "internal.apiserver.k8s.io" => return None,
        group => format!("io.k8s.api.{}", group.split('.').next().unwrap_or(group)),
    };
    let own = TypeId::named(&format!("{package}.{version}.{kind}")).filter(|id| id.is_object());
    own.filter(|id| group_of(*id).is_some_and(|(known, _)| known == group)).or_else(|| {
        let shared = ["DeleteOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "ListOptions", "Status"];
        let shared = shared.contains(&kind)
            || matches!(
                kind,
                "WatchEvent" | "GetOptions" | "APIResourceList" | "APIGroup" | "APIGroupList" | "APIVersions"
            );
        shared.then(|| TypeId::named(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))).flatten()
    })
}

/// Group and version of the package a built-in type lives in.
pub fn group_of(id: TypeId) -> Option<(&'static str, &'static str)> {
    let mut parts = id.name().rsplit('.');
    let (_, version, package) = (parts.next()?, parts.next()?, parts.next()?);
    let group = match package {
        "core" => "",
        "meta" => "meta.k8s.io",
        "apps" | "autoscaling" | "batch" | "policy" => package,
        "flowcontrol" => "flowcontrol.apiserver.k8s.io",
        "rbac" => "rbac.authorization.k8s.io",
        "admissionregistration" => "admissionregistration.k8s.io",
        "apiextensions" => "apiextensions.k8s.io",
        "apiregistration" => "apiregistration.k8s.io",
        "authentication" => "authentication.k8s.io",
        "authorization" => "authorization.k8s.io",
        "certificates" => "certificates.k8s.io",
        "coordination" => "coordination.k8s.io",
        "discovery" => "discovery.k8s.io",
        "events" => "events.k8s.io",
        "networking" => "networking.k8s.io",
        "node" => "node.k8s.io",
        "resource" => "resource.k8s.io",
        "scheduling" => "scheduling.k8s.io",
        "storage" => "storage.k8s.io",
        "storagemigration" => "storagemigration.k8s.io",
        _ => return None,
    };
    Some((group, version))
}

impl Schema {
    pub fn custom(mut schema: Structural) -> Schema {
        schema.root = true;
        Schema::Custom(Arc::new(schema))
    }

    /// The schema of a custom resource from its `openAPIV3Schema`, which is kept for OpenAPI.
    pub fn from_openapi(schema: &Value) -> Schema {
        let mut read = Structural::from_json(schema);
        read.source = Some(Arc::new(source::Source::new(schema)));
        Schema::custom(read)
    }

    pub fn root(&self) -> Node<'_> {
        match self {
            Schema::Builtin(id) => Node::Builtin(Element::of_type(*id)),
            Schema::Custom(schema) => Node::Custom(schema),
        }
    }

    /// Strategic merge patch is for built-in kinds only.
    pub fn is_builtin(&self) -> bool {
        matches!(self, Schema::Builtin(_))
    }
}

/// A place in a schema.
#[derive(Debug, Clone, Copy)]
pub enum Node<'a> {
    Builtin(Element),
    Custom(&'a Structural),
    /// Nothing is known: maps are granular, lists atomic.
    Untyped,
}

/// How a value merges in a strategic merge patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PatchRule {
    pub merges: bool,
    /// Objects merge unless this is set.
    pub replaces: bool,
    /// The field that items are known by, in lists of objects.
    pub key: Option<&'static str>,
}

/// How a value merges in server-side apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology<'a> {
    Scalar,
    /// Objects with granular ownership: structs and maps.
    Granular,
    /// Owned as a whole.
    Atomic,
    Set,
    /// A list of objects, each known by the values of these keys.
    ListMap(Vec<&'a str>),
}

/// What kind of value a place holds, as far as merging cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Anything,
    Map,
    List,
    Numeric,
    String,
    Boolean,
}

impl<'a> Node<'a> {
    pub fn expected(self) -> Expected {
        match self {
            Node::Untyped => Expected::Anything,
            Node::Custom(schema) if schema.int_or_string => Expected::Anything,
            Node::Custom(schema) => match schema.type_ {
                "object" => Expected::Map,
                "array" => Expected::List,
                "integer" | "number" => Expected::Numeric,
                "string" => Expected::String,
                "boolean" => Expected::Boolean,
                _ => Expected::Anything,
            },
            Node::Builtin(element) => {
                let element = element.resolved();
                match (element.shape, element.base) {
                    (Shape::List, _) => Expected::List,
                    (Shape::Map, _) | (_, Base::Type(_)) => Expected::Map,
                    (_, Base::String | Base::Bytes) => Expected::String,
                    (_, Base::Bool) => Expected::Boolean,
                    (_, Base::Int32 | Base::Int64 | Base::Float) => Expected::Numeric,
                    _ => Expected::Anything,
                }
            }
        }
    }

    /// The place of a member of an object: a struct's field or a map's value. `None` for a field
    /// that the struct does not have.
    pub fn member(self, name: &str) -> Option<Node<'a>> {
        match self {
            Node::Untyped => Some(Node::Untyped),
            Node::Custom(schema) => schema.member(name),
            Node::Builtin(element) => {
                let element = element.resolved();
                match (element.shape, element.base) {
                    (Shape::Map, _) => Some(Node::Builtin(element.item())),
                    (Shape::Single, Base::Type(id)) => id.field(name).map(|field| Node::Builtin(field.element())),
                    (Shape::Single, Base::Raw | Base::Json | Base::FieldsV1) => Some(Node::Untyped),
                    (Shape::Single, Base::SchemaOrBool | Base::SchemaOrArray) => {
                        schema_props().map(Element::of_type).map(Node::Builtin)?.member(name)
                    }
                    _ => None,
                }
            }
        }
    }

    /// The place of a list's items.
    pub fn item(self) -> Node<'a> {
        match self {
            Node::Builtin(element) if element.resolved().shape == Shape::List => {
                Node::Builtin(element.resolved().item())
            }
            Node::Builtin(element) if element.base == Base::SchemaOrArray => {
                schema_props().map_or(Node::Untyped, |id| Node::Builtin(Element::of_type(id)))
            }
            Node::Custom(schema) => schema.item(),
            _ => Node::Untyped,
        }
    }

    /// How the value merges in server-side apply.
    pub fn topology(self, value: &Value) -> Topology<'a> {
        match self {
            Node::Builtin(element) => builtin_topology(element, value),
            Node::Custom(schema) => schema.topology(value),
            Node::Untyped => match value {
                Value::Object(_) => Topology::Granular,
                Value::Array(_) => Topology::Atomic,
                _ => Topology::Scalar,
            },
        }
    }

    /// How it merges in a strategic merge patch; custom resources have no such rules.
    pub fn patch_rule(self) -> PatchRule {
        match self {
            Node::Builtin(Element { field: Some(field), .. }) => PatchRule {
                merges: field.patch_merges(),
                replaces: field.patch_replaces(),
                key: field.patch_merge_key(),
            },
            _ => PatchRule::default(),
        }
    }

    /// Whether a member is a declared field, rather than a key of a map.
    pub fn names(self, member: &str) -> bool {
        match self {
            Node::Builtin(element) => element.resolved().shape == Shape::Single && self.member(member).is_some(),
            Node::Custom(schema) => schema.names(member),
            Node::Untyped => false,
        }
    }

    /// The declared default, e.g. of a key of a list of objects.
    pub fn default_value(self) -> Option<Value> {
        match self {
            Node::Builtin(element) => serde_json::from_str(element.field?.default_json()?).ok(),
            Node::Custom(schema) => schema.default.as_deref().cloned(),
            Node::Untyped => None,
        }
    }
}

fn object_meta() -> Option<TypeId> {
    static KNOWN: LazyLock<Option<TypeId>> =
        LazyLock::new(|| TypeId::named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"));
    *KNOWN
}

pub(crate) fn schema_props() -> Option<TypeId> {
    static KNOWN: LazyLock<Option<TypeId>> =
        LazyLock::new(|| TypeId::named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"));
    *KNOWN
}

fn builtin_topology(element: Element, value: &Value) -> Topology<'static> {
    let resolved = element.resolved();
    let field = element.field;
    match resolved.shape {
        Shape::List => match field.and_then(table::Field::list_type) {
            Some(ListType::Set) => Topology::Set,
            Some(ListType::Map(keys)) => Topology::ListMap(keys.split(',').collect()),
            Some(ListType::Atomic) | None => Topology::Atomic,
        },
        Shape::Map if field.is_some_and(table::Field::is_atomic) => Topology::Atomic,
        Shape::Map => Topology::Granular,
        Shape::Single => match resolved.base {
            Base::Type(id) => {
                let granular = field.is_some_and(table::Field::is_granular);
                let atomic = field.is_some_and(table::Field::is_atomic) || id.is_atomic();
                if atomic && !granular { Topology::Atomic } else { Topology::Granular }
            }
            Base::Raw | Base::Json => Node::Untyped.topology(value),
            Base::SchemaOrBool | Base::SchemaOrArray if value.is_object() => Topology::Granular,
            Base::FieldsV1 | Base::SchemaOrStrings => Topology::Atomic,
            _ => match value {
                Value::Object(_) | Value::Array(_) => Topology::Atomic,
                _ => Topology::Scalar,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_group_version_kind() {
        for (group, version, kind, name) in [
            ("", "v1", "Pod", "io.k8s.api.core.v1.Pod"),
            ("apps", "v1", "Deployment", "io.k8s.api.apps.v1.Deployment"),
            ("apps", "v1", "DeploymentList", "io.k8s.api.apps.v1.DeploymentList"),
            ("rbac.authorization.k8s.io", "v1", "ClusterRole", "io.k8s.api.rbac.v1.ClusterRole"),
            ("apps", "v1", "DeleteOptions", "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
            ("", "v1", "Status", "io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
        ] {
            assert_eq!(type_of(group, version, kind).map(TypeId::name), Some(name));
        }
        for (group, version, kind) in [
            ("", "v1", "PodSpec"),
            ("rbac", "v1", "ClusterRole"),
            ("apps", "v2", "Deployment"),
            ("example.com", "v1", "Foo"),
        ] {
            assert_eq!(type_of(group, version, kind), None, "{group}/{version} {kind}");
        }
    }

    #[test]
    fn topologies_follow_upstream() {
        let pod = lookup(&GroupVersionKind::new("", "v1", "Pod")).unwrap();
        let spec = pod.root().member("spec").unwrap();
        let list = Value::Array(vec![]);
        let object = Value::Object(Default::default());
        let topology = |name: &str, value: &Value| spec.member(name).unwrap().topology(value);
        assert_eq!(topology("containers", &list), Topology::ListMap(vec!["name"]));
        assert_eq!(topology("tolerations", &list), Topology::Atomic);
        assert_eq!(topology("nodeSelector", &object), Topology::Atomic);
        assert_eq!(topology("securityContext", &object), Topology::Granular);
        assert_eq!(topology("hostname", &Value::Null), Topology::Scalar);
        let ports = spec.member("containers").unwrap().item().member("ports").unwrap();
        assert_eq!(ports.topology(&list), Topology::ListMap(vec!["containerPort", "protocol"]));
        assert_eq!(ports.item().member("protocol").unwrap().default_value(), Some("TCP".into()));
        let meta = pod.root().member("metadata").unwrap();
        assert_eq!(meta.member("finalizers").unwrap().topology(&list), Topology::Set);
    }
}
