//! Dynamically allocated resources: drivers make what a ResourceClaim was allocated ready before the
//! containers of a pod start, and take it back after they ended (`pkg/kubelet/cm/dra`).
//!
//! Layer: beside the pods. Drivers come in through [`crate::plugins`] ([`drivers`], [`driver`]). Which
//! claims are prepared for which pods is pure ([`ledger`]) and kept in a file; the workers call
//! [`Dra::prepare`] before a sandbox is made, [`Dra::cdi_devices`] when a container is, and
//! [`Dra::unprepare`] once nothing of the pod runs. How devices are some drivers tell ([`following`]); what
//! they said is pure ([`health`]), and statuses show it ([`Dra::health`]).

mod claims;
mod driver;
mod drivers;
mod following;
mod health;
mod ledger;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use component::{Supervisor, brief};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::layout::Layout;
use crate::locks::Locks;
use claims::Wanted;
use driver::{Claim, Driver};
use drivers::Drivers;
pub use drivers::Registration;
pub use ledger::Device;
use ledger::{Entry, Ledger};

/// A claim of a container, and the devices that it has of it, with their drivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub namespace: String,
    pub name: String,
    pub devices: Vec<(String, Device)>,
}

/// The claims that are prepared on this node.
pub struct Dra {
    client: Client,
    directory: PathBuf,
    drivers: Drivers,
    ledger: Mutex<Ledger>,
    /// By claim: held while its drivers are called. What one pod prepares another may share.
    working: Locks,
}

impl Dra {
    /// Reads what was prepared before. What drivers offered before this process is taken back: none of
    /// them is known to be there.
    pub fn start(layout: &Layout, client: Client, node: &str, supervisor: &Supervisor) -> Arc<Self> {
        let dra = Self {
            drivers: Drivers::new(client.clone(), node, supervisor),
            ledger: Mutex::new(Ledger::read(&layout.root)),
            directory: layout.root.clone(),
            working: Locks::default(),
            client,
        };
        dra.drivers.wipe_all();
        Arc::new(dra)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> Result<T, String> {
        let mut ledger = self.ledger.lock();
        let result = change(&mut ledger);
        ledger.write(&self.directory).map_err(|error| format!("checkpoint ResourceClaim state: {error}"))?;
        Ok(result)
    }

    /// Makes everything ready that the pod's claims were allocated. Quick for pods without claims, and
    /// idempotent. Messages are Kubernetes'.
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        let wanted = claims::of_pod(pod);
        if wanted.is_empty() {
            return Ok(());
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let names = wanted.iter().filter_map(|claim| claim.name.as_ref().ok()?.as_deref());
        let _working = self.working.hold_all(names.map(|name| format!("{namespace}/{name}")).collect()).await;
        self.prepare_all(pod, &wanted).await.map_err(|error| format!("prepare dynamic resources: {error}"))
    }

    async fn prepare_all(&self, pod: &Pod, wanted: &[Wanted]) -> Result<(), String> {
        // All is looked at before anything is noted: a pod that cannot start can be deleted without
        // the help of a driver that was never here.
        let mut found = Vec::new();
        for claim in wanted {
            let Some(name) = claim.name.clone()? else { continue };
            let object = self.claim(pod, &name).await?;
            claims::check(pod, claim, &object)?;
            let entry = Entry::of(&object).map_err(|error| format!("ResourceClaim {name}: {error}"))?;
            for driver in entry.drivers.keys() {
                self.drivers.get(driver)?;
            }
            found.push(entry);
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut due: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        let mut claims = Vec::new();
        for entry in found {
            let (claim, drivers) = (entry.claim.clone(), entry.drivers.keys().cloned().collect::<Vec<_>>());
            if self.change(|ledger| ledger.reserve(entry, &uid))?? {
                continue;
            }
            for driver in drivers {
                due.entry(driver).or_default().push(claim.clone());
            }
            claims.push(claim);
        }
        for (name, batch) in due {
            let driver = self.drivers.get(&name)?;
            self.prepare_with(&driver, &batch).await?;
        }
        self.change(|ledger| claims.iter().for_each(|claim| ledger.prepared(claim)))
    }

    async fn claim(&self, pod: &Pod, name: &str) -> Result<ResourceClaim, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let found = Api::<ResourceClaim>::namespaced(self.client.clone(), namespace).get(name).await;
        found.map_err(|error| format!("fetch ResourceClaim {name}: {}", brief(&error)))
    }

    async fn prepare_with(&self, driver: &Driver, batch: &[Claim]) -> Result<(), String> {
        let answers = driver.prepare(batch).await.map_err(|error| format!("NodePrepareResources: {error}"))?;
        for (uid, answer) in &answers {
            let claim = batch.iter().find(|claim| claim.uid == *uid);
            let claim =
                claim.ok_or_else(|| format!("NodePrepareResources returned result for unknown claim UID {uid}"))?;
            let devices = answer
                .clone()
                .map_err(|error| format!("NodePrepareResources failed for ResourceClaim {}: {error}", claim.name))?;
            self.ledger.lock().devices(claim, &driver.name, devices);
        }
        skipped("NodePrepareResources", batch.len(), answers.len())
    }

    /// The CDI devices of what the container claims.
    pub fn cdi_devices(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut devices = Vec::new();
        for (name, request) in claims::of_container(pod, container)? {
            let ledger = self.ledger.lock();
            let entry = ledger.get(namespace, &name).ok_or_else(|| {
                format!("internal error: unable to get claim info for ResourceClaim {name} in namespace {namespace}")
            })?;
            for device in entry.cdi_devices(&request) {
                if !devices.contains(&device) {
                    devices.push(device);
                }
            }
        }
        Ok(devices)
    }

    /// What is prepared of a container's claims.
    pub fn of_container(&self, pod: &Pod, container: &Container) -> Vec<Held> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut found: Vec<Held> = Vec::new();
        for (name, request) in claims::of_container(pod, container).unwrap_or_default() {
            let ledger = self.ledger.lock();
            let Some(entry) = ledger.get(namespace, &name) else { continue };
            let devices = entry.devices_of(&request).map(|(driver, device)| (driver.clone(), device.clone()));
            let held = Held { namespace: namespace.to_owned(), name: name.clone(), devices: devices.collect() };
            match found.iter_mut().find(|known| known.name == name) {
                // Two requests of one claim may share devices.
                Some(known) => {
                    for device in held.devices {
                        if !known.devices.contains(&device) {
                            known.devices.push(device);
                        }
                    }
                }
                None => found.push(held),
            }
        }
        found
    }

