//! What the server makes again when somebody has deleted it: the `kubernetes` Service with its range of
//! addresses, the namespaces of the system, the ConfigMaps that say who this server is. What is there is left
//! as it is, whatever somebody made of it. The endpoints of the Service follow the servers that there are.
//!
//! Upstream: `pkg/controlplane/controller/kubernetesservice`, `defaultservicecidr`, `systemnamespaces`,
//! `clusterauthenticationtrust` and `legacytokentracking`, each on its own; all but the namespaces (a minute)
//! come back within ten seconds there.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{NAMESPACES, authorities, namespace, service, token_tracking};
use crate::admit::Cluster;
use crate::error::Result;
use crate::server::Api;

const LOOK: Duration = Duration::from_secs(10);
const LEAVING: Duration = Duration::from_secs(5);

pub fn start(api: &Arc<Api>) {
    let api = api.clone();
    api.supervisor.clone().spawn_graceful("keeping of the system's objects", |everything| async move {
        let mut known = None;
        loop {
            tokio::select! {
                biased;
                () = api.ending.begun.cancelled() => break,
                () = everything.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let failed = round(&api).await.err();
            if let Some(error) = failed.as_ref().filter(|_| known != failed) {
                tracing::warn!(%error, "the system's own objects cannot be kept; trying again every ten seconds");
            }
            known = failed;
        }
        // Also when everything is cancelled meanwhile, as far as the store answers.
        match tokio::time::timeout(LEAVING, service::leave(&api)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the kubernetes Service leads to this server for a while"),
            Err(_) => {
                tracing::warn!("the store did not answer; the kubernetes Service leads to this server for a while")
            }
        }
    });
}

async fn round(api: &Api) -> Result<()> {
    // First: whoever is not heard of in time is taken for lost.
    service::follow_servers(api).await?;
    for name in NAMESPACES {
        keep(api, "", "namespaces", namespace(name)).await?;
    }
    for map in [authorities(api), token_tracking()] {
        keep(api, "", "configmaps", map).await?;
    }
    for (group, plural, object) in service::kept(api) {
        keep(api, group, plural, object).await?;
    }
    Ok(())
}

/// Makes an object that is not there.
async fn keep(cluster: &dyn Cluster, group: &str, plural: &str, object: Value) -> Result<()> {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    if cluster.get_live(group, plural, text("namespace"), text("name")).await?.is_some() {
        return Ok(());
    }
    let made = match plural {
        // As a client: its address has to be taken from those that are free.
        "services" => cluster.submit(group, plural, object).await,
        _ => cluster.create(group, plural, object).await,
    };
    match made {
        // By another server.
        Err(error) if error.is_already_exists() => Ok(()),
        made => made.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::fake::Fixed;

    #[tokio::test]
    async fn the_kubernetes_service_comes_back_when_it_was_deleted() {
        let service =
            json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.43.0.1"}});
        let changed = json!({"metadata": {"name": "kube-node-lease", "labels": {"mine": ""}}});
        let cluster = Fixed::with(&[("", "namespaces", changed.clone())]);
        for _ in 0..2 {
            keep(&cluster, "", "services", service.clone()).await.unwrap();
            keep(&cluster, "", "namespaces", namespace("kube-node-lease")).await.unwrap();
        }
        let services = cluster.list("", "services", "default").await.unwrap();
        assert_eq!(services.iter().map(|held| &**held).collect::<Vec<_>>(), [&service]);
        // What is there stays what somebody made of it.
        let held = cluster.get("", "namespaces", "", "kube-node-lease").await.unwrap().unwrap();
        assert_eq!(*held, changed);
    }
}
