//! Field paths and validation errors (`k8s.io/apimachinery/pkg/util/validation/field`).
//!
//! ```text
//! Path::root("spec").child("ports").index(0).child("port")   →   spec.ports[0].port
//! Error::invalid(&path, json!(70000), "must be between 1 and 65535, inclusive")
//!     →   spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive
//! ```

use std::fmt;

use serde_json::Value;
use smallvec::SmallVec;

/// Longer paths need memory of their own.
const INLINE: usize = 40;

/// Where in an object something is. Validation makes one for every field that it looks at, nearly all
/// for nothing: their text stays where they are.
#[derive(PartialEq, Eq, Default)]
pub struct Path(SmallVec<[u8; INLINE]>);

impl Path {
    pub fn root(name: &str) -> Self {
        Self(SmallVec::from_slice(name.as_bytes()))
    }

    fn text(&self) -> &str {
        // Made of strings alone.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    fn with(&self, parts: &[&str]) -> Self {
        let mut longer = self.clone();
        parts.iter().for_each(|part| longer.0.extend_from_slice(part.as_bytes()));
        longer
    }

    /// The object itself.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The object as a whole, where an error is about no field of it.
    pub fn unnamed() -> Self {
        Self::root("[]")
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::root(name) } else { self.with(&[".", name]) }
    }

    /// Where the last field is in: `spec.a` of `spec.a.b`.
    #[must_use]
    pub fn parent(&self) -> Self {
        Self::root(self.text().rsplit_once('.').map_or("", |(parent, _)| parent))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(&["[", &index.to_string(), "]"])
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.with(&["[", key, "]"])
    }
}

impl Clone for Path {
    fn clone(&self) -> Self {
        // A copy of bytes; what is derived goes item by item.
        Self(SmallVec::from_slice(&self.0))
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({:?})", self.text())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { self.text() })
    }
}

/// The kind of a validation error; its name is the `reason` of the status cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    /// Invalid, where the value would say nothing and is left out.
    InvalidUnshown,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorType {
    /// `StatusCause.reason`.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Invalid | ErrorType::InvalidUnshown => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::Internal => "InternalError",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            ErrorType::NotFound => "Not found",
            ErrorType::Required => "Required value",
            ErrorType::Duplicate => "Duplicate value",
            ErrorType::Invalid | ErrorType::InvalidUnshown | ErrorType::TypeInvalid => "Invalid value",
            ErrorType::NotSupported => "Unsupported value",
            ErrorType::Forbidden => "Forbidden",
            ErrorType::TooLong => "Too long",
            ErrorType::TooMany => "Too many",
            ErrorType::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(
            self,
            ErrorType::Required
                | ErrorType::InvalidUnshown
                | ErrorType::Forbidden
                | ErrorType::TooLong
                | ErrorType::TooMany
                | ErrorType::Internal
        )
    }
}

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    pub kind: ErrorType,
    pub field: Path,
    pub value: Value,
    pub detail: String,
    /// The value is text that is shown as it is.
    verbatim: bool,
}

/// What validation returns: empty when all is well.
pub type ErrorList = Vec<Error>;

impl Error {
    fn new(kind: ErrorType, field: &Path, value: Value, detail: impl Into<String>) -> Self {
        Self { kind, field: field.clone(), value, detail: detail.into(), verbatim: false }
    }

    /// With a structure for a value, its fields shown in this order, as Go would print its own.
    #[must_use]
    pub fn showing(mut self, fields: &[(&str, Value)]) -> Self {
        let fields: Vec<String> =
            fields.iter().map(|(name, value)| format!("\"{name}\":{}", marshalled(value))).collect();
        self.value = Value::String(format!("{{{}}}", fields.join(",")));
        self.verbatim = true;
        self
    }

