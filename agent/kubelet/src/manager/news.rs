//! What the runtime says: changes go to the pod they belong to, and regularly everything is compared.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Manager;
use crate::cri::events::RuntimeEvent;
use crate::pod::labels;
use crate::pod::mailbox::{Mailbox, Source, Wish};
use crate::pod::observed::Fingerprint;

impl Manager {
    pub fn runtime_event(&self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Resync => self.audit_wanted.notify_one(),
            RuntimeEvent::Changed { id } => self.post_change(&id, false),
            RuntimeEvent::Ended { id } => self.post_change(&id, true),
        }
    }

    /// Tells the pod that has a container or sandbox; if none is known to have it, those that are
    /// starting something: one of them knows the id in a moment.
    fn post_change(&self, id: &str, ended: bool) {
        let mailboxes = self.mailboxes();
        let holds = |mailbox: &&Arc<Mailbox>| {
            let observed = mailbox.snapshot().observed;
            observed.runs.iter().any(|run| run.id == id) || observed.sandboxes.iter().any(|sandbox| sandbox.id == id)
        };
        let tell =
            |mailbox: &Arc<Mailbox>| mailbox.post(|mail| *mail.changed.entry(id.to_owned()).or_default() |= ended);
        match mailboxes.iter().find(holds) {
            Some(mailbox) => tell(mailbox),
            None => mailboxes.iter().filter(|mailbox| mailbox.snapshot().busy).for_each(tell),
        }
    }

    /// Compares every pod with the runtime, regularly and when asked.
    pub async fn audit(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.node.config.audit_period) => {}
                () = self.audit_wanted.notified() => {}
            }
            match self.runtime_lists().await {
                Ok(found) => self.compare(&found),
                Err(error) => tracing::debug!(%error, "the audit could not list what the runtime has"),
            }
        }
    }

    fn compare(self: &Arc<Self>, found: &HashMap<String, Fingerprint>) {
        let empty = Fingerprint::default();
        let known: BTreeMap<String, Arc<Mailbox>> =
            self.state.lock().pods.iter().map(|(uid, mailbox)| (uid.clone(), mailbox.clone())).collect();
        for (uid, mailbox) in &known {
            let snapshot = mailbox.snapshot();
            if snapshot.observed.fingerprint() != *found.get(uid).unwrap_or(&empty) {
                mailbox.post(|mail| mail.resync = true);
            }
        }
        if !self.state.lock().complete {
            return;
        }
        for uid in found.keys().filter(|uid| !known.contains_key(*uid)) {
            let manager = self.clone();
            let uid = uid.clone();
            self.supervisor.spawn(format!("orphan/{uid}"), async move { manager.end_orphan(&uid).await });
        }
    }

    /// Ends a pod that no source names any more.
    pub(super) async fn end_orphan(self: Arc<Self>, uid: &str) {
        let Ok(sandboxes) = self.node.runtime.list_sandboxes(Some(uid)).await else { return };
        let Ok(containers) = self.node.runtime.list_containers(Some(uid)).await else { return };
        let labels_of =
            sandboxes.first().map(|sandbox| &sandbox.labels).or(containers.first().map(|container| &container.labels));
        let Some(found) = labels_of else { return };
        let label = |key: &str| found.get(key).cloned();
        let grace = containers
            .iter()
            .find_map(|container| container.annotations.get(labels::POD_TERMINATION_GRACE)?.parse().ok());
        let pod = Pod {
            metadata: ObjectMeta {
                name: label(labels::POD_NAME),
                namespace: label(labels::POD_NAMESPACE),
                uid: Some(uid.to_owned()),
                ..Default::default()
            },
            spec: Some(PodSpec { termination_grace_period_seconds: grace, ..Default::default() }),
            ..Default::default()
        };
        tracing::info!(
            pod = format!(
                "{}/{}",
                label(labels::POD_NAMESPACE).unwrap_or_default(),
                label(labels::POD_NAME).unwrap_or_default()
            ),
            "ending a pod that is no longer wanted here"
        );
        let wish = Wish {
            pod: Arc::new(pod),
            source: Source::Runtime,
            api_uid: None,
            removed: true,
            verdict: None,
            resize_pending: None,
        };
        self.add_worker(uid.to_owned(), wish, true);
    }
}
