//! StatefulSets, DaemonSets, Jobs and CronJobs against a real API server.

mod common;

use common::{Cluster, eventually};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn parse<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of the kind")
}

fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

async fn names(pods: &Api<Pod>) -> Vec<String> {
    let list = pods.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
    let mut names: Vec<_> = list.iter().map(|pod| pod.name_any()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_comes_in_order_updates_and_shrinks() {
    let cluster = Cluster::start().await;
    let (sets, pods): (Api<StatefulSet>, Api<Pod>) = (cluster.api("default"), cluster.api("default"));
    let claim = json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    let set: StatefulSet = parse(json!({
        "metadata": {"name": "db"},
        "spec": {
            "replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": template("db", "db:1"), "volumeClaimTemplates": [claim],
        },
    }));
    sets.create(&PostParams::default(), &set).await.expect("created");
    eventually("the first pod exists", || async { (names(&pods).await == ["db-0"]).then_some(()) }).await;
    cluster.run_pods();
    let rolled_out = |image: &'static str| {
        let (sets, pods) = (sets.clone(), pods.clone());
        async move {
            eventually("all are of the template", || async {
                let status = sets.get("db").await.ok()?.status?;
                let list = pods.list(&ListParams::default()).await.ok()?.items;
                let of_image = |pod: &Pod| {
                    pod.spec.as_ref().is_some_and(|spec| spec.containers[0].image.as_deref() == Some(image))
                };
                let done = status.ready_replicas == Some(3) && status.current_revision == status.update_revision;
                (done && list.len() == 3 && list.iter().all(of_image)).then_some(())
            })
            .await
        }
    };
    rolled_out("db:1").await;
    assert_eq!(names(&pods).await, ["db-0", "db-1", "db-2"]);
    let claims: Api<PersistentVolumeClaim> = cluster.api("default");
    assert_eq!(claims.list(&ListParams::default()).await.expect("listed").items.len(), 3);

    let patch = Patch::Strategic(json!({"spec": {"template": template("db", "db:2")}}));
    sets.patch("db", &PatchParams::default(), &patch).await.expect("patched");
    rolled_out("db:2").await;
    let revisions: Api<ControllerRevision> = cluster.api("default");
    assert_eq!(revisions.list(&ListParams::default()).await.expect("listed").items.len(), 2);

    let patch = Patch::Merge(json!({"spec": {"replicas": 1}}));
    sets.patch("db", &PatchParams::default(), &patch).await.expect("patched");
    eventually("one pod is left", || async { (names(&pods).await == ["db-0"]).then_some(()) }).await;
    assert_eq!(claims.list(&ListParams::default()).await.expect("listed").items.len(), 3, "claims stay");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_follows_the_nodes() {
    let cluster = Cluster::start().await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = |name: &str| parse::<Node>(json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}}}));
    for name in ["n1", "n2"] {
        nodes.create(&PostParams::default(), &node(name)).await.expect("created");
    }
    eventually("the nodes have networks", || async {
        let list = nodes.list(&ListParams::default()).await.ok()?.items;
        let mut networks: Vec<_> = list.iter().filter_map(|node| node.spec.as_ref()?.pod_cidr.clone()).collect();
        networks.sort();
        networks.dedup();
        (networks.len() == 2).then_some(())
    })
    .await;
    let (sets, pods): (Api<DaemonSet>, Api<Pod>) = (cluster.api("default"), cluster.api("default"));
    let set: DaemonSet = parse(json!({
        "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template("agent", "agent:1")},
    }));
    sets.create(&PostParams::default(), &set).await.expect("created");
    let count = |wanted: usize| {
        let pods = pods.clone();
        async move {
            eventually("each node has its pod", || async { (names(&pods).await.len() == wanted).then_some(()) }).await
        }
    };
    count(2).await;
    nodes.create(&PostParams::default(), &node("n3")).await.expect("created");
    count(3).await;
    cluster.run_pods();
    eventually("all are ready", || async { (sets.get("agent").await.ok()?.status?.number_ready == 3).then_some(()) })
        .await;
    let patch = Patch::Strategic(json!({"spec": {"template": template("agent", "agent:2")}}));
    sets.patch("agent", &PatchParams::default(), &patch).await.expect("patched");
    eventually("all are updated", || async {
        let status = sets.get("agent").await.ok()?.status?;
        (status.updated_number_scheduled == Some(3) && status.number_available == Some(3)).then_some(())
    })
    .await;
    cluster.stop().await;
}

/// Ends the pods of `app`: the named ones fail, the others succeed.
async fn end_pods(cluster: &Cluster, fail: impl Fn(&Pod) -> bool) {
    let pods: Api<Pod> = cluster.api("default");
    for pod in pods.list(&ListParams::default()).await.expect("listed").items {
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        if phase == "Pending" || phase == "Running" {
            let phase = if fail(&pod) { "Failed" } else { "Succeeded" };
            let patch = Patch::Merge(json!({"status": {"phase": phase}}));
            let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
        }
    }
}

fn job(name: &str, spec: Value) -> Job {
    let mut spec = spec;
    let mut pod = template(name, "work:1");
    pod["spec"]["restartPolicy"] = "Never".into();
    spec["template"] = pod;
    parse(json!({"metadata": {"name": name}, "spec": spec}))
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_count_their_pods_and_end() {
    let cluster = Cluster::start().await;
    let (jobs, pods): (Api<Job>, Api<Pod>) = (cluster.api("default"), cluster.api("default"));
    let spec = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"});
    jobs.create(&PostParams::default(), &job("count", spec)).await.expect("created");
    eventually("two pods work", || async { (names(&pods).await.len() == 2).then_some(()) }).await;
    let done = eventually("the job is complete", || async {
        end_pods(&cluster, |_| false).await;
        let status = jobs.get("count").await.ok()?.status?;
        status.completion_time.is_some().then_some(status)
    })
    .await;
    assert_eq!((done.succeeded, done.completed_indexes.as_deref()), (Some(3), Some("0-2")));
    eventually("no finalizer is left", || async {
        let list = pods.list(&ListParams::default()).await.ok()?.items;
        list.iter().all(|pod| pod.finalizers().is_empty()).then_some(())
    })
    .await;
    jobs.delete("count", &DeleteParams::background()).await.expect("deleted");
    eventually("its pods go", || async { names(&pods).await.is_empty().then_some(()) }).await;

    let spec = json!({"backoffLimit": 0});
    jobs.create(&PostParams::default(), &job("fail", spec)).await.expect("created");
    eventually("the job has failed", || async {
        end_pods(&cluster, |_| true).await;
        let conditions = jobs.get("fail").await.ok()?.status?.conditions?;
        let failed = conditions.iter().find(|condition| condition.type_ == "Failed")?;
        (failed.reason.as_deref() == Some("BackoffLimitExceeded")).then_some(())
    })
    .await;
    cluster.stop().await;
}