    pub fn invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Invalid, field, value.into(), detail)
    }

    /// `Invalid value: <detail>`, without the value.
    pub fn invalid_unshown(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::InvalidUnshown, field, Value::Null, detail)
    }

    pub fn type_invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::TypeInvalid, field, value.into(), detail)
    }

    pub fn required(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Required, field, Value::Null, detail)
    }

    pub fn duplicate(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::Duplicate, field, value.into(), "")
    }

    pub fn not_found(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::NotFound, field, value.into(), "")
    }

    pub fn forbidden(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Forbidden, field, Value::Null, detail)
    }

    /// `supported` in the order it is to be read: where Kubernetes keeps a set, sorted.
    pub fn not_supported(field: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let listed: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let detail = if listed.is_empty() { String::new() } else { format!("supported values: {}", listed.join(", ")) };
        Self::new(ErrorType::NotSupported, field, value.into(), detail)
    }

    /// `max` in bytes.
    pub fn too_long(field: &Path, max: usize) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Self::new(ErrorType::TooLong, field, Value::Null, format!("may not be more than {max} {unit}"))
    }

    /// The same, counted in characters.
    pub fn too_many_characters(field: &Path, most: usize) -> Self {
        Self::new(ErrorType::TooLong, field, Value::Null, format!("may not be more than {most} characters"))
    }

    pub fn too_many(field: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Self::new(ErrorType::TooMany, field, Value::from(actual), format!("must have at most {max} {unit}"))
    }

    pub fn internal(field: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Internal, field, Value::Null, detail)
    }

    /// The message without the field's path: `StatusCause.message`.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if self.kind == ErrorType::TooMany {
            text.push_str(&format!(": {}", self.value));
        } else if self.kind.shows_value() {
            text.push_str(": ");
            match &self.value {
                Value::String(shown) if self.verbatim => text.push_str(shown),
                value => text.push_str(&shown(value)),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

/// Values as Kubernetes prints them: strings quoted, numbers bare, structures as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::String(text) => quoted(text),
        other => marshalled(other),
    }
}

/// JSON as Go writes it: fit to stand in HTML.
fn marshalled(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// A text as Go's `%q` writes it.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if is_unprintable(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Controls, spaces other than the plain one, and marks that only steer how text is laid out.
fn is_unprintable(c: char) -> bool {
    let steers = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    c.is_control() || c != ' ' && c.is_whitespace() || steers
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Several errors in one line, as in `Status.message`: `[a, b]`, or just `a`.
pub fn join(errors: &[Error]) -> String {
    match errors {
        [one] => one.to_string(),
        many => {
            let mut seen: Vec<String> = Vec::new();
            for error in many {
                let text = error.to_string();
                if !seen.contains(&text) {
                    seen.push(text);
                }
            }
            if seen.len() == 1 { seen.remove(0) } else { format!("[{}]", seen.join(", ")) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wording() {
        let port = Path::root("spec").child("ports").index(0).child("port");
        assert_eq!(
            Error::invalid(&port, 70000, "must be between 1 and 65535, inclusive").to_string(),
            "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"
        );
        assert_eq!(Error::required(&port, "").to_string(), "spec.ports[0].port: Required value");
        for (given, shown) in [
            ("a\"\\b", r#""a\"\\b""#),
            ("a\tb\n\x07\x01\x7f", r#""a\tb\n\a\x01\x7f""#),
            ("ü\u{a0}\u{200b}\u{85}", r#""ü\u00a0\u200b\u0085""#),
        ] {
            assert_eq!(Error::invalid(&port, given, "no").body(), format!("Invalid value: {shown}: no"));
        }
        assert_eq!(
            Error::not_supported(&port, "X", &["UDP", "TCP"]).to_string(),
            "spec.ports[0].port: Unsupported value: \"X\": supported values: \"UDP\", \"TCP\""
        );
        assert_eq!(
            Error::duplicate(&port, "").showing(&[("Type", json!("a")), ("Address", json!(null))]).to_string(),
            "spec.ports[0].port: Duplicate value: {\"Type\":\"a\",\"Address\":null}"
        );
        assert_eq!(
            join(&[Error::duplicate(&port, json!("a")), Error::forbidden(&port, "no")]),
            "[spec.ports[0].port: Duplicate value: \"a\", spec.ports[0].port: Forbidden: no]"
        );
    }
}
