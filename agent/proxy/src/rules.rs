//! (Services, EndpointSlices, this node) → [`Rules`]. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort as SpecPort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use crate::model::{Endpoint, HealthCheck, PortName, Protocol, Rules, ServicePort};

/// Other implementations claim Services and slices with this label.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// On slices by their controller; on a Service it keeps proxies away although it has an address.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// This node, as far as Services care.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    pub name: String,
    /// Its `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// The cluster DNS address: answered on the node itself, so no packet to it is redirected.
    pub served_here: Option<Ipv4Addr>,
}

/// One endpoint of a slice with what decides about its use.
#[derive(Debug, Clone)]
struct Candidate<'a> {
    endpoint: Endpoint,
    source: &'a SliceEndpoint,
    ready: bool,
    serving: bool,
    terminating: bool,
}

type Slices<'a> = HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>;

pub fn build(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], node: &NodeView) -> Rules {
    let by_service = group(slices);
    let mut rules = Rules::default();
    for service in services {
        let Some((spec, cluster_ip)) = proxied(service) else { continue };
        if node.served_here == Some(cluster_ip) {
            continue;
        }
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let slices = by_service.get(&(namespace, name)).map_or(&[][..], Vec::as_slice);
        let mut local_ready = BTreeSet::new();
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
            let Ok(number) = u16::try_from(port.port) else { continue };
            let id = PortName {
                namespace: namespace.to_owned(),
                service: name.to_owned(),
                port: port.name.clone().unwrap_or_default(),
                protocol,
            };
            let candidates = candidates(slices, port.name.as_deref().unwrap_or_default(), node);
            let mut built = service_port(service, spec, port, cluster_ip, number);
            categorize(&mut built, &candidates, node);
            let ready_here = candidates.iter().filter(|each| each.ready && each.endpoint.local);
            local_ready.extend(ready_here.map(|each| each.endpoint.address));
            if protocol == Protocol::Udp {
                let serving = candidates.iter().filter(|each| each.ready || each.serving);
                built.serving_endpoints = serving.map(|each| each.endpoint.clone()).collect();
            }
            rules.ports.insert(id, built);
        }
        if let Some(port) = health_check_port(spec) {
            let local_endpoints = local_ready.len();
            let check = HealthCheck { namespace: namespace.to_owned(), service: name.to_owned(), local_endpoints };
            rules.health_checks.insert(port, check);
        }
    }
    rules
}

/// A Service or slice that is not this proxy's, as its label says.
fn foreign(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL) || labels.contains_key(HEADLESS_LABEL))
}

/// Whether `address` is one of this node's Services to redirect; none for headless and
/// ExternalName Services and those of another proxy.
fn proxied(service: &Service) -> Option<(&ServiceSpec, Ipv4Addr)> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") || foreign(service.metadata.labels.as_ref()) {
        return None;
    }
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let address = ips.filter_map(|text| text.parse().ok()).next()?;
    Some((spec, address))
}

fn group(slices: &[Arc<EndpointSlice>]) -> Slices<'_> {
    let mut by_service: Slices<'_> = HashMap::new();
    for slice in slices {
        let Some(labels) = &slice.metadata.labels else { continue };
        if slice.address_type != "IPv4" || foreign(Some(labels)) {
            continue;
        }
        if let (Some(service), Some(namespace)) = (labels.get(SERVICE_LABEL), &slice.metadata.namespace) {
            by_service.entry((namespace, service)).or_default().push(slice);
        }
    }
    by_service
}

/// The endpoints of one named port, each address once.
fn candidates<'a>(slices: &[&'a EndpointSlice], port_name: &str, node: &NodeView) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<(Ipv4Addr, u16), Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter(|port| port.name.as_deref().unwrap_or_default() == port_name);
        for number in ports.filter_map(|port| u16::try_from(port.port?).ok()) {
            for source in slice.endpoints.iter().flatten() {
                let Some(address) = source.addresses.first().and_then(|text| text.parse().ok()) else { continue };
                let conditions = source.conditions.clone().unwrap_or_default();
                let ready = conditions.ready.unwrap_or(true);
                let candidate = Candidate {
                    endpoint: Endpoint {
                        address,
                        port: number,
                        local: source.node_name.as_deref() == Some(&node.name),
                    },
                    source,
                    ready,
                    serving: conditions.serving.unwrap_or(ready),
                    terminating: conditions.terminating.unwrap_or(false),
                };
                // While an endpoint moves between slices it is in two: the usable one counts.
                let better = |old: &Candidate<'_>| (candidate.ready, candidate.serving) > (old.ready, old.serving);
                match found.get(&(address, number)) {
                    Some(old) if !better(old) => {}
                    _ => {
                        found.insert((address, number), candidate);
                    }
                }
            }
        }
    }
    found.into_values().collect()
}

