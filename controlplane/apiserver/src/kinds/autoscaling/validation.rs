//! Validation of HorizontalPodAutoscalers (`pkg/apis/autoscaling/validation`).

use api::field::{Error, ErrorList};
use api::names;
use serde_json::Value;

use super::SOURCES;
use crate::kinds::check::Node;
use crate::kinds::core::pod::quantity;
use crate::kinds::value::{at, list, text};

/// Kinds of metrics as errors list them.
const KINDS: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
const LONGEST_WINDOW: i64 = 3600;
const LONGEST_PERIOD: i64 = 1800;

/// What is asked of the `apiVersion` of a reference.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// It was so before.
    Any,
    /// It can be read; the core group has no name.
    WellFormed,
    WithGroup,
}

impl Version {
    fn of_target(target: &Node<'_>, old: Option<&Value>) -> Self {
        let same = |before: &Value| {
            ["apiVersion", "kind"].iter().all(|field| text(before, field) == target.child(field).text())
        };
        if old.is_some_and(|old| same(at(old, "spec.scaleTargetRef"))) {
            Self::Any
        } else if target.child("kind").text() == "ReplicationController" {
            Self::WellFormed
        } else {
            Self::WithGroup
        }
    }

    /// Of what metrics of objects are about.
    fn of_objects(old: Option<&Value>) -> Self {
        let wrong = |metric: &Value| {
            let version = text(metric, "object.describedObject.apiVersion");
            text(metric, "type") == "Object" && Self::WellFormed.problem(version).is_some()
        };
        let kept = old.is_some_and(|old| list(old, "spec.metrics").iter().any(wrong));
        if kept { Self::Any } else { Self::WellFormed }
    }

    fn problem(self, version: &str) -> Option<String> {
        let (group, rest) = version.split_once('/').unwrap_or(("", version));
        if self == Self::Any {
            None
        } else if rest.contains('/') {
            Some(format!("unexpected GroupVersion string: {version}"))
        } else if self == Self::WithGroup && group.is_empty() {
            Some("apiVersion must specify API group".to_owned())
        } else {
            None
        }
    }
}

/// `old`: what is stored, where it is no creation.
pub fn validate(scaler: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(scaler).child("spec");
    let (least, most) = (spec.child("minReplicas"), spec.child("maxReplicas"));
    if least.exists() && most.int() < least.int() {
        most.invalid(&mut errors, "must be greater than or equal to `minReplicas`");
    }
    let target = spec.child("scaleTargetRef");
    target_reference(&target, Version::of_target(&target, old), &mut errors);
    let described = Version::of_objects(old);
    for metric in spec.items("metrics") {
        validate_metric(&metric, described, &mut errors);
    }
    let outlives_pods = |metric: Node<'_>| matches!(metric.child("type").text(), "Object" | "External");
    if least.exists() && least.int() == 0 && !spec.items("metrics").into_iter().any(outlives_pods) {
        let text = "must specify at least one Object or External metric to support scaling to zero replicas";
        spec.child("metrics").forbidden(&mut errors, text);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.child("behavior").child(direction);
        if rules.exists() {
            scaling_rules(&rules, &mut errors);
        }
    }
    // Declared rules speak last.
    if least.exists() && least.int() < 0 {
        least.invalid(&mut errors, "must be greater than or equal to 0");
    }
    if most.int() == 0 {
        most.missing(&mut errors, "");
    } else if most.int() < 1 {
        most.invalid(&mut errors, "must be greater than or equal to 1");
    }
    errors
}

pub fn status(scaler: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for field in ["currentReplicas", "desiredReplicas"] {
        Node::root(scaler).child("status").child(field).non_negative(&mut errors);
    }
    errors
}

