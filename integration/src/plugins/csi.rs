//! A CSI driver whose volumes are directories of this host, bind-mounted where the kubelet wants them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto::csi::v1::node_server::{Node, NodeServer};
use proto::csi::v1::node_service_capability::rpc::Type as Ability;
use proto::csi::v1::node_service_capability::{Rpc, Type};
use proto::csi::v1::volume_capability::AccessType;
use proto::csi::v1::volume_usage::Unit;
use proto::csi::v1::*;
use proto::pluginregistration::PluginInfo;
use tonic::{Request, Response, Status};

use super::{Record, Servers};

/// How the driver behaves.
#[derive(Clone, Default)]
pub struct CsiOptions {
    pub abilities: Vec<Ability>,
    /// Versions that its registrar names; `1.0.0` if none.
    pub versions: Vec<String>,
    /// The node's topology.
    pub topology: BTreeMap<String, String>,
    pub limit: i64,
    /// What the driver calls the kubelet's directory; as this host calls it if none.
    pub root: Option<PathBuf>,
}

/// A driver that serves until it is dropped.
pub struct Csi {
    pub record: Record,
    failing: Arc<AtomicBool>,
    _servers: Servers,
}

impl Csi {
    /// `root` is the kubelet's directory; volumes are made under `data`.
    pub fn start(name: &str, root: &Path, data: &Path, options: CsiOptions) -> Self {
        let record = Record::default();
        let failing = Arc::new(AtomicBool::new(false));
        let mut servers = Servers::new();
        let own = root.join("plugins").join(name).join("csi.sock");
        let driver = Driver {
            record: record.clone(),
            failing: failing.clone(),
            data: data.to_owned(),
            root: root.to_owned(),
            options: options.clone(),
        };
        servers.serve(&own, NodeServer::new(driver));
        let endpoint = match &options.root {
            Some(shown) => shown.join("plugins").join(name).join("csi.sock"),
            None => own,
        };
        let versions = if options.versions.is_empty() { vec!["1.0.0".to_owned()] } else { options.versions };
        let info = PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: name.to_owned(),
            endpoint: endpoint.display().to_string(),
            supported_versions: versions,
        };
        servers.register(&root.join("plugins_registry").join(format!("{name}-reg.sock")), info, &record);
        Self { record, failing, _servers: servers }
    }

    /// From now on publishing fails, or does not.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }
}

struct Driver {
    record: Record,
    failing: Arc<AtomicBool>,
    data: PathBuf,
    root: PathBuf,
    options: CsiOptions,
}

type Answer<T> = Result<Response<T>, Status>;

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn sorted(map: &HashMap<String, String>) -> String {
    let map: BTreeMap<_, _> = map.iter().collect();
    map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

impl Driver {
    /// This host's name of a path, as a container's mount would make of it.
    fn own(&self, path: &str) -> Result<PathBuf, Status> {
        let Some(shown) = &self.options.root else { return Ok(path.into()) };
        let rest = Path::new(path)
            .strip_prefix(shown)
            .map_err(|_| Status::invalid_argument(format!("{path} is not mounted here")))?;
        Ok(self.root.join(rest))
    }

    /// A directory, or the device that a test put there.
    fn volume(&self, handle: &str) -> Result<PathBuf, Status> {
        let directory = self.data.join(handle);
        if directory.exists() {
            return Ok(directory);
        }
        std::fs::create_dir_all(&directory).map_err(internal)?;
        Ok(directory)
    }

    fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), Status> {
        let none = None::<&str>;
        let is_mounted = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(internal)?
            .lines()
            .any(|line| line.split(' ').nth(4) == to.to_str());
        if is_mounted {
            return Ok(());
        }
        if from.is_dir() {
            std::fs::create_dir_all(to).map_err(internal)?;
        } else {
            std::fs::write(to, "").map_err(internal)?;
        }
        mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(internal)?;
        if read_only {
            mount(none, to, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)
                .map_err(internal)?;
        }
        Ok(())
    }

    fn unmount(path: &Path) -> Result<(), Status> {
        let _ = umount2(path, MntFlags::MNT_DETACH);
        let removed = if path.is_file() { std::fs::remove_file(path) } else { std::fs::remove_dir(path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(internal(error)),
            _ => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(&self, request: Request<NodeStageVolumeRequest>) -> Answer<NodeStageVolumeResponse> {
        let request = request.into_inner();
        self.record.note(format!(
            "stage {} secrets[{}] publish[{}]",
            request.volume_id,
            sorted(&request.secrets),
            sorted(&request.publish_context)
        ));
        let volume = self.volume(&request.volume_id)?;
        if volume.is_dir() {
            Self::bind(&volume, &self.own(&request.staging_target_path)?, false)?;
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        self.record.note(format!("unstage {}", request.volume_id));
        Self::unmount(&self.own(&request.staging_target_path)?)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let request = request.into_inner();
        let capability = request.volume_capability.clone().unwrap_or_default();
        let mode = capability.access_mode.map(|mode| mode.mode().as_str_name().to_owned()).unwrap_or_default();
        let how = match &capability.access_type {
            Some(AccessType::Mount(how)) => format!("{} {}", how.fs_type, how.mount_flags.join(",")),
            _ => "block".to_owned(),
        };
        self.record.note(format!(
            "publish {} {mode} [{how}] readonly={} context[{}] secrets[{}]",
            request.volume_id,
            request.readonly,
            sorted(&request.volume_context),
            sorted(&request.secrets)
        ));
        if self.failing.load(Ordering::Relaxed) {
            return Err(Status::internal("the disk is on fire"));
        }
        let volume = self.volume(&request.volume_id)?;
        let from = match request.staging_target_path.as_str() {
            staged if !staged.is_empty() && volume.is_dir() => self.own(staged)?,
            _ => volume.clone(),
        };
        if volume.is_dir() && !request.volume_context.is_empty() {
            let text = sorted(&request.volume_context);
            std::fs::write(self.volume(&request.volume_id)?.join("context"), text).map_err(internal)?;
        }
        Self::bind(&from, &self.own(&request.target_path)?, request.readonly)?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        self.record.note(format!("unpublish {}", request.volume_id));
        Self::unmount(&self.own(&request.target_path)?)?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        let path = self.own(&request.into_inner().volume_path)?;
        if !path.is_dir() {
            return Err(Status::not_found("not mounted"));
        }
        let usage = VolumeUsage { available: 900, total: 1000, used: 100, unit: Unit::Bytes as i32 };
        Ok(Response::new(NodeGetVolumeStatsResponse { usage: vec![usage], volume_condition: None }))
    }

    async fn node_expand_volume(&self, request: Request<NodeExpandVolumeRequest>) -> Answer<NodeExpandVolumeResponse> {
        let request = request.into_inner();
        let size = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        self.record.note(format!("expand {} {size}", request.volume_id));
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: size }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let capability =
            |ability: &Ability| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: *ability as i32 })) };
        let capabilities = self.options.abilities.iter().map(capability).collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        let segments = self.options.topology.clone().into_iter().collect();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "the-node".to_owned(),
            max_volumes_per_node: self.options.limit,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}
