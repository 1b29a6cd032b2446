//! Services: defaults, and addresses and ports taken around the write
//! (`pkg/registry/core/service/storage`).
//!
//! The pure parts are neighbours: `service_families` (addresses and families), `service_ports`,
//! `service_update` (what an update keeps and drops), `service_validation`, `service_status`,
//! `service_warnings`.
//! [`Service::reserve`] takes what must be unique (`allocator`, `port_map`, `service_repair`). The
//! cluster is IPv4 single-stack.

use std::net::Ipv4Addr;

use api::field::{Error, ErrorList, Path};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::allocator::{Held, Hold, Owner, ServiceRanges, give_back};
use super::port_map::PortMap;
use super::service_ports::{self, Before, Refusal};
use super::service_repair::{self, Leaks};
use super::service_update::{drop_type_dependent, keep_allocated, normalize_addresses};
use super::{service_families, service_status, service_validation, service_warnings};
use crate::admit::Cluster;
use crate::error::{ApiError, Result};
use crate::kinds::table::{NONE, labels, named_wide, or_none, row_wide, words};
use crate::kinds::value::{
    at, default, default_text, has, int, list, list_mut, map, name, namespace, opt_flag, remove, set, text, texts,
};
use crate::resource::{Column, Context, Hooks, Reservation};

pub struct Service {
    node_ports: (u16, u16),
    leaks: Leaks,
}

impl Service {
    pub fn new(ranges: ServiceRanges) -> Self {
        Self { node_ports: ranges.node_ports, leaks: Leaks::default() }
    }

    /// Takes what `new` needs and `old` did not have, and writes it into `new`.
    async fn take(&self, ctx: &Context<'_>, hold: &mut Hold, new: &mut Value, old: Option<&Before<'_>>) -> Result<()> {
        take_address(ctx, hold, new, old.map(|old| old.held)).await?;
        if !has_node_ports(new) && !needs_health_port(new) {
            return Ok(());
        }
        let before = new.clone();
        let assign = |map: &mut PortMap| {
            *new = before.clone();
            service_ports::assign(map, old, new)
        };
        match hold.ports(ctx.cluster, ctx.dry_run, assign).await? {
            Ok(()) => Ok(()),
            Err(Refusal::Invalid(error)) => Err(ApiError::invalid("", "Service", name(&before), &[error])),
            Err(Refusal::Internal(why)) => Err(ApiError::internal(why)),
        }
    }
}

pub fn is_headless(service: &Value) -> bool {
    matches!(list(service, "spec.clusterIPs"), [only] if only == "None")
}

pub fn has_address(service: &Value) -> bool {
    text(service, "spec.type") != "ExternalName"
}

pub fn has_node_ports(service: &Value) -> bool {
    matches!(text(service, "spec.type"), "NodePort" | "LoadBalancer")
}

/// Whether ports that ask for no number get one.
pub fn allocates_node_ports(service: &Value) -> bool {
    match text(service, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => opt_flag(service, "spec.allocateLoadBalancerNodePorts") != Some(false),
        _ => false,
    }
}

/// A health check port tells load balancers which nodes have endpoints.
pub fn needs_health_port(service: &Value) -> bool {
    text(service, "spec.type") == "LoadBalancer" && text(service, "spec.externalTrafficPolicy") == "Local"
}

/// Reachable from outside: by node port, load balancer or external address.
pub fn is_external(service: &Value) -> bool {
    has_node_ports(service)
        || text(service, "spec.type") == "ClusterIP" && !list(service, "spec.externalIPs").is_empty()
}

