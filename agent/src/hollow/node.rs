//! One hollow Node: registered, its status sent now and then, its lease renewed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::resources::Amounts;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use kubelet::layout::Layout;
use kubelet::node::machine::{FileSystem, Machine};
use kubelet::node::status::{Pressure, View, generate};
use kubelet::node::{lease, status};
use proto::runtime::v1 as cri;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a hollow node claims to have.
const CPUS: u64 = 32;
const MEMORY: u64 = 256 << 30;
const DISK: u64 = 1 << 40;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

pub struct Kept {
    /// Somebody deleted the node, or took it for dead.
    pub wrong: Arc<Notify>,
    config: kubelet::Config,
    client: Client,
    machine: Machine,
}

impl Kept {
    pub fn new(name: String, address: IpAddr, taints: Vec<Taint>, client: Client) -> Self {
        // Nothing is kept on disk and no runtime is asked: the paths lead nowhere.
        let nowhere = PathBuf::from("/nonexistent");
        let layout = Layout::new(nowhere.clone(), nowhere.clone());
        let mut config = kubelet::Config::new(name, vec![address], layout, nowhere);
        config.taints = taints;
        config.labels.insert(super::TAINT.to_owned(), "true".to_owned());
        let machine =
            Machine { cpus: CPUS, memory: MEMORY, swap: 0, huge_pages: Default::default(), ..Machine::detect() };
        Self { wrong: Arc::default(), config, client, machine }
    }

    /// Keeps the node for good, also when somebody deletes its object.
    pub async fn run(self) {
        tokio::join!(
            self.keep_status(),
            lease::keep(self.client.clone(), self.config.node_name.clone(), self.config.lease_duration)
        );
    }

    async fn keep_status(&self) {
        let mut retry = FIRST_RETRY;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.wrong.notified() => {}
            }
            next = match self.send().await {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    Instant::now() + self.config.node_status_report
                }
                Err(error) => {
                    tracing::debug!(
                        node = self.config.node_name,
                        "a hollow node's status could not be sent; trying again: {}",
                        component::brief(&error)
                    );
                    retry = (retry * 2).min(LONGEST_RETRY);
                    Instant::now() + retry
                }
            };
        }
    }

    async fn send(&self) -> Result<(), kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let name = &self.config.node_name;
        let held = api.get_opt(name).await?;
        let last = held.as_ref().and_then(|node| node.status.as_ref()?.conditions.clone()).unwrap_or_default();
        let status = self.status(&last);
        if held.is_none() {
            return api.create(&PostParams::default(), &self.object(status)).await.map(drop);
        }
        let patch = json!({"status": status});
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
    }

    fn status(&self, last: &[k8s_openapi::api::core::v1::NodeCondition]) -> NodeStatus {
        let good = |name: &str| cri::RuntimeCondition { r#type: name.to_owned(), status: true, ..Default::default() };
        let conditions = vec![good("RuntimeReady"), good("NetworkReady")];
        let runtime =
            cri::StatusResponse { status: Some(cri::RuntimeStatus { conditions }), ..cri::StatusResponse::default() };
        generate(&View {
            volumes_in_use: &[],
            devices: &[],
            advertised: &Amounts::new(),
            config: &self.config,
            machine: &self.machine,
            root: FileSystem { bytes: DISK, available: DISK, inodes: 1 << 24, inodes_free: 1 << 24 },
            runtime: Ok(&runtime),
            runtime_version: concat!("hollow://", env!("CARGO_PKG_VERSION")),
            images: &[],
            pressure: Pressure::default(),
            last,
            now: Timestamp::now(),
        })
    }

    fn object(&self, status: NodeStatus) -> Node {
        Node {
            metadata: ObjectMeta {
                name: Some(self.config.node_name.clone()),
                labels: Some(status::labels(&self.config, &self.machine)),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: (!self.config.taints.is_empty()).then(|| self.config.taints.clone()),
                ..NodeSpec::default()
            }),
            status: Some(status),
        }
    }
}

/// Whether the control plane believes in the node.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
