//! Which devices there are, and which container has them. Pure
//! (`pkg/kubelet/cm/devicemanager/manager.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceHealth, ResourceStatus};
use proto::v1beta1::Device;

use super::Given;
use super::plugin::Plugin;
use crate::node::status::DeviceCount;

type Ids = BTreeSet<String>;

#[derive(Default)]
pub struct Ledger {
    resources: BTreeMap<String, Resource>,
    /// By pod UID, container and resource.
    grants: BTreeMap<(String, String, String), Grant>,
}

#[derive(Default)]
struct Resource {
    plugin: Option<Arc<Plugin>>,
    healthy: Ids,
    unhealthy: Ids,
    /// Its plugin did not come back: it is shown as none, and no pod can have it.
    removed: bool,
    /// How often its plugin went.
    losses: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grant {
    pub devices: Ids,
    pub given: Given,
    /// By a process before this one: the machine may have been started anew since.
    inherited: bool,
}

/// So many devices for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub uid: String,
    pub container: String,
    pub resource: String,
    pub count: usize,
    /// Init containers of the pod that have ended when this one starts: what they have may be had again.
    pub after: Vec<String>,
}

/// What may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub size: usize,
    /// Devices that are the pod's already.
    pub included: Ids,
    pub available: Ids,
}

impl Choice {
    pub fn is_settled(&self) -> bool {
        self.included.len() >= self.size
    }

    /// The devices to give: the pod's own, those the plugin prefers, then any.
    pub fn settle(&self, preferred: &[String]) -> Ids {
        let preferred = preferred.iter().filter(|id| self.available.contains(*id));
        let mut chosen = Ids::new();
        for id in self.included.iter().chain(preferred).chain(&self.available) {
            if chosen.len() == self.size {
                break;
            }
            chosen.insert(id.clone());
        }
        chosen
    }
}

/// What the pod's containers wish of resources that plugins have or had.
pub fn wishes(pod: &Pod, ledger: &Ledger) -> Vec<Wish> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let (mut after, mut wishes) = (Vec::new(), Vec::new());
    for container in spec.init_containers.iter().flatten() {
        wishes.extend(of_container(&uid, container, &after, ledger));
        if !api::resources::is_sidecar(container) {
            after.push(container.name.clone());
        }
    }
    for container in &spec.containers {
        wishes.extend(of_container(&uid, container, &after, ledger));
    }
    wishes
}

fn of_container(uid: &str, container: &Container, after: &[String], ledger: &Ledger) -> Vec<Wish> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let known = limits.into_iter().flatten().filter(|(name, _)| ledger.knows(name));
    let wishes = known.map(|(resource, quantity)| Wish {
        uid: uid.to_owned(),
        container: container.name.clone(),
        resource: resource.clone(),
        count: usize::try_from(Quantity::from(quantity).units()).unwrap_or(0),
        after: after.to_vec(),
    });
    wishes.filter(|wish| wish.count > 0).collect()
}

