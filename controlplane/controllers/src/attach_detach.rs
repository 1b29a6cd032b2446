//! VolumeAttachments: which CSI volumes should be attached to which node, for external attachers to
//! carry out; and `status.volumesAttached` of the nodes.
//!
//! One key per node. [`wanted`] is pure: from the node's pods through their claims to volumes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::{EventType, Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec, VolumeAttachmentStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::context::{Context, Controller, Key, Pods, synced};
use crate::error::{During, Result, is_already_exists};
use crate::index::Index;
use crate::node_lifecycle::is_ready;
use crate::volume_protection::{by_claim, claims_of};
use crate::{meta, podstate};

const WORKERS: usize = 4;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long a node that is not ready may keep a volume mounted that nobody there needs.
const PATIENCE: Duration = Duration::from_secs(6 * 60);

/// How soon a node looks again for a volume that another has, should nothing tell that it is free.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

pub fn start(context: &Context) {
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("attachdetach-controller");
    let nodes = context.informers.of::<Node>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let drivers = context.informers.of::<CSIDriver>();
    let attachments = context.informers.of::<VolumeAttachment>();
    let by_node = Index::new(&attachments, |attachment: &VolumeAttachment| vec![attachment.spec.node_name.clone()]);
    let by_volume = Index::new(&attachments, |attachment: &VolumeAttachment| {
        attachment.spec.source.persistent_volume_name.iter().cloned().collect()
    });
    let making = Making::default();
    let changed = queue.clone();
    context.pods.informer.on_change(move |change| {
        let pod = change.object();
        let needs = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| needs_volumes(pod));
        if needs(change.old) != needs(change.new) && !claims_of(pod).is_empty() {
            changed.add(podstate::node_name(pod).to_owned());
        }
    });
    let (changed, users) = (queue.clone(), by_claim(context));
    let waiting = users.clone();
    claims.on_change(move |change| {
        let key = meta::display(&change.object().metadata);
        users.get(&key).iter().for_each(|pod| changed.add(podstate::node_name(pod).to_owned()));
    });
    let (changed, all, made) = (queue.clone(), volumes.clone(), making.clone());
    let (pods, known, events) = (context.pods.clone(), claims.clone(), controller.events.clone());
    attachments.on_change(move |change| {
        let attachment = change.object();
        changed.add(attachment.spec.node_name.clone());
        let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        made.lock().remove(volume);
        if change.new.is_none() {
            // another node may have waited for it
            let claim = all.get("", volume).and_then(|volume| volume.spec.as_ref()?.claim_ref.clone());
            let key = claim.map(|claim| [claim.namespace, claim.name].map(Option::unwrap_or_default).join("/"));
            let pods = key.map(|key| waiting.get(&key)).unwrap_or_default();
            pods.iter().for_each(|pod| changed.add(podstate::node_name(pod).to_owned()));
        }
        let news = change.new.and_then(|new| news(change.old.map(AsRef::as_ref), new));
        if let Some((kind, reason, message)) = news {
            for pod in pods.by_node.get(&attachment.spec.node_name) {
                if uses(&pod, volume, |namespace, claim| known.get(namespace, claim)) {
                    events.object_event(&*pod, kind, reason, message.clone());
                }
            }
        }
    });
    let changed = queue.clone();
    nodes.on_change(move |change| {
        let in_use = |node: &Arc<Node>| {
            let in_use = node.status.as_ref().and_then(|status| status.volumes_in_use.clone());
            (in_use, is_out_of_service(node), is_ready(node))
        };
        if change.old.map(in_use) != change.new.map(in_use) {
            changed.add(change.object().name_any());
        }
    });
    let ready = synced!(nodes, claims, volumes, drivers, attachments, context.pods.informer);
    let worker = Worker {
        controller: controller.clone(),
        nodes,
        claims,
        volumes,
        drivers,
        attachments: by_node,
        by_volume,
        making,
        pods: context.pods.clone(),
        waiting: Mutex::default(),
        refused: Mutex::default(),
    };
    let worker = Arc::new(worker);
    controller.run(&queue, WORKERS, ready, move |node: String| {
        let worker = worker.clone();
        async move { worker.reconcile(&node).await }
    });
}

