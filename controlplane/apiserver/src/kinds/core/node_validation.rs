//! Validation of Nodes (`ValidateNode`, `ValidateNodeUpdate`). An update passes both, a write to
//! `status` the second.

use std::net::IpAddr;

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::{Value, json};

use super::pod::container::resource_quantity;
use crate::kinds::check::{Node, Seen, parse_cidr_sloppy};
use crate::kinds::value::{annotation, entries, same_at, text, texts};

const TAINTS: &str = "scheduler.alpha.kubernetes.io/taints";
const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
const LONGEST_FEATURE: usize = 253;

pub fn validate(node: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    annotations(node, &mut errors);
    taints(node, &mut errors);
    resources(node, &mut errors);
    swap(node, &mut errors);
    features(node, &mut errors);
    networks(node, &mut errors);
    errors
}

pub fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    annotations(new, &mut errors);
    resources(new, &mut errors);
    features(new, &mut errors);
    addresses(new, &mut errors);
    let spec = Node::root(new).child("spec");
    let (now, was) = (texts(new, "spec.podCIDRs"), texts(old, "spec.podCIDRs"));
    if !was.is_empty() && now != was {
        spec.child("podCIDRs").forbidden(&mut errors, "node updates may not change podCIDR except from \"\" to valid");
    }
    if !text(old, "spec.providerID").is_empty() && !same_at(old, new, "spec.providerID") {
        let detail = "node updates may not change providerID except from \"\" to valid";
        spec.child("providerID").forbidden(&mut errors, detail);
    }
    taints(new, &mut errors);
    if text(new, "spec.externalID") != text(old, "spec.externalID") {
        spec.child("externalID").forbidden(&mut errors, "may not be updated");
    }
    errors
}

/// Taints were an annotation once, and so is still which controllers' pods to avoid.
fn annotations(node: &Value, errors: &mut ErrorList) {
    let path = Path::root("metadata").child("annotations");
    let read = |key: &str, shown: &Path, errors: &mut ErrorList| -> Option<Value> {
        let text = annotation(node, key).filter(|text| !text.is_empty())?;
        let parsed = serde_json::from_str::<Value>(text);
        parsed.map_err(|error| errors.push(Error::invalid(shown, key, error.to_string()))).ok()
    };
    if let Some(found) = read(TAINTS, &path, errors) {
        each_taint(&Node::new(&json!({"taints": found}), Path::empty()), &path.child(TAINTS), errors);
    }
    let Some(found) = read(AVOID, &path.child("AvoidPods"), errors) else { return };
    for (index, entry) in Node::root(&found).items("preferAvoidPods").iter().enumerate() {
        let signature = path.child(AVOID).index(index).child("PodSignature");
        let owner = entry.child("podSignature.podController");
        if !owner.exists() {
            errors.push(Error::required(&signature, ""));
        } else if !owner.child("controller").flag() {
            let path = signature.child("PodController").child("Controller");
            errors.push(Error::invalid(&path, false, "must point to a controller"));
        }
    }
}

fn taints(node: &Value, errors: &mut ErrorList) {
    // Not where they are: upstream's own slip.
    let path = Path::root("metadata").child("taints");
    each_taint(&Node::root(node).child("spec"), &path, errors);
}

fn each_taint(holder: &Node<'_>, path: &Path, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for (index, taint) in holder.items("taints").into_iter().enumerate() {
        let taint = Node::new(taint.value, path.index(index));
        let (key, value, effect) = (taint.child("key"), taint.child("value"), taint.child("effect"));
        key.format(errors, names::qualified_name);
        let problems = names::label_value(value.text());
        if !problems.is_empty() {
            value.invalid(errors, problems.join(";"));
        }
        effect.required_one_of(errors, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        if !seen.insert(format!("{}:{}", key.text(), effect.text())) {
            let mut duplicate = Error::duplicate(&taint.path, "").showing(&[
                ("Key", json!(key.text())),
                ("Value", json!(value.text())),
                ("Effect", json!(effect.text())),
                ("TimeAdded", taint.child("timeAdded").value.clone()),
            ]);
            duplicate.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(duplicate);
        }
    }
}

fn resources(node: &Value, errors: &mut ErrorList) {
    for list in ["capacity", "allocatable"] {
        let path = Path::root("status").child(list);
        for (name, amount) in entries(node, &format!("status.{list}")) {
            resource_quantity(name, &Node::new(amount, path.child(name)), errors);
        }
    }
}

