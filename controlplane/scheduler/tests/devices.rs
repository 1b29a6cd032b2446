//! Dynamic resource allocation: pods go where their devices are.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Cluster, from};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
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
