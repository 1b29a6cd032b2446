use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use component::Supervisor;
use parking_lot::Mutex;
use proto::pluginregistration::RegistrationStatusResponse;
use proto::pluginregistration::registration_server::{Registration, RegistrationServer};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::*;

/// A registrar on a socket, that passes on what it is told.
struct Registrar {
    info: PluginInfo,
    told: mpsc::UnboundedSender<RegistrationStatus>,
}

#[async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let _ = self.told.send(status.into_inner());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Takes plugins of version 1, and says what it was asked.
struct Listener {
    heard: mpsc::UnboundedSender<String>,
    /// Registrations that fail before one succeeds.
    failures: Mutex<u32>,
}

#[async_trait]
impl Handler for Listener {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        if plugin.versions.iter().any(|version| version == "1") { Ok(()) } else { Err("only version 1".to_owned()) }
    }

    async fn register(&self, plugin: &Plugin) -> Result<(), String> {
        let mut failures = self.failures.lock();
        if *failures > 0 {
            *failures -= 1;
            return Err("not yet".to_owned());
        }
        let _ = self.heard.send(format!("+{} {}", plugin.name, plugin.socket.display()));
        Ok(())
    }

    async fn deregister(&self, plugin: &Plugin) {
        let _ = self.heard.send(format!("-{}", plugin.name));
    }
}

struct Stage {
    directory: tempfile::TempDir,
    supervisor: Supervisor,
    heard: mpsc::UnboundedReceiver<String>,
    told: mpsc::UnboundedReceiver<RegistrationStatus>,
    tell: mpsc::UnboundedSender<RegistrationStatus>,
}

impl Stage {
    fn new(failures: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new("test");
        let (heard, hear) = mpsc::unbounded_channel();
        let (tell, told) = mpsc::unbounded_channel();
        let listener = Listener { heard, failures: Mutex::new(failures) };
        let handlers: Handlers = [("CSIPlugin", Arc::new(listener) as Arc<dyn Handler>)].into();
        let resolve: Resolve = Arc::new(|path| PathBuf::from("/own").join(path.strip_prefix("/").unwrap()));
        let watched = directory.path().join("registry");
        supervisor
            .spawn("watch", super::super::watch(watched, Arc::new(handlers), resolve, supervisor.child("plugins")));
        Self { directory, supervisor, heard: hear, told, tell }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join("registry").join(name)
    }

    /// A registrar that serves until the supervisor that is returned is cancelled.
    fn registrar(&self, name: &str, kind: &str, version: &str) -> Supervisor {
        let serving = self.supervisor.child(name);
        let info = PluginInfo {
            r#type: kind.to_owned(),
            name: "d.example".to_owned(),
            endpoint: "/csi.sock".to_owned(),
            supported_versions: vec![version.to_owned()],
        };
        std::fs::create_dir_all(self.directory.path().join("registry")).unwrap();
        let listener = tokio::net::UnixListener::bind(self.socket(name)).unwrap();
        let registrar = Registrar { info, told: self.tell.clone() };
        let incoming = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(registrar));
        serving.spawn_try("serve", server.serve_with_incoming(incoming));
        serving
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.supervisor.cancel();
    }
}

#[tokio::test]
async fn plugins_come_go_and_come_back() {
    let mut stage = Stage::new(0);
    let first = stage.registrar("d.sock", "CSIPlugin", "1");
    assert_eq!(stage.heard.recv().await.unwrap(), "+d.example /own/csi.sock");
    assert_eq!(stage.told.recv().await.unwrap(), RegistrationStatus { plugin_registered: true, error: String::new() });

    // made anew: given back, then taken again
    first.cancel();
    std::fs::remove_file(stage.socket("d.sock")).unwrap();
    let _second = stage.registrar("d.sock", "CSIPlugin", "1");
    assert_eq!(stage.heard.recv().await.unwrap(), "-d.example");
    assert_eq!(stage.heard.recv().await.unwrap(), "+d.example /own/csi.sock");

    std::fs::remove_file(stage.socket("d.sock")).unwrap();
    assert_eq!(stage.heard.recv().await.unwrap(), "-d.example");
}

#[tokio::test]
async fn a_plugin_is_told_why_it_is_not_registered() {
    let mut stage = Stage::new(0);
    let _old = stage.registrar("old.sock", "CSIPlugin", "0.3");
    let said = stage.told.recv().await.unwrap();
    assert!(!said.plugin_registered);
    assert_eq!(said.error, "RegisterPlugin error -- plugin validation failed with err: only version 1");
    let _other = stage.registrar("other.sock", "ToasterPlugin", "1");
    let expected = format!(
        "RegisterPlugin error -- no handler registered for plugin type: ToasterPlugin at socket {}",
        stage.socket("other.sock").display()
    );
    loop {
        // the first is tried again meanwhile
        let said = stage.told.recv().await.unwrap();
        assert!(!said.plugin_registered);
        if said.error == expected {
            break;
        }
    }
}

#[tokio::test]
async fn a_registration_that_fails_is_tried_again() {
    let mut stage = Stage::new(1);
    let _plugin = stage.registrar("d.sock", "CSIPlugin", "1");
    let said = stage.told.recv().await.unwrap();
    assert_eq!(said.error, "RegisterPlugin error -- plugin registration failed with err: not yet");
    // What was half made the handler has taken back itself: there may be another plugin of that name.
    assert_eq!(stage.heard.recv().await.unwrap(), "+d.example /own/csi.sock");
    assert!(stage.told.recv().await.unwrap().plugin_registered);
}
