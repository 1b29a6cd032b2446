//! Pure: the endpoints a Service should have, grouped by address family and ports.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};

use super::is_endpoint;
use crate::{meta, podstate, service_pods};

/// Endpoints that can share slices.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

pub fn zone(node: &Node) -> Option<String> {
    meta::labels(&node.metadata).get("topology.kubernetes.io/zone").cloned()
}

fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".to_owned()] } else { families }
}

/// At least one group per family, so that a Service without pods has an (empty) slice.
pub fn groups(service: &Service, pods: &[Arc<Pod>], zone: impl Fn(&str) -> Option<String>) -> Vec<Group> {
    let mut result = Vec::new();
    for family in families(service) {
        // by the ports' text: pods may resolve named ports differently
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| is_endpoint(pod, &family)) {
            let ports = ports(service, pod);
            let key = format!("{ports:?}");
            let group = groups.entry(key).or_insert_with(|| Group {
                address_type: family.clone(),
                ports,
                endpoints: Vec::new(),
            });
            group.endpoints.push(endpoint(service, pod, &family, &zone));
        }
        if groups.is_empty() {
            let empty = Group { address_type: family.clone(), ports: Vec::new(), endpoints: Vec::new() };
            groups.insert(String::new(), empty);
        }
        result.extend(groups.into_values());
    }
    result
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let wanted = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let found = wanted.into_iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(service_pods::target_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut ports: Vec<_> = found.collect();
    ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
    ports
}

fn endpoint(service: &Service, pod: &Pod, family: &str, zone: &impl Fn(&str) -> Option<String>) -> Endpoint {
    let serving = podstate::is_ready(pod);
    let terminating = meta::is_deleting(&pod.metadata);
    let ready = service_pods::publishes_not_ready(service) || (serving && !terminating);
    let node = podstate::node_name(pod);
    let zone = zone(node);
    Endpoint {
        addresses: service_pods::addresses(pod, family).into_iter().take(1).map(str::to_owned).collect(),
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: if ready { hints(service, node, zone.as_deref()) } else { None },
        hostname: service_pods::hostname(pod, service),
        node_name: (!node.is_empty()).then(|| node.to_owned()),
        target_ref: Some(service_pods::target_ref(pod)),
        zone,
        deprecated_topology: None,
    }
}

/// `spec.trafficDistribution` as hints: this endpoint serves its own zone (or node) first.
fn hints(service: &Service, node: &str, zone: Option<&str>) -> Option<EndpointHints> {
    let wish = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    match wish {
        "PreferClose" | "PreferSameZone" => Some(EndpointHints { for_zones: Some(for_zones?), for_nodes: None }),
        "PreferSameNode" if !node.is_empty() => {
            Some(EndpointHints { for_zones, for_nodes: Some(vec![ForNode { name: node.to_owned() }]) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod, ready};
    use k8s_openapi::api::core::v1::{PodIP, ServicePort, ServiceSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn service() -> Service {
        let mut service = Service::default();
        service.metadata.name = Some("web".into());
        service.spec = Some(ServiceSpec {
            ports: Some(vec![ServicePort { name: Some("http".into()), port: 80, ..Default::default() }]),
            ..Default::default()
        });
        service
    }

    fn with_ip(mut pod: Pod, ip: &str) -> Arc<Pod> {
        pod.status.get_or_insert_default().pod_ips = Some(vec![PodIP { ip: ip.into() }]);
        Arc::new(pod)
    }

    fn conditions(endpoint: &Endpoint) -> (bool, bool, bool) {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let is = |condition: Option<bool>| condition == Some(true);
        (is(conditions.ready), is(conditions.serving), is(conditions.terminating))
    }

    #[test]
    fn conditions_follow_readiness_deletion_and_publish_not_ready() {
        let mut going = ready(pod("going", "n", "Running"), 0);
        going.metadata.deletion_timestamp = Some(Time(at(5)));
        let pods = [
            with_ip(ready(pod("ready", "n", "Running"), 0), "10.42.0.1"),
            with_ip(pod("starting", "n", "Running"), "10.42.0.2"),
            with_ip(going, "10.42.0.3"),
            with_ip(pod("done", "n", "Succeeded"), "10.42.0.4"),
            Arc::new(pod("no-address", "n", "Pending")),
        ];
        let mut service = service();
        let of = |service: &Service| -> Vec<_> {
            groups(service, &pods, |_| None)[0].endpoints.iter().map(conditions).collect()
        };
        assert_eq!(of(&service), [(true, true, false), (false, false, false), (false, true, true)]);
        service.spec.get_or_insert_default().publish_not_ready_addresses = Some(true);
        assert_eq!(of(&service), [(true, true, false), (true, false, false), (true, true, true)]);
    }

    #[test]
    fn a_service_without_pods_has_one_empty_group_per_family() {
        let mut service = service();
        service.spec.get_or_insert_default().ip_families = Some(vec!["IPv4".into(), "IPv6".into()]);
        let groups = groups(&service, &[], |_| None);
        assert_eq!(groups.iter().map(|g| g.address_type.as_str()).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
        assert!(groups.iter().all(|group| group.endpoints.is_empty()));
    }

    #[test]
    fn zone_and_traffic_distribution_become_hints() {
        let mut service = service();
        service.spec.get_or_insert_default().traffic_distribution = Some("PreferClose".into());
        let pods = [with_ip(ready(pod("a", "n1", "Running"), 0), "10.42.0.1")];
        let groups = groups(&service, &pods, |node| (node == "n1").then(|| "east".to_owned()));
        let endpoint = &groups[0].endpoints[0];
        assert_eq!(endpoint.zone.as_deref(), Some("east"));
        assert_eq!(
            endpoint.hints.as_ref().and_then(|h| h.for_zones.as_ref()).map(|z| z[0].name.as_str()),
            Some("east")
        );
    }
}
