//! Services: defaults, families, addresses and ports (`pkg/registry/core/service/storage`).
//!
//! The pure part fills in and carries over fields; [`Service::reserve`] takes addresses and ports
//! around the write (`allocator`, `port_map`, `service_repair`). The cluster is IPv4 single-stack.
//! Neighbour: `service_validation`.

use std::net::Ipv4Addr;

use api::field::{Error, ErrorList, Path};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::allocator::{AllocationError, Held, Hold, Owner, ServiceRanges, give_back};
use super::port_map::PortMap;
use super::service_repair::{self, Leaks};
use super::service_validation;
use crate::admit::Cluster;
use crate::error::{ApiError, Result};
use crate::kinds::table::{NONE, labels, named_wide, or_none, row_wide, words};
use crate::kinds::value::{
    at, copy, default, default_text, has, int, list, list_mut, map, name, opt_flag, remove, same_at, set, text, texts,
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
    async fn take(&self, ctx: &Context<'_>, hold: &mut Hold, new: &mut Value, old: &Held) -> Result<()> {
        let refused = |new: &Value, errors: &ErrorList| ApiError::invalid("", "Service", name(new), errors);
        if let Some(error) = take_address(ctx, hold, new, old).await? {
            return Err(refused(new, &vec![error]));
        }
        if !needs_node_ports(new) && !needs_health_port(new) {
            return Ok(());
        }
        let before = new.clone();
        let assign = |map: &mut PortMap| {
            *new = before.clone();
            assign_ports(map, &old.ports, new)
        };
        let assigned = hold.ports(ctx.cluster, ctx.dry_run, assign).await?;
        assigned.map_err(|errors| refused(new, &errors))
    }
}

pub fn is_headless(service: &Value) -> bool {
    text(service, "spec.clusterIP") == "None"
        || list(service, "spec.clusterIPs").first().and_then(Value::as_str) == Some("None")
}

