//! `skiff agent`: a node of an existing cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agent::EvictionThresholds;
use agent::credential_providers::Settings;
use agent::image_records::{POLICIES, Policy};
use agent::join::Credentials;
use anyhow::Context;
use clap::Args;
use component::Supervisor;
use k8s_openapi::api::core::v1::Taint;
use tokio::signal::unix::{SignalKind, signal};

use crate::BadUsage;

#[derive(Args)]
pub struct AgentArguments {
    /// The API server, https://HOST:6443
    #[arg(long, env = "SKIFF_URL")]
    server: String,
    /// What `skiff token create` printed; needed until the node has its certificate
    #[arg(long, env = "SKIFF_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the token
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// The node's directory
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    #[command(flatten)]
    node: NodeArguments,
}

/// What describes a node; `skiff server` takes these for its own.
#[derive(Args)]
pub struct NodeArguments {
    /// The node's name (default: this machine's host name)
    #[arg(long)]
    node_name: Option<String>,
    /// The node's address (default: the one on the interface that routes to the server)
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// A label for the node, key=value; may be repeated
    #[arg(long, value_parser = parse_label)]
    node_label: Vec<(String, String)>,
    /// A taint for the node, key=value:Effect; may be repeated
    #[arg(long, value_parser = parse_taint)]
    node_taint: Vec<Taint>,
    /// Sockets and pid files
    #[arg(long, default_value = "/run/skiff")]
    run_dir: PathBuf,
    /// Where containers' logs go
    #[arg(long, default_value = "/var/log/pods")]
    pod_log_dir: PathBuf,
    /// The kubelet's directory (default: <data-dir>/agent/kubelet; pods know it as /var/lib/kubelet
    /// wherever it is). Drivers that run outside of pods may need /var/lib/kubelet
    #[arg(long, value_parser = parse_absolute)]
    kubelet_root_dir: Option<PathBuf>,
    /// The cgroup under which pods run
    #[arg(long, default_value = "/")]
    cgroup_root: String,
    /// An image archive to import before pods run; may be repeated
    #[arg(long)]
    image: Vec<PathBuf>,
    /// Mirrors and credentials of image registries
    #[arg(long, default_value = "/etc/skiff/registries.yaml")]
    registries: PathBuf,
    /// Programs that give logins of registries: a CredentialProviderConfig, or a directory of such files
    #[arg(long, requires = "image_credential_provider_bin_dir")]
    image_credential_provider_config: Option<PathBuf>,
    /// Where these programs lie
    #[arg(long, requires = "image_credential_provider_config")]
    image_credential_provider_bin_dir: Option<PathBuf>,
    /// Which images that are on the node need no proof that a pod may use them
    #[arg(long, default_value = "NeverVerifyPreloadedImages", value_parser = POLICIES)]
    image_pull_credentials_verification_policy: String,
    /// Images for NeverVerifyAllowlistedImages, without tags, e.g. registry.io/team/*,docker.io/library/nginx
    #[arg(long, value_delimiter = ',')]
    preloaded_images_verification_allowlist: Vec<String>,
    /// Manifests of static pods (default: <data-dir>/manifests)
    #[arg(long)]
    pod_manifest_path: Option<PathBuf>,
    /// Another CRI socket instead of skiff's own containerd
    #[arg(long)]
    container_runtime_endpoint: Option<PathBuf>,
    /// When pods are evicted, SIGNAL<AMOUNT,... (default: memory.available<100Mi, nodefs.available<10%,
    /// nodefs.inodesFree<5%, imagefs.available<15%, imagefs.inodesFree<5%); also pid.available; 0% is never
    #[arg(long, default_value = "", hide_default_value = true)]
    eviction_hard: EvictionThresholds,
    /// Unused images are removed when their file system is fuller than this many percent
    #[arg(long, default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: u8,
    /// A container's log is rotated at this size, e.g. 10Mi
    #[arg(long, default_value = "10Mi", value_parser = parse_size)]
    container_log_max_size: u64,
    /// How many files of a container's log are kept, the one that is written included
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..))]
    container_log_max_files: u32,
    /// Seconds between looks for addresses that no pod has any more
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    network_gc_period: u64,
    /// Sysctls that pods may set besides the safe ones, e.g. net.core.somaxconn,net.ipv4.*
    #[arg(long, value_delimiter = ',')]
    allowed_unsafe_sysctls: Vec<String>,
    /// Where the kubelet answers /healthz to those on this machine
    #[arg(long, default_value = "127.0.0.1")]
    healthz_bind_address: IpAddr,
    /// The port for it; 0 for none
    #[arg(long, default_value_t = api::defaults::KUBELET_HEALTHZ_PORT)]
    healthz_port: u16,
    /// Where the proxy answers /proxyMode, /healthz and /metrics to those on this machine; port 0 for none
    #[arg(long, default_value = "127.0.0.1:10249")]
    metrics_bind_address: SocketAddr,
    /// How Services reach the kernel
    #[arg(long, default_value = "nftables", value_parser = ["nftables", "iptables"])]
    proxy_mode: String,
}

