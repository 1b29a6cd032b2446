//! `NodeRestriction`: a node may only write its own Node, its own pods' status and what belongs to
//! them.

use async_trait::async_trait;
use serde_json::Value;

use super::{MIRROR_ANNOTATION, is_mirror};
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::value::{at, entries, has, list, map, name, same_at, text};

pub struct NodeRestriction;

#[async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.user.in_group("system:nodes")
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let Some(node) = attributes.user.as_node() else {
            return Err(attributes.forbid(format!("could not determine node from user \"{}\"", attributes.user.name)));
        };
        let refusal = if attributes.is("", "pods") {
            match attributes.subresource {
                "" => pod(attributes, node, cluster).await?,
                "status" => pod_status(attributes, node),
                "eviction" => eviction(attributes, node, cluster).await?,
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
        } else if attributes.is("", "persistentvolumeclaims") && attributes.subresource == "status" {
            claim_status(attributes, node)
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

async fn pod(attributes: &Attributes<'_>, node: &str, cluster: &dyn Cluster) -> Result<Option<String>> {
    Ok(match attributes.operation {
        Operation::Create => mirror_pod(&attributes.object, node, cluster).await?,
        Operation::Delete => match attributes.old {
            Some(old) if text(old, "spec.nodeName") != node => {
                Some(format!("node \"{node}\" can only delete pods with spec.nodeName set to itself"))
            }
            _ => None,
        },
        _ => Some(format!(
            "unexpected operation \"{}\", node \"{node}\" can only create and delete mirror pods",
            attributes.operation.name()
        )),
    })
}

async fn mirror_pod(pod: &Value, node: &str, cluster: &dyn Cluster) -> Result<Option<String>> {
    if !is_mirror(pod) {
        return Ok(Some(format!(
            "pod does not have \"{MIRROR_ANNOTATION}\" annotation, node \"{node}\" can only create mirror pods"
        )));
    }
    if text(pod, "spec.nodeName") != node {
        return Ok(Some(format!("node \"{node}\" can only create pods with spec.nodeName set to itself")));
    }
    let owners = list(pod, "metadata.ownerReferences");
    if owners.len() > 1 {
        return Ok(Some(format!("node \"{node}\" can only create pods with a single owner reference set to itself")));
    }
    if let Some(owner) = owners.first() {
        let own = text(owner, "apiVersion") == "v1" && text(owner, "kind") == "Node" && text(owner, "name") == node;
        let stored = cluster.get("", "nodes", "", node).await?;
        let same_uid = stored.is_none_or(|stored| text(&stored, "metadata.uid") == text(owner, "uid"));
        if !own
            || !same_uid
            || owner["controller"] != Value::Bool(true)
            || owner["blockOwnerDeletion"] == Value::Bool(true)
        {
            return Ok(Some(format!("node \"{node}\" can only create pods with an owner reference set to itself")));
        }
    }
    if !text(pod, "spec.serviceAccountName").is_empty() {
        return Ok(Some(format!("node \"{node}\" can not create pods that reference a service account")));
    }
    for volume in list(pod, "spec.volumes") {
        for (kind, words) in
            [("secret", "secrets"), ("configMap", "configmaps"), ("persistentVolumeClaim", "persistentvolumeclaims")]
        {
            if has(volume, kind) {
                return Ok(Some(format!("node \"{node}\" can not create pods that reference {words}")));
            }
        }
    }
    Ok(None)
}

fn pod_status(attributes: &Attributes<'_>, node: &str) -> Option<String> {
    if attributes.operation != Operation::Update {
        return Some(format!("unexpected operation \"{}\"", attributes.operation.name()));
    }
    let old = attributes.old?;
    if text(old, "spec.nodeName") != node {
        return Some(format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"));
    }
    if !same_at(old, &attributes.object, "metadata.labels") {
        return Some(format!("node \"{node}\" cannot update labels through pod status"));
    }
    if !same_at(old, &attributes.object, "status.resourceClaimStatuses") {
        return Some(format!("node \"{node}\" cannot update resource claim statuses"));
    }
    None
}

async fn eviction(attributes: &Attributes<'_>, node: &str, cluster: &dyn Cluster) -> Result<Option<String>> {
    let pod = cluster.get("", "pods", attributes.namespace, target(attributes)).await?;
    Ok(match pod {
        Some(pod) if text(&pod, "spec.nodeName") != node => {
            Some(format!("node \"{node}\" can only evict pods with spec.nodeName set to itself"))
        }
        _ => None,
    })
}

fn node_object(attributes: &Attributes<'_>, node: &str) -> Option<String> {
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

async fn token(attributes: &Attributes<'_>, node: &str, cluster: &dyn Cluster) -> Result<Option<String>> {
    let bound = at(&attributes.object, "spec.boundObjectRef");
    if text(bound, "apiVersion") != "v1" || text(bound, "kind") != "Pod" || text(bound, "name").is_empty() {
        return Ok(Some("node requested token not bound to a pod".to_owned()));
    }
    let (pod_name, uid) = (text(bound, "name"), text(bound, "uid"));
    if uid.is_empty() {
        return Ok(Some("node requested token with a pod binding without a uid".to_owned()));
    }
    let pod = match cluster.get("", "pods", attributes.namespace, pod_name).await? {
        Some(pod) => Some(pod),
        None => cluster.get_live("", "pods", attributes.namespace, pod_name).await?,
    };
    Ok(match pod {
        None => Some(format!("pod \"{pod_name}\" not found")),
        Some(pod) if text(&pod, "metadata.uid") != uid => Some(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        )),
        Some(pod) if text(&pod, "spec.nodeName") != node => {
            Some("node requested token bound to a pod scheduled on a different node".to_owned())
        }
        Some(_) => None,
    })
}

fn lease(attributes: &Attributes<'_>, node: &str) -> Option<String> {
    if attributes.namespace != "kube-node-lease" {
        return Some("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
    }
    (target(attributes) != node)
        .then(|| "can only access node lease with the same name as the requesting node".to_owned())
}

fn csi_node(attributes: &Attributes<'_>, node: &str) -> Option<String> {
    (target(attributes) != node).then(|| "can only access CSINode with the same name as the requesting node".to_owned())
}

fn slice(attributes: &Attributes<'_>, node: &str) -> Option<String> {
    let object = if attributes.operation == Operation::Delete { attributes.old? } else { &attributes.object };
    let owner = text(object, "spec.nodeName");
    (owner != node).then(|| "can only access ResourceSlices with the same NodeName as the requesting node".to_owned())
}

/// Of a claim's status a node may only change what resizing needs.
fn claim_status(attributes: &Attributes<'_>, node: &str) -> Option<String> {
    let old = attributes.old?;
    if attributes.operation != Operation::Update {
        return Some(format!("unexpected operation \"{}\"", attributes.operation.name()));
    }
    (!same_at(old, &attributes.object, "spec") || !same_at(old, &attributes.object, "status.phase")).then(|| {
        format!("node \"{node}\" is not allowed to update fields other than status.quantity and status.conditions")
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

    #[tokio::test]
    async fn own_things_only() {
        let cluster = Fixed::default();
        let mirror = json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "n"}});
        for (request, expected) in [
            (Request::create("", "pods", mirror.clone()), None),
            (Request::create("", "pods", json!({"metadata": {"name": "p"}})), Some("can only create mirror pods")),
            (
                Request::create("", "nodes", json!({"metadata": {"name": "m"}})),
                Some("node \"n\" is not allowed to modify node \"m\""),
            ),
            (
                Request::create(
                    "",
                    "nodes",
                    json!({"metadata": {"name": "n", "labels": {"kubernetes.io/os": "linux", "a": "b"}}}),
                ),
                None,
            ),
            (
                Request::create(
                    "",
                    "nodes",
                    json!({"metadata": {"name": "n", "labels": {"node-restriction.kubernetes.io/a": ""}}}),
                ),
                Some("is not allowed to set the following labels: node-restriction.kubernetes.io/a"),
            ),
            (
                Request::create(
                    "coordination.k8s.io",
                    "leases",
                    json!({"metadata": {"name": "n", "namespace": "kube-node-lease"}}),
                ),
                None,
            ),
            (
                Request::create(
                    "coordination.k8s.io",
                    "leases",
                    json!({"metadata": {"name": "m", "namespace": "kube-node-lease"}}),
                ),
                Some("can only access node lease"),
            ),
        ] {
            let outcome = as_node(request).admit(&NodeRestriction, &cluster).await;
            match expected {
                None => assert_eq!(outcome, Ok(())),
                Some(words) => assert!(outcome.clone().unwrap_err().contains(words), "{outcome:?}"),
            }
        }
    }

    #[tokio::test]
    async fn status_of_own_pods() {
        let mut request = as_node(Request::new(
            "",
            "pods",
            Operation::Update,
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "other"}}),
        ));
        request.subresource = "status";
        request.old = Some(request.object.clone());
        assert!(request.admit(&NodeRestriction, &Fixed::default()).await.is_err());
        request.old = Some(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}}));
        assert_eq!(request.admit(&NodeRestriction, &Fixed::default()).await, Ok(()));
    }
}
