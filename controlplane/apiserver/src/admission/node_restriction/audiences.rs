//! Whom a node's tokens of its pods may be for: those that the pod's volumes name, or that the node was
//! given a right to (ServiceAccountNodeAudienceRestriction).

use serde_json::Value;

use super::{Attributes, Cluster, Refusal, Result};
use crate::admit::Access;
use crate::kinds::value::{has, list, name, text};

const VERB: &str = "request-serviceaccounts-token-audience";

/// What there is to say against the audiences that the node asks for in `pod`'s name.
pub async fn problem(attributes: &Attributes<'_>, pod: &Value, cluster: &dyn Cluster) -> Result<Refusal> {
    let audience = match list(&attributes.object, "spec.audiences") {
        // The API server itself, as in a volume that names none.
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Ok(Some("node may only request 0 or 1 audiences".to_owned())),
    };
    if projects(pod, audience) || drivers_want(pod, audience, cluster).await? {
        return Ok(None);
    }
    let namespace = attributes.namespace;
    let right = Access { verb: VERB, resource: audience, namespace, name: attributes.name, ..Access::default() };
    // Without an audience there is nothing to have a right to.
    if !audience.is_empty() && cluster.allowed(attributes.user, right).await {
        return Ok(None);
    }
    let who = &attributes.user.name;
    Ok(Some(format!(
        "audience {audience:?} not found in pod spec volume, {who} is not authorized to request tokens for this audience"
    )))
}

fn projects(pod: &Value, audience: &str) -> bool {
    let sources = list(pod, "spec.volumes").iter().flat_map(|volume| list(volume, "projected.sources"));
    sources
        .filter(|source| has(source, "serviceAccountToken"))
        .any(|source| text(source, "serviceAccountToken.audience") == audience)
}

/// Whether a driver of one of the pod's volumes is given tokens for `audience`.
async fn drivers_want(pod: &Value, audience: &str, cluster: &dyn Cluster) -> Result<bool> {
    for volume in list(pod, "spec.volumes") {
        let driver = match claim_of(pod, volume) {
            Some(claim) => driver_behind(text(pod, "metadata.namespace"), &claim, cluster).await?,
            None => text(volume, "csi.driver").to_owned(),
        };
        if driver.is_empty() {
            continue;
        }
        let Some(driver) = cluster.get("storage.k8s.io", "csidrivers", "", &driver).await? else { continue };
        if list(&driver, "spec.tokenRequests").iter().any(|request| text(request, "audience") == audience) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The claim that a volume is of, which an ephemeral one has made for it.
fn claim_of(pod: &Value, volume: &Value) -> Option<String> {
    if has(volume, "ephemeral.volumeClaimTemplate") {
        return Some(format!("{}-{}", name(pod), text(volume, "name")));
    }
    has(volume, "persistentVolumeClaim").then(|| text(volume, "persistentVolumeClaim.claimName").to_owned())
}

/// The driver of the volume that a claim is bound to; empty where there is none.
async fn driver_behind(namespace: &str, claim: &str, cluster: &dyn Cluster) -> Result<String> {
    let Some(claim) = cluster.get("", "persistentvolumeclaims", namespace, claim).await? else {
        return Ok(String::new());
    };
    let volume = text(&claim, "spec.volumeName");
    if volume.is_empty() {
        return Ok(String::new());
    }
    let volume = cluster.get("", "persistentvolumes", "", volume).await?;
    Ok(volume.map(|volume| text(&volume, "spec.csi.driver").to_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::Fixed;
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn audiences_are_those_of_the_pods_volumes() {
        let driver = |name: &str, audience: &str| json!({"metadata": {"name": name}, "spec": {"tokenRequests": [{"audience": audience}]}});
        let volume =
            |name: &str, driver: &str| json!({"metadata": {"name": name}, "spec": {"csi": {"driver": driver}}});
        let claim = |name: &str, volume: &str| json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"volumeName": volume}});
        let cluster = Fixed::with(&[
            ("storage.k8s.io", "csidrivers", driver("inline", "i")),
            ("storage.k8s.io", "csidrivers", driver("bound", "b")),
            ("", "persistentvolumes", volume("v", "bound")),
            ("", "persistentvolumeclaims", claim("c", "v")),
            ("", "persistentvolumeclaims", claim("p-own", "v")),
        ]);
        let token =
            |audience: &str| json!({"projected": {"sources": [{"serviceAccountToken": {"audience": audience}}]}});
        for (volume, audience, found) in [
            (token("a"), "a", true),
            (token("a"), "", false),
            (json!({"projected": {"sources": [{"serviceAccountToken": {}}]}}), "", true),
            (json!({"projected": {"sources": [{"configMap": {}}]}}), "", false),
            (json!({"csi": {"driver": "inline"}}), "i", true),
            (json!({"csi": {"driver": "inline"}}), "b", false),
            (json!({"csi": {"driver": "unknown"}}), "i", false),
            (json!({"persistentVolumeClaim": {"claimName": "c"}}), "b", true),
            (json!({"persistentVolumeClaim": {"claimName": "other"}}), "b", false),
            (json!({"name": "own", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}), "b", true),
        ] {
            let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"volumes": [volume]}});
            let allowed = projects(&pod, audience) || drivers_want(&pod, audience, &cluster).await.unwrap();
            assert_eq!(allowed, found, "{pod} {audience:?}");
        }
    }
}