fn swap(node: &Value, errors: &mut ErrorList) {
    let capacity = Node::root(node).child("status.nodeInfo.swap.capacity");
    if capacity.exists() && capacity.int() <= 0 {
        // Not where it is: upstream's own slip.
        let path = Path::root("metadata").child("nodeSwapStatus").child("capacity");
        errors.push(Error::invalid(&path, capacity.int(), "must be greater than zero"));
    }
}

/// Features of the node that its pods' scheduling may depend on: sorted, each once.
fn features(node: &Value, errors: &mut ErrorList) {
    let features = Node::root(node).items("status.declaredFeatures");
    for (index, feature) in features.iter().enumerate() {
        let name = feature.text();
        if name.len() > LONGEST_FEATURE {
            let detail = format!("invalid feature name {name:?}: must be no more than {LONGEST_FEATURE} characters");
            feature.invalid_text(errors, detail);
        } else if !is_feature(name) {
            feature.invalid_text(errors, format!("invalid feature name {name:?}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"));
        }
        match features.get(index + 1) {
            Some(next) if next.text() == name => next.duplicate(errors),
            Some(next) if next.text() < name => next.invalid_text(errors, "list must be sorted alphabetically"),
            _ => {}
        }
    }
}

/// `MyFeature/mySubFeature`.
fn is_feature(name: &str) -> bool {
    let segment = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.split('/').all(segment)
}

fn networks(node: &Value, errors: &mut ErrorList) {
    let networks = Node::root(node).items("spec.podCIDRs");
    for network in &networks {
        network.cidr(errors);
    }
    if networks.len() < 2 {
        return;
    }
    let all = Node::root(node).child("spec.podCIDRs");
    let mut six = 0;
    for (index, network) in networks.iter().enumerate() {
        match parse_cidr_sloppy(network.text()) {
            Some((IpAddr::V6(_), _)) => six += 1,
            Some(_) => {}
            None => {
                let why = format!("invalid CIDR[{index}]: <nil> (invalid CIDR address: {})", network.text());
                let detail = format!("invalid PodCIDRs. failed to check with dual stack with error:{why}");
                errors.push(Error::internal(&all.path, detail));
                // Go's answer is then no.
                six = 0;
                break;
            }
        }
    }
    if networks.len() > 2 || six == 0 || six == networks.len() {
        all.invalid(errors, "may specify no more than one CIDR for each IP family");
    }
}

