//! Claims for devices from end to end: API server, controllers and scheduler in this process, and a
//! driver's ResourceSlice made by hand.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use apiserver::UserInfo;
use common::{Cluster, eventually};
use component::{EventRecorder, Informers};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::api::resource::v1::{
    DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice,
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NAMESPACE: &str = "default";

fn from<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

struct Bench {
    cluster: Cluster,
    pods: Api<Pod>,
    claims: Api<ResourceClaim>,
}

impl Bench {
    /// A node with one device, a class for it, and a template that asks for one.
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let own = cluster.server.client(&UserInfo::new("system:kube-scheduler", &["system:authenticated"]));
        let recorder = EventRecorder::new(own.clone(), &cluster.supervisor, "default-scheduler", "");
        scheduler::start(Informers::new(own, &cluster.supervisor), recorder, &cluster.supervisor);
        let bench = Self { pods: cluster.api(NAMESPACE), claims: cluster.api(NAMESPACE), cluster };
        let (client, params) = (bench.cluster.client.clone(), PostParams::default());
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = bench.cluster.api(NAMESPACE);
        eventually("the default service account is there", async || accounts.get("default").await.ok()).await;
        let nodes: Api<Node> = Api::all(client.clone());
        for name in ["plain", "rich"] {
            let amounts = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
            nodes.create(&params, &from(json!({"metadata": {"name": name}}))).await.unwrap();
            let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": "2100-01-01T00:00:00Z",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "KubeletReady", "message": ""});
            let status = json!({"status": {"allocatable": amounts, "capacity": amounts, "conditions": [ready]}});
            nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
            let untainted = async || {
                let patch = Patch::Merge(json!({"spec": {"taints": null}}));
                nodes.patch(name, &PatchParams::default(), &patch).await.ok()
            };
            eventually("the node has no taint", untainted).await;
        }
        let classes: Api<DeviceClass> = Api::all(client.clone());
        let class = json!({"metadata": {"name": "gpu"}, "spec": {"selectors": [
            {"cel": {"expression": "device.attributes['gpu.example.com'].memory.isGreaterThan(semver('0.9.0'))"}}]}});
        classes.create(&params, &from(class)).await.unwrap();
        let slices: Api<ResourceSlice> = Api::all(client);
        let slice = json!({"metadata": {"name": "rich-gpu"}, "spec": {"driver": "gpu.example.com", "nodeName": "rich",
            "pool": {"name": "rich", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "gpu-0", "attributes": {"memory": {"version": "1.0.0"}}}]}});
        slices.create(&params, &from(slice)).await.unwrap();
        let templates: Api<ResourceClaimTemplate> = bench.cluster.api(NAMESPACE);
        let template = json!({"metadata": {"name": "one-gpu"}, "spec": {"metadata": {"labels": {"from": "template"}},
            "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu"}}]}}}});
        templates.create(&params, &from(template)).await.unwrap();
        bench
    }

    async fn pod(&self, name: &str) {
        let pod = json!({"metadata": {"name": name}, "spec": {
            "containers": [{"name": "c", "image": "nginx", "resources": {"claims": [{"name": "device"}]}}],
            "resourceClaims": [{"name": "device", "resourceClaimTemplateName": "one-gpu"}]}});
        self.pods.create(&PostParams::default(), &from(pod)).await.unwrap();
    }

    async fn node_of(&self, pod: &str) -> String {
        eventually("the pod is bound", async || self.pods.get(pod).await.ok()?.spec?.node_name).await
    }

    /// The claim that was made for a pod.
    async fn claim_of(&self, pod: &str) -> ResourceClaim {
        let find = async || {
            let statuses = self.pods.get(pod).await.ok()?.status?.resource_claim_statuses?;
            let status = statuses.into_iter().find(|status| status.name == "device")?;
            self.claims.get(&status.resource_claim_name?).await.ok()
        };
        eventually("the pod has a claim", find).await
    }

    async fn end(&self, pod: &str) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods.delete(pod, &now).await.unwrap();
    }

    async fn gone(&self, claim: &str) {
        let gone = async || self.claims.get_opt(claim).await.ok()?.is_none().then_some(());
        eventually("the claim is gone", gone).await;
    }
}

