//! The node authorizer: a node may read what its own pods refer to, and act on its own objects.
//!
//! [`rule`] says what a request needs: nothing, a relation between node and object ([`related`]), or
//! what it can never have. Everything else in the `system:node` role is allowed to every node.

mod related;

use std::sync::LazyLock;

use api::selector::Selector;

use super::Request;
use super::rbac::Rule;
use crate::server::Api;

static NODE_RULES: LazyLock<Vec<Rule>> = LazyLock::new(crate::bootstrap::node_rules);

/// What a request of a node needs to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// The named object and the node have to do with each other.
    Relation,
    /// It is not allowed, for a reason that may be empty.
    Never(String),
}

/// Whether `node` may; `Err` says why not.
pub async fn decide(api: &Api, node: &str, request: &Request<'_>) -> Result<(), String> {
    match rule(node, request) {
        Needs::Nothing => Ok(()),
        Needs::Never(reason) => Err(reason),
        Needs::Relation if request.name.is_empty() => Err("No Object name found".to_owned()),
        Needs::Relation if related::to_node(api, node, request).await => Ok(()),
        Needs::Relation => Err(format!("no relationship found between node '{node}' and this object")),
    }
}

fn never(reason: &str) -> Needs {
    Needs::Never(reason.to_owned())
}

/// Pure.
fn rule(node: &str, request: &Request<'_>) -> Needs {
    if node.is_empty() {
        return Needs::Never(format!("unknown node for user {:?}", format!("system:node:{node}")));
    }
    let status = request.subresource == "status";
    match (request.group, request.resource) {
        ("", "secrets" | "configmaps") => reads(request),
        ("", "persistentvolumeclaims") if status => updates_status(request),
        ("", "persistentvolumeclaims" | "persistentvolumes")
        | ("resource.k8s.io", "resourceclaims")
        | ("storage.k8s.io", "volumeattachments") => gets(request),
        ("", "serviceaccounts") => account(request),
        ("coordination.k8s.io", "leases") => own_lease(node, request),
        ("storage.k8s.io", "csinodes") => own_csi_node(node, request),
        ("resource.k8s.io", "resourceslices") => slices(node, request),
        ("certificates.k8s.io", "podcertificaterequests") => pod_certificates(node, request),
        ("", "nodes") => nodes(node, request),
        ("", "pods") => pods(node, request),
        _ if NODE_RULES.iter().any(|rule| rule.allows(request)) => Needs::Nothing,
        _ => never(""),
    }
}

fn reads(request: &Request<'_>) -> Needs {
    if !matches!(request.verb, "get" | "list" | "watch") {
        never("can only read resources of this type")
    } else if !request.subresource.is_empty() {
        never("cannot read subresource")
    } else if request.namespace.is_empty() {
        never("can only read namespaced object of this type")
    } else {
        Needs::Relation
    }
}

fn gets(request: &Request<'_>) -> Needs {
    if request.verb != "get" {
        never("can only get individual resources of this type")
    } else if !request.subresource.is_empty() {
        never("cannot get subresource")
    } else {
        Needs::Relation
    }
}

fn updates_status(request: &Request<'_>) -> Needs {
    match request.verb {
        "update" | "patch" => Needs::Relation,
        _ => never("can only get/update/patch this type"),
    }
}

fn account(request: &Request<'_>) -> Needs {
    if request.verb == "get" && request.subresource.is_empty() {
        reads(request)
    } else if request.verb != "create" || request.name.is_empty() {
        never("can only create tokens for individual service accounts")
    } else if request.subresource != "token" {
        never("can only create token subresource of serviceaccount")
    } else {
        Needs::Relation
    }
}

/// At create the name is not known yet: admission looks at it.
fn is_others(node: &str, request: &Request<'_>) -> bool {
    request.verb != "create" && request.name != node
}

fn own_lease(node: &str, request: &Request<'_>) -> Needs {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        never("can only get, create, update, patch, or delete a node lease")
    } else if request.namespace != "kube-node-lease" {
        never("can only access leases in the \"kube-node-lease\" system namespace")
    } else if is_others(node, request) {
        never("can only access node lease with the same name as the requesting node")
    } else {
        Needs::Nothing
    }
}

fn own_csi_node(node: &str, request: &Request<'_>) -> Needs {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        never("can only get, create, update, patch, or delete a CSINode")
    } else if !request.subresource.is_empty() {
        never("cannot authorize CSINode subresources")
    } else if is_others(node, request) {
        never("can only access CSINode with the same name as the requesting node")
    } else {
        Needs::Nothing
    }
}

/// Whether the request's field selector leaves only what is on the node.
fn only_on(node: &str, request: &Request<'_>) -> bool {
    Selector::parse_fields(request.field_selector).is_ok_and(|fields| fields.exact("spec.nodeName") == Some(node))
}

fn slices(node: &str, request: &Request<'_>) -> Needs {
    match request.verb {
        _ if !request.subresource.is_empty() => never("cannot authorize ResourceSlice subresources"),
        "create" => Needs::Nothing,
        "get" | "update" | "patch" | "delete" => Needs::Relation,
        "watch" | "list" | "deletecollection" if only_on(node, request) => Needs::Nothing,
        "watch" | "list" | "deletecollection" => {
            never("can only list/watch/deletecollection resourceslices with nodeName field selector")
        }
        _ => never(
            "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
        ),
    }
}

