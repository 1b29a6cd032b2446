//! Nodes.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::node_validation;
use crate::kinds::check::{Node as At, cidr_warnings};
use crate::kinds::table::{NONE, named_wide, row_wide, words};
use crate::kinds::value::{at, copy, default, entries, flag, get, has, list, remove, set, text};
use crate::resource::{Column, Context, Hooks};

pub struct Node;

impl Hooks for Node {
    fn defaults(&self, node: &mut Value) {
        default(node, "spec", json!({}));
        default(node, "status", json!({}));
        if !has(node, "status.allocatable") {
            let capacity = at(node, "status.capacity").clone();
            if capacity.is_object() {
                set(node, "status.allocatable", capacity);
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

    fn prepare_create(&self, _ctx: &Context<'_>, node: &mut Value) {
        // Of a feature that is gone.
        remove(node, "spec.configSource");
        remove(node, "status.config");
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if !has(old, "spec.configSource") {
            remove(new, "spec.configSource");
        }
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if ctx.subresource == "status" {
            copy(old, new, "spec");
            if !has(old, "status.config") {
                remove(new, "status.config");
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, node: &Value) -> ErrorList {
        node_validation::validate(node)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = node_validation::validate(new);
        errors.extend(node_validation::validate_update(new, old));
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        if ctx.subresource == "status" { node_validation::validate_update(new, old) } else { ErrorList::new() }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(new)
    }

    fn row(&self, node: &Value, now: Timestamp) -> Vec<Value> {
        cells(node, now)
    }
}

fn warnings(node: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if has(node, "spec.configSource") {
        found.push("spec.configSource: the feature is removed".to_owned());
    }
    if !text(node, "spec.externalID").is_empty() {
        found.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
    }
    found.extend(At::root(node).items("spec.podCIDRs").iter().flat_map(cidr_warnings));
    found
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
    let kernel = match (text(node, "status.nodeInfo.kernelVersion"), text(node, "status.nodeInfo.architecture")) {
        ("", _) => "<unknown>".to_owned(),
        (version, "") => version.to_owned(),
        (version, architecture) => format!("{version} ({architecture})"),
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
            kernel.into(),
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
    use crate::kinds::tested::{created, prepared};

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
    fn allocatable_is_all_or_what_was_said() {
        for (given, expected) in [
            (json!({"capacity": {"cpu": "2"}}), json!({"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}})),
            (
                json!({"capacity": {"cpu": "2", "pods": "9"}, "allocatable": {"cpu": "1"}}),
                json!({"capacity": {"cpu": "2", "pods": "9"}, "allocatable": {"cpu": "1"}}),
            ),
            (json!({}), json!({})),
        ] {
            let mut node = json!({"status": given});
            Node.defaults(&mut node);
            assert_eq!(node["status"], expected, "{given}");
        }
    }

    #[test]
    fn networks_are_one_thing_in_two_fields() {
        for (given, expected) in [
            (json!({"podCIDR": "10.42.0.0/24"}), json!({"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]})),
            (json!({"podCIDRs": ["10.42.0.0/24"]}), json!({"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]})),
            (json!({}), json!({})),
        ] {
            let mut node = json!({"spec": given});
            Node.defaults(&mut node);
            assert_eq!(node["spec"], expected, "{given}");
        }
    }

    #[test]
    fn warned_of() {
        let node = json!({"spec": {"externalID": "x", "configSource": {}, "podCIDRs": ["FD00::/64"]}});
        assert_eq!(
            warnings(&node),
            [
                "spec.configSource: the feature is removed",
                "spec.externalID: this field is deprecated, and is unused by Kubernetes",
                "spec.podCIDRs[0]: IPv6 CIDR value \"FD00::/64\" should be in RFC 5952 canonical format (\"fd00::/64\")",
            ]
        );
        assert_eq!(warnings(&json!({"spec": {"podCIDRs": ["10.42.0.0/24"]}})), Vec::<String>::new());
    }

    #[test]
    fn what_is_dropped() {
        let mut new = json!({"metadata": {"name": "n"}, "spec": {"configSource": {"configMap": {}}}});
        prepared(&Node, &mut new, &json!({"metadata": {"name": "n"}, "spec": {}}));
        assert_eq!(new["spec"], json!({}));
        assert_eq!(created(&Node, &json!({"metadata": {"name": "n"}, "spec": {"configSource": {}}})), "[]");
    }
}
