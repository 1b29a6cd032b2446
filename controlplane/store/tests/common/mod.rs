//! Stores to test, and the model they are compared with.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod disk;
pub mod model;

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use store::{Batch, Embedded, Etcd, EtcdOptions, Event, Options, Store, StoreError, TxnOutcome, Watch};
use tempfile::TempDir;

/// A store with what keeps it running.
pub struct Bench {
    pub store: Arc<dyn Store>,
    _dir: TempDir,
    _etcd: Option<EtcdProcess>,
}

#[derive(Debug, Clone, Copy)]
pub enum Engine {
    Embedded,
    Etcd,
}

impl Bench {
    pub async fn new(engine: Engine) -> Self {
        Self::with_watch_limit(engine, 100_000).await
    }

    pub async fn with_watch_limit(engine: Engine, watch_events: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        match engine {
            Engine::Embedded => {
                let options = Options { watch_events, ..Options::default() };
                let store = Arc::new(Embedded::open_with(dir.path(), &options).unwrap());
                Self { store, _dir: dir, _etcd: None }
            }
            Engine::Etcd => {
                let etcd = EtcdProcess::start(&dir);
                let options = EtcdOptions { watch_events, compact_every: None, ..EtcdOptions::new([etcd.url.clone()]) };
                let store = Arc::new(connect(&options, &dir).await);
                Self { store, _dir: dir, _etcd: Some(etcd) }
            }
        }
    }
}

pub async fn connect(options: &EtcdOptions, dir: &TempDir) -> Etcd {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Etcd::connect(options).await {
            Ok(etcd) => return etcd,
            Err(error) if Instant::now() > deadline => {
                let log = std::fs::read_to_string(dir.path().join("member0.log")).unwrap_or_default();
                panic!("etcd does not come up: {error}\n{log}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One member of Debian's etcd, on loopback. Killed when dropped.
pub struct EtcdProcess {
    child: Child,
    pub url: String,
}

impl EtcdProcess {
    /// A cluster of one.
    pub fn start(dir: &TempDir) -> Self {
        Self::cluster(dir, 1).remove(0)
    }

    /// A cluster of `size` members, all new.
    pub fn cluster(dir: &TempDir, size: usize) -> Vec<Self> {
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = || format!("http://127.0.0.1:{}", port());
        let members: Vec<_> = (0..size).map(|n| (format!("member{n}"), url(), url())).collect();
        let peers: Vec<String> = members.iter().map(|(name, _, peer)| format!("{name}={peer}")).collect();
        members.iter().map(|(name, url, peer)| Self::member(dir, name, url, peer, &peers.join(","))).collect()
    }

    fn member(dir: &TempDir, name: &str, url: &str, peer: &str, cluster: &str) -> Self {
        let child = Command::new("etcd")
            .args(["--name", name, "--logger", "zap", "--log-level", "error", "--unsafe-no-fsync"])
            .args(["--listen-client-urls", url, "--advertise-client-urls", url])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", cluster])
            .arg("--data-dir")
            .arg(dir.path().join(name))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join(format!("{name}.log"))).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("etcd cannot be started ({error}): apt-get install etcd-server"));
        Self { child, url: url.to_owned() }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs each test against both engines.
#[macro_export]
macro_rules! for_both_engines {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::common::Engine::Embedded).await;
                }
            )*
        }
        mod etcd {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::common::Engine::Etcd).await;
                }
            )*
        }
    };
}

pub fn done(outcome: Result<TxnOutcome, StoreError>) -> u64 {
    match outcome {
        Ok(TxnOutcome::Done { revision }) => revision,
        other => panic!("not done: {other:?}"),
    }
}

/// The next batch, within ten seconds.
pub async fn next(watch: &mut Watch) -> Result<Batch, StoreError> {
    let next = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
    next.expect("a batch within 10 s").expect("the watch has not ended")
}

/// Events until one at `revision` or later, or until progress reaches it.
pub async fn events_until(watch: &mut Watch, revision: u64) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let batch = next(watch).await.unwrap();
        assert!(batch.events.iter().all(|event| event.revision <= batch.revision), "a batch claims less than it holds");
        events.extend(batch.events);
        if batch.revision >= revision {
            return events;
        }
    }
}

/// How often random tests repeat: a number from the environment, or the default.
pub fn steps(default: usize) -> usize {
    std::env::var("SKIFF_STORE_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(default)
}
