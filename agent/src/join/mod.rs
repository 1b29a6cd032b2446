//! Joining the cluster: from a token to a node's identity, kept fresh.
//!
//! Layer: between the server and everything on the node that speaks to it; [`join`] gives the
//! `kube::Client` that the kubelet, network, proxy and DNS share.
//!
//! 1. With a [`JoinToken`] the agent reads the `cluster-info` ConfigMap in `kube-public`
//!    anonymously, and believes the CA in it if its digest is the token's.
//! 2. With the token as its credential it asks for a client certificate for
//!    `system:node:<name>` (`request`), and stores it (`store`).
//! 3. With that identity it asks for a serving certificate for the kubelet's server.
//! 4. Both are renewed between 70 and 90 % of their lives; the connection takes the new one without
//!    a pause (`client`).
//!
//! A stored identity that is still valid for the token's cluster is used again: a restarted agent
//! needs no token that is still alive.

mod client;
mod request;
mod store;
mod token;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::cluster::{self, ClusterNetwork};
use component::Supervisor;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

pub use client::{Connection, Credential, Trust};
pub use request::Purpose;
pub use store::Identity;
pub use token::{BadToken, JoinToken, ca_digest};

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// The longest pause before a certificate is asked for again.
const RENEWAL_RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{server:?} is not a server address; give https://host:port")]
    Server { server: String },
    #[error("the ConfigMap kube-public/skiff-cluster is damaged ({0}); restarting the server writes it anew")]
    Network(String),
    #[error(transparent)]
    Token(#[from] BadToken),
    #[error("no join token was given, and {directory} holds no valid identity of this node; give --token (`skiff token create` on the server)", directory = directory.display())]
    NoToken { directory: PathBuf },
    #[error("the bearer token holds characters that no HTTP header may")]
    BearerToken,
    #[error(
        "the server's CA has the digest {found}, the token expects {expected}: this is not the server that the token is from"
    )]
    WrongCa { found: String, expected: String },
    #[error("the cluster-info ConfigMap of {server} holds no usable CA certificate")]
    ClusterInfo { server: String },
    #[error(
        "{server} answers nobody without credentials, and nodes join by reading its cluster-info ConfigMap: allow /api/v1/namespaces/kube-public/configmaps/cluster-info in the `anonymous` section of the server's --authentication-config"
    )]
    NobodyAnonymous { server: String },
    #[error("{doing}: {}", component::brief(.error))]
    Api { doing: String, error: Box<kube::Error> },
    #[error("CertificateSigningRequest {name} was not granted: {why}")]
    Refused { name: String, why: String },
    #[error(
        "CertificateSigningRequest {name} was not signed within {seconds} s; are the server's controllers running? (`kubectl get csr`)"
    )]
    NotSigned { name: String, seconds: u64 },
    #[error("making a key or a signing request: {0}")]
    Key(rcgen::Error),
    #[error("preparing TLS: {0}")]
    Tls(rustls::Error),
    #[error("{path} is no usable identity: {why}", path = path.display())]
    Identity { path: PathBuf, why: String },
    #[error("{doing} {path}: {error}", path = path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("no address of this machine leads to {server}: {error}; give one with --node-ip")]
    NoRoute { server: String, error: String },
}

impl JoinError {
    fn api(doing: impl Into<String>, error: kube::Error) -> Self {
        Self::Api { doing: doing.into(), error: Box::new(error) }
    }

    /// Whether waiting could help: the server is not there yet, or is overloaded.
    fn is_temporary(&self) -> bool {
        match self {
            Self::Api { error, .. } => match &**error {
                // A fresh server may not have its bootstrap roles and tokens yet.
                kube::Error::Api(status) => matches!(status.code, 401 | 403 | 404 | 429 | 500..),
                _ => true,
            },
            Self::NotSigned { .. } | Self::ClusterInfo { .. } => true,
            _ => false,
        }
    }
}

