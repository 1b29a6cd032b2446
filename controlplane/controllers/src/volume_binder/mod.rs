//! PersistentVolumes and claims: finding, binding, releasing.
//!
//! [`matching`] is the pure part: which volume suits a claim. Volumes made on demand come from
//! external provisioners: this controller asks for them by annotation and binds what they make.
//! Claims of classes with `WaitForFirstConsumer` wait until the scheduler has chosen a node.

mod matching;

use std::sync::Arc;
use std::time::Duration;

use component::{EventType, Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::context::{Context, Controller, Key, synced};
use crate::error::{During, Result};
use crate::meta;

/// How soon a volume is looked at again whose claim the caches here do not have yet.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const BETA_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    Claim(Key),
    Volume(String),
}

pub fn start(context: &Context) {
    let queue = WorkQueue::<Work>::new();
    let controller = context.controller("persistent-volume-binder");
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let classes = context.informers.of::<StorageClass>();
    let changed = queue.clone();
    claims.on_change(move |change| {
        let claim = change.object();
        changed.add(Work::Claim(meta::key(&claim.metadata)));
        if let Some(volume) = volume_name(claim) {
            changed.add(Work::Volume(volume.to_owned()));
        }
    });
    let (changed, waiting) = (queue.clone(), claims.clone());
    volumes.on_change(move |change| {
        let volume = change.object();
        changed.add(Work::Volume(volume.name_any()));
        // the claim that it is for, which may have lost it
        if let Some(reference) = claim_ref(volume) {
            let part = |name: &Option<String>| name.clone().unwrap_or_default();
            changed.add(Work::Claim((part(&reference.namespace), part(&reference.name))));
        }
        for claim in waiting.list().iter().filter(|claim| may_wait_for(claim, volume)) {
            changed.add(Work::Claim(meta::key(&claim.metadata)));
        }
    });
    let (changed, waiting) = (queue.clone(), claims.clone());
    classes.on_change(move |_| {
        for claim in waiting.list().iter().filter(|claim| phase(claim) != "Bound") {
            changed.add(Work::Claim(meta::key(&claim.metadata)));
        }
    });
    let ready = synced!(claims, volumes, classes);
    let worker = Arc::new(Worker { controller: controller.clone(), claims, volumes, classes });
    // one worker: two claims must not choose the same volume at once
    controller.run(&queue, 1, ready, move |work| {
        let worker = worker.clone();
        async move {
            match work {
                Work::Claim(key) => worker.sync_claim(&key).await,
                Work::Volume(name) => worker.sync_volume(&name).await,
            }
        }
    });
}

/// Whether a claim may wait for a volume that has changed: it is free, or the one that the claim names.
fn may_wait_for(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let named = || volume_name(claim).is_some_and(|name| volume.metadata.name.as_deref() == Some(name));
    phase(claim) != "Bound" && (claim_ref(volume).is_none() || named())
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

fn volume_phase(volume: &PersistentVolume) -> Option<&str> {
    volume.status.as_ref().and_then(|status| status.phase.as_deref())
}

fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Whether the volume is meant for this very claim (by UID, or by name alone before it is bound).
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|reference| {
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && (reference.uid.as_deref().is_none_or(str::is_empty) || reference.uid == claim.metadata.uid)
    })
}

fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    meta::annotation(&claim.metadata, CLASS_ANNOTATION).or(spec).unwrap_or_default()
}

/// The default class, for a claim that names none; `""` names none on purpose. Of several the newest.
fn late_default<'a>(claim: &PersistentVolumeClaim, classes: &'a [Arc<StorageClass>]) -> Option<&'a Arc<StorageClass>> {
    let named = claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
        || meta::annotation(&claim.metadata, CLASS_ANNOTATION).is_some();
    if named {
        return None;
    }
    let is_default = |class: &&Arc<StorageClass>| {
        DEFAULT_CLASS.iter().any(|name| meta::annotation(&class.metadata, name) == Some("true"))
    };
    let age = |class: &&Arc<StorageClass>| (std::cmp::Reverse(meta::created(&class.metadata)), class.name_any());
    classes.iter().filter(is_default).min_by_key(age)
}

