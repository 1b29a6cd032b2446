//! The socket on which device plugins register (`pkg/kubelet/cm/devicemanager/plugin/v1beta1/server.go`).

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use proto::v1beta1::registration_server::{Registration, RegistrationServer};
use proto::v1beta1::{Empty, RegisterRequest};
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use super::{Devices, checkpoint, plugin};
use crate::grpc_authority::Unnamed;
use crate::plugins::{Handler, Plugin};

pub const SOCKET: &str = "kubelet.sock";
/// The version that plugins and kubelet speak.
const VERSION: &str = "v1beta1";
/// How soon the socket is made again when that failed.
const AGAIN: Duration = Duration::from_secs(10);

struct Server {
    devices: Weak<Devices>,
    directory: PathBuf,
}

/// Serves for as long as the task lives.
pub async fn serve(devices: Weak<Devices>, directory: PathBuf) {
    loop {
        match listen(&directory) {
            Ok(listener) => {
                let server = Server { devices: devices.clone(), directory: directory.clone() };
                let incoming = futures::stream::unfold(listener, |listener| async {
                    Some((listener.accept().await.map(|(stream, _)| Unnamed::new(stream)), listener))
                });
                let service = RegistrationServer::new(server);
                let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
                if let Err(error) = served.await {
                    tracing::warn!(%error, "device plugins could not be listened to; trying again");
                }
            }
            Err(error) => {
                tracing::warn!(%error, directory = %directory.display(), "device plugins cannot register; trying again");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Plugins see that the socket is made anew and register again; their own sockets of before are no use.
fn listen(directory: &Path) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(directory)?;
    for entry in std::fs::read_dir(directory)?.flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| !kind.is_dir());
        if is_file && entry.file_name() != checkpoint::FILE {
            std::fs::remove_file(entry.path())?;
        }
    }
    UnixListener::bind(directory.join(SOCKET))
}

#[async_trait]
impl Registration for Server {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let socket = check(&request, &self.directory).map_err(|message| {
            tracing::warn!(resource = request.resource_name, message, "a device plugin was turned away");
            Status::unknown(message)
        })?;
        let devices = self.devices.upgrade().ok_or_else(|| Status::unavailable("the node is going down"))?;
        plugin::register(&devices, &request.resource_name, &socket, request.options);
        Ok(Response::new(Empty {}))
    }
}

/// Plugins that come in as drivers do, through the registry of sockets.
pub struct ByRegistry(pub Arc<Devices>);

#[async_trait]
impl Handler for ByRegistry {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        let Plugin { name, versions, .. } = plugin;
        if !versions.iter().any(|version| version == VERSION) {
            let versions = versions.join(" ");
            return Err(format!("manager version, {VERSION}, is not among plugin supported versions [{versions}]"));
        }
        if is_extended(name) {
            return Ok(());
        }
        Err(format!("invalid name of device plugin resource: the ResourceName {name:?} is invalid"))
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        plugin::register(&self.0, &plugin.name, &plugin.socket, None);
        Ok(())
    }

    async fn deregister(&self, plugin: &Plugin) {
        plugin::deregister(&self.0, &plugin.name, &plugin.socket);
    }
}

/// The plugin's socket, if its request is in order. Messages are Kubernetes'.
fn check(request: &RegisterRequest, directory: &Path) -> Result<PathBuf, String> {
    let RegisterRequest { version, resource_name, endpoint, .. } = request;
    if version != VERSION {
        return Err(format!(
            "requested API version {version:?} is not supported by kubelet. Supported version is [{VERSION:?}]"
        ));
    }
    if !is_extended(resource_name) {
        return Err(format!("the ResourceName {resource_name:?} is invalid"));
    }
    let mut parts = Path::new(endpoint).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Ok(directory.join(name)),
        _ => Err(format!("the endpoint {endpoint:?} is no name of a socket in {}", directory.display())),
    }
}

/// Whether a resource is one that nodes can have besides Kubernetes' own
/// (`pkg/apis/core/v1/helper: IsExtendedResourceName`).
pub fn is_extended(name: &str) -> bool {
    let Some((domain, _)) = name.split_once('/') else { return false };
    let native = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    !native && !name.starts_with("requests.") && api::names::qualified_name(name).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_register() {
        let request = |version: &str, resource: &str, endpoint: &str| RegisterRequest {
            version: version.to_owned(),
            resource_name: resource.to_owned(),
            endpoint: endpoint.to_owned(),
            options: None,
        };
        let checked = |version: &str, resource: &str, endpoint: &str| {
            check(&request(version, resource, endpoint), Path::new("/d"))
        };
        assert_eq!(checked("v1beta1", "example.com/gpu", "gpu.sock"), Ok("/d/gpu.sock".into()));
        assert_eq!(
            checked("v1alpha1", "example.com/gpu", "gpu.sock"),
            Err("requested API version \"v1alpha1\" is not supported by kubelet. Supported version is [\"v1beta1\"]"
                .to_owned())
        );
        for name in ["gpu", "kubernetes.io/gpu", "requests.example.com/gpu", "example.com/a b"] {
            assert_eq!(checked("v1beta1", name, "s"), Err(format!("the ResourceName {name:?} is invalid")));
        }
        for endpoint in ["", "../x", "/x", "a/b"] {
            assert!(checked("v1beta1", "example.com/gpu", endpoint).is_err(), "{endpoint}");
        }
    }

    #[tokio::test]
    async fn plugins_of_the_registry_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let layout = crate::layout::Layout::new(directory.path(), "/logs");
        std::fs::create_dir_all(layout.device_plugins()).unwrap();
        let supervisor = component::Supervisor::new("test");
        let devices = Devices::start(&layout, &supervisor);
        let registry = ByRegistry(devices.clone());
        let plugin = |name: &str, version: &str| Plugin {
            name: name.to_owned(),
            endpoint: "/s".into(),
            socket: "/s".into(),
            versions: vec![version.to_owned()],
        };
        assert_eq!(
            registry.validate(&plugin("example.com/gpu", "v1alpha1")),
            Err("manager version, v1beta1, is not among plugin supported versions [v1alpha1]".to_owned())
        );
        assert!(registry.validate(&plugin("gpu", "v1beta1")).unwrap_err().starts_with("invalid name of device plugin"));
        let good = plugin("example.com/gpu", "v1beta1");
        registry.validate(&good).unwrap();
        registry.register(&good).await.unwrap();
        assert_eq!(devices.counts()[0].resource, "example.com/gpu");
        assert!(devices.ledger.lock().plugin("example.com/gpu").is_some());
        registry.deregister(&plugin("example.com/other", "v1beta1")).await;
        registry.deregister(&good).await;
        assert!(devices.ledger.lock().plugin("example.com/gpu").is_none());
        supervisor.cancel();
    }

    #[tokio::test]
    async fn sockets_of_before_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("old.sock"), "").unwrap();
        std::fs::write(at(checkpoint::FILE), "{}").unwrap();
        let _listener = listen(directory.path()).unwrap();
        assert!(!at("old.sock").exists() && at(checkpoint::FILE).exists() && at(SOCKET).exists());
    }
}
