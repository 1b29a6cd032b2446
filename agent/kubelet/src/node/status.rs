//! A NodeStatus from what the host and the runtime say (`pkg/kubelet/nodestatus/setters.go`). Pure.

use std::collections::BTreeMap;

use api::quantity::{Format, Quantity};
use api::resources::Amounts;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proto::runtime::v1 as cri;

use super::machine::{FileSystem, Machine};
use crate::config::Config;
use crate::devices::is_extended;

/// What is being run out of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

/// What device plugins have of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCount {
    pub resource: String,
    pub all: u64,
    pub healthy: u64,
}

/// Everything a status is made of.
pub struct View<'a> {
    pub config: &'a Config,
    pub machine: &'a Machine,
    pub root: FileSystem,
    /// The runtime's own word; why there is none to rely on.
    pub runtime: Result<&'a cri::StatusResponse, &'a str>,
    /// e.g. `containerd://1.6.20`.
    pub runtime_version: &'a str,
    pub images: &'a [cri::Image],
    pub pressure: Pressure,
    /// What pods use of what is attached to the node.
    pub volumes_in_use: &'a [String],
    /// What device plugins have to give: all of it, and what of that works.
    pub devices: &'a [DeviceCount],
    /// What people say that the node has, by their patches of its capacity.
    pub advertised: &'a Amounts,
    /// The conditions as they were before.
    pub last: &'a [NodeCondition],
    pub now: Timestamp,
}

/// The labels a node registers with: the configured ones and those that every node has.
pub fn labels(config: &Config, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine.architecture),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// What the scheduler and the API server may rely on, by the names of its feature gates
/// (`k8s.io/component-helpers/nodedeclaredfeatures`). Sorted.
const DECLARED_FEATURES: [&str; 5] = [
    "ExtendWebSocketsToKubelet",
    "GuaranteedQoSPodCPUResize",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
];
/// The most images that a status names.
const MOST_IMAGES: usize = 50;

pub fn generate(view: &View<'_>) -> NodeStatus {
    let mut capacity = capacity(view.config, view.machine, view.root);
    let mut allocatable = allocatable(view.config, &capacity);
    for (name, amount) in view.advertised {
        capacity.insert(name.clone(), *amount);
        allocatable.insert(name.clone(), *amount);
    }
    for device in view.devices {
        capacity.insert(device.resource.clone(), count(device.all));
        allocatable.insert(device.resource.clone(), count(device.healthy));
    }
    NodeStatus {
        addresses: Some(addresses(view.config)),
        capacity: Some(wire(&capacity)),
        allocatable: Some(wire(&allocatable)),
        conditions: Some(conditions(view)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: view
                .config
                .server
                .as_ref()
                .map(|server| DaemonEndpoint { port: server.address.port().into() }),
        }),
        images: Some(images(view.images)),
        node_info: Some(info(view)),
        features: view
            .runtime
            .ok()
            .and_then(|runtime| runtime.features.as_ref())
            .map(|features| NodeFeatures { supplemental_groups_policy: Some(features.supplemental_groups_policy) }),
        runtime_handlers: view.runtime.ok().and_then(runtime_handlers),
        declared_features: Some(DECLARED_FEATURES.map(str::to_owned).to_vec()),
        volumes_in_use: (!view.volumes_in_use.is_empty()).then(|| view.volumes_in_use.to_vec()),
        ..Default::default()
    }
}

/// The extended resources that a Node's capacity names. A node that was made anew (`reset`) has none of them
/// until somebody says so again (`kubelet_node_status.go: reconcileExtendedResource`).
pub fn advertised(held: Option<&NodeStatus>, reset: bool) -> Amounts {
    let named = held.and_then(|held| held.capacity.as_ref()).into_iter().flatten();
    let extended = named.filter(|(name, _)| is_extended(name));
    let amount = |quantity: &WireQuantity| if reset { Some(Quantity::ZERO) } else { quantity.0.parse().ok() };
    extended.filter_map(|(name, quantity)| Some((name.clone(), amount(quantity)?))).collect()
}

