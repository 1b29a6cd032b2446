//! `ServiceAccount`: every pod has an account, and a token of it mounted unless it says no.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::Rng;
use serde_json::{Value, json};

use super::{creates, is_mirror, mountable};
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::core::pod::defaults::service_account_alias;
use crate::kinds::value::{ensure_list, get_mut, has, list, list_mut, opt_flag, set, text};

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// One hour and a margin by which kubelets may tell generated volumes from people's own.
const TOKEN_SECONDS: i64 = 3607;
/// The default account of a new namespace appears a moment after it.
const LOOKUPS: usize = 10;

pub struct ServiceAccount;

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        creates(attributes, "", "pods") || adds_debuggers(attributes)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        // Mirror pods only show what already runs.
        if is_mirror(&attributes.object) || adds_debuggers(attributes) {
            return Ok(());
        }
        if let Some(spec) = get_mut(&mut attributes.object, "spec") {
            service_account_alias(spec);
        }
        if text(&attributes.object, "spec.serviceAccountName").is_empty() {
            set(&mut attributes.object, "spec.serviceAccountName", DEFAULT);
            set(&mut attributes.object, "spec.serviceAccount", DEFAULT);
        }
        let account = lookup(attributes, cluster).await?;
        if automounts(&account, &attributes.object) {
            mount_token(&mut attributes.object);
        }
        if list(&attributes.object, "spec.imagePullSecrets").is_empty() {
            let secrets = list(&account, "imagePullSecrets").to_vec();
            if !secrets.is_empty() {
                set(&mut attributes.object, "spec.imagePullSecrets", secrets);
            }
        }
        Ok(())
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        if !is_mirror(&attributes.object) {
            let account = lookup(attributes, cluster).await?;
            let debuggers = adds_debuggers(attributes);
            let check = if debuggers { mountable::debugger_problem } else { mountable::problem };
            let problem = if mountable::limits(&account) { check(&account, &attributes.object) } else { None };
            return problem.map_or(Ok(()), |why| Err(attributes.forbid(why)));
        }
        let pod = &attributes.object;
        if !text(pod, "spec.serviceAccountName").is_empty() {
            return Err(attributes.forbid("a mirror pod may not reference service accounts"));
        }
        if references_secrets(pod) {
            return Err(attributes.forbid("a mirror pod may not reference secrets"));
        }
        let tokens = list(pod, "spec.volumes").iter().flat_map(|volume| list(volume, "projected.sources"));
        if tokens.into_iter().any(|source| has(source, "serviceAccountToken")) {
            return Err(attributes.forbid("a mirror pod may not use ServiceAccountToken volume projections"));
        }
        Ok(())
    }
}

fn adds_debuggers(attributes: &Attributes<'_>) -> bool {
    attributes.operation == Operation::Update
        && attributes.subresource == "ephemeralcontainers"
        && attributes.is("", "pods")
}

fn references_secrets(pod: &Value) -> bool {
    list(pod, "spec.volumes").iter().any(|volume| has(volume, "secret"))
        || ["spec.containers", "spec.initContainers"].iter().flat_map(|field| list(pod, field)).any(|container| {
            list(container, "env").iter().any(|variable| has(variable, "valueFrom.secretKeyRef"))
                || list(container, "envFrom").iter().any(|source| has(source, "secretRef"))
        })
        || !list(pod, "spec.imagePullSecrets").is_empty()
}

