//! The drivers that are registered with this node, and the ResourceSlices of those that are not
//! (`pkg/kubelet/cm/dra/plugin/dra_plugin_manager.go`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component::Supervisor;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use parking_lot::Mutex;

use super::Dra;
use super::driver::{Driver, HEALTH, SERVICES};
use super::following::{self, Board};
use crate::plugins::{Handler, Plugin};
use crate::retry::Delays;

/// How long a driver may be away before what it offers is taken back.
const AWAY: Duration = Duration::from_secs(30);
/// How soon that is tried again, doubling...
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// ... up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

pub struct Drivers {
    client: Client,
    node: String,
    supervisor: Supervisor,
    known: Mutex<HashMap<String, Known>>,
    /// How their devices are.
    pub health: Arc<Board>,
}

/// A driver can have several plugins while it is being updated.
#[derive(Default)]
struct Known {
    plugins: Vec<Arc<Driver>>,
    /// Listens to the newest, if that tells how devices are.
    listening: Option<Listening>,
    /// Takes the driver's slices back once it has been away for long.
    wiping: Option<Supervisor>,
}

struct Listening {
    endpoint: PathBuf,
    supervisor: Supervisor,
}

impl Drivers {
    pub fn new(client: Client, node: &str, supervisor: &Supervisor) -> Self {
        Self {
            client,
            node: node.to_owned(),
            supervisor: supervisor.child("dra"),
            known: Mutex::default(),
            health: Arc::default(),
        }
    }

    /// The plugin that registered last.
    pub fn get(&self, name: &str) -> Result<Arc<Driver>, String> {
        let known = self.known.lock();
        let newest = known.get(name).and_then(|known| known.plugins.last()).cloned();
        newest.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    fn add(&self, plugin: &Plugin, service: &str) -> Result<(), String> {
        let Plugin { name, endpoint, .. } = plugin;
        let mut all = self.known.lock();
        let known = all.entry(name.clone()).or_default();
        if known.plugins.iter().any(|other| other.endpoint == *endpoint) {
            return Err(format!("endpoint {} already registered for DRA driver plugin {name}", endpoint.display()));
        }
        let health = health_service(&plugin.versions);
        known.plugins.push(Arc::new(Driver::new(name, endpoint, &plugin.socket, service, health)));
        self.listen(name, known);
        if let Some(wiping) = known.wiping.take() {
            wiping.cancel();
        }
        Ok(())
    }

    fn remove(&self, plugin: &Plugin) {
        let mut all = self.known.lock();
        let Some(known) = all.get_mut(&plugin.name) else { return };
        known.plugins.retain(|other| other.endpoint != plugin.endpoint);
        self.listen(&plugin.name, known);
        if known.plugins.is_empty() && known.wiping.is_none() {
            let wiping = self.supervisor.child(&plugin.name);
            let (client, node, driver) = (self.client.clone(), self.node.clone(), plugin.name.clone());
            wiping.spawn("wipe", async move {
                tokio::time::sleep(AWAY).await;
                wipe(client, &node, Some(&driver)).await;
            });
            known.wiping = Some(wiping);
        }
    }

    /// Only the plugin that registered last is asked how devices are.
    fn listen(&self, name: &str, known: &mut Known) {
        let newest = known.plugins.last();
        let endpoint = newest.map(|driver| &driver.endpoint);
        if endpoint.is_some() && endpoint == known.listening.as_ref().map(|listening| &listening.endpoint) {
            return;
        }
        if let Some(before) = known.listening.take() {
            before.supervisor.cancel();
        }
        let Some((driver, client)) = newest.and_then(|driver| Some((driver, driver.health()?))) else {
            return self.health.end(name, None);
        };
        let supervisor = self.supervisor.child(name);
        let following = following::follow(self.health.clone(), driver.clone(), client, self.health.begin(name));
        supervisor.spawn("health", following);
        known.listening = Some(Listening { endpoint: driver.endpoint.clone(), supervisor });
    }

    /// Takes back what every driver of this node offers.
    pub fn wipe_all(&self) {
        let (client, node) = (self.client.clone(), self.node.clone());
        self.supervisor.spawn("wipe", async move { wipe(client, &node, None).await });
    }
}

async fn wipe(client: Client, node: &str, driver: Option<&str>) {
    let slices: Api<ResourceSlice> = Api::all(client);
    let of_driver = driver.map(|driver| format!(",spec.driver={driver}")).unwrap_or_default();
    let selected = ListParams::default().fields(&format!("spec.nodeName={node}{of_driver}"));
    let mut delays = Delays::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        match slices.delete_collection(&DeleteParams::default(), &selected).await {
            Ok(_) => return,
            Err(kube::Error::Api(answer)) if answer.code == 404 => return,
            Err(error) => {
                tracing::debug!(%error, node, "resource slices of drivers that are not here could not be deleted; trying again")
            }
        }
        tokio::time::sleep(delays.take()).await;
    }
}

