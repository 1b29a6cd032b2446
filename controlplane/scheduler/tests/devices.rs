//! Dynamic resource allocation: pods go where their devices are.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Cluster, from, until};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

struct Bench {
    cluster: Cluster,
    claims: Api<ResourceClaim>,
    slices: Api<ResourceSlice>,
    classes: Api<DeviceClass>,
}

impl Bench {
    /// Two nodes, and a class `gpu` for the devices of `gpu.example.com`.
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let client = cluster.client.clone();
        let bench = Self {
            claims: Api::default_namespaced(client.clone()),
            slices: Api::all(client.clone()),
            classes: Api::all(client),
            cluster,
        };
        for name in ["n1", "n2"] {
            bench.cluster.add_node(name, "4").await;
        }
        bench.class("gpu", json!({})).await;
        bench
    }

    async fn class(&self, name: &str, mut spec: Value) {
        spec["selectors"] = json!([{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]);
        let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": name}, "spec": spec});
        self.classes.create(&PostParams::default(), &from(class)).await.unwrap();
    }

    async fn slice(&self, node: &str, devices: Value) {
        let slice = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
            "metadata": {"name": node},
            "spec": {"driver": "gpu.example.com", "nodeName": node, "devices": devices,
                "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}});
        self.slices.create(&PostParams::default(), &from(slice)).await.unwrap();
    }

    async fn claim(&self, name: &str, request: Value) {
        let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name},
            "spec": {"devices": {"requests": [request]}}});
        self.claims.create(&PostParams::default(), &from(claim)).await.unwrap();
    }

    async fn pod(&self, name: &str, claim: &str) {
        let spec = json!({
            "containers": [{"name": "c", "image": "nginx", "resources": {"claims": [{"name": "device"}]}}],
            "resourceClaims": [{"name": "device", "resourceClaimName": claim}],
        });
        self.cluster.create(name, spec).await;
    }

    /// The devices that a claim was given.
    async fn given(&self, claim: &str) -> Vec<String> {
        let status = self.claims.get(claim).await.unwrap().status.unwrap_or_default();
        let results = status.allocation.and_then(|allocation| allocation.devices?.results).unwrap_or_default();
        results.into_iter().map(|result| format!("{}/{}", result.pool, result.device)).collect()
    }

    /// What the resourceclaim controller does when the last user of a claim is gone.
    async fn free(&self, claim: &str) {
        let freed = Patch::Merge(json!({"status": {"allocation": null, "reservedFor": null}}));
        self.claims.patch_status(claim, &PatchParams::default(), &freed).await.unwrap();
    }

    /// How often the pod was not placed so far, for a reason that contains `text`.
    async fn failures(&self, pod: &str, text: &str) -> i32 {
        let events: Api<Event> = Api::default_namespaced(self.cluster.client.clone());
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let about = |event: &&Event| {
            event.involved_object.name.as_deref() == Some(pod)
                && event.reason.as_deref() == Some("FailedScheduling")
                && event.message.as_deref().is_some_and(|message| message.contains(text))
        };
        events.iter().filter(about).map(|event| event.count.unwrap_or(1)).sum()
    }

    async fn until_failed(&self, pod: &str, text: &str, times: i32) {
        let often = async || (self.failures(pod, text).await >= times).then_some(());
        until(&format!("{times} failures of {pod}: {text}"), often).await;
    }

    /// Says of the device of a claim that it could not be attached.
    async fn break_device(&self, claim: &str, device: &str) {
        let condition = json!({"type": "Broken", "status": "True", "reason": "Cable", "message": "no link",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let (pool, _) = device.split_once('/').unwrap();
        let status = json!({"devices": [{"driver": "gpu.example.com", "pool": pool, "device": "gpu-0",
            "conditions": [condition]}]});
        let patch = Patch::Merge(json!({ "status": status }));
        self.claims.patch_status(claim, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn delete(&self, pod: &str) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.cluster.pods.delete(pod, &now).await.unwrap();
    }
}

fn one() -> Value {
    json!({"name": "gpu", "exactly": {"deviceClassName": "gpu"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_where_its_device_is_and_the_next_waits_for_it() {
    let bench = Bench::start().await;
    bench.slice("n2", json!([{"name": "gpu-0"}])).await;
    bench.claim("first", one()).await;
    bench.pod("first", "first").await;
    assert_eq!(bench.cluster.node_of("first").await, "n2");
    let claim = bench.claims.get("first").await.unwrap();
    assert_eq!(claim.metadata.finalizers, Some(vec!["resource.kubernetes.io/delete-protection".to_owned()]));
    let status = claim.status.unwrap();
    let reserved = status.reserved_for.unwrap();
    assert_eq!((reserved.len(), reserved[0].name.as_str(), reserved[0].resource.as_str()), (1, "first", "pods"));
    assert!(status.allocation.unwrap().allocation_timestamp.is_some());
    assert_eq!(bench.given("first").await, ["n2/gpu-0"]);

    bench.claim("second", one()).await;
    bench.pod("second", "second").await;
    let message = "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, \
        preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    assert_eq!(bench.cluster.condition("second").await.message.as_deref(), Some(message));
    assert_eq!(bench.cluster.event("second", "FailedScheduling").await, message);

    bench.delete("first").await;
    bench.free("first").await;
    assert_eq!(bench.cluster.node_of("second").await, "n2");
    assert_eq!(bench.given("second").await, ["n2/gpu-0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_share_a_claim_on_its_node() {
    let bench = Bench::start().await;
    bench.slice("n1", json!([{"name": "gpu-0"}])).await;
    bench.claim("shared", one()).await;
    for name in ["a", "b"] {
        bench.pod(name, "shared").await;
        assert_eq!(bench.cluster.node_of(name).await, "n1");
    }
    let reserved = bench.claims.get("shared").await.unwrap().status.unwrap().reserved_for.unwrap();
    assert_eq!(reserved.iter().map(|consumer| consumer.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_with_the_better_alternative_is_chosen() {
    let bench = Bench::start().await;
    bench.slice("n1", json!([{"name": "slow"}])).await;
    bench.slice("n2", json!([{"name": "fast", "attributes": {"fast": {"bool": true}}}])).await;
    let fast = json!([{"cel": {"expression": "device.attributes['gpu.example.com'].?fast.orValue(false)"}}]);
    let either = json!({"name": "gpu", "firstAvailable": [
        {"name": "fast", "deviceClassName": "gpu", "selectors": fast}, {"name": "slow", "deviceClassName": "gpu"}]});
    bench.claim("best", either).await;
    bench.pod("p", "best").await;
    assert_eq!(bench.cluster.node_of("p").await, "n2");
    assert_eq!(bench.given("best").await, ["n2/fast"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_can_be_a_device() {
    let bench = Bench::start().await;
    bench.class("extended", json!({"extendedResourceName": "example.com/gpu"})).await;
    bench.slice("n2", json!([{"name": "gpu-0"}])).await;
    let amounts = json!({"example.com/gpu": "1"});
    let asking = || json!({"containers": [{"name": "c", "image": "nginx", "resources": {"requests": amounts, "limits": amounts}}]});
    bench.cluster.create("p", asking()).await;
    assert_eq!(bench.cluster.node_of("p").await, "n2");
    let status = bench.cluster.pods.get("p").await.unwrap().status.unwrap().extended_resource_claim_status.unwrap();
    let mapping = &status.request_mappings[0];
    assert_eq!(
        (mapping.container_name.as_str(), mapping.resource_name.as_str(), mapping.request_name.as_str()),
        ("c", "example.com/gpu", "container-0-request-0")
    );
    let claim = bench.claims.get(&status.resource_claim_name).await.unwrap();
    assert!(claim.metadata.name.unwrap().starts_with("p-extended-resources-"));
    assert_eq!(claim.metadata.annotations.unwrap()["resource.kubernetes.io/extended-resource-claim"], "true");
    assert_eq!(bench.given(&status.resource_claim_name).await, ["n2/gpu-0"]);

    bench.cluster.create("q", asking()).await;
    let message = bench.cluster.condition("q").await.message.unwrap();
    assert!(message.starts_with("0/2 nodes are available: 2 cannot allocate all claims."), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_evaluated_is_an_error_of_scheduling() {
    let bench = Bench::start().await;
    bench.slice("n1", json!([{"name": "gpu-0"}])).await;
    let broken = json!([{"cel": {"expression": "device.attributes['gpu.example.com'].none == 1"}}]);
    bench.claim("broken", json!({"name": "gpu", "exactly": {"deviceClassName": "gpu", "selectors": broken}})).await;
    bench.pod("p", "broken").await;
    let condition = bench.cluster.condition("p").await;
    assert_eq!(condition.reason.as_deref(), Some("SchedulerError"));
    let message = condition.message.unwrap();
    let text = "running \"DynamicResources\" filter plugin: claim default/broken: selector #0 on device \
        gpu.example.com/n1/gpu-0: CEL runtime error: no such key: none.";
    assert!(message.starts_with(text), "{message}");
}

/// A device that has to be attached before it can be used.
fn to_be_attached() -> Value {
    json!([{"name": "gpu-0", "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_cannot_be_attached_is_given_back_for_another() {
    let bench = Bench::start().await;
    bench.slice("n1", to_be_attached()).await;
    bench.claim("c", one()).await;
    bench.pod("p", "c").await;
    let text = "waiting for binding conditions for device on node n1";
    assert_eq!(bench.cluster.event("p", "BindingConditionsPending").await, text);
    assert_eq!(bench.given("c").await, ["n1/gpu-0"]);

    bench.slices.delete("n1", &DeleteParams::default()).await.unwrap();
    bench.break_device("c", "n1/gpu-0").await;
    let why = "running PreBind plugin \"DynamicResources\": claim c binding failed: reason=Cable, message=\"no link\"";
    bench.until_failed("p", why, 1).await;
    bench.until_failed("p", "deallocation of ResourceClaim completed", 1).await;
    let freed = async || bench.given("c").await.is_empty().then_some(());
    until("the claim to be freed", freed).await;
    assert_eq!(bench.claims.get("c").await.unwrap().status.unwrap_or_default().reserved_for, None);

    bench.slice("n2", json!([{"name": "gpu-1"}])).await;
    assert_eq!(bench.cluster.node_of("p").await, "n2");
    assert_eq!(bench.given("c").await, ["n2/gpu-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_taken_away_while_it_is_waited_for_fails_the_binding() {
    let bench = Bench::start().await;
    bench.slice("n1", to_be_attached()).await;
    bench.claim("c", one()).await;
    bench.pod("p", "c").await;
    bench.cluster.event("p", "BindingConditionsPending").await;
    bench.free("c").await;
    bench.until_failed("p", "claim default/c got deallocated in the meantime", 1).await;
    assert_eq!(bench.cluster.pods.get("p").await.unwrap().spec.unwrap().node_name, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deletion_of_a_claim_frees_its_devices() {
    let bench = Bench::start().await;
    bench.slice("n1", json!([{"name": "gpu-0"}])).await;
    bench.claim("first", one()).await;
    bench.pod("first", "first").await;
    assert_eq!(bench.cluster.node_of("first").await, "n1");
    bench.claim("second", one()).await;
    bench.pod("second", "second").await;
    bench.until_failed("second", "cannot allocate all claims", 1).await;
    // Its pod goes in a way that helps nobody: what wakes the other is that the claim goes.
    bench.delete("first").await;
    bench.until_failed("second", "cannot allocate all claims", 2).await;
    let unprotected = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    bench.claims.patch("first", &PatchParams::default(), &unprotected).await.unwrap();
    bench.claims.delete("first", &DeleteParams::default()).await.unwrap();
    assert_eq!(bench.cluster.node_of("second").await, "n1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_that_offers_a_resource_wakes_who_asks_for_it() {
    let bench = Bench::start().await;
    bench.slice("n2", json!([{"name": "gpu-0"}])).await;
    let amounts = json!({"example.com/gpu": "1"});
    let spec =
        json!({"containers": [{"name": "c", "image": "nginx", "resources": {"requests": amounts, "limits": amounts}}]});
    bench.cluster.create("p", spec).await;
    bench.until_failed("p", "2 Insufficient example.com/gpu", 1).await;
    bench.class("extended", json!({"extendedResourceName": "example.com/gpu"})).await;
    assert_eq!(bench.cluster.node_of("p").await, "n2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_wakes_no_other_pod() {
    let bench = Bench::start().await;
    bench.cluster.create("large", common::asking("99")).await;
    bench.until_failed("large", "Insufficient cpu", 1).await;
    bench.slice("n1", json!([{"name": "gpu-0"}])).await;
    let broken = json!([{"cel": {"expression": "device.attributes['gpu.example.com'].none == 1"}}]);
    bench.claim("broken", json!({"name": "gpu", "exactly": {"deviceClassName": "gpu", "selectors": broken}})).await;
    bench.pod("p", "broken").await;
    bench.until_failed("p", "CEL runtime error", 3).await;
    assert_eq!(bench.failures("large", "").await, 1);
}
