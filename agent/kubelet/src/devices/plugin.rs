//! One device plugin: its client, and the stream of its devices for as long as it lasts.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use component::Supervisor;
use proto::v1beta1::device_plugin_client::DevicePluginClient;
use proto::v1beta1::{DevicePluginOptions, Empty};
use tonic::transport::Channel;

use super::Devices;
use crate::plugins::rpc::within;

/// How long a resource is shown whose plugin is gone (`endpointStopGracePeriod`).
const GRACE: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(10);

pub struct Plugin {
    client: DevicePluginClient<Channel>,
    socket: PathBuf,
    options: OnceLock<DevicePluginOptions>,
    /// Ends the stream when another plugin takes the resource.
    supervisor: Supervisor,
}

impl Plugin {
    fn new(socket: &Path, supervisor: Supervisor) -> Self {
        let client = DevicePluginClient::new(proto::unix_channel_lazy(socket));
        Self { client, socket: socket.to_owned(), options: OnceLock::new(), supervisor }
    }

    /// One that nothing stands behind.
    #[cfg(test)]
    pub fn detached() -> Self {
        Self::new(Path::new("/nonexistent"), Supervisor::new("test"))
    }

    pub fn client(&self) -> DevicePluginClient<Channel> {
        self.client.clone()
    }

    pub fn options(&self) -> DevicePluginOptions {
        self.options.get().copied().unwrap_or_default()
    }
}

/// Takes a plugin in: from now on its devices are followed.
pub fn register(devices: &Arc<Devices>, resource: &str, socket: &Path, options: Option<DevicePluginOptions>) {
    let supervisor = devices.supervisor.child(resource);
    let plugin = Arc::new(Plugin::new(socket, supervisor.clone()));
    if let Some(options) = options {
        // Nobody else has the plugin yet.
        let _ = plugin.options.set(options);
    }
    tracing::info!(resource, socket = %socket.display(), "a device plugin registers");
    let before = devices.change(|ledger| ledger.register(resource, plugin.clone()));
    if let Some(before) = before {
        before.supervisor.cancel();
    }
    supervisor.spawn("devices", follow(Arc::downgrade(devices), resource.to_owned(), plugin));
}

/// The plugin on this socket is gone.
pub fn deregister(devices: &Arc<Devices>, resource: &str, socket: &Path) {
    let plugin = devices.ledger.lock().plugin(resource).filter(|plugin| plugin.socket == socket);
    if let Some(plugin) = plugin {
        plugin.supervisor.cancel();
        lose(devices, resource, &plugin);
    }
}

/// Its devices do not work, and are forgotten unless it comes back.
fn lose(devices: &Arc<Devices>, resource: &str, plugin: &Arc<Plugin>) {
    if let Some(loss) = devices.change(|ledger| ledger.lose(resource, plugin)) {
        devices.supervisor.spawn(resource, forget(Arc::downgrade(devices), resource.to_owned(), loss));
    }
}

async fn follow(devices: Weak<Devices>, resource: String, plugin: Arc<Plugin>) {
    if let Err(error) = listen(&devices, &resource, &plugin).await {
        tracing::warn!(resource, error, "a device plugin is gone; its devices cannot be had");
    }
    if let Some(devices) = devices.upgrade() {
        lose(&devices, &resource, &plugin);
    }
}

async fn listen(devices: &Weak<Devices>, resource: &str, plugin: &Arc<Plugin>) -> Result<(), String> {
    if plugin.options.get().is_none() {
        let options = within(LIMIT, plugin.client().get_device_plugin_options(Empty {})).await;
        let _ = plugin.options.set(options.map_err(|error| error.to_string())?);
    }
    let stream = plugin.client().list_and_watch(Empty {}).await.map_err(|error| error.message().to_owned())?;
    let mut stream = stream.into_inner();
    while let Some(answer) = stream.message().await.map_err(|error| error.message().to_owned())? {
        let Some(devices) = devices.upgrade() else { return Ok(()) };
        devices.change(|ledger| ledger.update(resource, plugin, &answer.devices));
    }
    Err("its stream of devices ended".to_owned())
}

/// A resource that no plugin comes back for is shown no longer. One that came back and went again has
/// its time from then on.
async fn forget(devices: Weak<Devices>, resource: String, loss: u64) {
    tokio::time::sleep(GRACE).await;
    if let Some(devices) = devices.upgrade() {
        devices.change(|ledger| ledger.remove(&resource, loss));
    }
}
