//! Generic ephemeral volumes: a claim for each, owned by its pod.

use std::sync::Arc;

use component::{EventType, Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimTemplate, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::PostParams;

use crate::context::{Context, Controller, Key, Pods, synced};
use crate::error::{During, Error, Result, is_already_exists, is_namespace_terminating, message};
use crate::volume_protection::by_claim;
use crate::{meta, podstate};

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("ephemeral-volume-controller");
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let changed = queue.clone();
    context.pods.informer.on_change(move |change| {
        if let Some(pod) = change.new.filter(|pod| podstate::is_active(pod) && templates(pod).next().is_some()) {
            changed.add(meta::key(&pod.metadata));
        }
    });
    let (changed, users) = (queue.clone(), by_claim(context));
    claims.on_change(move |change| {
        // a claim that went is made again while its pod lives; another's of the name was in the way
        if change.new.is_none() {
            let claim = meta::display(&change.object().metadata);
            users.get(&claim).iter().for_each(|pod| changed.add(meta::key(&pod.metadata)));
        }
    });
    let ready = synced!(claims, context.pods.informer);
    let worker = Arc::new(Worker { controller: controller.clone(), claims, pods: context.pods.clone() });
    controller.run(&queue, 10, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

fn templates(pod: &Pod) -> impl Iterator<Item = (&str, &PersistentVolumeClaimTemplate)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    volumes
        .filter_map(|volume| Some((volume.name.as_str(), volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?)))
}

fn claim(pod: &Pod, volume: &str, template: &PersistentVolumeClaimTemplate) -> PersistentVolumeClaim {
    let from = template.metadata.clone().unwrap_or_default();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{volume}", pod.name_any())),
            namespace: pod.namespace(),
            labels: from.labels,
            annotations: from.annotations,
            owner_references: Some(vec![meta::controller_ref(pod)]),
            ..Default::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    }
}

struct Worker {
    controller: Controller,
    claims: Informer<PersistentVolumeClaim>,
    pods: Pods,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(pod) = self.pods.informer.get(&key.0, &key.1).filter(|pod| podstate::is_active(pod)) else {
            return Ok(Outcome::Done);
        };
        for (volume, template) in templates(&pod) {
            let wanted = claim(&pod, volume, template);
            let name = wanted.name_any();
            if let Some(existing) = self.claims.get(&key.0, &name) {
                if !meta::is_controlled_by(&existing.metadata, meta::uid(&pod.metadata)) {
                    let problem =
                        format!("PVC {}/{name} was not created for pod {}/{} (pod is not owner)", key.0, key.0, key.1);
                    self.tell(&pod, volume, &problem);
                    return Err(Error::Object { object: meta::display(&pod.metadata), problem });
                }
                continue;
            }
            let api = self.controller.namespaced::<PersistentVolumeClaim>(&key.0);
            match api.create(&PostParams::default(), &wanted).await {
                Ok(_) => {}
                Err(error) if is_already_exists(&error) => return Ok(Outcome::Retry),
                Err(error) if is_namespace_terminating(&error) => return Ok(Outcome::Done),
                Err(error) => {
                    self.tell(&pod, volume, &format!("create PVC {name}: {}", message(&error)));
                    return Err(error).during("creating claim", &format!("{}/{name}", key.0));
                }
            }
        }
        Ok(Outcome::Done)
    }

    fn tell(&self, pod: &Pod, volume: &str, problem: &str) {
        let text = format!("ephemeral volume {volume}: {problem}");
        self.controller.events.object_event(pod, EventType::Warning, "FailedBinding", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::pod;
    use k8s_openapi::api::core::v1::{EphemeralVolumeSource, Volume};

    #[test]
    fn each_ephemeral_volume_has_a_claim_of_its_pod() {
        let mut owner = pod("web", "n1", "Pending");
        owner.spec.get_or_insert_default().volumes = Some(vec![
            Volume { name: "plain".into(), ..Default::default() },
            Volume {
                name: "scratch".into(),
                ephemeral: Some(EphemeralVolumeSource {
                    volume_claim_template: Some(PersistentVolumeClaimTemplate::default()),
                }),
                ..Default::default()
            },
        ]);
        let claims: Vec<_> = templates(&owner).map(|(volume, template)| claim(&owner, volume, template)).collect();
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].name_any(), "web-scratch");
        assert!(meta::is_controlled_by(&claims[0].metadata, "uid-web"));
    }
}
