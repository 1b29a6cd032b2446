//! Volumes of CSI drivers (`pkg/volume/csi`).
//!
//! Layer: a part of `crate::volumes`. Drivers come in through [`crate::plugins`] ([`drivers`],
//! [`driver`]), what the API knows of them is written by [`node_info`]. A volume goes: what it is
//! ([`volume`], pure) and what its driver's object says ([`policy`], pure) → attached to the node
//! ([`attached`]) → staged → published ([`set_up`]) → given to the pod's group; and back
//! ([`tear_down`]). [`expand`] grows it, [`usage`] says how full it is.
//!
//! What is mounted is known from [`data`], which is on disk: nothing else outlives the process, and
//! what is remembered in memory only saves repeating calls.

mod attached;
mod data;
mod driver;
mod drivers;
mod expand;
mod node_info;
mod policy;
mod set_up;
mod tear_down;
#[cfg(test)]
mod tests;
mod usage;
mod volume;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component::{EventRecorder, Informers, Supervisor, brief};
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::tokens::Tokens;
use crate::layout::Layout;
use crate::locks::Locks;
use crate::plugins::{Handler, Plugin};
use crate::retry::Delays;
use crate::volume_contract::MountedVolume;
use attached::Attached;
use driver::Driver;
use drivers::Drivers;
use node_info::NodeInfo;
use volume::SecretName;

pub(super) use data::PLUGIN;
pub(super) use set_up::Order;
pub(super) use volume::Volume;

/// How soon the node's CSINode is looked for again when it could not be made.
const INITIALIZE_AGAIN: Duration = Duration::from_secs(1);
const INITIALIZE_LATEST: Duration = Duration::from_secs(60);

/// The CSI volumes of this node.
pub struct Csi {
    layout: Layout,
    client: Client,
    node: String,
    recorder: EventRecorder,
    drivers: Drivers,
    info: NodeInfo,
    attached: Attached,
    tokens: Tokens,
    supervisor: Supervisor,
    /// What this process published, by the pod's UID and the volume's name in the pod.
    mounted: Mutex<HashMap<(String, String), Published>>,
    /// By volume: held while it is mounted or unmounted, for whichever pod.
    locks: Locks,
}

#[derive(Clone)]
struct Published {
    volume: Arc<Volume>,
    mounted: MountedVolume,
    /// The claim, if there is one.
    claim: Option<String>,
    /// It is published again every now and then.
    republish: bool,
    usage: Arc<Mutex<Option<usage::Known>>>,
}

impl Csi {
    pub fn start(
        layout: Layout,
        node: &str,
        informers: &Informers,
        recorder: EventRecorder,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let client = informers.client();
        let csi = Arc::new(Self {
            attached: Attached::new(client.clone(), node, &informers.of::<Node>(), &layout),
            info: NodeInfo::new(client.clone(), node),
            tokens: Tokens::new(client.clone()),
            drivers: Drivers::default(),
            supervisor: supervisor.child("csi"),
            node: node.to_owned(),
            mounted: Mutex::default(),
            locks: Locks::default(),
            layout,
            client,
            recorder,
        });
        supervisor.spawn("csi-node", initialize(csi.clone()));
        csi
    }

    pub fn in_use(&self) -> watch::Receiver<Vec<String>> {
        self.attached.in_use()
    }

    async fn object(&self, driver: &str) -> Result<Option<CSIDriver>, String> {
        Api::<CSIDriver>::all(self.client.clone()).get_opt(driver).await.map_err(|error| brief(&error))
    }

    /// A Secret's content as drivers take it.
    async fn secret(&self, secret: Option<&SecretName>) -> Result<HashMap<String, String>, String> {
        let Some((namespace, name)) = secret else { return Ok(HashMap::new()) };
        let found = Api::<Secret>::namespaced(self.client.clone(), namespace).get(name).await.map_err(|error| {
            let error = brief(&error);
            format!(
                "kubernetes.io/csi: failed to find the secret {name} in the namespace {namespace} with error: {error}"
            )
        })?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(found.data.into_iter().flatten().map(|(key, value)| (key, text(value.0))).collect())
    }
}

/// Makes the node's CSINode, which others look for also while it is empty.
async fn initialize(csi: Arc<Csi>) {
    let mut delays = Delays::new(INITIALIZE_AGAIN, INITIALIZE_LATEST);
    while let Err(error) = csi.info.csi_node().await {
        tracing::debug!(%error, "the node's CSINode could not be made; trying again");
        tokio::time::sleep(delays.take()).await;
    }
}

/// Taking drivers in (`pkg/volume/csi/csi_plugin.go: RegistrationHandler`).
pub struct Registration(pub Arc<Csi>);

#[async_trait]
impl Handler for Registration {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        let endpoint = plugin.endpoint.display();
        self.0.drivers.validate(plugin).map(drop).map_err(|error| {
            format!("validation failed for CSI Driver {} at endpoint {endpoint}: {error}", plugin.name)
        })
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        let csi = &self.0;
        let version = csi.drivers.validate(plugin)?;
        let driver = Driver::new(&plugin.name, &plugin.endpoint, &plugin.socket, version, &csi.layout);
        let driver = Arc::new(driver);
        if let Err(error) = csi.tell_of(&driver).await {
            self.deregister(plugin).await;
            return Err(error);
        }
        csi.drivers.put(driver.clone());
        let cleaning = csi.clone();
        csi.supervisor.spawn(&plugin.name, async move { cleaning.unstage_forgotten(&driver).await });
        Ok(())
    }

    async fn deregister(&self, plugin: &Plugin) {
        let csi = &self.0;
        // What was told of it may stand also if it never came as far as to be used.
        if !csi.drivers.remove(plugin) && csi.drivers.get(&plugin.name).is_ok() {
            return;
        }
        if let Err(error) = csi.info.uninstall(&plugin.name).await {
            tracing::warn!(driver = plugin.name, error, "the API still names a CSI driver that is gone from this node");
        }
    }
}

impl Csi {
    /// Writes into the API what the driver says of the node.
    async fn tell_of(&self, driver: &Driver) -> Result<(), String> {
        let info = driver.info().await.map_err(|error| error.to_string())?;
        self.info.install(&driver.name, &info).await
    }
}

/// Names of volumes.
type Names = HashSet<String>;
