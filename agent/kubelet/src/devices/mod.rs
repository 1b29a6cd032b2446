//! Device plugins: extended resources whose devices a plugin on this node hands out
//! (`pkg/kubelet/cm/devicemanager`).
//!
//! Layer: below the pods' workers, which ask [`Devices::admit`] before a pod's sandbox is made and
//! [`Devices::for_container`] when a container is; the node's status shows [`Devices::counts`]. Plugins
//! register on `<root>/device-plugins/kubelet.sock` ([`registration`]) and then stream their devices
//! ([`plugin`]). Who has what is pure ([`ledger`]), and kept in a file ([`checkpoint`]): nobody else
//! could say after a restart which device a container has.
//!
//! As long as no plugin registers there is one task that waits for a connection.

mod checkpoint;
mod ledger;
mod plugin;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use component::Supervisor;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceStatus};
use parking_lot::Mutex;
use proto::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    PreStartContainerRequest, PreferredAllocationRequest,
};
use tokio::sync::watch;

use crate::layout::Layout;
use crate::node::status::DeviceCount;
use crate::plugins::rpc::within;
use ledger::{Ledger, Wish};
use plugin::Plugin;
pub use registration::{ByRegistry, is_extended};

/// A call to a plugin may take this long (`endpoint.go` waits without limit, but for PreStartContainer).
const LIMIT: Duration = Duration::from_secs(30);

/// What containers get of the plugins' devices.
pub type Given = ContainerAllocateResponse;

/// The devices of this node's plugins.
pub struct Devices {
    directory: PathBuf,
    ledger: Mutex<Ledger>,
    /// How often the ledger was noted; changes only while that is locked.
    notes: AtomicU64,
    /// What was last written down. Locked while that is done: nobody who only reads waits for the disk.
    written: Mutex<Note>,
    changed: watch::Sender<()>,
    /// Held while a pod's devices are chosen: plugins are asked in between.
    choosing: tokio::sync::Mutex<()>,
    supervisor: Supervisor,
}

/// The checkpoint's content at one time.
#[derive(Default)]
struct Note {
    /// A later one has a higher number.
    number: u64,
    content: Vec<u8>,
}

impl Devices {
    /// Reads what was given before, and lets plugins register.
    pub fn start(layout: &Layout, supervisor: &Supervisor) -> Arc<Self> {
        let supervisor = supervisor.child("devices");
        let directory = layout.device_plugins();
        let devices = Arc::new(Self {
            ledger: Mutex::new(checkpoint::read(&directory)),
            notes: AtomicU64::default(),
            written: Mutex::default(),
            changed: watch::channel(()).0,
            choosing: tokio::sync::Mutex::default(),
            supervisor: supervisor.clone(),
            directory,
        });
        supervisor.spawn("registration", registration::serve(Arc::downgrade(&devices), devices.directory.clone()));
        devices
    }

