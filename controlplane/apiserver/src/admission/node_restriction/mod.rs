//! `NodeRestriction`: a node may only write its own Node, its own pods' status and what belongs to
//! them. [`pods`] holds the rules of mirror pods, [`certificates`] those of requests for certificates.

mod certificates;
mod pods;

use async_trait::async_trait;
use serde_json::Value;

use super::is_mirror;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::core::diff;
use crate::kinds::value::{at, entries, has, map, name, remove, same, same_at, text};

pub struct NodeRestriction;

/// What a rule has to say against a request; none when it may pass.
type Refusal = Option<String>;

#[async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation != Operation::Connect && attributes.user.as_node().is_some()
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let node = attributes.user.as_node().unwrap_or_default();
        if node.is_empty() {
            return Err(attributes.forbid(format!("could not determine node from user {:?}", attributes.user.name)));
        }
        let refusal = if attributes.is("", "pods") {
            match attributes.subresource {
                "" => pods::object(attributes, node, cluster).await?,
                "status" => pods::status(attributes, node),
                "eviction" => pods::eviction(attributes, node, cluster).await?,
                other => {
                    Some(format!("unexpected pod subresource \"{other}\", only 'status' and 'eviction' are allowed"))
                }
            }
        } else if attributes.is("", "nodes") {
            node_object(attributes, node)
        } else if attributes.is("", "serviceaccounts") && attributes.subresource == "token" {
            token(attributes, node, cluster).await?
        } else if attributes.is("coordination.k8s.io", "leases") {
            lease(attributes, node)
        } else if attributes.is("storage.k8s.io", "csinodes") {
            csi_node(attributes, node)
        } else if attributes.is("resource.k8s.io", "resourceslices") {
            slice(attributes, node)
        } else if attributes.is("", "persistentvolumeclaims") {
            claim(attributes, node)
        } else if attributes.is("certificates.k8s.io", "certificatesigningrequests") {
            certificates::signing_request(attributes, node)
        } else if attributes.is("certificates.k8s.io", "podcertificaterequests") {
            certificates::pod_request(attributes, node, cluster).await?
        } else {
            None
        };
        refusal.map_or(Ok(()), |why| Err(attributes.forbid(why)))
    }
}

/// The object's own name, or the request's.
fn target<'a>(attributes: &'a Attributes<'_>) -> &'a str {
    if attributes.name.is_empty() { name(&attributes.object) } else { attributes.name }
}

fn node_object(attributes: &Attributes<'_>, node: &str) -> Refusal {
    let wanted = target(attributes);
    if wanted != node {
        return Some(format!("node \"{node}\" is not allowed to modify node \"{wanted}\""));
    }
    match attributes.operation {
        Operation::Create => {
            if has(&attributes.object, "spec.configSource") {
                return Some(format!("node \"{node}\" is not allowed to create pods with a non-nil configSource"));
            }
            forbidden_labels(entries(&attributes.object, "metadata.labels").map(|(key, _)| key))
                .map(|labels| format!("node \"{node}\" is not allowed to set the following labels: {labels}"))
        }
        Operation::Update => {
            let old = attributes.old?;
            let was = at(old, "spec.configSource");
            if has(&attributes.object, "spec.configSource") && at(&attributes.object, "spec.configSource") != was {
                return Some(format!(
                    "node \"{node}\" is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if !same_at(old, &attributes.object, "spec.taints") {
                return Some(format!("node \"{node}\" is not allowed to modify taints"));
            }
            if !same_at(old, &attributes.object, "metadata.ownerReferences") {
                return Some(format!("node \"{node}\" is not allowed to modify ownerReferences"));
            }
            let changed = |object: &Value, other: &Value| -> Vec<String> {
                let there = map(other, "metadata.labels").cloned().unwrap_or_default();
                entries(object, "metadata.labels")
                    .filter(|(key, value)| there.get(*key) != Some(*value))
                    .map(|(key, _)| key.to_owned())
                    .collect()
            };
            let mut keys = changed(&attributes.object, old);
            keys.extend(changed(old, &attributes.object));
            forbidden_labels(keys.iter().map(String::as_str))
                .map(|labels| format!("is not allowed to modify labels: {labels}"))
        }
        _ => None,
    }
}

/// Labels of Kubernetes' own domains that a kubelet may set.
const KUBELET_LABELS: [&str; 13] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
];

/// Those of `keys` that are not a kubelet's to change, joined; none when all are.
fn forbidden_labels<'a>(keys: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut refused: Vec<&str> = keys.filter(|key| !kubelet_may_label(key)).collect();
    refused.sort_unstable();
    refused.dedup();
    (!refused.is_empty()).then(|| refused.join(", "))
}

