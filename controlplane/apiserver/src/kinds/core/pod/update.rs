//! What may change in a pod that exists: by an update, through `ephemeralcontainers`, `resize`
//! and `status`.

use api::field::{Error, ErrorList};
use serde_json::Value;

use crate::kinds::check::Node;
use crate::kinds::value::{self, at, copy, has, list, list_mut, same, same_at, set, text};

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn validate(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, was) = (Node::root(new).child("spec"), Node::root(old).child("spec"));
    for field in ["containers", "initContainers"] {
        if spec.items(field).len() != was.items(field).len() {
            spec.child(field).forbidden(&mut errors, "pod updates may not add or remove containers");
            return errors;
        }
        for container in spec.items(field) {
            container.child("image").required(&mut errors, "");
        }
    }
    deadline(&spec, &was, &mut errors);
    tolerations(&spec, &was, &mut errors);
    gates(&spec, &was, &mut errors);
    let munged = munge(new, old);
    if !same(at(&munged, "spec"), was.value) {
        spec.forbidden(&mut errors, format!("{ALLOWED}\n{}", difference(at(&munged, "spec"), was.value)));
    }
    errors
}

/// `new` with what may change set back to what it was.
fn munge(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for field in ["spec.containers", "spec.initContainers"] {
        for (container, was) in list_mut(&mut munged, field).zip(list(old, field)) {
            copy(was, container, "image");
        }
    }
    for field in ["spec.activeDeadlineSeconds", "spec.tolerations", "spec.schedulingGates"] {
        copy(old, &mut munged, field);
    }
    let grace = "spec.terminationGracePeriodSeconds";
    if value::int(old, grace) < 0 && value::int(new, grace) == 1 {
        copy(old, &mut munged, grace);
    }
    // A gated pod has not been considered yet: its placement may be narrowed.
    if !list(old, "spec.schedulingGates").is_empty() {
        if narrows_selector(new, old) {
            copy(old, &mut munged, "spec.nodeSelector");
        }
        if narrows_affinity(new, old) {
            copy(old, &mut munged, "spec.affinity");
        }
    }
    munged
}

fn narrows_selector(new: &Value, old: &Value) -> bool {
    let kept =
        |(key, value): (&str, &Value)| value::map(new, "spec.nodeSelector").and_then(|m| m.get(key)) == Some(value);
    value::entries(old, "spec.nodeSelector").all(kept)
}

/// Nothing but required node affinity changes, and each term keeps its expressions.
fn narrows_affinity(new: &Value, old: &Value) -> bool {
    const TERMS: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    const REQUIRED: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    let mut others = new.clone();
    copy(old, &mut others, REQUIRED);
    let mut before = old.clone();
    for pod in [&mut others, &mut before] {
        value::remove(pod, REQUIRED);
        if same(at(pod, "spec.affinity.nodeAffinity"), &Value::Null) {
            value::remove(pod, "spec.affinity.nodeAffinity");
        }
    }
    let (terms, was) = (list(new, TERMS), list(old, TERMS));
    let grows = |field: &str, term: &Value, old_term: &Value| {
        list(old_term, field).iter().all(|e| list(term, field).contains(e))
    };
    same_at(&others, &before, "spec.affinity")
        && (was.is_empty()
            || terms.len() == was.len()
                && terms.iter().zip(was).all(|(t, o)| grows("matchExpressions", t, o) && grows("matchFields", t, o)))
}

fn deadline(spec: &Node<'_>, was: &Node<'_>, errors: &mut ErrorList) {
    let (new, old) = (spec.child("activeDeadlineSeconds"), was.child("activeDeadlineSeconds"));
    if new.exists() {
        if !(0..=i64::from(i32::MAX)).contains(&new.int()) {
            new.invalid(errors, "must be between 0 and 2147483647, inclusive");
        } else if old.exists() && old.int() < new.int() {
            new.invalid(errors, "must be less than or equal to previous value");
        }
    } else if old.exists() {
        errors.push(Error::invalid(&new.path, Value::Null, "must not update from a positive integer to nil value"));
    }
}