fn addresses(node: &Value, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for address in Node::root(node).items("status.addresses") {
        let (kind, value) = (address.child("type").text(), address.child("address").text());
        if !seen.insert(format!("{kind}/{value}")) {
            let shown = [("Type", json!(kind)), ("Address", json!(value))];
            errors.push(Error::duplicate(&address.path, "").showing(&shown));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::core::node::Node as Hooks;
    use crate::kinds::tested::{created, updated, updated_sub};

    fn with(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "n"}, "spec": spec, "status": status})
    }

    #[test]
    fn refused() {
        let long = "A".repeat(254);
        for (spec, status, expected) in [
            (
                json!({"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoExecute"}]}),
                json!({"declaredFeatures": ["A", "B/sub", "C"], "capacity": {"cpu": "1"}}),
                "[]".to_owned(),
            ),
            (
                json!({"taints": [{"key": "a", "effect": "X"}, {"key": "b", "value": "-"}, {"key": "a", "effect": "X"}]}),
                json!({}),
                "[metadata.taints[0].effect: Unsupported value: \"X\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\", \
                 metadata.taints[1].value: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?'), \
                 metadata.taints[1].effect: Required value, \
                 metadata.taints[2].effect: Unsupported value: \"X\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\", \
                 metadata.taints[2]: Duplicate value: {\"Key\":\"a\",\"Value\":\"\",\"Effect\":\"X\",\"TimeAdded\":null}: taints must be unique by key and effect pair]".to_owned(),
            ),
            (
                json!({}),
                json!({"capacity": {"cpu": "-1", "pods": "1500m"}, "nodeInfo": {"swap": {"capacity": 0}}}),
                "[status.capacity.cpu: Invalid value: \"-1\": must be greater than or equal to 0, \
                 status.capacity.pods: Invalid value: \"1500m\": must be an integer, \
                 status.allocatable.cpu: Invalid value: \"-1\": must be greater than or equal to 0, \
                 status.allocatable.pods: Invalid value: \"1500m\": must be an integer, \
                 metadata.nodeSwapStatus.capacity: Invalid value: 0: must be greater than zero]".to_owned(),
            ),
            (
                json!({}),
                json!({"declaredFeatures": ["B", "A", "A", "b", long]}),
                format!("[status.declaredFeatures[1]: Invalid value: \"A\": list must be sorted alphabetically, \
                 status.declaredFeatures[2]: Duplicate value: \"A\", \
                 status.declaredFeatures[3]: Invalid value: \"b\": invalid feature name \"b\": must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes, \
                 status.declaredFeatures[4]: Invalid value: \"{long}\": list must be sorted alphabetically, \
                 status.declaredFeatures[4]: Invalid value: \"{long}\": invalid feature name \"{long}\": must be no more than 253 characters]"),
            ),
            (
                json!({"podCIDRs": ["10.42.0.1/24"]}),
                json!({}),
                "spec.podCIDRs[0]: Invalid value: \"10.42.0.1/24\": must not have bits set beyond the prefix length".to_owned(),
            ),
            (json!({"podCIDRs": ["10.42.0.0/24", "fd00::/64"]}), json!({}), "[]".to_owned()),
            (
                json!({"podCIDRs": ["10.42.0.0/24", "10.43.0.0/24"]}),
                json!({}),
                "spec.podCIDRs: Invalid value: [\"10.42.0.0/24\",\"10.43.0.0/24\"]: may specify no more than one CIDR for each IP family".to_owned(),
            ),
        ] {
            assert_eq!(created(&Hooks, &with(spec.clone(), status.clone())), expected, "{spec} {status}");
        }
        let avoid = |controller: Value| {
            json!({"preferAvoidPods": [{"podSignature": {"podController": controller}}]}).to_string()
        };
        for (key, text, expected) in [
            (
                TAINTS,
                "[{\"key\":\"a\"}]".to_owned(),
                "metadata.annotations.scheduler.alpha.kubernetes.io/taints[0].effect: Required value",
            ),
            (AVOID, avoid(json!({"controller": true})), "[]"),
            (
                AVOID,
                avoid(Value::Null),
                "metadata.annotations.scheduler.alpha.kubernetes.io/preferAvoidPods[0].PodSignature: Required value",
            ),
            (
                AVOID,
                avoid(json!({"controller": false})),
                "metadata.annotations.scheduler.alpha.kubernetes.io/preferAvoidPods[0].PodSignature.PodController.Controller: Invalid value: false: must point to a controller",
            ),
            (
                AVOID,
                "{".to_owned(),
                "metadata.annotations.AvoidPods: Invalid value: \"scheduler.alpha.kubernetes.io/preferAvoidPods\": EOF while parsing an object at line 1 column 1",
            ),
        ] {
            let mut annotated = with(json!({}), json!({}));
            annotated["metadata"]["annotations"] = json!({key: text.clone()});
            assert_eq!(created(&Hooks, &annotated), expected, "{key} {text}");
        }
    }

    #[test]
    fn updates() {
        let old = || json!({"podCIDRs": ["10.42.0.0/24"], "providerID": "a://b"});
        for (was, now, expected) in [
            (json!({}), old(), "[]"),
            (old(), json!({"podCIDRs": ["10.42.0.0/24"], "providerID": "a://b", "unschedulable": true}), "[]"),
            (
                old(),
                json!({"podCIDRs": ["10.42.1.0/24"], "providerID": "a://c", "taints": [{"key": "a", "effect": "X"}], "externalID": "x"}),
                "[metadata.taints[0].effect: Unsupported value: \"X\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\", \
                 spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid, \
                 spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid, \
                 spec.externalID: Forbidden: may not be updated]",
            ),
        ] {
            assert_eq!(
                updated(&Hooks, &with(was.clone(), json!({})), &with(now.clone(), json!({}))),
                expected,
                "{was} {now}"
            );
        }
    }

    #[test]
    fn statuses() {
        let old = with(json!({}), json!({}));
        let address = |kind: &str| json!({"type": kind, "address": "10.0.0.1"});
        let new =
            with(json!({}), json!({"addresses": [address("InternalIP"), address("Hostname"), address("InternalIP")]}));
        assert_eq!(
            updated_sub(&Hooks, "status", &old, &new),
            "status.addresses[2]: Duplicate value: {\"Type\":\"InternalIP\",\"Address\":\"10.0.0.1\"}"
        );
        let new = with(json!({}), json!({"allocatable": {"memory": "-1"}, "declaredFeatures": ["b"]}));
        assert_eq!(
            updated_sub(&Hooks, "status", &old, &new),
            "[status.allocatable.memory: Invalid value: \"-1\": must be greater than or equal to 0, \
             status.declaredFeatures[0]: Invalid value: \"b\": invalid feature name \"b\": must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes]"
        );
    }
}