fn kubelet_may_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let under = |parent: &str| domain == parent || domain.ends_with(&format!(".{parent}"));
    if under("node-restriction.kubernetes.io") {
        return false;
    }
    if !(under("kubernetes.io") || under("k8s.io")) {
        return true;
    }
    KUBELET_LABELS.contains(&key) || under("kubelet.kubernetes.io") || under("node.kubernetes.io")
}

async fn token(attributes: &Attributes<'_>, node: &str, cluster: &dyn Cluster) -> Result<Refusal> {
    let bound = at(&attributes.object, "spec.boundObjectRef");
    if text(bound, "apiVersion") != "v1" || text(bound, "kind") != "Pod" || text(bound, "name").is_empty() {
        return Ok(Some("node requested token not bound to a pod".to_owned()));
    }
    let (pod_name, uid) = (text(bound, "name"), text(bound, "uid"));
    if uid.is_empty() {
        return Ok(Some("node requested token with a pod binding without a uid".to_owned()));
    }
    let pod = pods::existing(attributes, pod_name, cluster).await?;
    Ok(if text(&pod, "metadata.uid") != uid {
        Some(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ))
    } else if text(&pod, "spec.nodeName") != node {
        Some("node requested token bound to a pod scheduled on a different node".to_owned())
    } else {
        None
    })
}

