//! JSON whose keys come as Go's structs have them: what people read on a terminal.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;

type Order = &'static [&'static str];

const STATUS: Order = &["kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"];
const DETAILS: Order = &["name", "group", "kind", "uid", "causes", "retryAfterSeconds"];
const CAUSE: Order = &["reason", "message", "field"];
const VERSIONS: Order = &["kind", "apiVersion", "versions", "serverAddressByClientCIDRs"];
const GROUPS: Order = &["kind", "apiVersion", "groups"];
const GROUP: Order = &["kind", "apiVersion", "name", "versions", "preferredVersion"];
const RESOURCES: Order = &["kind", "apiVersion", "groupVersion", "resources"];
const RESOURCE: Order = &[
    "name",
    "singularName",
    "namespaced",
    "group",
    "version",
    "kind",
    "verbs",
    "shortNames",
    "categories",
    "storageVersionHash",
];

/// A value with the order of its keys; those that it does not name come last.
pub struct Ordered<'a> {
    value: &'a Value,
    order: Order,
}

impl<'a> Ordered<'a> {
    /// A `Status` or a classic discovery document; None for everything else.
    pub fn document(value: &'a Value) -> Option<Self> {
        // The core group's discovery documents are older than their having a version.
        if !matches!(value["apiVersion"].as_str(), None | Some("v1")) {
            return None;
        }
        let order = match value["kind"].as_str()? {
            "Status" => STATUS,
            "APIVersions" => VERSIONS,
            "APIGroupList" => GROUPS,
            "APIGroup" => GROUP,
            "APIResourceList" => RESOURCES,
            _ => return None,
        };
        Some(Self { value, order })
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
                "groups" => GROUP,
                "resources" => RESOURCE,
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
        let text = serde_json::to_string(&Ordered::document(&status)).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps \"a\" not found","reason":"NotFound","details":{"name":"a","group":"apps","kind":"deployments","causes":[{"reason":"R","message":"m","field":"f"}]},"code":404}"#
        );
        assert!(Ordered::document(&json!({"kind": "Pod", "apiVersion": "v1"})).is_none());
        assert!(Ordered::document(&json!({"kind": "APIGroup", "apiVersion": "example.com/v1"})).is_none());
    }

    #[test]
    fn discovery_reads_as_gos() {
        let texts = [
            r#"{"kind":"APIVersions","versions":["v1"],"serverAddressByClientCIDRs":[{"clientCIDR":"0.0.0.0/0","serverAddress":"a:1"}]}"#,
            r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"apps","versions":[{"groupVersion":"apps/v1","version":"v1"}],"preferredVersion":{"groupVersion":"apps/v1","version":"v1"}}]}"#,
            r#"{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","singularName":"pod","namespaced":true,"kind":"Pod","verbs":["get"],"shortNames":["po"],"categories":["all"],"storageVersionHash":"x="},{"name":"pods/eviction","singularName":"","namespaced":true,"group":"policy","version":"v1","kind":"Eviction","verbs":["create"]}]}"#,
        ];
        for text in texts {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&Ordered::document(&value)).unwrap(), text);
        }
    }
}