/// What a Node offers of extended resources and its capacity no longer has.
pub fn withdrawn(held: Option<&NodeStatus>, wanted: &NodeStatus) -> Vec<String> {
    let has = |name: &String| wanted.allocatable.as_ref().is_some_and(|allocatable| allocatable.contains_key(name));
    let offered = held.and_then(|held| held.allocatable.as_ref()).into_iter().flat_map(BTreeMap::keys);
    offered.filter(|name| is_extended(name) && !has(name)).cloned().collect()
}

pub fn count(value: u64) -> Quantity {
    Quantity::from_units(i64::try_from(value).unwrap_or(i64::MAX), Format::DecimalSi)
}

pub fn capacity(config: &Config, machine: &Machine, root: FileSystem) -> Amounts {
    let bytes = |value: u64| Quantity::from_units(i64::try_from(value).unwrap_or(i64::MAX), Format::BinarySi);
    let mut capacity = Amounts::from([
        ("cpu".to_owned(), count(machine.cpus)),
        // Kubernetes counts memory in kibibytes.
        ("memory".to_owned(), bytes(machine.memory & !1023)),
        ("ephemeral-storage".to_owned(), bytes(root.bytes & !1023)),
        ("pods".to_owned(), count(config.max_pods.into())),
    ]);
    for (size, total) in &machine.huge_pages {
        capacity.insert(format!("hugepages-{}", bytes(*size)), bytes(*total));
    }
    capacity
}

/// Capacity less what is reserved and what eviction keeps free.
pub fn allocatable(config: &Config, capacity: &Amounts) -> Amounts {
    capacity
        .iter()
        .map(|(name, total)| {
            let mut left = *total;
            if let Some(reserved) = config.system_reserved.get(name) {
                left = left - *reserved;
            }
            match name.as_str() {
                "memory" => {
                    let kept = i64::try_from(config.eviction.memory_available).unwrap_or(i64::MAX);
                    left = left - Quantity::from_units(kept, Format::BinarySi);
                }
                "ephemeral-storage" => {
                    let kept = total.units() / 100 * i64::from(config.eviction.nodefs_available_percent);
                    // Kubernetes writes the result as a plain number.
                    left = Quantity::from_units(left.units() - kept, Format::DecimalSi);
                }
                _ => {}
            }
            if left.is_negative() {
                left = Quantity::ZERO;
            }
            (name.clone(), left)
        })
        .collect()
}

pub fn wire(amounts: &Amounts) -> BTreeMap<String, WireQuantity> {
    amounts.iter().map(|(name, quantity)| (name.clone(), WireQuantity::from(*quantity))).collect()
}

fn addresses(config: &Config) -> Vec<NodeAddress> {
    let mut addresses: Vec<NodeAddress> = config
        .node_ips
        .iter()
        .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.to_string() })
        .collect();
    addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: config.hostname.clone() });
    addresses
}

fn info(view: &View<'_>) -> NodeSystemInfo {
    let machine = view.machine;
    NodeSystemInfo {
        architecture: machine.architecture.to_owned(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: view.runtime_version.to_owned(),
        kernel_version: machine.kernel_version.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: api::version::GIT.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        running_in_user_namespace: Some(machine.in_user_namespace),
        system_uuid: if machine.system_uuid.is_empty() {
            machine.machine_id.clone()
        } else {
            machine.system_uuid.clone()
        },
        swap: (machine.swap > 0)
            .then(|| NodeSwapStatus { capacity: Some(i64::try_from(machine.swap).unwrap_or(i64::MAX)) }),
    }
}

/// The largest images, as the scheduler's image locality wants them.
fn images(images: &[cri::Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&cri::Image> = images.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images
        .into_iter()
        .take(MOST_IMAGES)
        .map(|image| {
            let names = image
                .repo_digests
                .iter()
                .chain(&image.repo_tags)
                .filter(|name| *name != "<none>@<none>" && *name != "<none>:<none>");
            ContainerImage {
                names: Some(names.take(5).cloned().collect()),
                size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)),
            }
        })
        .collect()
}

fn runtime_handlers(status: &cri::StatusResponse) -> Option<Vec<NodeRuntimeHandler>> {
    let handlers: Vec<NodeRuntimeHandler> = status
        .runtime_handlers
        .iter()
        .map(|handler| NodeRuntimeHandler {
            name: Some(handler.name.clone()),
            features: handler.features.as_ref().map(|features| NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
                user_namespaces: Some(features.user_namespaces),
            }),
        })
        .collect();
    (!handlers.is_empty()).then_some(handlers)
}

