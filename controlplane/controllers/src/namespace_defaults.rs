//! What every namespace has: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.
//!
//! Two controllers in Kubernetes (service-account-controller, root-ca-cert-publisher), and two
//! identities here; both put back what is deleted or altered.

use std::collections::BTreeMap;
use std::sync::Arc;

use component::{Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use crate::context::{Context, Controller, synced};
use crate::error::{During, Result, is_already_exists, is_namespace_terminating, is_not_found};
use crate::meta;

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
     endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
     distributions of Kubernetes clusters.";

pub fn start(context: &Context) {
    let namespaces = context.informers.of::<Namespace>();
    start_accounts(context, &namespaces);
    start_root_ca(context, &namespaces);
}

fn is_active(namespace: Option<Arc<Namespace>>) -> bool {
    namespace.is_some_and(|namespace| {
        let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
        phase != Some("Terminating") && !meta::is_deleting(&namespace.metadata)
    })
}

fn enqueue_namespaces(namespaces: &Informer<Namespace>, queue: &WorkQueue<String>) {
    let queue = queue.clone();
    namespaces.on_change(move |change| {
        if let Some(namespace) = change.new {
            queue.add(namespace.metadata.name.clone().unwrap_or_default());
        }
    });
}

fn start_accounts(context: &Context, namespaces: &Informer<Namespace>) {
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("service-account-controller");
    let accounts = context.informers.selected::<ServiceAccount>("metadata.name=default");
    enqueue_namespaces(namespaces, &queue);
    let lost = queue.clone();
    accounts.on_change(move |change| {
        if change.new.is_none() {
            lost.add(change.object().metadata.namespace.clone().unwrap_or_default());
        }
    });
    let (namespaces, writer) = (namespaces.clone(), controller.clone());
    controller.run(&queue, 1, synced!(namespaces, accounts), move |namespace: String| {
        let (namespaces, accounts, writer) = (namespaces.clone(), accounts.clone(), writer.clone());
        async move {
            let missing = accounts.get(&namespace, ACCOUNT).is_none();
            if missing && is_active(namespaces.get("", &namespace)) {
                create_account(&writer, &namespace).await?;
            }
            Ok(Outcome::Done)
        }
    });
}

async fn create_account(controller: &Controller, namespace: &str) -> Result<()> {
    let api: Api<ServiceAccount> = controller.namespaced(namespace);
    let account = ServiceAccount {
        metadata: ObjectMeta { name: Some(ACCOUNT.to_owned()), ..Default::default() },
        ..Default::default()
    };
    tolerate(api.create(&PostParams::default(), &account).await).during("creating ServiceAccount default in", namespace)
}

/// Somebody else made it, or the namespace is going: nothing left to do.
fn tolerate<T>(result: std::result::Result<T, kube::Error>) -> std::result::Result<(), kube::Error> {
    match result {
        Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) || is_not_found(&error) => Ok(()),
        other => other.map(drop),
    }
}

fn start_root_ca(context: &Context, namespaces: &Informer<Namespace>) {
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("root-ca-cert-publisher");
    let maps = context.informers.selected::<ConfigMap>(&format!("metadata.name={ROOT_CA}"));
    enqueue_namespaces(namespaces, &queue);
    let changed = queue.clone();
    maps.on_change(move |change| changed.add(change.object().metadata.namespace.clone().unwrap_or_default()));
    let (namespaces, writer, config) = (namespaces.clone(), controller.clone(), context.config.clone());
    controller.run(&queue, 1, synced!(namespaces, maps), move |namespace: String| {
        let (namespaces, maps, writer, config) = (namespaces.clone(), maps.clone(), writer.clone(), config.clone());
        async move {
            if is_active(namespaces.get("", &namespace)) {
                publish(&writer, &namespace, maps.get(&namespace, ROOT_CA).as_deref(), &config.ca_certificate).await?;
            }
            Ok(Outcome::Done)
        }
    });
}

async fn publish(controller: &Controller, namespace: &str, existing: Option<&ConfigMap>, ca: &str) -> Result<()> {
    let Some(wanted) = root_ca(existing, ca) else { return Ok(()) };
    let api: Api<ConfigMap> = controller.namespaced(namespace);
    let written = match existing {
        Some(_) => api.replace(ROOT_CA, &PostParams::default(), &wanted).await,
        None => api.create(&PostParams::default(), &wanted).await,
    };
    tolerate(written).during("publishing the root CA to namespace", namespace)
}

/// The ConfigMap as it should be, unless it is.
fn root_ca(existing: Option<&ConfigMap>, ca: &str) -> Option<ConfigMap> {
    let data = BTreeMap::from([("ca.crt".to_owned(), ca.to_owned())]);
    let mut wanted = existing.cloned().unwrap_or_default();
    wanted.metadata.name = Some(ROOT_CA.to_owned());
    wanted.data = Some(data);
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned());
    (existing != Some(&wanted)).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_ca_is_put_back_and_left_alone() {
        let made = root_ca(None, "PEM").expect("it is missing");
        assert_eq!(root_ca(Some(&made), "PEM"), None);
        let mut altered = made.clone();
        altered.data.get_or_insert_default().insert("ca.crt".into(), "other".into());
        altered.metadata.resource_version = Some("7".into());
        let mended = root_ca(Some(&altered), "PEM").expect("it was altered");
        assert_eq!(mended.metadata.resource_version.as_deref(), Some("7"), "an update, checked for conflicts");
        assert_eq!(mended.data, made.data);
    }
}