/// How the agent proves who it is before it has a certificate.
#[derive(Debug, Clone)]
pub enum Credentials {
    Token(JoinToken),
    /// Not at all: only an identity stored by an earlier run will do.
    Stored,
    /// A kubeconfig whose user is already `system:node:<name>`.
    Kubeconfig(PathBuf),
}

/// Where identities are kept, and for which node.
#[derive(Debug, Clone)]
pub struct Options {
    pub server: String,
    pub credentials: Credentials,
    pub node_name: String,
    /// `/var/lib/skiff/agent/pki`
    pub directory: PathBuf,
}

/// Files of the node's identity.
#[derive(Debug, Clone)]
pub struct Files {
    pub ca: PathBuf,
    /// Certificate and key of `system:node:<name>`.
    pub client: PathBuf,
    /// Certificate and key of the kubelet's server; absent until it is signed.
    pub serving: PathBuf,
}

impl Files {
    pub fn under(directory: &Path) -> Self {
        Self {
            ca: directory.join("ca.crt"),
            client: directory.join("kubelet-client-current.pem"),
            serving: directory.join("kubelet-server-current.pem"),
        }
    }
}

/// A node's place in the cluster.
pub struct Joined {
    pub client: kube::Client,
    pub files: Files,
    connection: Option<Connection>,
    node_name: String,
}

/// Obtains the node's identity, waiting for the server if need be, and keeps it fresh.
pub async fn join(options: Options, supervisor: &Supervisor) -> Result<Joined, JoinError> {
    let files = Files::under(&options.directory);
    std::fs::create_dir_all(&options.directory).map_err(|error| JoinError::File {
        doing: "creating",
        path: options.directory.clone(),
        error,
    })?;
    let token = match &options.credentials {
        Credentials::Kubeconfig(path) => return with_kubeconfig(path, files, &options.node_name).await,
        Credentials::Token(token) => Some(token),
        Credentials::Stored => None,
    };
    let (ca, identity) = match (stored(&files, token, &options.node_name), token) {
        (Some(found), _) => found,
        (None, None) => return Err(JoinError::NoToken { directory: options.directory }),
        (None, Some(token)) => {
            let wanted = format!("joining {} as node {}", options.server, options.node_name);
            patiently(&wanted, || first_identity(&options, token, &files)).await?
        }
    };
    let connection =
        Connection::new(&options.server, Trust::Authorities(ca), &Credential::Certificate(identity.clone()))?;
    let client = connection.client();
    let joined = Joined { client, files, connection: Some(connection), node_name: options.node_name };
    joined.renew_client(identity, supervisor);
    Ok(joined)
}

impl Joined {
    /// The cluster's networks and domain, as its server published them.
    pub async fn cluster_network(&self) -> Result<ClusterNetwork, JoinError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), cluster::NAMESPACE);
        let reading = format!("reading the ConfigMap {}/{}", cluster::NAMESPACE, cluster::NAME);
        let read = || async { api.get(cluster::NAME).await.map_err(|error| JoinError::api(reading.clone(), error)) };
        let map = patiently("learning the cluster's networks", read).await?;
        ClusterNetwork::from_data(&map.data.unwrap_or_default()).map_err(JoinError::Network)
    }

    /// Obtains the serving certificate and keeps it fresh, in the background: the kubelet's server
    /// takes it from [`Files::serving`] as soon as it is there.
    pub fn keep_serving_certificate(&self, addresses: Vec<IpAddr>, hostname: String, supervisor: &Supervisor) {
        let (client, node, path) = (self.client.clone(), self.node_name.clone(), self.files.serving.clone());
        let purpose = Purpose::Serving { addresses: addresses.clone(), hostname };
        supervisor.spawn("serving-certificate", async move {
            // With one for an address that the node had before, the API server would take it for another machine.
            let stored = usable(&path, &format!("system:node:{node}"));
            let known = stored.filter(|identity| identity.names(&addresses));
            keep_fresh(known, || renew(&client, &node, &purpose, &path), |_| {}).await;
        });
    }

    fn renew_client(&self, identity: Identity, supervisor: &Supervisor) {
        let Some(connection) = self.connection.clone() else { return };
        let (client, node, path) = (self.client.clone(), self.node_name.clone(), self.files.client.clone());
        supervisor.spawn("client-certificate", async move {
            let take = |identity: &Identity| match connection.replace(&Credential::Certificate(identity.clone())) {
                Ok(()) => tracing::info!(until = %identity.not_after, "the node's client certificate was renewed"),
                Err(error) => tracing::error!(%error, "the renewed client certificate is not usable"),
            };
            keep_fresh(Some(identity), || renew(&client, &node, &Purpose::Client, &path), take).await;
        });
    }
}

