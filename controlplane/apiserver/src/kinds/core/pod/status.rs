//! `pods/status`: what even the kubelet may not change.

use api::field::{Error, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::annotations;
use super::internal::{self, IP};
use crate::kinds::check::{Node, Seen, parse_ip};
use crate::kinds::value::{copy, has, int, list, list_mut, set, text};

/// Keeps what a status update does not touch, and what older kubelets leave out.
pub fn prepare(new: &mut Value, old: &Value) {
    if text(new, "status.qosClass").is_empty() {
        copy(old, new, "status.qosClass");
    }
    for field in ["resourceClaimStatuses", "extendedResourceClaimStatus", "nodeAllocatableResourceClaimStatuses"] {
        let path = format!("status.{field}");
        if !has(new, &path) {
            copy(old, new, &path);
        }
    }
    observed_generations(new, old);
    one_address(new);
}

/// Generations that were observed once are not forgotten.
fn observed_generations(new: &mut Value, old: &Value) {
    if int(new, "status.observedGeneration") == 0 {
        copy(old, new, "status.observedGeneration");
    }
    let mut before: Vec<&Value> = list(old, "status.conditions").iter().collect();
    for condition in list_mut(new, "status.conditions") {
        let same_type = |was: &&Value| text(was, "type") == text(condition, "type");
        let Some(index) = before.iter().position(same_type) else { continue };
        let was = before.remove(index);
        if int(condition, "observedGeneration") == 0 {
            copy(was, condition, "observedGeneration");
        }
    }
}

/// `podIP` is the first of `podIPs`; where they differ, the single one is meant.
fn one_address(pod: &mut Value) {
    let single = text(pod, "status.podIP").to_owned();
    let first = list(pod, "status.podIPs").first().map(|ip| text(ip, "ip").to_owned()).unwrap_or_default();
    if single.is_empty() && !first.is_empty() {
        set(pod, "status.podIP", first);
    } else if !single.is_empty() && single != first {
        set(pod, "status.podIPs", json!([{ "ip": single }]));
    }
}

pub fn validate(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(new);
    let path = root.child("metadata.annotations").path;
    annotations::unchanged(new, old, &path, &mut errors);
    annotations::validate(&root, &path, &mut errors);
    let status = root.child("status");
    conditions(&status, &mut errors);
    nominated(&status, old, &mut errors);
    if status.child("observedGeneration").int() < 0 {
        status.child("observedGeneration").invalid(&mut errors, "must be a non-negative integer");
    }
    status.child("qosClass").immutable(&mut errors, &Node::root(old).child("status.qosClass"));
    transitions(new, old, &mut errors);
    claims(&root, &mut errors);
    for (list, single) in [("podIPs", "podIP"), ("hostIPs", "hostIP")] {
        addresses(&status, old, list, single, &mut errors);
    }
    users(&root, &mut errors);
    errors
}

fn conditions(status: &Node<'_>, errors: &mut ErrorList) {
    for condition in status.items("conditions") {
        let observed = condition.child("observedGeneration");
        if observed.int() < 0 {
            observed.invalid(errors, "must be a non-negative integer");
        }
        let kind = condition.child("type");
        if !matches!(kind.text(), "PodScheduled" | "Ready" | "Initialized") {
            // The field is called so in Kubernetes' errors.
            Node::new(kind.value, condition.path.child("Type")).format(errors, names::qualified_name);
        }
    }
}

fn nominated(status: &Node<'_>, old: &Value, errors: &mut ErrorList) {
    let node = status.child("nominatedNodeName");
    if node.text().is_empty() || node.text() == text(old, "status.nominatedNodeName") {
        return;
    }
    node.format(errors, names::dns1123_subdomain);
    if !text(old, "spec.nodeName").is_empty() {
        node.forbidden(errors, "may not be set on pods that are already bound to a node");
    }
}

/// A container that ended for good does not run again.
fn transitions(new: &Value, old: &Value, errors: &mut ErrorList) {
    let rules = |field: &str| list(old, field).iter().flat_map(|container| list(container, "restartPolicyRules"));
    let all_may = ["spec.containers", "spec.initContainers"]
        .iter()
        .any(|field| rules(field).any(|rule| text(rule, "action") == "RestartAllContainers"));
    for (specs, statuses) in [
        ("spec.containers", "status.containerStatuses"),
        ("spec.initContainers", "status.initContainerStatuses"),
        ("", "status.ephemeralContainerStatuses"),
    ] {
        if all_may && !specs.is_empty() {
            continue;
        }
        for (index, was) in list(old, statuses).iter().enumerate().filter(|(_, was)| has(was, "state.terminated")) {
            let name = text(was, "name");
            let runs = list(new, statuses).iter().any(|now| text(now, "name") == name && !has(now, "state.terminated"));
            let container = list(old, specs).iter().find(|container| text(container, "name") == name);
            let code = int(was, "state.terminated.exitCode");
            let policy = text(old, "spec.restartPolicy");
            if runs && !container.is_some_and(|container| restarts(container, policy, code)) {
                let path = Node::root(new).child(statuses).path.index(index).child("state");
                errors.push(Error::forbidden(&path, "may not be transitioned to non-terminated state"));
            }
        }
    }
}

/// Whether a container runs again after it exited with `code`.
fn restarts(container: &Value, pod_policy: &str, code: i64) -> bool {
    let matched = list(container, "restartPolicyRules").iter().any(|rule| {
        let listed = list(rule, "exitCodes.values").iter().any(|value| value.as_i64() == Some(code));
        has(rule, "exitCodes") && listed == (text(rule, "exitCodes.operator") == "In")
    });
    let policy = match text(container, "restartPolicy") {
        "" => pod_policy,
        own => own,
    };
    matched || policy == "Always" || policy == "OnFailure" && code != 0
}

fn claims(root: &Node<'_>, errors: &mut ErrorList) {
    let claims = root.items("spec.resourceClaims");
    let mut seen = Seen::default();
    for status in root.items("status.resourceClaimStatuses") {
        let name = status.child("name");
        if !claims.iter().any(|claim| claim.child("name").text() == name.text()) {
            name.invalid_text(errors, "must match the name of an entry in `spec.resourceClaims`");
        }
        if !seen.insert(name.text()) {
            name.duplicate(errors);
        }
        if status.has("resourceClaimName") {
            status.child("resourceClaimName").format(errors, names::dns1123_subdomain);
        }
    }
}

/// Sound addresses, one a family, the first of them also by itself.
fn addresses(status: &Node<'_>, old: &Value, list_field: &str, single: &str, errors: &mut ErrorList) {
    let all = status.child(list_field);
    let items = status.items(list_field);
    let one = status.child(single).text();
    let differs = |errors: &mut ErrorList| {
        if let Some(first) = items.first().filter(|first| first.child("ip").text() != one) {
            first.child("ip").invalid_text(errors, format!("must be equal to `{single}`"));
        }
    };
    if single == "hostIP" {
        differs(errors);
    }
    let before = list(old, &format!("status.{list_field}"));
    for item in items.iter().filter(|item| !before.iter().any(|was| text(was, "ip") == item.child("ip").text())) {
        Node::new(item.child("ip").value, item.path.clone()).ip(errors);
    }
    if items.len() > 1 {
        let families: Vec<bool> =
            items.iter().filter_map(|item| Some(parse_ip(item.child("ip").text())?.is_ipv4())).collect();
        if items.len() > 2 || !(families.contains(&true) && families.contains(&false)) {
            let detail = "may specify no more than one IP for each IP family";
            errors.push(internal::invalid(&all.path, all.value, IP, detail));
        }
    }
    if single == "podIP" {
        if one.is_empty() != items.is_empty() {
            let detail = "podIP and podIPs must either both be set or both be unset";
            errors.push(internal::invalid(&all.path, all.value, IP, detail));
        } else {
            differs(errors);
        }
    }
}

fn users(root: &Node<'_>, errors: &mut ErrorList) {
    const MAX_ID: i64 = i32::MAX as i64;
    let windows = root.child("spec.os.name").text() == "windows";
    for field in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        for status in root.items(&format!("status.{field}")) {
            let user = status.child("user.linux");
            let user = Node::new(user.value, status.path.child("linux"));
            if windows && user.exists() {
                user.forbidden(errors, "cannot be set for a windows pod");
                continue;
            }
            let ids = [user.child("uid"), user.child("gid")].into_iter().chain(user.items("supplementalGroups"));
            for id in ids.filter(|id| !(0..=MAX_ID).contains(&id.int())) {
                id.invalid(errors, "must be between 0 and 2147483647, inclusive");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    fn pod(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec, "status": status})
    }

    #[test]
    fn statuses() {
        let never = json!({"restartPolicy": "Never", "containers": [{"name": "c"}]});
        let ended =
            |code: i64| json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code}}}]});
        let runs = json!({"containerStatuses": [{"name": "c", "state": {"running": {}}}]});
        let refused = "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
        let with = |extra: Value| {
            let mut spec = never.clone();
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            spec
        };
        for (spec, old, new, expected) in [
            (never.clone(), ended(0), runs.clone(), refused),
            (with(json!({"restartPolicy": "OnFailure"})), ended(1), runs.clone(), "[]"),
            (with(json!({"restartPolicy": "OnFailure"})), ended(0), runs.clone(), refused),
            (with(json!({"containers": [{"name": "c", "restartPolicy": "Always"}]})), ended(0), runs.clone(), "[]"),
            (
                with(
                    json!({"containers": [{"name": "c", "restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}),
                ),
                ended(42),
                runs.clone(),
                "[]",
            ),
            (
                never.clone(),
                json!({}),
                json!({"conditions": [{"type": "a b"}]}),
                "status.conditions[0].Type: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
            (
                with(json!({"nodeName": "n"})),
                json!({}),
                json!({"nominatedNodeName": "m"}),
                "status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node",
            ),
            (
                never.clone(),
                json!({"qosClass": "Burstable"}),
                json!({"qosClass": "Guaranteed"}),
                "status.qosClass: Invalid value: \"Guaranteed\": field is immutable",
            ),
            (
                never.clone(),
                json!({}),
                json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}),
                "status.podIPs: Invalid value: [{\"IP\":\"10.0.0.1\"},{\"IP\":\"10.0.0.2\"}]: may specify no more than one IP for each IP family",
            ),
            (
                never.clone(),
                json!({}),
                json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}),
                "[]",
            ),
            (
                never.clone(),
                json!({}),
                json!({"podIP": "x", "podIPs": [{"ip": "x"}]}),
                "status.podIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
            (
                never.clone(),
                json!({}),
                json!({"hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.2"}]}),
                "status.hostIPs[0].ip: Invalid value: \"10.0.0.2\": must be equal to `hostIP`",
            ),
            (
                never,
                json!({}),
                json!({"resourceClaimStatuses": [{"name": "x"}]}),
                "status.resourceClaimStatuses[0].name: Invalid value: \"x\": must match the name of an entry in `spec.resourceClaims`",
            ),
        ] {
            assert_eq!(join(&validate(&pod(spec.clone(), new.clone()), &pod(spec, old))), expected, "{new}");
        }
    }

    #[test]
    fn older_kubelets_lose_nothing() {
        let old = pod(
            json!({}),
            json!({"qosClass": "Burstable", "observedGeneration": 3, "conditions": [{"type": "Ready", "observedGeneration": 3}], "resourceClaimStatuses": [{"name": "r"}]}),
        );
        let mut new = pod(json!({}), json!({"podIP": "10.0.0.1", "conditions": [{"type": "Ready"}, {"type": "x/y"}]}));
        prepare(&mut new, &old);
        assert_eq!(
            new["status"],
            json!({
                "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "qosClass": "Burstable", "observedGeneration": 3,
                "conditions": [{"type": "Ready", "observedGeneration": 3}, {"type": "x/y"}], "resourceClaimStatuses": [{"name": "r"}]
            })
        );
    }
}
