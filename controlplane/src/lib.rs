//! The control plane as one process: PKI, store, API server, and the scheduler and controllers as
//! its in-process clients.
//!
//! [`start`] is the whole of it, in the order in which each part needs the one before. Nothing here
//! decides anything about objects.

pub mod kubeconfig;
pub mod pki;
pub mod snapshot;
pub mod token;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::cluster::{self, ClusterNetwork};
pub use apiserver::RequestHeaderNames;
use apiserver::{ApiServer, KeyPair, UserInfo};
use component::{Candidate, EventRecorder, Informers, Supervisor};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::PostParams;
use tokio::net::TcpListener;

/// What an operator may want otherwise of the API server.
pub mod access {
    pub use apiserver::{
        AdmissionOptions, AuditConfig, AuthenticationOptions, AuthorizationOptions, LogConfig, OidcOptions, Options,
        go_duration,
    };
}

use crate::pki::{Pki, ServerNames};
use crate::token::BootstrapToken;

/// How often a running server looks whether its certificates are near their end.
const RENEWAL: Duration = Duration::from_secs(12 * 3600);
/// The group of everyone with a name.
const AUTHENTICATED: &str = "system:authenticated";

/// Where the cluster's state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// A log in files under `<data>/server/db`.
    Embedded,
    /// Endpoints of an etcd cluster; any number of servers may share it.
    Etcd(Vec<String>),
}

#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub store: Store,
    pub bind_address: IpAddr,
    pub port: u16,
    /// Where nodes and pods reach this server.
    pub advertise_address: IpAddr,
    /// More names for the server's certificate.
    pub tls_sans: Vec<String>,
    /// Accepted for joining, besides tokens made later. None: that of the last start, as long as nobody has
    /// deleted it, or a new one.
    pub token: Option<BootstrapToken>,
    /// Where the administrator's kubeconfig is written.
    pub kubeconfig: PathBuf,
    pub network: ClusterNetwork,
    pub node_cidr_mask: u8,
    /// An `EncryptionConfiguration` file: what is encrypted at rest, and how.
    pub encryption: Option<PathBuf>,
    /// Whether that file is read again when it changes.
    pub encryption_reload: bool,
    /// Who may name users in headers; none: those with a certificate of the cluster's own front-proxy CA.
    pub requestheader_ca: Option<PathBuf>,
    pub requestheader: RequestHeaderNames,
    /// How long requests are still taken after `/readyz` has begun to fail.
    pub shutdown_delay: Duration,
    /// Who may do what, how much, and what is written down.
    pub access: access::Options,
}

/// A control plane that answers.
pub struct Running {
    /// `https://address:port`
    pub url: String,
    /// PEM
    pub ca_certificate: String,
    /// What nodes may join with.
    pub token: BootstrapToken,
    server: ApiServer,
    /// The store, if it is one of this process.
    embedded: Option<Arc<store::Embedded>>,
}

impl Running {
    /// A client with the controllers' rights.
    pub fn client(&self) -> kube::Client {
        self.server.client(&UserInfo::new("system:kube-controller-manager", &[AUTHENTICATED]))
    }

    /// Ends what listens: new requests are refused, those under way are answered. To be awaited
    /// before the supervisor is told to end everything.
    pub async fn drain(&self) {
        self.server.drain().await;
    }

    /// Returns, with the reason, once the store of this process takes no more writes. Only who opens its files
    /// anew can go on: the process is to end, for whoever supervises it to start it again.
    pub async fn failed(&self) -> anyhow::Error {
        failed(self.embedded.as_deref()).await
    }
}

async fn failed(embedded: Option<&store::Embedded>) -> anyhow::Error {
    match embedded {
        Some(embedded) => anyhow::Error::new(embedded.failed().await).context("the store takes no more writes"),
        // A cluster of etcd is mended without this process.
        None => std::future::pending().await,
    }
}

/// Starts everything; returns when requests are answered. All tasks belong to `supervisor`.
pub async fn start(config: Config, supervisor: &Supervisor) -> anyhow::Result<Running> {
    // Before any other file is written: a second server at this address or in this directory ends here, and
    // leaves the first one's certificates, kubeconfig and join token as they are.
    let address = SocketAddr::new(config.bind_address, config.port);
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("listening on {address}; is another server running? choose with --bind-address and --port")
    })?;
    let (store, embedded) = open_store(&config).await?;
    let names = ServerNames::new(
        &config.network.domain,
        config
            .tls_sans
            .iter()
            .cloned()
            .chain([config.advertise_address.to_string(), config.network.api_service().to_string()]),
    );
    let pki = Pki::ensure(&config.data_dir.join("server/tls"), &names)?;
    let url = format!("https://{}", SocketAddr::new(config.advertise_address, config.port));
    write_kubeconfig(&config.kubeconfig, &url, &pki)?;
    let server = ApiServer::start(api_config(&config, &pki), store, supervisor).await?;
    server.serve(listener, supervisor)?;

    let written = async {
        tokio::try_join!(
            insist(|| accept_token(&server, &config)),
            insist(|| publish_network(&server, &config.network))
        )
    };
    let (token, ()) = tokio::select! {
        written = written => written?,
        error = failed(embedded.as_deref()) => return Err(error),
    };
    write_join_token(&config, &token, &pki)?;
    start_clients(&server, &config, &pki, &url, supervisor);
    supervisor.spawn("renewal of certificates", keep_certificates(config, names, url.clone(), pki.clone()));
    Ok(Running { url, ca_certificate: pki.ca.certificate, token, server, embedded })
}

