//! Extended resources that are devices: a class offers its devices under a resource's name, and a
//! pod that asks for the resource gets them by a claim of its own
//! (`extendeddynamicresources.go`).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use api::quantity::Quantity;

use crate::devices::random_uuid;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::resource::CLASS_PREFIX;

const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";

/// Classes by the names of the resources that they offer.
pub type Classes = BTreeMap<String, String>;

/// The resources of a pod that devices stand behind.
pub struct Extended {
    /// Everything not Kubernetes' own that the pod asks for.
    asked: Vec<(String, i64)>,
    classes: Classes,
    /// Its claim: one in memory, or one that an earlier try left.
    pub claim: Arc<ResourceClaim>,
}

/// What a node gives of them as devices.
pub enum OnNode {
    /// Nothing: it has device plugins for all.
    Nothing,
    /// This claim is to be met.
    Claim(Arc<ResourceClaim>, Vec<ContainerExtendedResourceRequest>),
    Refused(&'static str),
}

/// Of classes that offer the same resource the newest counts.
pub fn classes(mut all: Vec<Arc<DeviceClass>>) -> Classes {
    all.sort_by(|a, b| {
        let created = |class: &DeviceClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        created(a).cmp(&created(b)).then_with(|| b.metadata.name.cmp(&a.metadata.name))
    });
    let mut classes = Classes::new();
    for class in all {
        let name = class.metadata.name.clone().unwrap_or_default();
        classes.extend(names(&class).map(|resource| (resource, name.clone())));
    }
    classes
}

/// The resources that a class offers its devices as.
fn names(class: &DeviceClass) -> impl Iterator<Item = String> {
    let given = class.spec.as_ref().and_then(|spec| spec.extended_resource_name.clone());
    let own = format!("{CLASS_PREFIX}{}", class.metadata.name.as_deref().unwrap_or_default());
    given.into_iter().chain([own])
}

/// Whether a class offers something that the pod asks for as a resource.
pub fn is_offered(class: &DeviceClass, pod: &PodInfo) -> bool {
    names(class).any(|offered| pod.extended_resources().any(|(asked, _)| asked == offered))
}

/// Whether this is the pod's claim for its extended resources.
pub fn is_claim_of(claim: &ResourceClaim, pod: &PodInfo) -> bool {
    let marked =
        claim.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION)).is_some_and(|mark| mark == "true");
    let mut owners = claim.metadata.owner_references.iter().flatten();
    marked && owners.any(|owner| owner.controller == Some(true) && owner.uid == *pod.uid)
}

/// A claim that exists in memory only has no name.
pub fn is_in_memory(claim: &ResourceClaim) -> bool {
    claim.metadata.name.is_none()
}

impl Extended {
    /// None: no device stands behind anything that the pod asks for. `left` finds the claim that an
    /// earlier try left.
    pub fn of(pod: &PodInfo, classes: Classes, left: impl FnOnce() -> Option<Arc<ResourceClaim>>) -> Option<Self> {
        let asked: Vec<_> = pod.extended_resources().map(|(name, amount)| (name.to_owned(), amount)).collect();
        if !asked.iter().any(|(name, _)| classes.contains_key(name)) {
            return None;
        }
        Some(Self { asked, classes, claim: left().unwrap_or_else(|| Arc::new(in_memory(pod))) })
    }

    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.asked.iter().map(|(name, _)| name.as_str()).filter(|name| self.classes.contains_key(*name))
    }

    pub fn on_node(&self, pod: &PodInfo, node: &NodeInfo) -> OnNode {
        if !is_in_memory(&self.claim) {
            // It is deleted when the pod fits nowhere.
            return OnNode::Refused("cannot schedule extended resource claim");
        }
        let mut from_devices: Vec<(&str, &str)> = Vec::new();
        for (name, _) in &self.asked {
            let allocatable = node.allocatable.others.get(name);
            match self.classes.get(name) {
                Some(class) if allocatable.is_none_or(|amount| *amount == 0) => from_devices.push((name, class)),
                _ if allocatable.is_none() => return OnNode::Refused("cannot fit resource"),
                _ => {}
            }
        }
        if from_devices.is_empty() {
            return OnNode::Nothing;
        }
        let (requests, mappings) = requests(pod, &from_devices);
        let mut claim = ResourceClaim::clone(&self.claim);
        let devices = DeviceClaim { requests: Some(requests), ..DeviceClaim::default() };
        claim.spec = Some(ResourceClaimSpec { devices: Some(devices) });
        OnNode::Claim(Arc::new(claim), mappings)
    }
}

