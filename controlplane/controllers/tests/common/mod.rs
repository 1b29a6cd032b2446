//! A control plane in this process (API server over a temporary store, and the controllers), and a
//! stand-in for kubelets: pods become ready as soon as they are seen.

#![allow(dead_code)] // each test binary uses its part of this

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, KeyPair as Pair, UserInfo};
use component::Supervisor;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

pub struct Cluster {
    pub client: Client,
    pub server: ApiServer,
    pub supervisor: Supervisor,
    _dir: tempfile::TempDir,
}

fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("writing into a temporary directory");
    path
}

impl Cluster {
    pub async fn start() -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::<String>::new()).expect("no names");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).expect("a CA").pem();
        let ca_key_pem = ca_key.serialize_pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().expect("a key");
        let serving = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let serving = serving.signed_by(&key, &issuer).expect("signed").pem();
        let pair = Pair {
            certificate: write(dir.path(), "serving.crt", &serving),
            key: write(dir.path(), "serving.key", &key.serialize_pem()),
        };
        let accounts = write(dir.path(), "sa.key", &KeyPair::generate().expect("a key").serialize_pem());
        let client_ca = write(dir.path(), "ca.crt", &ca_certificate);
        let config = apiserver::Config::new("127.0.0.1".parse().expect("an address"), pair, client_ca, accounts);
        let supervisor = Supervisor::new("test");
        let store = store::Embedded::open(&dir.path().join("db")).expect("a store");
        let server = ApiServer::start(config, Arc::new(store), &supervisor).await.expect("an API server");
        let identities = server.clone();
        let config = controllers::Config {
            client: Arc::new(move |name: &str| {
                if name.is_empty() {
                    let manager = UserInfo::new("system:kube-controller-manager", &["system:authenticated"]);
                    identities.client(&manager)
                } else {
                    identities.client(&UserInfo::service_account("kube-system", name))
                }
            }),
            ca_certificate,
            ca_key: ca_key_pem,
            cluster_cidr: "10.42.0.0/16".to_owned(),
            node_mask: 24,
            service_cidr: "10.43.0.0/16".to_owned(),
            server: "https://127.0.0.1:6443".to_owned(),
        };
        controllers::start(config, &supervisor);
        let client = server.client(&UserInfo::admin());
        Self { client, server, supervisor, _dir: dir }
    }

    /// Starts the stand-in for kubelets.
    pub fn run_pods(&self) {
        let client = self.client.clone();
        self.supervisor.spawn("kubelets", async move {
            let api: Api<Pod> = Api::all(client.clone());
            let mut number = 0_u32;
            loop {
                for pod in api.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
                    let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
                    if phase == "Pending" && pod.metadata.deletion_timestamp.is_none() {
                        number += 1;
                        make_ready(&client, &pod, number).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    }

    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn stop(self) {
        assert!(self.supervisor.shut_down(Duration::from_secs(10)).await, "every task ends");
    }
}

pub async fn make_ready(client: &Client, pod: &Pod, number: u32) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let ip = format!("10.42.{}.{}", number / 250, number % 250 + 1);
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
    let status = json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
    }});
    let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await;
}

/// Waits until `check` gives a value; fails with `what` after a minute.
pub async fn eventually<T, F, Fut>(what: &str, check: F) -> T
where
    F: Fn() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = std::time::Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "waited a minute in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