fn conditions(view: &View<'_>) -> Vec<NodeCondition> {
    let pressure = view.pressure;
    let (ready, ready_reason, ready_message) = readiness(view.runtime);
    let rows: [(&str, bool, &str, String); 4] = [
        if pressure.memory {
            (
                "MemoryPressure",
                true,
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available".to_owned(),
            )
        } else {
            (
                "MemoryPressure",
                false,
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available".to_owned(),
            )
        },
        if pressure.disk {
            ("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure".to_owned())
        } else {
            ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure".to_owned())
        },
        if pressure.pid {
            ("PIDPressure", true, "KubeletHasInsufficientPID", "kubelet has insufficient PID available".to_owned())
        } else {
            ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available".to_owned())
        },
        ("Ready", ready, ready_reason, ready_message),
    ];
    let now = Time(Timestamp::from_second(view.now.as_second()).unwrap_or(view.now));
    rows.into_iter()
        .map(|(name, is_true, reason, message)| {
            let status = if is_true { "True" } else { "False" };
            let before = view.last.iter().find(|condition| condition.type_ == name && condition.status == status);
            NodeCondition {
                type_: name.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: before
                    .and_then(|before| before.last_transition_time.clone())
                    .or(Some(now.clone())),
            }
        })
        .collect()
}

