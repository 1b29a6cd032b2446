//! The servers that are measured, each a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use apiserver::testing::Cluster;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::client::Target;
use crate::{bare, disk};

/// A server in a process of its own; ended when dropped.
pub struct Server {
    child: Child,
    pub target: Target,
    /// Where its certificate and key are.
    described: Value,
}

impl Server {
    /// An API server, its store in `dir`.
    pub fn api(dir: &Path) -> anyhow::Result<Self> {
        Self::api_on(dir, Duration::ZERO)
    }

    /// The same; a sync of its disk takes `delay` longer.
    pub fn api_on(dir: &Path, delay: Duration) -> anyhow::Result<Self> {
        Self::start("serve", dir, delay)
    }

    /// A server that answers everything with `bytes`, with the certificate of `like`.
    pub fn floor(like: &Server, bytes: &[u8]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("answer"), bytes)?;
        std::fs::write(dir.path().join("server.json"), like.described.to_string())?;
        Self::start("floor", dir.path(), Duration::ZERO)
    }

    /// A server that keeps what it gets in an embedded store in `dir`, with the certificate of `like`.
    pub fn keeper(like: &Server, dir: &Path, delay: Duration) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("server.json"), like.described.to_string())?;
        Self::start("keeper", dir, delay)
    }

    fn start(role: &str, dir: &Path, delay: Duration) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(role)
            .arg(dir)
            .arg(delay.as_micros().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting bench-api {role}"))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let described: Value =
            serde_json::from_str(&line).with_context(|| format!("bench-api {role} said {line:?}"))?;
        let target = Target::new(&described)?;
        Ok(Self { child, target, described })
    }

    pub fn pid(&self) -> i64 {
        i64::from(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's side: serves until its standard input ends.
pub async fn run(role: &str, dir: &Path, delay: Duration) -> anyhow::Result<()> {
    let (described, _keep) = match role {
        "floor" => (bare::floor(dir).await?, None),
        "keeper" => (bare::keeper(dir, delay).await?, None),
        _ => api(dir, delay).await?,
    };
    println!("{described}");
    std::io::stdout().flush()?;
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn api(dir: &Path, delay: Duration) -> anyhow::Result<(Value, Option<Cluster>)> {
    let cluster = Cluster::start_over(disk::open(&dir.join("db"), delay)?).await;
    let address = cluster.listen().await;
    let admin = cluster.key_pair("admin", &["system:masters"]);
    let at = |name: &str| cluster.dir().join(name).display().to_string();
    let described = json!({
        "address": address.to_string(), "ca": at("ca.crt"),
        "certificate": admin.certificate, "key": admin.key,
        "serverCertificate": at("kube-apiserver.crt"), "serverKey": at("kube-apiserver.key"),
    });
    Ok((described, Some(cluster)))
}
