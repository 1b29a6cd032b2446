//! Dynamically allocated resources: drivers make what a ResourceClaim was allocated ready before the
//! containers of a pod start, and take it back after they ended (`pkg/kubelet/cm/dra`).
//!
//! Layer: beside the pods. Drivers come in through [`crate::plugins`] ([`drivers`], [`driver`]). Which
//! claims are prepared for which pods is pure ([`ledger`]) and kept in a file; the workers call
//! [`Dra::prepare`] before a sandbox is made, [`Dra::cdi_devices`] when a container is, and
//! [`Dra::unprepare`] once nothing of the pod runs.

mod claims;
mod driver;
mod drivers;
mod ledger;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use component::Supervisor;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::layout::Layout;
use claims::Wanted;
use driver::{Claim, Driver};
use drivers::Drivers;
pub use drivers::Registration;
use ledger::{Entry, Ledger};

/// The claims that are prepared on this node.
pub struct Dra {
    client: Client,
    directory: PathBuf,
    drivers: Drivers,
    ledger: Mutex<Ledger>,
    /// Held while drivers are called: what one pod prepares another may share.
    working: tokio::sync::Mutex<()>,
}

impl Dra {
    /// Reads what was prepared before. What drivers offered before this process is taken back: none of
    /// them is known to be there.
    pub fn start(layout: &Layout, client: Client, node: &str, supervisor: &Supervisor) -> Arc<Self> {
        let dra = Self {
            drivers: Drivers::new(client.clone(), node, supervisor),
            ledger: Mutex::new(Ledger::read(&layout.root)),
            directory: layout.root.clone(),
            working: tokio::sync::Mutex::default(),
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
        let _working = self.working.lock().await;
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
        found.map_err(|error| match error {
            kube::Error::Api(status) => format!("fetch ResourceClaim {name}: {}", status.message),
            other => format!("fetch ResourceClaim {name}: {other}"),
        })
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

    /// The pod uses its claims no longer: what no other pod uses is taken back.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        if !self.ledger.lock().is_used_by(uid) {
            return Ok(());
        }
        let _working = self.working.lock().await;
        self.unprepare_all(uid).await.map_err(|error| format!("unprepare dynamic resources: {error}"))
    }

    async fn unprepare_all(&self, uid: &str) -> Result<(), String> {
        let last = self.ledger.lock().only_used_by(uid);
        let mut due: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        for entry in &last {
            for driver in entry.drivers.keys() {
                due.entry(driver.clone()).or_default().push(entry.claim.clone());
            }
        }
        for (name, batch) in due {
            let driver = self.drivers.get(&name)?;
            let answers = driver.unprepare(&batch).await.map_err(|error| format!("NodeUnprepareResources: {error}"))?;
            for (uid, answer) in &answers {
                let claim = batch.iter().find(|claim| claim.uid == *uid);
                let claim = claim
                    .ok_or_else(|| format!("NodeUnprepareResources returned result for unknown claim UID {uid}"))?;
                answer.clone().map_err(|error| {
                    format!("NodeUnprepareResources failed for ResourceClaim {}: {error}", claim.name)
                })?;
            }
            skipped("NodeUnprepareResources", batch.len(), answers.len())?;
        }
        self.change(|ledger| ledger.release(uid))
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
