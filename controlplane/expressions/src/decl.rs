//! Types of expressions, and how large their values can get: what rules are checked against.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// Bytes of a request, at most: what bounds values that the schema leaves open.
pub const LARGEST_REQUEST: u64 = 3 << 20;

/// A type and, for text, lists and maps, the most elements of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Decl {
    pub kind: Kind,
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Dyn,
    /// The element of an empty list or map: any type will do.
    Free,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    Type,
    List(Arc<Decl>),
    Map(Arc<Decl>, Arc<Decl>),
    Optional(Arc<Decl>),
    Object(Arc<Object>),
    /// A type that the user of this crate describes: a built-in kind of Kubernetes.
    Native(Arc<dyn Foreign>),
    Opaque(&'static str),
    /// A parameter in the declaration of a function.
    Any(char),
}

/// A type described elsewhere. Two of the same name are the same.
pub trait Foreign: fmt::Debug + Send + Sync {
    fn name(&self) -> &str;

    /// The type of a field; none if there is no such field.
    fn member(&self, name: &str) -> Option<Decl>;
}

impl PartialEq for dyn Foreign {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

#[derive(Debug, PartialEq)]
pub struct Object {
    pub name: String,
    pub fields: BTreeMap<String, Decl>,
}

impl Decl {
    pub const fn new(kind: Kind) -> Decl {
        Decl { kind, size: 1 }
    }

    pub fn sized(kind: Kind, size: u64) -> Decl {
        Decl { kind, size }
    }

    pub fn dynamic() -> Decl {
        Decl::sized(Kind::Dyn, LARGEST_REQUEST)
    }

    pub fn list(of: Decl, size: u64) -> Decl {
        Decl::sized(Kind::List(Arc::new(of)), size)
    }

    pub fn map(key: Decl, value: Decl, size: u64) -> Decl {
        Decl::sized(Kind::Map(Arc::new(key), Arc::new(value)), size)
    }

    pub fn optional(of: Decl) -> Decl {
        let size = of.size;
        Decl::sized(Kind::Optional(Arc::new(of)), size)
    }

    pub fn text() -> Decl {
        Decl::sized(Kind::String, LARGEST_REQUEST)
    }

    pub fn object(name: &str, fields: impl IntoIterator<Item = (String, Decl)>) -> Decl {
        Decl::new(Kind::Object(Arc::new(Object { name: name.to_owned(), fields: fields.into_iter().collect() })))
    }

