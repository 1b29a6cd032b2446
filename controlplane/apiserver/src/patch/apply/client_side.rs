//! How people move over from kubectl's client-side apply, and back
//! (`lastappliedmanager.go`, `lastappliedupdater.go`).

use serde_json::Value;

use super::fieldset::FieldSet;
use super::typed;
use super::versions::Ignored;
use crate::resource::GroupVersionKind;
use crate::schema::{Schema, parse};

pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotations of an object hold at most this many bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Fields of kubectl's last client-side configuration that the live object still has as they were.
pub fn last_applied_fields(schema: &Schema, live: &Value, gvk: &GroupVersionKind) -> FieldSet {
    let Some(text) = live["metadata"]["annotations"][LAST_APPLIED].as_str() else { return FieldSet::default() };
    let Ok(parsed) = parse(text.as_bytes(), crate::schema::ContentType::Json) else { return FieldSet::default() };
    let mut last = parsed.value;
    if last["apiVersion"] != gvk.api_version() {
        return FieldSet::default();
    }
    if crate::schema::normalize_literal(schema, &mut last, gvk).is_err() {
        return FieldSet::default();
    }
    let difference = typed::compare(schema.root(), &last, live, &Ignored::default());
    let changed = difference.added.union(difference.modified).union(difference.removed);
    typed::fields_of(schema.root(), &last).children.difference(&changed)
}

/// Keeps kubectl's annotation in step, so that people can go back to client-side apply.
pub fn renew_last_applied(object: &mut Value, config: &Value) {
    let Some(annotations) = object["metadata"]["annotations"].as_object_mut() else { return };
    if annotations.get(LAST_APPLIED).and_then(Value::as_str).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(kept) = config["metadata"]["annotations"].as_object_mut() {
        kept.remove(LAST_APPLIED);
    }
    let text = format!("{config}\n");
    let others: usize = annotations
        .iter()
        .filter(|(name, _)| *name != LAST_APPLIED)
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    if others + LAST_APPLIED.len() + text.len() > MAX_ANNOTATIONS {
        annotations.remove(LAST_APPLIED);
    } else {
        annotations.insert(LAST_APPLIED.to_owned(), text.into());
    }
}
