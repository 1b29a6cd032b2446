//! One registered driver: where it listens, what it can do, the calls that a node makes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::node_service_capability::Type as CapabilityKind;
use proto::csi::v1::node_service_capability::rpc::Type as Ability;
use proto::csi::v1::*;
use tokio::sync::OnceCell;
use tonic::transport::Channel;

use crate::layout::Layout;
use crate::plugins::rpc::{RpcError, within};

/// A call to a driver may take this long (`csiTimeout`).
const LIMIT: Duration = Duration::from_secs(120);

/// How long somebody who asks how full volumes are may have to wait for one.
const USAGE_LIMIT: Duration = Duration::from_secs(10);

/// What a driver can do besides publishing volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Volumes are mounted once for the node, then for each pod.
    pub stage: bool,
    pub usage: bool,
    pub expand: bool,
    pub single_node_multi_writer: bool,
    /// It gives the files to the pod's fsGroup itself.
    pub mount_group: bool,
}

impl Abilities {
    pub fn of(capabilities: &[NodeServiceCapability]) -> Self {
        let has = |wanted: Ability| {
            capabilities.iter().any(|capability| match &capability.r#type {
                Some(CapabilityKind::Rpc(rpc)) => rpc.r#type == wanted as i32,
                None => false,
            })
        };
        Self {
            stage: has(Ability::StageUnstageVolume),
            usage: has(Ability::GetVolumeStats),
            expand: has(Ability::ExpandVolume),
            single_node_multi_writer: has(Ability::SingleNodeMultiWriter),
            mount_group: has(Ability::VolumeMountGroup),
        }
    }
}

pub struct Driver {
    pub name: String,
    /// As the driver calls it.
    pub endpoint: PathBuf,
    pub version: Version,
    layout: Layout,
    client: NodeClient<Channel>,
    abilities: OnceCell<Abilities>,
}

impl Driver {
    /// `socket` is what this host calls the endpoint. Connects with the first call.
    pub fn new(name: &str, endpoint: &Path, socket: &Path, version: Version, layout: &Layout) -> Self {
        Self {
            name: name.to_owned(),
            endpoint: endpoint.to_owned(),
            version,
            layout: layout.clone(),
            client: NodeClient::new(proto::unix_channel_lazy(socket)),
            abilities: OnceCell::new(),
        }
    }

    fn shown(&self, path: &Path) -> String {
        self.layout.shown_to(&self.endpoint, path).to_string_lossy().into_owned()
    }

    pub async fn info(&self) -> Result<NodeGetInfoResponse, RpcError> {
        within(LIMIT, self.client.clone().node_get_info(NodeGetInfoRequest {})).await
    }

    /// Asked once.
    pub async fn abilities(&self) -> Result<Abilities, RpcError> {
        let ask = || async {
            let answer = within(LIMIT, self.client.clone().node_get_capabilities(NodeGetCapabilitiesRequest {})).await;
            answer.map(|answer| Abilities::of(&answer.capabilities))
        };
        self.abilities.get_or_try_init(ask).await.copied()
    }

    /// The paths of all requests are this host's: what the driver is told is its own name of them.
    pub async fn stage(&self, mut request: NodeStageVolumeRequest) -> Result<(), RpcError> {
        request.staging_target_path = self.shown(Path::new(&request.staging_target_path));
        within(LIMIT, self.client.clone().node_stage_volume(request)).await.map(drop)
    }

    pub async fn unstage(&self, handle: &str, staging: &Path) -> Result<(), RpcError> {
        let request =
            NodeUnstageVolumeRequest { volume_id: handle.to_owned(), staging_target_path: self.shown(staging) };
        within(LIMIT, self.client.clone().node_unstage_volume(request)).await.map(drop)
    }

    pub async fn publish(&self, mut request: NodePublishVolumeRequest) -> Result<(), RpcError> {
        request.target_path = self.shown(Path::new(&request.target_path));
        if !request.staging_target_path.is_empty() {
            request.staging_target_path = self.shown(Path::new(&request.staging_target_path));
        }
        within(LIMIT, self.client.clone().node_publish_volume(request)).await.map(drop)
    }

    pub async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), RpcError> {
        let request = NodeUnpublishVolumeRequest { volume_id: handle.to_owned(), target_path: self.shown(target) };
        within(LIMIT, self.client.clone().node_unpublish_volume(request)).await.map(drop)
    }

    pub async fn expand(&self, mut request: NodeExpandVolumeRequest) -> Result<i64, RpcError> {
        request.volume_path = self.shown(Path::new(&request.volume_path));
        if !request.staging_target_path.is_empty() {
            request.staging_target_path = self.shown(Path::new(&request.staging_target_path));
        }
        within(LIMIT, self.client.clone().node_expand_volume(request)).await.map(|answer| answer.capacity_bytes)
    }

    pub async fn usage(&self, handle: &str, path: &Path) -> Result<NodeGetVolumeStatsResponse, RpcError> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: handle.to_owned(),
            volume_path: self.shown(path),
            ..Default::default()
        };
        within(USAGE_LIMIT, self.client.clone().node_get_volume_stats(request)).await
    }
}

/// A version of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("could not parse {text:?} as version");
        let mut parts = text.trim().trim_start_matches('v').splitn(3, '.');
        let number = |part: Option<&str>| -> Result<u32, String> {
            let digits = part.unwrap_or_default().split(['-', '+', '.']).next().unwrap_or_default();
            digits.parse().map_err(|_| bad())
        };
        let (major, minor) = (number(parts.next())?, number(parts.next())?);
        Ok(Self(major, minor, parts.next().map_or(Ok(0), |part| number(Some(part)))?))
    }

    /// The newest of those that a driver speaks and that is spoken here: 1.x
    /// (`pkg/volume/csi/csi_plugin.go: highestSupportedVersion`).
    pub fn highest(versions: &[String]) -> Result<Self, String> {
        let (mut best, mut problem) = (None, "<nil>".to_owned());
        for text in versions {
            match Self::parse(text) {
                Ok(version) if version.0 <= 1 => best = best.max(Some(version)),
                Ok(_) => {}
                Err(message) => problem = message,
            }
        }
        match best {
            Some(version) if version.0 == 1 => Ok(version),
            Some(version) => Err(format!("highest supported version reported by driver is {version}, must be v1.x")),
            None => Err(format!(
                "could not find a highest supported version from versions ([{}]) reported by this driver: {problem}",
                versions.join(" ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_1_is_spoken() {
        let highest =
            |versions: &[&str]| Version::highest(&versions.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert_eq!(highest(&["1.0.0", "v1.5.0", "2.0.0", "0.3.0"]), Ok(Version(1, 5, 0)));
        assert_eq!(highest(&["1.2"]), Ok(Version(1, 2, 0)));
        assert_eq!(
            highest(&["0.3.0"]),
            Err("highest supported version reported by driver is 0.3.0, must be v1.x".to_owned())
        );
        assert_eq!(
            highest(&["2.0.0", "new"]),
            Err("could not find a highest supported version from versions ([2.0.0 new]) reported by this driver: could not parse \"new\" as version".to_owned())
        );
    }
}