async fn with_kubeconfig(path: &Path, files: Files, node_name: &str) -> Result<Joined, JoinError> {
    let unusable = |why: String| JoinError::Identity { path: path.to_owned(), why };
    let kubeconfig = kube::config::Kubeconfig::read_from(path).map_err(|error| unusable(error.to_string()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .map_err(|error| unusable(error.to_string()))?;
    if let Some(ca) = config.root_cert.as_ref().and_then(|list| list.first()) {
        store::write_private(&files.ca, pem("CERTIFICATE", ca).as_bytes())?;
    }
    let client = kube::Client::try_from(config).map_err(|error| unusable(error.to_string()))?;
    Ok(Joined { client, files, connection: None, node_name: node_name.to_owned() })
}

/// The identity of an earlier run, if it is of this node, of the token's cluster, and still valid.
fn stored(files: &Files, token: Option<&JoinToken>, node: &str) -> Option<(Vec<u8>, Identity)> {
    let ca = std::fs::read(&files.ca).ok()?;
    let certificate = store::first_certificate(&ca)?;
    if token.is_some_and(|token| !token.matches(&certificate)) {
        return None;
    }
    usable(&files.client, &format!("system:node:{node}")).map(|identity| (ca, identity))
}

/// A stored identity that is valid now; one that is damaged or expired is as good as none.
fn usable(path: &Path, name: &str) -> Option<Identity> {
    match Identity::load(path) {
        Ok(identity) => {
            identity.filter(|identity| identity.common_name == name && identity.is_valid_at(Timestamp::now()))
        }
        Err(error) => {
            tracing::warn!(%error, "a stored identity is not usable; asking for a new one");
            None
        }
    }
}

async fn first_identity(options: &Options, token: &JoinToken, files: &Files) -> Result<(Vec<u8>, Identity), JoinError> {
    let ca = discover(&options.server, token).await?;
    let connection =
        Connection::new(&options.server, Trust::Authorities(ca.clone()), &Credential::Bearer(token.bearer()))?;
    let identity = renew(&connection.client(), &options.node_name, &Purpose::Client, &files.client).await?;
    // Last, so that a stored CA means a stored identity of the same cluster.
    store::write_private(&files.ca, &ca)?;
    Ok((ca, identity))
}

/// The CA in the cluster's `cluster-info`, once its digest is the token's.
async fn discover(server: &str, token: &JoinToken) -> Result<Vec<u8>, JoinError> {
    let client = Connection::new(server, Trust::Anyone, &Credential::Anonymous)?.client();
    let api: Api<ConfigMap> = Api::namespaced(client, "kube-public");
    let info = api.get("cluster-info").await.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 401 => JoinError::NobodyAnonymous { server: server.to_owned() },
        error => JoinError::api(format!("reading the cluster-info ConfigMap of {server}"), error),
    })?;
    let unusable = || JoinError::ClusterInfo { server: server.to_owned() };
    let text = info.data.and_then(|mut data| data.remove("kubeconfig")).ok_or_else(unusable)?;
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).map_err(|_| unusable())?;
    let cluster = kubeconfig.clusters.into_iter().next().and_then(|named| named.cluster).ok_or_else(unusable)?;
    let encoded = cluster.certificate_authority_data.ok_or_else(unusable)?;
    use base64::Engine;
    let ca = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).map_err(|_| unusable())?;
    let certificate = store::first_certificate(&ca).ok_or_else(unusable)?;
    if !token.matches(&certificate) {
        return Err(JoinError::WrongCa { found: ca_digest(&certificate), expected: token.ca_digest.clone() });
    }
    Ok(ca)
}

