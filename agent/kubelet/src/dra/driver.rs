//! One registered driver and its calls, in the versions it speaks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, Uri};
use proto::k8s::io::kubelet::pkg::apis::dra::v1;
use proto::k8s::io::kubelet::pkg::apis::dra::v1::dra_plugin_client::DraPluginClient;
use proto::v1::dra_resource_health_client::DraResourceHealthClient;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use tower::ServiceExt;
use tower::util::MapRequest;

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

/// The same of the interface that tells how devices are.
pub const HEALTH: [&str; 2] = ["v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"];

type Body = Request<tonic::body::Body>;
type Versioned = MapRequest<Channel, fn(Body) -> Body>;
pub type HealthClient = DraResourceHealthClient<Versioned>;

pub struct Driver {
    pub name: String,
    pub endpoint: PathBuf,
    client: DraPluginClient<Versioned>,
    health: Option<HealthClient>,
}

impl Driver {
    /// `service` is one of [`SERVICES`], `health` one of [`HEALTH`] if the driver has any. Connects with the
    /// first call.
    pub fn new(name: &str, endpoint: &Path, socket: &Path, service: &str, health: Option<&str>) -> Self {
        let channel = proto::unix_channel_lazy(socket);
        let version: fn(Body) -> Body = if service == SERVICES[0] { |request| request } else { in_v1beta1 };
        let client = DraPluginClient::new(channel.clone().map_request(version));
        let health = health.map(|service| {
            let version: fn(Body) -> Body = if service == HEALTH[0] { |request| request } else { in_v1alpha1 };
            DraResourceHealthClient::new(channel.map_request(version))
        });
        Self { name: name.to_owned(), endpoint: endpoint.to_owned(), client, health }
    }

    /// A client of the driver's word on its devices, if it gives any.
    pub fn health(&self) -> Option<HealthClient> {
        self.health.clone()
    }
}

fn outcome<T>(error: String, value: T) -> Result<T, String> {
    if error.is_empty() { Ok(value) } else { Err(error) }
}

/// The same call of the older interface: its messages are those of v1, the service has another name.
fn in_v1beta1(request: Body) -> Body {
    renamed(request, ".v1.", ".v1beta1.")
}

fn in_v1alpha1(request: Body) -> Body {
    renamed(request, "/v1.", "/v1alpha1.")
}

fn renamed(mut request: Body, version: &str, other: &str) -> Body {
    let path = request.uri().path().replacen(version, other, 1);
    let mut parts = request.uri().clone().into_parts();
    // What was a path of ASCII letters still is one.
    if let Ok(path) = path.parse() {
        parts.path_and_query = Some(path);
    }
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

fn told(claims: &[Claim]) -> Vec<v1::Claim> {
    let told = |claim: &Claim| v1::Claim {
        namespace: claim.namespace.clone(),
        uid: claim.uid.clone(),
        name: claim.name.clone(),
    };
    claims.iter().map(told).collect()
}

impl Driver {
    pub async fn prepare(&self, claims: &[Claim]) -> Result<Answers<Vec<Device>>, RpcError> {
        let request = v1::NodePrepareResourcesRequest { claims: told(claims) };
        let answer = within(LIMIT, self.client.clone().node_prepare_resources(request)).await?;
        let of_claim = |(uid, answer): (String, v1::NodePrepareResourceResponse)| {
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

    pub async fn unprepare(&self, claims: &[Claim]) -> Result<Answers<()>, RpcError> {
        let request = v1::NodeUnprepareResourcesRequest { claims: told(claims) };
        let answer = within(LIMIT, self.client.clone().node_unprepare_resources(request)).await?;
        Ok(answer.claims.into_iter().map(|(uid, answer)| (uid, outcome(answer.error, ()))).collect())
    }
}