/// Remakes what is near its end, as a start does: a server may run for longer than its certificates last.
/// What uses them reads them again.
async fn keep_certificates(config: Config, names: ServerNames, url: String, mut held: Pki) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        let renewed = Pki::ensure(&held.dir, &names).map_err(anyhow::Error::from).and_then(|pki| {
            if pki.admin.certificate != held.admin.certificate {
                write_kubeconfig(&config.kubeconfig, &url, &pki)?;
            }
            Ok(pki)
        });
        match renewed {
            Ok(pki) => held = pki,
            Err(error) => tracing::warn!("{error:#}; the certificates stay as they are for now"),
        }
    }
}

/// Does what a server that answers already still has to write. The store may just then be without one
/// of its members, which is no reason for the server to end; what fails for a minute is.
async fn insist<T, F: Future<Output = anyhow::Result<T>>>(mut write: impl FnMut() -> F) -> anyhow::Result<T> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match write().await {
            Err(error) if tokio::time::Instant::now() < deadline => {
                tracing::warn!("{error:#}; trying again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            outcome => return outcome,
        }
    }
}

/// The store, and the same again if it is one of this process.
async fn open_store(config: &Config) -> anyhow::Result<(Arc<dyn store::Store>, Option<Arc<store::Embedded>>)> {
    match &config.store {
        Store::Embedded => {
            let dir = snapshot::store_dir(&config.data_dir);
            std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
            let embedded = Arc::new(store::Embedded::open(&dir)?);
            Ok((embedded.clone(), Some(embedded)))
        }
        Store::Etcd(endpoints) => {
            let etcd = store::Etcd::connect(&store::EtcdOptions::new(endpoints.clone()))
                .await
                .with_context(|| format!("connecting to etcd at {}", endpoints.join(", ")))?;
            Ok((Arc::new(etcd), None))
        }
    }
}

fn api_config(config: &Config, pki: &Pki) -> apiserver::Config {
    let pair = |name: &str| KeyPair { certificate: pki.certificate_path(name), key: pki.key_path(name) };
    let mut api = apiserver::Config::new(
        config.advertise_address,
        pair("apiserver"),
        pki.certificate_path("ca"),
        pki.key_path("service-account"),
    );
    api.port = config.port;
    api.issuer = format!("https://kubernetes.default.svc.{}", config.network.domain);
    api.kubelet_client = Some(pair("apiserver-kubelet-client"));
    api.front_proxy_client = Some(pair("front-proxy-client"));
    api.front_proxy_ca = Some(pki.certificate_path("front-proxy-ca"));
    api.kubelet_ca = Some(pki.certificate_path("ca"));
    api.requestheader_ca = config.requestheader_ca.clone();
    api.requestheader = config.requestheader.clone();
    api.shutdown_delay = config.shutdown_delay;
    api.service_cidr = config.network.services.to_string();
    api.service_address = config.network.api_service();
    api.dns_address = config.network.dns;
    api.encryption = config.encryption.clone();
    api.encryption_reload = config.encryption_reload;
    api.options = config.access.clone();
    api
}

/// Starts the scheduler and the controllers: at once with a store of our own, by election where
/// several servers share one.
fn start_clients(server: &ApiServer, config: &Config, pki: &Pki, url: &str, supervisor: &Supervisor) {
    let schedule = scheduler_start(server.clone());
    let control = controllers_start(server.clone(), config, pki, url);
    if config.store == Store::Embedded {
        schedule(&supervisor.child("scheduler"));
        control(&supervisor.child("controllers"));
        return;
    }
    let identity = format!("{}_{:08x}", config.advertise_address, rand::random::<u32>());
    let stand = |user: &str, lease: &str| Candidate {
        client: server.client(&UserInfo::new(user, &[AUTHENTICATED])),
        lease: lease.to_owned(),
        identity: identity.clone(),
    };
    stand("system:kube-scheduler", "kube-scheduler").start(supervisor, schedule);
    stand("system:kube-controller-manager", "kube-controller-manager").start(supervisor, control);
}

fn scheduler_start(server: ApiServer) -> impl Fn(&Supervisor) + Send + Sync + 'static {
    move |supervisor| {
        let client = server.client(&UserInfo::new("system:kube-scheduler", &[AUTHENTICATED]));
        let recorder = EventRecorder::new(client.clone(), supervisor, "default-scheduler", "");
        scheduler::start(Informers::new(client, supervisor), recorder, supervisor);
    }
}

