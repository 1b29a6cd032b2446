//! One stored object as shared bytes.
//!
//! Objects are encoded once, by [`encode`], in a fixed order: `kind`, `apiVersion`, `metadata`,
//! then the rest. That makes two things cheap: putting the revision in ([`Item::new`], the store
//! does not know it when it is given the bytes), and leaving `kind` and `apiVersion` out of list
//! items as Kubernetes does ([`Item::without_type`]).

use std::sync::Arc;

use api::selector::Selector;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::pluck::Fields;
use super::text;
use crate::resource::{Descriptor, SelectableField, at};

const METADATA: &[u8] = b"\"metadata\":{";

/// An object at one revision.
pub struct Item {
    /// `namespace/name`, or `name`.
    pub key: Arc<str>,
    pub revision: u64,
    /// The whole object, with its `resourceVersion`.
    pub bytes: Bytes,
    metadata_at: usize,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the descriptor's selectable fields, in its order.
    fields: Box<[Box<str>]>,
    parsed: Mutex<Option<Arc<Value>>>,
}

impl Item {
    /// `stored` is what [`encode`] made, or any JSON object that another server wrote; `parts` are
    /// those of `descriptor`.
    pub fn new(
        descriptor: &Descriptor,
        parts: &Fields,
        key: Arc<str>,
        stored: &[u8],
        revision: u64,
    ) -> Result<Self, serde_json::Error> {
        let value = parts.pluck(stored)?;
        // A custom resource may have been stored in what was the storage version then.
        let renamed = descriptor.custom && value["apiVersion"] != descriptor.hub_kind().api_version();
        let (bytes, metadata_at) = match metadata_position(stored) {
            Some(at) if value["metadata"]["resourceVersion"].is_null() && !renamed => {
                (splice(stored, at, revision), at)
            }
            _ => {
                let mut clean: Value = serde_json::from_slice(stored)?;
                if renamed {
                    clean["apiVersion"] = descriptor.hub_kind().api_version().into();
                }
                remove_version(&mut clean);
                let encoded = encode(&clean);
                // Nothing that this server wrote: there is no place for a revision.
                let none = || serde::de::Error::custom("a stored object without kind, apiVersion or metadata");
                let at = metadata_position(&encoded).ok_or_else(none)?;
                (splice(&encoded, at, revision), at)
            }
        };
        let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
        let labels =
            labels.map(|(key, value)| (key.as_str().into(), value.as_str().unwrap_or_default().into())).collect();
        let fields = descriptor.selectable.iter().map(|field| field_value(&value, field).into_boxed_str()).collect();
        Ok(Self { key, revision, bytes, metadata_at, labels, fields, parsed: Mutex::default() })
    }

    /// This object's last state, at the revision of a later event.
    pub fn bytes_at(&self, revision: u64) -> Bytes {
        let old = format!("\"resourceVersion\":\"{}\",", self.revision);
        let at = self.metadata_at + METADATA.len();
        let mut bytes = Vec::with_capacity(self.bytes.len() + 8);
        bytes.extend_from_slice(&self.bytes[..at]);
        bytes.extend_from_slice(format!("\"resourceVersion\":\"{revision}\",").as_bytes());
        bytes.extend_from_slice(&self.bytes[at + old.len()..]);
        bytes.into()
    }

    /// This object, deleted at `revision`.
    pub fn deleted_at(&self, revision: u64) -> Self {
        Self {
            key: self.key.clone(),
            revision,
            bytes: self.bytes_at(revision),
            metadata_at: self.metadata_at,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            parsed: Mutex::default(),
        }
    }

    /// The bytes after the opening brace that follow `kind` and `apiVersion`.
    pub fn without_type(&self) -> &[u8] {
        &self.bytes[self.metadata_at..]
    }

    /// The JSON of `metadata`.
    pub fn metadata(&self) -> &[u8] {
        let from = &self.bytes[self.metadata_at + METADATA.len() - 1..];
        &from[..object_end(from)]
    }

    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.key.rsplit_once('/').map_or(&*self.key, |(_, name)| name)
    }

    /// The object as a value of its own.
    pub fn decode(&self) -> Value {
        // The bytes were produced from a parsed value in `new`.
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The object, decoded at most once and kept until it is superseded: for kinds that are few,
    /// small and often read.
    pub fn shared(&self) -> Arc<Value> {
        self.parsed.lock().get_or_insert_with(|| Arc::new(self.decode())).clone()
    }

    /// Keeps the bytes only: a newer state has taken this one's place.
    pub fn superseded(&self) {
        self.parsed.lock().take();
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(held, _)| **held == *key).map(|(_, value)| &**value)
    }

    pub fn field(&self, descriptor: &Descriptor, label: &str) -> Option<&str> {
        match label {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => {
                let at = descriptor.selectable.iter().position(|field| field.label == label)?;
                self.fields.get(at).map(|value| &**value)
            }
        }
    }

    pub fn matches(&self, descriptor: &Descriptor, labels: &Selector, fields: &Selector) -> bool {
        (labels.is_everything() || labels.matches_with(|key| self.label(key)))
            && (fields.is_everything()
                || fields.matches_with(|key| Some(self.field(descriptor, key).unwrap_or_default())))
    }
}

/// What [`Item::new`] looks at in an object.
pub fn parts(descriptor: &Descriptor) -> Fields {
    let selectable = descriptor.selectable.iter().flat_map(|field| field.paths.iter().map(|path| &**path));
    Fields::new(["apiVersion", "metadata.labels", "metadata.resourceVersion"].into_iter().chain(selectable))
}

