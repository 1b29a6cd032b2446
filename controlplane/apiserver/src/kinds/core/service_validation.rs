//! Validation of Services (`ValidateService`, `ValidateServiceUpdate`).

use std::net::IpAddr;

use api::field::{Error, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::service::{is_external, is_headless, needs_address, needs_health_port};
use crate::kinds::check::{Node, Seen, labels, parse_ip};
use crate::kinds::value::{list, same_at, text};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

pub fn validate(service: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(service).child("spec");
    type_rules(service, &spec, &mut errors);
    affinity(&spec, &mut errors);
    labels(&spec.child("selector"), &mut errors);
    ports(&spec, &mut errors);
    addresses(service, &spec, &mut errors);
    families(service, old, &spec, &mut errors);
    external(&spec, &mut errors);
    policies(service, &spec, &mut errors);
    load_balancer_fields(&spec, &mut errors);
    if let Some(old) = old {
        address_changes(service, old, &spec, &mut errors);
    }
    errors
}

fn type_rules(service: &Value, spec: &Node<'_>, errors: &mut ErrorList) {
    let type_ = spec.child("type");
    type_.required_one_of(errors, &TYPES);
    if list(service, "spec.ports").is_empty() && !is_headless(service) && type_.text() != "ExternalName" {
        spec.child("ports").missing(errors, "");
    }
    let headless = is_headless(service);
    match type_.text() {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {} services", type_.text());
            errors.push(Error::invalid(&spec.child("clusterIPs").path.index(0), "None", detail));
        }
        "ExternalName" => {
            if !spec.child("clusterIP").text().is_empty() || !spec.items("clusterIPs").is_empty() {
                spec.child("clusterIPs").forbidden(errors, "may not be set for ExternalName services");
            }
            let name = spec.child("externalName");
            // A trailing dot says that the name is absolute.
            let bare = name.text().strip_suffix('.').unwrap_or(name.text());
            if bare.is_empty() {
                name.missing(errors, "");
            } else {
                for problem in names::dns1123_subdomain(bare) {
                    errors.push(Error::invalid(&name.path, bare, problem));
                }
            }
        }
        _ => {}
    }
}

