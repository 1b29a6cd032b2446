//! The container runtime: the host's containerd, run by the agent under its own directories.
//!
//! Layer: below the kubelet, which speaks CRI to the socket. [`Containerd::start`] adopts a running
//! containerd or starts one, waits until CRI answers, and keeps it running: when it dies it is
//! started again, and the containers, which hang on their shims, go on. It is detached: it outlives
//! the agent, as the pods do. [`remove`] takes everything down again.
//!
//! - [`config`]: the configuration text, pure;
//! - `probe`: what the machine has;
//! - `process`: pid file, start, end;
//! - `cleanup`: shims, mounts and files of a node that is to disappear.

mod cleanup;
pub mod config;
mod probe;
mod process;

use std::path::{Path, PathBuf};
use std::time::Duration;

use component::Supervisor;
use proto::runtime::v1 as cri;
use tokio::time::Instant;
use tonic::transport::Channel;

pub use cleanup::{remove, remove_shim_sockets};
pub use config::CgroupDriver;
pub use probe::find as find_program;
use process::Identity;

use crate::images;

/// How long a start may take before it counts as failed.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A containerd that lived shorter than this is started again only after a pause.
const STABLE_AFTER: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often it is looked at how large the log of a running containerd is.
const LOG_PERIOD: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    #[error(
        "{program} is not installed (not found on PATH); install it, e.g. `apt-get install {package}`, or use a running runtime with --container-runtime-endpoint"
    )]
    NotInstalled { program: &'static str, package: &'static str },
    #[error("running {binary}: {error}", binary = binary.display())]
    Run { binary: PathBuf, error: std::io::Error },
    #[error("{binary} calls itself {version:?}; containerd 1.6 or newer is needed", binary = binary.display())]
    Version { binary: PathBuf, version: String },
    #[error("{doing} {path}: {error}", path = path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("containerd ended while starting; its log {log} ends with:\n{tail}", log = log.display())]
    Ended { log: PathBuf, tail: String },
    #[error("no CRI runtime answered on {socket} within {seconds} s ({last}); see {log}", socket = socket.display(), log = log.display())]
    NotReady { socket: PathBuf, seconds: u64, last: String, log: PathBuf },
}

/// Where containerd's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub root: PathBuf,
    pub state: PathBuf,
    pub socket: PathBuf,
    pub config: PathBuf,
    pub pid: PathBuf,
    pub log: PathBuf,
}

impl Paths {
    /// `data` survives a reboot (`/var/lib/skiff/agent`), `run` does not (`/run/skiff`).
    pub fn under(data: &Path, run: &Path) -> Self {
        Self {
            root: data.join("containerd"),
            state: run.join("containerd"),
            socket: run.join("containerd/containerd.sock"),
            config: data.join("containerd.toml"),
            pid: run.join("containerd.pid"),
            log: data.join("containerd.log"),
        }
    }
}

/// What to run and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub paths: Paths,
    /// The executable; searched on PATH if none.
    pub binary: Option<PathBuf>,
    pub cni_bin_dir: PathBuf,
    pub cni_conf_dir: PathBuf,
    pub registry_dir: PathBuf,
    pub cgroup_driver: CgroupDriver,
}

/// A containerd that answers.
#[derive(Clone)]
pub struct Containerd {
    pub socket: PathBuf,
    pub channel: Channel,
    /// Whether it ran before this agent did.
    pub adopted: bool,
}