fn in_memory(pod: &PodInfo) -> ResourceClaim {
    ResourceClaim {
        metadata: ObjectMeta {
            namespace: Some(pod.namespace.clone()),
            generate_name: Some(format!("{}-extended-resources-", pod.name)),
            // Tells promises apart; the server gives another.
            uid: Some(random_uuid()),
            annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: pod.name.clone(),
                uid: pod.uid.to_string(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        ..ResourceClaim::default()
    }
}

/// A container's place among init containers and containers, and whether it stays.
struct Place<'a> {
    at: usize,
    container: &'a Container,
    stays: bool,
}

fn containers(pod: &PodInfo) -> Vec<Place<'_>> {
    let Some(spec) = pod.spec() else { return Vec::new() };
    let init =
        spec.init_containers.iter().flatten().map(|container| (container, api::resources::is_sidecar(container)));
    let all = init.chain(spec.containers.iter().map(|container| (container, true)));
    all.enumerate().map(|(at, (container, stays))| Place { at, container, stays }).collect()
}

/// A request per container and resource. Init containers that end use the devices of those that
/// come after them, and only what they need more is asked for: once, for the one that needs most.
fn requests(pod: &PodInfo, resources: &[(&str, &str)]) -> (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let places = containers(pod);
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in resources {
        let mut staying: Vec<(usize, DeviceRequest)> = Vec::new();
        for place in places.iter().filter(|place| place.stays) {
            let (request, used) = request(place, resource, class, &[]);
            staying.extend(request.map(|request| (place.at, request)));
            mappings.extend(used);
        }
        let mut most: Option<DeviceRequest> = None;
        let (mut passing, mut names) = (Vec::new(), Vec::new());
        for place in places.iter().filter(|place| !place.stays) {
            let later: Vec<&DeviceRequest> =
                staying.iter().filter(|(at, _)| *at >= place.at).map(|(_, request)| request).collect();
            let (request, used) = request(place, resource, class, &later);
            passing.extend(used);
            if let Some(request) = request {
                names.push(request.name.clone());
                if most.as_ref().is_none_or(|most| count(most) < count(&request)) {
                    most = Some(request);
                }
            }
        }
        for mapping in passing.iter_mut().filter(|mapping| names.contains(&mapping.request_name)) {
            mapping.request_name = most.as_ref().map(|most| most.name.clone()).unwrap_or_default();
        }
        requests.extend(most);
        requests.extend(staying.into_iter().map(|(_, request)| request));
        mappings.extend(passing);
    }
    requests.sort_by(|a, b| a.name.cmp(&b.name));
    (requests, mappings)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|exactly| exactly.count).unwrap_or(0)
}

