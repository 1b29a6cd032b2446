//! The scheduler on a real API server (in this process, over a temporary store), as its tests use it.

#![allow(dead_code)] // each test binary uses its part of this
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use apiserver::testing::Cluster as Server;
use component::{EventRecorder, Informers};
use k8s_openapi::api::core::v1::{Event, Node, Pod, PodCondition, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

pub struct Cluster {
    pub client: Client,
    pub pods: Api<Pod>,
    pub nodes: Api<Node>,
    _server: Server,
}

impl Cluster {
    pub async fn start() -> Self {
        let server = Server::start().await;
        // The scheduler's own identity: what it does must be within its role.
        let own = server.client("system:kube-scheduler");
        let recorder = EventRecorder::new(own.clone(), &server.supervisor, "default-scheduler", "");
        scheduler::start(Informers::new(own, &server.supervisor), recorder, &server.supervisor);
        let client = server.admin();
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
        let create = async || accounts.create(&PostParams::default(), &from(account.clone())).await.ok();
        until("the default namespace", create).await;
        Self { pods: Api::default_namespaced(client.clone()), nodes: Api::all(client.clone()), client, _server: server }
    }

    pub async fn add_node(&self, name: &str, cpu: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"},
                "capacity": {"cpu": cpu, "memory": "8Gi", "pods": "110"}},
        });
        self.nodes.create(&PostParams::default(), &from(node.clone())).await.unwrap();
        // As the kubelet and the node controller do: its status, and no more taint of not being ready.
        let patch = |value: Value| Patch::Merge(value);
        let params = PatchParams::default();
        self.nodes.patch_status(name, &params, &patch(json!({"status": node["status"]}))).await.unwrap();
        self.nodes.patch(name, &params, &patch(json!({"spec": {"taints": null}}))).await.unwrap();
    }

    pub async fn create(&self, name: &str, spec: Value) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        self.pods.create(&PostParams::default(), &from(pod)).await.unwrap();
    }

    pub async fn node_of(&self, name: &str) -> String {
        let bound = async || self.pods.get(name).await.ok()?.spec?.node_name;
        until(&format!("{name} to be bound"), bound).await
    }

    pub async fn condition(&self, name: &str) -> PodCondition {
        let find = async || {
            let conditions = self.pods.get(name).await.ok()?.status?.conditions?;
            conditions.into_iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        };
        until(&format!("{name} to be found unschedulable"), find).await
    }

    /// The message of an event about a pod.
    pub async fn event(&self, name: &str, reason: &str) -> String {
        let events: Api<Event> = Api::default_namespaced(self.client.clone());
        let find = async || {
            let events = events.list(&ListParams::default()).await.ok()?.items;
            let about = |event: &Event| event.involved_object.name.as_deref() == Some(name);
            events.into_iter().find(|event| about(event) && event.reason.as_deref() == Some(reason))?.message
        };
        until(&format!("the event {reason} of {name}"), find).await
    }
}

pub fn from<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited 20 s for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn asking(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "nginx", "resources": {"requests": {"cpu": cpu}}}]})
}

pub fn assert_contains<T: AsRef<str> + Debug>(text: &T, part: &str) {
    assert!(text.as_ref().contains(part), "{part:?} is not in {text:?}");
}