    /// The pod uses its claims no longer: what no other pod uses is taken back. Goes on after errors: what
    /// one driver does not give back does not keep the rest.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        let used = self.ledger.lock().used_by(uid);
        if used.is_empty() {
            return Ok(());
        }
        let names = used.iter().map(|claim| format!("{}/{}", claim.namespace, claim.name));
        let _working = self.working.hold_all(names.collect()).await;
        self.unprepare_all(uid).await.map_err(|error| format!("unprepare dynamic resources: {error}"))
    }

    async fn unprepare_all(&self, uid: &str) -> Result<(), String> {
        let last = self.ledger.lock().withdraw(uid);
        let mut due: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        for entry in &last {
            for driver in entry.drivers.keys() {
                due.entry(driver.clone()).or_default().push(entry.claim.clone());
            }
        }
        let asked = due.iter().map(|(driver, batch)| self.unprepare_with(driver, batch));
        let (mut kept, mut problems) = (Vec::new(), Vec::new());
        for refused in futures::future::join_all(asked).await {
            for (claim, problem) in refused {
                kept.push(claim);
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
        self.change(|ledger| ledger.release(uid, &kept))?;
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }

    /// Returns the claims that the driver did not take back, and why.
    async fn unprepare_with(&self, driver: &str, batch: &[Claim]) -> Vec<(Claim, String)> {
        let answers = match self.drivers.get(driver) {
            Ok(driver) => driver.unprepare(batch).await.map_err(|error| format!("NodeUnprepareResources: {error}")),
            Err(error) => Err(error),
        };
        let known = |uid: &String| batch.iter().any(|claim| claim.uid == *uid);
        let answers = answers.and_then(|answers| match answers.keys().find(|uid| !known(uid)) {
            Some(uid) => Err(format!("NodeUnprepareResources returned result for unknown claim UID {uid}")),
            None => Ok(answers),
        });
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => return batch.iter().map(|claim| (claim.clone(), error.clone())).collect(),
        };
        let missing = skipped("NodeUnprepareResources", batch.len(), answers.len()).err().unwrap_or_default();
        let refused = |claim: &Claim| match answers.get(&claim.uid) {
            Some(Ok(())) => None,
            Some(Err(error)) => {
                Some(format!("NodeUnprepareResources failed for ResourceClaim {}: {error}", claim.name))
            }
            None => Some(missing.clone()),
        };
        batch.iter().filter_map(|claim| Some((claim.clone(), refused(claim)?))).collect()
    }

    /// Changes when a device is no longer as its driver said.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.drivers.health.changes()
    }

    /// Pods that claims are prepared for.
    pub fn users(&self) -> BTreeSet<String> {
        self.ledger.lock().pods().collect()
    }

    /// How the devices are that the pod's containers claim, by container.
    pub fn health(&self, pod: &Pod) -> BTreeMap<String, Vec<ResourceStatus>> {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let told = containers.map(|container| (container.name.clone(), self.health_of(pod, container)));
        told.filter(|(_, told)| !told.is_empty()).collect()
    }

    fn health_of(&self, pod: &Pod, container: &Container) -> Vec<ResourceStatus> {
        let labels = claims::labels(pod, container);
        if labels.is_empty() {
            return Vec::new();
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let ledger = self.ledger.lock();
        let told = labels.into_iter().filter_map(|(name, claim, request)| {
            let mut devices: Vec<ResourceHealth> = Vec::new();
            for (driver, device) in ledger.get(namespace, &claim)?.devices_of(&request) {
                let health = self.drivers.health.of(driver, device);
                if devices.iter().all(|known| known.resource_id != health.resource_id) {
                    devices.push(health);
                }
            }
            (!devices.is_empty()).then_some(ResourceStatus { name, resources: Some(devices) })
        });
        told.collect()
    }

    /// Pods that claims are prepared for, but for these.
    pub fn strangers(&self, known: &HashSet<String>) -> Vec<String> {
        self.ledger.lock().pods().filter(|uid| !known.contains(uid)).collect()
    }
}

fn skipped(call: &str, asked: usize, answered: usize) -> Result<(), String> {
    match asked.saturating_sub(answered) {
        0 => Ok(()),
        some => Err(format!("{call} skipped {some} ResourceClaims")),
    }
}
