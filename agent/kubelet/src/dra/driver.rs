//! One registered driver and its two calls, in the version it speaks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::k8s::io::kubelet::pkg::apis::dra::{v1, v1beta1};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use super::ledger::Device;
use crate::plugins::rpc::{RpcError, within};

/// A call to a driver may take this long (`defaultClientCallTimeout`).
const LIMIT: Duration = Duration::from_secs(45);

/// A ResourceClaim as drivers are told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claim {
    #[serde(rename = "Namespace")]
    pub namespace: String,
    #[serde(rename = "ClaimName")]
    pub name: String,
    #[serde(rename = "ClaimUID")]
    pub uid: String,
}

/// What became of each claim, by UID.
pub type Answers<T> = HashMap<String, Result<T, String>>;

/// The interface's versions, by the names that drivers register with; the newest first.
pub const SERVICES: [&str; 2] = ["v1.DRAPlugin", "v1beta1.DRAPlugin"];

#[derive(Clone)]
enum Client {
    V1(v1::dra_plugin_client::DraPluginClient<Channel>),
    V1Beta1(v1beta1::dra_plugin_client::DraPluginClient<Channel>),
}

pub struct Driver {
    pub name: String,
    pub endpoint: PathBuf,
    client: Client,
}

impl Driver {
    /// `service` is one of [`SERVICES`]. Connects with the first call.
    pub fn new(name: &str, endpoint: &Path, socket: &Path, service: &str) -> Self {
        let channel = proto::unix_channel_lazy(socket);
        let client = if service == SERVICES[0] {
            Client::V1(v1::dra_plugin_client::DraPluginClient::new(channel))
        } else {
            Client::V1Beta1(v1beta1::dra_plugin_client::DraPluginClient::new(channel))
        };
        Self { name: name.to_owned(), endpoint: endpoint.to_owned(), client }
    }
}

fn outcome<T>(error: String, value: T) -> Result<T, String> {
    if error.is_empty() { Ok(value) } else { Err(error) }
}

/// The calls in one version: the messages of both have the same fields.
macro_rules! calls {
    ($version:ident, $prepare:ident, $unprepare:ident) => {
        async fn $prepare(
            mut client: $version::dra_plugin_client::DraPluginClient<Channel>,
            claims: &[Claim],
        ) -> Result<Answers<Vec<Device>>, RpcError> {
            let claims = claims.iter().map(|claim| $version::Claim {
                namespace: claim.namespace.clone(),
                uid: claim.uid.clone(),
                name: claim.name.clone(),
            });
            let request = $version::NodePrepareResourcesRequest { claims: claims.collect() };
            let answer = within(LIMIT, client.node_prepare_resources(request)).await?;
            let of_claim = |(uid, answer): (String, $version::NodePrepareResourceResponse)| {
                let devices = answer.devices.into_iter().map(|device| Device {
                    pool_name: device.pool_name,
                    device_name: device.device_name,
                    request_names: device.request_names,
                    cdi_device_ids: device.cdi_device_ids,
                });
                (uid, outcome(answer.error, devices.collect()))
            };
            Ok(answer.claims.into_iter().map(of_claim).collect())
        }

        async fn $unprepare(
            mut client: $version::dra_plugin_client::DraPluginClient<Channel>,
            claims: &[Claim],
        ) -> Result<Answers<()>, RpcError> {
            let claims = claims.iter().map(|claim| $version::Claim {
                namespace: claim.namespace.clone(),
                uid: claim.uid.clone(),
                name: claim.name.clone(),
            });
            let request = $version::NodeUnprepareResourcesRequest { claims: claims.collect() };
            let answer = within(LIMIT, client.node_unprepare_resources(request)).await?;
            Ok(answer.claims.into_iter().map(|(uid, answer)| (uid, outcome(answer.error, ()))).collect())
        }
    };
}

calls!(v1, prepare_v1, unprepare_v1);
calls!(v1beta1, prepare_v1beta1, unprepare_v1beta1);

impl Driver {
    pub async fn prepare(&self, claims: &[Claim]) -> Result<Answers<Vec<Device>>, RpcError> {
        match self.client.clone() {
            Client::V1(client) => prepare_v1(client, claims).await,
            Client::V1Beta1(client) => prepare_v1beta1(client, claims).await,
        }
    }

    pub async fn unprepare(&self, claims: &[Claim]) -> Result<Answers<()>, RpcError> {
        match self.client.clone() {
            Client::V1(client) => unprepare_v1(client, claims).await,
            Client::V1Beta1(client) => unprepare_v1beta1(client, claims).await,
        }
    }
}