/// Taking drivers in.
pub struct Registration(pub Arc<Dra>);

#[async_trait]
impl Handler for Registration {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        service(plugin).map(drop)
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        self.0.drivers.add(plugin, service(plugin)?)
    }

    async fn deregister(&self, plugin: &Plugin) {
        self.0.drivers.remove(plugin);
    }
}

/// The first of the plugin's services that is spoken here. Messages are Kubernetes'.
fn service(plugin: &Plugin) -> Result<&'static str, String> {
    let Plugin { name, endpoint, versions, .. } = plugin;
    let invalid = |why: String| {
        format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {}: {why}", endpoint.display())
    };
    if versions.is_empty() {
        return Err(invalid("empty list of supported gRPC services (aka supported versions)".to_owned()));
    }
    let spoken = |version: &String| SERVICES.into_iter().find(|service| service == version);
    let quoted = |texts: Vec<&str>| {
        let quoted: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
        format!("[{}]", quoted.join(" "))
    };
    versions.iter().find_map(spoken).ok_or_else(|| {
        invalid(format!(
            "none of services supported by the plugin ({}) are supported by the kubelet ({})",
            quoted(versions.iter().map(String::as_str).collect()),
            quoted(SERVICES.to_vec())
        ))
    })
}

/// The newest of the services by which the plugin tells how devices are; it need not have any.
fn health_service(versions: &[String]) -> Option<&'static str> {
    HEALTH.into_iter().find(|service| versions.iter().any(|version| version == service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_way_to_tell_of_devices_is_taken() {
        for (versions, service) in [
            (vec!["v1.DRAPlugin"], None),
            (vec!["v1.DRAPlugin", "v1alpha1.DRAResourceHealth"], Some("v1alpha1.DRAResourceHealth")),
            (vec!["v1alpha1.DRAResourceHealth", "v1.DRAResourceHealth"], Some("v1.DRAResourceHealth")),
        ] {
            let versions: Vec<String> = versions.into_iter().map(str::to_owned).collect();
            assert_eq!(health_service(&versions), service, "{versions:?}");
        }
    }

    fn plugin(endpoint: &str, versions: &[&str]) -> Plugin {
        Plugin {
            name: "d.example".to_owned(),
            endpoint: endpoint.into(),
            socket: endpoint.into(),
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        }
    }

    #[test]
    fn the_first_service_that_both_speak() {
        assert_eq!(
            service(&plugin("/s", &["v2.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAPlugin"])),
            Ok("v1beta1.DRAPlugin")
        );
        let invalid = "invalid supported gRPC versions of DRA driver plugin d.example at endpoint /s: ";
        assert_eq!(
            service(&plugin("/s", &[])),
            Err(format!("{invalid}empty list of supported gRPC services (aka supported versions)"))
        );
        assert_eq!(
            service(&plugin("/s", &["v1alpha3"])),
            Err(format!(
                "{invalid}none of services supported by the plugin ([\"v1alpha3\"]) are supported by the kubelet ([\"v1.DRAPlugin\" \"v1beta1.DRAPlugin\"])"
            ))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slices_go_when_a_driver_stays_away() {
        let (deleted, mut deletions) = tokio::sync::mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let _ = deleted.send(request.uri().to_string());
            async {
                let body =
                    serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
                Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::from(body.to_string().into_bytes())))
            }
        });
        let supervisor = Supervisor::new("test");
        let drivers = Drivers::new(Client::new(service, "default"), "n", &supervisor);
        let unknown = Some("DRA driver d.example is not registered".to_owned());
        assert_eq!(drivers.get("d.example").err(), unknown);
        drivers.add(&plugin("/old", &[]), SERVICES[0]).unwrap();
        drivers.add(&plugin("/new", &[]), SERVICES[0]).unwrap();
        assert_eq!(
            drivers.add(&plugin("/new", &[]), SERVICES[0]),
            Err("endpoint /new already registered for DRA driver plugin d.example".to_owned())
        );
        drivers.remove(&plugin("/old", &[]));
        assert!(drivers.get("d.example").is_ok(), "an update is under way");
        drivers.remove(&plugin("/new", &[]));
        tokio::time::sleep(AWAY / 2).await;
        drivers.add(&plugin("/again", &[]), SERVICES[0]).unwrap();
        tokio::time::sleep(AWAY * 2).await;
        assert!(deletions.try_recv().is_err(), "it came back in time");
        drivers.remove(&plugin("/again", &[]));
        assert_eq!(drivers.get("d.example").err(), unknown);
        let deleted = deletions.recv().await.unwrap();
        assert!(
            deleted.contains("/apis/resource.k8s.io/v1/resourceslices") && deleted.contains("d.example"),
            "{deleted}"
        );
        supervisor.cancel();
    }
}