/// Deletes what a hostPath volume under `/tmp` holds, on this machine: a plugin for trying things
/// out. What else it names might be anything.
async fn delete_host_path(path: &str) -> std::result::Result<(), String> {
    let relative = path.strip_prefix("/tmp/").unwrap_or_default();
    if relative.is_empty() || relative.split('/').any(|part| part == "..") {
        return Err(format!("host_path deleter only supports /tmp/.+ but received provided {path}"));
    }
    // No link on the way may lead elsewhere; one at its end is removed itself.
    let place = std::path::Path::new(path);
    let parent = match tokio::fs::canonicalize(place.parent().unwrap_or(place)).await {
        Ok(parent) => parent,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("looking for {path}: {error}")),
    };
    if !parent.starts_with("/tmp") {
        return Err(format!("host_path deleter only supports /tmp/.+ but {path} lies in {}", parent.display()));
    }
    let removed = match tokio::fs::symlink_metadata(path).await {
        Ok(found) if found.is_dir() => tokio::fs::remove_dir_all(path).await,
        Ok(_) => tokio::fs::remove_file(path).await,
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("removing {path}: {error}")),
        _ => Ok(()),
    }
}

struct Worker {
    controller: Controller,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

impl Worker {
    async fn sync_claim(&self, key: &Key) -> Result<Outcome> {
        let Some(claim) = self.claims.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        if meta::is_deleting(&claim.metadata) && volume_name(&claim).is_none() {
            return Ok(Outcome::Done);
        }
        match volume_name(&claim) {
            Some(name) => self.sync_named(&claim, name).await?,
            None => self.sync_unbound(&claim).await?,
        }
        Ok(Outcome::Done)
    }

    /// The claim says which volume it wants, or has.
    async fn sync_named(&self, claim: &PersistentVolumeClaim, name: &str) -> Result<()> {
        let bound = meta::annotation(&claim.metadata, BIND_COMPLETED).is_some();
        match self.volumes.get("", name) {
            None if bound => {
                let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                self.lose(claim, "ClaimLost", text).await
            }
            None => self.set_phase(claim, "Pending", None).await,
            Some(volume) if !bound && claim_ref(&volume).is_none() => {
                let Some(why) = matching::refusal(&volume, claim, class_of(claim)) else {
                    return self.bind(&volume, claim).await;
                };
                let text = format!("Cannot bind to requested volume \"{name}\": {why}");
                self.controller.events.object_event(claim, EventType::Warning, "VolumeMismatch", text);
                self.set_phase(claim, "Pending", None).await
            }
            Some(volume) if claim_ref(&volume).is_none() || is_for(&volume, claim) => self.bind(&volume, claim).await,
            Some(_) if bound => {
                let text = "Two claims are bound to the same volume, this one is bound incorrectly";
                self.lose(claim, "ClaimMisbound", text).await
            }
            Some(_) => {
                let text = format!("volume \"{name}\" already bound to a different claim.");
                self.controller.events.object_event(claim, EventType::Warning, "FailedBinding", text);
                self.set_phase(claim, "Pending", None).await
            }
        }
    }

    async fn lose(&self, claim: &PersistentVolumeClaim, reason: &str, text: &str) -> Result<()> {
        if phase(claim) != "Lost" {
            self.controller.events.object_event(claim, EventType::Warning, reason, text);
        }
        self.set_phase(claim, "Lost", None).await
    }

