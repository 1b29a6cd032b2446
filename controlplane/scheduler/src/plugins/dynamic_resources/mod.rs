//! DynamicResources: a pod goes where the devices of its claims are, or can be allocated.
//!
//! [`claims`] finds the pod's claims, [`extended`] what it asks for as plain resources; `devices`
//! (beside `plugins`) chooses; [`caches`] remembers what was chosen until it is written and seen, so
//! that no device is given twice; [`binding`] writes.

mod binding;
pub mod caches;
mod claims;
pub mod extended;
mod hints;
mod readiness;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::{EventRecorder, Informer, Informers, Supervisor};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerExtendedResourceRequest, Node};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use kube::Client;
use parking_lot::Mutex;

use crate::cluster::Snapshot;
use crate::cycle::Failed;
use crate::devices::{Failure, Inventory, Task, allocate, results};
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Effects, Plugin, Point, PostFilter, PreFilter, Rejection, normalize};
use crate::node::NodeInfo;
use crate::node_selector::NodeTerm;
use crate::pod::PodInfo;
use caches::{Devices, Promise, Watched, is_allocated};
use extended::{Extended, OnNode};

pub const CANNOT_ALLOCATE: &str = "cannot allocate all claims";
pub const UNAVAILABLE: &str = "resourceclaim not available on the node";
pub const TIMED_OUT: &str = "timed out trying to allocate devices";
pub const NOT_WATCHED: &str = "waiting for the cluster's devices to be known";
pub const NO_CLAIMS: &str = "no new claims to deallocate";
pub const DEALLOCATED: &str = "deallocation of ResourceClaim completed";
pub const DELETED: &str = "deletion of ResourceClaim completed";
pub const STILL_NOT: &str = "still not schedulable";

/// How long devices are looked for in one cycle. Upstream gives each node as long, but tries many at
/// once; here one pod would hold up all others for that long times the nodes.
const LONGEST_SEARCH: Duration = Duration::from_secs(10);
/// Alternatives of a request, at most.
const MOST_OPTIONS: usize = 8;

pub struct DynamicResources {
    devices: Arc<Devices>,
    nodes: Informer<Node>,
    client: Client,
    recorder: EventRecorder,
    supervisor: Supervisor,
}

/// Resources that nodes without a device plugin for them give as devices: not for NodeResourcesFit to
/// look at.
pub struct Delegated(BTreeSet<String>);

impl Delegated {
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// The pod's claims in this cycle.
struct Wanted {
    claims: Vec<Arc<ResourceClaim>>,
    /// Of allocated claims: where they can be used.
    places: Vec<Option<Vec<NodeTerm>>>,
    extended: Option<Extended>,
    /// None: nothing has to be allocated.
    inventory: Option<Inventory>,
    /// When to stop looking for devices, on whatever node.
    deadline: Instant,
    /// How good the alternatives are that a node got, by its name.
    scores: Mutex<HashMap<String, i64>>,
    /// Positions of claims that kept a node from being used.
    unavailable: Mutex<BTreeSet<usize>>,
}

/// What a node can give: claims with their allocations.
#[derive(Default)]
struct Found {
    allocated: Vec<(Arc<ResourceClaim>, AllocationResult)>,
    mappings: Vec<ContainerExtendedResourceRequest>,
}

impl DynamicResources {
    pub fn new(devices: Arc<Devices>, informers: &Informers, recorder: EventRecorder, supervisor: &Supervisor) -> Self {
        let (nodes, client) = (informers.of(), informers.client());
        Self { devices, nodes, client, recorder, supervisor: supervisor.child("devices") }
    }