fn defaults(service: &mut Value) {
    default_text(service, "spec.sessionAffinity", "None");
    if text(service, "spec.sessionAffinity") == "ClientIP" {
        default(service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", 10800);
    } else if text(service, "spec.sessionAffinity") == "None" {
        remove(service, "spec.sessionAffinityConfig");
    }
    default_text(service, "spec.type", "ClusterIP");
    for port in list_mut(service, "spec.ports") {
        default_text(port, "protocol", "TCP");
        let unset = matches!(at(port, "targetPort"), Value::Null)
            || at(port, "targetPort") == 0
            || at(port, "targetPort") == "";
        if unset && has(port, "port") {
            let number = at(port, "port").clone();
            set(port, "targetPort", number);
        }
    }
    if is_external(service) {
        default_text(service, "spec.externalTrafficPolicy", "Cluster");
    }
    if matches!(text(service, "spec.type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
        default(service, "spec.internalTrafficPolicy", "Cluster");
    }
    if text(service, "spec.type") == "LoadBalancer" {
        default(service, "spec.allocateLoadBalancerNodePorts", true);
        for ingress in list_mut(service, "status.loadBalancer.ingress") {
            if !text(ingress, "ip").is_empty() {
                default(ingress, "ipMode", "VIP");
            }
        }
    }
}

/// Names have no traffic policy: a sound one is dropped, another is left for validation to name.
fn drop_inside_policy(service: &mut Value) {
    if !has_address(service) && matches!(text(service, "spec.internalTrafficPolicy"), "Cluster" | "Local") {
        remove(service, "spec.internalTrafficPolicy");
    }
}

/// Addresses and ports that a stored Service holds.
pub fn held(service: &Value) -> Held {
    let mut addresses: Vec<Ipv4Addr> =
        texts(service, "spec.clusterIPs").iter().filter_map(|ip| ip.parse().ok()).collect();
    if let Ok(address) = text(service, "spec.clusterIP").parse()
        && !addresses.contains(&address)
    {
        addresses.push(address);
    }
    let numbers = list(service, "spec.ports").iter().map(|port| int(port, "nodePort"));
    let mut ports: Vec<u16> = numbers
        .chain([int(service, "spec.healthCheckNodePort")])
        .filter(|port| *port != 0)
        .filter_map(|port| u16::try_from(port).ok())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    Held { addresses, ports }
}

#[async_trait]
impl Hooks for Service {
    fn defaults(&self, service: &mut Value) {
        defaults(service);
    }

    fn prepare_create(&self, _ctx: &Context<'_>, service: &mut Value) {
        set(service, "status", json!({"loadBalancer": {}}));
        normalize_addresses(service, None);
        drop_inside_policy(service);
        // Validation says what is wrong.
        let _ = service_families::settle(service, None);
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        keep_allocated(new, old);
        normalize_addresses(new, Some(old));
        let _ = service_families::settle(new, Some(old));
        drop_inside_policy(new);
        drop_type_dependent(new, old);
    }

    fn validate_create(&self, _ctx: &Context<'_>, service: &Value) -> ErrorList {
        service_validation::validate(service, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        service_validation::validate(new, Some(old))
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        if ctx.subresource == "status" { service_status::validate(new, old) } else { ErrorList::new() }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        service_warnings::of(new)
    }

    fn subresource_warnings(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> Vec<String> {
        if ctx.subresource == "status" { service_status::warnings(new) } else { Vec::new() }
    }

    fn row(&self, service: &Value, now: Timestamp) -> Vec<Value> {
        cells(service, now)
    }

    async fn reserve(
        &self,
        ctx: &Context<'_>,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reservation>>> {
        let mut hold = Hold::new(Owner::of(new), self.node_ports);
        let before = old.map(held).unwrap_or_default();
        let stored = old.map(|old| Before { held: &before, checked: needs_health_port(old) });
        if let Err(error) = self.take(ctx, &mut hold, new, stored.as_ref()).await {
            Box::new(hold).release(ctx.cluster).await;
            return Err(error);
        }
        let now = held(new);
        hold.freed.addresses.extend(before.addresses.iter().filter(|address| !now.addresses.contains(address)));
        hold.freed.ports.extend(before.ports.iter().filter(|port| !now.ports.contains(port)));
        Ok(Some(Box::new(hold)))
    }

    async fn deleted(&self, cluster: &dyn Cluster, service: &Value) {
        give_back(cluster, &Owner::of(service), self.node_ports, &held(service)).await;
        drop_endpoints(cluster, service).await;
    }

    async fn repair(&self, cluster: &dyn Cluster) -> Result<()> {
        service_repair::repair(cluster, self.node_ports, &self.leaks).await
    }
}

/// Whoever takes the name next must not find the Endpoints of this one.
async fn drop_endpoints(cluster: &dyn Cluster, service: &Value) {
    let (namespace, name) = (namespace(service), name(service));
    let outcome = match cluster.get_live("", "endpoints", namespace, name).await {
        Ok(Some(endpoints)) => cluster.delete("", "endpoints", &endpoints).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if !error.is_not_found() && !error.is_conflict() => {
            tracing::warn!(namespace, name, %error, "the Endpoints of a deleted Service stay");
        }
        _ => {}
    }
}

/// Gives the Service the address that it asks for, or any.
async fn take_address(ctx: &Context<'_>, hold: &mut Hold, service: &mut Value, old: Option<&Held>) -> Result<()> {
    if !has_address(service) || is_headless(service) {
        return Ok(());
    }
    let asked = text(service, "spec.clusterIP").to_owned();
    let wanted = match asked.parse() {
        Ok(address) if old.is_some_and(|old| old.addresses.contains(&address)) => return Ok(()),
        Ok(address) => Some(address),
        Err(_) if asked.is_empty() => None,
        // One of an older notation, which the stored Service has too.
        Err(_) => return Ok(()),
    };
    match hold.address(ctx.cluster, wanted, ctx.dry_run).await? {
        Ok(address) => {
            set(service, "spec.clusterIP", address.to_string());
            set(service, "spec.clusterIPs", json!([address.to_string()]));
            Ok(())
        }
        Err(error) if asked.is_empty() => Err(ApiError::internal(format!("failed to allocate a serviceIP: {error}"))),
        Err(error) => {
            let path = Path::root("spec").child("clusterIPs");
            let detail = format!("failed to allocate IP {asked}: {error}");
            let error = Error::invalid(&path, at(service, "spec.clusterIPs").clone(), detail);
            Err(ApiError::invalid("", "Service", name(service), &[error]))
        }
    }
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Type", "type determines how the Service is exposed. Defaults to ClusterIP."),
            words("Cluster-IP", "clusterIP is the IP address of the service and is usually assigned randomly."),
            words(
                "External-IP",
                "externalIPs is a list of IP addresses for which nodes in the cluster will also accept traffic for this service.",
            ),
            words(
                "Port(s)",
                "The list of ports that are exposed by this service. More info: https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
            ),
        ],
        vec![words("Selector", "Route service traffic to pods with label keys and values matching this selector.")],
    )
}

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(service, "spec.ports").iter().map(port_text).collect();
    let address =
        list(service, "spec.clusterIPs").first().and_then(Value::as_str).unwrap_or(text(service, "spec.clusterIP"));
    row_wide(
        service,
        now,
        vec![
            text(service, "spec.type").into(),
            or_none(address),
            external_address(service).into(),
            or_none(&ports.join(",")),
        ],
        vec![labels(map(service, "spec.selector")).into()],
    )
}

fn port_text(port: &Value) -> String {
    let (number, protocol) = (int(port, "port"), text(port, "protocol"));
    match int(port, "nodePort") {
        0 => format!("{number}/{protocol}"),
        node => format!("{number}:{node}/{protocol}"),
    }
}

fn external_address(service: &Value) -> String {
    let external = texts(service, "spec.externalIPs").join(",");
    match text(service, "spec.type") {
        "ClusterIP" | "NodePort" => {
            if external.is_empty() {
                NONE.to_owned()
            } else {
                external
            }
        }
        "LoadBalancer" => {
            let balancers = load_balancers(service);
            match (balancers.is_empty(), external.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (true, false) => external,
                (false, true) => balancers,
                (false, false) => format!("{balancers},{external}"),
            }
        }
        "ExternalName" => text(service, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// Addresses or names of `status.loadBalancer`, sorted.
pub fn load_balancers(object: &Value) -> String {
    let mut found: Vec<&str> = list(object, "status.loadBalancer.ingress")
        .iter()
        .map(|ingress| if has(ingress, "ip") { text(ingress, "ip") } else { text(ingress, "hostname") })
        .filter(|address| !address.is_empty())
        .collect();
    found.sort_unstable();
    found.dedup();
    found.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_defaults(mut service: Value) -> Value {
        defaults(&mut service);
        normalize_addresses(&mut service, None);
        drop_inside_policy(&mut service);
        assert_eq!(service_families::settle(&mut service, None), []);
        service
    }

    #[test]
    fn smallest_service() {
        assert_eq!(
            with_defaults(json!({"spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}))["spec"],
            json!({
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "selector": {"a": "b"},
                "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"
            })
        );
    }

    #[test]
    fn kinds_of_services() {
        for (spec, field, value) in [
            (json!({"type": "NodePort"}), "spec.externalTrafficPolicy", json!("Cluster")),
            (json!({"type": "LoadBalancer"}), "spec.allocateLoadBalancerNodePorts", json!(true)),
            (json!({"type": "ExternalName", "externalName": "x"}), "spec.internalTrafficPolicy", Value::Null),
            (json!({"type": "ExternalName", "externalName": "x"}), "spec.ipFamilies", Value::Null),
            (
                json!({"type": "ExternalName", "externalName": "x", "internalTrafficPolicy": "Local"}),
                "spec.internalTrafficPolicy",
                Value::Null,
            ),
            (json!({"clusterIP": "None"}), "spec.clusterIPs", json!(["None"])),
            (json!({"clusterIP": "None"}), "spec.ipFamilyPolicy", json!("RequireDualStack")),
            (json!({"clusterIP": "None", "selector": {"a": "b"}}), "spec.ipFamilies", json!(["IPv4"])),
            (
                json!({"sessionAffinity": "ClientIP"}),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                json!(10800),
            ),
        ] {
            assert_eq!(at(&with_defaults(json!({"spec": spec})), field), &value, "{spec} {field}");
        }
    }

    #[test]
    fn balancers_addresses_have_a_mode() {
        for (type_, mode) in [("LoadBalancer", json!("VIP")), ("ClusterIP", Value::Null)] {
            let ingress = json!([{"ip": "1.2.3.4"}, {"hostname": "a"}, {"ip": "1.2.3.5", "ipMode": "Proxy"}]);
            let mut service = json!({"spec": {"type": type_}, "status": {"loadBalancer": {"ingress": ingress}}});
            defaults(&mut service);
            let modes: Vec<&Value> =
                list(&service, "status.loadBalancer.ingress").iter().map(|one| at(one, "ipMode")).collect();
            assert_eq!(modes, [&mode, &Value::Null, &json!("Proxy")], "{type_}");
        }
    }

    #[test]
    fn rows() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        for (spec, line) in [
            (
                json!({"type": "NodePort", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}, {"port": 81, "protocol": "UDP"}], "selector": {"a": "b"}}),
                "s|NodePort|10.43.0.9|<none>|80:30001/TCP,81/UDP|60s|a=b",
            ),
            (
                json!({"type": "ExternalName", "externalName": "example.com"}),
                "s|ExternalName|<none>|example.com|<none>|60s|<none>",
            ),
            (
                json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9"}),
                "s|LoadBalancer|10.43.0.9|<pending>|<none>|60s|<none>",
            ),
        ] {
            let service = json!({"metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec});
            let shown: Vec<String> = cells(&service, now).iter().map(|c| c.as_str().unwrap().to_owned()).collect();
            assert_eq!(shown.join("|"), line);
        }
    }
}