fn tolerations(spec: &Node<'_>, was: &Node<'_>, errors: &mut ErrorList) {
    let now = list(spec.value, "tolerations");
    let kept = |old: &&Value| {
        now.iter()
            .any(|new| ["key", "operator", "value", "effect"].iter().all(|field| text(new, field) == text(old, field)))
    };
    if !list(was.value, "tolerations").iter().all(|old| kept(&old)) {
        spec.child("tolerations")
            .forbidden(errors, "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn gates(spec: &Node<'_>, was: &Node<'_>, errors: &mut ErrorList) {
    let before: Vec<&str> = list(was.value, "schedulingGates").iter().map(|gate| text(gate, "name")).collect();
    for gate in spec.items("schedulingGates") {
        let name = gate.child("name").text();
        if !before.contains(&name) {
            spec.child("schedulingGates")
                .forbidden(errors, format!("only deletion is allowed, but found new scheduling gate '{name}'"));
        }
    }
}

/// The fields of a spec that differ, one line each side.
fn difference(new: &Value, old: &Value) -> String {
    let mut lines = Vec::new();
    let keys: std::collections::BTreeSet<&String> =
        [new, old].iter().filter_map(|v| v.as_object()).flat_map(serde_json::Map::keys).collect();
    for key in keys {
        let (after, before) = (at(new, key), at(old, key));
        if !same(after, before) {
            lines.push(format!("- \t{key}: {before},\n+ \t{key}: {after},"));
        }
    }
    lines.join("\n")
}

/// `pods/ephemeralcontainers`: of what was sent only the ephemeral containers count.
pub fn keep_all_but_ephemeral(new: &mut Value, old: &Value) {
    let added = at(new, "spec.ephemeralContainers").clone();
    let version = at(new, "metadata.resourceVersion").clone();
    *new = old.clone();
    if !version.is_null() {
        set(new, "metadata.resourceVersion", version);
    }
    if !added.is_null() {
        set(new, "spec.ephemeralContainers", added);
    }
}

pub fn validate_ephemeral(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(new).child("spec");
    super::spec::validate(&spec, &mut errors);
    let now = spec.items("ephemeralContainers");
    for was in list(old, "spec.ephemeralContainers") {
        let name = text(was, "name");
        match now.iter().find(|container| container.child("name").text() == name) {
            None => spec
                .child("ephemeralContainers")
                .forbidden(&mut errors, format!("existing ephemeral containers \"{name}\" may not be removed\n")),
            Some(container) if !same(container.value, was) => {
                spec.child("ephemeralContainers")
                    .forbidden(&mut errors, format!("existing ephemeral containers \"{name}\" may not be changed\n"));
            }
            Some(_) => {}
        }
    }
    let regular: Vec<&str> =
        ["spec.containers", "spec.initContainers"].iter().flat_map(|f| list(new, f)).map(|c| text(c, "name")).collect();
    for container in &now {
        let target = container.child("targetContainerName");
        if !target.text().is_empty() && !regular.contains(&target.text()) {
            errors.push(Error::not_found(&target.path, target.text()));
        }
    }
    errors
}

/// `pods/resize`: of what was sent only resources and resize policies count.
pub fn keep_all_but_resources(new: &mut Value, old: &Value) {
    let mut kept = old.clone();
    for field in ["spec.containers", "spec.initContainers"] {
        let wanted: Vec<Value> = list(new, field).to_vec();
        for container in list_mut(&mut kept, field) {
            let name = text(container, "name").to_owned();
            if let Some(sent) = wanted.iter().find(|c| text(c, "name") == name) {
                copy(sent, container, "resources");
                copy(sent, container, "resizePolicy");
            }
        }
    }
    if has(new, "spec.resources") {
        copy(new, &mut kept, "spec.resources");
    }
    copy(new, &mut kept, "metadata.resourceVersion");
    *new = kept;
}

pub fn validate_resize(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(new).child("spec");
    if super::qos_class(new) != super::qos_class(old) {
        errors.push(Error::invalid(
            &api::field::Path::root("metadata"),
            text(old, "status.qosClass"),
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    for field in ["containers", "initContainers"] {
        for container in spec.items(field) {
            super::container::resources(&container.child("resources"), true, &mut errors);
            let name = container.child("name").text();
            let was = list(old, &format!("spec.{field}")).iter().find(|c| text(c, "name") == name);
            let only = |value: &Value, side: &str| {
                let mut map = value::map(value, &format!("resources.{side}")).cloned().unwrap_or_default();
                map.remove("cpu");
                map.remove("memory");
                map
            };
            if let Some(was) = was
                && ["limits", "requests"].iter().any(|side| only(container.value, side) != only(was, side))
            {
                spec.forbidden(&mut errors, "only cpu and memory resources are mutable");
            }
        }
    }
    if matches!(text(old, "status.phase"), "Succeeded" | "Failed") {
        spec.forbidden(&mut errors, "completed pods cannot be resized");
    }
    errors
}

/// Whether a container that ended with `exit_code` runs again, by its own rules and policy or the pod's.
fn restarts_after(pod: &Value, container: &Value, exit_code: i64) -> bool {
    let matches = |rule: &&Value| {
        let listed = list(rule, "exitCodes.values").iter().any(|code| code.as_i64() == Some(exit_code));
        listed != (text(rule, "exitCodes.operator") == "NotIn")
    };
    if list(container, "restartPolicyRules").iter().any(|rule| matches(&rule)) {
        return true;
    }
    let own = text(container, "restartPolicy");
    match if own.is_empty() { text(pod, "spec.restartPolicy") } else { own } {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

/// Whether the end of one container may restart all of the pod's.
fn restarts_all(pod: &Value) -> bool {
    let containers = ["spec.containers", "spec.initContainers"].iter().flat_map(|specs| list(pod, specs));
    let mut rules = containers.flat_map(|container| list(container, "restartPolicyRules"));
    rules.any(|rule| text(rule, "action") == "RestartAllContainers")
}

/// `pods/status`: what even the kubelet may not change.
pub fn validate_status(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(new).child("status");
    let nominated = status.child("nominatedNodeName");
    if !nominated.text().is_empty() {
        nominated.format(&mut errors, api::names::dns1123_subdomain);
    }
    for (specs, statuses) in
        [("spec.containers", "status.containerStatuses"), ("spec.initContainers", "status.initContainerStatuses")]
    {
        if text(new, "spec.restartPolicy") == "Always" {
            continue;
        }
        for was in list(old, statuses) {
            let name = text(was, "name");
            let exit_code = value::int(was, "state.terminated.exitCode");
            let container = list(new, specs).iter().find(|container| text(container, "name") == name);
            let may_run_again = container.is_some_and(|container| restarts_after(new, container, exit_code));
            if !has(was, "state.terminated") || may_run_again || restarts_all(new) {
                continue;
            }
            let now = list(new, statuses).iter().find(|c| text(c, "name") == name);
            if now.is_some_and(|now| !has(now, "state.terminated")) {
                let path = Node::root(new).child(statuses).path.child("state");
                errors.push(Error::forbidden(&path, "may not be transitioned to non-terminated state"));
            }
        }
    }
    for ip in Node::root(new).items("status.podIPs") {
        ip.child("ip").ip(&mut errors);
    }
    let ips: Vec<&str> = list(new, "status.podIPs").iter().map(|ip| text(ip, "ip")).collect();
    if ips.len() > 2 {
        status.child("podIPs").invalid(&mut errors, "may specify no more than one IP for each IP family");
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    fn pod() -> Value {
        json!({"spec": {"containers": [{"name": "c", "image": "a:1"}], "tolerations": [{"key": "k", "operator": "Exists"}], "nodeName": "n"}})
    }

    #[test]
    fn updates() {
        let old = pod();
        let change = |path: &str, to: Value| {
            let mut new = pod();
            set(&mut new, path, to);
            join(&validate(&new, &old))
        };
        assert_eq!(change("spec.activeDeadlineSeconds", json!(5)), "[]");
        assert_eq!(change("spec.containers", json!([{"name": "c", "image": "a:2"}])), "[]");
        assert_eq!(
            change("spec.containers", json!([])),
            "spec.containers: Forbidden: pod updates may not add or remove containers"
        );
        assert!(
            change("spec.nodeName", json!("m"))
                .starts_with(&format!("spec: Forbidden: {ALLOWED}\n- \tnodeName: \"n\""))
        );
        assert_eq!(
            change("spec.tolerations", json!([])),
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
        );
        assert_eq!(
            change("spec.tolerations", json!([{"key": "k", "operator": "Exists"}, {"operator": "Exists"}])),
            "[]"
        );
    }

    #[test]
    fn what_ended_for_good_stays_ended() {
        let rules = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [42]}}]);
        for (policy, own, rules, code, allowed) in [
            ("Never", json!(null), json!([]), 1, false),
            ("OnFailure", json!(null), json!([]), 1, true),
            ("OnFailure", json!(null), json!([]), 0, false),
            ("Never", json!("Always"), json!([]), 0, true),
            ("OnFailure", json!("Never"), json!([]), 1, false),
            ("Never", json!("Never"), rules("Restart"), 42, true),
            ("Never", json!("Never"), rules("Restart"), 1, false),
            ("Never", json!("Never"), rules("RestartAllContainers"), 1, true),
        ] {
            let with = |state: Value| {
                json!({"spec": {"restartPolicy": policy, "containers": [{"name": "c", "restartPolicy": own, "restartPolicyRules": rules}]},
                    "status": {"containerStatuses": [{"name": "c", "state": state}]}})
            };
            let errors =
                validate_status(&with(json!({"running": {}})), &with(json!({"terminated": {"exitCode": code}})));
            assert_eq!(errors.is_empty(), allowed, "{policy} {own} {rules} {code}");
        }
    }

    #[test]
    fn gated_pods_may_be_narrowed() {
        let old = json!({"spec": {"containers": [], "schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "b"}}});
        let new = json!({"spec": {"containers": [], "nodeSelector": {"a": "b", "c": "d"}}});
        assert_eq!(join(&validate(&new, &old)), "[]");
        let wider = json!({"spec": {"containers": [], "schedulingGates": [{"name": "g"}]}});
        assert!(join(&validate(&wider, &old)).contains("nodeSelector"));
    }

    #[test]
    fn ephemeral_containers_only_grow() {
        let old = json!({"metadata": {"resourceVersion": "1"}, "spec": {"containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e"}]}});
        let mut new =
            json!({"spec": {"containers": [], "ephemeralContainers": [{"name": "f", "targetContainerName": "x"}]}});
        keep_all_but_ephemeral(&mut new, &old);
        assert_eq!(new["spec"]["containers"], json!([{"name": "c"}]));
        let found = join(&validate_ephemeral(&new, &old));
        assert!(found.contains("existing ephemeral containers \"e\" may not be removed"), "{found}");
        assert!(found.contains("targetContainerName: Not found: \"x\""), "{found}");
    }
}