/// Ready needs the runtime and its network.
pub fn readiness(runtime: Result<&cri::StatusResponse, &str>) -> (bool, &'static str, String) {
    const NOT_READY: &str = "KubeletNotReady";
    let status = match runtime {
        Ok(status) => status,
        Err(problem) => return (false, NOT_READY, problem.to_owned()),
    };
    let conditions = status.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let mut problems = Vec::new();
    for (name, title) in
        [("RuntimeReady", "container runtime not ready"), ("NetworkReady", "container runtime network not ready")]
    {
        match conditions.iter().find(|condition| condition.r#type == name) {
            Some(condition) if condition.status => {}
            Some(condition) => problems
                .push(format!("{title}: {name}=false reason:{} message:{}", condition.reason, condition.message)),
            None => problems.push(format!("{title}: condition {name} not set")),
        }
    }
    match problems.as_slice() {
        [] => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        [one] => (false, NOT_READY, one.clone()),
        several => (false, NOT_READY, format!("[{}]", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    fn runtime(conditions: &[(&str, bool)]) -> cri::StatusResponse {
        let conditions = conditions
            .iter()
            .map(|(name, status)| cri::RuntimeCondition {
                r#type: (*name).to_owned(),
                status: *status,
                reason: "NetworkPluginNotReady".to_owned(),
                message: "Network plugin returns error: cni plugin not initialized".to_owned(),
            })
            .collect();
        cri::StatusResponse { status: Some(cri::RuntimeStatus { conditions }), ..Default::default() }
    }

    #[test]
    fn ready_needs_runtime_and_network() {
        let good = runtime(&[("RuntimeReady", true), ("NetworkReady", true)]);
        assert_eq!(readiness(Ok(&good)), (true, "KubeletReady", "kubelet is posting ready status".to_owned()));
        let (ready, reason, message) = readiness(Ok(&runtime(&[("RuntimeReady", true), ("NetworkReady", false)])));
        assert_eq!((ready, reason), (false, "KubeletNotReady"));
        assert_eq!(
            message,
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized"
        );
        let down = "container runtime is down";
        assert_eq!(readiness(Err(down)), (false, "KubeletNotReady", down.to_owned()));
    }

    #[test]
    fn transitions_keep_their_time() {
        let config = Config::new("n", vec!["10.0.0.1".parse().unwrap()], Layout::new("/k", "/l"), "/s".into());
        let machine = Machine { cpus: 2, memory: 1 << 30, ..Default::default() };
        let at = |second| Timestamp::from_second(second).unwrap();
        let good = runtime(&[("RuntimeReady", true), ("NetworkReady", true)]);
        let make = |last: &[NodeCondition], now, runtime| {
            let root = FileSystem { bytes: 100 << 20, ..Default::default() };
            generate(&View {
                config: &config,
                machine: &machine,
                root,
                runtime,
                runtime_version: "containerd://1",
                images: &[],
                pressure: Pressure::default(),
                volumes_in_use: &[],
                devices: &[],
                advertised: &Amounts::new(),
                last,
                now,
            })
        };
        let first = make(&[], at(100), Ok(&good));
        let second = make(first.conditions.as_deref().unwrap(), at(200), Ok(&good));
        let ready = |status: &NodeStatus| status.conditions.as_ref().unwrap()[3].clone();
        assert_eq!(ready(&second).last_transition_time.unwrap().0, at(100));
        assert_eq!(ready(&second).last_heartbeat_time.unwrap().0, at(200));
        let broken = make(second.conditions.as_deref().unwrap(), at(300), Err("gone"));
        assert_eq!(
            (ready(&broken).status.as_str(), ready(&broken).last_transition_time.unwrap().0),
            ("False", at(300))
        );
        let allocatable = second.allocatable.clone().unwrap();
        assert_eq!((&second.features, &second.node_info.as_ref().unwrap().swap), (&None, &None));
        assert_eq!(allocatable["memory"].0, "924Mi");
        assert_eq!(allocatable["pods"].0, "110");
        assert_eq!(second.addresses.unwrap().len(), 2);
    }

    #[test]
    fn what_runtime_and_machine_can_do_besides() {
        let config = Config::new("n", vec!["10.0.0.1".parse().unwrap()], Layout::new("/k", "/l"), "/s".into());
        let machine = Machine { swap: 1 << 30, ..Default::default() };
        let features = cri::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() };
        let runtime = cri::StatusResponse { features: Some(features), ..Default::default() };
        let made = generate(&View {
            config: &config,
            machine: &machine,
            root: FileSystem::default(),
            runtime: Ok(&runtime),
            runtime_version: "",
            images: &[],
            pressure: Pressure::default(),
            volumes_in_use: &[],
            devices: &[],
            advertised: &Amounts::new(),
            last: &[],
            now: Timestamp::UNIX_EPOCH,
        });
        assert_eq!(made.features.unwrap().supplemental_groups_policy, Some(true));
        let info = made.node_info.unwrap();
        assert_eq!(info.running_in_user_namespace, Some(false));
        assert_eq!(info.swap.unwrap().capacity, Some(1 << 30));
        assert!(DECLARED_FEATURES.is_sorted());
    }

    #[test]
    fn extended_resources_of_the_capacity_can_be_used() {
        let held: NodeStatus = serde_json::from_value(serde_json::json!({
            "capacity": {"example.com/dongle": "4", "example.com/gpu": "9", "cpu": "64", "hugepages-2Mi": "2Mi", "kubernetes.io/x": "1"},
            "allocatable": {"example.com/dongle": "4", "example.com/gone": "1", "cpu": "1"}
        }))
        .unwrap();
        let config = Config::new("n", vec!["10.0.0.1".parse().unwrap()], Layout::new("/k", "/l"), "/s".into());
        let machine = Machine { cpus: 2, memory: 1 << 30, ..Default::default() };
        for (reset, dongles) in [(false, "4"), (true, "0")] {
            let made = generate(&View {
                config: &config,
                machine: &machine,
                root: FileSystem::default(),
                runtime: Err("gone"),
                runtime_version: "",
                images: &[],
                pressure: Pressure::default(),
                volumes_in_use: &[],
                // What a plugin says counts more.
                devices: &[DeviceCount { resource: "example.com/gpu".to_owned(), all: 3, healthy: 2 }],
                advertised: &advertised(Some(&held), reset),
                last: &[],
                now: Timestamp::UNIX_EPOCH,
            });
            assert_eq!(withdrawn(Some(&held), &made), ["example.com/gone"]);
            let [capacity, allocatable] = [made.capacity, made.allocatable].map(Option::unwrap);
            for (amounts, gpus) in [(&capacity, "3"), (&allocatable, "2")] {
                let of = |name: &str| amounts.get(name).map(|amount| amount.0.as_str());
                assert_eq!(of("example.com/dongle"), Some(dongles));
                assert_eq!((of("example.com/gpu"), of("cpu")), (Some(gpus), Some("2")));
                assert_eq!((of("hugepages-2Mi"), of("kubernetes.io/x")), (None, None));
            }
        }
    }
}
