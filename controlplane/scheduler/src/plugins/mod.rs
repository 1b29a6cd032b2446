//! Kubernetes' default plugins, one file each; `storage` is what those about volumes share.
//!
//! The order here is the order within each extension point; it is also the order in which filters
//! get to reject a node, and with that which reason a user sees.

mod balanced_allocation;
mod default_binder;
pub mod default_preemption;
pub mod dynamic_resources;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_declared_features;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod priority_sort;
mod scheduling_gates;
pub mod storage;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::sync::Arc;

use component::{EventRecorder, Informers, Supervisor};

use crate::framework::{Framework, Plugin};
use dynamic_resources::DynamicResources;
use dynamic_resources::caches::Devices;
use storage::Storage;

/// The default profile. Pods are bound through the informers' client.
pub fn default_framework(
    devices: &Arc<Devices>,
    storage: &Storage,
    informers: &Informers,
    recorder: &EventRecorder,
    supervisor: &Supervisor,
) -> Framework {
    let mut plugins = deciding();
    let mut insert = |before: &str, plugin: Box<dyn Plugin>| {
        let at = plugins.iter().position(|plugin| plugin.name() == before).unwrap_or(plugins.len());
        plugins.insert(at, plugin);
    };
    let before = "PodTopologySpread";
    insert(before, Box::new(volume_restrictions::VolumeRestrictions::new(storage.clone())));
    insert(before, Box::new(node_volume_limits::NodeVolumeLimits::new(storage.clone())));
    insert(before, Box::new(volume_binding::VolumeBinding::new(storage.clone(), informers)));
    insert(before, Box::new(volume_zone::VolumeZone::new(storage.clone())));
    let devices = DynamicResources::new(devices.clone(), informers, recorder.clone(), supervisor);
    insert("DefaultPreemption", Box::new(devices));
    plugins.push(Box::new(default_binder::DefaultBinder::new(informers.client())));
    plugins.push(Box::new(node_declared_features::NodeDeclaredFeatures));
    Framework::new(plugins)
}

/// Those that only decide, on nothing but a snapshot.
pub fn deciding() -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(scheduling_gates::SchedulingGates),
        Box::new(priority_sort::PrioritySort),
        Box::new(node_unschedulable::NodeUnschedulable),
        Box::new(node_name::NodeName),
        Box::new(taint_toleration::TaintToleration),
        Box::new(node_affinity::NodeAffinity),
        Box::new(node_ports::NodePorts),
        Box::new(node_resources_fit::NodeResourcesFit),
        Box::new(pod_topology_spread::PodTopologySpread),
        Box::new(inter_pod_affinity::InterPodAffinity),
        Box::new(default_preemption::DefaultPreemption),
        Box::new(balanced_allocation::NodeResourcesBalancedAllocation),
        Box::new(image_locality::ImageLocality),
    ]
}