/// What an attacher says for the first time.
fn news(old: Option<&VolumeAttachment>, new: &VolumeAttachment) -> Option<(EventType, &'static str, String)> {
    let volume = new.spec.source.persistent_volume_name.as_deref()?;
    let (before, now) = (old.and_then(|old| old.status.as_ref()), new.status.as_ref()?);
    // Those that were there when this process began were told of by another.
    old?;
    let attached = before.is_some_and(|before| before.attached);
    if now.attached && !attached {
        let message = format!("AttachVolume.Attach succeeded for volume {volume:?}");
        return Some((EventType::Normal, "SuccessfulAttachVolume", message));
    }
    let error = |status: &VolumeAttachmentStatus| status.attach_error.as_ref().and_then(|error| error.message.clone());
    let failed = error(now).filter(|message| before.and_then(error).as_ref() != Some(message))?;
    let message = format!("AttachVolume.Attach failed for volume {volume:?} : {failed}");
    Some((EventType::Warning, "FailedAttachVolume", message))
}

/// Whether one of the pod's claims is bound to the volume.
fn uses(pod: &Pod, volume: &str, claim: impl Fn(&str, &str) -> Option<Arc<PersistentVolumeClaim>>) -> bool {
    let namespace = pod.namespace().unwrap_or_default();
    let bound = |name: &String| claim(&namespace, name).and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
    claims_of(pod).iter().any(|name| bound(name).as_deref() == Some(volume))
}