/// What one container asks for beyond the requests whose devices it can use, and all that it uses.
fn request(
    place: &Place<'_>,
    resource: &str,
    class: &str,
    usable: &[&DeviceRequest],
) -> (Option<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let asked = place.container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let Some(wanted) = asked.and_then(|asked| asked.get(resource)).map(|amount| Quantity::from(amount).units()) else {
        return (None, Vec::new());
    };
    let mapping = |request: &str| ContainerExtendedResourceRequest {
        container_name: place.container.name.clone(),
        request_name: request.to_owned(),
        resource_name: resource.to_owned(),
    };
    let (mut found, mut mappings) = (0, Vec::new());
    for request in usable {
        if found >= wanted {
            break;
        }
        found = count(request).saturating_add(found);
        mappings.push(mapping(&request.name));
    }
    if wanted <= found {
        return (None, mappings);
    }
    // Names of a container's resources, in order.
    let nth = asked.and_then(|asked| asked.keys().position(|name| name == resource)).unwrap_or(0);
    let name = format!("container-{}-request-{nth}", place.at);
    mappings.push(mapping(&name));
    let exactly = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".to_owned()),
        count: Some(wanted - found),
        ..ExactDeviceRequest::default()
    };
    (Some(DeviceRequest { name, exactly: Some(exactly), first_available: None }), mappings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::{Value, json};

    fn asking(amount: i64) -> Value {
        json!({"requests": {"cpu": "1", "x.io/gpu": amount.to_string()}})
    }

    /// `name=count` of each request, and `container→request` of each mapping.
    fn asked(spec: Value) -> (Vec<String>, Vec<String>) {
        let (requests, mappings) = requests(&pod(spec), &[("x.io/gpu", "gpu")]);
        let requests = requests.iter().map(|request| format!("{}={}", request.name, count(request)));
        let mappings = mappings.iter().map(|used| format!("{}→{}", used.container_name, used.request_name));
        (requests.collect(), mappings.collect())
    }

    #[test]
    fn each_container_asks_for_its_own() {
        let spec = json!({"containers": [
            {"name": "a", "resources": asking(2)}, {"name": "b"}, {"name": "c", "resources": asking(1)}]});
        let (requests, mappings) = asked(spec);
        assert_eq!(requests, ["container-0-request-1=2", "container-2-request-1=1"]);
        assert_eq!(mappings, ["a→container-0-request-1", "c→container-2-request-1"]);
    }

    #[test]
    fn init_containers_use_the_devices_of_those_that_come_later() {
        let init = |amounts: &[i64]| {
            let init = amounts.iter().enumerate();
            let init = init.map(|(at, amount)| json!({"name": format!("i{at}"), "resources": asking(*amount)}));
            json!({"initContainers": init.collect::<Vec<_>>(), "containers": [{"name": "c", "resources": asking(2)}]})
        };
        let (requests, mappings) = asked(init(&[1]));
        assert_eq!(requests, ["container-1-request-1=2"]);
        assert_eq!(mappings, ["c→container-1-request-1", "i0→container-1-request-1"]);
        // What is more is asked for once, for the one that needs most.
        let (requests, mappings) = asked(init(&[3, 5]));
        assert_eq!(requests, ["container-1-request-1=3", "container-2-request-1=2"]);
        assert_eq!(
            mappings,
            [
                "c→container-2-request-1",
                "i0→container-2-request-1",
                "i0→container-1-request-1",
                "i1→container-2-request-1",
                "i1→container-1-request-1",
            ]
        );
    }

    #[test]
    fn counts_stay_at_their_limit() {
        let huge = || json!({"requests": {"x.io/gpu": i64::MAX.to_string()}});
        let spec = json!({"initContainers": [{"name": "i", "resources": huge()}],
            "containers": [{"name": "a", "resources": huge()}, {"name": "b", "resources": huge()}]});
        assert_eq!(asked(spec).0.len(), 2);
    }

    fn class(name: &str, created: &str, resource: Option<&str>) -> Arc<DeviceClass> {
        let class = json!({"metadata": {"name": name, "creationTimestamp": created},
            "spec": {"extendedResourceName": resource}});
        Arc::new(serde_json::from_value(class).unwrap())
    }

    #[test]
    fn the_newest_class_offers_a_resource() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let offered = classes(vec![
            class("late", new, Some("x.io/gpu")),
            class("early", old, Some("x.io/gpu")),
            class("b", old, Some("x.io/nic")),
            class("a", old, Some("x.io/nic")),
        ]);
        assert_eq!((offered["x.io/gpu"].as_str(), offered["x.io/nic"].as_str()), ("late", "a"));
        assert_eq!(offered["deviceclass.resource.kubernetes.io/early"], "early");
        let pod = pod(json!({"containers": [{"name": "c", "resources": asking(1)}]}));
        assert!(is_offered(&class("c", new, Some("x.io/gpu")), &pod) && !is_offered(&class("c", new, None), &pod));
    }

    #[test]
    fn a_node_gives_by_itself_what_it_has() {
        let pod = pod(json!({"containers": [{"name": "c", "resources": asking(1)}]}));
        let class = class("gpu", "2026-01-01T00:00:00Z", Some("x.io/gpu"));
        let extended = Extended::of(&pod, classes(vec![class]), || None).unwrap();
        let has = |amount: &str| node("n", json!({"status": {"allocatable": {"x.io/gpu": amount}}}));
        assert!(matches!(extended.on_node(&pod, &has("4")), OnNode::Nothing));
        for node in [has("0"), node("n", json!({}))] {
            assert!(matches!(extended.on_node(&pod, &node), OnNode::Claim(_, mappings) if mappings.len() == 1));
        }
        let left = || {
            Some(Arc::new(ResourceClaim {
                metadata: ObjectMeta { name: Some("p-1".into()), ..ObjectMeta::default() },
                ..ResourceClaim::default()
            }))
        };
        let extended = Extended::of(&pod, extended.classes, left).unwrap();
        assert!(matches!(extended.on_node(&pod, &node("n", json!({}))), OnNode::Refused(_)), "it has to go first");
    }
}