/// Each controller writes with an identity of its own; the shared caches read with the manager's.
fn controllers_start(
    server: ApiServer,
    config: &Config,
    pki: &Pki,
    url: &str,
) -> impl Fn(&Supervisor) + Send + Sync + 'static {
    let client: Arc<dyn Fn(&str) -> kube::Client + Send + Sync> = Arc::new(move |name: &str| {
        if name.is_empty() {
            server.client(&UserInfo::new("system:kube-controller-manager", &[AUTHENTICATED]))
        } else {
            server.client(&UserInfo::service_account("kube-system", name))
        }
    });
    let (ca, config, url) = (pki.ca.clone(), config.clone(), url.to_owned());
    move |supervisor| {
        let config = controllers::Config {
            client: client.clone(),
            ca_certificate: ca.certificate.clone(),
            ca_key: ca.key.clone(),
            cluster_cidr: config.network.pods.to_string(),
            node_mask: config.node_cidr_mask,
            service_cidr: config.network.services.to_string(),
            server: url.clone(),
        };
        controllers::start(config, supervisor);
    }
}

/// Makes the Secret of the start's own bootstrap token, unless it is there. Without a token of its own a start
/// goes on with the last one's: otherwise each would leave one more that lets nodes in for ever.
async fn accept_token(server: &ApiServer, config: &Config) -> anyhow::Result<BootstrapToken> {
    let secrets: Api<Secret> = Api::namespaced(server.client(&UserInfo::admin()), "kube-system");
    let token = match &config.token {
        Some(given) => given.clone(),
        None => {
            let kept = std::fs::read_to_string(join_token(config)).unwrap_or_default();
            if let Some(kept) = BootstrapToken::of_join_token(&kept) {
                let secret = secrets.get_opt(&kept.secret_name()).await.context("looking for the join token")?;
                if secret.is_some_and(|secret| kept.is_in(&secret)) {
                    return Ok(kept);
                }
            }
            BootstrapToken::generate()
        }
    };
    let secret = token::secret(&token, "given to the server when it started", None);
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(token),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(token),
        Err(error) => Err(error).context("storing the join token"),
    }
}

/// Tells the nodes the cluster's networks and domain.
async fn publish_network(server: &ApiServer, network: &ClusterNetwork) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(server.client(&UserInfo::admin()), cluster::NAMESPACE);
    let mut map = ConfigMap { data: Some(network.to_data()), ..Default::default() };
    map.metadata.name = Some(cluster::NAME.to_owned());
    let written = match maps.create(&PostParams::default(), &map).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
            maps.replace(cluster::NAME, &PostParams::default(), &map).await
        }
        outcome => outcome,
    };
    written.map(drop).with_context(|| format!("publishing {}/{}", cluster::NAMESPACE, cluster::NAME))
}

fn write_kubeconfig(path: &Path, url: &str, pki: &Pki) -> anyhow::Result<()> {
    let kubeconfig = kubeconfig::with_certificate("skiff", url, &pki.ca.certificate, "system:admin", &pki.admin);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    Ok(pki::write(path, &serde_json::to_string_pretty(&kubeconfig)?, 0o600)?)
}

fn join_token(config: &Config) -> PathBuf {
    config.data_dir.join("server/join-token")
}

/// For people: what to give `skiff agent --token` on another machine.
fn write_join_token(config: &Config, token: &BootstrapToken, pki: &Pki) -> anyhow::Result<()> {
    let token = token::with_ca(&token.to_string(), &pki.ca.certificate)?;
    Ok(pki::write(&join_token(config), &token, 0o600)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use futures::FutureExt;
    use store::{Embedded, Options, Store, Txn};

    use super::failed;

    /// Its supervisor starts it again, which is all that a full disk needs once it has room.
    #[tokio::test]
    async fn a_control_plane_whose_store_takes_no_more_writes_ends_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 4096, ..Options::default() };
        let store = Embedded::open_with(&dir.path().join("db"), &options).unwrap();
        assert!(failed(Some(&store)).now_or_never().is_none());
        assert!(failed(None).now_or_never().is_none(), "etcd is not this process's");
        // No file can be made any more.
        std::fs::remove_dir_all(dir.path().join("db")).unwrap();
        let mut written = 0;
        while store.txn(Txn::create(format!("/{written}"), vec![0u8; 1000])).await.is_ok() {
            written += 1;
            assert!(written < 1000, "it takes writes without end");
        }
        let why = format!("{:#}", failed(Some(&store)).await);
        assert!(why.starts_with("the store takes no more writes: "), "{why}");
        assert!(why.contains(&dir.path().join("db").display().to_string()), "{why}");
        assert!(why.ends_with("; check the disk's free space and health, then start the server again"), "{why}");
    }
}
