//! The node's Lease in `kube-node-lease`: how the control plane knows that the node is alive.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

const NAMESPACE: &str = "kube-node-lease";

/// Renews the lease of the node `name` at a quarter of its duration, for good.
pub async fn keep(client: Client, name: String, duration: Duration) {
    let mut next = Instant::now();
    loop {
        tokio::time::sleep_until(next).await;
        next = Instant::now() + duration / 4;
        let mut retry = Duration::from_millis(200);
        while let Err(error) = renew(&client, &name, duration).await {
            tracing::debug!(%error, node = name, "the node's lease could not be renewed; trying again");
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(Duration::from_secs(7));
        }
    }
}

async fn renew(client: &Client, name: &str, duration: Duration) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {"renewTime": now, "holderIdentity": name}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => {
            let owner = Api::<Node>::all(client.clone()).get_opt(name).await?;
            let owner = owner.and_then(|owner| owner.metadata.uid);
            api.create(&PostParams::default(), &first(name, owner, duration, now)).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// The lease of a node that has none; it goes with the Node object of that UID.
fn first(name: &str, owner: Option<String>, duration: Duration, now: MicroTime) -> Lease {
    let owner = owner.map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid,
        ..OwnerReference::default()
    });
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(i32::try_from(duration.as_secs()).unwrap_or(40)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}
