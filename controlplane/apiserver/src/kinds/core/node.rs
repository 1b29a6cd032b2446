//! Nodes.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::{Node as At, Seen};
use crate::kinds::table::{NONE, named_wide, row_wide, words};
use crate::kinds::value::{at, copy, default, entries, flag, get, has, list, map, same, set, text};
use crate::resource::{Column, Context, Hooks};

pub struct Node;

impl Hooks for Node {
    fn defaults(&self, node: &mut Value) {
        default(node, "spec", json!({}));
        default(node, "status", json!({}));
        if has(node, "status.capacity") {
            let capacity = map(node, "status.capacity").cloned().unwrap_or_default();
            let allocatable = crate::kinds::value::ensure_map(node, "status.allocatable");
            for (resource, amount) in capacity {
                allocatable.entry(resource).or_insert(amount);
            }
        }
        // One network per family; `podCIDR` is the first.
        if list(node, "spec.podCIDRs").is_empty() && !text(node, "spec.podCIDR").is_empty() {
            let first = at(node, "spec.podCIDR").clone();
            set(node, "spec.podCIDRs", json!([first]));
        } else if text(node, "spec.podCIDR").is_empty()
            && let Some(first) = list(node, "spec.podCIDRs").first().cloned()
        {
            set(node, "spec.podCIDR", first);
        }
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if ctx.subresource == "status" {
            copy(old, new, "spec");
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, node: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        taints(node, &mut errors);
        networks(node, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_update(new, old)
    }

    fn row(&self, node: &Value, now: Timestamp) -> Vec<Value> {
        cells(node, now)
    }
}

fn taints(node: &Value, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for taint in At::root(node).items("spec.taints") {
        taint.child("key").format(errors, names::qualified_name);
        if !taint.child("value").text().is_empty() {
            taint.child("value").format(errors, names::label_value);
        }
        let effect = taint.child("effect");
        if effect.text().is_empty() {
            effect.missing(errors, "");
        } else {
            effect.one_of(errors, &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
        }
        let key = format!("{}:{}", taint.child("key").text(), effect.text());
        if !seen.insert(key) {
            let mut duplicate = Error::duplicate(&taint.path, taint.value.clone());
            duplicate.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(duplicate);
        }
    }
}

fn networks(node: &Value, errors: &mut ErrorList) {
    for network in At::root(node).items("spec.podCIDRs") {
        network.cidr(errors);
    }
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    taints(new, &mut errors);
    networks(new, &mut errors);
    let spec = At::root(new).child("spec");
    let mut munged = at(new, "spec").clone();
    for (field, path) in [("podCIDRs", "spec.podCIDRs"), ("providerID", "spec.providerID")] {
        let was = at(old, path);
        let unset = was.is_null() || was == "" || was.as_array().is_some_and(Vec::is_empty);
        if !unset && !same(at(new, path), was) {
            let what = if field == "podCIDRs" { "podCIDR" } else { field };
            spec.child(field)
                .forbidden(&mut errors, format!("node updates may not change {what} except from \"\" to valid"));
        }
    }
    for field in ["podCIDR", "podCIDRs", "providerID", "taints", "unschedulable", "configSource"] {
        copy(at(old, "spec"), &mut munged, field);
    }
    if !same(&munged, at(old, "spec")) {
        spec.forbidden(&mut errors, "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)");
    }
    errors
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![words("Status", "The status of the node"), words("Roles", "The roles of the node")],
        vec![
            words("Internal-IP", "List of addresses reachable to the node."),
            words("External-IP", "List of addresses reachable to the node."),
            words("OS-Image", "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy))."),
            words("Kernel-Version", "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64)."),
            words(
                "Container-Runtime",
                "ContainerRuntime Version reported by the node through runtime remote API (e.g. containerd://1.4.2).",
            ),
        ],
    )
    .into_iter()
    .flat_map(|column| {
        // The version stands behind the age.
        let age = column.name == "Age";
        let version = age.then(|| words("Version", "Kubelet Version reported by the node."));
        std::iter::once(column).chain(version)
    })
    .collect()
}

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let mut status: Vec<String> = list(node, "status.conditions")
        .iter()
        .filter(|condition| text(condition, "type") == "Ready")
        .map(|condition| if text(condition, "status") == "True" { "Ready" } else { "NotReady" }.to_owned())
        .collect();
    if status.is_empty() {
        status.push("Unknown".to_owned());
    }
    if flag(node, "spec.unschedulable") {
        status.push("SchedulingDisabled".to_owned());
    }
    let known = |path: &str| {
        Value::from(match text(node, path) {
            "" => "<unknown>",
            found => found,
        })
    };
    row_wide(
        node,
        now,
        vec![status.join(",").into(), roles(node).into()],
        vec![
            at(node, "status.nodeInfo.kubeletVersion").as_str().unwrap_or("").into(),
            address(node, "InternalIP").into(),
            address(node, "ExternalIP").into(),
            known("status.nodeInfo.osImage"),
            known("status.nodeInfo.kernelVersion"),
            known("status.nodeInfo.containerRuntimeVersion"),
        ],
    )
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = entries(node, "metadata.labels")
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

fn address(node: &Value, kind: &str) -> String {
    let found = list(node, "status.addresses").iter().find(|address| text(address, "type") == kind);
    found.and_then(|address| get(address, "address")?.as_str()).unwrap_or(NONE).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    #[test]
    fn rows() {
        let node = json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.37.0+skiff"}}
        });
        let shown: Vec<String> =
            cells(&node, Timestamp::UNIX_EPOCH).iter().map(|c| c.as_str().unwrap().to_owned()).collect();
        assert_eq!(
            shown.join("|"),
            "n|Ready,SchedulingDisabled|control-plane|<unknown>|v1.37.0+skiff|10.0.0.1|<none>|<unknown>|<unknown>|<unknown>"
        );
        let names: Vec<String> = columns().iter().map(|c| c.name.to_string()).collect();
        assert_eq!(names[..6], ["Name", "Status", "Roles", "Age", "Version", "Internal-IP"]);
    }

    #[test]
    fn updates() {
        let old = json!({"spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]}});
        let new = json!({"spec": {"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"], "unschedulable": true, "taints": [{"key": "a", "effect": "X"}]}});
        assert_eq!(
            join(&validate_update(&new, &old)),
            "[spec.taints[0].effect: Unsupported value: \"X\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\", \
             spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid]"
        );
        assert_eq!(
            validate_update(
                &json!({"spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]}}),
                &json!({"spec": {}})
            ),
            []
        );
    }
}
