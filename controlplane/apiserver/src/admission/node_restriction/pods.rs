//! What a node may do with pods: make mirrors of its own static pods, and look after those that run
//! on it.

use std::sync::Arc;

use serde_json::Value;

use super::{ApiError, Attributes, Cluster, Operation, Refusal, Result, is_mirror, target};
use crate::admission::MIRROR_ANNOTATION;
use crate::kinds::value::{flag, list, same_at, text};

/// A pod of the request's namespace, else 404. The cache may not know of a new one yet.
pub async fn existing(attributes: &Attributes<'_>, name: &str, cluster: &dyn Cluster) -> Result<Arc<Value>> {
    let pod = match cluster.get("", "pods", attributes.namespace, name).await? {
        Some(pod) => Some(pod),
        None => cluster.get_live("", "pods", attributes.namespace, name).await?,
    };
    pod.ok_or_else(|| ApiError::not_found("", "pods", name))
}

pub async fn object(attributes: &Attributes<'_>, node: &str, cluster: &dyn Cluster) -> Result<Refusal> {
    Ok(match attributes.operation {
        Operation::Create => mirror(&attributes.object, node, cluster).await?,
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

async fn mirror(pod: &Value, node: &str, cluster: &dyn Cluster) -> Result<Refusal> {
    if !is_mirror(pod) {
        return Ok(Some(format!(
            "pod does not have \"{MIRROR_ANNOTATION}\" annotation, node \"{node}\" can only create mirror pods"
        )));
    }
    if text(pod, "spec.nodeName") != node {
        return Ok(Some(format!("node \"{node}\" can only create pods with spec.nodeName set to itself")));
    }
    if let Some(why) = owner(list(pod, "metadata.ownerReferences"), node, cluster).await? {
        return Ok(Some(why));
    }
    let referenced = api::references::of_pod(pod);
    Ok(referenced.map(|what| format!("node \"{node}\" can not create pods that reference {what:?}")))
}

/// A mirror is controlled by its Node, and by that alone.
async fn owner(owners: &[Value], node: &str, cluster: &dyn Cluster) -> Result<Refusal> {
    let only = |what: &str| Ok(Some(format!("node \"{node}\" can only create pods with {what} set to itself")));
    let owner = match owners {
        [] => return only("an owner reference"),
        [owner] => owner,
        _ => return only("a single owner reference"),
    };
    if text(owner, "apiVersion") != "v1" || text(owner, "kind") != "Node" || text(owner, "name") != node {
        return only("an owner reference");
    }
    if !flag(owner, "controller") {
        return only("a controller owner reference");
    }
    if flag(owner, "blockOwnerDeletion") {
        return Ok(Some(format!("node \"{node}\" must not set blockOwnerDeletion on an owner reference")));
    }
    let Some(stored) = cluster.get("", "nodes", "", node).await? else {
        return Err(ApiError::not_found("", "nodes", node));
    };
    let (given, actual) = (text(owner, "uid"), text(&stored, "metadata.uid"));
    Ok((given != actual).then(|| format!("node {node} UID mismatch: expected {given} got {actual}")))
}

pub fn status(attributes: &Attributes<'_>, node: &str) -> Refusal {
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
    // Kubernetes' own spelling.
    (!same_at(old, &attributes.object, "status.resourceClaimStatuses"))
        .then(|| format!("node \"{node}\" cannot update resource claim statues"))
}

pub async fn eviction(attributes: &Attributes<'_>, node: &str, cluster: &dyn Cluster) -> Result<Refusal> {
    if attributes.operation != Operation::Create {
        return Ok(Some(format!("unexpected operation {}", attributes.operation.name())));
    }
    let pod = existing(attributes, target(attributes), cluster).await?;
    Ok((text(&pod, "spec.nodeName") != node)
        .then(|| format!("node {node} can only evict pods with spec.nodeName set to itself")))
}
