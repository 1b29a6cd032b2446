//! The distribution's etcd, on loopback.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One member; killed when dropped. Its data stays in the directory it was given.
pub struct Member {
    pub url: String,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Member {
    /// A new cluster of `size` members under `dir`.
    #[track_caller]
    pub fn cluster(dir: &Path, size: usize) -> Vec<Self> {
        let members: Vec<_> = (0..size).map(|n| (format!("member{n}"), url(), url())).collect();
        let peers: Vec<String> = members.iter().map(|(name, _, peer)| format!("{name}={peer}")).collect();
        members.iter().map(|(name, url, peer)| Self::new(dir, name, url, peer, &peers.join(","))).collect()
    }

    fn new(dir: &Path, name: &str, url: &str, peer: &str, cluster: &str) -> Self {
        let data = dir.join(name).display().to_string();
        let arguments = [
            ["--name", name],
            ["--logger", "zap"],
            ["--log-level", "error"],
            ["--listen-client-urls", url],
            ["--advertise-client-urls", url],
            ["--listen-peer-urls", peer],
            ["--initial-advertise-peer-urls", peer],
            ["--initial-cluster", cluster],
            ["--data-dir", &data],
        ];
        let arguments = arguments.concat().into_iter().map(str::to_owned).collect();
        let log = dir.join(format!("{name}.log"));
        let mut member = Self { url: url.to_owned(), arguments, log, child: None };
        member.start();
        member
    }

    /// Starts it, also after [`Member::kill`].
    #[track_caller]
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.unwrap_or_else(|error| panic!("opening {}: {error}", self.log.display()));
        let child = Command::new("etcd")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("etcd cannot be started ({error}): apt-get install etcd-server"));
        self.child = Some(child);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback port that nobody listens on.
#[track_caller]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.unwrap_or_else(|error| panic!("finding a free port: {error}")).port()
}

fn url() -> String {
    format!("http://127.0.0.1:{}", free_port())
}
