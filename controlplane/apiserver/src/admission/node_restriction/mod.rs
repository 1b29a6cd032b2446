//! `NodeRestriction`: a node may only write its own Node, its own pods' status and what belongs to
//! them. [`pods`] holds the rules of mirror pods, [`certificates`] those of requests for certificates,
//! [`audiences`] whom tokens may be for.

mod audiences;
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

    /// Tokens are judged as they were asked for, before an audience is filled in.
    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let node = attributes.user.as_node().filter(|node| !node.is_empty());
        let Some(node) = node.filter(|_| attributes.is("", "serviceaccounts") && attributes.subresource == "token")
        else {
            return Ok(());
        };
        token(attributes, node, cluster).await?.map_or(Ok(()), |why| Err(attributes.forbid(why)))
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
        audiences::problem(attributes, &pod, cluster).await?
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
mod tests;