    /// A custom resource's type from its schema; none for what rules do not see. Sizes are those of
    /// Kubernetes' estimates (`k8s.io/apiserver/pkg/cel/common/schemas.go`), in which numbers, objects
    /// and the keys of maps count for nothing.
    pub fn of_schema(schema: &Value, resource: bool) -> Option<Decl> {
        let count = |key: &str| schema[key].as_u64();
        if schema["x-kubernetes-int-or-string"] == true {
            return Some(Decl::sized(Kind::Dyn, longest(schema)));
        }
        let resource = resource || schema["x-kubernetes-embedded-resource"] == true;
        Some(match schema["type"].as_str()? {
            "array" => {
                let item = Decl::of_schema(&schema["items"], false)?;
                let most = (LARGEST_REQUEST - 2) / (least_bytes(&schema["items"]) + 1);
                Decl::list(item, count("maxItems").unwrap_or(most))
            }
            "object" if schema["additionalProperties"].is_object() && !resource => {
                let values = &schema["additionalProperties"];
                let most = (LARGEST_REQUEST - 2) / (least_bytes(values) + 6);
                let keys = Decl::sized(Kind::String, 0);
                Decl::map(keys, Decl::of_schema(values, false)?, count("maxProperties").unwrap_or(most))
            }
            "object" => {
                let mut fields: BTreeMap<String, Decl> = schema["properties"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter_map(|(name, schema)| Some((name, Decl::of_schema(schema, false)?)))
                    .flat_map(|(name, decl)| identifiers(name).map(move |name| (name, decl.clone())))
                    .collect();
                if resource && !declares_metadata(schema) {
                    fields.insert("apiVersion".to_owned(), Decl::text());
                    fields.insert("kind".to_owned(), Decl::text());
                    let names = ["name", "generateName"].map(|name| (name.to_owned(), Decl::text()));
                    fields.insert("metadata".to_owned(), Decl { size: 0, ..Decl::object("metadata", names) });
                }
                Decl { size: 0, ..Decl::object("object", fields) }
            }
            "string" => text_of(schema),
            "boolean" => Decl::sized(Kind::Bool, 0),
            "integer" => Decl::sized(Kind::Int, 0),
            "number" => Decl::sized(Kind::Double, 0),
            _ => return None,
        })
    }

    /// What an optional holds; else the type itself.
    pub fn present(self) -> Decl {
        match self.kind {
            Kind::Optional(of) => (*of).clone(),
            kind => Decl { kind, size: self.size },
        }
    }

    pub fn contains_free(&self) -> bool {
        match &self.kind {
            Kind::Free => true,
            Kind::List(of) | Kind::Optional(of) => of.contains_free(),
            Kind::Map(key, value) => key.contains_free() || value.contains_free(),
            _ => false,
        }
    }
}

/// Whether a resource's schema says itself what rules see of its type and metadata.
fn declares_metadata(schema: &Value) -> bool {
    let fields = &schema["properties"];
    fields["kind"]["type"] == "string"
        && fields["apiVersion"]["type"] == "string"
        && fields["metadata"]["type"] == "object"
        && fields["metadata"]["properties"].is_object()
}

fn text_of(schema: &Value) -> Decl {
    match schema["format"].as_str() {
        Some("byte") => Decl::sized(Kind::Bytes, schema["maxLength"].as_u64().unwrap_or(LARGEST_REQUEST - 2)),
        Some("duration") => Decl::sized(Kind::Duration, 32),
        Some("date") => Decl::sized(Kind::Timestamp, 12),
        Some("date-time") => Decl::sized(Kind::Timestamp, 32),
        _ => Decl::sized(Kind::String, longest(schema)),
    }
}

/// The most bytes of a text of this schema.
fn longest(schema: &Value) -> u64 {
    if let Some(characters) = schema["maxLength"].as_u64() {
        // Each may take up to four bytes.
        return characters.saturating_mul(4);
    }
    let allowed = schema["enum"].as_array().filter(|allowed| !allowed.is_empty());
    allowed.map_or(LARGEST_REQUEST - 2, |allowed| {
        allowed.iter().filter_map(Value::as_str).map(|text| text.len() as u64).max().unwrap_or_default()
    })
}

/// The shortest JSON of a value of this schema.
pub fn least_bytes(schema: &Value) -> u64 {
    if schema["x-kubernetes-int-or-string"] == true {
        return 1;
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("object"), _) if schema["additionalProperties"].is_object() => 2,
        (Some("object"), _) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let fields = required.map(|name| {
                let field = &schema["properties"][name];
                if field["default"].is_null() { name.len() as u64 + 4 + least_bytes(field) } else { 0 }
            });
            2 + fields.sum::<u64>()
        }
        (Some("string"), Some("duration")) => 3,
        (Some("string"), Some("date")) => 12,
        (Some("string"), Some("date-time")) => 21,
        (Some("array" | "string"), _) => 2,
        (Some("boolean"), _) => 4,
        _ => 1,
    }
}

/// How expressions may write a field's name: escaped, and as it is where the grammar takes a reserved
/// word after a dot.
pub fn identifiers(name: &str) -> impl Iterator<Item = String> {
    let escaped = escaped(name);
    let reserved = escaped.as_ref().is_some_and(|text| text.len() == name.len() + 4 && text[2..].starts_with(name));
    let plain = reserved && !matches!(name, "true" | "false" | "null" | "in");
    escaped.into_iter().chain(plain.then(|| name.to_owned()))
}

/// A field's name as an identifier; none when it cannot be one.
fn escaped(name: &str) -> Option<String> {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let first = name.chars().next()?;
    if first.is_ascii_digit() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c)) {
        return None;
    }
    let text = name.replace("__", "__underscores__");
    Some(text.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

impl fmt::Display for Decl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.kind {
            Kind::Dyn | Kind::Free => "dyn",
            Kind::Null => "null",
            Kind::Bool => "bool",
            Kind::Int => "int",
            Kind::Uint => "uint",
            Kind::Double => "double",
            Kind::String => "string",
            Kind::Bytes => "bytes",
            Kind::Timestamp => "timestamp",
            Kind::Duration => "duration",
            Kind::Type => "type",
            Kind::List(of) => return write!(f, "list({of})"),
            Kind::Map(key, value) => return write!(f, "map({key}, {value})"),
            Kind::Optional(of) => return write!(f, "optional_type({of})"),
            Kind::Object(object) => &object.name,
            Kind::Native(of) => of.name(),
            Kind::Opaque(name) => name,
            Kind::Any(letter) => return write!(f, "{letter}"),
        };
        f.write_str(name)
    }
}
