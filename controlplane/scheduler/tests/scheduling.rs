//! The scheduler on a real API server: what people see.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, asking, assert_contains, from, until};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_bound_and_it_is_said() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "4").await;
    cluster.add_node("n2", "4").await;
    cluster.create("warm", asking("1m")).await;
    cluster.node_of("warm").await;

    let begin = Instant::now();
    for n in 0..20 {
        let name = format!("p{n}");
        cluster.create(&name, asking("100m")).await;
        cluster.node_of(&name).await;
    }
    println!("create to bound, one after another: {:?} each", begin.elapsed() / 20);

    let pods = cluster.pods.list(&ListParams::default()).await.unwrap().items;
    let on =
        |node: &str| pods.iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some(node)).count();
    assert!(on("n1").abs_diff(on("n2")) <= 1, "{} and {}: spread by what is free", on("n1"), on("n2"));
    let node = cluster.node_of("p0").await;
    assert_eq!(cluster.event("p0", "Scheduled").await, format!("Successfully assigned default/p0 to {node}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unschedulable_pod_says_why_and_goes_on_when_it_can() {
    let cluster = Cluster::start().await;
    cluster.create("p", asking("2")).await;
    assert_eq!(cluster.condition("p").await.message.as_deref(), Some("no nodes available to schedule pods"));

    cluster.add_node("small", "1").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. \
        no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    let said = async || cluster.condition("p").await.message.filter(|text| text == message);
    until("the message about cpu", said).await;
    let condition = cluster.condition("p").await;
    assert_eq!(condition.reason.as_deref(), Some("Unschedulable"));
    cluster.event("p", "FailedScheduling").await;

    cluster.add_node("large", "4").await;
    assert_eq!(cluster.node_of("p").await, "large");
    let scheduled = async || {
        let conditions = cluster.pods.get("p").await.ok()?.status?.conditions?;
        conditions.into_iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "True")
    };
    until("the condition to become true", scheduled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freed_place_is_taken_at_once() {
    let cluster = Cluster::start().await;
    cluster.add_node("n", "1").await;
    cluster.create("first", asking("1")).await;
    cluster.node_of("first").await;
    cluster.create("second", asking("1")).await;
    let message = cluster.condition("second").await.message.unwrap();
    assert_contains(&message, "1 Insufficient cpu");
    assert_contains(&message, "1 No preemption victims found for incoming pod");
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.pods.delete("first", &now).await.unwrap();
    let begin = Instant::now();
    cluster.node_of("second").await;
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_important_pod_displaces_a_lesser_one() {
    let cluster = Cluster::start().await;
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 1000});
    let classes: Api<k8s_openapi::api::scheduling::v1::PriorityClass> = Api::all(cluster.client.clone());
    classes.create(&PostParams::default(), &from(class)).await.unwrap();
    cluster.add_node("n", "1").await;
    cluster.create("lesser", asking("1")).await;
    cluster.node_of("lesser").await;

    let mut important = asking("1");
    important["priorityClassName"] = json!("high");
    cluster.create("important", important).await;
    let nominated = async || cluster.pods.get("important").await.ok()?.status?.nominated_node_name;
    assert_eq!(until("the nomination", nominated).await, "n");
    let victim = async || cluster.pods.get("lesser").await.ok().filter(|pod| pod.metadata.deletion_timestamp.is_some());
    let victim = until("the victim to be deleted", victim).await;
    let conditions = victim.status.unwrap().conditions.unwrap();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.reason.as_deref(), Some("PreemptionByScheduler"));
    assert_contains(&cluster.event("lesser", "Preempted").await, "Preempted by pod ");

    // The kubelet's part: the victim has stopped.
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.pods.delete("lesser", &now).await.unwrap();
    assert_eq!(cluster.node_of("important").await, "n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_kept_for_a_pod_that_is_deleted_is_taken_at_once() {
    let cluster = Cluster::start().await;
    cluster.add_node("n", "1").await;
    let mut expected = asking("1");
    expected["nodeSelector"] = json!({"kubernetes.io/hostname": "elsewhere"});
    cluster.create("expected", expected).await;
    cluster.condition("expected").await;
    let nomination = Patch::Merge(json!({"status": {"nominatedNodeName": "n"}}));
    cluster.pods.patch_status("expected", &PatchParams::default(), &nomination).await.unwrap();
    cluster.create("other", asking("1")).await;
    assert_contains(&cluster.condition("other").await.message.unwrap(), "1 Insufficient cpu");
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.pods.delete("expected", &now).await.unwrap();
    let begin = Instant::now();
    cluster.node_of("other").await;
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_hold_a_pod_until_they_are_removed() {
    let cluster = Cluster::start().await;
    cluster.add_node("n", "1").await;
    let mut gated = asking("100m");
    gated["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    cluster.create("gated", gated).await;
    cluster.create("free", asking("100m")).await;
    cluster.node_of("free").await;
    assert_eq!(cluster.pods.get("gated").await.unwrap().spec.unwrap().node_name, None);
    let open = Patch::Merge(json!({"spec": {"schedulingGates": null}}));
    cluster.pods.patch("gated", &PatchParams::default(), &open).await.unwrap();
    cluster.node_of("gated").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_where_its_volume_is() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "8").await;
    cluster.add_node("n2", "1").await;
    let mut with_claim = asking("100m");
    with_claim["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    cluster.create("p", with_claim.clone()).await;
    let message = cluster.condition("p").await.message.unwrap();
    assert_contains(&message, "0/2 nodes are available: persistentvolumeclaim \"data\" not found.");

    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
    let classes: Api<StorageClass> = Api::all(cluster.client.clone());
    classes.create(&PostParams::default(), &from(class)).await.unwrap();
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"], "storageClassName": "local",
        "local": {"path": "/disk"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"]}]}]}}}});
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    volumes.create(&PostParams::default(), &from(volume)).await.unwrap();
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOncePod"], "storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}});
    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(cluster.client.clone());
    claims.create(&PostParams::default(), &from(claim)).await.unwrap();

    let reserved = async || volumes.get("disk").await.ok()?.spec?.claim_ref?.name;
    assert_eq!(until("the volume to be reserved", reserved).await, "data");
    let status = async || cluster.pods.get("p").await.unwrap().status.unwrap();
    assert_eq!(status().await.nominated_node_name.as_deref(), Some("n2"), "it is said where it is expected");
    // The volume controller's part.
    let complete = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "disk"}});
    claims.patch("data", &PatchParams::default(), &Patch::Merge(complete)).await.unwrap();
    assert_eq!(cluster.node_of("p").await, "n2");
    assert_eq!(status().await.nominated_node_name, None);

    // The claim is for one pod at a time.
    cluster.create("q", with_claim).await;
    let message = cluster.condition("q").await.message.unwrap();
    let reason = "2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    assert_contains(&message, reason);
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.pods.delete("p", &now).await.unwrap();
    assert_eq!(cluster.node_of("q").await, "n2");
}