    /// None: the pod needs no devices. The error says what it waits for.
    fn wanted(&self, pod: &PodInfo, since: Instant) -> Result<Option<Wanted>, String> {
        let watched = self.devices.known().ok_or_else(|| NOT_WATCHED.to_owned())?;
        let claims = claims::of_pod(&self.devices, watched, pod)?;
        let extended = self.extended(watched, pod);
        if claims.is_empty() && extended.is_none() {
            return Ok(None);
        }
        if claims
            .iter()
            .any(|claim| is_allocated(claim) && claims::is_full(claim) && !claims::is_reserved_for(claim, pod))
        {
            return Err("resourceclaim in use".to_owned());
        }
        for claim in claims.iter().filter(|claim| !is_allocated(claim)) {
            if self.devices.is_promised(claim) {
                let (namespace, name) = (&pod.namespace, claim.metadata.name.as_deref().unwrap_or_default());
                return Err(format!("resource claim {namespace}/{name} is in the process of being allocated"));
            }
            for (request, class) in claims::classes(claim) {
                if watched.classes.get("", class).is_none() {
                    return Err(format!("request {request}: device class {class} does not exist"));
                }
            }
        }
        let allocates = extended.is_some() || claims.iter().any(|claim| !is_allocated(claim));
        let inventory = allocates.then(|| Inventory::new(self.devices.stock(watched), &self.devices.taken(watched)));
        let places = claims.iter().map(|claim| place(claim)).collect();
        let (scores, unavailable) = (Mutex::default(), Mutex::default());
        let deadline = since + LONGEST_SEARCH;
        Ok(Some(Wanted { claims, places, extended, inventory, deadline, scores, unavailable }))
    }

    fn extended(&self, watched: &Watched, pod: &PodInfo) -> Option<Extended> {
        pod.extended_resources().next()?;
        let left = || watched.claims.list().into_iter().find(|claim| extended::is_claim_of(claim, pod));
        Extended::of(pod, extended::classes(watched.classes.list()), left)
    }

    /// What a node would give.
    fn find(&self, wanted: &Wanted, pod: &PodInfo, node: &NodeInfo) -> Result<Found, Rejection> {
        let mut claims: Vec<_> = wanted.claims.iter().filter(|claim| !is_allocated(claim)).cloned().collect();
        let mut mappings = Vec::new();
        if let Some(extended) = &wanted.extended {
            match extended.on_node(pod, node) {
                OnNode::Nothing => {}
                OnNode::Refused(why) => return Err(Rejection::unresolvable(why)),
                OnNode::Claim(claim, used) => {
                    claims.push(claim);
                    mappings = used;
                }
            }
        }
        let (Some(inventory), Some(watched)) = (&wanted.inventory, self.devices.known()) else {
            return Ok(Found::default());
        };
        if claims.is_empty() {
            return Ok(Found::default());
        }
        let task = Task {
            inventory,
            classes: &|name| watched.classes.get("", name),
            selectors: &self.devices.selectors,
            node: &node.node,
            deadline: Some(wanted.deadline),
        };
        let allocations = allocate(&task, &claims).map_err(|failure| match failure {
            Failure::Timeout => Rejection::unresolvable(TIMED_OUT),
            Failure::Node(why) => Rejection::unresolvable(why),
            Failure::Broken(why) => Rejection::failure(why),
        })?;
        let allocations = allocations.ok_or_else(|| Rejection::unresolvable(CANNOT_ALLOCATE))?;
        Ok(Found { allocated: claims.into_iter().zip(allocations).collect(), mappings })
    }

