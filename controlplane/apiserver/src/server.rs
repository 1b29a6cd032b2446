//! The server as a whole: its configuration, what its parts share ([`Api`]), and how it starts.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use component::Supervisor;
use store::Store;
use tokio::net::TcpListener;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;

use crate::admit::Admission;
use crate::aggregate::Aggregator;
use crate::authn::requestheader::Names;
use crate::authn::{Authenticator, UserInfo};
use crate::authz::Authorizer;
use crate::encryption::Sealed;
use crate::error::{ApiError, Result};
use crate::http::inprocess;
use crate::http::serve::Ending;
use crate::resources::{Endpoint, Resources};

/// How often what Services hold is compared with what is noted as taken; upstream's period.
const REPAIR_EVERY: Duration = Duration::from_secs(180);

/// A certificate and its key, PEM files; read again when they change.
#[derive(Debug, Clone, Default)]
pub struct KeyPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Config {
    /// Where the `kubernetes` Service leads; also in the kubelets' and pods' view of the server.
    pub advertise_address: IpAddr,
    pub port: u16,
    /// What the server shows.
    pub serving: KeyPair,
    /// PEM; signs the certificates that clients may show.
    pub client_ca: PathBuf,
    /// PEM, PKCS 8; signs ServiceAccount tokens (ES256, or RS256 for an RSA key).
    pub service_account_key: PathBuf,
    /// `iss` of ServiceAccount tokens, and their default audience.
    pub issuer: String,
    /// Shown to kubelets.
    pub kubelet_client: Option<KeyPair>,
    /// PEM; signs the kubelets' serving certificates. Without it any is taken.
    pub kubelet_ca: Option<PathBuf>,
    /// Shown to aggregated API servers, with the CA that signed it.
    pub front_proxy_client: Option<KeyPair>,
    pub front_proxy_ca: Option<PathBuf>,
    /// PEM; signs the certificates of proxies that may name users in headers. None: `front_proxy_ca`.
    pub requestheader_ca: Option<PathBuf>,
    pub requestheader: Names,
    pub service_cidr: String,
    /// The Service `kubernetes`, and the cluster's DNS: two of `service_cidr`.
    pub service_address: Ipv4Addr,
    pub dns_address: Ipv4Addr,
    /// An `EncryptionConfiguration`.
    pub encryption: Option<PathBuf>,
    /// Whether it is read again when it changes.
    pub encryption_reload: bool,
    /// How long the server goes on after `/readyz` has begun to fail.
    pub shutdown_delay: Duration,
    /// Whether `nodes/proxy` may lead to this machine and its link, which upstream never lets it: for tests, whose
    /// backends listen on loopback addresses.
    pub proxies_to_itself: bool,
    pub options: Options,
}

/// What an operator may want otherwise, named as the flags of `kube-apiserver`.
#[derive(Debug, Clone)]
pub struct Options {
    pub audit: crate::audit::AuditConfig,
    /// Requests that may be under way at once, long-running ones aside: read, write.
    pub max_in_flight: (usize, usize),
    /// Of one request, long-running ones aside.
    pub request_timeout: Duration,
    pub authentication: crate::authn::AuthenticationOptions,
    pub authorization: crate::authz::AuthorizationOptions,
    pub admission: crate::admission::AdmissionOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            audit: crate::audit::AuditConfig::default(),
            max_in_flight: (400, 200),
            request_timeout: Duration::from_secs(60),
            authentication: crate::authn::AuthenticationOptions::default(),
            authorization: crate::authz::AuthorizationOptions::default(),
            admission: crate::admission::AdmissionOptions::default(),
        }
    }
}

impl Config {
    /// Upstream's defaults for all but addresses and files.
    pub fn new(advertise_address: IpAddr, serving: KeyPair, client_ca: PathBuf, service_account_key: PathBuf) -> Self {
        let network = api::cluster::ClusterNetwork::default();
        Self {
            advertise_address,
            port: api::defaults::API_PORT,
            serving,
            client_ca,
            service_account_key,
            issuer: format!("https://kubernetes.default.svc.{}", api::defaults::CLUSTER_DOMAIN),
            kubelet_client: None,
            kubelet_ca: None,
            front_proxy_client: None,
            front_proxy_ca: None,
            requestheader_ca: None,
            requestheader: Names::default(),
            service_cidr: network.services.to_string(),
            service_address: network.api_service(),
            dns_address: network.dns,
            encryption: None,
            encryption_reload: true,
            shutdown_delay: Duration::ZERO,
            proxies_to_itself: false,
            options: Options::default(),
        }
    }

    pub fn requestheader_ca(&self) -> Option<&Path> {
        self.requestheader_ca.as_deref().or(self.front_proxy_ca.as_deref())
    }

    /// What a connection's TLS depends on.
    pub fn tls_files(&self) -> Vec<PathBuf> {
        let own = [&self.serving.certificate, &self.serving.key, &self.client_ca];
        own.into_iter().cloned().chain(self.requestheader_ca().map(Path::to_owned)).collect()
    }
}

/// What every part of the server shares.
pub struct Api {
    /// Itself, for what takes a request on from where it is only borrowed.
    this: OnceLock<Weak<Api>>,
    pub config: Config,
    pub store: Arc<dyn Store>,
    /// The same, as what encrypts.
    pub sealed: Arc<Sealed>,
    pub supervisor: Supervisor,
    resources: signal::Sender<Arc<Resources>>,
    pub aggregator: Aggregator,
    pub looks: crate::registry::usage::Looks,
    pub definitions: crate::crd::Work,
    pub admission: Vec<Arc<dyn Admission>>,
    pub authn: Authenticator,
    pub authz: Authorizer,
    pub flow: crate::flowcontrol::FlowControl,
    /// Of writers that meet at one object.
    pub turns: crate::registry::turns::Turns,
    /// None: nothing is recorded.
    pub audit: Option<Arc<crate::audit::Audit>>,
    pub metrics: crate::http::metrics::Metrics,
    pub timed: Arc<crate::timed_store::TimedStore>,
    pub openapi: crate::openapi::OpenApi,
    pub started: jiff::Timestamp,
    pub ending: Ending,
    /// Cancelled when the server stops to listen: watches end.
    pub stopping: CancellationToken,
}