pub fn needs_address(service: &Value) -> bool {
    matches!(text(service, "spec.type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

pub fn needs_node_ports(service: &Value) -> bool {
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
    match text(service, "spec.type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(service, "spec.externalIPs").is_empty(),
        _ => false,
    }
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
    if needs_address(service) {
        default(service, "spec.internalTrafficPolicy", "Cluster");
    }
    if text(service, "spec.type") == "LoadBalancer" {
        default(service, "spec.allocateLoadBalancerNodePorts", true);
    }
}

/// `clusterIP` and `clusterIPs` are two views of one thing; clients write either.
fn normalize_addresses(new: &mut Value, old: Option<&Value>) {
    let address = text(new, "spec.clusterIP").to_owned();
    let listed = !list(new, "spec.clusterIPs").is_empty();
    let follows = |new: &mut Value| {
        if address.is_empty() {
            remove(new, "spec.clusterIPs");
        } else {
            set(new, "spec.clusterIPs", json!([address]));
        }
    };
    match old {
        None if !listed && !address.is_empty() => follows(new),
        Some(old) => {
            let address_changed = text(new, "spec.clusterIP") != text(old, "spec.clusterIP");
            let list_changed = !same_at(new, old, "spec.clusterIPs");
            if address_changed && !list_changed {
                follows(new);
            } else if list_changed && !address_changed && !listed && address == text(old, "spec.clusterIP") {
                remove(new, "spec.clusterIP");
            }
        }
        None => {}
    }
}

/// Families and their policy, which this cluster leaves little choice about.
fn families(service: &mut Value) {
    if !needs_address(service) {
        for field in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
            remove(service, field);
        }
        return;
    }
    let selectorless = map(service, "spec.selector").is_none_or(serde_json::Map::is_empty);
    let both = is_headless(service) && selectorless;
    default(service, "spec.ipFamilyPolicy", if both { "RequireDualStack" } else { "SingleStack" });
    if list(service, "spec.ipFamilies").is_empty() {
        let single = !both || text(service, "spec.ipFamilyPolicy") == "SingleStack";
        set(service, "spec.ipFamilies", if single { json!(["IPv4"]) } else { json!(["IPv4", "IPv6"]) });
    }
}

/// What a client left out of an update stays as it was allocated.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_address(new) && needs_address(old) {
        if text(new, "spec.clusterIP").is_empty() {
            copy(old, new, "spec.clusterIP");
        }
        if list(new, "spec.clusterIPs").is_empty() && text(new, "spec.clusterIP") == text(old, "spec.clusterIP") {
            copy(old, new, "spec.clusterIPs");
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        let mut taken: Vec<i64> = list(new, "spec.ports").iter().map(|port| int(port, "nodePort")).collect();
        for port in list_mut(new, "spec.ports") {
            if int(port, "nodePort") != 0 {
                continue;
            }
            let before = list(old, "spec.ports").iter().find(|was| text(was, "name") == text(port, "name"));
            let number = before.map_or(0, |was| int(was, "nodePort"));
            if number != 0 && !taken.contains(&number) {
                taken.push(number);
                set(port, "nodePort", number);
            }
        }
    }
    if needs_health_port(new) && needs_health_port(old) && int(new, "spec.healthCheckNodePort") == 0 {
        copy(old, new, "spec.healthCheckNodePort");
    }
}

/// Fields which the new type has no use for go, if the client did not touch them.
fn drop_type_dependent(new: &mut Value, old: &Value) {
    let mut drop_same = |needed: fn(&Value) -> bool, fields: &[&str]| {
        if needed(old) && !needed(new) {
            for field in fields {
                if same_at(new, old, field) {
                    remove(new, field);
                }
            }
        }
    };
    drop_same(
        needs_address,
        &["spec.clusterIP", "spec.clusterIPs", "spec.ipFamilies", "spec.ipFamilyPolicy", "spec.internalTrafficPolicy"],
    );
    drop_same(needs_health_port, &["spec.healthCheckNodePort"]);
    drop_same(is_external, &["spec.externalTrafficPolicy"]);
    drop_same(
        |service| text(service, "spec.type") == "LoadBalancer",
        &["spec.allocateLoadBalancerNodePorts", "spec.loadBalancerClass"],
    );
    drop_same(|service| text(service, "spec.type") == "ExternalName", &["spec.externalName"]);
    let external = |service: &Value| matches!(text(service, "spec.type"), "NodePort" | "LoadBalancer");
    if external(old) && !external(new) {
        let before: Vec<i64> = list(old, "spec.ports").iter().map(|port| int(port, "nodePort")).collect();
        for port in list_mut(new, "spec.ports") {
            if before.contains(&int(port, "nodePort")) {
                remove(port, "nodePort");
            }
        }
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
        families(service);
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        normalize_addresses(new, Some(old));
        keep_allocated(new, old);
        drop_type_dependent(new, old);
        families(new);
        if text(new, "spec.type") != "LoadBalancer" {
            set(new, "status.loadBalancer", json!({}));
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, service: &Value) -> ErrorList {
        service_validation::validate(service, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        service_validation::validate(new, Some(old))
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        if ctx.subresource == "status" { service_validation::validate_status(new) } else { ErrorList::new() }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        warnings(new, old)
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
        if let Err(error) = self.take(ctx, &mut hold, new, &before).await {
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
    }

    async fn repair(&self, cluster: &dyn Cluster) -> Result<()> {
        service_repair::repair(cluster, self.node_ports, &self.leaks).await
    }
}

/// Fields that have no effect on a Service without an address (`pkg/api/service/warnings.go`).
fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let changed = |field: &str| old.is_none_or(|old| !same_at(old, new, field));
    let mut found = Vec::new();
    if is_headless(new) {
        if !text(new, "spec.loadBalancerIP").is_empty() && changed("spec.loadBalancerIP") {
            found.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if !list(new, "spec.externalIPs").is_empty() && changed("spec.externalIPs") {
            found.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if text(new, "spec.sessionAffinity") != "None" && changed("spec.sessionAffinity") {
            found.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    found
}

/// `Some` is what is wrong with the wish.
async fn take_address(ctx: &Context<'_>, hold: &mut Hold, service: &mut Value, old: &Held) -> Result<Option<Error>> {
    if !needs_address(service) || is_headless(service) {
        return Ok(None);
    }
    let asked = text(service, "spec.clusterIP").to_owned();
    let wanted = match asked.parse() {
        Ok(address) if old.addresses.contains(&address) => return Ok(None),
        Ok(address) => Some(address),
        Err(_) if asked.is_empty() => None,
        // Validation has named the malformed address.
        Err(_) => return Ok(None),
    };
    let path = Path::root("spec").child("clusterIPs");
    Ok(match hold.address(ctx.cluster, wanted, ctx.dry_run).await? {
        Ok(address) => {
            set(service, "spec.clusterIP", address.to_string());
            set(service, "spec.clusterIPs", json!([address.to_string()]));
            None
        }
        Err(error) if asked.is_empty() => {
            Some(Error::internal(&path, format!("failed to allocate a serviceIP: {error}")))
        }
        Err(error) => Some(Error::invalid(
            &path,
            at(service, "spec.clusterIPs").clone(),
            format!("failed to allocate IP {asked}: {error}"),
        )),
    })
}

/// Gives every port of `service` that needs one a node port; those that were taken for that.
/// `own` are the ones that it has already.
fn assign_ports(map: &mut PortMap, own: &[u16], service: &mut Value) -> std::result::Result<Vec<u16>, ErrorList> {
    let (mut taken, mut errors) = (Vec::new(), ErrorList::new());
    if needs_node_ports(service) {
        let mut by_number: Vec<(i64, i64, String)> = Vec::new();
        for (index, port) in list_mut(service, "spec.ports").enumerate() {
            let path = Path::root("spec").child("ports").index(index).child("nodePort");
            let (asked, number, protocol) =
                (int(port, "nodePort"), int(port, "port"), text(port, "protocol").to_owned());
            // One number may serve the same port over several protocols.
            let shared =
                by_number.iter().find(|(_, port, proto)| *port == number && *proto != protocol).map(|(node, ..)| *node);
            match take_port(map, own, &mut taken, if asked == 0 { shared.unwrap_or(0) } else { asked }) {
                Ok(got) => {
                    by_number.push((got, number, protocol));
                    set(port, "nodePort", got);
                }
                Err(AllocationError::Full) => {
                    errors.push(Error::internal(&path, "failed to allocate a nodePort: range is full"))
                }
                Err(error) => errors.push(Error::invalid(&path, asked, error.to_string())),
            }
        }
    }
    if needs_health_port(service) {
        let path = Path::root("spec").child("healthCheckNodePort");
        match take_port(map, own, &mut taken, int(service, "spec.healthCheckNodePort")) {
            Ok(got) => set(service, "spec.healthCheckNodePort", got),
            Err(error) => errors
                .push(Error::internal(&path, format!("failed to allocate requested HealthCheck NodePort: {error}"))),
        }
    }
    if errors.is_empty() { Ok(taken) } else { Err(errors) }
}

/// `asked`, or any when it is 0.
fn take_port(
    map: &mut PortMap,
    own: &[u16],
    taken: &mut Vec<u16>,
    asked: i64,
) -> std::result::Result<i64, AllocationError> {
    if asked == 0 {
        let port = map.take_any()?;
        taken.push(port);
        return Ok(port.into());
    }
    let port = u16::try_from(asked)
        .map_err(|_| AllocationError::OutOfRange("provided port is not in the valid range".to_owned()))?;
    if !own.contains(&port) && !taken.contains(&port) {
        map.take(port)?;
        taken.push(port);
    }
    Ok(asked)
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
        families(&mut service);
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
    fn updates_keep_what_was_allocated() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "externalTrafficPolicy": "Cluster",
            "ports": [{"name": "a", "port": 80, "nodePort": 30001}]}});
        let mut new =
            json!({"spec": {"type": "NodePort", "ports": [{"name": "a", "port": 81}, {"name": "b", "port": 82}]}});
        normalize_addresses(&mut new, Some(&old));
        keep_allocated(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.9");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.0.9"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
        assert_eq!(new["spec"]["ports"][1].get("nodePort"), None);

        let mut plain = old.clone();
        plain["spec"]["type"] = json!("ClusterIP");
        drop_type_dependent(&mut plain, &old);
        assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(plain["spec"].get("externalTrafficPolicy"), None);
        let mut name = old.clone();
        name["spec"]["type"] = json!("ExternalName");
        drop_type_dependent(&mut name, &old);
        assert_eq!(name["spec"].get("clusterIP"), None);
    }

    #[test]
    fn node_ports_are_assigned() {
        let mut map = PortMap::read((30000, 32767), None);
        let wanted = json!({"spec": {"type": "NodePort", "ports": [
            {"port": 53, "name": "t"}, {"port": 53, "name": "u", "protocol": "UDP"}, {"port": 54, "name": "x"}]}});
        let mut service = with_defaults(wanted);
        let taken = assign_ports(&mut map, &[], &mut service).unwrap();
        let ports = service["spec"]["ports"].clone();
        assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"]);
        assert_ne!(ports[0]["nodePort"], ports[2]["nodePort"]);
        let sorted = |mut ports: Vec<u16>| {
            ports.sort_unstable();
            ports
        };
        assert_eq!(sorted(taken.clone()), held(&service).ports);
        assert_eq!(assign_ports(&mut map, &taken, &mut service.clone()), Ok(vec![]), "an update keeps its own");
        let refused = assign_ports(&mut map, &[], &mut service).unwrap_err();
        let number = ports[0]["nodePort"].clone();
        let text = format!("spec.ports[0].nodePort: Invalid value: {number}: provided port is already allocated");
        assert_eq!(refused[0].to_string(), text);
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
