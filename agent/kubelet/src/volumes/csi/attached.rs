//! Volumes that are attached to this node, and those that are used on it: the two sides of
//! `status.volumesAttached` (the attach-detach controller's word) and `status.volumesInUse` (ours:
//! what is in it is not detached).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use component::{Informer, brief};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::data;
use super::volume::{Volume, attachment_name};
use crate::layout::Layout;
use crate::retry::Delays;

/// How long an attacher may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How soon an attachment that is not attached is looked at again, doubling...
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// ... up to this.
const LOOK_LATEST: Duration = Duration::from_secs(5);

pub struct Attached {
    client: Client,
    node: String,
    told: watch::Receiver<Told>,
    /// Pods by the unique names of the volumes they use.
    users: Mutex<BTreeMap<String, HashSet<String>>>,
    in_use: watch::Sender<Vec<String>>,
}

/// What the API has of this node's volumes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    attached: Vec<String>,
    in_use: Vec<String>,
}

impl Told {
    fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let attached = status.and_then(|status| status.volumes_attached.as_ref()).into_iter().flatten();
        let in_use = status.and_then(|status| status.volumes_in_use.clone());
        Self { attached: attached.map(|volume| volume.name.clone()).collect(), in_use: in_use.unwrap_or_default() }
    }
}

impl Attached {
    /// What pods used before this process is found on disk.
    pub fn new(client: Client, node: &str, nodes: &Informer<Node>, layout: &Layout) -> Self {
        let (changed, told) = watch::channel(Told::default());
        let own = node.to_owned();
        nodes.on_change(move |change| {
            let Some(node) = change.new.filter(|node| node.metadata.name.as_ref() == Some(&own)) else { return };
            let told = Told::of(node);
            changed.send_if_modified(|known| {
                let changed = *known != told;
                *known = told;
                changed
            });
        });
        let this =
            Self { client, node: node.to_owned(), told, users: Mutex::default(), in_use: watch::channel(Vec::new()).0 };
        for (uid, found) in data::of_all(layout) {
            match found {
                Ok((_, record)) if record.attached == "true" => this.use_by(&record.unique_name(), &uid),
                Ok(_) => {}
                Err(unread) => tracing::error!(
                    pod = uid,
                    error = %unread,
                    "a volume of a pod is not known; if it is attached, it may be detached while it is mounted"
                ),
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
    /// pod uses it; that the API says so is waited for too, since what is not in use may be detached.
    pub async fn wait(&self, volume: &Volume, uid: &str) -> Result<BTreeMap<String, String>, String> {
        let name = volume.unique_name();
        self.use_by(&name, uid);
        let until = Instant::now() + LIMIT;
        let mut told = self.told.clone();
        let both = |told: &Told| told.in_use.contains(&name) && told.attached.contains(&name);
        let seen = matches!(tokio::time::timeout_at(until, told.wait_for(both)).await, Ok(Ok(_)));
        if !seen {
            return Err(match self.told.borrow().in_use.contains(&name) {
                true => timed_out(volume),
                false => "Volume has not been added to the list of VolumesInUse in the node's volume status".to_owned(),
            });
        }
        let mut delays = Delays::new(LOOK_AGAIN, LOOK_LATEST);
        loop {
            // The node's status may tell of an attachment that was before this one.
            if let Some(metadata) = self.attachment(volume).await? {
                return Ok(metadata);
            }
            let delay = delays.take();
            if Instant::now() + delay > until {
                return Err(timed_out(volume));
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// What the attacher says, if the volume is attached
    /// (`pkg/volume/csi/csi_attacher.go: verifyAttachmentStatus`).
    async fn attachment(&self, volume: &Volume) -> Result<Option<BTreeMap<String, String>>, String> {
        let id = attachment_name(&volume.driver, &volume.handle, &self.node);
        let found = Api::<VolumeAttachment>::all(self.client.clone()).get(&id).await.map_err(|error| {
            let error = brief(&error);
            format!("volume {} has GET error for volume attachment {id}: {error}", volume.handle)
        })?;
        if found.metadata.deletion_timestamp.is_some() {
            return Err("volume attachment is being deleted".to_owned());
        }
        let status = found.status.unwrap_or_default();
        if status.attached {
            return Ok(Some(status.attachment_metadata.unwrap_or_default()));
        }
        match status.attach_error {
            Some(error) => Err(error.message.unwrap_or_default()),
            None => Ok(None),
        }
    }
}

fn timed_out(volume: &Volume) -> String {
    format!(
        "timed out waiting for external-attacher of {} CSI driver to attach volume {}",
        volume.driver, volume.handle
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::json;

    use super::super::volume::Lifecycle;
    use super::*;

    fn client(answer: impl Fn() -> serde_json::Value + Clone + Send + 'static) -> Client {
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let body = answer().to_string().into_bytes();
            async { Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::from(body))) }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn what_is_used_stays_so_until_the_last_pod_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "/logs");
        let volume = Volume::of("pv", "d", "h", Lifecycle::Persistent);
        let place = data::Place::of(&layout, "before", "pv", "d", "h", false);
        data::Record::of(&volume, "n", true).write(&place.data).unwrap();
        let attached = Attached::new(client(|| json!({})), "n", &Informer::detached(), &layout);
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

    #[tokio::test(start_paused = true)]
    async fn a_volume_is_used_once_it_is_attached_and_everybody_knows_that_it_is_in_use() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let client = client(move || {
            let attached = count.fetch_add(1, Ordering::Relaxed) > 1;
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "a"},
                "spec": {"attacher": "d", "nodeName": "n", "source": {}},
                "status": {"attached": attached, "attachmentMetadata": {"device": "x"}}})
        });
        let (say, told) = watch::channel(Told::default());
        let attached = Attached {
            client,
            node: "n".to_owned(),
            told,
            users: Mutex::default(),
            in_use: watch::channel(Vec::new()).0,
        };
        let volume = Volume::of("pv", "d", "h", Lifecycle::Persistent);
        let name = vec![volume.unique_name()];
        let timed_out = Err("timed out waiting for external-attacher of d CSI driver to attach volume h".to_owned());
        say.send_replace(Told { attached: Vec::new(), in_use: name.clone() });
        assert_eq!(attached.wait(&volume, "u").await, timed_out);
        say.send_replace(Told { attached: name.clone(), in_use: Vec::new() });
        let not_in_use =
            Err("Volume has not been added to the list of VolumesInUse in the node's volume status".to_owned());
        assert_eq!(attached.wait(&volume, "u").await, not_in_use);
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        say.send_replace(Told { attached: name.clone(), in_use: name });
        let metadata = BTreeMap::from([("device".to_owned(), "x".to_owned())]);
        assert_eq!(attached.wait(&volume, "u").await, Ok(metadata));
        assert_eq!(asked.load(Ordering::Relaxed), 3, "the attachment of before was meant twice");
    }
}