async fn renew(client: &kube::Client, node: &str, purpose: &Purpose, path: &Path) -> Result<Identity, JoinError> {
    let signed = request::obtain(client, node, purpose).await?;
    store::save(path, &signed.certificates, &signed.key)?;
    Identity::load(path)?.ok_or_else(|| JoinError::Identity { path: path.to_owned(), why: "it vanished".to_owned() })
}

/// Obtains an identity if there is none, and a new one whenever it is due, for ever.
async fn keep_fresh<F, Fut>(mut current: Option<Identity>, mut obtain: F, take: impl Fn(&Identity))
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Identity, JoinError>>,
{
    let mut retry = FIRST_RETRY;
    loop {
        if let Some(identity) = &current {
            let due = identity.renewal(share_of(identity)).duration_since(Timestamp::now());
            tokio::time::sleep(Duration::try_from(due).unwrap_or(Duration::ZERO)).await;
        }
        match obtain().await {
            Ok(identity) => {
                take(&identity);
                current = Some(identity);
                retry = FIRST_RETRY;
            }
            Err(error) => {
                tracing::warn!(%error, retry_ms = retry.as_millis() as u64, "a certificate could not be obtained; it will be tried again");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RENEWAL_RETRY);
            }
        }
    }
}

/// A number in 0..1 that differs between nodes and stays the same for one certificate.
fn share_of(identity: &Identity) -> f64 {
    let digest = identity.key.cert.first().map(|certificate| ca_digest(certificate)).unwrap_or_default();
    u32::from_str_radix(digest.get(..8).unwrap_or("0"), 16)
        .map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

/// Tries again while waiting can help, saying what is waited for.
async fn patiently<T, F, Fut>(wanted: &str, mut attempt: F) -> Result<T, JoinError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, JoinError>>,
{
    let mut retry = FIRST_RETRY;
    loop {
        match attempt().await {
            Err(error) if error.is_temporary() => {
                if retry >= LONGEST_RETRY {
                    tracing::warn!(%error, "{wanted}: still trying");
                } else {
                    tracing::debug!(%error, "{wanted}: trying again");
                }
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LONGEST_RETRY);
            }
            outcome => return outcome,
        }
    }
}

/// The address of this machine on the interface that routes to the server. Sends nothing: a
/// connected datagram socket makes the kernel choose.
pub fn address_towards(server: &str) -> Result<IpAddr, JoinError> {
    let no_route = |error: String| JoinError::NoRoute { server: server.to_owned(), error };
    let uri: http::Uri = server.parse().map_err(|_| JoinError::Server { server: server.to_owned() })?;
    let host = uri.host().ok_or_else(|| JoinError::Server { server: server.to_owned() })?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let target: SocketAddr = (host, uri.port_u16().unwrap_or(6443))
        .to_socket_addrs()
        .map_err(|error| no_route(error.to_string()))?
        .next()
        .ok_or_else(|| no_route("the name has no address".to_owned()))?;
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).map_err(|error| no_route(error.to_string()))?;
    socket.connect(target).map_err(|error| no_route(error.to_string()))?;
    socket.local_addr().map(|address| address.ip()).map_err(|error| no_route(error.to_string()))
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_leads_to_itself() {
        assert_eq!(address_towards("https://127.0.0.1:6443").unwrap(), "127.0.0.1".parse::<IpAddr>().unwrap());
        assert!(address_towards("not a url").is_err());
    }
}
