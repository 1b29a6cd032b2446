//! HorizontalPodAutoscalers in `autoscaling/v1`: one number for the CPU, everything else in
//! annotations whose JSON is v1's own (`pkg/apis/autoscaling/v1/conversion.go`).
//!
//! ```text
//! v2  {"type":"Resource","resource":{"name":"memory","target":{"type":"AverageValue","averageValue":"1Gi"}}}
//! v1  {"type":"Resource","resource":{"name":"memory","targetAverageValue":"1Gi"}}
//! ```
//!
//! The behavior alone is written under the names of its Go fields, and read in any case.

use serde_json::{Map, Value, json};

use crate::kinds::value::{annotation, at, get, get_mut, has, opt_int, remove, set, text};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// `v1` field and where v2 has it, in the order v1 writes them; below `source` for a wish, and with
/// `current` in place of `target` for what is measured.
type Fields = &'static [(&'static str, &'static str)];

/// A kind of metric, its field, and its fields as a wish and as measured.
const SHAPES: [(&str, &str, Fields, Fields); 5] = [
    (
        "Object",
        "object",
        &[
            ("target", "describedObject"),
            ("metricName", "metric.name"),
            ("targetValue", "target.value"),
            ("selector", "metric.selector"),
            ("averageValue", "target.averageValue"),
        ],
        &[
            ("target", "describedObject"),
            ("metricName", "metric.name"),
            ("currentValue", "current.value"),
            ("selector", "metric.selector"),
            ("averageValue", "current.averageValue"),
        ],
    ),
    (
        "Pods",
        "pods",
        &[
            ("metricName", "metric.name"),
            ("targetAverageValue", "target.averageValue"),
            ("selector", "metric.selector"),
        ],
        &[
            ("metricName", "metric.name"),
            ("currentAverageValue", "current.averageValue"),
            ("selector", "metric.selector"),
        ],
    ),
    (
        "Resource",
        "resource",
        &[
            ("name", "name"),
            ("targetAverageUtilization", "target.averageUtilization"),
            ("targetAverageValue", "target.averageValue"),
        ],
        &[
            ("name", "name"),
            ("currentAverageUtilization", "current.averageUtilization"),
            ("currentAverageValue", "current.averageValue"),
        ],
    ),
    (
        "ContainerResource",
        "containerResource",
        &[
            ("name", "name"),
            ("targetAverageUtilization", "target.averageUtilization"),
            ("targetAverageValue", "target.averageValue"),
            ("container", "container"),
        ],
        &[
            ("name", "name"),
            ("currentAverageUtilization", "current.averageUtilization"),
            ("currentAverageValue", "current.averageValue"),
            ("container", "container"),
        ],
    ),
    (
        "External",
        "external",
        &[
            ("metricName", "metric.name"),
            ("metricSelector", "metric.selector"),
            ("targetValue", "target.value"),
            ("targetAverageValue", "target.averageValue"),
        ],
        &[
            ("metricName", "metric.name"),
            ("metricSelector", "metric.selector"),
            ("currentValue", "current.value"),
            ("currentAverageValue", "current.averageValue"),
        ],
    ),
];
/// Amounts that v1 always writes.
const ALWAYS: [&str; 2] = ["currentValue", "currentAverageValue"];
const CONDITION: [&str; 6] = ["type", "status", "lastTransitionTime", "reason", "message", "observedGeneration"];
const RULES: [&str; 4] = ["StabilizationWindowSeconds", "SelectPolicy", "Policies", "Tolerance"];

/// JSON of an object whose fields keep their order.
fn written(fields: impl IntoIterator<Item = (String, String)>) -> String {
    let parts: Vec<String> = fields.into_iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("{{{}}}", parts.join(","))
}

fn written_list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