fn affinity(spec: &Node<'_>, errors: &mut ErrorList) {
    let affinity = spec.child("sessionAffinity");
    affinity.required_one_of(errors, &["ClientIP", "None"]);
    let config = spec.child("sessionAffinityConfig");
    match affinity.text() {
        "ClientIP" => {
            let seconds = config.child("clientIP.timeoutSeconds");
            if !(1..=86400).contains(&seconds.int()) {
                seconds.invalid(errors, "must be greater than 0 and less than 86400");
            }
        }
        "None" if config.exists() => {
            config.forbidden(errors, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

/// The internal form in which upstream prints a duplicate port.
fn printed(protocol: &str, port: i64, node_port: i64) -> Value {
    json!({"Name": "", "Protocol": protocol, "AppProtocol": null, "Port": port, "TargetPort": 0, "NodePort": node_port})
}

fn ports(spec: &Node<'_>, errors: &mut ErrorList) {
    let ports = spec.items("ports");
    let (mut names_seen, mut numbers, mut node_ports) = (Seen::default(), Seen::default(), Seen::default());
    for port in &ports {
        let name = port.child("name");
        if name.text().is_empty() {
            if ports.len() > 1 {
                name.missing(errors, "");
            }
        } else {
            name.format(errors, names::dns1123_label);
            if !names_seen.insert(name.text()) {
                name.duplicate(errors);
            }
        }
        port.child("port").port_number(errors);
        let protocol = port.child("protocol");
        protocol.required_one_of(errors, &["SCTP", "TCP", "UDP"]);
        port.child("targetPort").port_or_name(errors);
        if port.has("appProtocol") {
            port.child("appProtocol").format(errors, names::qualified_name);
        }
        let number = port.child("port").int();
        if !numbers.insert(format!("{}/{number}", protocol.text())) {
            errors.push(Error::duplicate(&port.path, printed(protocol.text(), number, 0)));
        }
        let node_port = port.child("nodePort");
        if node_port.int() != 0 {
            if matches!(spec.child("type").text(), "ClusterIP" | "ExternalName") {
                node_port.forbidden(errors, format!("may not be used when `type` is '{}'", spec.child("type").text()));
            } else if !node_ports.insert(format!("{}/{}", protocol.text(), node_port.int())) {
                errors.push(Error::duplicate(&node_port.path, printed(protocol.text(), 0, node_port.int())));
            }
        }
    }
}

fn addresses(service: &Value, spec: &Node<'_>, errors: &mut ErrorList) {
    if !needs_address(service) {
        return;
    }
    let listed = spec.items("clusterIPs");
    let single = spec.child("clusterIP");
    if let Some(first) = listed.first() {
        if single.text().is_empty() {
            spec.child("clusterIP").invalid(errors, "must be set when `clusterIPs` is set");
        } else if first.text() != single.text() {
            errors.push(Error::invalid(&first.path, spec.child("clusterIPs").value.clone(), "must match `clusterIP`"));
        }
    }
    for address in &listed {
        if address.text() != "None" {
            address.ip(errors);
        }
    }
    if listed.len() > 2 {
        spec.child("clusterIPs").invalid(errors, "may only hold up to 2 values");
    } else if listed.len() == 2 && !is_headless(service) {
        errors.push(Error::invalid(
            &listed[1].path,
            listed[1].text(),
            "may not have two addresses: this cluster is not configured for dual-stack services",
        ));
    } else if listed.len() > 1 && is_headless(service) {
        spec.child("clusterIPs").invalid(errors, "'None' must be the first and only value");
    }
}

fn families(service: &Value, old: Option<&Value>, spec: &Node<'_>, errors: &mut ErrorList) {
    if !needs_address(service) {
        return;
    }
    let policy = spec.child("ipFamilyPolicy");
    policy.optional_one_of(errors, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let selectorless = spec.child("selector").is_empty();
    let free = is_headless(service) && selectorless;
    let mut seen = Seen::default();
    for family in spec.items("ipFamilies") {
        if !family.one_of(errors, &["IPv4", "IPv6"]) {
            continue;
        }
        if !seen.insert(family.text()) {
            family.duplicate(errors);
        } else if family.text() == "IPv6" && !free && old.is_none_or(|old| !same_at(old, service, "spec.ipFamilies")) {
            family.invalid(errors, "not configured on this cluster");
        }
    }
    if policy.text() == "RequireDualStack" && !free {
        policy.invalid(errors, "this cluster is not configured for dual-stack services");
    }
}

fn external(spec: &Node<'_>, errors: &mut ErrorList) {
    for address in spec.items("externalIPs") {
        match parse_ip(address.text()) {
            None => {
                address.ip(errors);
            }
            Some(ip) => {
                for problem in special(ip) {
                    address.invalid(errors, problem);
                }
            }
        }
    }
}

/// Why an address cannot be a Service's or an endpoint's.
pub fn special(ip: IpAddr) -> Vec<&'static str> {
    let (link_local, link_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] == 0xff02),
    };
    let mut problems = Vec::new();
    if ip.is_unspecified() {
        problems.push("may not be unspecified (0.0.0.0 or ::)");
    }
    if ip.is_loopback() {
        problems.push("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        problems.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_multicast {
        problems.push("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
    problems
}

fn policies(service: &Value, spec: &Node<'_>, errors: &mut ErrorList) {
    let outside = spec.child("externalTrafficPolicy");
    if is_external(service) {
        if outside.text().is_empty() {
            outside.missing(errors, "");
        } else {
            outside.one_of(errors, &["Cluster", "Local"]);
        }
    } else if !outside.text().is_empty() {
        outside.invalid(errors, "may only be set for externally-accessible services");
    }
    let inside = spec.child("internalTrafficPolicy");
    if needs_address(service) && inside.exists() {
        inside.one_of(errors, &["Cluster", "Local"]);
    }
    let health = spec.child("healthCheckNodePort");
    if health.int() != 0 && !needs_health_port(service) {
        health.invalid(errors, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'");
    } else if health.int() != 0 {
        health.port_number(errors);
    }
    spec.child("trafficDistribution").optional_one_of(errors, &["PreferClose", "PreferSameNode", "PreferSameZone"]);
}

fn load_balancer_fields(spec: &Node<'_>, errors: &mut ErrorList) {
    let balancer = spec.child("type").text() == "LoadBalancer";
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if spec.has(field) && !balancer {
            spec.child(field).forbidden(errors, "may only be used when `type` is 'LoadBalancer'");
        }
    }
    if spec.has("loadBalancerClass") && balancer {
        spec.child("loadBalancerClass").format(errors, names::qualified_name);
    }
    let ranges = spec.items("loadBalancerSourceRanges");
    if !ranges.is_empty() && !balancer {
        spec.child("loadBalancerSourceRanges").forbidden(errors, "may only be used when `type` is 'LoadBalancer'");
    }
    for range in ranges {
        if crate::kinds::check::parse_cidr(range.text().trim()).is_none() {
            range.cidr(errors);
        }
    }
}

fn address_changes(service: &Value, old: &Value, spec: &Node<'_>, errors: &mut ErrorList) {
    if !needs_address(service) || !needs_address(old) {
        return;
    }
    let (now, was) = (text(service, "spec.clusterIP"), text(old, "spec.clusterIP"));
    if !was.is_empty() && now != was {
        let listed = spec.child("clusterIPs");
        errors.push(Error::invalid(&listed.path.index(0), listed.value.clone(), "may not change once set"));
    }
    let first = |service: &Value| list(service, "spec.ipFamilies").first().cloned();
    if let (Some(now), Some(was)) = (first(service), first(old))
        && now != was
    {
        errors.push(Error::invalid(&spec.child("ipFamilies").path.index(0), now, "may not change once set"));
    }
    if text(old, "spec.type") == "LoadBalancer"
        && text(service, "spec.type") == "LoadBalancer"
        && !same_at(old, service, "spec.loadBalancerClass")
    {
        spec.child("loadBalancerClass").invalid(errors, "may not change once set");
    }
}

pub fn validate_status(service: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(service).child("status.loadBalancer");
    if text(service, "spec.type") != "LoadBalancer" && !status.items("ingress").is_empty() {
        status.child("ingress").forbidden(&mut errors, "may only be used when `spec.type` is LoadBalancer");
    }
    for ingress in status.items("ingress") {
        if !ingress.child("ip").text().is_empty() {
            ingress.child("ip").ip(&mut errors);
        }
        let host = ingress.child("hostname");
        if !host.text().is_empty()
            && (host.format(&mut errors, names::dns1123_subdomain) && parse_ip(host.text()).is_some())
        {
            host.invalid(&mut errors, "must be a DNS name, not an IP address");
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    fn base(extra: Value) -> Value {
        let mut spec = json!({"type": "ClusterIP", "sessionAffinity": "None", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "ipFamilies": ["IPv4"]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": "s"}, "spec": spec})
    }

    #[test]
    fn refused() {
        let port = |number: i64, name: &str| json!({"port": number, "name": name, "protocol": "TCP", "targetPort": 1});
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"ports": [port(70000, "a")]}),
                "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (json!({"ports": []}), "spec.ports: Required value"),
            (json!({"ports": [], "clusterIP": "None", "clusterIPs": ["None"]}), "[]"),
            (json!({"ports": [port(1, "a"), port(2, "a")]}), "spec.ports[1].name: Duplicate value: \"a\""),
            (
                json!({"ports": [port(1, "a"), port(1, "b")]}),
                "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":1,\"TargetPort\":0,\"NodePort\":0}",
            ),
            (json!({"ports": [port(1, "a"), port(2, "")]}), "spec.ports[1].name: Required value"),
            (
                json!({"type": "X"}),
                "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (
                json!({"sessionAffinity": "X"}),
                "spec.sessionAffinity: Unsupported value: \"X\": supported values: \"ClientIP\", \"None\"",
            ),
            (
                json!({"externalIPs": ["127.0.0.1"]}),
                "[spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128), spec.externalTrafficPolicy: Required value]",
            ),
            (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                json!({"loadBalancerClass": "a/b"}),
                "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
        ] {
            // Order of keys in a JSON value depends on the map: compare duplicates by prefix.
            let found = join(&validate(&base(extra.clone()), None));
            let same = found == expected
                || (expected.contains("Duplicate value: {") && found.starts_with("spec.ports[1]: Duplicate value: {"));
            assert!(same, "{extra}: {found}");
        }
    }

    #[test]
    fn addresses_stay() {
        let old = base(json!({"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"]}));
        let new = base(json!({"clusterIP": "10.43.0.2", "clusterIPs": ["10.43.0.2"]}));
        assert_eq!(
            join(&validate(&new, Some(&old))),
            "spec.clusterIPs[0]: Invalid value: [\"10.43.0.2\"]: may not change once set"
        );
    }
}