/// What a selectable field compares as.
fn field_value(object: &Value, field: &SelectableField) -> String {
    for path in &field.paths {
        match at(object, path) {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => return text.clone(),
            other => return other.to_string(),
        }
    }
    field.absent.clone().into_owned()
}

/// The object's bytes for the store: no `resourceVersion`, type and metadata first.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1536);
    let Some(map) = object.as_object() else { return object.to_string().into_bytes() };
    out.push(b'{');
    for key in ["kind", "apiVersion", "metadata"] {
        if let Some(value) = map.get(key) {
            write_entry(&mut out, key, value);
        }
    }
    for (key, value) in map {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            write_entry(&mut out, key, value);
        }
    }
    out.push(b'}');
    out
}

fn write_entry(out: &mut Vec<u8>, key: &str, value: &Value) {
    if out.len() > 1 {
        out.push(b',');
    }
    text::write_string(out, key);
    out.push(b':');
    text::write(out, value);
}

pub fn remove_version(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
}

/// Where `"metadata":{` starts, when it follows `kind` and `apiVersion` directly.
fn metadata_position(encoded: &[u8]) -> Option<usize> {
    let rest = encoded.strip_prefix(b"{\"kind\":\"")?;
    let rest = &rest[rest.iter().position(|byte| *byte == b'"')?..];
    let rest = rest.strip_prefix(b"\",\"apiVersion\":\"")?;
    let rest = &rest[rest.iter().position(|byte| *byte == b'"')?..];
    let rest = rest.strip_prefix(b"\",")?;
    (rest.starts_with(METADATA) && rest.get(METADATA.len()) != Some(&b'}')).then_some(encoded.len() - rest.len())
}

fn splice(encoded: &[u8], metadata_at: usize, revision: u64) -> Bytes {
    let at = metadata_at + METADATA.len();
    let mut bytes = Vec::with_capacity(encoded.len() + 40);
    bytes.extend_from_slice(&encoded[..at]);
    bytes.extend_from_slice(b"\"resourceVersion\":\"");
    bytes.extend_from_slice(itoa::Buffer::new().format(revision).as_bytes());
    bytes.extend_from_slice(b"\",");
    bytes.extend_from_slice(&encoded[at..]);
    bytes.into()
}

/// Length of the JSON object at the start of `text`, which is well formed.
fn object_end(text: &[u8]) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' if !in_string => depth += 1,
            b'}' if !in_string => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}

/// Stored bytes as the object that clients see.
pub fn decode_stored(stored: &[u8], revision: u64) -> Result<Value, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(stored)?;
    value["metadata"]["resourceVersion"] = revision.to_string().into();
    Ok(value)
}

/// What clients see of an object just encoded and stored at `revision`.
pub fn with_version(stored: &[u8], revision: u64) -> Bytes {
    match metadata_position(stored) {
        Some(at) => splice(stored, at, revision),
        None => Bytes::copy_from_slice(stored),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pods() -> Descriptor {
        Descriptor::new("", "v1", "Pod", "pods").selectable("spec.nodeName")
    }

    fn item(key: &str, stored: &[u8], revision: u64) -> serde_json::Result<Item> {
        Item::new(&pods(), &parts(&pods()), key.into(), stored, revision)
    }

    #[test]
    fn what_is_no_object_is_no_item() {
        let descriptor = pods();
        let parts = parts(&descriptor);
        for stored in ["0", "[]", "{}", r#"{"metadata":{}}"#] {
            assert!(Item::new(&descriptor, &parts, "a/b".into(), stored.as_bytes(), 7).is_err(), "{stored}");
        }
    }

    #[test]
    fn the_revision_is_spliced_once_and_can_be_moved() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "data": 1, "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"nodeName": "n"}});
        let stored = encode(&object);
        let item = item("default/a", &stored, 12).unwrap();
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = "12".into();
        assert_eq!(item.decode(), expected);
        assert!(item.without_type().starts_with(b"\"metadata\":{\"resourceVersion\":\"12\","));
        expected["metadata"]["resourceVersion"] = "1000".into();
        assert_eq!(serde_json::from_slice::<Value>(&item.bytes_at(1000)).unwrap(), expected);
        assert_eq!((item.namespace(), item.name()), ("default", "a"));
    }

    #[test]
    fn metadata_is_cut_out() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "annotations": {"x": "}\\\"{"}}, "spec": {}});
        let item = item("default/a", &encode(&object), 12).unwrap();
        let cut: Value = serde_json::from_slice(item.metadata()).unwrap();
        assert_eq!(cut["annotations"]["x"], "}\\\"{");
        assert_eq!(cut["resourceVersion"], "12");
    }

    #[test]
    fn foreign_encodings_are_understood() {
        let stored = br#"{ "metadata": {"resourceVersion":"3","name":"a"}, "apiVersion":"v1","kind":"Pod"}"#;
        let item = item("default/a", stored, 12).unwrap();
        assert_eq!(item.decode()["metadata"]["resourceVersion"], "12");
    }

    #[test]
    fn selectors_read_labels_and_fields() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"nodeName": "n"}});
        let item = item("default/a", &encode(&object), 1).unwrap();
        for (labels, fields, expected) in [
            ("x=y", "", true),
            ("x!=y", "", false),
            ("", "spec.nodeName=n", true),
            ("", "spec.nodeName!=n", false),
            ("x", "metadata.name=a,metadata.namespace=default", true),
            ("z", "", false),
        ] {
            let labels = Selector::parse_labels(labels).unwrap();
            let fields = Selector::parse_fields(fields).unwrap();
            assert_eq!(item.matches(&pods(), &labels, &fields), expected, "{labels} {fields}");
        }
    }
}