/// A v2 metric as v1 writes it.
fn metric_to_v1(metric: &Value, measured: bool) -> Option<String> {
    let (kind, field, wish, now) = SHAPES.iter().find(|(kind, ..)| *kind == text(metric, "type"))?;
    let source = at(metric, field);
    let amount_of = |old: &str| match *kind {
        "External" => old == "currentValue",
        "Object" => old == "currentValue",
        _ => ALWAYS.contains(&old),
    };
    let fields = if measured { now } else { wish }.iter().filter_map(|(old, path)| {
        let value = match get(source, path) {
            Some(reference) if *path == "describedObject" => {
                written(["kind", "name", "apiVersion"].iter().filter_map(|key| {
                    let value = reference.get(*key).filter(|value| *key != "apiVersion" || *value != "")?;
                    Some(((*key).to_owned(), value.to_string()))
                }))
            }
            Some(value) => value.to_string(),
            None if amount_of(old) || *old == "targetValue" && *kind == "Object" => "\"0\"".to_owned(),
            None => return None,
        };
        Some(((*old).to_owned(), value))
    });
    let body = written(fields);
    Some(written([("type".to_owned(), format!("\"{kind}\"")), ((*field).to_owned(), body)]))
}

/// A v1 metric as v2 has it.
fn metric_from_v1(metric: &Value, measured: bool) -> Option<Value> {
    let (kind, field, wish, now) = SHAPES.iter().find(|(kind, ..)| *kind == text(metric, "type"))?;
    let old = at(metric, field);
    let mut source = json!({});
    for (name, path) in *if measured { now } else { wish } {
        let zero = || matches!(text(old, name), "0") && matches!(*name, "targetValue") && has(old, "averageValue");
        if let Some(value) = get(old, name).filter(|_| !zero()) {
            set(&mut source, path, value.clone());
        }
    }
    if !measured {
        let target = at(&source, "target");
        let kind = if has(target, "averageUtilization") {
            "Utilization"
        } else if has(target, "averageValue") {
            "AverageValue"
        } else {
            "Value"
        };
        set(&mut source, "target.type", kind);
    }
    Some(json!({"type": kind, *field: source}))
}

fn is_cpu(metric: &Value) -> bool {
    text(metric, "type") == "Resource" && text(metric, "resource.name") == "cpu"
}

/// The hub's object as v1 shows it.
pub fn from_hub(scaler: &mut Value) {
    for key in [METRICS, CURRENT, CONDITIONS, BEHAVIOR] {
        take_note(scaler, key);
    }
    let metrics = remove(scaler, "spec.metrics").unwrap_or_default();
    let metrics = metrics.as_array().map_or(&[][..], Vec::as_slice);
    let utilization = |metric: &Value, path: &str| opt_int(metric, path).filter(|_| is_cpu(metric));
    let wanted = |metric: &Value| utilization(metric, "resource.target.averageUtilization");
    if let Some(wanted) = metrics.iter().find(|metric| is_cpu(metric)).and_then(wanted) {
        set(scaler, "spec.targetCPUUtilizationPercentage", wanted);
    }
    let mut notes = Vec::new();
    let rest: Vec<&Value> = metrics.iter().filter(|metric| wanted(metric).is_none()).collect();
    if !rest.is_empty() {
        notes.push((METRICS, written_list(rest.into_iter().filter_map(|metric| metric_to_v1(metric, false)))));
    }
    let current = remove(scaler, "status.currentMetrics").unwrap_or_default();
    let current = current.as_array().map_or(&[][..], Vec::as_slice);
    if let Some(now) = current.iter().find_map(|metric| utilization(metric, "resource.current.averageUtilization")) {
        set(scaler, "status.currentCPUUtilizationPercentage", now);
    }
    if !current.is_empty() {
        notes.push((CURRENT, written_list(current.iter().filter_map(|metric| metric_to_v1(metric, true)))));
    }
    let conditions = remove(scaler, "status.conditions").unwrap_or_default();
    if let Some(conditions) = conditions.as_array().filter(|conditions| !conditions.is_empty()) {
        notes.push((CONDITIONS, written_list(conditions.iter().map(|condition| in_order(condition, &CONDITION)))));
    }
    if let Some(behavior) = remove(scaler, "spec.behavior").filter(Value::is_object) {
        notes.push((BEHAVIOR, behavior_in_go(&behavior)));
    }
    for (key, value) in notes {
        crate::kinds::value::ensure_map(scaler, "metadata.annotations").insert(key.to_owned(), value.into());
    }
}

