//! The `autoscaling` group: HorizontalPodAutoscaler, stored as v2. In v1 what it cannot express
//! travels in annotations.

use api::field::ErrorList;
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::Node;
use super::core::pod::quantity;
use super::table::{UNSET, named, number, row, words};
use super::value::{annotation, at, default, ensure_map, get, has, int, list, opt_int, remove, set, text};
use crate::error::Result;
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Autoscaler)]
}

fn descriptor() -> Descriptor {
    Descriptor::new("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .also("autoscaling", "v1")
        .short(&["hpa"])
        .categories(&["all"])
        .with_status()
}

struct Autoscaler;

impl Hooks for Autoscaler {
    fn defaults(&self, scaler: &mut Value) {
        default(scaler, "spec.minReplicas", 1);
        if list(scaler, "spec.metrics").is_empty() {
            set(scaler, "spec.metrics", json!([cpu_metric(80)]));
        }
        if has(scaler, "spec.behavior") {
            let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
            let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
            default(scaler, "spec.behavior.scaleUp.stabilizationWindowSeconds", 0);
            default(scaler, "spec.behavior.scaleUp.selectPolicy", "Max");
            default(scaler, "spec.behavior.scaleUp.policies", json!([pods, percent]));
            default(scaler, "spec.behavior.scaleDown.selectPolicy", "Max");
            default(scaler, "spec.behavior.scaleDown.policies", json!([percent]));
        }
    }

    fn prepare_create(&self, _ctx: &Context<'_>, scaler: &mut Value) {
        set(scaler, "status", json!({"desiredReplicas": 0, "currentMetrics": null}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, scaler: &Value) -> ErrorList {
        validate(scaler)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate(new)
    }

    fn convert(&self, scaler: &mut Value, _from: (&str, &str), to: (&str, &str)) -> Result<()> {
        if to.1 == "v1" {
            to_v1(scaler)
        } else {
            to_v2(scaler)
        }
        Ok(())
    }

    fn row(&self, scaler: &Value, now: Timestamp) -> Vec<Value> {
        let reference =
            format!("{}/{}", text(scaler, "spec.scaleTargetRef.kind"), text(scaler, "spec.scaleTargetRef.name"));
        let least = opt_int(scaler, "spec.minReplicas").map_or_else(|| UNSET.to_owned(), |least| least.to_string());
        row(
            scaler,
            now,
            vec![
                reference.into(),
                targets(scaler).into(),
                least.into(),
                int(scaler, "spec.maxReplicas").into(),
                int(scaler, "status.currentReplicas").into(),
            ],
        )
    }
}

fn cpu_metric(utilization: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": utilization}}})
}

fn is_cpu_utilization(metric: &Value) -> bool {
    text(metric, "type") == "Resource"
        && text(metric, "resource.name") == "cpu"
        && has(metric, "resource.target.averageUtilization")
}

fn to_v1(scaler: &mut Value) {
    let mut rest = Vec::new();
    let mut utilization = None;
    for metric in list(scaler, "spec.metrics") {
        if utilization.is_none() && is_cpu_utilization(metric) {
            utilization = opt_int(metric, "resource.target.averageUtilization");
        } else {
            rest.push(metric.clone());
        }
    }
    let mut notes = Vec::new();
    if !rest.is_empty() {
        notes.push((METRICS, Value::Array(rest)));
    }
    remove(scaler, "spec.metrics");
    if let Some(behavior) = remove(scaler, "spec.behavior").filter(|behavior| !behavior.is_null()) {
        notes.push((BEHAVIOR, behavior));
    }
    if let Some(utilization) = utilization {
        set(scaler, "spec.targetCPUUtilizationPercentage", utilization);
    }
    let current = remove(scaler, "status.currentMetrics");
    for metric in current.as_ref().and_then(Value::as_array).into_iter().flatten() {
        if text(metric, "resource.name") == "cpu"
            && let Some(now) = opt_int(metric, "resource.current.averageUtilization")
        {
            set(scaler, "status.currentCPUUtilizationPercentage", now);
        }
    }
    notes.extend(
        current
            .filter(|metrics| metrics.as_array().is_some_and(|list| !list.is_empty()))
            .map(|metrics| (CURRENT, metrics)),
    );
    let conditions = remove(scaler, "status.conditions").filter(|conditions| !conditions.is_null());
    notes.extend(conditions.map(|conditions| (CONDITIONS, conditions)));
    for (key, value) in notes {
        ensure_map(scaler, "metadata.annotations").insert(key.to_owned(), value.to_string().into());
    }
}

fn to_v2(scaler: &mut Value) {
    let note = |scaler: &mut Value, key: &str| -> Option<Value> {
        let found = annotation(scaler, key).and_then(|text| serde_json::from_str(text).ok());
        let annotations = super::value::get_mut(scaler, "metadata.annotations").and_then(Value::as_object_mut)?;
        annotations.remove(key);
        if annotations.is_empty() {
            remove(scaler, "metadata.annotations");
        }
        found
    };
    let mut metrics = note(scaler, METRICS).and_then(|metrics| metrics.as_array().cloned()).unwrap_or_default();
    if let Some(utilization) = remove(scaler, "spec.targetCPUUtilizationPercentage").and_then(|value| value.as_i64()) {
        metrics.insert(0, cpu_metric(utilization));
    }
    if !metrics.is_empty() {
        set(scaler, "spec.metrics", metrics);
    }
    remove(scaler, "status.currentCPUUtilizationPercentage");
    for (key, path) in
        [(BEHAVIOR, "spec.behavior"), (CURRENT, "status.currentMetrics"), (CONDITIONS, "status.conditions")]
    {
        if let Some(value) = note(scaler, key) {
            set(scaler, path, value);
        }
    }
}

fn validate(scaler: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(scaler).child("spec");
    let (least, most) = (spec.child("minReplicas"), spec.child("maxReplicas"));
    if least.exists() && least.int() < 1 {
        least.invalid(&mut errors, "must be greater than or equal to 1");
    }
    if most.int() < 1 {
        most.invalid(&mut errors, "must be greater than 0");
    }
    if most.int() < least.int() {
        most.invalid(&mut errors, "must be greater than or equal to `minReplicas`");
    }
    for field in ["kind", "name"] {
        if spec.child("scaleTargetRef").child(field).required(&mut errors, "") {
            spec.child("scaleTargetRef").child(field).format(&mut errors, names::path_segment);
        }
    }
    for metric in spec.items("metrics") {
        validate_metric(&metric, &mut errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.child("behavior").child(direction);
        if !rules.exists() {
            continue;
        }
        let window = rules.child("stabilizationWindowSeconds");
        if window.non_negative(&mut errors) && window.int() > 3600 {
            window.invalid(&mut errors, "must be less than or equal to 3600");
        }
        rules.child("selectPolicy").optional_one_of(&mut errors, &["Disabled", "Max", "Min"]);
        if rules.items("policies").is_empty() {
            rules.child("policies").missing(&mut errors, "must specify at least one Policy");
        }
        for policy in rules.items("policies") {
            policy.child("type").one_of(&mut errors, &["Percent", "Pods"]);
            policy.child("value").positive(&mut errors);
            policy.child("periodSeconds").positive(&mut errors);
            if policy.child("periodSeconds").int() > 1800 {
                policy.child("periodSeconds").invalid(&mut errors, "must be less than or equal to 1800");
            }
        }
    }
    errors
}

const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn validate_metric(metric: &Node<'_>, errors: &mut ErrorList) {
    let kind = metric.child("type");
    if kind.text().is_empty() {
        return kind.missing(errors, "must specify a metric source type");
    }
    let Some((_, field)) = SOURCES.iter().find(|(name, _)| *name == kind.text()) else {
        kind.one_of(errors, &SOURCES.map(|(name, _)| name));
        return;
    };
    let source = metric.child(field);
    if !source.exists() {
        return source.missing(errors, "must populate information for the given metric source");
    }
    if field.to_lowercase().contains("resource") {
        source.child("name").required(errors, "must specify a resource name");
    } else {
        source.child("metric.name").required(errors, "must specify a metric name");
    }
    let target = source.child("target");
    target.child("type").required_one_of(errors, &["AverageValue", "Utilization", "Value"]);
    let utilization = target.child("averageUtilization");
    if utilization.exists() && utilization.int() < 1 {
        utilization.invalid(errors, "must be greater than 0");
    }
    for field in ["value", "averageValue"] {
        let amount = target.child(field);
        if amount.exists() && quantity(amount.value).is_none_or(|q| q.is_zero() || q.is_negative()) {
            amount.invalid(errors, "must be positive");
        }
    }
}

/// `cpu: 12%/80%, memory: <unknown>/1Gi`.
fn targets(scaler: &Value) -> String {
    let specs = list(scaler, "spec.metrics");
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let current = list(scaler, "status.currentMetrics");
    let shown: Vec<String> =
        specs.iter().take(2).enumerate().map(|(index, spec)| target(spec, current.get(index))).collect();
    let more = specs.len().saturating_sub(2);
    let text = shown.join(", ");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}

fn target(spec: &Value, current: Option<&Value>) -> String {
    let Some((_, field)) = SOURCES.iter().find(|(kind, _)| *kind == text(spec, "type")) else {
        return "<unknown type>".to_owned();
    };
    let now = current.and_then(|current| get(current, &format!("{field}.current")));
    let wanted = at(spec, &format!("{field}.target"));
    let amount = |path: &str| {
        (at(wanted, path).as_str().map(str::to_owned), now.and_then(|now| at(now, path).as_str().map(str::to_owned)))
    };
    let shown = if let Some(wanted) = opt_int(wanted, "averageUtilization") {
        let now = now
            .and_then(|now| opt_int(now, "averageUtilization"))
            .map_or("<unknown>".to_owned(), |now| format!("{now}%"));
        format!("{now}/{wanted}%")
    } else if has(wanted, "averageValue") {
        let (wanted, now) = amount("averageValue");
        let suffix = if matches!(*field, "resource" | "containerResource" | "pods") { "" } else { " (avg)" };
        format!("{}/{}{suffix}", now.unwrap_or("<unknown>".to_owned()), wanted.unwrap_or_default())
    } else {
        let (wanted, now) = amount("value");
        format!("{}/{}", now.unwrap_or("<unknown>".to_owned()), wanted.unwrap_or_default())
    };
    match *field {
        "resource" | "containerResource" => format!("{}: {shown}", text(spec, &format!("{field}.name"))),
        _ => shown,
    }
}

fn columns() -> Vec<Column> {
    named(vec![
        words("Reference", "scaleTargetRef points to the target resource to scale."),
        words(
            "Targets",
            "metrics contains the specifications for which to use to calculate the desired replica count.",
        ),
        words(
            "MinPods",
            "minReplicas is the lower limit for the number of replicas to which the autoscaler can scale down.",
        ),
        number(
            "MaxPods",
            "maxReplicas is the upper limit for the number of replicas to which the autoscaler can scale up.",
        ),
        number(
            "Replicas",
            "currentReplicas is current number of replicas of pods managed by this autoscaler, as last seen by the autoscaler.",
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    #[test]
    fn both_versions() {
        let v1 = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "targetCPUUtilizationPercentage": 50}});
        let mut scaler = v1.clone();
        Autoscaler.convert(&mut scaler, ("autoscaling", "v1"), ("autoscaling", "v2")).unwrap();
        assert_eq!(scaler["spec"]["metrics"], json!([cpu_metric(50)]));
        scaler["spec"]["metrics"].as_array_mut().unwrap().push(json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}}));
        let mut back = scaler.clone();
        Autoscaler.convert(&mut back, ("autoscaling", "v2"), ("autoscaling", "v1")).unwrap();
        assert_eq!(back["spec"], v1["spec"]);
        assert!(back["metadata"]["annotations"][METRICS].as_str().unwrap().contains("memory"));
        Autoscaler.convert(&mut back, ("autoscaling", "v1"), ("autoscaling", "v2")).unwrap();
        assert_eq!(back["spec"], scaler["spec"]);
    }

    #[test]
    fn shown_and_refused() {
        let mut scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 0, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
        Autoscaler.defaults(&mut scaler);
        assert_eq!(
            join(&validate(&scaler)),
            "[spec.maxReplicas: Invalid value: 0: must be greater than 0, spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`]"
        );
        let shown: Vec<String> =
            Autoscaler.row(&scaler, Timestamp::UNIX_EPOCH).iter().map(|c| c.to_string().replace('"', "")).collect();
        assert_eq!(shown.join("|"), "h|Deployment/d|cpu: <unknown>/80%|1|0|0|<unknown>");
    }
}
