//! Validation of Services (`ValidateServiceCreate`, `ValidateServiceUpdate`), in upstream's order.

use std::net::IpAddr;

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::{Value, json};

use super::service::{is_external, is_headless, needs_health_port};
use super::{service_families, service_ports};
use crate::kinds::check::{Node, Seen, labels, parse_ip_sloppy};
use crate::kinds::value::{annotation, same_at, text, texts};

pub const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
pub const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const ONLY_BALANCERS: &str = "may only be used when `type` is 'LoadBalancer'";

pub fn validate(service: &Value, old: Option<&Value>) -> ErrorList {
    // Upstream takes addresses and ports before it looks at anything else.
    let errors = service_families::settle(&mut service.clone(), old);
    if !errors.is_empty() {
        return errors;
    }
    if old.is_none()
        && let Some(error) = service_ports::asked_twice(service)
    {
        return vec![error];
    }
    let mut errors = ErrorList::new();
    if let Some(old) = old {
        changes(service, old, &mut errors);
    }
    rules(service, old, &mut errors);
    errors
}

fn changes(service: &Value, old: &Value, errors: &mut ErrorList) {
    service_families::address_changes(service, old, errors);
    service_families::family_changes(service, old, errors);
    let spec = Node::root(service).child("spec");
    let balances = |service: &Value| text(service, "spec.type") == "LoadBalancer";
    if balances(service) && balances(old) && !same_at(old, service, "spec.loadBalancerClass") {
        spec.child("loadBalancerClass").invalid(errors, "may not change once set");
    }
    balancer_class(&spec, errors);
    if needs_health_port(old) && needs_health_port(service) && !same_at(old, service, "spec.healthCheckNodePort") {
        spec.child("healthCheckNodePort").forbidden(errors, "field is immutable");
    }
}