fn pod_certificates(node: &str, request: &Request<'_>) -> Needs {
    match request.verb {
        _ if !request.subresource.is_empty() => {
            never("nodes may not access the status subresource of PodCertificateRequests")
        }
        "create" => Needs::Nothing,
        "get" => Needs::Relation,
        "list" | "watch" if only_on(node, request) => Needs::Nothing,
        "list" | "watch" => never("can only list/watch podcertificaterequests with nodeName field selector"),
        _ => never(""),
    }
}

fn nodes(node: &str, request: &Request<'_>) -> Needs {
    match (request.subresource, request.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Needs::Nothing,
        ("", "get" | "list" | "watch") if request.name == node => Needs::Nothing,
        ("", "get" | "list" | "watch") if request.name.is_empty() => {
            Needs::Never(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            Needs::Never(format!("node '{node}' cannot read '{}', only its own Node object", request.name))
        }
        _ => never(""),
    }
}

/// Writes are looked at by admission.
fn pods(node: &str, request: &Request<'_>) -> Needs {
    match (request.subresource, request.verb) {
        ("", "get") => Needs::Relation,
        ("", "list" | "watch") if only_on(node, request) => Needs::Nothing,
        ("", "list" | "watch") if !request.name.is_empty() => Needs::Relation,
        ("", "list" | "watch") => never("can only list/watch pods with spec.nodeName field selector"),
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Needs::Nothing,
        _ => never(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `VERB GROUP/RESOURCE[/SUBRESOURCE] NAMESPACE NAME [FIELD SELECTOR]`, `-` for nothing.
    fn needs(text: &str) -> Needs {
        let words: Vec<&str> = text.split(' ').map(|word| if word == "-" { "" } else { word }).collect();
        let mut path = words[1].splitn(3, '/');
        let (group, resource) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
        let request = Request {
            verb: words[0],
            group,
            resource,
            subresource: path.next().unwrap_or_default(),
            namespace: words[2],
            name: words[3],
            field_selector: words.get(4).copied().unwrap_or_default(),
            ..Request::default()
        };
        rule("n", &request)
    }

    #[test]
    fn allowed_whatever_there_is() {
        for request in [
            "create coordination.k8s.io/leases kube-node-lease -",
            "patch coordination.k8s.io/leases kube-node-lease n",
            "update storage.k8s.io/csinodes - n",
            "create resource.k8s.io/resourceslices - -",
            "deletecollection resource.k8s.io/resourceslices - - spec.nodeName=n",
            "create certificates.k8s.io/podcertificaterequests ns -",
            "watch certificates.k8s.io/podcertificaterequests - - spec.nodeName=n",
            "watch /nodes - n",
            "patch /nodes/status - n",
            "list /pods - - spec.nodeName=n",
            "delete /pods ns p",
            "create /pods/eviction ns p",
            "create /events ns -",
            "list /services - -",
            "watch node.k8s.io/runtimeclasses - -",
            "create authentication.k8s.io/tokenreviews - -",
        ] {
            assert_eq!(needs(request), Needs::Nothing, "{request}");
        }
    }

    #[test]
    fn allowed_for_what_runs_there() {
        for request in [
            "get /secrets ns s",
            "watch /configmaps ns c",
            "get /persistentvolumeclaims ns c",
            "patch /persistentvolumeclaims/status ns c",
            "get /persistentvolumes - v",
            "get resource.k8s.io/resourceclaims ns c",
            "get storage.k8s.io/volumeattachments - a",
            "get /serviceaccounts ns s",
            "create /serviceaccounts/token ns s",
            "update resource.k8s.io/resourceslices - s",
            "get certificates.k8s.io/podcertificaterequests ns r",
            "get /pods ns p",
            "watch /pods ns p",
        ] {
            assert_eq!(needs(request), Needs::Relation, "{request}");
        }
    }

    #[test]
    fn refused_with_a_reason() {
        for (request, reason) in [
            ("update /secrets ns s", "can only read resources of this type"),
            ("get /secrets/x ns s", "cannot read subresource"),
            ("list /configmaps - -", "can only read namespaced object of this type"),
            ("list /persistentvolumes - -", "can only get individual resources of this type"),
            ("get /persistentvolumeclaims/x ns c", "cannot get subresource"),
            ("get /persistentvolumeclaims/status ns c", "can only get/update/patch this type"),
            ("list /serviceaccounts ns -", "can only create tokens for individual service accounts"),
            ("create /serviceaccounts ns s", "can only create token subresource of serviceaccount"),
            (
                "list coordination.k8s.io/leases kube-node-lease -",
                "can only get, create, update, patch, or delete a node lease",
            ),
            (
                "get coordination.k8s.io/leases ns n",
                "can only access leases in the \"kube-node-lease\" system namespace",
            ),
            (
                "get coordination.k8s.io/leases kube-node-lease m",
                "can only access node lease with the same name as the requesting node",
            ),
            ("list storage.k8s.io/csinodes - -", "can only get, create, update, patch, or delete a CSINode"),
            ("get storage.k8s.io/csinodes - m", "can only access CSINode with the same name as the requesting node"),
            (
                "list resource.k8s.io/resourceslices - - spec.nodeName=m",
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            ("list /nodes - -", "node 'n' cannot read all nodes, only its own Node object"),
            ("get /nodes - m", "node 'n' cannot read 'm', only its own Node object"),
            ("list /pods - - spec.nodeName!=n", "can only list/watch pods with spec.nodeName field selector"),
            ("delete /nodes - n", ""),
            ("create /pods/exec ns p", ""),
            ("list /namespaces - -", ""),
        ] {
            assert_eq!(needs(request), Needs::Never(reason.to_owned()), "{request}");
        }
    }
}