fn target_reference(reference: &Node<'_>, wanted: Version, errors: &mut ErrorList) {
    for field in ["kind", "name"] {
        if reference.child(field).required(errors, "") {
            reference.child(field).format(errors, names::path_segment);
        }
    }
    let version = reference.child("apiVersion");
    if let Some(problem) = wanted.problem(version.text()) {
        version.invalid_text(errors, problem);
    }
}

fn scaling_rules(rules: &Node<'_>, errors: &mut ErrorList) {
    let window = rules.child("stabilizationWindowSeconds");
    if window.int() < 0 {
        window.invalid(errors, "must be greater than or equal to zero");
    }
    if window.int() > LONGEST_WINDOW {
        window.invalid(errors, format!("must be less than or equal to {LONGEST_WINDOW}"));
    }
    rules.child("selectPolicy").optional_one_of(errors, &["Disabled", "Max", "Min"]);
    let policies = rules.items("policies");
    if policies.is_empty() {
        rules.child("policies").missing(errors, "must specify at least one Policy");
    }
    for policy in policies {
        policy.child("type").one_of(errors, &["Pods", "Percent"]);
        for field in ["value", "periodSeconds"] {
            if policy.child(field).int() <= 0 {
                policy.child(field).invalid(errors, "must be greater than zero");
            }
        }
        if policy.child("periodSeconds").int() > LONGEST_PERIOD {
            policy.child("periodSeconds").invalid(errors, format!("must be less than or equal to {LONGEST_PERIOD}"));
        }
    }
    let tolerance = rules.child("tolerance");
    if tolerance.exists() && quantity(tolerance.value).is_some_and(|amount| amount.is_negative()) {
        tolerance.invalid(errors, "must be greater than or equal to 0");
    }
}

fn validate_metric(metric: &Node<'_>, described: Version, errors: &mut ErrorList) {
    let kind = metric.child("type");
    if kind.text().is_empty() {
        kind.missing(errors, "must specify a metric source type");
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind.text()).map(|(_, field)| *field);
    if expected.is_none() {
        errors.push(Error::not_supported(&kind.path, kind.text(), &KINDS));
    }
    // Only the first source is looked into.
    let order = ["object", "external", "pods", "resource", "containerResource"];
    let present: Vec<&str> = order.into_iter().filter(|field| metric.has(field)).collect();
    if let Some(field) = present.first() {
        source(&metric.child(field), field, described, errors);
    }
    if let Some(field) = expected
        && !metric.has(field)
    {
        metric.child(field).missing(errors, "must populate information for the given metric source");
    }
    if present.len() != 1 {
        for field in present.into_iter().filter(|field| Some(*field) != expected) {
            metric.child(field).forbidden(errors, "must populate the given metric source only");
        }
    }
}

fn source(source: &Node<'_>, field: &str, described: Version, errors: &mut ErrorList) {
    if field == "object" {
        target_reference(&source.child("describedObject"), described, errors);
    }
    match field {
        "resource" | "containerResource" => {
            source.child("name").required(errors, "must specify a resource name");
            if field == "containerResource" {
                source.child("container").required(errors, "must specify a container");
            }
        }
        _ => {
            let name = source.child("metric.name");
            if name.required(errors, "must specify a metric name") {
                name.format(errors, names::path_segment);
            }
        }
    }
    let target = source.child("target");
    metric_target(&target, errors);
    let (value, average) = (target.has("value"), target.has("averageValue"));
    let utilization = target.has("averageUtilization");
    match field {
        "object" if !value && !average => {
            target.child("averageValue").missing(errors, "must set either a target value or averageValue");
        }
        "external" if !value && !average => target
            .child("averageValue")
            .missing(errors, "must set either a target value for metric or a per-pod target"),
        "external" if value && average => {
            target.child("value").forbidden(errors, "may not set both a target value for metric and a per-pod target")
        }
        "pods" if !is_positive(&target.child("averageValue")) => {
            target.child("averageValue").missing(errors, "must specify a positive target averageValue");
        }
        "resource" | "containerResource" if !utilization && !average => target
            .child("averageUtilization")
            .missing(errors, "must set either a target raw value or a target utilization"),
        "resource" | "containerResource" if utilization && average => target
            .child("averageValue")
            .forbidden(errors, "may not set both a target raw value and a target utilization"),
        _ => {}
    }
}