impl Ledger {
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.grants.is_empty()
    }

    fn knows(&self, resource: &str) -> bool {
        self.resources.get(resource).is_some_and(|known| !known.removed)
            || self.grants.keys().any(|(_, _, held)| held == resource)
    }

    /// A resource of before a restart: none of it is there until its plugin is back.
    pub fn expect(&mut self, resource: &str) {
        self.resources.entry(resource.to_owned()).or_default();
    }

    pub fn resources(&self) -> impl Iterator<Item = (&String, &Ids)> {
        self.resources
            .iter()
            .filter(|(_, resource)| !resource.removed)
            .map(|(name, resource)| (name, &resource.healthy))
    }

    pub fn plugin(&self, resource: &str) -> Option<Arc<Plugin>> {
        self.resources.get(resource)?.plugin.clone()
    }

    /// Returns the plugin that had the resource before.
    pub fn register(&mut self, resource: &str, plugin: Arc<Plugin>) -> Option<Arc<Plugin>> {
        let known = self.resources.entry(resource.to_owned()).or_default();
        known.removed = false;
        known.plugin.replace(plugin)
    }

    fn own(&mut self, resource: &str, plugin: &Arc<Plugin>) -> Option<&mut Resource> {
        let known = self.resources.get_mut(resource)?;
        let same = known.plugin.as_ref().is_some_and(|current| Arc::ptr_eq(current, plugin));
        same.then_some(known)
    }

    /// What a plugin says that it has. Word of one that was replaced does not count.
    pub fn update(&mut self, resource: &str, plugin: &Arc<Plugin>, devices: &[Device]) {
        let Some(known) = self.own(resource, plugin) else { return };
        let (healthy, unhealthy): (Vec<&Device>, _) = devices.iter().partition(|device| device.health == "Healthy");
        let ids = |devices: Vec<&Device>| devices.into_iter().map(|device| device.id.clone()).collect();
        (known.healthy, known.unhealthy) = (ids(healthy), ids(unhealthy));
    }

    /// The plugin is gone. Returns which loss of the resource that is, if the plugin had it.
    pub fn lose(&mut self, resource: &str, plugin: &Arc<Plugin>) -> Option<u64> {
        let known = self.own(resource, plugin)?;
        known.plugin = None;
        known.losses += 1;
        let lost = std::mem::take(&mut known.healthy);
        known.unhealthy.extend(lost);
        Some(known.losses)
    }

    /// Nobody came back for a resource after this loss.
    pub fn remove(&mut self, resource: &str, loss: u64) {
        let known = self.resources.get_mut(resource);
        if let Some(known) = known.filter(|known| known.plugin.is_none() && known.losses == loss) {
            *known = Resource { removed: true, losses: loss, ..Resource::default() };
        }
    }

    /// The devices of a pod's containers, by container and resource, each with its health in Kubernetes' words.
    pub fn health(&self, uid: &str) -> BTreeMap<String, Vec<ResourceStatus>> {
        let mut found: BTreeMap<String, Vec<ResourceStatus>> = BTreeMap::new();
        for ((_, container, resource), grant) in self.grants.iter().filter(|((pod, _, _), _)| pod == uid) {
            let known = self.resources.get(resource);
            let health = |id: &String| match known {
                Some(known) if known.healthy.contains(id) => "Healthy",
                Some(known) if known.unhealthy.contains(id) => "Unhealthy",
                _ => "Unknown",
            };
            let devices = grant.devices.iter().map(|id| ResourceHealth {
                resource_id: id.clone(),
                health: Some(health(id).to_owned()),
                message: None,
            });
            let status = ResourceStatus { name: resource.clone(), resources: Some(devices.collect()) };
            found.entry(container.clone()).or_default().push(status);
        }
        found
    }

    /// The devices that work and those that do not, by resource.
    pub fn states(&self) -> BTreeMap<String, (Ids, Ids)> {
        let states = self.resources.iter();
        states.map(|(name, known)| (name.clone(), (known.healthy.clone(), known.unhealthy.clone()))).collect()
    }

    pub fn counts(&self) -> Vec<DeviceCount> {
        let count = |ids: &Ids| u64::try_from(ids.len()).unwrap_or(u64::MAX);
        let counted = self.resources.iter().map(|(name, resource)| DeviceCount {
            resource: name.clone(),
            all: count(&resource.healthy) + count(&resource.unhealthy),
            healthy: count(&resource.healthy),
        });
        counted.collect()
    }

    /// What may be given; none if the container has its devices already. Messages are Kubernetes'.
    pub fn choose(&self, wish: &Wish) -> Result<Option<Choice>, String> {
        let Wish { uid, container, resource, count, after } = wish;
        let key = (uid.clone(), container.clone(), resource.clone());
        let held = self.grants.get(&key);
        if let Some(held) = held.filter(|held| held.devices.len() != *count) {
            return Err(format!(
                "pod {uid:?} container {container:?} changed request for resource {resource:?} from {} to {count}",
                held.devices.len()
            ));
        }
        // It was admitted with them: what became of them since is for its containers to find out.
        if held.is_some_and(|held| !held.inherited) {
            return Ok(None);
        }
        let Some(known) = self.resources.get(resource).filter(|known| !known.removed) else {
            return Err(format!("cannot allocate unregistered device {resource}"));
        };
        if known.healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        if let Some(held) = held {
            return match held.devices.is_subset(&known.healthy) {
                true => Ok(None),
                false => Err(format!(
                    "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
                )),
            };
        }
        let of_pod = |ended: &String| self.grants.get(&(uid.clone(), ended.clone(), resource.clone()));
        let reusable: Ids = after.iter().filter_map(of_pod).flat_map(|grant| grant.devices.clone()).collect();
        // Another container of the pod may have it by now.
        let taken = self
            .grants
            .iter()
            .filter(|((pod, name, what), _)| what == resource && !(pod == uid && after.contains(name)));
        let taken: Ids = taken.flat_map(|(_, grant)| grant.devices.clone()).collect();
        let free = |ids: &Ids| {
            ids.iter().filter(|id| known.healthy.contains(*id) && !taken.contains(*id)).cloned().collect::<Ids>()
        };
        let included: Ids = free(&reusable).into_iter().take(*count).collect();
        let available: Ids = free(&known.healthy).difference(&reusable).cloned().collect();
        let missing = count - included.len();
        if available.len() < missing {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {missing}, Available: {}",
                available.len()
            ));
        }
        Ok(Some(Choice { size: *count, included, available }))
    }

    pub fn give(&mut self, wish: &Wish, devices: Ids, given: Given) {
        let key = (wish.uid.clone(), wish.container.clone(), wish.resource.clone());
        self.grants.insert(key, Grant { devices, given, inherited: false });
    }

    /// Takes one grant back.
    pub fn take_back(&mut self, wish: &Wish) {
        self.grants.remove(&(wish.uid.clone(), wish.container.clone(), wish.resource.clone()));
    }

    /// What the pod has of before is its own in this process too.
    pub fn confirm(&mut self, uid: &str) {
        let own = self.grants.iter_mut().filter(|((pod, _, _), _)| pod == uid);
        own.for_each(|(_, grant)| grant.inherited = false);
    }

    pub fn grants(&self) -> impl Iterator<Item = (&(String, String, String), &Grant)> {
        self.grants.iter()
    }

    /// What a process before this one gave.
    pub fn restore(&mut self, key: (String, String, String), devices: Ids, given: Given) {
        self.grants.insert(key, Grant { devices, given, inherited: true });
    }

    pub fn held(&self, uid: &str, container: &str) -> Vec<(String, Ids, Given)> {
        let own = self.grants.iter().filter(|((pod, name, _), _)| pod == uid && name == container);
        own.map(|((_, _, resource), grant)| (resource.clone(), grant.devices.clone(), grant.given.clone())).collect()
    }

    pub fn pods(&self) -> impl Iterator<Item = &str> {
        self.grants.keys().map(|(uid, _, _)| uid.as_str())
    }

    pub fn holds(&self, uid: &str) -> bool {
        self.pods().any(|pod| pod == uid)
    }

    pub fn release(&mut self, ended: impl Fn(&str) -> bool) {
        self.grants.retain(|(uid, _, _), _| !ended(uid));
    }
}

/// Puts what one plugin gives to what others gave. What came first stays.
pub fn add(all: &mut Given, more: Given) {
    for (key, value) in more.envs {
        all.envs.entry(key).or_insert(value);
    }
    for (key, value) in more.annotations {
        all.annotations.entry(key).or_insert(value);
    }
    let mounted = |path: &String, all: &Given| all.mounts.iter().any(|mount| mount.container_path == *path);
    for mount in more.mounts {
        if !mounted(&mount.container_path, all) {
            all.mounts.push(mount);
        }
    }
    for device in more.devices {
        if all.devices.iter().all(|known| known.container_path != device.container_path) {
            all.devices.push(device);
        }
    }
    for device in more.cdi_devices {
        if !all.cdi_devices.contains(&device) {
            all.cdi_devices.push(device);
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
