//! Writes to a Service's `status`: where its load balancer answers (`ValidateLoadBalancerStatus`).

use api::field::ErrorList;
use api::names;
use serde_json::Value;

use crate::kinds::check::{Node, ip_warning, parse_ip_sloppy};
use crate::kinds::value::{list, text};

pub fn validate(service: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(service).child("status.loadBalancer");
    if text(service, "spec.type") != "LoadBalancer" && !status.items("ingress").is_empty() {
        status.child("ingress").forbidden(&mut errors, "may only be used when `spec.type` is 'LoadBalancer'");
        return errors;
    }
    let known: Vec<&str> = list(old, "status.loadBalancer.ingress")
        .iter()
        .map(|one| text(one, "ip"))
        .filter(|ip| !ip.is_empty())
        .collect();
    for ingress in status.items("ingress") {
        load_balancer_ingress(&ingress, &known, &mut errors);
    }
    errors
}

fn load_balancer_ingress(ingress: &Node<'_>, known: &[&str], errors: &mut ErrorList) {
    let (ip, mode, host) = (ingress.child("ip"), ingress.child("ipMode"), ingress.child("hostname"));
    let addressed = !ip.text().is_empty();
    if addressed && !known.contains(&ip.text()) {
        ip.legacy_ip(errors);
    }
    match (addressed, mode.exists()) {
        (true, false) => mode.missing(errors, "must be specified when `ip` is set"),
        (false, true) => mode.forbidden(errors, "may not be specified when `ip` is not set"),
        _ => mode.optional_one_of(errors, &["Proxy", "VIP"]),
    }
    if !host.text().is_empty() {
        host.format(errors, names::dns1123_subdomain);
        if parse_ip_sloppy(host.text()).is_some() {
            host.invalid(errors, "must be a DNS name, not an IP address");
        }
    }
}

/// What is said of addresses in a notation that others may read otherwise.
pub fn warnings(service: &Value) -> Vec<String> {
    let ingress = list(service, "status.loadBalancer.ingress").iter().enumerate();
    let warned =
        |(index, one): (usize, &Value)| ip_warning(&format!("status.loadBalancer.ingress[{index}]"), text(one, "ip"));
    ingress.filter_map(warned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn statuses() {
        let status = |type_: &str, ingress: Value| json!({"spec": {"type": type_}, "status": {"loadBalancer": {"ingress": ingress}}});
        let old = status("LoadBalancer", json!([{"ip": "01.2.3.4"}]));
        for (type_, ingress, expected) in [
            ("LoadBalancer", json!([{"ip": "1.2.3.4", "ipMode": "VIP"}, {"hostname": "a.b"}]), "[]"),
            ("LoadBalancer", json!([{"ip": "01.2.3.4", "ipMode": "Proxy"}]), "[]"),
            (
                "ClusterIP",
                json!([{"ip": "x"}]),
                "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'",
            ),
            (
                "LoadBalancer",
                json!([{"ip": "02.2.3.4"}, {"ipMode": "VIP"}, {"ip": "1.2.3.4", "ipMode": "X"}, {"hostname": "1.2.3.4"}, {"hostname": "A"}]),
                "[status.loadBalancer.ingress[0].ip: Invalid value: \"02.2.3.4\": must not have leading 0s, \
                 status.loadBalancer.ingress[0].ipMode: Required value: must be specified when `ip` is set, \
                 status.loadBalancer.ingress[1].ipMode: Forbidden: may not be specified when `ip` is not set, \
                 status.loadBalancer.ingress[2].ipMode: Unsupported value: \"X\": supported values: \"Proxy\", \"VIP\", \
                 status.loadBalancer.ingress[3].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address, \
                 status.loadBalancer.ingress[4].hostname: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')]",
            ),
        ] {
            assert_eq!(join(&validate(&status(type_, ingress.clone()), &old)), expected, "{ingress}");
        }
    }

    #[test]
    fn warned_of() {
        let status = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "x"}, {"ip": "01.2.3.4"}]}}});
        assert_eq!(
            warnings(&status),
            ["status.loadBalancer.ingress[1]: non-standard IP address \"01.2.3.4\" is invalid: use \"1.2.3.4\""]
        );
    }
}