async fn lookup(attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Result<Arc<Value>> {
    let (namespace, name) = (attributes.namespace, text(&attributes.object, "spec.serviceAccountName"));
    if let Some(account) = cluster.get("", "serviceaccounts", namespace, name).await? {
        return Ok(account);
    }
    let attempts = if name == DEFAULT { LOOKUPS } else { 1 };
    for attempt in 0..attempts {
        if attempt > 0 {
            let pause = rand::rng().random_range(100..200);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        if let Some(account) = cluster.get_live("", "serviceaccounts", namespace, name).await? {
            return Ok(account);
        }
    }
    Err(attributes
        .forbid(format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found")))
}

/// The pod's word goes first, then the account's.
fn automounts(account: &Value, pod: &Value) -> bool {
    opt_flag(pod, "spec.automountServiceAccountToken")
        .or_else(|| opt_flag(account, "automountServiceAccountToken"))
        .unwrap_or(true)
}

fn mount_token(pod: &mut Value) {
    let taken: Vec<String> = list(pod, "spec.volumes").iter().map(|volume| text(volume, "name").to_owned()).collect();
    // A copied pod brings the volume along.
    let own = taken.iter().find(|name| name.starts_with(VOLUME_PREFIX)).cloned();
    let is_there = own.is_some();
    let name = own.unwrap_or_else(|| free_name(&taken));
    let mut mounted = false;
    for field in ["spec.initContainers", "spec.containers"] {
        for container in list_mut(pod, field) {
            if list(container, "volumeMounts").iter().any(|mount| text(mount, "mountPath") == MOUNT_PATH) {
                continue;
            }
            ensure_list(container, "volumeMounts")
                .push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            mounted = true;
        }
    }
    if mounted && !is_there {
        ensure_list(pod, "spec.volumes").push(token_volume(&name));
    }
}

fn free_name(taken: &[String]) -> String {
    loop {
        let name = crate::kinds::names::generate(VOLUME_PREFIX);
        if !taken.contains(&name) {
            return name;
        }
    }
}

/// Token, CA and namespace in one directory.
fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})
    }

    #[tokio::test]
    async fn token_and_pull_secrets() {
        let account = json!({"metadata": {"name": "default", "namespace": "n"}, "imagePullSecrets": [{"name": "s"}]});
        let cluster = Fixed::with(&[("", "serviceaccounts", account)]);
        let mut request = Request::create(
            "",
            "pods",
            pod(json!({"containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]})),
        );
        request.admit(&ServiceAccount, &cluster).await.unwrap();
        let spec = &request.object["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "s"}]));
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5);
        assert_eq!(
            spec["containers"][0]["volumeMounts"],
            json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}])
        );
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
    }

    #[tokio::test]
    async fn a_copied_pod_brings_its_volume_along() {
        let cluster =
            Fixed::with(&[("", "serviceaccounts", json!({"metadata": {"name": "default", "namespace": "n"}}))]);
        let volume = json!({"name": "kube-api-access-abcde", "projected": {}});
        let spec = json!({"volumes": [volume], "containers": [{"name": "a"}]});
        let mut request = Request::create("", "pods", pod(spec));
        request.admit(&ServiceAccount, &cluster).await.unwrap();
        assert_eq!(request.object["spec"]["volumes"], json!([volume]));
        assert_eq!(request.object["spec"]["containers"][0]["volumeMounts"][0]["name"], volume["name"]);
    }

    #[tokio::test]
    async fn accounts_may_limit_their_pods_to_their_secrets() {
        let account = json!({"metadata": {"name": "default", "namespace": "n", "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}}});
        let cluster = Fixed::with(&[("", "serviceaccounts", account)]);
        let env = json!([{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s"}}}]}]);
        let mut request = Request::create("", "pods", pod(json!({"containers": env})));
        let refused = request.admit(&ServiceAccount, &cluster).await.unwrap_err();
        assert!(refused.contains(": container c with envVar E referencing"), "{refused}");
        let spec = json!({"serviceAccountName": "default", "ephemeralContainers": env});
        let mut request = Request::new("", "pods", Operation::Update, pod(spec));
        request.subresource = "ephemeralcontainers";
        let refused = request.admit(&ServiceAccount, &cluster).await.unwrap_err();
        assert!(refused.contains(": ephemeral container c with envVar E referencing"), "{refused}");
    }

    #[tokio::test]
    async fn no_token_when_not_wanted() {
        let account = json!({"metadata": {"name": "x", "namespace": "n"}, "automountServiceAccountToken": false});
        let cluster = Fixed::with(&[("", "serviceaccounts", account)]);
        let mut request =
            Request::create("", "pods", pod(json!({"serviceAccount": "x", "containers": [{"name": "a"}]})));
        request.admit(&ServiceAccount, &cluster).await.unwrap();
        assert_eq!(request.object["spec"].get("volumes"), None);
        assert_eq!(request.object["spec"]["serviceAccountName"], "x");
        let mut request = Request::create("", "pods", pod(json!({"serviceAccountName": "y"})));
        assert_eq!(
            request.admit(&ServiceAccount, &cluster).await,
            Err("pods \"p\" is forbidden: error looking up service account n/y: serviceaccount \"y\" not found"
                .to_owned())
        );
    }

    #[tokio::test]
    async fn mirror_pods_have_no_account() {
        let mut mirror = pod(json!({"containers": [{"name": "a"}]}));
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        let mut request = Request::create("", "pods", mirror.clone());
        request.admit(&ServiceAccount, &Fixed::default()).await.unwrap();
        assert_eq!(request.object, mirror);
        mirror["spec"]["volumes"] = json!([{"name": "s", "secret": {}}]);
        let mut request = Request::create("", "pods", mirror);
        assert!(request.admit(&ServiceAccount, &Fixed::default()).await.is_err());
    }
}