fn rules(service: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let spec = Node::root(service).child("spec");
    topology(service, errors);
    of_type(service, &spec, errors);
    ports(&spec, errors);
    labels(&spec.child("selector"), errors);
    affinity(&spec, errors);
    service_families::related(service, old, errors);
    external_ips(&spec, old, errors);
    spec.child("type").required_one_of(errors, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    numbers(&spec, errors);
    source_ranges(service, old, errors);
    balancer_ports(&spec, errors);
    balancer_class(&spec, errors);
    outside_policy(service, &spec, errors);
    let inside = spec.child("internalTrafficPolicy");
    if inside.exists() {
        inside.one_of(errors, &["Cluster", "Local"]);
    } else if matches!(spec.child("type").text(), "ClusterIP" | "LoadBalancer" | "NodePort") {
        inside.missing(errors, "");
    }
    spec.child("trafficDistribution").optional_one_of(errors, &["PreferClose", "PreferSameZone", "PreferSameNode"]);
}

fn topology(service: &Value, errors: &mut ErrorList) {
    if let (Some(mode), Some(hints)) = (annotation(service, TOPOLOGY_MODE), annotation(service, TOPOLOGY_HINTS))
        && mode != hints
    {
        let path = Path::root("metadata").child("annotations").key(TOPOLOGY_MODE);
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.push(Error::invalid(&path, mode, detail));
    }
}

fn of_type(service: &Value, spec: &Node<'_>, errors: &mut ErrorList) {
    let type_ = spec.child("type").text();
    let headless = is_headless(service);
    if spec.items("ports").is_empty() && !headless && type_ != "ExternalName" {
        spec.child("ports").missing(errors, "");
    }
    match type_ {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {type_} services");
            errors.push(Error::invalid(&spec.child("clusterIPs").path.index(0), "None", detail));
        }
        "ExternalName" => {
            for (field, set) in [
                ("clusterIPs", !spec.items("clusterIPs").is_empty()),
                ("ipFamilies", !spec.items("ipFamilies").is_empty()),
                ("ipFamilyPolicy", spec.has("ipFamilyPolicy")),
            ] {
                if set {
                    spec.child(field).forbidden(errors, "may not be set for ExternalName services");
                }
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

fn ports(spec: &Node<'_>, errors: &mut ErrorList) {
    let ports = spec.items("ports");
    let mut seen = Seen::default();
    for port in &ports {
        let name = port.child("name");
        if !name.text().is_empty() {
            name.format(errors, names::dns1123_label);
            if !seen.insert(name.text()) {
                name.duplicate(errors);
            }
        } else if ports.len() > 1 {
            name.missing(errors, "");
        }
        port.child("port").port_number(errors);
        port.child("protocol").required_one_of(errors, &["SCTP", "TCP", "UDP"]);
        port.child("targetPort").port_or_name(errors);
        if port.has("appProtocol") {
            port.child("appProtocol").format(errors, names::qualified_name);
        }
    }
}

fn affinity(spec: &Node<'_>, errors: &mut ErrorList) {
    let affinity = spec.child("sessionAffinity");
    affinity.required_one_of(errors, &["ClientIP", "None"]);
    let config = spec.child("sessionAffinityConfig");
    match affinity.text() {
        // Defaults have filled in the time where there was none.
        "ClientIP" => {
            let seconds = config.child("clientIP.timeoutSeconds");
            if !(1..=86400).contains(&seconds.int()) {
                seconds.invalid_int(errors, "must be greater than 0 and less than 86400");
            }
        }
        "None" if config.exists() => {
            config.forbidden(errors, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn external_ips(spec: &Node<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    let known = old.map_or_else(Vec::new, |old| texts(old, "spec.externalIPs"));
    for address in spec.items("externalIPs") {
        if known.contains(&address.text()) || address.legacy_ip(errors) {
            endpoint_ip(&address, errors);
        }
    }
}

/// `ValidateEndpointIP`: an address that traffic can be sent to.
pub fn endpoint_ip(address: &Node<'_>, errors: &mut ErrorList) {
    let text = address.text();
    let Some(ip) = parse_ip_sloppy(text) else {
        return address.invalid_text(errors, "must be a valid IP address");
    };
    let (link_local, link_multicast) = match ip.to_canonical() {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.to_canonical().is_unspecified() {
        address.invalid(errors, format!("may not be unspecified ({text})"));
    }
    if ip.to_canonical().is_loopback() {
        address.invalid(errors, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        address.invalid(errors, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_multicast {
        address.invalid(errors, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Node ports of a type that has none, and numbers given twice for one protocol.
fn numbers(spec: &Node<'_>, errors: &mut ErrorList) {
    let ports = spec.items("ports");
    for node_port in ports.iter().map(|port| port.child("nodePort")).filter(|port| port.int() != 0) {
        if spec.child("type").text() == "ClusterIP" {
            node_port.forbidden(errors, "may not be used when `type` is 'ClusterIP'");
        }
    }
    for field in ["nodePort", "port"] {
        let mut seen = Seen::default();
        for port in &ports {
            let (number, protocol) = (port.child(field), port.child("protocol").text());
            if field == "nodePort" && number.int() == 0 || seen.insert(format!("{protocol}/{}", number.int())) {
                continue;
            }
            errors.push(match field {
                "nodePort" => Error::duplicate(&number.path, number.int()),
                _ => Error::duplicate(&port.path, "").showing(&[
                    ("Name", json!("")),
                    ("Protocol", json!(protocol)),
                    ("AppProtocol", Value::Null),
                    ("Port", json!(number.int())),
                    ("TargetPort", json!(0)),
                    ("NodePort", json!(0)),
                ]),
            });
        }
    }
}

/// The field, or else the annotation that it replaced. Both may be padded with spaces.
fn source_ranges(service: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let balances = text(service, "spec.type") == "LoadBalancer";
    let check = |range: &str, path: &Path, errors: &mut ErrorList| {
        let range = Value::from(range.trim());
        Node::new(&range, path.clone()).cidr(errors);
    };
    let ranges = texts(service, "spec.loadBalancerSourceRanges");
    if !ranges.is_empty() {
        // The name of the Go field: upstream's own slip.
        let path = Path::root("spec").child("LoadBalancerSourceRanges");
        if !balances {
            errors.push(Error::forbidden(&path, ONLY_BALANCERS));
        }
        let known: Vec<&str> = old
            .map_or_else(Vec::new, |old| texts(old, "spec.loadBalancerSourceRanges"))
            .iter()
            .map(|r| r.trim())
            .collect();
        for (index, range) in ranges.iter().enumerate().filter(|(_, range)| !known.contains(&range.trim())) {
            check(range, &path.index(index), errors);
        }
    } else if let Some(ranges) = annotation(service, SOURCE_RANGES) {
        let path = Path::root("metadata").child("annotations").key(SOURCE_RANGES);
        if !balances {
            errors.push(Error::forbidden(&path, ONLY_BALANCERS));
        }
        let new = old.and_then(|old| annotation(old, SOURCE_RANGES)) != Some(ranges);
        if new && !ranges.trim().is_empty() {
            ranges.split(',').for_each(|range| check(range, &path, errors));
        }
    }
}

fn balancer_ports(spec: &Node<'_>, errors: &mut ErrorList) {
    let (balances, given) = (spec.child("type").text() == "LoadBalancer", spec.has("allocateLoadBalancerNodePorts"));
    if given && !balances {
        spec.child("allocateLoadBalancerNodePorts").forbidden(errors, ONLY_BALANCERS);
    } else if balances && !given {
        errors.push(Error::required(&Path::root("allocateLoadBalancerNodePorts"), ""));
    }
}

fn balancer_class(spec: &Node<'_>, errors: &mut ErrorList) {
    let class = spec.child("loadBalancerClass");
    if !class.exists() {
        return;
    }
    if spec.child("type").text() == "LoadBalancer" {
        class.format(errors, names::qualified_name);
    } else {
        class.forbidden(errors, ONLY_BALANCERS);
    }
}

fn outside_policy(service: &Value, spec: &Node<'_>, errors: &mut ErrorList) {
    let policy = spec.child("externalTrafficPolicy");
    if is_external(service) {
        policy.required_one_of(errors, &["Cluster", "Local"]);
    } else if !policy.text().is_empty() {
        policy.invalid(errors, "may only be set for externally-accessible services");
    }
    // A port that is missing is allocated after this.
    let port = spec.child("healthCheckNodePort");
    if port.int() == 0 {
        return;
    }
    if needs_health_port(service) {
        port.port_number(errors);
    } else {
        port.invalid(errors, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::core::allocator::ServiceRanges;
    use crate::kinds::core::service::Service;
    use crate::kinds::tested;

    fn with(extra: &Value) -> Value {
        let mut service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
        for (key, value) in extra.as_object().unwrap() {
            if key == "annotations" {
                service["metadata"][key] = value.clone();
            } else {
                service["spec"][key] = value.clone();
            }
        }
        service
    }

    fn created(extra: &Value) -> String {
        tested::created(&Service::new(ServiceRanges::default()), &with(extra))
    }

    #[test]
    fn refused() {
        let port = |number: i64, name: &str| json!({"port": number, "name": name});
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"annotations": {TOPOLOGY_HINTS: "a", TOPOLOGY_MODE: "b"}}),
                "metadata.annotations[service.kubernetes.io/topology-mode]: Invalid value: \"b\": must match annotations[service.kubernetes.io/topology-aware-hints] when both are specified",
            ),
            (
                json!({"ports": [port(70000, "a")]}),
                "[spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive, \
                 spec.ports[0].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive]",
            ),
            (json!({"ports": []}), "spec.ports: Required value"),
            (json!({"ports": [], "clusterIP": "None"}), "[]"),
            (json!({"ports": [port(1, "a"), port(2, "a")]}), "spec.ports[1].name: Duplicate value: \"a\""),
            (
                json!({"ports": [port(1, "a"), port(1, "b")]}),
                "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":1,\"TargetPort\":0,\"NodePort\":0}",
            ),
            (json!({"ports": [port(1, "a"), port(2, "")]}), "spec.ports[1].name: Required value"),
            (
                json!({"ports": [{"port": 1, "protocol": "X", "targetPort": "toolongforaportname"}]}),
                "[spec.ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\", \
                 spec.ports[0].targetPort: Invalid value: \"toolongforaportname\": must be no more than 15 characters]",
            ),
            (
                json!({"ports": [{"port": 1, "nodePort": 30001}]}),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                json!({"type": "NodePort", "ports": [{"name": "a", "port": 1, "nodePort": 30001}, {"name": "b", "port": 1, "nodePort": 30001}]}),
                "[spec.ports[1].nodePort: Duplicate value: 30001, \
                 spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":1,\"TargetPort\":0,\"NodePort\":0}]",
            ),
            (
                json!({"type": "NodePort", "ports": [{"name": "a", "port": 1, "nodePort": 30001}, {"name": "b", "port": 2, "nodePort": 30001}]}),
                "spec.ports[1].nodePort: Invalid value: 30001: provided port is already allocated",
            ),
            (
                json!({"type": "X", "sessionAffinity": "Y", "trafficDistribution": "Z"}),
                "[spec.sessionAffinity: Unsupported value: \"Y\": supported values: \"ClientIP\", \"None\", \
                 spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\", \
                 spec.trafficDistribution: Unsupported value: \"Z\": supported values: \"PreferClose\", \"PreferSameZone\", \"PreferSameNode\"]",
            ),
            (
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
            ),
            (
                json!({"type": "NodePort", "clusterIP": "None"}),
                "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
            ),
            (
                json!({"externalIPs": ["127.0.0.1", "0.0.0.0", "ff12::1", "169.254.1.1", "x", "010.0.0.1"]}),
                "[spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128), \
                 spec.externalIPs[1]: Invalid value: \"0.0.0.0\": may not be unspecified (0.0.0.0), \
                 spec.externalIPs[2]: Invalid value: \"ff12::1\": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10), \
                 spec.externalIPs[3]: Invalid value: \"169.254.1.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10), \
                 spec.externalIPs[4]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff), \
                 spec.externalIPs[5]: Invalid value: \"010.0.0.1\": must not have leading 0s]",
            ),
            (
                json!({"type": "ExternalName", "clusterIP": "10.43.0.1", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}),
                "[spec.clusterIPs: Forbidden: may not be set for ExternalName services, \
                 spec.ipFamilies: Forbidden: may not be set for ExternalName services, \
                 spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services, \
                 spec.externalName: Required value]",
            ),
            (json!({"type": "ExternalName", "externalName": "example.com."}), "[]"),
            (
                json!({"type": "ExternalName", "externalName": "x", "internalTrafficPolicy": "X"}),
                "spec.internalTrafficPolicy: Unsupported value: \"X\": supported values: \"Cluster\", \"Local\"",
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "ports": []}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                json!({"loadBalancerClass": "a/b", "loadBalancerSourceRanges": ["10.0.0.0/8"], "allocateLoadBalancerNodePorts": true}),
                "[spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer', \
                 spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer', \
                 spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer']",
            ),
            (
                json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "10.0.0.1/8"]}),
                "spec.LoadBalancerSourceRanges[1]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length",
            ),
            (
                json!({"annotations": {SOURCE_RANGES: "10.0.0.0/8, x"}}),
                "[metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Forbidden: may only be used when `type` is 'LoadBalancer', \
                 metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)]",
            ),
            (
                json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30001}),
                "[spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services, \
                 spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local']",
            ),
            (
                json!({"type": "NodePort", "externalTrafficPolicy": "X", "internalTrafficPolicy": "Y"}),
                "[spec.externalTrafficPolicy: Unsupported value: \"X\": supported values: \"Cluster\", \"Local\", \
                 spec.internalTrafficPolicy: Unsupported value: \"Y\": supported values: \"Cluster\", \"Local\"]",
            ),
            (
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 70000}),
                "spec.healthCheckNodePort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
        ] {
            assert_eq!(created(&extra), expected, "{extra}");
        }
    }

    #[test]
    fn updates() {
        let address = json!({"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"]});
        let balancer = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001, "loadBalancerClass": "a/b", "loadBalancerSourceRanges": ["010.0.0.0/8"]});
        for (old, new, expected) in [
            (address.clone(), json!({}), "[]"),
            (
                address.clone(),
                json!({"clusterIP": "10.43.0.2"}),
                "spec.clusterIPs[0]: Invalid value: [\"10.43.0.2\"]: may not change once set",
            ),
            (address, json!({"type": "ExternalName", "externalName": "x"}), "[]"),
            (
                balancer.clone(),
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30002}),
                "[spec.loadBalancerClass: Invalid value: null: may not change once set, \
                 spec.healthCheckNodePort: Forbidden: field is immutable]",
            ),
            (balancer.clone(), balancer.clone(), "[]"),
            (balancer, json!({"type": "ClusterIP"}), "[]"),
            // What was taken once stays, in whatever notation.
            (json!({"externalIPs": ["010.0.0.1"]}), json!({"externalIPs": ["010.0.0.1"]}), "[]"),
            (
                json!({"annotations": {SOURCE_RANGES: "x"}, "type": "LoadBalancer"}),
                json!({"annotations": {SOURCE_RANGES: "x"}, "type": "LoadBalancer"}),
                "[]",
            ),
        ] {
            let hooks = Service::new(ServiceRanges::default());
            assert_eq!(tested::updated(&hooks, &with(&old), &with(&new)), expected, "{old} {new}");
        }
    }
}