    async fn sync_unbound(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let class = self.classes.get("", class_of(claim));
        let late =
            class.as_ref().and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
        let waits = late && meta::annotation(&claim.metadata, SELECTED_NODE).is_none();
        let volumes = self.volumes.list();
        let found = matching::find(claim, class_of(claim), &volumes, waits);
        if let Some(volume) = found {
            return self.bind(&volume, claim).await;
        }
        // a claim from before there was a default class takes it; its change brings it here again
        if let Some(class) = late_default(claim, &self.classes.list()) {
            let mut changed = claim.clone();
            changed.spec.get_or_insert_default().storage_class_name = Some(class.name_any());
            return self.write_claim(&changed).await.map(drop);
        }
        if waits {
            let text = "waiting for first consumer to be created before binding";
            self.controller.events.object_event(claim, EventType::Normal, "WaitForFirstConsumer", text);
        } else if class_of(claim).is_empty() {
            let text = "no persistent volumes available for this claim and no storage class is set";
            self.controller.events.object_event(claim, EventType::Normal, "FailedBinding", text);
        } else {
            self.ask_provisioner(claim, class.as_deref()).await?;
        }
        self.set_phase(claim, "Pending", None).await
    }

    /// External provisioners act on claims that name them.
    async fn ask_provisioner(&self, claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Result<()> {
        let events = &self.controller.events;
        let Some(class) = class else {
            let text = format!("storageclass.storage.k8s.io \"{}\" not found", class_of(claim));
            events.object_event(claim, EventType::Warning, "ProvisioningFailed", text);
            return Ok(());
        };
        let provisioner = &class.provisioner;
        if provisioner == NO_PROVISIONER {
            let text = "no volume plugin matched name: kubernetes.io/no-provisioner";
            events.object_event(claim, EventType::Warning, "ProvisioningFailed", text);
            return Ok(());
        }
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        events.object_event(claim, EventType::Normal, "ExternalProvisioning", text);
        if meta::annotation(&claim.metadata, PROVISIONER) == Some(provisioner) {
            return Ok(());
        }
        let mut changed = claim.clone();
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(PROVISIONER.to_owned(), provisioner.clone());
        annotations.insert(BETA_PROVISIONER.to_owned(), provisioner.clone());
        self.write_claim(&changed).await.map(drop)
    }

    /// First the volume points to the claim, then the claim to the volume: a stop in between is
    /// finished by the next run.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<()> {
        let volume = match matching::bound_volume(volume, claim) {
            Some(changed) => self.write_volume(&changed).await?,
            None => volume.clone(),
        };
        self.set_volume_phase(&volume, "Bound").await?;
        let claim = match matching::bound_claim(claim, &volume) {
            Some(changed) => self.write_claim(&changed).await?,
            None => claim.clone(),
        };
        self.set_phase(&claim, "Bound", Some(&volume)).await
    }

    async fn sync_volume(&self, name: &str) -> Result<Outcome> {
        let Some(volume) = self.volumes.get("", name) else { return Ok(Outcome::Done) };
        let Some(reference) = claim_ref(&volume) else {
            self.set_volume_phase(&volume, "Available").await?;
            return Ok(Outcome::Done);
        };
        if reference.uid.as_deref().is_none_or(str::is_empty) {
            // reserved for a claim that may come
            self.set_volume_phase(&volume, "Available").await?;
            return Ok(Outcome::Done);
        }
        let (namespace, claim_name) = (reference.namespace.as_deref(), reference.name.as_deref());
        let claim = self.claims.get(namespace.unwrap_or_default(), claim_name.unwrap_or_default());
        match claim.filter(|claim| claim.metadata.uid == reference.uid) {
            // What is held here may be behind whoever bound them, and data goes on its word.
            None if self.is_there(reference).await? => return Ok(Outcome::After(LOOK_AGAIN)),
            None => self.release(&volume).await?,
            Some(claim) if volume_name(&claim) == Some(name) => self.set_volume_phase(&volume, "Bound").await?,
            // being bound: the claim's run finishes it
            Some(claim) if volume_name(&claim).is_none() => self.bind(&volume, &claim).await?,
            Some(_) => self.give_back(&volume).await?,
        }
        Ok(Outcome::Done)
    }

    /// Whether the API server has the claim.
    async fn is_there(&self, reference: &ObjectReference) -> Result<bool> {
        let (namespace, name) = (reference.namespace.as_deref(), reference.name.as_deref().unwrap_or_default());
        let api: Api<PersistentVolumeClaim> = self.controller.namespaced(namespace.unwrap_or_default());
        let found = api.get_opt(name).await.during("looking for the claim of a volume", name)?;
        Ok(found.is_some_and(|claim| claim.metadata.uid == reference.uid))
    }