/// Scheduled and not finished: its volumes must be on its node.
fn needs_volumes(pod: &Pod) -> bool {
    !podstate::node_name(pod).is_empty() && !podstate::is_finished(pod)
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Whether a volume that no pod needs any more may leave its node; else how long to wait for the
/// kubelet to say that it has unmounted it. `waited` is since nobody needed it.
fn may_leave(node: Option<&Node>, mounted: bool, waited: Duration) -> std::result::Result<(), Duration> {
    // a node that is gone says nothing, nor does one that a person has declared dead
    let Some(node) = node.filter(|node| mounted && !is_out_of_service(node)) else { return Ok(()) };
    match PATIENCE.checked_sub(waited) {
        None if !is_ready(node) => Ok(()),
        left => Err(left.filter(|left| !left.is_zero()).unwrap_or(PATIENCE)),
    }
}

/// Whether only one node may have the volume. Of one that does not say its driver knows.
fn is_exclusive(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    !modes.is_empty() && !modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

/// Why a pod of a namespace cannot have a volume that these pods have elsewhere.
fn refusal(volume: &str, namespace: &str, users: &[Key]) -> String {
    let (here, others): (Vec<&Key>, Vec<&Key>) = users.iter().partition(|(of, _)| of == namespace);
    let names: Vec<&str> = here.iter().map(|(_, name)| name.as_str()).collect();
    let used = match (names.join(", "), others.len()) {
        (names, 0) if names.is_empty() => {
            "exclusively attached to one node and can't be attached to another".to_owned()
        }
        (names, others) if names.is_empty() => format!("used by {others} pod(s) in different namespaces"),
        (names, 0) => format!("used by pod(s) {names}"),
        (names, others) => format!("used by pod(s) {names} and {others} pod(s) in different namespaces"),
    };
    format!("Multi-Attach error for volume {volume:?} Volume is already {used}")
}

/// The node that a volume is just being attached to, and since when, by the volume's name: no watch has shown
/// that yet.
type Making = Arc<Mutex<HashMap<String, (String, Instant)>>>;

struct Worker {
    controller: Controller,
    nodes: Informer<Node>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    drivers: Informer<CSIDriver>,
    attachments: Index<VolumeAttachment>,
    /// By the volume's name.
    by_volume: Index<VolumeAttachment>,
    making: Making,
    pods: Pods,
    /// Attachments that wait for their kubelet, and since when.
    waiting: Mutex<HashMap<String, Instant>>,
    /// Volumes that a node was told it cannot have, by the node's name.
    refused: Mutex<HashMap<String, BTreeSet<String>>>,
}

impl Worker {
    async fn reconcile(&self, node: &str) -> Result<Outcome> {
        if node.is_empty() {
            return Ok(Outcome::Done);
        }
        let pods = self.pods.by_node.get(node);
        let volume = |namespace: &str, claim: &str| {
            let claim = self.claims.get(namespace, claim)?;
            let name = claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())?;
            self.volumes.get("", name)
        };
        let attach_required =
            |driver: &str| self.drivers.get("", driver).is_none_or(|driver| driver.spec.attach_required != Some(false));
        let wanted = wanted(node, &pods, volume, attach_required);
        let existing = self.attachments.get(node);
        let api: Api<VolumeAttachment> = self.controller.cluster();
        let mut refused = BTreeSet::new();
        for (name, attachment) in wanted.iter().filter(|(name, _)| !existing.iter().any(|a| a.name_any() == **name)) {
            let volume = attachment.spec.source.persistent_volume_name.clone().unwrap_or_default();
            if !self.may_take(&volume, node) {
                refused.insert(volume);
                continue;
            }
            match api.create(&PostParams::default(), attachment).await {
                Err(error) if is_already_exists(&error) => {}
                other => {
                    let made = other.during("attaching a volume by VolumeAttachment", name);
                    made.inspect_err(|_| drop(self.making.lock().remove(&volume)))?;
                }
            }
        }
        let mut soonest = (!refused.is_empty()).then_some(LOOK_AGAIN);
        self.refuse(node, refused, &pods);
        let object = self.nodes.get("", node);
        let in_use = object.as_ref().and_then(|node| node.status.as_ref()?.volumes_in_use.clone()).unwrap_or_default();
        for known in &existing {
            let name = known.name_any();
            if wanted.contains_key(&name) || !name.starts_with("csi-") || meta::is_deleting(&known.metadata) {
                self.waiting.lock().remove(&name);
                continue;
            }
            let mounted = self.unique_name(known).is_some_and(|unique| in_use.contains(&unique));
            let since = *self.waiting.lock().entry(name.clone()).or_insert_with(Instant::now);
            match may_leave(object.as_deref(), mounted, since.elapsed()) {
                Ok(()) => {
                    api.delete(&name, &DeleteParams::default())
                        .await
                        .unless_gone("detaching by VolumeAttachment", &name)?;
                    self.waiting.lock().remove(&name);
                }
                Err(wait) => soonest = Some(soonest.map_or(wait, |soonest| soonest.min(wait))),
            }
        }
        if let Some(object) = object {
            self.report(&object, &existing).await?;
        }
        Ok(soonest.map_or(Outcome::Done, Outcome::After))
    }

    /// Whether no other node has the volume, or that does not matter. The node then has it, for all others.
    fn may_take(&self, volume: &str, node: &str) -> bool {
        if !self.volumes.get("", volume).is_some_and(|volume| is_exclusive(&volume)) {
            return true;
        }
        let mut making = self.making.lock();
        let promised = making.get(volume).is_some_and(|(to, since)| to != node && since.elapsed() < LOOK_AGAIN);
        if promised || self.by_volume.get(volume).iter().any(|attachment| attachment.spec.node_name != node) {
            return false;
        }
        making.insert(volume.to_owned(), (node.to_owned(), Instant::now()));
        true
    }

    /// Tells the node's pods, once, which volumes they cannot have, and who has them.
    fn refuse(&self, node: &str, volumes: BTreeSet<String>, pods: &[Arc<Pod>]) {
        let told = match volumes.is_empty() {
            true => self.refused.lock().remove(node),
            false => self.refused.lock().insert(node.to_owned(), volumes.clone()),
        };
        let told = told.unwrap_or_default();
        let using = |pod: &Pod, volume: &str| {
            needs_volumes(pod) && uses(pod, volume, |namespace, claim| self.claims.get(namespace, claim))
        };
        for volume in volumes.difference(&told) {
            let elsewhere = self.by_volume.get(volume).into_iter().filter(|other| other.spec.node_name != node);
            let users = elsewhere.flat_map(|other| self.pods.by_node.get(&other.spec.node_name));
            let users: Vec<Key> = users.filter(|pod| using(pod, volume)).map(|pod| meta::key(&pod.metadata)).collect();
            for pod in pods.iter().filter(|pod| using(pod, volume)) {
                let text = refusal(volume, &pod.namespace().unwrap_or_default(), &users);
                self.controller.events.object_event(&**pod, EventType::Warning, "FailedAttachVolume", text);
            }
        }
    }

    /// The volume's name as kubelets use it: `kubernetes.io/csi/<driver>^<handle>`.
    fn unique_name(&self, attachment: &VolumeAttachment) -> Option<String> {
        let volume = self.volumes.get("", attachment.spec.source.persistent_volume_name.as_deref()?)?;
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        Some(format!("kubernetes.io/csi/{}^{}", csi.driver, csi.volume_handle))
    }

    async fn report(&self, node: &Node, attachments: &[Arc<VolumeAttachment>]) -> Result<()> {
        let attached = attachments.iter().filter(|a| a.status.as_ref().is_some_and(|status| status.attached));
        let mut names: Vec<String> = attached.filter_map(|attachment| self.unique_name(attachment)).collect();
        names.sort();
        let list: Vec<_> = names.into_iter().map(|name| AttachedVolume { name, device_path: String::new() }).collect();
        let wanted = (!list.is_empty()).then_some(list);
        let known = node.status.as_ref().and_then(|status| status.volumes_attached.clone());
        if known.filter(|list| !list.is_empty()) == wanted {
            return Ok(());
        }
        let mut changed = node.clone();
        changed.status.get_or_insert_default().volumes_attached = wanted;
        let (name, api) = (node.name_any(), self.controller.cluster::<Node>());
        let written = api.replace_status(&name, &PostParams::default(), &changed).await;
        written.unless_gone("updating the attached volumes of node", &name).map(drop)
    }
}

/// Attachments by name.
fn wanted(
    node: &str,
    pods: &[Arc<Pod>],
    volume: impl Fn(&str, &str) -> Option<Arc<PersistentVolume>>,
    attach_required: impl Fn(&str) -> bool,
) -> BTreeMap<String, VolumeAttachment> {
    let mut wanted = BTreeMap::new();
    for pod in pods.iter().filter(|pod| needs_volumes(pod)) {
        let namespace = pod.namespace().unwrap_or_default();
        for volume in claims_of(pod).iter().filter_map(|claim| volume(&namespace, claim)) {
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            let Some(csi) = csi.filter(|csi| attach_required(&csi.driver)) else { continue };
            let name = attachment_name(&csi.volume_handle, &csi.driver, node);
            let attachment = VolumeAttachment {
                metadata: ObjectMeta { name: Some(name.clone()), ..Default::default() },
                spec: VolumeAttachmentSpec {
                    attacher: csi.driver.clone(),
                    node_name: node.to_owned(),
                    source: VolumeAttachmentSource {
                        persistent_volume_name: volume.metadata.name.clone(),
                        inline_volume_spec: None,
                    },
                },
                status: None,
            };
            wanted.insert(name, attachment);
        }
    }
    wanted
}

/// Kubernetes' name, which kubelets compute too: SHA-256 of handle, driver and node.
fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_an_attacher_says_is_told_once() {
        let attachment = |status: serde_json::Value| -> VolumeAttachment {
            let value = json!({"metadata": {"name": "a"}, "status": status,
                "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}});
            serde_json::from_value(value).expect("an attachment")
        };
        let (waiting, attached) = (attachment(json!({"attached": false})), attachment(json!({"attached": true})));
        let failed = attachment(json!({"attached": false, "attachError": {"message": "no slot"}}));
        let message = |old: Option<&VolumeAttachment>, new: &VolumeAttachment| {
            news(old, new).map(|(_, reason, message)| format!("{reason} {message}"))
        };
        let success = "SuccessfulAttachVolume AttachVolume.Attach succeeded for volume \"pv\"";
        assert_eq!(message(Some(&waiting), &attached).as_deref(), Some(success));
        let failure = "FailedAttachVolume AttachVolume.Attach failed for volume \"pv\" : no slot";
        assert_eq!(message(Some(&waiting), &failed).as_deref(), Some(failure));
        for (old, new) in [(Some(&failed), &failed), (Some(&attached), &attached), (None, &attached), (None, &waiting)]
        {
            assert_eq!(message(old, new), None);
        }
    }

    #[test]
    fn a_volume_for_one_node_is_refused_to_another_with_who_has_it() {
        let volume = |modes: serde_json::Value| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {"accessModes": modes}})).expect("a volume")
        };
        assert!(is_exclusive(&volume(json!(["ReadWriteOnce"]))) && is_exclusive(&volume(json!(["ReadWriteOncePod"]))));
        assert!(!is_exclusive(&volume(json!(["ReadWriteOnce", "ReadOnlyMany"]))) && !is_exclusive(&volume(json!([]))));
        let pod = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        for (users, expected) in [
            (vec![], "exclusively attached to one node and can't be attached to another"),
            (vec![pod("a", "web-0"), pod("a", "web-1")], "used by pod(s) web-0, web-1"),
            (vec![pod("b", "x")], "used by 1 pod(s) in different namespaces"),
            (vec![pod("a", "web-0"), pod("b", "x")], "used by pod(s) web-0 and 1 pod(s) in different namespaces"),
        ] {
            let whole = format!("Multi-Attach error for volume \"pv\" Volume is already {expected}");
            assert_eq!(refusal("pv", "a", &users), whole);
        }
    }

    #[test]
    fn a_dead_node_gives_its_volumes_back() {
        let node = |ready: &str, taint: &str| -> Node {
            let value = json!({"spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            serde_json::from_value(value).expect("a node")
        };
        let (well, lost, dead) = (node("True", "x"), node("Unknown", "x"), node("Unknown", OUT_OF_SERVICE));
        let (minute, long) = (Duration::from_secs(60), Duration::from_secs(361));
        for (node, mounted, waited, expected) in [
            (None, true, minute, Ok(())),
            (Some(&well), false, minute, Ok(())),
            (Some(&dead), true, Duration::ZERO, Ok(())),
            (Some(&lost), true, minute, Err(PATIENCE - minute)),
            (Some(&lost), true, long, Ok(())),
            (Some(&well), true, long, Err(PATIENCE)),
        ] {
            assert_eq!(may_leave(node, mounted, waited), expected, "{node:?} after {waited:?}");
        }
    }

    #[test]
    fn volumes_of_running_pods_are_attached() {
        let pod = |name: &str, phase: &str| -> Arc<Pod> {
            let value = json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"nodeName": "n1", "containers": [], "volumes": [
                    {"name": "v", "persistentVolumeClaim": {"claimName": format!("claim-{name}")}},
                ]},
                "status": {"phase": phase},
            });
            Arc::new(serde_json::from_value(value).expect("a pod"))
        };
        let volume = |_: &str, claim: &str| -> Option<Arc<PersistentVolume>> {
            let value = json!({
                "metadata": {"name": format!("pv-{claim}")},
                "spec": {"csi": {"driver": "disk.example.com", "volumeHandle": claim}},
            });
            Some(Arc::new(serde_json::from_value(value).expect("a volume")))
        };
        let pods = [pod("a", "Running"), pod("b", "Succeeded")];
        let found = wanted("n1", &pods, volume, |_| true);
        let sources: Vec<_> = found.values().filter_map(|a| a.spec.source.persistent_volume_name.clone()).collect();
        assert_eq!(sources, ["pv-claim-a"]);
        assert!(found.keys().all(|name| name.starts_with("csi-") && name.len() == 68));
        assert!(wanted("n1", &pods, volume, |_| false).is_empty());
    }
}
