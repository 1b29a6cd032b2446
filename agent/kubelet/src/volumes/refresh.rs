//! Keeping volumes current while their pods live: files are written again when an object changed or a
//! token is due, volumes of drivers are published again or grown.
//!
//! A queue for each: what a driver is asked for may take minutes, and no file waits for that.

use std::sync::Arc;
use std::time::Duration;

use component::{Outcome, Supervisor, WorkQueue};
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::owner::Owner;
use super::{Entry, NodeVolumes, Part, gather, volumes_of};

/// Pods whose files are refreshed at once.
const WRITERS: usize = 2;
/// Pods whose drivers are asked at once.
const ASKERS: usize = 4;
/// How often volumes are looked at that may have to grow, or that are published again.
pub const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How soon a refresh that failed is tried again, doubling...
pub const FIRST_RETRY: Duration = Duration::from_millis(500);
/// ... up to this, as Kubernetes' operations on volumes.
pub const LONGEST_RETRY: Duration = Duration::from_secs(122);

/// Pods by UID that wait for a refresh.
#[derive(Default)]
pub struct Refreshes {
    pub files: WorkQueue<String>,
    pub drivers: WorkQueue<String>,
}

impl Refreshes {
    pub fn add(&self, uid: &str) {
        self.files.add(uid.to_owned());
        self.drivers.add(uid.to_owned());
    }
}

/// Starts the workers. They hold the volumes weakly: they end with their supervisor, not with the last
/// pod.
pub fn run(volumes: &Arc<NodeVolumes>, supervisor: &Supervisor) {
    let weak = Arc::downgrade(volumes);
    volumes.refreshes.files.run(&supervisor.child("files"), WRITERS, move |uid| {
        let volumes = weak.upgrade();
        async move {
            match volumes {
                Some(volumes) => volumes.refresh_files(&uid).await,
                None => Outcome::Done,
            }
        }
    });
    let weak = Arc::downgrade(volumes);
    volumes.refreshes.drivers.run(&supervisor.child("drivers"), ASKERS, move |uid| {
        let volumes = weak.upgrade();
        async move {
            match volumes {
                Some(volumes) => volumes.refresh_drivers(&uid).await,
                None => Outcome::Done,
            }
        }
    });
}

impl NodeVolumes {
    /// A pod that is not ending, and one part of its volumes.
    fn alive(&self, uid: &str, part: impl Fn(&Entry) -> &Part) -> Option<(Arc<Pod>, Part)> {
        let pods = self.pods.lock();
        let entry = pods.get(uid).filter(|entry| !entry.frozen)?;
        Some((entry.pod.clone(), part(entry).clone()))
    }

    /// Writes a pod's volumes of files again.
    async fn refresh_files(&self, uid: &str) -> Outcome {
        let Some((pod, part)) = self.alive(uid, |entry| &entry.files) else { return Outcome::Done };
        let _working = part.working.lock().await;
        let owner = Owner::of(&pod);
        let mut next: Option<Duration> = None;
        let mut failed = Vec::new();
        for volume in volumes_of(&pod) {
            let Some((plugin, _)) = gather::plugin_of(volume) else { continue };
            // Not set up yet: the worker will do it.
            if !self.layout.volume(uid, plugin, &volume.name).join("..data").exists() {
                continue;
            }
            match self.set_up_files(&pod, volume, owner).await {
                Ok(made) => next = next.into_iter().chain(made.renew_after).min(),
                // The files stay as they are, as Kubernetes leaves them.
                Err(message) => failed.push(format!("{}: {message}", volume.name)),
            }
        }
        self.next(&pod, &part, failed, next)
    }

    /// Publishes volumes of drivers again, and grows them.
    async fn refresh_drivers(&self, uid: &str) -> Outcome {
        let Some((pod, part)) = self.alive(uid, |entry| &entry.others) else { return Outcome::Done };
        let _working = part.working.lock().await;
        // It may have ended meanwhile: what is torn down is not mounted again.
        if self.alive(uid, |entry| &entry.others).is_none() {
            return Outcome::Done;
        }
        let owner = Owner::of(&pod);
        let mut failed = Vec::new();
        if self.csi.has_forgotten(uid) {
            for volume in volumes_of(&pod).iter().filter(|volume| may_be_of_driver(volume)) {
                if let Err(error) = self.set_up_volume(&pod, volume, owner).await {
                    failed.push(error.to_string());
                }
            }
        }
        let refreshed = self.csi.refresh(&pod, owner).await;
        failed.extend(refreshed.failed);
        self.next(&pod, &part, failed, refreshed.again.then_some(LOOK_AGAIN))
    }

    /// When to look again, after `failed`.
    fn next(&self, pod: &Pod, part: &Part, failed: Vec<String>, after: Option<Duration>) -> Outcome {
        let uid = super::uid_of(pod);
        if self.alive(uid, |entry| &entry.files).is_none() {
            return Outcome::Done;
        }
        let mut failures = part.failures.lock();
        if failed.is_empty() {
            failures.clear();
            return after.map_or(Outcome::Done, Outcome::After);
        }
        let (new, delay) = failures.take(failed);
        for message in new {
            tracing::warn!(pod = %name_of(pod), message, "a volume could not be refreshed; trying again");
        }
        Outcome::After(delay)
    }
}

fn may_be_of_driver(volume: &Volume) -> bool {
    volume.csi.is_some() || volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

fn name_of(pod: &Pod) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

#[cfg(test)]
mod tests {
    use component::{EventRecorder, Informers};
    use serde_json::json;

    use super::super::Home;
    use super::super::csi::Csi;
    use super::*;
    use crate::layout::Layout;
    use crate::volume_contract::Volumes;

    fn pod(label: &str) -> Arc<Pod> {
        let items = json!([{"path": "label", "fieldRef": {"fieldPath": "metadata.labels['a']"}}]);
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": label}},
            "spec": {"containers": [], "volumes": [{"name": "v", "downwardAPI": {"items": items}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    /// Needs root: the files are on a tmpfs.
    #[tokio::test]
    async fn files_do_not_wait_for_a_driver_that_hangs() {
        let root = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new("test");
        let layout = Layout::new(root.path(), "/logs");
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, tower::BoxError>("no API".into())
        });
        let client = kube::Client::new(service, "default");
        let informers = Informers::new(client.clone(), &supervisor);
        let recorder = EventRecorder::new(client, &supervisor, "kubelet", "n");
        let csi = Csi::start(layout.clone(), "n", &informers, recorder.clone(), &supervisor);
        let home = Home { layout, node: "n", informers: &informers, recorder };
        let volumes = NodeVolumes::start(home, Arc::new(Default::default), csi, &supervisor);
        let file = volumes.set_up(&pod("before")).await.unwrap()["v"].host_path.join("label");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "before");
        let (_, others) = volumes.enter(&pod("before"));
        let hanging = others.working.lock().await;
        volumes.refresh(&pod("after"));
        let written = async {
            while std::fs::read_to_string(&file).unwrap() != "after" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), written).await.unwrap();
        drop(hanging);
        volumes.tear_down("u").await.unwrap();
        supervisor.cancel();
    }
}
