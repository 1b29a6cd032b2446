//! A `skiff server` without a node, on a loopback port: for tests of the control plane alone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::etcd::free_port;
use crate::run::{self, Output, command, kubectl, skiff};

/// Killed when dropped. Its data stays in the directory it was given.
pub struct Server {
    pub data_dir: PathBuf,
    pub kubeconfig: String,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Starts one with its data in `dir`; `more` are further arguments. Does not wait for it.
    #[track_caller]
    pub fn start(dir: &Path, more: &[&str]) -> Self {
        std::fs::create_dir_all(dir).unwrap_or_else(|error| panic!("creating {}: {error}", dir.display()));
        let kubeconfig = dir.join("admin.kubeconfig").display().to_string();
        let (port, data) = (free_port().to_string(), dir.display().to_string());
        let mut arguments = vec!["server", "--disable-agent", "--bind-address", "127.0.0.1", "--port", &port];
        arguments.extend(["--data-dir", &data, "--kubeconfig", &kubeconfig]);
        arguments.extend(more);
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let mut server = Self { data_dir: dir.to_owned(), kubeconfig, arguments, child: None };
        server.restart();
        server
    }

    /// Starts it with the same arguments as before.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        let path = self.data_dir.join("server.log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.unwrap_or_else(|error| panic!("opening {}: {error}", path.display()));
        let mut command = Command::new(skiff());
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("starting skiff server: {error}")));
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until it answers `/readyz`, at most a minute.
    #[track_caller]
    pub fn ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.try_kubectl(&["get", "--raw", "/readyz"]);
            if answer.ok {
                return;
            }
            let log = || std::fs::read_to_string(self.data_dir.join("server.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server is not ready: {}\n{}", answer.stderr, log());
            // The pace of asking.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        command(kubectl(), arguments, &run::kubectl_environment(&self.kubeconfig), "")
    }

    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).expect_ok()
    }

    /// `skiff` with this server's kubeconfig.
    pub fn skiff(&self, arguments: &[&str]) -> Output {
        command(skiff(), arguments, &[("KUBECONFIG", &self.kubeconfig)], "")
    }

    /// A client with the administrator's rights.
    ///
    /// # Errors
    /// When the server has not written its kubeconfig yet.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        // A second install in one process fails, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.proxy_url = None;
        Ok(kube::Client::try_from(config)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
