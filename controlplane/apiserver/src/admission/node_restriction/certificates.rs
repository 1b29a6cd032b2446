//! Certificates that a node may ask for: its own, and those of the pods that run on it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::{Attributes, Cluster, Operation, Refusal, Result, is_mirror, target};
use crate::admit::Access;
use crate::kinds::certificates::pem;
use crate::kinds::value::{at, has, list, text};

const NODE_SIGNERS: [&str; 2] = ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];

/// Lets a node ask signers that no volume of the pod names; the signer is the resource.
const SIGNER_VERB: &str = "request-podcertificate-signer";

/// A request to the signers of nodes must be in the node's own name; the rest the signer checks.
pub fn signing_request(attributes: &Attributes<'_>, node: &str) -> Refusal {
    let spec = at(&attributes.object, "spec");
    if attributes.operation != Operation::Create || !NODE_SIGNERS.contains(&text(spec, "signerName")) {
        return None;
    }
    let wanted = format!("system:node:{node}");
    let bytes = BASE64_STANDARD.decode(text(spec, "request")).unwrap_or_default();
    match pem::common_name(&bytes) {
        Err(why) => Some(format!("unable to parse csr: {why}")),
        Ok(name) if name != wanted => Some(format!("can only create a node CSR with CN={wanted}")),
        Ok(_) => None,
    }
}

/// A pod's certificate is asked for by the node that runs it, naming everything as it is now.
pub async fn pod_request(attributes: &Attributes<'_>, node: &str, cluster: &dyn Cluster) -> Result<Refusal> {
    if attributes.operation != Operation::Create {
        return Ok(Some(format!("unexpected operation {}", attributes.operation.name())));
    }
    if !attributes.subresource.is_empty() {
        return Ok(Some(format!("unexpected subresource {}", attributes.subresource)));
    }
    let spec = at(&attributes.object, "spec");
    let names = [text(spec, "nodeName"), text(spec, "podName"), text(spec, "serviceAccountName")];
    if names[0] != node {
        return Ok(Some(format!(
            "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
            names[0]
        )));
    }
    let found = [
        cluster.get("", "nodes", "", node).await?,
        cluster.get("", "pods", attributes.namespace, names[1]).await?,
        cluster.get("", "serviceaccounts", attributes.namespace, names[2]).await?,
    ];
    let found = found.each_ref().map(Option::as_deref);
    if let Some(why) = pod_request_problem(spec, attributes.namespace, node, found) {
        return Ok(Some(why));
    }
    let signer = text(spec, "signerName");
    if found[1].is_some_and(|pod| projects(pod, signer)) {
        return Ok(None);
    }
    let (namespace, name) = (attributes.namespace, target(attributes));
    let right = Access { verb: SIGNER_VERB, resource: signer, namespace, name, ..Access::default() };
    if !signer.is_empty() && cluster.allowed(attributes.user, right).await {
        return Ok(None);
    }
    let who = &attributes.user.name;
    Ok(Some(format!(
        "signer {signer:?} not found in pod spec volume, {who} is not authorized to request certificates from this signer"
    )))
}

/// Whether a volume of the pod holds a certificate of this signer.
fn projects(pod: &Value, signer: &str) -> bool {
    let sources = list(pod, "spec.volumes").iter().flat_map(|volume| list(volume, "projected.sources"));
    sources
        .filter(|source| has(source, "podCertificate"))
        .any(|source| text(source, "podCertificate.signerName") == signer)
}

