//! Types of expressions, and how large their values can get: what rules are checked against.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::schema::table::{Base, Element, Shape};

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
    /// A place in the schema of a built-in kind.
    Native(Element),
    Opaque(&'static str),
    /// A parameter in the declaration of a function.
    Any(char),
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

    /// A kind of Kubernetes' own.
    pub fn native(element: Element) -> Decl {
        let resolved = element.resolved();
        let sized = |kind| Decl::sized(kind, LARGEST_REQUEST);
        match resolved.shape {
            Shape::List => Decl::list(Decl::native(resolved.item()), LARGEST_REQUEST / 2),
            Shape::Map => Decl::map(Decl::text(), Decl::native(resolved.item()), LARGEST_REQUEST / 4),
            Shape::Single => match resolved.base {
                Base::Type(_) => Decl::new(Kind::Native(resolved)),
                Base::String | Base::Quantity => sized(Kind::String),
                Base::Bool => Decl::new(Kind::Bool),
                Base::Int32 | Base::Int64 => Decl::new(Kind::Int),
                Base::Float => Decl::new(Kind::Double),
                Base::Bytes => sized(Kind::Bytes),
                _ => Decl::dynamic(),
            },
        }
    }

    /// A custom resource's type from its schema; none for what rules do not see.
    pub fn of_schema(schema: &Value, resource: bool) -> Option<Decl> {
        let count = |key: &str| schema[key].as_u64();
        if schema["x-kubernetes-int-or-string"] == true {
            return Some(Decl::dynamic());
        }
        let resource = resource || schema["x-kubernetes-embedded-resource"] == true;
        Some(match schema["type"].as_str()? {
            "array" => {
                let item = Decl::of_schema(&schema["items"], false)?;
                let most = count("maxItems").unwrap_or_else(|| LARGEST_REQUEST / (least_bytes(&schema["items"]) + 1));
                Decl::list(item, most)
            }
            "object" if schema["additionalProperties"].is_object() && !resource => {
                let values = &schema["additionalProperties"];
                let most = count("maxProperties").unwrap_or_else(|| LARGEST_REQUEST / (least_bytes(values) + 4));
                Decl::map(Decl::text(), Decl::of_schema(values, false)?, most)
            }
            "object" => {
                let mut fields: BTreeMap<String, Decl> = schema["properties"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter_map(|(name, schema)| Some((escaped(name)?, Decl::of_schema(schema, false)?)))
                    .collect();
                if resource {
                    fields.insert("apiVersion".to_owned(), Decl::text());
                    fields.insert("kind".to_owned(), Decl::text());
                    let names = ["name", "generateName"].map(|name| (name.to_owned(), Decl::text()));
                    fields.insert("metadata".to_owned(), Decl::object("metadata", names));
                }
                Decl::object("object", fields)
            }
            "string" => text_of(schema),
            "boolean" => Decl::new(Kind::Bool),
            "integer" => Decl::new(Kind::Int),
            "number" => Decl::new(Kind::Double),
            _ => return None,
        })
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

fn text_of(schema: &Value) -> Decl {
    let longest = schema["enum"].as_array().map(|allowed| {
        allowed.iter().filter_map(Value::as_str).map(|text| text.len() as u64).max().unwrap_or_default()
    });
    // Characters may take up to four bytes.
    let most = schema["maxLength"].as_u64().map(|most| most.saturating_mul(4));
    match schema["format"].as_str() {
        Some("byte") => Decl::sized(Kind::Bytes, most.unwrap_or(LARGEST_REQUEST)),
        Some("duration") => Decl::new(Kind::Duration),
        Some("date" | "date-time") => Decl::new(Kind::Timestamp),
        _ => Decl::sized(Kind::String, longest.or(most).unwrap_or(LARGEST_REQUEST)),
    }
}

/// The shortest JSON of a value of this schema.
pub fn least_bytes(schema: &Value) -> u64 {
    match schema["type"].as_str() {
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let fields = required.map(|name| {
                let field = &schema["properties"][name];
                if field["default"].is_null() { name.len() as u64 + 4 + least_bytes(field) } else { 0 }
            });
            2 + fields.sum::<u64>()
        }
        Some("array" | "string") => 2,
        Some("boolean") => 4,
        _ => 1,
    }
}

/// A field's name as an identifier; none when it cannot be one.
pub fn escaped(name: &str) -> Option<String> {
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
            Kind::Native(element) => match element.base {
                Base::Type(id) => id.name(),
                _ => "object",
            },
            Kind::Opaque(name) => name,
            Kind::Any(letter) => return write!(f, "{letter}"),
        };
        f.write_str(name)
    }
}
