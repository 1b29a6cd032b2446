//! What pods are refused with, rule by rule: the rules that need more of a pod than one module sees.

mod containers;
mod spec;
mod updates;
mod volumes;

use serde_json::{Value, json};

use super::Pod;
use crate::kinds::tested;
use crate::patch::merge;

fn base() -> Value {
    json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

/// What creating a pod of one container is refused with when `extra` is merged into it.
fn refused(extra: &Value) -> String {
    let pod = base();
    tested::created(&Pod, &merge(&pod, extra).unwrap())
}

/// Rows of (what is merged into the spec, what it is refused with below `spec`).
fn specs(rows: &[(Value, &str)]) {
    for (extra, expected) in rows {
        let found = refused(&json!({ "spec": extra }));
        assert_eq!(found.replace("spec.", ""), expected.replace("spec.", ""), "{extra}");
    }
}

/// The same of what is merged into the only container.
fn containers(rows: &[(Value, &str)]) {
    for (extra, expected) in rows {
        let container = merge(&json!({"name": "c", "image": "i"}), extra).unwrap();
        let volumes =
            json!([{"name": "v", "emptyDir": {}}, {"name": "w", "persistentVolumeClaim": {"claimName": "p"}}]);
        let found = refused(&json!({"spec": {"containers": [container], "volumes": volumes}}));
        assert_eq!(found.replace("spec.containers[0].", ""), *expected, "{extra}");
    }
}
