//! The `autoscaling` group: HorizontalPodAutoscaler, stored as v2. In v1 what it cannot express
//! travels in annotations (`version1`).

mod validation;
mod version1;

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::table::{UNSET, named, row, words};
use super::value::{at, default, get, has, int, list, opt_int, opt_text, set, text};
use crate::error::Result;
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

/// Kinds of metrics and the field that describes each.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Autoscaler)]
}

fn descriptor() -> Descriptor {
    Descriptor::new("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .also("autoscaling", "v1")
        .short(&["hpa"])
        .categories(&["all"])
        .with_status()
        .with_generation()
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
        validation::validate(scaler, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validation::validate(new, Some(old))
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        if ctx.subresource == "status" { validation::status(new) } else { ErrorList::new() }
    }

    fn convert(&self, scaler: &mut Value, _from: (&str, &str), to: (&str, &str)) -> Result<()> {
        if to.1 == "v1" {
            version1::from_hub(scaler)
        } else {
            version1::to_hub(scaler)
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

/// An amount that a metric in use does not give.
const NIL: &str = "<nil>";

fn target(spec: &Value, current: Option<&Value>) -> String {
    let Some((_, field)) = SOURCES.iter().find(|(kind, _)| *kind == text(spec, "type")) else {
        return "<unknown type>".to_owned();
    };
    let now = current.and_then(|current| get(current, &format!("{field}.current")));
    let wanted = at(spec, &format!("{field}.target"));
    // The whole status is unknown, or it has nothing to say of this amount.
    let amount = |path: &str, absent: &'static str| {
        let found = now.map_or("<unknown>", |now| opt_text(now, path).unwrap_or(absent));
        format!("{found}/{}", opt_text(wanted, path).unwrap_or(NIL))
    };
    let unknown = || "<unknown>".to_owned();
    let of_resource = matches!(*field, "resource" | "containerResource");
    let shown = if of_resource && has(wanted, "averageValue") || *field == "pods" {
        amount("averageValue", NIL)
    } else if has(wanted, "averageValue") {
        format!("{} (avg)", amount("averageValue", "<unknown>"))
    } else if of_resource {
        let percent = |holder: Option<&Value>| Some(format!("{}%", opt_int(holder?, "averageUtilization")?));
        let wanted = percent(Some(wanted)).unwrap_or_else(|| "<auto>".to_owned());
        format!("{}/{wanted}", percent(now).unwrap_or_else(unknown))
    } else {
        amount("value", NIL)
    };
    match *field {
        "resource" | "containerResource" => format!("{}: {shown}", text(spec, &format!("{field}.name"))),
        _ => shown,
    }
}

fn columns() -> Vec<Column> {
    named(vec![
        words(
            "Reference",
            "scaleTargetRef points to the target resource to scale, and is used to the pods for which metrics should be collected, as well as to actually change the replica count.",
        ),
        words(
            "Targets",
            "metrics contains the specifications for which to use to calculate the desired replica count.",
        ),
        words(
            "MinPods",
            "minReplicas is the lower limit for the number of replicas to which the autoscaler can scale down.",
        ),
        words(
            "MaxPods",
            "maxReplicas is the upper limit for the number of replicas to which the autoscaler can scale up. It cannot be less that minReplicas.",
        ),
        words(
            "Replicas",
            "currentReplicas is current number of replicas of pods managed by this autoscaler, as last seen by the autoscaler.",
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::cells;

    #[test]
    fn specs_are_counted_in_generations() {
        assert!(descriptor().generation);
    }

    #[test]
    fn rows() {
        let with = |metrics: Value, current: Value| {
            let mut scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 9, "metrics": metrics, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}, "status": {"currentReplicas": 2, "currentMetrics": current}});
            Autoscaler.defaults(&mut scaler);
            scaler
        };
        let resource =
            |name: &str, target: Value| json!({"type": "Resource", "resource": {"name": name, "target": target}});
        let object = |target: Value| json!({"type": "Object", "object": {"describedObject": {}, "metric": {"name": "m"}, "target": target}});
        for (metrics, current, targets) in [
            (json!([]), json!(null), "cpu: <unknown>/80%"),
            (
                json!([resource("cpu", json!({"averageUtilization": 50}))]),
                json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12, "averageValue": "12m"}}}]),
                "cpu: 12%/50%",
            ),
            (
                json!([resource("memory", json!({"averageValue": "1Gi"}))]),
                json!([{"type": "Resource", "resource": {"name": "memory", "current": {"averageValue": "300Mi"}}}]),
                "memory: 300Mi/1Gi",
            ),
            (json!([resource("cpu", json!({"type": "Utilization"}))]), json!([]), "cpu: <unknown>/<auto>"),
            (
                json!([{"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"averageUtilization": 60}}}]),
                json!(null),
                "cpu: <unknown>/60%",
            ),
            (
                json!([{"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"averageValue": "10"}}}, object(json!({"value": "5"})), object(json!({"averageValue": "6"}))]),
                json!([{"type": "Pods", "pods": {"current": {"averageValue": "7500m"}}}, {"type": "Object", "object": {"current": {"value": "3"}}}]),
                "7500m/10, 3/5 + 1 more...",
            ),
            (
                json!([{"type": "External", "external": {"metric": {"name": "m"}, "target": {"averageValue": "6"}}}, object(json!({"averageValue": "4"}))]),
                json!([]),
                "<unknown>/6 (avg), <unknown>/4 (avg)",
            ),
            (json!([{"type": "New"}]), json!([]), "<unknown type>"),
        ] {
            let shown = cells(&Autoscaler, &with(metrics.clone(), current), "2026-01-01T00:00:00Z");
            assert_eq!(shown, format!("h|Deployment/d|{targets}|1|9|2|<unknown>"), "{metrics}");
        }
    }
}
