//! An API server inside a test, with a temporary store and PKI.
//!
//! For other crates' tests, as a dev-dependency with feature `testing`:
//!
//! ```text
//! [dev-dependencies]
//! apiserver = { workspace = true, features = ["testing"] }
//!
//! let cluster = apiserver::testing::Cluster::start().await;
//! let client: kube::Client = cluster.admin();                     // in-process, system:masters
//! let informers = component::Informers::new(cluster.client("system:kube-scheduler"), &cluster.supervisor);
//! let address = cluster.listen().await;                           // TLS on a loopback port
//! let kubeconfig = cluster.kubeconfig("admin", &["system:masters"]);  // for kubectl
//! ```
//!
//! Everything ends and is removed when the [`Cluster`] is dropped. Panics instead of returning
//! errors: it is for tests only.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use component::Supervisor;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair as Key, SanType,
};
use tempfile::TempDir;

use crate::{ApiServer, Config, KeyPair, UserInfo};

/// A running server and what it needs.
pub struct Cluster {
    pub server: ApiServer,
    pub supervisor: Supervisor,
    store: Arc<store::Embedded>,
    ca: Issuer<'static, Key>,
    ca_pem: String,
    dir: TempDir,
    address: Mutex<Option<SocketAddr>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.supervisor.cancel();
        self.store.close();
    }
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Over this store.
    pub async fn start_over(store: store::Embedded) -> Self {
        Self::start_at(store, tempfile::tempdir().unwrap(), |_| {}).await
    }

    /// `adjust` may change the configuration before the server starts.
    pub async fn start_with(adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_at(store::Embedded::open(&dir.path().join("db")).unwrap(), dir, adjust).await
    }

    async fn start_at(store: store::Embedded, dir: TempDir, adjust: impl FnOnce(&mut Config)) -> Self {
        // A second install in one process fails, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (ca, ca_pem) = authority();
        std::fs::write(dir.path().join("ca.crt"), &ca_pem).unwrap();
        let serving = leaf(dir.path(), &ca, "kube-apiserver", &[], true);
        let account_key = dir.path().join("service-account.key");
        std::fs::write(&account_key, Key::generate().unwrap().serialize_pem()).unwrap();
        let mut config = Config::new(IpAddr::V4(Ipv4Addr::LOCALHOST), serving, dir.path().join("ca.crt"), account_key);
        adjust(&mut config);
        let supervisor = Supervisor::new("test");
        let store = Arc::new(store);
        let server = ApiServer::start(config, store.clone(), &supervisor).await.unwrap();
        Self { server, supervisor, store, ca, ca_pem, dir, address: Mutex::default() }
    }

    /// What lies in the store under `key`, as it lies there.
    pub async fn stored(&self, key: &str) -> Option<Vec<u8>> {
        use store::Store;
        self.store.get(key).await.unwrap().kv.map(|kv| kv.value.to_vec())
    }

    /// Forgets every version but the newest, as time would.
    pub async fn compact(&self) {
        use store::Store;
        let now = self.store.get("/registry").await.unwrap().revision;
        self.store.compact(now).await.unwrap();
    }

    /// Another server over the same store and certificates, as after a restart.
    pub async fn another(&self, adjust: impl FnOnce(&mut Config)) -> ApiServer {
        let mut config = self.server.config().clone();
        adjust(&mut config);
        ApiServer::start(config, self.store.clone(), &self.supervisor).await.unwrap()
    }

    /// The administrator's client, in-process.
    pub fn admin(&self) -> kube::Client {
        self.server.client(&UserInfo::admin())
    }

    /// An in-process client of a user in `system:authenticated`.
    pub fn client(&self, user: &str) -> kube::Client {
        let info = match user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
            Some((namespace, name)) => UserInfo::service_account(namespace, name),
            None => UserInfo::new(user, &["system:authenticated"]),
        };
        self.server.client(&info)
    }

    /// Listens on a loopback port; the same one when called again.
    pub async fn listen(&self) -> SocketAddr {
        if let Some(address) = *self.address.lock() {
            return address;
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.server.serve(listener, &self.supervisor).unwrap();
        *self.address.lock() = Some(address);
        address
    }

    /// A kubeconfig with a client certificate for `user`; the server must listen.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> PathBuf {
        let address = self.address.lock().unwrap();
        let pair = self.key_pair(user, groups);
        let path = self.dir.path().join(format!("{user}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters: [{{name: test, cluster: {{server: 'https://{address}', certificate-authority: '{}'}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: test}}}}]\nusers: [{{name: test, user: {{client-certificate: '{}', client-key: '{}'}}}}]\n",
            self.dir.path().join("ca.crt").display(),
            pair.certificate.display(),
            pair.key.display(),
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A client certificate for `user`.
    pub fn key_pair(&self, user: &str, groups: &[&str]) -> KeyPair {
        leaf(self.dir.path(), &self.ca, user, groups, false)
    }

    /// A serving certificate for a name.
    pub fn key_pair_for_server(&self, name: &str) -> KeyPair {
        leaf(self.dir.path(), &self.ca, name, &[], true)
    }

    /// A client certificate that has ended.
    pub fn expired_key_pair(&self, user: &str) -> KeyPair {
        leaf_until(self.dir.path(), &self.ca, user, &[], false, 2020)
    }

    /// A client certificate that this cluster's CA did not sign.
    pub fn foreign_key_pair(&self, user: &str) -> KeyPair {
        leaf(self.dir.path(), &authority().0, user, &["system:masters"], false)
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A new CA and its certificate as PEM.
pub fn authority() -> (Issuer<'static, Key>, String) {
    let key = Key::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = name("skiff-test-ca", &[]);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn name(common: &str, groups: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // rcgen keeps one value per attribute type: the last group is the one that counts.
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name.push(DnType::CommonName, common);
    name
}

/// A certificate for `common`, in files named after it; a server's is also good for localhost.
pub fn leaf(dir: &Path, ca: &Issuer<'static, Key>, common: &str, groups: &[&str], server: bool) -> KeyPair {
    leaf_until(dir, ca, common, groups, server, 4096)
}

/// A certificate that ends with a year.
fn leaf_until(
    dir: &Path,
    ca: &Issuer<'static, Key>,
    common: &str,
    groups: &[&str],
    server: bool,
    year: i32,
) -> KeyPair {
    let key = Key::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    params.distinguished_name = name(common, groups);
    if server {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::DnsName("localhost".try_into().unwrap()),
            SanType::DnsName(common.try_into().unwrap()),
        ];
    } else {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    }
    let certificate = params.signed_by(&key, ca).unwrap().pem();
    let file = common.replace([':', '/'], "_");
    let pair = KeyPair { certificate: dir.join(format!("{file}.crt")), key: dir.join(format!("{file}.key")) };
    std::fs::write(&pair.certificate, certificate).unwrap();
    std::fs::write(&pair.key, key.serialize_pem()).unwrap();
    pair
}
