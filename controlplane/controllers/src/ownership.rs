//! Who controls what: adopting orphans that a selector matches, releasing what it no longer does.
//!
//! [`claim`] decides (Kubernetes' `ControllerRefManager`), [`settle`] writes. Before the first
//! adoption the owner is read from the API server itself: a cache may not know yet that it is
//! being deleted, and an adopted object would be collected with it.

use std::fmt::Debug;
use std::sync::Arc;

use api::selector::Selector;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::Controller;
use crate::error::{During, Result, is_invalid};
use crate::meta;

pub struct Claim<K> {
    pub mine: Vec<Arc<K>>,
    pub adopt: Vec<Arc<K>>,
    pub release: Vec<Arc<K>>,
}

/// `adoptable` says whether an orphan may be taken besides matching the selector.
pub fn claim<K: Resource>(
    owner_uid: &str,
    owner_deleting: bool,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
    adoptable: impl Fn(&K) -> bool,
) -> Claim<K> {
    let mut claim = Claim { mine: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for object in candidates {
        let meta = object.meta();
        let matches = selector.matches(meta::labels(meta));
        match meta::controller_of(meta) {
            Some(owner) if owner.uid != owner_uid => {}
            Some(_) if matches => claim.mine.push(object),
            Some(_) if owner_deleting => {}
            Some(_) => claim.release.push(object),
            None if owner_deleting || !matches || meta::is_deleting(meta) || !adoptable(&object) => {}
            None => claim.adopt.push(object),
        }
    }
    claim
}

/// Carries a claim out; returns what the owner controls now.
pub async fn settle<O, K>(controller: &Controller, owner: &O, claim: Claim<K>) -> Result<Vec<Arc<K>>>
where
    O: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    settle_with(controller, owner, claim, None).await
}

/// The same; what is adopted gets this finalizer.
pub async fn settle_with<O, K>(
    controller: &Controller,
    owner: &O,
    claim: Claim<K>,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>>
where
    O: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let namespace = owner.namespace().unwrap_or_default();
    let api: Api<K> = controller.namespaced(&namespace);
    let mut mine = claim.mine;
    if !claim.adopt.is_empty() && may_adopt(controller, owner).await? {
        for object in claim.adopt {
            let patch = adoption(owner, object.meta(), finalizer);
            let name = object.name_any();
            let patched = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            if let Some(adopted) = patched.unless_gone("adopting", &name)? {
                mine.push(Arc::new(adopted));
            }
        }
    }
    for object in claim.release {
        let patch = json!({"metadata": {
            "ownerReferences": [{"$patch": "delete", "uid": meta::uid(owner.meta())}],
            "uid": object.meta().uid,
        }});
        let name = object.name_any();
        match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            // the object with this name is another one by now: nothing to release
            Err(error) if is_invalid(&error) => {}
            answer => drop(answer.unless_gone("releasing", &name)?),
        }
    }
    Ok(mine)
}

/// The strategic merge patch that makes an object the owner's.
fn adoption<O: Resource<DynamicType = ()>>(owner: &O, object: &ObjectMeta, finalizer: Option<&str>) -> Value {
    let mut patch = json!({"metadata": {"ownerReferences": [meta::controller_ref(owner)], "uid": object.uid}});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["finalizers"] = json!([finalizer]);
    }
    patch
}

/// Whether the owner, read afresh, is still the same and not being deleted.
async fn may_adopt<O>(controller: &Controller, owner: &O) -> Result<bool>
where
    O: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<O> = controller.namespaced(&owner.namespace().unwrap_or_default());
    let live = api.get_opt(&owner.name_any()).await.during("reading the owner", &meta::display(owner.meta()))?;
    Ok(live.is_some_and(|live| live.meta().uid == owner.meta().uid && !meta::is_deleting(live.meta())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::pod;
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};

    fn labelled(name: &str, app: &str, owner: Option<&str>) -> Arc<Pod> {
        let mut pod = pod(name, "n", "Running");
        pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        pod.metadata.owner_references =
            owner.map(|uid| vec![OwnerReference { uid: uid.into(), controller: Some(true), ..Default::default() }]);
        Arc::new(pod)
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn a_pod_that_a_job_adopts_gets_the_finalizer_by_which_it_is_counted() {
        let (owner, orphan) = (pod("owner", "", "Running"), pod("orphan", "n", "Running"));
        let patch = adoption(&owner, &orphan.metadata, Some("batch.kubernetes.io/job-tracking"));
        assert_eq!(patch["metadata"]["finalizers"], json!(["batch.kubernetes.io/job-tracking"]));
        assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "uid-owner");
        let plain = adoption(&owner, &orphan.metadata, None);
        assert_eq!((&plain["metadata"]["uid"], plain["metadata"].get("finalizers")), (&json!("uid-orphan"), None));
    }

    #[test]
    fn claims_follow_selector_and_controller_reference() {
        let selector = Selector::from_map(&[("app".to_owned(), "web".to_owned())].into());
        let mut going = (*labelled("going", "web", None)).clone();
        going.metadata.deletion_timestamp = Some(Time(crate::podstate::testing::at(1)));
        let candidates = vec![
            labelled("mine", "web", Some("me")),
            labelled("relabelled", "other", Some("me")),
            labelled("theirs", "web", Some("you")),
            labelled("orphan", "web", None),
            labelled("stranger", "other", None),
            Arc::new(going),
        ];
        let alive = claim("me", false, &selector, candidates.clone(), |_| true);
        assert_eq!(names(&alive.mine), ["mine"]);
        assert_eq!(names(&alive.adopt), ["orphan"]);
        assert_eq!(names(&alive.release), ["relabelled"]);
        let dying = claim("me", true, &selector, candidates, |_| true);
        assert_eq!(names(&dying.mine), ["mine"]);
        assert!(dying.adopt.is_empty() && dying.release.is_empty());
    }
}