impl Api {
    /// # Errors
    ///
    /// The server is not there yet, or not any more.
    pub fn this(&self) -> Result<Arc<Api>> {
        let this = self.this.get().and_then(Weak::upgrade);
        this.ok_or_else(|| ApiError::unavailable("the server is starting or shutting down"))
    }

    pub fn resources(&self) -> Arc<Resources> {
        self.resources.borrow().clone()
    }

    /// Wakes when the set of served resources was swapped.
    pub fn watch_resources(&self) -> signal::Receiver<Arc<Resources>> {
        self.resources.subscribe()
    }

    /// Swaps the set of served resources.
    pub fn set_resources(&self, resources: Resources) {
        self.resources.send_replace(Arc::new(resources));
    }
}

async fn repair(api: &Arc<Api>) -> Result<()> {
    for endpoint in api.resources().all() {
        endpoint.hooks().repair(&**api).await?;
    }
    Ok(())
}

async fn keep_repairing(api: Arc<Api>) {
    loop {
        tokio::time::sleep(REPAIR_EVERY).await;
        if let Err(error) = repair(&api).await {
            tracing::warn!(%error, "a repair failed; it is tried again later");
        }
    }
}

/// A running API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    api: Arc<Api>,
}

impl ApiServer {
    /// Starts the server's own tasks and makes what every cluster has (namespaces, roles,
    /// priority classes); answers requests when this returns. [`ApiServer::serve`] listens.
    pub async fn start(config: Config, store: Arc<dyn Store>, supervisor: &Supervisor) -> Result<Self> {
        let supervisor = supervisor.child("apiserver");
        let admission = crate::admission::build(&config.options.admission, &supervisor).await?;
        let ranges = crate::kinds::ServiceRanges { cidr: config.service_cidr.clone(), ..Default::default() };
        let resources = crate::kinds::all_with(ranges);
        let timed = crate::timed_store::TimedStore::new(store, &resources);
        let sealed = Sealed::new(
            timed.clone(),
            &resources,
            config.encryption.as_deref(),
            config.encryption_reload,
            &supervisor,
        )?;
        let store: Arc<dyn Store> = sealed.clone();
        let endpoints =
            resources.into_iter().map(|resource| Endpoint::new(resource, store.clone(), &supervisor)).collect();
        let api = Arc::new(Api {
            this: OnceLock::new(),
            authn: Authenticator::new(&config, &supervisor).await?,
            authz: Authorizer::new(&config.options.authorization, &supervisor).await?,
            metrics: crate::http::metrics::Metrics::default(),
            timed,
            turns: crate::registry::turns::Turns::default(),
            flow: crate::flowcontrol::FlowControl::new(config.options.max_in_flight, config.options.request_timeout),
            audit: crate::audit::Audit::start(&config.options.audit, &supervisor).await?,
            openapi: crate::openapi::OpenApi::default(),
            started: jiff::Timestamp::now(),
            admission,
            resources: signal::Sender::new(Arc::new(Resources::new(endpoints))),
            aggregator: Aggregator::default(),
            looks: crate::registry::usage::Looks::default(),
            definitions: crate::crd::Work::default(),
            ending: Ending::default(),
            stopping: supervisor.token().child_token(),
            supervisor,
            store,
            sealed,
            config,
        });
        // The first time, since nobody else has it yet.
        let _ = api.this.set(Arc::downgrade(&api));
        crate::bootstrap::start(&api).await?;
        // After that: what bootstrap's own objects hold is then noted.
        repair(&api).await?;
        api.supervisor.spawn("repair", keep_repairing(api.clone()));
        crate::crd::start(&api).await?;
        crate::aggregate::start(&api);
        crate::policy::typecheck::start(&api);
        Ok(Self { api })
    }

    pub fn config(&self) -> &Config {
        &self.api.config
    }

    /// A client with the rights of `user`, over the same pipeline without TCP or TLS.
    pub fn client(&self, user: &UserInfo) -> kube::Client {
        kube::Client::new(inprocess::Service::new(self.api.clone(), user.clone()), "default")
    }

    /// Ends the listeners: `/readyz` fails, then watches end, and requests under way are answered.
    /// The rest of the server, which they need, goes on.
    pub async fn drain(&self) {
        self.api.ending.drain().await;
    }

    /// Definitions decoded and compiled so far, by the task that serves them.
    #[cfg(feature = "testing")]
    pub fn definitions_work(&self) -> (u64, u64) {
        let read = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        (read(&self.api.definitions.decoded), read(&self.api.definitions.compiled))
    }

    /// Accepts TLS connections on `listener` until [`ApiServer::drain`], or until `supervisor` is
    /// cancelled.
    pub fn serve(&self, listener: TcpListener, supervisor: &Supervisor) -> Result<()> {
        crate::http::serve::start(&self.api, listener, supervisor)
    }

    /// Whether everything that `/readyz` asks about is well.
    pub async fn ready(&self) -> Result<()> {
        let failed = crate::http::health::failing(&self.api).await;
        if failed.is_empty() { Ok(()) } else { Err(ApiError::unavailable(format!("not ready: {}", failed.join(", ")))) }
    }
}
