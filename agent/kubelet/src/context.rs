//! What every pod's worker shares: clients, the node's facts, the caches of what pods refer to.

use std::collections::HashMap;
use std::sync::Arc;

use api::resources::Amounts;
use component::{EventRecorder, EventType, Informer, Supervisor};
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Pod, Secret, Service};
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use proto::runtime::v1::DnsConfig;
use tokio::time::Instant;

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cri::Runtime;
use crate::devices::Devices;
use crate::dra::Dra;
use crate::images::Images;
use crate::network_contract::PodNetwork;
use crate::node::status::Pressure;
use crate::pods_api;
use crate::spec::dns::{ClusterDns, parse_resolv_conf};
use crate::status_writer::StatusWriter;
use crate::user_namespaces::UserNamespaces;
use crate::volume_contract::Volumes;

pub struct NodeContext {
    pub config: Config,
    pub client: Client,
    pub runtime: Runtime,
    pub images: Images,
    pub volumes: Arc<dyn Volumes>,
    pub devices: Arc<Devices>,
    pub dra: Arc<Dra>,
    pub cgroups: Cgroups,
    /// Whom to ask for a pod's network policies.
    pub network: Option<Arc<dyn PodNetwork>>,
    pub statuses: StatusWriter,
    /// What programs on this node are told of its pods.
    pub feed: Arc<pods_api::Feed>,
    pub feed_totals: Arc<pods_api::Totals>,
    pub recorder: EventRecorder,
    pub services: Informer<Service>,
    pub references: References,
    pub machine: crate::node::machine::Machine,
    /// What pods may use, for downward values and admission.
    pub allocatable: Arc<RwLock<Amounts>>,
    pub runtime_features: RwLock<RuntimeFeatures>,
    /// When all that the runtime has was last listed.
    pub relisted: RwLock<Option<Instant>>,
    /// What the node runs out of, for admission.
    pub pressure: RwLock<Pressure>,
    /// Who has which users of its own.
    pub user_namespaces: UserNamespaces,
    pub probe_totals: crate::probes::Totals,
    pub supervisor: Supervisor,
}

/// What the runtime says that it can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuntimeFeatures {
    /// By its default handler.
    pub recursive_read_only_mounts: bool,
    /// Gives a pod the groups of its spec alone (`SupplementalGroupsPolicy`). None before it said so.
    pub strict_groups: Option<bool>,
}

impl NodeContext {
    pub fn cluster_dns(&self) -> ClusterDns {
        ClusterDns { servers: self.config.cluster_dns.clone(), domain: self.config.cluster_domain.clone() }
    }

    /// The host's resolv.conf as it is now; empty if there is none.
    pub fn host_resolver(&self) -> DnsConfig {
        std::fs::read_to_string(&self.config.resolv_conf).map(|text| parse_resolv_conf(&text)).unwrap_or_default()
    }

    pub fn event(&self, pod: &Pod, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(&pod_reference(pod, None), kind, reason, message);
    }

    /// An event about one container: `kubectl describe` shows it with the container's field path.
    pub fn container_event(
        &self,
        pod: &Pod,
        container: &str,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder.event(&pod_reference(pod, Some(container)), kind, reason, message);
    }
}

/// A static pod's events go to its mirror, which has the same name and namespace and the static
/// pod's UID.
pub fn pod_reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: container.map(|name| field_path(pod, name)),
    }
}

fn field_path(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let init = spec.is_some_and(|spec| spec.init_containers.iter().flatten().any(|c| c.name == container));
    let ephemeral = spec.is_some_and(|spec| spec.ephemeral_containers.iter().flatten().any(|c| c.name == container));
    let list = if init {
        "spec.initContainers"
    } else if ephemeral {
        "spec.ephemeralContainers"
    } else {
        "spec.containers"
    };
    format!("{list}{{{container}}}")
}

/// ConfigMaps and Secrets that containers' environments name: asked for when a container is made,
/// and remembered for when the API does not answer.
#[derive(Default)]
pub struct References {
    config_maps: Mutex<HashMap<(String, String), Arc<ConfigMap>>>,
    secrets: Mutex<HashMap<(String, String), Arc<Secret>>>,
}

impl References {
    /// None if there is no such object.
    pub async fn config_map(
        &self,
        client: &Client,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, kube::Error> {
        let key = (namespace.to_owned(), name.to_owned());
        match Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await {
            Ok(found) => {
                let found = found.map(Arc::new);
                remember(&self.config_maps, key, found.clone());
                Ok(found)
            }
            Err(error) => self.config_maps.lock().get(&key).cloned().map(Some).ok_or(error),
        }
    }

    pub async fn secret(
        &self,
        client: &Client,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, kube::Error> {
        let key = (namespace.to_owned(), name.to_owned());
        match Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await {
            Ok(found) => {
                let found = found.map(Arc::new);
                remember(&self.secrets, key, found.clone());
                Ok(found)
            }
            Err(error) => self.secrets.lock().get(&key).cloned().map(Some).ok_or(error),
        }
    }

    /// Drops what was remembered of a namespace's objects that no pod names any more.
    pub fn retain(&self, mut used: impl FnMut(&str) -> bool) {
        self.config_maps.lock().retain(|(namespace, _), _| used(namespace));
        self.secrets.lock().retain(|(namespace, _), _| used(namespace));
    }
}

fn remember<T>(cache: &Mutex<HashMap<(String, String), Arc<T>>>, key: (String, String), found: Option<Arc<T>>) {
    let mut cache = cache.lock();
    match found {
        Some(object) => cache.insert(key, object),
        None => cache.remove(&key),
    };
}
