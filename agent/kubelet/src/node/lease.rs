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
    let mut keeper = Keeper { client, name, duration, owned: false };
    let mut next = Instant::now();
    loop {
        tokio::time::sleep_until(next).await;
        next = Instant::now() + duration / 4;
        let mut retry = Duration::from_millis(200);
        while let Err(error) = keeper.renew().await {
            tracing::debug!(%error, node = keeper.name, "the node's lease could not be renewed; trying again");
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(Duration::from_secs(7));
        }
    }
}

struct Keeper {
    client: Client,
    name: String,
    duration: Duration,
    /// The lease is known to go with the Node; it may be older than that.
    owned: bool,
}

impl Keeper {
    async fn renew(&mut self) -> Result<(), kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        let now = MicroTime(Timestamp::now());
        let owner = if self.owned { None } else { self.owner().await? };
        let mut patch = json!({"spec": {"renewTime": now, "holderIdentity": self.name}});
        if let Some(owner) = &owner {
            patch["metadata"] = json!({"ownerReferences": [owner]});
        }
        match api.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                let owner = self.owner().await?;
                self.owned = owner.is_some();
                api.create(&PostParams::default(), &first(&self.name, owner, self.duration, now)).await?;
            }
            answer => {
                answer?;
                self.owned |= owner.is_some();
            }
        }
        Ok(())
    }

    async fn owner(&self) -> Result<Option<OwnerReference>, kube::Error> {
        let node = Api::<Node>::all(self.client.clone()).get_opt(&self.name).await?;
        Ok(node.and_then(|node| node.metadata.uid).map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.name.clone(),
            uid,
            ..OwnerReference::default()
        }))
    }
}

/// The lease of a node that has none; it goes with its owner.
fn first(name: &str, owner: Option<OwnerReference>, duration: Duration, now: MicroTime) -> Lease {
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