fn is_positive(amount: &Node<'_>) -> bool {
    quantity(amount.value).is_some_and(|amount| !amount.is_zero() && !amount.is_negative())
}

fn metric_target(target: &Node<'_>, errors: &mut ErrorList) {
    let kind = target.child("type");
    if kind.text().is_empty() {
        kind.missing(errors, "must specify a metric target type");
    }
    if !matches!(kind.text(), "Utilization" | "Value" | "AverageValue") {
        errors.push(Error::invalid(&kind.path, kind.text(), "must be either Utilization, Value, or AverageValue"));
    }
    for field in ["value", "averageValue"] {
        let amount = target.child(field);
        if amount.exists() && !is_positive(&amount) {
            amount.invalid(errors, "must be positive");
        }
    }
    let utilization = target.child("averageUtilization");
    if utilization.exists() && utilization.int() < 1 {
        utilization.invalid(errors, "must be greater than 0");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Autoscaler;
    use crate::kinds::tested::{created, updated, updated_sub};
    use serde_json::{Value, json};

    fn scaler(extra: Value) -> Value {
        let mut spec =
            json!({"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": "h"}, "spec": spec})
    }

    #[test]
    fn refused() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (json!({"minReplicas": -1}), "spec.minReplicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                json!({"minReplicas": 0}),
                "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas",
            ),
            (
                json!({"minReplicas": 0, "metrics": [{"type": "External", "external": {
                    "metric": {"name": "q"}, "target": {"type": "Value", "value": "1"}}}]}),
                "[]",
            ),
            (
                json!({"maxReplicas": 0}),
                "[spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`, spec.maxReplicas: Required value]",
            ),
            (
                json!({"maxReplicas": -1, "minReplicas": 2}),
                "[spec.maxReplicas: Invalid value: -1: must be greater than or equal to `minReplicas`, spec.maxReplicas: Invalid value: -1: must be greater than or equal to 1]",
            ),
            (
                json!({"scaleTargetRef": {"kind": "a/b"}}),
                "[spec.scaleTargetRef.kind: Invalid value: \"a/b\": may not contain '/', spec.scaleTargetRef.name: Required value, \
                 spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group]",
            ),
            (
                json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 3601, "selectPolicy": "Most", "policies": [{"type": "X", "value": 0, "periodSeconds": 1801}]}}}),
                "[spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600, \
                 spec.behavior.scaleUp.selectPolicy: Unsupported value: \"Most\": supported values: \"Disabled\", \"Max\", \"Min\", \
                 spec.behavior.scaleUp.policies[0].type: Unsupported value: \"X\": supported values: \"Pods\", \"Percent\", \
                 spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero, \
                 spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800]",
            ),
            (
                json!({"behavior": {"scaleDown": {"policies": []}}}),
                "spec.behavior.scaleDown.policies: Required value: must specify at least one Policy",
            ),
        ] {
            assert_eq!(created(&Autoscaler, &scaler(extra.clone())), expected, "{extra}");
        }
        assert_eq!(
            updated_sub(&Autoscaler, "status", &json!({}), &json!({"status": {"desiredReplicas": -1}})),
            "status.desiredReplicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }

    #[test]
    fn targets_say_their_group() {
        let target = |version: &str, kind: &str| {
            scaler(json!({"scaleTargetRef": {"apiVersion": version, "kind": kind, "name": "d"}}))
        };
        let at = "spec.scaleTargetRef.apiVersion: Invalid value:";
        for (version, kind, expected) in [
            ("apps/v1", "Deployment", "[]".to_owned()),
            ("", "ReplicationController", "[]".to_owned()),
            ("v1", "ReplicationController", "[]".to_owned()),
            ("", "Deployment", format!("{at} \"\": apiVersion must specify API group")),
            ("v1", "Deployment", format!("{at} \"v1\": apiVersion must specify API group")),
            ("a/b/c", "Deployment", format!("{at} \"a/b/c\": unexpected GroupVersion string: a/b/c")),
        ] {
            assert_eq!(created(&Autoscaler, &target(version, kind)), expected, "{version} {kind}");
        }
        // What was taken once stays, until it is another's.
        let old = target("", "Deployment");
        assert_eq!(updated(&Autoscaler, &old, &old), "[]");
        assert_ne!(updated(&Autoscaler, &old, &target("", "StatefulSet")), "[]");
        let about = |version: &str| {
            let object = json!({"describedObject": {"apiVersion": version, "kind": "Service", "name": "s"},
                "metric": {"name": "m"}, "target": {"type": "Value", "value": "1"}});
            scaler(json!({"metrics": [{"type": "Object", "object": object}]}))
        };
        assert_eq!(created(&Autoscaler, &about("v1")), "[]");
        assert_ne!(created(&Autoscaler, &about("a/b/c")), "[]");
        assert_eq!(updated(&Autoscaler, &about("a/b/c"), &about("a/b/c")), "[]");
    }

    #[test]
    fn metrics_refused() {
        let utilization = json!({"type": "Utilization", "averageUtilization": 50});
        for (metric, expected) in [
            (json!({"type": "Resource", "resource": {"name": "cpu", "target": utilization}}), "[]"),
            (
                json!({}),
                "[spec.metrics[0].type: Required value: must specify a metric source type, \
                 spec.metrics[0].type: Unsupported value: \"\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"]",
            ),
            (
                json!({"type": "Pods", "resource": {"name": "cpu", "target": utilization}}),
                "spec.metrics[0].pods: Required value: must populate information for the given metric source",
            ),
            (
                json!({"type": "Pods", "resource": {"name": "cpu", "target": utilization}, "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"}}}),
                "spec.metrics[0].resource: Forbidden: must populate the given metric source only",
            ),
            (
                json!({"type": "Pods", "pods": {"metric": {"name": "a/b"}, "target": {"averageValue": "-1"}}}),
                "[spec.metrics[0].pods.metric.name: Invalid value: \"a/b\": may not contain '/', \
                 spec.metrics[0].pods.target.type: Required value: must specify a metric target type, \
                 spec.metrics[0].pods.target.type: Invalid value: \"\": must be either Utilization, Value, or AverageValue, \
                 spec.metrics[0].pods.target.averageValue: Invalid value: \"-1\": must be positive, \
                 spec.metrics[0].pods.target.averageValue: Required value: must specify a positive target averageValue]",
            ),
            (
                json!({"type": "Resource", "resource": {"target": {"type": "Utilization", "averageUtilization": 0, "averageValue": "1"}}}),
                "[spec.metrics[0].resource.name: Required value: must specify a resource name, \
                 spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0, \
                 spec.metrics[0].resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization]",
            ),
            (
                json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "target": {"type": "Value"}}}),
                "[spec.metrics[0].containerResource.container: Required value: must specify a container, \
                 spec.metrics[0].containerResource.target.averageUtilization: Required value: must set either a target raw value or a target utilization]",
            ),
            (
                json!({"type": "External", "external": {"metric": {"name": "m"}, "target": {"type": "Value", "value": "1", "averageValue": "1"}}}),
                "spec.metrics[0].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
            ),
            (
                json!({"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "m"}, "target": {"type": "Value"}}}),
                "spec.metrics[0].object.target.averageValue: Required value: must set either a target value or averageValue",
            ),
        ] {
            assert_eq!(created(&Autoscaler, &scaler(json!({"metrics": [metric]}))), expected, "{metric}");
        }
    }
}