    /// The claim is gone. `Retain` leaves the volume to its administrator, `Delete` to its external
    /// provisioner.
    async fn release(&self, volume: &PersistentVolume) -> Result<()> {
        if volume_phase(volume) != Some("Failed") && volume_phase(volume) != Some("Released") {
            // its change brings it here again, as new as what follows needs
            return self.set_volume_phase(volume, "Released").await;
        }
        if meta::is_deleting(&volume.metadata) {
            return Ok(());
        }
        let spec = volume.spec.clone().unwrap_or_default();
        let external = meta::annotation(&volume.metadata, PROVISIONED_BY).is_some() || spec.csi.is_some();
        match (spec.persistent_volume_reclaim_policy.as_deref(), &spec.host_path) {
            (Some("Delete"), Some(host_path)) if !external => match delete_host_path(&host_path.path).await {
                Ok(()) => self.delete_volume(volume).await,
                Err(text) => self.fail(volume, "VolumeFailedDelete", &text).await,
            },
            (Some("Delete"), None) if !external => {
                let name = volume.name_any();
                let text = format!(
                    "error getting deleter volume plugin for volume \"{name}\": no deletable volume plugin matched"
                );
                self.fail(volume, "VolumeFailedDelete", &text).await
            }
            (Some("Recycle"), _) => {
                self.fail(volume, "VolumeFailedRecycle", "No recycler plugin found for the volume!").await
            }
            _ => Ok(()),
        }
    }

    /// Told once, when the phase changes.
    async fn fail(&self, volume: &PersistentVolume, reason: &str, text: &str) -> Result<()> {
        if volume_phase(volume) == Some("Failed") {
            return Ok(());
        }
        self.set_volume_phase(volume, "Failed").await?;
        self.controller.events.object_event(volume, EventType::Warning, reason, text);
        Ok(())
    }

    async fn delete_volume(&self, volume: &PersistentVolume) -> Result<()> {
        let (name, api) = (volume.name_any(), self.controller.cluster::<PersistentVolume>());
        let uid = volume.metadata.uid.clone();
        let only = DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        api.delete(&name, &only).await.unless_gone("deleting volume", &name).map(drop)
    }

    /// The claim took another volume: this one is free again if it was this controller's choice. One that a
    /// provisioner made for the claim goes as if the claim had gone.
    async fn give_back(&self, volume: &PersistentVolume) -> Result<()> {
        let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        if policy == Some("Delete") && meta::annotation(&volume.metadata, PROVISIONED_BY).is_some() {
            return self.release(volume).await;
        }
        if meta::annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_none() {
            return Ok(());
        }
        let mut changed = volume.clone();
        changed.metadata.annotations.get_or_insert_default().remove(BOUND_BY_CONTROLLER);
        changed.spec.get_or_insert_default().claim_ref = None;
        self.write_volume(&changed).await.map(drop)
    }

    async fn write_volume(&self, volume: &PersistentVolume) -> Result<PersistentVolume> {
        let api: Api<PersistentVolume> = self.controller.cluster();
        let name = volume.name_any();
        api.replace(&name, &PostParams::default(), volume).await.during("updating volume", &name)
    }

    async fn write_claim(&self, claim: &PersistentVolumeClaim) -> Result<PersistentVolumeClaim> {
        let api: Api<PersistentVolumeClaim> = self.controller.namespaced(&claim.namespace().unwrap_or_default());
        let written = api.replace(&claim.name_any(), &PostParams::default(), claim).await;
        written.during("updating claim", &meta::display(&claim.metadata))
    }

    async fn set_volume_phase(&self, volume: &PersistentVolume, phase: &str) -> Result<()> {
        let before = volume_phase(volume);
        // a volume that failed stays failed until someone looks at it
        if before == Some(phase) || (before == Some("Failed") && phase == "Released") {
            return Ok(());
        }
        let mut changed = volume.clone();
        let status = changed.status.get_or_insert_default();
        (status.phase, status.last_phase_transition_time) = (Some(phase.to_owned()), meta::stamp(meta::now()));
        let (name, api) = (volume.name_any(), self.controller.cluster::<PersistentVolume>());
        let written = api.replace_status(&name, &PostParams::default(), &changed).await;
        written.during("updating the status of volume", &name).map(drop)
    }