fn in_order(object: &Value, keys: &[&str]) -> String {
    written(keys.iter().filter_map(|key| Some(((*key).to_owned(), object.get(*key)?.to_string()))))
}

/// `{"ScaleUp":{"StabilizationWindowSeconds":0,...},"ScaleDown":null}`.
fn behavior_in_go(behavior: &Value) -> String {
    let field = |holder: &Value, name: &str| {
        let lower = name[..1].to_lowercase() + &name[1..];
        holder.get(lower).cloned().unwrap_or_default()
    };
    let policy = |policy: &Value| {
        written(["Type", "Value", "PeriodSeconds"].map(|name| (name.to_owned(), field(policy, name).to_string())))
    };
    let rules = |rules: &Value| {
        written(RULES.map(|name| {
            let value = field(rules, name);
            let text = match value.as_array() {
                Some(policies) if name == "Policies" => written_list(policies.iter().map(policy)),
                _ => value.to_string(),
            };
            (name.to_owned(), text)
        }))
    };
    written(["ScaleUp", "ScaleDown"].map(|name| {
        let value = field(behavior, name);
        (name.to_owned(), if value.is_object() { rules(&value) } else { "null".to_owned() })
    }))
}

/// The same keys as the API writes them, whatever their case was.
fn from_go(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let named = |(key, value): (&String, &Value)| {
                let mut letters = key.chars();
                let first = letters.next().map(|letter| letter.to_ascii_lowercase());
                (first.into_iter().chain(letters).collect::<String>(), from_go(value))
            };
            Value::Object(fields.iter().filter(|(_, value)| !value.is_null()).map(named).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(from_go).collect()),
        other => other.clone(),
    }
}

/// Takes an annotation away; its JSON, if it is any.
fn take_note(scaler: &mut Value, key: &str) -> Option<Value> {
    let found = annotation(scaler, key).and_then(|text| serde_json::from_str(text).ok());
    let annotations = get_mut(scaler, "metadata.annotations").and_then(Value::as_object_mut)?;
    annotations.remove(key);
    if annotations.is_empty() {
        remove(scaler, "metadata.annotations");
    }
    found
}

