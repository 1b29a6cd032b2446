//! ControllerRevisions: the history of a DaemonSet's or StatefulSet's template.
//!
//! [`Revisions::plan`] finds or makes the revision of the current template and says which old ones
//! expire; [`Revisions::settle`] writes. `kubectl rollout undo` puts an old revision's data back
//! into the template, which makes that revision the newest again.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::Controller;
use crate::error::{During, Result, is_already_exists};
use crate::{hash, meta};

/// On revisions and on pods.
pub const HASH_LABEL: &str = "controller-revision-hash";

/// What a revision remembers: a strategic merge patch that puts the template back.
pub fn data(template: &PodTemplateSpec) -> Value {
    // the API's own types serialise: string keys only
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(fields) = template.as_object_mut() {
        fields.insert("$patch".to_owned(), json!("replace"));
    }
    json!({"spec": {"template": template}})
}

/// The template a revision remembers.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Equal as the API's types see it, whatever the order or the defaults of the stored JSON.
fn is_of(revision: &ControllerRevision, wanted: &PodTemplateSpec) -> bool {
    template(revision).is_some_and(|template| template == *wanted)
}

fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

#[derive(Debug, PartialEq)]
pub enum Plan {
    /// It exists and is the newest.
    Current(Arc<ControllerRevision>),
    /// It exists but others are newer: a rollback.
    Renumber(Arc<ControllerRevision>, i64),
    Create(i64),
}

pub fn plan(wanted: &PodTemplateSpec, existing: &[Arc<ControllerRevision>]) -> Plan {
    let newest = existing.iter().map(|revision| number(revision)).max().unwrap_or(0);
    let equal = existing.iter().filter(|revision| is_of(revision, wanted)).max_by_key(|revision| number(revision));
    match equal {
        Some(revision) if number(revision) == newest => Plan::Current(revision.clone()),
        Some(revision) => Plan::Renumber(revision.clone(), newest + 1),
        None => Plan::Create(newest + 1),
    }
}

/// Old revisions beyond the limit, oldest first, but none that `in_use` names. A negative limit keeps all.
pub fn expired(
    existing: &[Arc<ControllerRevision>],
    limit: Option<i32>,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> Vec<String> {
    let Ok(limit) = usize::try_from(limit.unwrap_or(10)) else { return Vec::new() };
    let mut unused: Vec<_> = existing.iter().filter(|revision| !in_use(revision)).collect();
    unused.sort_by_key(|revision| number(revision));
    let surplus = unused.len().saturating_sub(limit);
    unused.into_iter().take(surplus).map(|revision| revision.name_any()).collect()
}

/// The hash label of a revision; its name where the label is missing.
pub fn hash_of(revision: &ControllerRevision) -> String {
    meta::labels(&revision.metadata).get(HASH_LABEL).cloned().unwrap_or_else(|| revision.name_any())
}

/// The outcome of [`settle`].
pub enum Settled {
    Current(Arc<ControllerRevision>),
    /// Another object has the name: the collision count must rise.
    Collision,
}

/// Makes sure that the current template's revision exists and is the newest.
pub async fn settle<K>(
    controller: &Controller,
    parent: &K,
    wanted: &PodTemplateSpec,
    existing: &[Arc<ControllerRevision>],
    collisions: Option<i32>,
) -> Result<Settled>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<ControllerRevision> = controller.namespaced(&parent.namespace().unwrap_or_default());
    match plan(wanted, existing) {
        Plan::Current(revision) => Ok(Settled::Current(revision)),
        Plan::Renumber(revision, number) => {
            let mut changed = (*revision).clone();
            changed.revision = Some(number);
            let updated = api.replace(&revision.name_any(), &PostParams::default(), &changed).await;
            let updated = updated.during("renumbering ControllerRevision", &revision.name_any())?;
            Ok(Settled::Current(Arc::new(updated)))
        }
        Plan::Create(number) => {
            let revision = new(parent, wanted, number, collisions);
            let name = revision.name_any();
            match api.create(&PostParams::default(), &revision).await {
                Err(error) if is_already_exists(&error) => {
                    let found = api.get(&name).await.during("reading ControllerRevision", &name)?;
                    let ours =
                        meta::is_controlled_by(&found.metadata, meta::uid(parent.meta())) && is_of(&found, wanted);
                    Ok(if ours { Settled::Current(Arc::new(found)) } else { Settled::Collision })
                }
                other => Ok(Settled::Current(Arc::new(other.during("creating ControllerRevision", &name)?))),
            }
        }
    }
}

fn new<K>(parent: &K, template: &PodTemplateSpec, number: i64, collisions: Option<i32>) -> ControllerRevision
where
    K: Resource<DynamicType = ()>,
{
    let hash = hash::of(template, collisions);
    let mut labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", parent.name_any())),
            namespace: parent.namespace(),
            labels: Some(labels),
            annotations: parent.meta().annotations.clone(),
            owner_references: Some(vec![meta::controller_ref(parent)]),
            ..Default::default()
        },
        data: RawExtension(data(template)),
        revision: Some(number),
    }
}

pub async fn expire(controller: &Controller, namespace: &str, names: &[String]) -> Result<()> {
    let api: Api<ControllerRevision> = controller.namespaced(namespace);
    for name in names {
        api.delete(name, &DeleteParams::default()).await.unless_gone("deleting old ControllerRevision", name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template_of(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": image}]}})).expect("a template")
    }

    fn revision(image: &str, number: i64) -> Arc<ControllerRevision> {
        Arc::new(ControllerRevision {
            metadata: ObjectMeta { name: Some(format!("r{number}")), ..Default::default() },
            data: RawExtension(data(&template_of(image))),
            revision: Some(number),
        })
    }

    #[test]
    fn a_template_finds_its_revision_again() {
        let existing = [revision("a", 1), revision("b", 2)];
        assert_eq!(plan(&template_of("b"), &existing), Plan::Current(existing[1].clone()));
        assert_eq!(plan(&template_of("a"), &existing), Plan::Renumber(existing[0].clone(), 3));
        assert_eq!(plan(&template_of("c"), &existing), Plan::Create(3));
        assert_eq!(template(&existing[0]), Some(template_of("a")));
    }

    #[test]
    fn history_is_cut_from_the_old_end() {
        let existing = [revision("c", 3), revision("a", 1), revision("b", 2), revision("d", 4)];
        let used = |revision: &ControllerRevision| revision.revision == Some(1);
        assert_eq!(expired(&existing, Some(1), used), ["r2", "r3"]);
        assert!(expired(&existing, None, used).is_empty());
    }

    /// `revisionHistoryLimit: -1` of a StatefulSet.
    #[test]
    fn a_negative_limit_keeps_all_history() {
        let existing = [revision("a", 1), revision("b", 2)];
        assert_eq!(expired(&existing, Some(0), |_| false), ["r1", "r2"]);
        assert!(expired(&existing, Some(-1), |_| false).is_empty());
    }
}