    /// Whether a claim that was allocated earlier can be used on a node.
    fn is_usable(claim: &ResourceClaim, place: Option<&Vec<NodeTerm>>, node: &NodeInfo) -> bool {
        let here = place.is_none_or(|terms| terms.iter().any(|term| term.matches(&node.node)));
        here && (!is_allocated(claim) || readiness::may_become_ready(claim, Timestamp::now()))
    }
}

fn place(claim: &ResourceClaim) -> Option<Vec<NodeTerm>> {
    let selector = claim.status.as_ref()?.allocation.as_ref()?.node_selector.as_ref()?;
    Some(selector.node_selector_terms.iter().map(NodeTerm::of).collect())
}

/// More for alternatives that stand earlier in a request.
fn score(found: &Found) -> i64 {
    let mut score = 0;
    for (claim, allocation) in &found.allocated {
        let chosen = |name: &str| results(allocation).iter().any(|result| result.request == name);
        let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
        for request in devices.iter().flat_map(|devices| devices.requests.iter().flatten()) {
            for (at, option) in request.first_available.iter().flatten().enumerate() {
                if chosen(&format!("{}/{}", request.name, option.name)) {
                    score += (MOST_OPTIONS.saturating_sub(at)) as i64;
                }
            }
        }
    }
    score
}

fn has_alternatives(claim: &ResourceClaim) -> bool {
    let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
    let mut requests = devices.iter().flat_map(|devices| devices.requests.iter().flatten());
    requests.any(|request| request.first_available.is_some())
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn points(&self) -> &'static [Point] {
        &[
            Point::PreEnqueue,
            Point::PreFilter,
            Point::Filter,
            Point::PostFilter,
            Point::PreScore,
            Point::Score,
            Point::Reserve,
            Point::PreBind,
            Point::PostBind,
        ]
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), String> {
        if !pod.may_need_devices() {
            return Ok(());
        }
        let watched = self.devices.known().ok_or_else(|| NOT_WATCHED.to_owned())?;
        claims::of_pod(&self.devices, watched, pod).map(drop)
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        if !pod.may_need_devices() {
            return PreFilter::Skip;
        }
        match self.wanted(pod, snapshot.taken.unwrap_or_else(Instant::now)) {
            Ok(None) => PreFilter::Skip,
            Ok(Some(wanted)) => {
                if let Some(extended) = &wanted.extended {
                    state.put(Delegated(extended.resources().map(str::to_owned).collect()));
                }
                state.put(wanted);
                PreFilter::Go
            }
            Err(why) => PreFilter::Reject(Rejection::unresolvable(why)),
        }
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(wanted) = state.get::<Wanted>() else { return Ok(()) };
        let found = self.find(wanted, pod, node)?;
        let claims = wanted.claims.iter().zip(&wanted.places).enumerate();
        let unusable = claims.filter(|(_, (claim, place))| !Self::is_usable(claim, place.as_ref(), node));
        let unusable: Vec<usize> = unusable.map(|(at, _)| at).collect();
        if !unusable.is_empty() {
            wanted.unavailable.lock().extend(unusable);
            return Err(Rejection::unresolvable(UNAVAILABLE));
        }
        wanted.scores.lock().insert(node.name.clone(), score(&found));
        Ok(())
    }

    fn post_filter(&self, failed: &Failed<'_>) -> PostFilter {
        let Some(wanted) = failed.state.get::<Wanted>() else { return PostFilter::Nothing(NO_CLAIMS.to_owned()) };
        let unavailable = wanted.unavailable.lock();
        let mut unavailable = unavailable.iter().filter_map(|at| wanted.claims.get(*at));
        let text = if let Some(claim) = unavailable.find(|claim| claims::is_only_for(claim, &failed.pod.uid)) {
            self.deallocate_later(claim, failed.pod);
            DEALLOCATED
        } else if let Some(left) = wanted.extended.as_ref().filter(|left| !extended::is_in_memory(&left.claim)) {
            self.delete_later(&left.claim);
            DELETED
        } else {
            STILL_NOT
        };
        PostFilter::Nothing(text.to_owned())
    }

    fn pre_score(&self, state: &mut CycleState, _pod: &PodInfo, _snapshot: &Snapshot, _nodes: &[usize]) -> bool {
        state.get::<Wanted>().is_some_and(|wanted| wanted.claims.iter().any(|claim| has_alternatives(claim)))
    }

    fn score(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        state.get::<Wanted>().and_then(|wanted| wanted.scores.lock().get(&node.name).copied()).unwrap_or(0)
    }

    fn normalize(&self, _state: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        normalize(scores, false);
    }

    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        if !pod.may_need_devices() {
            return Ok(());
        }
        let Some(wanted) = self.wanted(pod, Instant::now())? else { return Ok(()) };
        let node = self.nodes.get("", node).ok_or_else(|| format!("node \"{node}\" is gone"))?;
        let found = self.find(&wanted, pod, &NodeInfo::new(node)).map_err(|rejection| rejection.reasons.join(", "))?;
        let Found { allocated, mappings } = found;
        let promise = |(claim, allocation): (Arc<ResourceClaim>, _)| {
            let mappings = if extended::is_in_memory(&claim) { mappings.clone() } else { Vec::new() };
            Promise { claim, allocation, mappings }
        };
        self.devices.promise(&pod.uid, allocated.into_iter().map(promise).collect());
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _node: &str) {
        self.devices.forget(&pod.uid);
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        hints::helps(&self.devices, pod, event)
    }

    fn effects(&self) -> Option<&dyn Effects> {
        Some(self)
    }
}