/// A v1 object in the hub version.
pub fn to_hub(scaler: &mut Value) {
    let read = |list: &Value, measured: bool| -> Vec<Value> {
        list.as_array().into_iter().flatten().filter_map(|metric| metric_from_v1(metric, measured)).collect()
    };
    let mut metrics = take_note(scaler, METRICS).map(|list| read(&list, false)).unwrap_or_default();
    if let Some(wanted) = remove(scaler, "spec.targetCPUUtilizationPercentage").and_then(|value| value.as_i64()) {
        metrics.insert(0, super::cpu_metric(wanted));
    }
    if !metrics.is_empty() {
        set(scaler, "spec.metrics", metrics);
    }
    if let Some(now) = remove(scaler, "status.currentCPUUtilizationPercentage").and_then(|value| value.as_i64()) {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": now}}});
        set(scaler, "status.currentMetrics", json!([cpu]));
    }
    if let Some(current) = take_note(scaler, CURRENT).map(|list| read(&list, true)).filter(|list| !list.is_empty()) {
        set(scaler, "status.currentMetrics", current);
    }
    if let Some(conditions) = take_note(scaler, CONDITIONS).filter(Value::is_array) {
        set(scaler, "status.conditions", conditions);
    }
    if let Some(behavior) = take_note(scaler, BEHAVIOR).filter(Value::is_object) {
        set(scaler, "spec.behavior", from_go(&behavior));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaler(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "h"}, "spec": spec, "status": status})
    }

    fn note<'a>(scaler: &'a Value, key: &str) -> &'a str {
        annotation(scaler, key).unwrap_or("")
    }

    #[test]
    fn metrics_that_are_no_objects_do_no_harm() {
        let mut odd = scaler(json!({"metrics": [null]}), json!(null));
        to_hub(&mut odd);
        assert_eq!(odd["spec"]["metrics"], json!([null]), "validation refuses them");
    }

    #[test]
    fn the_cpu_is_a_number() {
        let v1 = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 50}});
        let mut hub = v1.clone();
        to_hub(&mut hub);
        assert_eq!(hub["spec"]["metrics"], json!([super::super::cpu_metric(50)]));
        let mut back = hub.clone();
        from_hub(&mut back);
        assert_eq!(back, v1);
    }

    #[test]
    fn everything_else_is_annotated() {
        let metric = |name: &str| json!({"name": name, "selector": {"matchLabels": {"a": "b"}}});
        let spec = json!({"maxReplicas": 5, "metrics": [
            super::super::cpu_metric(50),
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 7}}},
            {"type": "Pods", "pods": {"metric": metric("p"), "target": {"type": "AverageValue", "averageValue": "3"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"}, "metric": {"name": "o"}, "target": {"type": "Value", "value": "9"}}},
            {"type": "External", "external": {"metric": metric("e"), "target": {"type": "AverageValue", "averageValue": "2"}}},
        ], "behavior": {"scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}}});
        let status = json!({"currentReplicas": 1, "desiredReplicas": 1,
            "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12, "averageValue": "12m"}}}],
            "conditions": [{"type": "AbleToScale", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let hub = scaler(spec, status);
        let mut v1 = hub.clone();
        from_hub(&mut v1);
        assert_eq!(v1["spec"], json!({"maxReplicas": 5, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(
            v1["status"],
            json!({"currentReplicas": 1, "desiredReplicas": 1, "currentCPUUtilizationPercentage": 12})
        );
        for (key, expected) in [
            (
                METRICS,
                "[{\"type\":\"Resource\",\"resource\":{\"name\":\"memory\",\"targetAverageValue\":\"1Gi\"}},\
                 {\"type\":\"ContainerResource\",\"containerResource\":{\"name\":\"cpu\",\"targetAverageUtilization\":7,\"container\":\"c\"}},\
                 {\"type\":\"Pods\",\"pods\":{\"metricName\":\"p\",\"targetAverageValue\":\"3\",\"selector\":{\"matchLabels\":{\"a\":\"b\"}}}},\
                 {\"type\":\"Object\",\"object\":{\"target\":{\"kind\":\"Service\",\"name\":\"s\",\"apiVersion\":\"v1\"},\"metricName\":\"o\",\"targetValue\":\"9\"}},\
                 {\"type\":\"External\",\"external\":{\"metricName\":\"e\",\"metricSelector\":{\"matchLabels\":{\"a\":\"b\"}},\"targetAverageValue\":\"2\"}}]",
            ),
            (
                CURRENT,
                "[{\"type\":\"Resource\",\"resource\":{\"name\":\"cpu\",\"currentAverageUtilization\":12,\"currentAverageValue\":\"12m\"}}]",
            ),
            (
                CONDITIONS,
                "[{\"type\":\"AbleToScale\",\"status\":\"True\",\"lastTransitionTime\":\"2026-01-01T00:00:00Z\",\"reason\":\"R\",\"message\":\"m\"}]",
            ),
            (
                BEHAVIOR,
                "{\"ScaleUp\":{\"StabilizationWindowSeconds\":0,\"SelectPolicy\":\"Max\",\"Policies\":[{\"Type\":\"Pods\",\"Value\":4,\"PeriodSeconds\":15}],\"Tolerance\":null},\"ScaleDown\":null}",
            ),
        ] {
            assert_eq!(note(&v1, key), expected, "{key}");
        }
        to_hub(&mut v1);
        assert_eq!(v1, hub);
    }
}