    /// Changes with [`Devices::counts`], and with which devices work.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn counts(&self) -> Vec<DeviceCount> {
        self.ledger.lock().counts()
    }

    /// How the devices are that a pod's containers have, by container.
    pub fn health(&self, uid: &str) -> BTreeMap<String, Vec<ResourceStatus>> {
        let ledger = self.ledger.lock();
        if ledger.is_empty() { BTreeMap::new() } else { ledger.health(uid) }
    }

    /// The devices that work, by resource.
    pub fn healthy(&self) -> Vec<(String, Vec<String>)> {
        let ledger = self.ledger.lock();
        ledger.resources().map(|(name, ids)| (name.clone(), ids.iter().cloned().collect())).collect()
    }

    /// The devices that a container has, by resource.
    pub fn of_container(&self, uid: &str, container: &str) -> Vec<(String, Vec<String>)> {
        let held = self.ledger.lock().held(uid, container);
        held.into_iter().map(|(resource, devices, _)| (resource, devices.into_iter().collect())).collect()
    }

    /// Pods that have devices.
    pub fn users(&self) -> BTreeSet<String> {
        self.ledger.lock().pods().map(str::to_owned).collect()
    }

    /// Whether the node has never had a device: what its Node says of any is from before it was made anew.
    pub fn is_new(&self) -> bool {
        !self.directory.join(checkpoint::FILE).exists()
    }

    /// What the Node says is of this node from now on: a new one is so no longer, even if it has no devices.
    pub fn settle(&self) {
        if self.is_new() {
            self.change(|_| ());
        }
    }

    /// Changes the ledger and keeps it.
    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let (result, moved, note) = {
            let mut ledger = self.ledger.lock();
            let before = ledger.states();
            let result = change(&mut ledger);
            (result, ledger.states() != before, self.note(&ledger))
        };
        if let Err(error) = self.keep(note) {
            tracing::error!(%error, directory = %self.directory.display(), "which container has which device could not be written down; after a restart it would not be known");
        }
        if moved {
            self.changed.send_replace(());
        }
        result
    }

    /// Gives the devices to the container, if that can be written down: others would get them after a
    /// restart.
    fn give(&self, wish: &Wish, devices: BTreeSet<String>, given: Given) -> Result<(), String> {
        let note = {
            let mut ledger = self.ledger.lock();
            ledger.give(wish, devices, given);
            self.note(&ledger)
        };
        self.keep(note).map_err(|error| {
            // Somebody may have written it down with a change of theirs meanwhile.
            self.change(|ledger| ledger.take_back(wish));
            format!("failed to write checkpoint file {:?}: {error}", checkpoint::FILE)
        })
    }

    /// What there is to write down now. The ledger is locked.
    fn note(&self, ledger: &Ledger) -> std::io::Result<Note> {
        let number = self.notes.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Note { number, content: checkpoint::content(ledger)? })
    }

    /// Writes the ledger down, unless it is there already: plugins say the same things again and again. A
    /// note that comes after a later one is part of that.
    fn keep(&self, note: std::io::Result<Note>) -> std::io::Result<()> {
        let note = note?;
        let mut written = self.written.lock();
        if note.number < written.number {
            return Ok(());
        }
        if note.content != written.content {
            checkpoint::write(&self.directory, &note.content)?;
        }
        *written = note;
        Ok(())
    }

    /// Gives the pod's containers their devices, unless they have them. A pod that cannot have them is
    /// refused for good, in the words that are returned.
    pub async fn admit(&self, pod: &Pod) -> Result<(), String> {
        if !wishes_any(pod, &self.ledger.lock()) {
            return Ok(());
        }
        let _choosing = self.choosing.lock().await;
        let wishes = ledger::wishes(pod, &self.ledger.lock());
        for wish in wishes {
            self.allocate(&wish)
                .await
                .map_err(|error| format!("Allocate failed due to {error}, which is unexpected"))?;
        }
        self.ledger.lock().confirm(pod.metadata.uid.as_deref().unwrap_or_default());
        Ok(())
    }

    /// The pod runs, with devices that an earlier process gave it: it need not be admitted again.
    pub fn resume(&self, uid: &str) {
        self.ledger.lock().confirm(uid);
    }

    async fn allocate(&self, wish: &Wish) -> Result<(), String> {
        let Some(choice) = self.ledger.lock().choose(wish)? else { return Ok(()) };
        let plugin = self.ledger.lock().plugin(&wish.resource);
        let plugin = plugin.ok_or_else(|| format!("unknown Device Plugin {}", wish.resource))?;
        let preferred = match plugin.options().get_preferred_allocation_available && !choice.is_settled() {
            true => self.preferred(&plugin, &choice).await?,
            false => Vec::new(),
        };
        let chosen = choice.settle(&preferred);
        let request = ContainerAllocateRequest { devices_ids: chosen.iter().cloned().collect() };
        let request = AllocateRequest { container_requests: vec![request] };
        let answer = within(LIMIT, plugin.client().allocate(request)).await.map_err(|error| error.to_string())?;
        let Some(given) = answer.container_responses.into_iter().next() else {
            return Err(format!("no containers return in allocation response of {}", wish.resource));
        };
        self.give(wish, chosen, given)
    }

    async fn preferred(&self, plugin: &Plugin, choice: &ledger::Choice) -> Result<Vec<String>, String> {
        let available: BTreeSet<String> = choice.included.union(&choice.available).cloned().collect();
        let request = ContainerPreferredAllocationRequest {
            available_device_i_ds: available.into_iter().collect(),
            must_include_device_i_ds: choice.included.iter().cloned().collect(),
            allocation_size: i32::try_from(choice.size).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        let answer = within(LIMIT, plugin.client().get_preferred_allocation(request)).await;
        let answer =
            answer.map_err(|error| format!("device plugin GetPreferredAllocation rpc failed with err: {error}"))?;
        Ok(answer.container_responses.into_iter().next().map(|first| first.device_i_ds).unwrap_or_default())
    }

    /// What the container gets, once its plugins have made the devices ready if they wish to.
    pub async fn for_container(&self, pod: &Pod, container: &Container) -> Result<Given, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let held = self.ledger.lock().held(uid, &container.name);
        let mut all = Given::default();
        for (resource, devices, given) in held {
            let plugin = self.ledger.lock().plugin(&resource);
            if let Some(plugin) = plugin.filter(|plugin| plugin.options().pre_start_required) {
                let request = PreStartContainerRequest { devices_ids: devices.into_iter().collect() };
                within(LIMIT, plugin.client().pre_start_container(request))
                    .await
                    .map_err(|error| format!("device plugin PreStartContainer rpc failed with err: {error}"))?;
            }
            ledger::add(&mut all, given);
        }
        Ok(all)
    }

    /// The pod has ended: its devices are free.
    pub fn release(&self, uid: &str) {
        let holds = self.ledger.lock().holds(uid);
        if holds {
            self.change(|ledger| ledger.release(|pod| pod == uid));
        }
    }

    /// Takes back what pods have that are no more.
    pub fn retain(&self, alive: impl Fn(&str) -> bool) {
        let stale = self.ledger.lock().pods().any(|uid| !alive(uid));
        if stale {
            self.change(|ledger| ledger.release(|uid| !alive(uid)));
        }
    }
}

