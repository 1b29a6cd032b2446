//! `skiff server`: the control plane, and a node on the same machine unless told otherwise.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use api::cluster::ClusterNetwork;
use clap::Args;
use component::Supervisor;
use controlplane::{Store, token::BootstrapToken};

use crate::BadUsage;
use crate::agent_command::NodeArguments;

#[derive(Args)]
pub struct ServerArguments {
    /// The directory of the cluster's state and keys, and of the node's own
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// embedded, or etcd=URL,... for several servers
    #[arg(long, default_value = "embedded", value_parser = parse_store)]
    store: Store,
    /// Do not run a node in this process
    #[arg(long)]
    disable_agent: bool,
    /// The address on which the server listens; 0.0.0.0 is every one
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// The port on which it listens
    #[arg(long, default_value_t = api::defaults::API_PORT)]
    port: u16,
    /// The address under which nodes and pods reach this server (default: --bind-address, or that of the default route)
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// More names or addresses for the server's certificate
    #[arg(long)]
    tls_san: Vec<String>,
    /// A bootstrap token to accept, besides those of `skiff token create` (default: one that the first start makes)
    #[arg(long, env = "SKIFF_TOKEN", hide_env_values = true)]
    token: Option<BootstrapToken>,
    /// Where the administrator's kubeconfig is written
    #[arg(long, default_value = "/etc/skiff/admin.kubeconfig")]
    kubeconfig: PathBuf,
    /// The pods' network
    #[arg(long, default_value = api::defaults::POD_CIDR)]
    cluster_cidr: String,
    /// The Services' network
    #[arg(long, default_value = api::defaults::SERVICE_CIDR)]
    service_cidr: String,
    /// The address of the cluster's DNS (default: the tenth of the Services' network)
    #[arg(long)]
    cluster_dns: Option<Ipv4Addr>,
    /// The domain of the cluster's DNS names
    #[arg(long, default_value = api::defaults::CLUSTER_DOMAIN)]
    cluster_domain: String,
    /// Prefix length of each node's part of the pod network
    #[arg(long, default_value_t = 24)]
    node_cidr_mask: u8,
    /// An EncryptionConfiguration (apiserver.config.k8s.io/v1): which resources are encrypted at rest
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
    /// Whether that file is read again when it changes (default true)
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", requires = "encryption_provider_config")]
    encryption_provider_config_automatic_reload: Option<bool>,
    /// How long requests are still taken after /readyz has begun to fail, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    shutdown_delay: u64,
    #[command(flatten)]
    proxies: RequestHeaderArguments,
    #[command(flatten)]
    access: crate::access::AccessArguments,
    #[command(flatten)]
    node: NodeArguments,
}

/// Which proxies in front of this server may name users in headers (default: the server's own
/// front-proxy certificate, with X-Remote-User and so on).
#[derive(Args)]
struct RequestHeaderArguments {
    /// CA of the proxies' client certificates
    #[arg(long, value_name = "FILE")]
    requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of proxies; an empty one allows any that the CA signed
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "front-proxy-client")]
    requestheader_allowed_names: Vec<String>,
    /// Headers that hold the user's name
    #[arg(long, value_name = "HEADER", value_delimiter = ',', default_value = "X-Remote-User")]
    requestheader_username_headers: Vec<String>,
    /// Headers that hold the user's UID
    #[arg(long, value_name = "HEADER", value_delimiter = ',', default_value = "X-Remote-Uid")]
    requestheader_uid_headers: Vec<String>,
    /// Headers that hold the user's groups
    #[arg(long, value_name = "HEADER", value_delimiter = ',', default_value = "X-Remote-Group")]
    requestheader_group_headers: Vec<String>,
    /// What headers begin with that hold the rest of what is known of the user
    #[arg(long, value_name = "PREFIX", value_delimiter = ',', default_value = "X-Remote-Extra-")]
    requestheader_extra_headers_prefix: Vec<String>,
}

impl RequestHeaderArguments {
    fn names(&self) -> controlplane::RequestHeaderNames {
        let kept = |names: &[String]| names.iter().filter(|name| !name.is_empty()).cloned().collect();
        controlplane::RequestHeaderNames {
            allowed: kept(&self.requestheader_allowed_names),
            user: kept(&self.requestheader_username_headers),
            uid: kept(&self.requestheader_uid_headers),
            group: kept(&self.requestheader_group_headers),
            extra_prefix: kept(&self.requestheader_extra_headers_prefix),
        }
    }
}

impl ServerArguments {
    /// The cluster's networks and domain, if they and what nodes get of them fit together.
    pub fn network(&self) -> anyhow::Result<ClusterNetwork> {
        let (pods, services) = (&self.cluster_cidr, &self.service_cidr);
        let network = ClusterNetwork::new(pods, services, self.cluster_dns, &self.cluster_domain).map_err(BadUsage)?;
        let (whole, part) = (network.pods.prefix, self.node_cidr_mask);
        if part < whole || part > 30 || part - whole > 16 {
            return Err(BadUsage(format!(
                "--node-cidr-mask {part} does not fit into the pod network {}: it has to be from {whole} to {}",
                network.pods,
                (whole + 16).min(30)
            ))
            .into());
        }
        Ok(network)
    }
}

