//! Drivers that tests run beside a node: a CSI driver, a device plugin and a driver of dynamically
//! allocated resources, on sockets in the kubelet's directory, in a runtime of their own.

mod csi;
mod device;
mod dra;

pub use csi::{Csi, CsiOptions};
pub use device::DevicePlugin;
pub use dra::Dra;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use proto::pluginregistration::registration_server::{Registration, RegistrationServer};
use proto::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// What was said, in order: calls of the kubelet, and what it told.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Vec<String>>>);

impl Record {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what.into());
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many begin so.
    pub fn count(&self, start: &str) -> usize {
        self.all().iter().filter(|line| line.starts_with(start)).count()
    }
}

/// gRPC servers on sockets, which are removed with it.
struct Servers {
    runtime: Option<Runtime>,
    sockets: Vec<PathBuf>,
}

impl Servers {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self {
            runtime: Some(runtime.unwrap_or_else(|error| panic!("a runtime for a driver: {error}"))),
            sockets: Vec::new(),
        }
    }

    fn serve<S>(&mut self, socket: &Path, service: S)
    where
        S: tower::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<tonic::body::Body>,
                Error = Infallible,
            > + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.serve_all(socket, Routes::new(service));
    }

    /// Several services on one socket.
    fn serve_all(&mut self, socket: &Path, services: Routes) {
        let Some(runtime) = &self.runtime else { return };
        let parent = socket.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
        let _inside = runtime.enter();
        let listener = UnixListener::bind(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        let incoming = futures::stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        runtime.spawn(tonic::transport::Server::builder().add_routes(services).serve_with_incoming(incoming));
        self.sockets.push(socket.to_owned());
    }

    /// A registrar for a driver at `endpoint`.
    fn register(&mut self, socket: &Path, info: PluginInfo, record: &Record) {
        self.serve(socket, RegistrationServer::new(Registrar { info, record: record.clone() }));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Registrar {
    info: PluginInfo,
    record: Record,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = status.into_inner();
        self.record.note(format!("registered {} {}", status.plugin_registered, status.error).trim().to_owned());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