impl Containerd {
    /// Adopts or starts containerd and keeps it running under `supervisor`.
    pub async fn start(options: Options, supervisor: &Supervisor) -> Result<Self, ContainerdError> {
        let plan = Plan::make(options).await?;
        let (identity, adopted) = match Identity::load(&plan.paths().pid) {
            Some(identity) => {
                if identity.config != plan.digest {
                    tracing::warn!(
                        pid = identity.pid,
                        config = %plan.paths().config.display(),
                        "containerd runs with an older configuration; it takes the new one when it is next started"
                    );
                }
                (identity, true)
            }
            None => (plan.launch()?, false),
        };
        let channel = match wait_until_ready(plan.paths(), Some(&identity)).await {
            Ok(channel) => channel,
            Err(error) => {
                if !adopted {
                    identity.signal(nix::sys::signal::Signal::SIGTERM);
                }
                return Err(error);
            }
        };
        let socket = plan.paths().socket.clone();
        tracing::info!(pid = identity.pid, socket = %socket.display(), adopted, "containerd is ready");
        supervisor.spawn("containerd", keep_running(plan, identity));
        Ok(Self { socket, channel, adopted })
    }

    /// Uses a runtime that someone else runs.
    pub async fn connect(socket: &Path) -> Result<Self, ContainerdError> {
        let paths = Paths { socket: socket.to_owned(), ..Paths::under(Path::new("-"), Path::new("-")) };
        let channel = wait_until_ready(&paths, None).await?;
        Ok(Self { socket: socket.to_owned(), channel, adopted: true })
    }

    /// Who makes cgroups for containers, by the runtime's own word; none if it does not say (containerd before
    /// 2.0).
    pub async fn cgroup_driver(&self) -> Option<CgroupDriver> {
        let mut client = cri::runtime_service_client::RuntimeServiceClient::new(self.channel.clone());
        driver_of(&client.runtime_config(cri::RuntimeConfigRequest {}).await.ok()?.into_inner())
    }
}

fn driver_of(config: &cri::RuntimeConfigResponse) -> Option<CgroupDriver> {
    match config.linux.as_ref()?.cgroup_driver() {
        cri::CgroupDriver::Systemd => Some(CgroupDriver::Systemd),
        cri::CgroupDriver::Cgroupfs => Some(CgroupDriver::Cgroupfs),
    }
}

/// A start that is decided: executable, configuration, places.
struct Plan {
    binary: PathBuf,
    options: Options,
    /// Digest of the configuration, to recognise a process that runs with another.
    digest: String,
}

impl Plan {
    async fn make(options: Options) -> Result<Self, ContainerdError> {
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => probe::containerd()?,
        };
        let paths = &options.paths;
        for directory in [&paths.root, &paths.state, &options.cni_bin_dir, &options.cni_conf_dir, &options.registry_dir]
        {
            create_directory(directory)?;
        }
        let layout = probe::layout(&binary, &paths.config.with_extension("version")).await?;
        let text = config::render(&config::Settings {
            layout,
            root: paths.root.clone(),
            state: paths.state.clone(),
            socket: paths.socket.clone(),
            sandbox_image: images::pause::NAME.to_owned(),
            snapshotter: probe::snapshotter(&paths.root).to_owned(),
            cni_bin_dir: options.cni_bin_dir.clone(),
            cni_conf_dir: options.cni_conf_dir.clone(),
            registry_dir: options.registry_dir.clone(),
            cgroup_driver: options.cgroup_driver,
            restrict_oom_score: !probe::has_cap_sys_resource(),
        });
        write_if_changed(&paths.config, &text)?;
        Ok(Self { binary, digest: images::digest(text.as_bytes()), options })
    }

    fn paths(&self) -> &Paths {
        &self.options.paths
    }

    fn launch(&self) -> Result<Identity, ContainerdError> {
        // after the node was switched off: containerd will drop the bundles that name them
        remove_shim_sockets(&self.paths().state);
        process::start(&self.binary, self.paths(), &self.digest)
    }
}

/// Starts containerd again whenever it ends; the agent's own end leaves it alone.
async fn keep_running(plan: Plan, mut identity: Identity) {
    let mut pause = Duration::ZERO;
    loop {
        let since = Instant::now();
        until_ended(&identity, &plan.paths().log).await;
        pause = next_pause(pause, since.elapsed());
        tracing::warn!(
            pid = identity.pid,
            pause_ms = pause.as_millis() as u64,
            "containerd ended; starting it again, its containers go on"
        );
        tokio::time::sleep(pause).await;
        match plan.launch() {
            Ok(started) => {
                identity = started;
                match wait_until_ready(plan.paths(), Some(&identity)).await {
                    Ok(_) => tracing::info!(pid = identity.pid, "containerd is ready again"),
                    Err(error) => tracing::error!(%error, "containerd did not come back; it will be tried again"),
                }
            }
            Err(error) => tracing::error!(%error, "containerd could not be started; it will be tried again"),
        }
    }
}