pub fn run(arguments: &ServerArguments) -> anyhow::Result<ExitCode> {
    let runtime = component::memory::runtime().build().context("starting the runtime")?;
    runtime.block_on(serve(arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &ServerArguments) -> anyhow::Result<()> {
    let supervisor = Supervisor::new("skiff");
    let configuration = configuration(arguments)?;
    let address = configuration.advertise_address;
    let running = controlplane::start(configuration, &supervisor).await?;
    tracing::info!(url = running.url, kubeconfig = %arguments.kubeconfig.display(), "the API server answers");
    let asked_to_end = async {
        if arguments.disable_agent {
            if let Err(error) = agent::follow_pod_routes(address, running.client(), &supervisor) {
                tracing::warn!(%error, "this server gets no routes to pods");
            }
        } else {
            let join = controlplane::token::with_ca(&running.token.to_string(), &running.ca_certificate)?;
            agent::start(arguments.node.configuration(&running.url, join, &arguments.data_dir)?, &supervisor).await?;
        }
        component::memory::rest_lightly(&supervisor);
        crate::agent_command::wait_for_end().await
    };
    let failure = tokio::select! {
        asked = asked_to_end => {
            asked?;
            None
        }
        // Nothing is left to drain for: no request that writes can be answered.
        failure = running.failed() => Some(failure),
    };
    tracing::info!("ending; pods go on");
    if failure.is_none() {
        tokio::select! {
            () = running.drain() => {}
            // Asked twice: at once.
            again = crate::agent_command::wait_for_end() => again?,
        }
    }
    if !supervisor.shut_down(Duration::from_secs(10)).await {
        tracing::warn!("some tasks did not end within 10 s");
    }
    failure.map_or(Ok(()), Err)
}

fn configuration(arguments: &ServerArguments) -> anyhow::Result<controlplane::Config> {
    let advertise_address = match arguments.advertise_address {
        Some(address) => address,
        None if !arguments.bind_address.is_unspecified() => arguments.bind_address,
        None => default_address().context("finding this machine's address; give it with --advertise-address")?,
    };
    Ok(controlplane::Config {
        data_dir: arguments.data_dir.clone(),
        store: arguments.store.clone(),
        bind_address: arguments.bind_address,
        port: arguments.port,
        advertise_address,
        tls_sans: arguments.tls_san.clone(),
        token: arguments.token.clone(),
        kubeconfig: arguments.kubeconfig.clone(),
        network: arguments.network()?,
        node_cidr_mask: arguments.node_cidr_mask,
        requestheader_ca: arguments.proxies.requestheader_client_ca_file.clone(),
        requestheader: arguments.proxies.names(),
        shutdown_delay: Duration::from_secs(arguments.shutdown_delay),
        encryption: arguments.encryption_provider_config.clone(),
        encryption_reload: arguments.encryption_provider_config_automatic_reload.unwrap_or(true),
        access: arguments.access.options(),
    })
}

fn parse_store(text: &str) -> Result<Store, String> {
    match text.split_once('=') {
        None if text == "embedded" => Ok(Store::Embedded),
        Some(("etcd", endpoints)) if !endpoints.is_empty() => {
            Ok(Store::Etcd(endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect()))
        }
        _ => Err("use embedded, or etcd=http://HOST:2379,...".to_owned()),
    }
}

/// The address from which this machine reaches others: what the default route would use.
fn default_address() -> std::io::Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Connecting a datagram socket sends nothing; 192.0.2.1 is set aside for documentation.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Command, CommandLine};

    fn network(flags: &[&str]) -> anyhow::Result<ClusterNetwork> {
        let words = ["skiff", "server"].iter().chain(flags);
        match CommandLine::try_parse_from(words)?.command {
            Command::Server(arguments) => arguments.network(),
            _ => anyhow::bail!("this is no server"),
        }
    }

    #[test]
    fn networks_that_do_not_fit_are_bad_usage() {
        let cases: &[(&[&str], &str)] = &[
            (&["--cluster-cidr=10.42.0.0"], "no IPv4 network"),
            (&["--service-cidr=10.42.0.0/16"], "overlap"),
            (&["--node-cidr-mask=8"], "from 16 to 30"),
            (&["--node-cidr-mask=200"], "from 16 to 30"),
            (&["--node-cidr-mask=25", "--cluster-cidr=11.0.0.0/8"], "from 8 to 24"),
        ];
        for (flags, words) in cases {
            let error = network(flags).unwrap_err();
            assert!(error.is::<BadUsage>() && error.to_string().contains(words), "{flags:?}: {error}");
        }
        assert!(network(&["--node-cidr-mask=24", "--cluster-cidr=11.0.0.0/8"]).is_ok());
    }
}
