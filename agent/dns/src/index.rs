//! Services, endpoints and namespaces as names need them. Synchronous; fed by the informers' handlers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Namespace and name.
pub type Key = (String, String);

/// A named port; protocol in lower case, as in SRV names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    pub protocol: String,
    pub number: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceNames {
    /// Empty for headless and ExternalName Services.
    pub cluster_ips: Vec<IpAddr>,
    pub external_name: Option<String>,
    pub headless: bool,
    pub publish_not_ready: bool,
    pub ports: Vec<Port>,
}

/// One ready (or published anyway) endpoint address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointName {
    pub hostname: String,
    pub address: IpAddr,
    pub ready: bool,
    pub ports: Vec<Port>,
}

#[derive(Debug, Default)]
pub struct Index {
    /// The informers have their first lists: a name that is not here does not exist.
    pub complete: bool,
    services: HashMap<Key, ServiceNames>,
    /// Per Service, per slice.
    endpoints: HashMap<Key, BTreeMap<String, Vec<EndpointName>>>,
    namespaces: HashSet<String>,
    by_cluster_ip: HashMap<IpAddr, Key>,
    by_endpoint: HashMap<IpAddr, HashSet<Key>>,
}

fn key_of_service(service: &Service) -> Key {
    (service.metadata.namespace.clone().unwrap_or_default(), service.metadata.name.clone().unwrap_or_default())
}

fn protocol(name: Option<&String>) -> String {
    name.map_or("tcp".to_owned(), |name| name.to_ascii_lowercase())
}

/// The name of an endpoint without a hostname: its address with dashes.
pub fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => address.to_string().replace('.', "-"),
        IpAddr::V6(_) => address.to_string().replace(':', "-"),
    }
}

impl Index {
    /// Empty, and known to be.
    #[cfg(test)]
    pub fn known() -> Self {
        Self { complete: true, ..Self::default() }
    }

    pub fn apply_namespace(&mut self, namespace: &Namespace) {
        self.namespaces.extend(namespace.metadata.name.clone());
    }

    pub fn remove_namespace(&mut self, namespace: &Namespace) {
        if let Some(name) = &namespace.metadata.name {
            self.namespaces.remove(name);
        }
    }

    pub fn apply_service(&mut self, service: &Service) {
        self.remove_service(service);
        let Some(spec) = &service.spec else { return };
        let key = key_of_service(service);
        let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let external = spec.type_.as_deref() == Some("ExternalName");
        let mut cluster_ips: Vec<IpAddr> = ips.filter_map(|text| text.parse().ok()).collect();
        cluster_ips.dedup();
        if external {
            cluster_ips.clear();
        }
        for ip in &cluster_ips {
            self.by_cluster_ip.insert(*ip, key.clone());
        }
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_ref()),
                number: u16::try_from(port.port).ok()?,
            })
        });
        let names = ServiceNames {
            headless: cluster_ips.is_empty() && !external,
            cluster_ips,
            external_name: spec.external_name.clone().filter(|_| external),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            ports: ports.collect(),
        };
        self.services.insert(key, names);
    }

    pub fn remove_service(&mut self, service: &Service) {
        let key = key_of_service(service);
        let Some(old) = self.services.remove(&key) else { return };
        for ip in &old.cluster_ips {
            if self.by_cluster_ip.get(ip) == Some(&key) {
                self.by_cluster_ip.remove(ip);
            }
        }
    }

    /// `old` goes by its own labels: they may have named another Service.
    pub fn change_slice(&mut self, old: Option<&EndpointSlice>, new: Option<&EndpointSlice>) {
        if let Some(old) = old {
            self.remove_slice(old);
        }
        if let Some(new) = new {
            self.apply_slice(new);
        }
    }

    pub fn apply_slice(&mut self, slice: &EndpointSlice) {
        self.remove_slice(slice);
        let Some((key, name)) = slice_key(slice) else { return };
        let ports: Vec<Port> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(Port {
                    name: port.name.clone().unwrap_or_default(),
                    protocol: protocol(port.protocol.as_ref()),
                    number: u16::try_from(port.port?).ok()?,
                })
            })
            .collect();
        let mut found = Vec::new();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            for address in endpoint.addresses.iter().filter_map(|text| text.parse().ok()) {
                let hostname = endpoint.hostname.clone().filter(|name| !name.is_empty());
                let hostname = hostname.unwrap_or_else(|| dashed(address));
                self.by_endpoint.entry(address).or_default().insert(key.clone());
                found.push(EndpointName { hostname, address, ready, ports: ports.clone() });
            }
        }
        self.endpoints.entry(key).or_default().insert(name, found);
    }

    pub fn remove_slice(&mut self, slice: &EndpointSlice) {
        let Some((key, name)) = slice_key(slice) else { return };
        let Some(slices) = self.endpoints.get_mut(&key) else { return };
        let old = slices.remove(&name).unwrap_or_default();
        let left: HashSet<IpAddr> = slices.values().flatten().map(|endpoint| endpoint.address).collect();
        if slices.is_empty() {
            self.endpoints.remove(&key);
        }
        for address in old.iter().map(|endpoint| endpoint.address).filter(|address| !left.contains(address)) {
            if let Some(keys) = self.by_endpoint.get_mut(&address) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_endpoint.remove(&address);
                }
            }
        }
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceNames> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Pods have names in every namespace that exists, also in one without a Service.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// The endpoints that may be published, each address once.
    pub fn endpoints(&self, namespace: &str, name: &str) -> Vec<&EndpointName> {
        let key = (namespace.to_owned(), name.to_owned());
        let everything = self.services.get(&key).is_some_and(|service| service.publish_not_ready);
        let mut seen = HashSet::new();
        let slices = self.endpoints.get(&key).into_iter().flat_map(BTreeMap::values).flatten();
        slices.filter(|endpoint| (endpoint.ready || everything) && seen.insert(endpoint.address)).collect()
    }

    /// The Service that has this cluster IP.
    pub fn service_at(&self, ip: IpAddr) -> Option<&Key> {
        self.by_cluster_ip.get(&ip)
    }

    /// The Services that this address is an endpoint of, in order.
    pub fn services_of_endpoint(&self, ip: IpAddr) -> Vec<&Key> {
        let mut keys: Vec<&Key> = self.by_endpoint.get(&ip).into_iter().flatten().collect();
        keys.sort();
        keys
    }
}

fn slice_key(slice: &EndpointSlice) -> Option<(Key, String)> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    Some(((namespace, service.clone()), slice.metadata.name.clone().unwrap_or_default()))
}