/// Whether the pod wishes devices at all: most do not, and must not wait for those that do.
fn wishes_any(pod: &Pod, ledger: &Ledger) -> bool {
    !ledger.is_empty() && !ledger::wishes(pod, ledger).is_empty()
}

#[cfg(test)]
mod tests {
    use proto::v1beta1::Device;

    use super::*;

    #[tokio::test]
    async fn devices_that_cannot_be_noted_are_not_given_and_what_is_noted_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path(), "/logs");
        let supervisor = Supervisor::new("test");
        let devices = Devices::start(&layout, &supervisor);
        let wish = Wish {
            uid: "p".to_owned(),
            container: "c".to_owned(),
            resource: "example.com/gpu".to_owned(),
            count: 1,
            after: Vec::new(),
        };
        let give = || devices.give(&wish, ["a".to_owned()].into(), Given::default());
        // A directory in the file's place cannot be replaced by it.
        let file = layout.device_plugins().join(checkpoint::FILE);
        std::fs::create_dir_all(file.join("x")).unwrap();
        let error = give().unwrap_err();
        assert!(error.starts_with("failed to write checkpoint file"), "{error}");
        assert!(!devices.ledger.lock().holds("p"), "nobody would know of it after a restart");

        std::fs::remove_dir_all(&file).unwrap();
        give().unwrap();
        std::fs::remove_file(&file).unwrap();
        give().unwrap();
        assert!(!file.exists(), "there was nothing to write");
        devices.release("p");
        assert!(file.exists());
        supervisor.cancel();
    }

    #[tokio::test]
    async fn a_note_that_comes_late_does_not_undo_a_later_one() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path(), "/logs");
        std::fs::create_dir_all(layout.device_plugins()).unwrap();
        let supervisor = Supervisor::new("test");
        let devices = Devices::start(&layout, &supervisor);
        let noted = |resource: &str| {
            let mut ledger = devices.ledger.lock();
            ledger.expect(resource);
            devices.note(&ledger)
        };
        let (first, second) = (noted("example.com/a"), noted("example.com/b"));
        devices.keep(second).unwrap();
        devices.keep(first).unwrap();
        let known = checkpoint::read(&layout.device_plugins());
        let names: Vec<&String> = known.resources().map(|(name, _)| name).collect();
        assert_eq!(names, ["example.com/a", "example.com/b"]);

        // Whoever only looks does not wait for the disk.
        let _writing = devices.written.lock();
        assert!(devices.counts().len() == 2 && devices.healthy().len() == 2 && devices.health("p").is_empty());
        supervisor.cancel();
    }

    #[tokio::test]
    async fn a_node_without_devices_is_new_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path(), "/logs");
        std::fs::create_dir_all(layout.device_plugins()).unwrap();
        let supervisor = Supervisor::new("test");
        let devices = Devices::start(&layout, &supervisor);
        assert!(devices.is_new());
        devices.settle();
        assert!(!devices.is_new() && !Devices::start(&layout, &supervisor).is_new());
        supervisor.cancel();
    }

    #[tokio::test]
    async fn health_that_moves_from_one_device_to_another_is_told() {
        const GPU: &str = "example.com/gpu";
        let directory = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new("test");
        let devices = Devices::start(&Layout::new(directory.path(), "/logs"), &supervisor);
        let plugin = Arc::new(Plugin::detached());
        devices.change(|ledger| ledger.register(GPU, plugin.clone()));
        let device = |id: &str, health: &str| Device { id: id.to_owned(), health: health.to_owned(), topology: None };
        let say = |a: &str, b: &str| {
            devices.change(|ledger| ledger.update(GPU, &plugin, &[device("a", a), device("b", b)]));
        };
        say("Healthy", "Unhealthy");
        let changes = devices.changes();
        say("Healthy", "Unhealthy");
        assert!(!changes.has_changed().unwrap());
        say("Unhealthy", "Healthy");
        assert!(changes.has_changed().unwrap());
        supervisor.cancel();
    }
}