fn lease(attributes: &Attributes<'_>, node: &str) -> Refusal {
    if attributes.namespace != "kube-node-lease" {
        return Some("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
    }
    (target(attributes) != node)
        .then(|| "can only access node lease with the same name as the requesting node".to_owned())
}

fn csi_node(attributes: &Attributes<'_>, node: &str) -> Refusal {
    (target(attributes) != node).then(|| "can only access CSINode with the same name as the requesting node".to_owned())
}

fn slice(attributes: &Attributes<'_>, node: &str) -> Refusal {
    let (object, verb) = match attributes.operation {
        Operation::Create => (&attributes.object, "create"),
        Operation::Delete => (attributes.old?, "delete"),
        // The authorizer looked at the slice.
        _ => return None,
    };
    (text(object, "spec.nodeName") != node)
        .then(|| format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
}

/// Of a claim a node may only change what resizing needs of the status.
fn claim(attributes: &Attributes<'_>, node: &str) -> Refusal {
    if attributes.subresource != "status" {
        return Some("may only update PVC status".to_owned());
    }
    if attributes.operation != Operation::Update {
        return Some(format!("unexpected operation \"{}\"", attributes.operation.name()));
    }
    let compared = |claim: &Value| {
        let mut claim = claim.clone();
        for path in [
            "metadata.resourceVersion",
            "metadata.managedFields",
            "status.capacity",
            "status.conditions",
            "status.allocatedResources",
            "status.allocatedResourceStatuses",
        ] {
            remove(&mut claim, path);
        }
        claim
    };
    let (old, new) = (compared(attributes.old?), compared(&attributes.object));
    (!same(&old, &new)).then(|| {
        format!(
            "node \"{node}\" is not allowed to update fields other than status.quantity and status.conditions: {}",
            diff::unified(&old, &new)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use crate::authn::UserInfo;
    use serde_json::json;

    fn as_node(mut request: Request) -> Request {
        request.user = UserInfo::new("system:node:n", &["system:nodes"]);
        request
    }

    fn pod(extra: Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "n"},
        });
        for (path, value) in extra.as_object().into_iter().flatten() {
            crate::kinds::value::set(&mut pod, path, value.clone());
        }
        pod
    }

    fn cluster() -> Fixed {
        Fixed::with(&[
            ("", "nodes", json!({"metadata": {"name": "n", "uid": "u"}})),
            (
                "",
                "pods",
                json!({"metadata": {"name": "mine", "namespace": "ns", "uid": "pu"}, "spec": {"nodeName": "n"}}),
            ),
            (
                "",
                "pods",
                json!({"metadata": {"name": "other", "namespace": "ns", "uid": "pu"}, "spec": {"nodeName": "m"}}),
            ),
        ])
    }

    #[tokio::test]
    async fn creates() {
        let lease = |name: &str, namespace: &str| json!({"metadata": {"name": name, "namespace": namespace}});
        let node = |name: &str, label: &str| json!({"metadata": {"name": name, "labels": {label: ""}}});
        let owner = |field: &str, value: Value| {
            let mut owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true});
            owner[field] = value;
            pod(json!({"metadata.ownerReferences": [owner]}))
        };
        let volume = |source: Value| pod(json!({"spec.volumes": [source]}));
        let slice = |name: &str| json!({"metadata": {"name": "s"}, "spec": {"nodeName": name}});
        for (group, plural, object, expected) in [
            ("", "pods", pod(json!({})), ""),
            (
                "",
                "pods",
                json!({"metadata": {"name": "p"}}),
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"n\" can only create mirror pods",
            ),
            (
                "",
                "pods",
                pod(json!({"spec.nodeName": "m"})),
                "node \"n\" can only create pods with spec.nodeName set to itself",
            ),
            (
                "",
                "pods",
                pod(json!({"metadata.ownerReferences": []})),
                "node \"n\" can only create pods with an owner reference set to itself",
            ),
            (
                "",
                "pods",
                owner("name", json!("m")),
                "node \"n\" can only create pods with an owner reference set to itself",
            ),
            (
                "",
                "pods",
                owner("controller", json!(false)),
                "node \"n\" can only create pods with a controller owner reference set to itself",
            ),
            (
                "",
                "pods",
                owner("blockOwnerDeletion", json!(true)),
                "node \"n\" must not set blockOwnerDeletion on an owner reference",
            ),
            ("", "pods", owner("uid", json!("x")), "node n UID mismatch: expected x got u"),
            (
                "",
                "pods",
                pod(json!({"spec.serviceAccountName": "s"})),
                "node \"n\" can not create pods that reference \"serviceaccounts\"",
            ),
            (
                "",
                "pods",
                pod(json!({"spec.containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]})),
                "node \"n\" can not create pods that reference \"secrets\"",
            ),
            (
                "",
                "pods",
                volume(json!({"name": "v", "rbd": {"secretRef": {"name": "s"}}})),
                "node \"n\" can not create pods that reference \"secrets\"",
            ),
            (
                "",
                "pods",
                volume(json!({"name": "v", "projected": {"sources": [{"configMap": {"name": "c"}}]}})),
                "node \"n\" can not create pods that reference \"configmaps\"",
            ),
            (
                "",
                "pods",
                volume(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})),
                "node \"n\" can not create pods that reference \"persistentvolumeclaims\"",
            ),
            (
                "",
                "pods",
                volume(json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {}}]}})),
                "node \"n\" can not create pods that reference \"serviceaccounts (via projected volumes)\"",
            ),
            ("", "pods", volume(json!({"name": "v", "hostPath": {"path": "/"}})), ""),
            ("", "nodes", node("m", "a"), "node \"n\" is not allowed to modify node \"m\""),
            ("", "nodes", node("n", "kubernetes.io/os"), ""),
            ("", "nodes", node("n", "a.kubelet.kubernetes.io/b"), ""),
            (
                "",
                "nodes",
                node("n", "kubernetes.io/other"),
                "node \"n\" is not allowed to set the following labels: kubernetes.io/other",
            ),
            (
                "",
                "nodes",
                node("n", "node-restriction.kubernetes.io/a"),
                "node \"n\" is not allowed to set the following labels: node-restriction.kubernetes.io/a",
            ),
            ("coordination.k8s.io", "leases", lease("n", "kube-node-lease"), ""),
            (
                "coordination.k8s.io",
                "leases",
                lease("n", "default"),
                "can only access leases in the \"kube-node-lease\" system namespace",
            ),
            (
                "coordination.k8s.io",
                "leases",
                lease("m", "kube-node-lease"),
                "can only access node lease with the same name as the requesting node",
            ),
            (
                "storage.k8s.io",
                "csinodes",
                json!({"metadata": {"name": "m"}}),
                "can only access CSINode with the same name as the requesting node",
            ),
            ("resource.k8s.io", "resourceslices", slice("n"), ""),
            (
                "resource.k8s.io",
                "resourceslices",
                slice("m"),
                "can only create ResourceSlice with the same NodeName as the requesting node",
            ),
            ("", "persistentvolumeclaims", json!({"metadata": {"name": "c"}}), "may only update PVC status"),
        ] {
            let outcome =
                as_node(Request::create(group, plural, object.clone())).admit(&NodeRestriction, &cluster()).await;
            let said = outcome.err().unwrap_or_default();
            let why = said.split_once(" is forbidden: ").map_or(said.as_str(), |(_, why)| why);
            assert_eq!(why, expected, "{object}");
        }
    }

    #[tokio::test]
    async fn pods_of_others() {
        for (subresource, operation, node, expected) in [
            (
                "status",
                Operation::Update,
                "m",
                "pods \"p\" is forbidden: node \"n\" can only update pod status for pods with spec.nodeName set to itself",
            ),
            ("status", Operation::Update, "n", ""),
            ("status", Operation::Delete, "n", "pods \"p\" is forbidden: unexpected operation \"DELETE\""),
            (
                "",
                Operation::Update,
                "n",
                "pods \"p\" is forbidden: unexpected operation \"UPDATE\", node \"n\" can only create and delete mirror pods",
            ),
            (
                "",
                Operation::Delete,
                "m",
                "pods \"p\" is forbidden: node \"n\" can only delete pods with spec.nodeName set to itself",
            ),
            (
                "resize",
                Operation::Update,
                "n",
                "pods \"p\" is forbidden: unexpected pod subresource \"resize\", only 'status' and 'eviction' are allowed",
            ),
            ("exec", Operation::Connect, "m", ""),
        ] {
            let mut request = as_node(Request::new("", "pods", operation, pod(json!({"spec.nodeName": node}))));
            request.subresource = subresource;
            request.old = Some(request.object.clone());
            let said = request.admit(&NodeRestriction, &cluster()).await.err().unwrap_or_default();
            assert_eq!(said, expected);
        }
        for (name, expected) in [
            ("mine", ""),
            ("other", "pods \"other\" is forbidden: node n can only evict pods with spec.nodeName set to itself"),
            ("gone", "pods \"gone\" not found"),
        ] {
            let eviction = json!({"metadata": {"name": name, "namespace": "ns"}});
            let mut request = as_node(Request::create("", "pods", eviction));
            request.subresource = "eviction";
            assert_eq!(request.admit(&NodeRestriction, &cluster()).await.err().unwrap_or_default(), expected);
        }
    }

    #[tokio::test]
    async fn tokens_are_for_pods_here() {
        for (bound, expected) in [
            (json!({"apiVersion": "v1", "kind": "Pod", "name": "mine", "uid": "pu"}), ""),
            (json!(null), "node requested token not bound to a pod"),
            (
                json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}),
                "node requested token not bound to a pod",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "name": "mine"}),
                "node requested token with a pod binding without a uid",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "name": "mine", "uid": "x"}),
                "the UID in the bound object reference (x) does not match the UID in record. The object might have been deleted and then recreated",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "name": "other", "uid": "pu"}),
                "node requested token bound to a pod scheduled on a different node",
            ),
            (json!({"apiVersion": "v1", "kind": "Pod", "name": "gone", "uid": "pu"}), "pods \"gone\" not found"),
        ] {
            let object = json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": {"boundObjectRef": bound}});
            let mut request = as_node(Request::create("", "serviceaccounts", object));
            request.subresource = "token";
            let said = request.admit(&NodeRestriction, &cluster()).await.err().unwrap_or_default();
            let why = said.split_once(" is forbidden: ").map_or(said.as_str(), |(_, why)| why);
            assert_eq!(why, expected, "{bound}");
        }
    }

    #[tokio::test]
    async fn updates() {
        let node = json!({"metadata": {"name": "n", "labels": {"a": "b"}}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
        let claim = json!({"metadata": {"name": "c", "labels": {"a": "b"}}, "spec": {}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        for (plural, old, path, value, expected) in [
            ("nodes", &node, "metadata.labels.a", json!("c"), ""),
            (
                "nodes",
                &node,
                "spec.taints",
                json!([]),
                "nodes \"n\" is forbidden: node \"n\" is not allowed to modify taints",
            ),
            (
                "nodes",
                &node,
                "metadata.ownerReferences",
                json!([{"name": "x"}]),
                "nodes \"n\" is forbidden: node \"n\" is not allowed to modify ownerReferences",
            ),
            (
                "nodes",
                &node,
                "metadata.labels",
                json!({"a": "b", "k8s.io/x": "", "sub.node-restriction.kubernetes.io/y": ""}),
                "nodes \"n\" is forbidden: is not allowed to modify labels: k8s.io/x, sub.node-restriction.kubernetes.io/y",
            ),
            ("persistentvolumeclaims", &claim, "status.capacity.storage", json!("2Gi"), ""),
            ("persistentvolumeclaims", &claim, "status.allocatedResources", json!({"storage": "2Gi"}), ""),
            (
                "persistentvolumeclaims",
                &claim,
                "status.phase",
                json!("Lost"),
                "persistentvolumeclaims \"c\" is forbidden: node \"n\" is not allowed to update fields other than status.quantity and status.conditions: @@",
            ),
            (
                "persistentvolumeclaims",
                &claim,
                "metadata.labels.a",
                json!("c"),
                "persistentvolumeclaims \"c\" is forbidden: node \"n\" is not allowed to update fields other than status.quantity and status.conditions: @@",
            ),
        ] {
            let mut request = as_node(Request::new("", plural, Operation::Update, old.clone()));
            request.subresource = if plural == "nodes" { "" } else { "status" };
            request.old = Some(old.clone());
            crate::kinds::value::set(&mut request.object, path, value);
            let said = request.admit(&NodeRestriction, &cluster()).await.err().unwrap_or_default();
            assert_eq!(said.split(" -").next(), Some(expected), "{path}");
        }
    }

    #[tokio::test]
    async fn certificates_in_the_nodes_name() {
        use base64::Engine;
        let request = base64::prelude::BASE64_STANDARD.encode(crate::kinds::certificates::made::request());
        for (signer, expected) in [
            (
                "kubernetes.io/kubelet-serving",
                "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: can only create a node CSR with CN=system:node:n",
            ),
            ("kubernetes.io/kube-apiserver-client", ""),
        ] {
            let object = json!({"metadata": {"name": "r"}, "spec": {"signerName": signer, "request": request}});
            let outcome = as_node(Request::create("certificates.k8s.io", "certificatesigningrequests", object));
            let said = { outcome }.admit(&NodeRestriction, &cluster()).await.err().unwrap_or_default();
            assert_eq!(said, expected);
        }
    }

    #[tokio::test]
    async fn a_name_is_needed() {
        for (user, groups, expected) in [
            (
                "system:node:",
                &["system:nodes"][..],
                "pods \"p\" is forbidden: could not determine node from user \"system:node:\"",
            ),
            ("jane", &["system:nodes"][..], ""),
            ("system:node:n", &[][..], ""),
        ] {
            let mut request = Request::create("", "pods", json!({"metadata": {"name": "p"}}));
            request.user = UserInfo::new(user, groups);
            let said = request.admit(&NodeRestriction, &cluster()).await.err().unwrap_or_default();
            assert_eq!(said, expected);
        }
    }
}