impl NodeArguments {
    /// The agent's configuration for a cluster at `server`; an empty token means that the node
    /// joined before.
    pub fn configuration(&self, server: &str, token: String, data_dir: &Path) -> anyhow::Result<agent::Config> {
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
        };
        if let Some(problem) = api::names::dns1123_subdomain(&name).first() {
            return Err(BadUsage(format!("{name:?} cannot name a node ({problem}); choose with --node-name")).into());
        }
        let credentials = match token.trim() {
            "" => Credentials::Stored,
            token => Credentials::Token(token.parse()?),
        };
        let mut config = agent::Config::new(name, server, credentials);
        config.node_ip = self.node_ip;
        config.labels = self.node_label.iter().cloned().collect();
        config.taints = self.node_taint.clone();
        config.directories = agent::Directories {
            data: data_dir.join("agent"),
            run: self.run_dir.clone(),
            pod_logs: self.pod_log_dir.clone(),
            registries: self.registries.clone(),
            kubelet: self.kubelet_root_dir.clone(),
        };
        config.runtime_endpoint = self.container_runtime_endpoint.clone();
        config.images = self.image.clone();
        config.manifests = Some(self.pod_manifest_path.clone().unwrap_or_else(|| data_dir.join("manifests")));
        config.cgroup_root = self.cgroup_root.clone();
        config.network_gc_period = Duration::from_secs(self.network_gc_period);
        config.allowed_unsafe_sysctls = self.allowed_unsafe_sysctls.clone();
        config.eviction = self.eviction_hard.clone();
        config.image_gc.high_percent = self.image_gc_high_threshold;
        config.image_gc.low_percent = config.image_gc.low_percent.min(self.image_gc_high_threshold);
        config.image_verification = Policy::new(
            &self.image_pull_credentials_verification_policy,
            &self.preloaded_images_verification_allowlist,
        )?;
        config.credential_providers = self.credential_providers()?;
        config.container_logs.max_size = self.container_log_max_size;
        config.container_logs.max_files = self.container_log_max_files;
        config.healthz = unless_port_0((self.healthz_bind_address, self.healthz_port).into());
        config.proxy_metrics = unless_port_0(self.metrics_bind_address);
        config.proxy_mode =
            if self.proxy_mode == "iptables" { agent::ProxyMode::Iptables } else { agent::ProxyMode::Nftables };
        Ok(config)
    }

    /// What is wrong with them is said at once: who waits for an image could not mend it.
    fn credential_providers(&self) -> anyhow::Result<Settings> {
        match (&self.image_credential_provider_config, &self.image_credential_provider_bin_dir) {
            (Some(config), Some(directory)) => {
                Settings::read(config, directory).context("Failed to register CRI auth plugins")
            }
            _ => Ok(Settings::default()),
        }
    }
}

fn unless_port_0(address: SocketAddr) -> Option<SocketAddr> {
    (address.port() > 0).then_some(address)
}

/// What is wrong with a label or taint.
fn label(key: &str, value: &str) -> Result<(), String> {
    let problem = api::names::qualified_name(key).into_iter().chain(api::names::label_value(value)).next();
    problem.map_or(Ok(()), Err)
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label has the form key=value")?;
    label(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_taint(text: &str) -> Result<Taint, String> {
    let (rest, effect) = text.rsplit_once(':').ok_or("a taint has the form key=value:Effect")?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!("{effect:?} is no taint effect: use NoSchedule, PreferNoSchedule or NoExecute"));
    }
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    label(key, value)?;
    Ok(Taint {
        key: key.to_owned(),
        value: (!value.is_empty()).then(|| value.to_owned()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

fn parse_absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("an absolute path is needed".to_owned()) }
}

/// Bytes, as a quantity.
fn parse_size(text: &str) -> Result<u64, String> {
    let size: api::quantity::Quantity = text.parse().map_err(|error| format!("{error}"))?;
    u64::try_from(size.units()).map_err(|_| "a size is not negative".to_owned())
}

pub fn run(arguments: &AgentArguments) -> anyhow::Result<ExitCode> {
    let token = match (&arguments.token, &arguments.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => {
            std::fs::read_to_string(path).with_context(|| format!("reading the token from {}", path.display()))?
        }
        (None, None) => String::new(),
    };
    let runtime = component::memory::runtime().build().context("starting the runtime")?;
    runtime.block_on(async {
        let supervisor = Supervisor::new("skiff");
        let configuration = arguments.node.configuration(&arguments.server, token, &arguments.data_dir)?;
        tokio::select! {
            started = agent::start(configuration, &supervisor) => { started?; }
            ended = wait_for_end() => return ended,
        }
        component::memory::rest_lightly(&supervisor);
        wait_for_end().await?;
        tracing::info!("ending; pods go on");
        if !supervisor.shut_down(Duration::from_secs(10)).await {
            tracing::warn!("some tasks did not end within 10 s");
        }
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Returns when the process is asked to end.
pub async fn wait_for_end() -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_taints() {
        assert_eq!(parse_label("a.b/c=d"), Ok(("a.b/c".into(), "d".into())));
        assert!(parse_label("a").is_err() && parse_label("a=b c").is_err());
        let taint = parse_taint("dedicated=db:NoSchedule").unwrap();
        assert_eq!(
            (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()),
            ("dedicated", Some("db"), "NoSchedule")
        );
        assert!(parse_taint("dedicated:Never").is_err());
    }

    #[test]
    fn port_0_is_for_nothing_to_be_served() {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!([0, 1].map(|port| unless_port_0(address(port))), [None, Some(address(1))]);
    }
}