/// Pure; `found`: the node, the pod and the account of those names.
fn pod_request_problem(spec: &Value, namespace: &str, node: &str, found: [Option<&Value>; 3]) -> Refusal {
    let of = |name: &str| format!("\"{namespace}/{name}\"");
    let (pod_name, account_name) = (text(spec, "podName"), text(spec, "serviceAccountName"));
    let request = format!("PodCertificateRequest for pod {}", of(pod_name));
    let missing = |what: &str, shown: &str, kind: &str, name: &str| {
        Some(format!("while retrieving {what} {shown} named in the PodCertificateRequest: {kind} {name:?} not found"))
    };
    let uid = |object: &'_ Value| text(object, "metadata.uid").to_owned();
    let Some(stored) = found[0] else { return missing("node", &format!("{node:?}"), "node", node) };
    if uid(stored) != text(spec, "nodeUID") {
        let (given, actual) = (text(spec, "nodeUID"), uid(stored));
        return Some(format!("{request} names node UID {given:?}, inconsistent with the running node ({actual:?})"));
    }
    let Some(pod) = found[1] else { return missing("pod", &of(pod_name), "pod", pod_name) };
    if uid(pod) != text(spec, "podUID") {
        let (given, actual) = (text(spec, "podUID"), uid(pod));
        return Some(format!("{request} contains pod UID ({given:?}) which differs from running pod {actual:?}"));
    }
    if text(pod, "spec.nodeName") != node {
        return Some(format!(
            "pod {} is not running on node {node:?} named in the PodCertificateRequest",
            of(pod_name)
        ));
    }
    if is_mirror(pod) {
        return Some(format!("pod {} is a mirror pod", of(pod_name)));
    }
    let running = text(pod, "spec.serviceAccountName");
    if running != account_name {
        return Some(format!(
            "{request} contains serviceAccountName ({account_name:?}) that differs from running pod ({running:?})"
        ));
    }
    let Some(account) = found[2] else {
        return missing("service account", &of(account_name), "serviceaccount", account_name);
    };
    let (given, actual) = (text(spec, "serviceAccountUID"), uid(account));
    (given != actual).then(|| {
        format!(
            "{request} names service account UID {given:?}, which differs from the running service account ({actual:?})"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn signers_are_those_of_the_pods_volumes() {
        let source = json!({"podCertificate": {"signerName": "example.com/a"}});
        let pod =
            json!({"spec": {"volumes": [{"emptyDir": {}}, {"projected": {"sources": [{"secret": {}}, source]}}]}});
        assert!(projects(&pod, "example.com/a"));
        assert!(!projects(&pod, "example.com/b") && !projects(&pod, ""));
    }

    #[test]
    fn pod_certificates_are_for_pods_as_they_run() {
        let spec = json!({"nodeName": "n", "nodeUID": "nu", "podName": "p", "podUID": "pu",
            "serviceAccountName": "s", "serviceAccountUID": "su"});
        let node = json!({"metadata": {"uid": "nu"}});
        let pod = json!({"metadata": {"uid": "pu"}, "spec": {"nodeName": "n", "serviceAccountName": "s"}});
        let account = json!({"metadata": {"uid": "su"}});
        let with = |path: &str, value: &str, object: &Value| {
            let mut object = object.clone();
            crate::kinds::value::set(&mut object, path, value);
            object
        };
        let mut mirror = pod.clone();
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        for (spec, pod, expected) in [
            (spec.clone(), Some(pod.clone()), ""),
            (
                with("nodeUID", "x", &spec),
                Some(pod.clone()),
                "PodCertificateRequest for pod \"ns/p\" names node UID \"x\", inconsistent with the running node (\"nu\")",
            ),
            (
                spec.clone(),
                None,
                "while retrieving pod \"ns/p\" named in the PodCertificateRequest: pod \"p\" not found",
            ),
            (
                with("podUID", "x", &spec),
                Some(pod.clone()),
                "PodCertificateRequest for pod \"ns/p\" contains pod UID (\"x\") which differs from running pod \"pu\"",
            ),
            (
                spec.clone(),
                Some(with("spec.nodeName", "m", &pod)),
                "pod \"ns/p\" is not running on node \"n\" named in the PodCertificateRequest",
            ),
            (spec.clone(), Some(mirror), "pod \"ns/p\" is a mirror pod"),
            (
                with("serviceAccountName", "x", &spec),
                Some(pod.clone()),
                "PodCertificateRequest for pod \"ns/p\" contains serviceAccountName (\"x\") that differs from running pod (\"s\")",
            ),
            (
                with("serviceAccountUID", "x", &spec),
                Some(pod.clone()),
                "PodCertificateRequest for pod \"ns/p\" names service account UID \"x\", which differs from the running service account (\"su\")",
            ),
        ] {
            let refusal = pod_request_problem(&spec, "ns", "n", [Some(&node), pod.as_ref(), Some(&account)]);
            assert_eq!(refusal.unwrap_or_default(), expected);
        }
    }
}
