//! JSON whose keys come as Go's structs have them: what people read on a terminal.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;

type Order = &'static [&'static str];

const STATUS: Order = &["kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"];
const DETAILS: Order = &["name", "group", "kind", "uid", "causes", "retryAfterSeconds"];
const CAUSE: Order = &["reason", "message", "field"];
const VERSION: Order = &[
    "major",
    "minor",
    "emulationMajor",
    "emulationMinor",
    "minCompatibilityMajor",
    "minCompatibilityMinor",
    "gitVersion",
    "gitCommit",
    "gitTreeState",
    "buildDate",
    "goVersion",
    "compiler",
    "platform",
];

/// A value with the order of its keys; those that it does not name come last.
pub struct Ordered<'a> {
    value: &'a Value,
    order: Order,
}

impl<'a> Ordered<'a> {
    /// None for what is no `Status`.
    pub fn status(value: &'a Value) -> Option<Self> {
        (value["kind"] == "Status" && value["apiVersion"] == "v1").then_some(Self { value, order: STATUS })
    }

    /// What `/version` says.
    pub fn version(value: &'a Value) -> Self {
        Self { value, order: VERSION }
    }
}

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let map = match self.value {
            Value::Object(map) => map,
            Value::Array(items) => return serializer.collect_seq(items.iter().map(|value| Ordered { value, ..*self })),
            other => return other.serialize(serializer),
        };
        let mut out = serializer.serialize_map(Some(map.len()))?;
        let named = self.order.iter().filter_map(|key| map.get_key_value(*key));
        let rest = map.iter().filter(|(key, _)| !self.order.contains(&key.as_str()));
        for (key, value) in named.chain(rest) {
            let order = match key.as_str() {
                "details" => DETAILS,
                "causes" => CAUSE,
                _ => &[],
            };
            out.serialize_entry(key, &Ordered { value, order })?;
        }
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn statuses_read_as_gos() {
        let status =
            crate::error::ApiError::not_found("apps", "deployments", "a").with_cause("R", "m", "f").to_status();
        let text = serde_json::to_string(&Ordered::status(&status)).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps \"a\" not found","reason":"NotFound","details":{"name":"a","group":"apps","kind":"deployments","causes":[{"reason":"R","message":"m","field":"f"}]},"code":404}"#
        );
        assert!(Ordered::status(&json!({"kind": "Pod", "apiVersion": "v1"})).is_none());
        let version = json!({"platform": "p", "x": 1, "minor": "37", "major": "1"});
        let text = serde_json::to_string(&Ordered::version(&version)).unwrap();
        assert_eq!(text, r#"{"major":"1","minor":"37","platform":"p","x":1}"#);
    }
}