/// Returns when the process has ended. Until then its log is kept small: it may run for months.
async fn until_ended(identity: &Identity, log: &Path) {
    while tokio::time::timeout(LOG_PERIOD, identity.ended()).await.is_err() {
        let path = log.to_owned();
        let shortened = tokio::task::spawn_blocking(move || process::shorten_log(&path)).await;
        if let Ok(Err(error)) = shortened {
            tracing::warn!(%error, log = %log.display(), "containerd's log could not be shortened");
        }
    }
}

/// None after a long life; else doubling from 250 ms.
fn next_pause(last: Duration, lived: Duration) -> Duration {
    if lived >= STABLE_AFTER { Duration::ZERO } else { (last * 2).clamp(Duration::from_millis(250), LONGEST_PAUSE) }
}

/// Returns once CRI answers on the socket, looking every few milliseconds.
async fn wait_until_ready(paths: &Paths, process: Option<&Identity>) -> Result<Channel, ContainerdError> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let last = match proto::unix_channel(&paths.socket).await {
            Ok(channel) => match cri_version(&channel).await {
                Ok(()) => return Ok(channel),
                Err(status) => status.message().to_owned(),
            },
            Err(error) => std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
        };
        if process.is_some_and(|process| !process.is_alive()) {
            return Err(ContainerdError::Ended { log: paths.log.clone(), tail: process::log_tail(&paths.log) });
        }
        if Instant::now() >= deadline {
            let (socket, log) = (paths.socket.clone(), paths.log.clone());
            return Err(ContainerdError::NotReady { socket, seconds: READY_WITHIN.as_secs(), last, log });
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// containerd answers an error until CRI has recovered its containers.
async fn cri_version(channel: &Channel) -> Result<(), tonic::Status> {
    let mut client = cri::runtime_service_client::RuntimeServiceClient::new(channel.clone());
    client.version(cri::VersionRequest { version: "v1".to_owned() }).await?;
    client.status(cri::StatusRequest { verbose: false }).await?;
    Ok(())
}

fn create_directory(path: &Path) -> Result<(), ContainerdError> {
    std::fs::create_dir_all(path).map_err(|error| ContainerdError::File {
        doing: "creating",
        path: path.to_owned(),
        error,
    })
}

fn write_if_changed(path: &Path, text: &str) -> Result<(), ContainerdError> {
    if std::fs::read_to_string(path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    std::fs::write(path, text).map_err(|error| ContainerdError::File { doing: "writing", path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_says_who_makes_cgroups() {
        let of = |driver| cri::RuntimeConfigResponse {
            linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver as i32 }),
        };
        assert_eq!(driver_of(&of(cri::CgroupDriver::Systemd)), Some(CgroupDriver::Systemd));
        assert_eq!(driver_of(&of(cri::CgroupDriver::Cgroupfs)), Some(CgroupDriver::Cgroupfs));
        assert_eq!(driver_of(&cri::RuntimeConfigResponse::default()), None);
    }

    #[test]
    fn a_containerd_that_keeps_dying_is_started_less_often() {
        let short = Duration::from_secs(1);
        assert_eq!(next_pause(Duration::ZERO, Duration::from_secs(60)), Duration::ZERO);
        assert_eq!(next_pause(Duration::ZERO, short), Duration::from_millis(250));
        assert_eq!(next_pause(Duration::from_millis(250), short), Duration::from_millis(500));
        assert_eq!(next_pause(LONGEST_PAUSE, short), LONGEST_PAUSE);
    }
}
