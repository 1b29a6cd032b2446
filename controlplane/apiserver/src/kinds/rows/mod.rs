//! What `kubectl get -o wide` shows of objects in every state worth a cell of its own. Pods have
//! rows enough for a table beside their code (`core::pod::row`).

mod cluster;
mod server;
mod workloads;

use serde_json::{Value, json};

use super::{all, tested};

const NOW: &str = "2026-01-01T00:10:00Z";
const BORN: &str = "2026-01-01T00:05:00Z";

/// The row of an object that is named `o` and five minutes old.
fn shown(plural: &str, mut object: Value) -> String {
    let resources = all();
    let mut named = resources.iter().filter(|resource| !resource.descriptor.virtual_ || plural == "componentstatuses");
    let resource = named.find(|resource| resource.descriptor.plural == plural).unwrap();
    for (key, value) in [("name", "o"), ("creationTimestamp", BORN)] {
        if object["metadata"].get(key).is_none() {
            object["metadata"][key] = value.into();
        }
    }
    tested::cells(&*resource.hooks, &object, NOW)
}

fn check(plural: &str, rows: &[(Value, &str)]) {
    for (object, expected) in rows {
        assert_eq!(shown(plural, object.clone()), *expected, "{plural} {object}");
    }
}

/// Ages in all their forms, of an object like any other.
#[test]
fn ages() {
    for (born, expected) in [
        (json!(null), "<unknown>"),
        (json!("2026-01-01T00:10:05Z"), "<invalid>"),
        (json!("2026-01-01T00:10:01Z"), "0s"),
        (json!("2026-01-01T00:08:01Z"), "119s"),
        (json!("2026-01-01T00:07:55Z"), "2m5s"),
        (json!("2025-12-31T23:50:00Z"), "20m"),
        (json!("2025-12-31T20:05:00Z"), "4h5m"),
        (json!("2025-12-31T10:10:00Z"), "14h"),
        (json!("2025-12-29T21:10:00Z"), "2d3h"),
        (json!("2025-12-01T00:10:00Z"), "31d"),
        (json!("2023-01-01T00:10:00Z"), "3y1d"),
        (json!("2010-01-01T00:10:00Z"), "16y"),
    ] {
        let map = json!({"metadata": {"creationTimestamp": born}});
        assert_eq!(shown("configmaps", map), format!("o|0|{expected}"), "{born}");
    }
}