fn reservations(claim: &ResourceClaim) -> Vec<String> {
    let reserved = claim.status.as_ref().and_then(|status| status.reserved_for.clone()).unwrap_or_default();
    reserved.into_iter().map(|consumer| consumer.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_a_device_and_the_next_one_gets_it_after_that() {
    let bench = Bench::start().await;
    bench.pod("first").await;
    assert_eq!(bench.node_of("first").await, "rich");
    let claim = bench.claim_of("first").await;
    assert!(claim.name_any().starts_with("first-device-"), "{}", claim.name_any());
    assert_eq!(claim.annotations()["resource.kubernetes.io/pod-claim-name"], "device");
    assert_eq!(claim.labels()["from"], "template");
    let owner = &claim.owner_references()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.controller), ("Pod", "first", Some(true)));
    assert_eq!(claim.finalizers(), ["resource.kubernetes.io/delete-protection"]);
    assert_eq!(reservations(&claim), ["first"]);

    bench.pod("second").await;
    let message = async || {
        let conditions = bench.pods.get("second").await.ok()?.status?.conditions?;
        let unbound = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled")?;
        unbound.message.filter(|message| message.contains("cannot allocate"))
    };
    assert_eq!(
        eventually("the second pod says why it waits", message).await,
        "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, \
         preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    assert_eq!(reservations(&bench.claim_of("second").await), Vec::<String>::new());

    bench.end("first").await;
    bench.gone(&claim.name_any()).await;
    assert_eq!(bench.node_of("second").await, "rich");
    assert_eq!(reservations(&bench.claim_of("second").await), ["second"]);
    bench.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_pod_holds_no_device() {
    let bench = Bench::start().await;
    bench.pod("job").await;
    bench.node_of("job").await;
    let claim = bench.claim_of("job").await.name_any();
    bench.pod("next").await;
    let done = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    bench.pods.patch_status("job", &PatchParams::default(), &done).await.unwrap();
    bench.gone(&claim).await;
    assert_eq!(bench.node_of("next").await, "rich");
    bench.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tainted_device_is_taken_from_its_pod() {
    let bench = Bench::start().await;
    bench.pod("victim").await;
    bench.node_of("victim").await;
    let rules: Api<DeviceTaintRule> = Api::all(bench.cluster.client.clone());
    let rule = json!({"metadata": {"name": "broken"}, "spec": {"deviceSelector": {"driver": "gpu.example.com"},
        "taint": {"key": "example.com/broken", "effect": "NoExecute"}}});
    rules.create(&PostParams::default(), &from(rule)).await.unwrap();
    let evicted = async || bench.pods.get("victim").await.ok().filter(|pod| pod.metadata.deletion_timestamp.is_some());
    let conditions = eventually("the pod is being deleted", evicted).await.status.unwrap().conditions.unwrap();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.reason.as_deref(), Some("DeletionByDeviceTaintManager"));
    bench.end("victim").await;
    bench.pod("other").await;
    let refused = async || {
        let conditions = bench.pods.get("other").await.ok()?.status?.conditions?;
        conditions.into_iter().find(|condition| condition.message.as_ref().is_some_and(|text| text.contains("cannot")))
    };
    eventually("no pod gets the device", refused).await;
    rules.delete("broken", &DeleteParams::default()).await.unwrap();
    assert_eq!(bench.node_of("other").await, "rich");
    bench.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_says_whom_it_evicts() {
    let bench = Bench::start().await;
    let rules: Api<DeviceTaintRule> = Api::all(bench.cluster.client.clone());
    let rule = async |name: &str, effect: &str| {
        let rule = json!({"metadata": {"name": name}, "spec": {"deviceSelector": {"pool": "rich"},
            "taint": {"key": "example.com/broken", "effect": effect}}});
        rules.create(&PostParams::default(), &from(rule)).await.unwrap();
    };
    let says = async |name: &str, message: &str| {
        let said = async || {
            let conditions = rules.get(name).await.ok()?.status?.conditions?;
            let said = conditions.into_iter().find(|condition| condition.type_ == "EvictionInProgress")?;
            said.message.starts_with(message).then_some(said.status)
        };
        eventually(&format!("{name} says: {message}"), said).await
    };
    // Also where nobody ever claimed a device.
    rule("dry-run", "None").await;
    let nobody = "1 published device selected. 0 allocated devices selected. \
        0 pods would be evicted in 0 different namespaces if the effect was NoExecute.";
    assert_eq!(says("dry-run", nobody).await, "False");

    let patient = json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3600}]);
    let claim = json!({"metadata": {"name": "patient"}, "spec": {"devices": {"requests": [
        {"name": "gpu", "exactly": {"deviceClassName": "gpu", "tolerations": patient}}]}}});
    bench.claims.create(&PostParams::default(), &from(claim)).await.unwrap();
    rule("broken", "NoExecute").await;
    assert_eq!(says("broken", "").await, "False");
    let pod = json!({"metadata": {"name": "patient"}, "spec": {"containers": [{"name": "c", "image": "nginx"}],
        "resourceClaims": [{"name": "device", "resourceClaimName": "patient"}]}});
    bench.pods.create(&PostParams::default(), &from(pod)).await.unwrap();
    assert_eq!(bench.node_of("patient").await, "rich");
    assert_eq!(says("broken", "1 pod needs to be evicted in 1 namespace.").await, "True");
    bench.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_template_is_reported_and_waited_for() {
    let bench = Bench::start().await;
    let pod = json!({"metadata": {"name": "early"}, "spec": {"containers": [{"name": "c", "image": "nginx"}],
        "resourceClaims": [{"name": "device", "resourceClaimTemplateName": "later"}]}});
    bench.pods.create(&PostParams::default(), &from(pod)).await.unwrap();
    let events: Api<Event> = bench.cluster.api(NAMESPACE);
    let said = async || {
        let all = events.list(&ListParams::default()).await.ok()?.items;
        all.into_iter().find(|event| event.reason.as_deref() == Some("FailedResourceClaimCreation"))?.message
    };
    assert_eq!(
        eventually("the event", said).await,
        "PodResourceClaim device: resource claim template \"later\": resourceclaimtemplates.resource.k8s.io \"later\" not found"
    );
    let templates: Api<ResourceClaimTemplate> = bench.cluster.api(NAMESPACE);
    let template = json!({"metadata": {"name": "later"}, "spec": {"spec": {"devices": {"requests": [
        {"name": "gpu", "exactly": {"deviceClassName": "gpu"}}]}}}});
    templates.create(&PostParams::default(), &from(template)).await.unwrap();
    assert_eq!(bench.node_of("early").await, "rich");
    bench.cluster.stop().await;
}