fn service_port(
    service: &Service,
    spec: &ServiceSpec,
    port: &SpecPort,
    cluster_ip: Ipv4Addr,
    number: u16,
) -> ServicePort {
    let parse = |list: &Option<Vec<String>>| -> Vec<Ipv4Addr> {
        list.iter().flatten().filter_map(|text| text.parse().ok()).collect()
    };
    let ingress = service.status.iter().flat_map(|status| &status.load_balancer).flat_map(|balancer| &balancer.ingress);
    let is_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let load_balancer_ips = ingress
        .flatten()
        // in mode Proxy the load balancer answers itself, also for clients inside
        .filter(|ingress| is_balancer && ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect();
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    ServicePort {
        cluster_ip,
        port: number,
        node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
        external_ips: parse(&spec.external_ips),
        load_balancer_ips,
        source_ranges: ranges
            .filter_map(|text| text.trim().parse().ok())
            .filter(|net: &netlink::IpNet| net.address.is_ipv4())
            .collect(),
        affinity: affinity(spec),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        cluster_endpoints: Vec::new(),
        local_endpoints: Vec::new(),
        usable_elsewhere: false,
        serving_endpoints: Vec::new(),
    }
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn health_check_port(spec: &ServiceSpec) -> Option<u16> {
    let wanted =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|port| wanted && *port > 0)?;
    u16::try_from(port).ok()
}

/// Sorts endpoints by who may use them, as kube-proxy does: ready ones; terminating ones that still
/// serve when no ready one is left.
fn categorize(port: &mut ServicePort, candidates: &[Candidate<'_>], node: &NodeView) {
    let usable = |local_only: bool| -> Vec<&Candidate<'_>> {
        let in_scope = |each: &&Candidate<'_>| !local_only || each.endpoint.local;
        let ready: Vec<_> = candidates.iter().filter(in_scope).filter(|each| each.ready).collect();
        if !ready.is_empty() {
            return ready;
        }
        candidates.iter().filter(in_scope).filter(|each| each.serving && each.terminating).collect()
    };
    let everywhere = usable(false);
    port.usable_elsewhere = !everywhere.is_empty();
    let near = by_topology(&everywhere, node);
    port.cluster_endpoints = near.into_iter().map(|each| each.endpoint.clone()).collect();
    if port.internal_local || port.external_local {
        port.local_endpoints = usable(true).into_iter().map(|each| each.endpoint.clone()).collect();
    }
}

/// The endpoints that hints assign to this node, else to its zone, else all. Hints count only when
/// every endpoint has them: half of them says that the controller is in the middle of something.
fn by_topology<'a, 'b>(all: &[&'a Candidate<'b>], node: &NodeView) -> Vec<&'a Candidate<'b>> {
    let for_node = |each: &Candidate<'_>| {
        let nodes = each.source.hints.as_ref()?.for_nodes.as_ref()?;
        (!nodes.is_empty()).then(|| nodes.iter().any(|hint| hint.name == node.name))
    };
    let for_zone = |each: &Candidate<'_>| {
        let zones = each.source.hints.as_ref()?.for_zones.as_ref()?;
        (!zones.is_empty()).then(|| node.zone.as_ref().is_some_and(|zone| zones.iter().any(|hint| &hint.name == zone)))
    };
    let select = |hint: &dyn Fn(&Candidate<'_>) -> Option<bool>| -> Option<Vec<&'a Candidate<'b>>> {
        let hints: Option<Vec<bool>> = all.iter().map(|each| hint(each)).collect();
        let chosen: Vec<_> = all.iter().zip(hints?).filter(|(_, here)| *here).map(|(each, _)| *each).collect();
        (!chosen.is_empty()).then_some(chosen)
    };
    select(&for_node).or_else(|| select(&for_zone)).unwrap_or_else(|| all.to_vec())
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
