//! Which ResourceClaims a pod and its containers name. Pure
//! (`k8s.io/dynamic-resource-allocation/resourceclaim`).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::ResourceClaim;

/// A claim of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The object's name; none where the pod turned out to need none.
    pub name: Result<Option<String>, String>,
    /// It was made for the pod, from a template.
    pub own: bool,
}

pub fn of_pod(pod: &Pod) -> Vec<Wanted> {
    let named = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let mut all: Vec<Wanted> = named.map(|claim| wanted(pod, claim)).collect();
    let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    all.extend(extended.map(|claim| Wanted { name: Ok(Some(claim.resource_claim_name.clone())), own: false }));
    all
}

fn wanted(pod: &Pod, claim: &PodResourceClaim) -> Wanted {
    if let Some(name) = &claim.resource_claim_name {
        return Wanted { name: Ok(Some(name.clone())), own: false };
    }
    let statuses = pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
    let made = statuses.into_iter().find(|status| status.name == claim.name);
    let missing = || {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let pod = format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name));
        format!("pod {pod:?}: pod claim {}: ResourceClaim not created yet", claim.name)
    };
    Wanted { name: made.map(|status| status.resource_claim_name.clone()).ok_or_else(missing), own: true }
}

/// Whether the pod may use the claim. Messages are Kubernetes'.
pub fn check(pod: &Pod, wanted: &Wanted, claim: &ResourceClaim) -> Result<(), String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (pod_name, pod_uid) = (text(&pod.metadata.name), text(&pod.metadata.uid));
    let name = text(&claim.metadata.name);
    let owners = claim.metadata.owner_references.iter().flatten();
    let is_owner = owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == pod_uid);
    if wanted.own && !is_owner {
        let namespace = text(&claim.metadata.namespace);
        let pod_namespace = text(&pod.metadata.namespace);
        return Err(format!(
            "ResourceClaim {namespace}/{name} was not created for pod {pod_namespace}/{pod_name} (pod is not owner)"
        ));
    }
    let users = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    if !users.into_iter().any(|user| user.uid == pod_uid) {
        let uid = text(&claim.metadata.uid);
        return Err(format!("pod {pod_name} ({pod_uid}) is not allowed to use ResourceClaim {name} ({uid})"));
    }
    Ok(())
}

/// The claims (by their objects' names) and requests that a container names; an empty request is all
/// of its claim.
pub fn of_container(pod: &Pod, container: &Container) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    let named = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let used = container.resources.iter().flat_map(|resources| resources.claims.iter().flatten()).collect::<Vec<_>>();
    for claim in named {
        let of_claim: Vec<_> = used.iter().filter(|used| used.name == claim.name).collect();
        if of_claim.is_empty() {
            continue;
        }
        let Some(name) = wanted(pod, claim).name? else { continue };
        found.extend(of_claim.iter().map(|used| (name.clone(), used.request.clone().unwrap_or_default())));
    }
    if let Some(extended) = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref()) {
        let mine = extended.request_mappings.iter().filter(|mapping| mapping.container_name == container.name);
        found.extend(mine.map(|mapping| (extended.resource_claim_name.clone(), mapping.request_name.clone())));
    }
    Ok(found)
}

/// What a container's claims are called in its status, each with its object's name and the request; an
/// empty request is all of its claim. Claims without an object are left out.
pub fn labels(pod: &Pod, container: &Container) -> Vec<(String, String, String)> {
    let named = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let objects: HashMap<&str, String> =
        named.filter_map(|claim| Some((claim.name.as_str(), wanted(pod, claim).name.ok()??))).collect();
    let used = container.resources.iter().flat_map(|resources| resources.claims.iter().flatten());
    let label = |used: &k8s_openapi::api::core::v1::ResourceClaim| {
        let object = objects.get(used.name.as_str())?.clone();
        let request = used.request.clone().unwrap_or_default();
        let part = if request.is_empty() { String::new() } else { format!("/{request}") };
        Some((format!("claim:{}{part}", used.name), object, request))
    };
    used.filter_map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "c", "resources": {"claims": [{"name": "shared", "request": "one"}, {"name": "own"}]}}, {"name": "d"}],
                "resourceClaims": [{"name": "shared", "resourceClaimName": "gpu"}, {"name": "own", "resourceClaimTemplateName": "t"},
                    {"name": "late", "resourceClaimTemplateName": "t"}, {"name": "none", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x"}, {"name": "none"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "p-extended",
                    "requestMappings": [{"containerName": "d", "resourceName": "example.com/gpu", "requestName": "r"}]}}}))
        .unwrap()
    }

    #[test]
    fn claims_of_pods_and_containers() {
        let name = |name: &str| Ok(Some(name.to_owned()));
        let found = of_pod(&pod());
        assert_eq!(found[0], Wanted { name: name("gpu"), own: false });
        assert_eq!(found[1], Wanted { name: name("p-own-x"), own: true });
        assert!(found[2].name.as_ref().unwrap_err().ends_with("ResourceClaim not created yet"));
        assert_eq!(found[3].name, Ok(None), "it needs none");
        assert_eq!(found[4].name, name("p-extended"));
        let containers = pod().spec.unwrap().containers;
        let of = |index: usize| of_container(&pod(), &containers[index]).unwrap();
        let pair = |claim: &str, request: &str| (claim.to_owned(), request.to_owned());
        assert_eq!(of(0), [pair("gpu", "one"), pair("p-own-x", "")]);
        assert_eq!(of(1), [pair("p-extended", "r")]);
        let label = |index: usize| labels(&pod(), &containers[index]);
        let triple = |label: &str, claim: &str, request: &str| (label.to_owned(), claim.to_owned(), request.to_owned());
        assert_eq!(label(0), [triple("claim:shared/one", "gpu", "one"), triple("claim:own", "p-own-x", "")]);
        assert!(label(1).is_empty());
        assert!(of_pod(&Pod::default()).is_empty());
    }

    #[test]
    fn only_those_a_claim_is_reserved_for_use_it() {
        let claim = |owner: &str, user: &str| -> ResourceClaim {
            serde_json::from_value(json!({
                "metadata": {"name": "c", "namespace": "ns", "uid": "cu",
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]},
                "spec": {}, "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": user}]}}))
            .unwrap()
        };
        let own = |own| Wanted { name: Ok(None), own };
        assert_eq!(check(&pod(), &own(true), &claim("u", "u")), Ok(()));
        assert_eq!(check(&pod(), &own(false), &claim("other", "u")), Ok(()));
        assert_eq!(
            check(&pod(), &own(true), &claim("other", "u")),
            Err("ResourceClaim ns/c was not created for pod ns/p (pod is not owner)".to_owned())
        );
        assert_eq!(
            check(&pod(), &own(false), &claim("u", "other")),
            Err("pod p (u) is not allowed to use ResourceClaim c (cu)".to_owned())
        );
    }
}
