//! Volumes that are attached to this node, and those that are used on it: the two sides of
//! `status.volumesAttached` (the attach-detach controller's word) and `status.volumesInUse` (ours:
//! what is in it is not detached).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use component::Informer;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::data;
use super::volume::{Volume, attachment_name};
use crate::layout::Layout;

/// How long an attacher may take.
const LIMIT: Duration = Duration::from_secs(120);

pub struct Attached {
    client: Client,
    node: String,
    attached: watch::Receiver<Vec<String>>,
    /// Pods by the unique names of the volumes they use.
    users: Mutex<BTreeMap<String, HashSet<String>>>,
    in_use: watch::Sender<Vec<String>>,
}

impl Attached {
    /// What pods used before this process is found on disk.
    pub fn new(client: Client, node: &str, nodes: &Informer<Node>, layout: &Layout) -> Self {
        let (changed, attached) = watch::channel(Vec::new());
        let own = node.to_owned();
        nodes.on_change(move |change| {
            let Some(node) = change.new.filter(|node| node.metadata.name.as_ref() == Some(&own)) else { return };
            let volumes = node.status.as_ref().and_then(|status| status.volumes_attached.as_ref());
            let names: Vec<String> = volumes.into_iter().flatten().map(|volume| volume.name.clone()).collect();
            changed.send_if_modified(|known| {
                let changed = *known != names;
                *known = names;
                changed
            });
        });
        let this = Self {
            client,
            node: node.to_owned(),
            attached,
            users: Mutex::default(),
            in_use: watch::channel(Vec::new()).0,
        };
        for (uid, _, record) in data::of_all(layout) {
            if record.attached == "true" {
                this.use_by(&record.unique_name(), &uid);
            }
        }
        this
    }

    pub fn in_use(&self) -> watch::Receiver<Vec<String>> {
        self.in_use.subscribe()
    }

    fn use_by(&self, name: &str, uid: &str) {
        let mut users = self.users.lock();
        users.entry(name.to_owned()).or_default().insert(uid.to_owned());
        self.publish(&users);
    }

    /// The pod uses these no longer.
    pub fn release(&self, uid: &str, still: &HashSet<String>) {
        let mut users = self.users.lock();
        users.retain(|name, pods| {
            if !still.contains(name) {
                pods.remove(uid);
            }
            !pods.is_empty()
        });
        self.publish(&users);
    }

    fn publish(&self, users: &BTreeMap<String, HashSet<String>>) {
        let names: Vec<String> = users.keys().cloned().collect();
        self.in_use.send_if_modified(|known| {
            let changed = *known != names;
            *known = names;
            changed
        });
    }

    /// Returns what the attacher has to say to the driver, once the volume is attached. From now on the
    /// pod uses it.
    pub async fn wait(&self, volume: &Volume, uid: &str) -> Result<BTreeMap<String, String>, String> {
        let name = volume.unique_name();
        self.use_by(&name, uid);
        let mut attached = self.attached.clone();
        let seen = tokio::time::timeout(LIMIT, attached.wait_for(|names| names.contains(&name))).await;
        let is_attached = matches!(seen, Ok(Ok(_)));
        drop(seen);
        if !is_attached {
            return Err(format!(
                "timed out waiting for external-attacher of {} CSI driver to attach volume {}",
                volume.driver, volume.handle
            ));
        }
        let id = attachment_name(&volume.driver, &volume.handle, &self.node);
        let failed =
            |error: String| format!("volume {} has GET error for volume attachment {id}: {error}", volume.handle);
        let found = Api::<VolumeAttachment>::all(self.client.clone()).get(&id).await.map_err(|error| match error {
            kube::Error::Api(status) => failed(status.message.clone()),
            other => failed(other.to_string()),
        })?;
        if found.metadata.deletion_timestamp.is_some() {
            return Err("volume attachment is being deleted".to_owned());
        }
        Ok(found.status.and_then(|status| status.attachment_metadata).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::volume::Lifecycle;
    use super::*;

    #[tokio::test]
    async fn what_is_used_stays_so_until_the_last_pod_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "/logs");
        let volume = Volume::of("pv", "d", "h", Lifecycle::Persistent);
        let place = data::Place::of(&layout, "before", "pv", "d", "h", false);
        data::Record::of(&volume, "n", true).write(&place.data).unwrap();
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::empty()))
        });
        let client = Client::new(service, "default");
        let attached = Attached::new(client, "n", &Informer::detached(), &layout);
        let names = || attached.in_use().borrow().clone();
        assert_eq!(names(), ["kubernetes.io/csi/d^h"]);
        attached.use_by("kubernetes.io/csi/d^h", "after");
        attached.release("before", &HashSet::new());
        assert_eq!(names(), ["kubernetes.io/csi/d^h"]);
        attached.release("after", &HashSet::from(["kubernetes.io/csi/d^h".to_owned()]));
        assert_eq!(names(), ["kubernetes.io/csi/d^h"], "it could not be unmounted");
        attached.release("after", &HashSet::new());
        assert!(names().is_empty());
    }
}