    async fn set_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<()> {
        let mut changed = claim.clone();
        let status = changed.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        if let Some(spec) = volume.and_then(|volume| volume.spec.as_ref()) {
            status.access_modes = spec.access_modes.clone();
            // a claim that has grown knows its size better than the first binding
            if status.capacity.is_none() {
                status.capacity = spec.capacity.clone();
            }
        } else if phase == "Pending" || phase == "Lost" {
            (status.access_modes, status.capacity) = (None, None);
        }
        if changed.status == claim.status {
            return Ok(());
        }
        let api: Api<PersistentVolumeClaim> = self.controller.namespaced(&claim.namespace().unwrap_or_default());
        let written = api.replace_status(&claim.name_any(), &PostParams::default(), &changed).await;
        written.during("updating the status of claim", &meta::display(&claim.metadata)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn class(name: &str, default: bool, created: i64) -> Arc<StorageClass> {
        let mut class = StorageClass::default();
        class.metadata.name = Some(name.into());
        class.metadata.creation_timestamp = Some(Time(at(created)));
        class.metadata.annotations = Some([(DEFAULT_CLASS[0].to_owned(), default.to_string())].into());
        Arc::new(class)
    }

    #[test]
    fn a_claim_without_a_class_takes_a_later_default() {
        let classes = [class("plain", false, 9), class("b", true, 2), class("c", true, 3), class("a", true, 3)];
        let chosen = |class: Option<&str>| {
            let mut claim = PersistentVolumeClaim::default();
            claim.spec.get_or_insert_default().storage_class_name = class.map(str::to_owned);
            late_default(&claim, &classes).map(|class| class.name_any())
        };
        assert_eq!(chosen(None).as_deref(), Some("a"), "the newest, then by name");
        assert_eq!((chosen(Some("")), chosen(Some("plain"))), (None, None));
        let mut old = PersistentVolumeClaim::default();
        old.metadata.annotations = Some([(CLASS_ANNOTATION.to_owned(), String::new())].into());
        assert!(late_default(&old, &classes).is_none());
    }

    #[test]
    fn a_volume_that_is_taken_wakes_no_claim_that_waits_for_any() {
        let mut volume = PersistentVolume::default();
        volume.metadata.name = Some("pv".into());
        let mut any = PersistentVolumeClaim::default();
        let mut this = PersistentVolumeClaim::default();
        this.spec.get_or_insert_default().volume_name = Some("pv".into());
        assert!(may_wait_for(&any, &volume) && may_wait_for(&this, &volume));
        volume.spec.get_or_insert_default().claim_ref = Some(ObjectReference::default());
        assert!(!may_wait_for(&any, &volume) && may_wait_for(&this, &volume));
        volume.spec.get_or_insert_default().claim_ref = None;
        any.status.get_or_insert_default().phase = Some("Bound".into());
        assert!(!may_wait_for(&any, &volume), "it has its own");
    }

    #[tokio::test]
    async fn only_host_paths_under_tmp_are_deleted() {
        for path in ["/srv/data", "/tmp/", "/tmp", "/tmp/../srv", "/var/tmp/x"] {
            let text = format!("host_path deleter only supports /tmp/.+ but received provided {path}");
            assert_eq!(delete_host_path(path).await, Err(text));
        }
        let parent = tempfile::Builder::new().tempdir_in("/tmp").expect("a directory can be made in /tmp");
        let path = parent.path().join("volume");
        std::fs::create_dir_all(path.join("deep")).expect("the directory is this test's");
        let text = path.to_str().expect("the name has ASCII letters only");
        assert_eq!(delete_host_path(text).await, Ok(()));
        assert!(!path.exists());
        assert_eq!(delete_host_path(text).await, Ok(()), "what is gone is deleted");
    }
}
