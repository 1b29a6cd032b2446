//! Deployments, Services and garbage collection against a real API server.

mod common;

use std::time::Instant;

use common::{Cluster, eventually};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

fn deployment(name: &str, replicas: i32) -> Deployment {
    serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "nginx:1", "ports": [{"name": "http", "containerPort": 80}]}]},
            },
        },
    }))
    .expect("a deployment")
}

fn is_rolled_out(deployment: &Deployment, replicas: i32) -> bool {
    let Some(status) = &deployment.status else { return false };
    status.observed_generation == deployment.metadata.generation
        && status.updated_replicas == Some(replicas)
        && status.replicas == Some(replicas)
        && status.available_replicas == Some(replicas)
}

fn condition<'a>(deployment: &'a Deployment, name: &str) -> Option<&'a str> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_.as_deref() == Some(name))?.reason.as_deref()
}

async fn wait_rolled_out(api: &Api<Deployment>, name: &str, replicas: i32) -> Deployment {
    eventually("the deployment is rolled out", || async {
        api.get(name).await.ok().filter(|deployment| is_rolled_out(deployment, replicas))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_out_updates_rolls_back_and_goes() {
    let cluster = Cluster::start().await;
    let deployments: Api<Deployment> = cluster.api("default");
    let sets: Api<ReplicaSet> = cluster.api("default");
    let pods: Api<Pod> = cluster.api("default");
    eventually("the default ServiceAccount is there", || async {
        cluster.api::<ServiceAccount>("default").get("default").await.ok()
    })
    .await;
    let started = Instant::now();
    deployments.create(&PostParams::default(), &deployment("web", 3)).await.expect("created");
    eventually("three pods exist", || async {
        pods.list(&ListParams::default()).await.ok().filter(|list| list.items.len() == 3)
    })
    .await;
    println!("deployment created to three pods: {:?}", started.elapsed());
    cluster.run_pods();
    let done = wait_rolled_out(&deployments, "web", 3).await;
    assert_eq!(condition(&done, "Available"), Some("MinimumReplicasAvailable"));
    eventually("it has progressed", || async {
        let deployment = deployments.get("web").await.ok()?;
        (condition(&deployment, "Progressing") == Some("NewReplicaSetAvailable")).then_some(())
    })
    .await;
    assert_eq!(done.annotations().get("deployment.kubernetes.io/revision").map(String::as_str), Some("1"));

    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    for (revision, tag) in [("2", "nginx:2"), ("3", "nginx:1")] {
        let patch = Patch::Strategic(image(tag));
        deployments.patch("web", &PatchParams::default(), &patch).await.expect("patched");
        let done = wait_rolled_out(&deployments, "web", 3).await;
        eventually("the revision is counted", || async {
            let deployment = deployments.get("web").await.ok()?;
            (deployment.annotations().get("deployment.kubernetes.io/revision")? == revision).then_some(())
        })
        .await;
        let images: Vec<_> = pods.list(&ListParams::default()).await.expect("listed").items;
        let images: Vec<_> = images.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        assert_eq!(images.len(), 3, "{:?}", done.status);
        assert!(
            images
                .iter()
                .all(|pod| pod.spec.as_ref().is_some_and(|spec| spec.containers[0].image.as_deref() == Some(tag)))
        );
    }
    assert_eq!(sets.list(&ListParams::default()).await.expect("listed").items.len(), 2, "a rollback reuses its set");

    let events: Api<Event> = cluster.api("default");
    eventually("the scaling is told", || async {
        let list = events.list(&ListParams::default()).await.ok()?;
        let told = |reason: &str, text: &str| {
            list.items.iter().any(|event| {
                event.reason.as_deref() == Some(reason) && event.message.as_deref().is_some_and(|m| m.contains(text))
            })
        };
        (told("ScalingReplicaSet", "Scaled up replica set web-") && told("SuccessfulCreate", "Created pod: web-"))
            .then_some(())
    })
    .await;

    let started = Instant::now();
    deployments.delete("web", &DeleteParams::background()).await.expect("deleted");
    eventually("all is collected", || async {
        let left = sets.list(&ListParams::default()).await.ok()?.items.len()
            + pods.list(&ListParams::default()).await.ok()?.items.len();
        (left == 0).then_some(())
    })
    .await;
    println!("deployment deleted to everything collected: {:?}", started.elapsed());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaler_scales_what_it_names_in_a_version_long_gone() {
    let cluster = Cluster::start().await;
    let deployments: Api<Deployment> = cluster.api("default");
    let autoscalers: Api<HorizontalPodAutoscaler> = cluster.api("default");
    deployments.create(&PostParams::default(), &deployment("web", 1)).await.expect("created");
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1beta2", "kind": "Deployment", "name": "web"},
            "minReplicas": 2, "maxReplicas": 3,
        },
    });
    let scaler = serde_json::from_value(scaler).expect("an autoscaler");
    autoscalers.create(&PostParams::default(), &scaler).await.expect("created");
    eventually("the deployment has the least that the autoscaler allows", || async {
        let spec = deployments.get("web").await.ok()?.spec;
        (spec.replicas == Some(2)).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_endpoints_as_pods_become_ready() {
    let cluster = Cluster::start().await;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "web", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }))
    .expect("a service");
    cluster.api::<Service>("default").create(&PostParams::default(), &service).await.expect("created");
    let slices: Api<EndpointSlice> = cluster.api("default");
    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    eventually("an empty slice is there", || async {
        slices.list(&of_web).await.ok().filter(|list| list.items.len() == 1)
    })
    .await;
    cluster.api::<Deployment>("default").create(&PostParams::default(), &deployment("web", 3)).await.expect("created");
    cluster.run_pods();
    let slice = eventually("three endpoints are ready", || async {
        let list = slices.list(&of_web).await.ok()?;
        let ready = |slice: &EndpointSlice| {
            slice
                .endpoints
                .iter()
                .flatten()
                .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
                .count()
        };
        (list.items.len() == 1 && ready(&list.items[0]) == 3).then(|| list.items[0].clone())
    })
    .await;
    assert_eq!(slice.labels().get("team").map(String::as_str), Some("a"));
    assert_eq!(slice.ports.as_ref().and_then(|ports| ports[0].port), Some(80));
    eventually("the Endpoints have them too", || async {
        let endpoints = cluster.api::<Endpoints>("default").get("web").await.ok()?;
        let subsets = endpoints.subsets?;
        (subsets.len() == 1 && subsets[0].addresses.as_ref().map(Vec::len) == Some(3)).then_some(())
    })
    .await;
    cluster.api::<Service>("default").delete("web", &DeleteParams::default()).await.expect("deleted");
    eventually("slices and Endpoints are gone", || async {
        let gone = cluster.api::<Endpoints>("default").get_opt("web").await.ok()?.is_none();
        (gone && slices.list(&of_web).await.ok()?.items.is_empty()).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_and_orphan_deletion() {
    let cluster = Cluster::start().await;
    let deployments: Api<Deployment> = cluster.api("default");
    let sets: Api<ReplicaSet> = cluster.api("default");
    let pods: Api<Pod> = cluster.api("default");
    cluster.run_pods();
    deployments.create(&PostParams::default(), &deployment("fore", 2)).await.expect("created");
    wait_rolled_out(&deployments, "fore", 2).await;
    deployments.delete("fore", &DeleteParams::foreground()).await.expect("deleted");
    eventually("the foreground deletion is through", || async {
        deployments.get_opt("fore").await.ok()?.is_none().then_some(())
    })
    .await;
    assert!(pods.list(&ListParams::default()).await.expect("listed").items.is_empty(), "dependents went first");

    deployments.create(&PostParams::default(), &deployment("free", 2)).await.expect("created");
    wait_rolled_out(&deployments, "free", 2).await;
    deployments.delete("free", &DeleteParams::orphan()).await.expect("deleted");
    eventually("the deployment is gone", || async { deployments.get_opt("free").await.ok()?.is_none().then_some(()) })
        .await;
    let left = sets.list(&ListParams::default()).await.expect("listed").items;
    assert!(left.len() == 1 && left[0].owner_references().is_empty(), "its ReplicaSet is free");
    assert_eq!(pods.list(&ListParams::default()).await.expect("listed").items.len(), 2);

    // adopted again by a deployment with the same template
    deployments.create(&PostParams::default(), &deployment("free", 2)).await.expect("created");
    eventually("the set is adopted", || async {
        let set = sets.get(&left[0].name_any()).await.ok()?;
        (!set.owner_references().is_empty()).then_some(())
    })
    .await;
    wait_rolled_out(&deployments, "free", 2).await;
    assert_eq!(sets.list(&ListParams::default()).await.expect("listed").items.len(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_owners_does_not_block_collection() {
    let cluster = Cluster::start().await;
    let maps: Api<ConfigMap> = cluster.api("default");
    let mut uids = Vec::new();
    for name in ["circle-0", "circle-1", "circle-2"] {
        let map = ConfigMap {
            metadata: kube::api::ObjectMeta { name: Some(name.into()), ..Default::default() },
            ..Default::default()
        };
        uids.push(maps.create(&PostParams::default(), &map).await.expect("created").uid().expect("a uid"));
    }
    for index in 0..3 {
        let owner = (index + 2) % 3;
        let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": format!("circle-{owner}"), "uid": uids[owner], "blockOwnerDeletion": true});
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [reference]}}));
        maps.patch(&format!("circle-{index}"), &PatchParams::default(), &patch).await.expect("patched");
    }
    maps.delete("circle-0", &DeleteParams::foreground()).await.expect("deleted");
    eventually("the circle is gone", || async {
        let left = maps.list(&ListParams::default()).await.ok()?.items;
        left.iter().all(|map| !map.name_any().starts_with("circle-")).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_emptied_and_goes() {
    let cluster = Cluster::start().await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).expect("a namespace");
    namespaces.create(&PostParams::default(), &namespace).await.expect("created");
    let root_ca = eventually("the root CA is published", || async {
        cluster.api::<ConfigMap>("team").get("kube-root-ca.crt").await.ok()
    })
    .await;
    assert!(root_ca.data.is_some_and(|data| data["ca.crt"].contains("BEGIN CERTIFICATE")));
    cluster.run_pods();
    let deployments: Api<Deployment> = cluster.api("team");
    deployments.create(&PostParams::default(), &deployment("web", 2)).await.expect("created");
    wait_rolled_out(&deployments, "web", 2).await;
    let held: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}))
            .expect("a map");
    cluster.api::<ConfigMap>("team").create(&PostParams::default(), &held).await.expect("created");
    namespaces.delete("team", &DeleteParams::default()).await.expect("deleted");
    eventually("the finalizer is told", || async {
        let conditions = namespaces.get("team").await.ok()?.status?.conditions?;
        let remaining = conditions.iter().find(|condition| condition.type_ == "NamespaceFinalizersRemaining")?;
        remaining.message.as_deref()?.contains("example.com/hold in 1 resource instances").then_some(())
    })
    .await;
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    cluster.api::<ConfigMap>("team").patch("held", &PatchParams::default(), &free).await.expect("patched");
    eventually("the namespace is gone", || async { namespaces.get_opt("team").await.ok()?.is_none().then_some(()) })
        .await;
    cluster.stop().await;
}
