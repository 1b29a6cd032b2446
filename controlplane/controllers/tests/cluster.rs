//! Certificates, joining, volumes, quotas and budgets against a real API server.

mod common;

use std::collections::BTreeMap;

use apiserver::UserInfo;
use common::{Cluster, eventually};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, ClusterTrustBundle};
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota, Secret, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn parse<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of the kind")
}

fn request(name: &str, signer: &str, names: Vec<String>, usage: &str) -> CertificateSigningRequest {
    use base64::Engine;
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, "system:node:n1");
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let key = KeyPair::generate().expect("a key");
    let pem = params.serialize_request(&key).expect("a request").pem().expect("as PEM");
    parse(json!({
        "metadata": {"name": name},
        "spec": {
            "request": base64::engine::general_purpose::STANDARD.encode(pem),
            "signerName": format!("kubernetes.io/{signer}"),
            "usages": ["digital signature", usage], "expirationSeconds": 3600,
        },
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_certificates() {
    let cluster = Cluster::start().await;
    let issued = |user: UserInfo, csr: CertificateSigningRequest| {
        let api: Api<CertificateSigningRequest> = Api::all(cluster.server.client(&user));
        async move {
            let name = csr.name_any();
            api.create(&PostParams::default(), &csr).await.expect("created");
            eventually("the certificate is issued", || async {
                let certificate = api.get(&name).await.ok()?.status?.certificate?;
                String::from_utf8(certificate.0).ok()?.contains("BEGIN CERTIFICATE").then_some(())
            })
            .await
        }
    };
    let joining = UserInfo::new("system:bootstrap:abcdef", &["system:bootstrappers", "system:authenticated"]);
    issued(joining, request("client", "kube-apiserver-client-kubelet", Vec::new(), "client auth")).await;
    let node = UserInfo::new("system:node:n1", &["system:nodes", "system:authenticated"]);
    issued(node.clone(), request("serving", "kubelet-serving", vec!["n1".to_owned()], "server auth")).await;
    issued(node, request("renewal", "kube-apiserver-client-kubelet", Vec::new(), "client auth")).await;

    // somebody without the right waits for a person
    let stranger = cluster.server.client(&UserInfo::admin());
    let api: Api<CertificateSigningRequest> = Api::all(stranger);
    let odd = request("odd", "kubelet-serving", vec!["n1".to_owned()], "server auth");
    api.create(&PostParams::default(), &odd).await.expect("created");

    let token: Secret = parse(json!({
        "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-signing": "true", "usage-bootstrap-authentication": "true",
        },
    }));
    cluster.api::<Secret>("kube-system").create(&PostParams::default(), &token).await.expect("created");
    let anonymous = UserInfo::new("system:anonymous", &["system:unauthenticated"]);
    let infos: Api<ConfigMap> = Api::namespaced(cluster.server.client(&anonymous), "kube-public");
    let data: BTreeMap<String, String> = eventually("cluster-info is signed", || async {
        infos.get("cluster-info").await.ok()?.data.filter(|data| data.contains_key("jws-kubeconfig-abcdef"))
    })
    .await;
    assert!(data["kubeconfig"].contains("server: https://127.0.0.1:6443"));
    assert!(api.get("odd").await.expect("there").status.and_then(|status| status.conditions).is_none());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_secret_is_filled_and_goes_with_its_account() {
    let cluster = Cluster::start().await;
    let (accounts, secrets): (Api<ServiceAccount>, Api<Secret>) = (cluster.api("default"), cluster.api("default"));
    let account: ServiceAccount = parse(json!({"metadata": {"name": "robot"}}));
    accounts.create(&PostParams::default(), &account).await.expect("created");
    let secret: Secret = parse(json!({
        "metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token",
    }));
    secrets.create(&PostParams::default(), &secret).await.expect("created");
    let data = eventually("the token is there", || async {
        secrets.get("robot-token").await.ok()?.data.filter(|data| data.contains_key("token"))
    })
    .await;
    assert!(data["token"].0.split(|byte| *byte == b'.').count() == 3 && !data["ca.crt"].0.is_empty());
    accounts.delete("robot", &DeleteParams::default()).await.expect("deleted");
    eventually("the token is gone", || async { secrets.get_opt("robot-token").await.ok()?.is_none().then_some(()) })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_bound_and_its_volume_released() {
    let cluster = Cluster::start().await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let claims: Api<PersistentVolumeClaim> = cluster.api("default");
    for (name, size) in [("small", "1Gi"), ("fit", "5Gi"), ("large", "50Gi")] {
        let volume: PersistentVolume = parse(json!({
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": format!("/srv/{name}")},
            },
        }));
        volumes.create(&PostParams::default(), &volume).await.expect("created");
    }
    let claim: PersistentVolumeClaim = parse(json!({
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "2Gi"}},
        },
    }));
    claims.create(&PostParams::default(), &claim).await.expect("created");
    let phase = |name: &'static str, wanted: &'static str| {
        let volumes = volumes.clone();
        async move {
            eventually("the volume has its phase", || async {
                (volumes.get(name).await.ok()?.status?.phase.as_deref() == Some(wanted)).then_some(())
            })
            .await
        }
    };
    let bound = eventually("the claim is bound", || async {
        let claim = claims.get("data").await.ok()?;
        (claim.status.as_ref()?.phase.as_deref() == Some("Bound")).then_some(claim)
    })
    .await;
    assert_eq!(bound.spec.and_then(|spec| spec.volume_name).as_deref(), Some("fit"));
    phase("fit", "Bound").await;
    phase("small", "Available").await;
    let unused = |wanted: &'static str| {
        let claims = claims.clone();
        async move {
            eventually("the claim says whether a pod names it", || async {
                let conditions = claims.get("data").await.ok()?.status?.conditions?;
                conditions.into_iter().find(|known| known.type_ == "Unused" && known.status == wanted)
            })
            .await
        }
    };
    assert_eq!(unused("True").await.reason.as_deref(), Some("NoPodsUsingPVC"));
    let pods: Api<Pod> = cluster.api("default");
    let pod: Pod = parse(json!({
        "metadata": {"name": "user"},
        "spec": {
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
        },
    }));
    eventually("the pod is accepted", || async { pods.create(&PostParams::default(), &pod).await.ok() }).await;
    unused("False").await;
    pods.delete("user", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    unused("True").await;
    claims.delete("data", &DeleteParams::default()).await.expect("deleted");
    phase("fit", "Released").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_count_down_and_budgets_follow_readiness() {
    let cluster = Cluster::start().await;
    let quotas: Api<ResourceQuota> = cluster.api("default");
    let quota: ResourceQuota = parse(json!({
        "metadata": {"name": "few"},
        "spec": {"hard": {"pods": "5", "requests.cpu": "2", "count/configmaps": "20"}},
    }));
    quotas.create(&PostParams::default(), &quota).await.expect("created");
    let used = |name: &'static str, wanted: &'static str| {
        let quotas = quotas.clone();
        async move {
            eventually("the quota counts", || async {
                (quotas.get("few").await.ok()?.status?.used?.get(name)?.0 == wanted).then_some(())
            })
            .await
        }
    };
    used("pods", "0").await;
    let budget: PodDisruptionBudget = parse(json!({
        "metadata": {"name": "web"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    }));
    cluster.api::<PodDisruptionBudget>("default").create(&PostParams::default(), &budget).await.expect("created");
    let pods: Api<Pod> = cluster.api("default");
    for name in ["a", "b"] {
        let pod: Pod = parse(json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "500m"}}}]},
        }));
        // the ServiceAccount may still be on its way
        eventually("the pod is accepted", || async { pods.create(&PostParams::default(), &pod).await.ok() }).await;
    }
    cluster.run_pods();
    used("requests.cpu", "1").await;
    let allowed = |wanted: i32| {
        let budgets = cluster.api::<PodDisruptionBudget>("default");
        async move {
            eventually("the budget allows", || async {
                (budgets.get("web").await.ok()?.status?.disruptions_allowed == Some(wanted)).then_some(())
            })
            .await
        }
    };
    allowed(1).await;
    pods.delete("a", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    allowed(0).await;
    used("pods", "1").await;
    used("requests.cpu", "500m").await;
    let maps = cluster.api::<ConfigMap>("default");
    let count = maps.list(&ListParams::default()).await.expect("listed").items.len();
    assert_eq!(count, 1, "the root CA");
    used("count/configmaps", "1").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_written_again_in_a_new_storage_version() {
    let cluster = Cluster::start().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let version = |name: &str, stored: bool| {
        let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        json!({"name": name, "served": true, "storage": stored, "schema": schema})
    };
    let definition: CustomResourceDefinition = parse(json!({
        "metadata": {"name": "crons.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "crons", "kind": "Cron"},
            "versions": [version("v1beta1", true), version("v1", false)],
        },
    }));
    definitions.create(&PostParams::default(), &definition).await.expect("created");
    let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.com", "v1", "Cron"), "crons");
    let crons: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "default", &kind);
    let cron: DynamicObject =
        parse(json!({"apiVersion": "example.com/v1", "kind": "Cron", "metadata": {"name": "c"}, "spec": {"a": 1}}));
    let before =
        eventually("the kind is served", || async { crons.create(&PostParams::default(), &cron).await.ok() }).await;
    let patch = json!({"spec": {"versions": [version("v1beta1", false), version("v1", true)]}});
    let patch = Patch::Merge(patch);
    definitions.patch("crons.example.com", &PatchParams::default(), &patch).await.expect("patched");
    let stored = || async {
        let status = definitions.get("crons.example.com").await.ok()?.status?;
        Some((status.stored_versions?, status.conditions?))
    };
    assert_eq!(stored().await.map(|stored| stored.0), Some(vec!["v1beta1".to_owned(), "v1".to_owned()]));

    let migrations: Api<StorageVersionMigration> = Api::all(cluster.client.clone());
    for (name, resource) in [("crons", "crons"), ("nothing", "nothing")] {
        let migration: StorageVersionMigration = parse(json!({
            "metadata": {"name": name}, "spec": {"resource": {"group": "example.com", "resource": resource}},
        }));
        migrations.create(&PostParams::default(), &migration).await.expect("created");
    }
    let end = |name: &'static str, end: &'static str| {
        let migrations = migrations.clone();
        async move {
            eventually("the migration ends", || async {
                let conditions = migrations.get(name).await.ok()?.status?.conditions?;
                conditions.into_iter().find(|known| known.type_ == end && known.status == "True")
            })
            .await
        }
    };
    end("crons", "Succeeded").await;
    assert_eq!(end("nothing", "Failed").await.message, "resource does not exist in discovery");
    let (versions, conditions) = stored().await.expect("the definition is there");
    assert_eq!(versions, ["v1"]);
    let told = conditions.into_iter().find(|known| known.type_ == "StorageMigrating").expect("it was told");
    assert_eq!((told.status.as_str(), told.reason.as_deref()), ("False", Some("MigrationSucceeded")));
    let after = crons.get("c").await.expect("there");
    assert_ne!(after.metadata.resource_version, before.metadata.resource_version, "it was written");
    assert_eq!((after.metadata.uid, after.data), (before.metadata.uid, before.data));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_ca_is_a_trust_bundle() {
    let cluster = Cluster::start().await;
    let bundles: Api<ClusterTrustBundle> = Api::all(cluster.client.clone());
    let only = || async {
        let list = bundles.list(&ListParams::default()).await.ok()?.items;
        list.into_iter().next()
    };
    let bundle = eventually("the bundle is published", only).await;
    assert!(bundle.name_any().starts_with("kubernetes.io:kube-apiserver-serving:"), "{}", bundle.name_any());
    bundles.delete(&bundle.name_any(), &DeleteParams::default()).await.expect("deleted");
    let again = eventually("it is published again", only).await;
    assert_eq!(again.spec, bundle.spec);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dns_service_has_the_nodes_as_endpoints() {
    let cluster = Cluster::start().await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node: Node = parse(json!({"metadata": {"name": "n1"}}));
    nodes.create(&PostParams::default(), &node).await.expect("created");
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(status)).await.expect("patched");
    let slices: Api<EndpointSlice> = cluster.api("kube-system");
    let of_dns = ListParams::default().labels("kubernetes.io/service-name=kube-dns");
    let addresses = eventually("the node answers", || async {
        let slice = slices.list(&of_dns).await.ok()?.items.into_iter().next()?;
        slice.endpoints?.into_iter().next().map(|endpoint| endpoint.addresses)
    })
    .await;
    assert_eq!(addresses, ["10.0.0.7"]);
    cluster.stop().await;
}
