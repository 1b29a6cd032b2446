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
            json!({"metadata": {"name": "mine", "namespace": "ns", "uid": "pu"}, "spec": {"nodeName": "n",
            "volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]}}),
        ),
        ("", "pods", json!({"metadata": {"name": "other", "namespace": "ns", "uid": "pu"}, "spec": {"nodeName": "m"}})),
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
        let outcome = as_node(Request::create(group, plural, object.clone())).admit(&NodeRestriction, &cluster()).await;
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
async fn tokens_are_for_whom_the_pod_names() {
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "mine", "uid": "pu"});
    let nowhere = "audience \"a\" not found in pod spec volume, system:node:n is not authorized to request tokens for this audience";
    for (audiences, allowed, expected) in [
        (json!([]), false, ""),
        (json!(["a"]), false, nowhere),
        (json!(["a"]), true, ""),
        (json!(["a", "b"]), true, "node may only request 0 or 1 audiences"),
    ] {
        let object = json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": {"boundObjectRef": bound, "audiences": audiences}});
        let mut request = as_node(Request::create("", "serviceaccounts", object));
        request.subresource = "token";
        let mut cluster = cluster();
        cluster.allows = allowed;
        let said = request.admit(&NodeRestriction, &cluster).await.err().unwrap_or_default();
        let why = said.split_once(" is forbidden: ").map_or(said.as_str(), |(_, why)| why);
        assert_eq!(why, expected, "{audiences}");
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
