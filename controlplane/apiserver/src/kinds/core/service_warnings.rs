//! Fields of a Service that have no effect, are deprecated, or are written in an ambiguous way
//! (`pkg/api/service/warnings.go`).

use serde_json::Value;

use super::service_validation::{TOPOLOGY_HINTS, TOPOLOGY_MODE};
use crate::kinds::check::{Node, cidr_warnings, ip_warning};
use crate::kinds::value::{annotation, list, text, texts};

pub fn of(service: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if annotation(service, TOPOLOGY_HINTS).is_some() {
        found.push(format!("annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"));
    }
    let (type_, address) = (text(service, "spec.type"), text(service, "spec.clusterIP"));
    let headless = type_ == "ClusterIP" && address == "None";
    if !matches!(address, "" | "None") {
        ips(service, "spec.clusterIPs", &mut found);
    }
    let balancer_ip = text(service, "spec.loadBalancerIP");
    let outside = !list(service, "spec.externalIPs").is_empty();
    say(&mut found, headless && !balancer_ip.is_empty(), "spec.loadBalancerIP is ignored for headless services");
    say(&mut found, headless && outside, "spec.externalIPs is ignored for headless services");
    let sticky = text(service, "spec.sessionAffinity") != "None";
    say(&mut found, headless && sticky, "spec.SessionAffinity is ignored for headless services");
    ips(service, "spec.externalIPs", &mut found);
    let named = type_ == "ExternalName";
    say(
        &mut found,
        outside && !headless && !named,
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
    );
    found.extend(ip_warning("spec.loadBalancerIP", balancer_ip));
    for range in Node::root(service).items("spec.loadBalancerSourceRanges") {
        found.extend(cidr_warnings(&range));
    }
    say(&mut found, named && outside, "spec.externalIPs is ignored when spec.type is \"ExternalName\"");
    let name = !text(service, "spec.externalName").is_empty();
    say(&mut found, !named && name, "spec.externalName is ignored when spec.type is not \"ExternalName\"");
    say(
        &mut found,
        text(service, "spec.trafficDistribution") == "PreferClose",
        "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
    );
    found
}

fn say(found: &mut Vec<String>, so: bool, words: &str) {
    if so {
        found.push(words.to_owned());
    }
}

fn ips(service: &Value, field: &str, found: &mut Vec<String>) {
    let addresses = texts(service, field).into_iter().enumerate();
    found.extend(addresses.filter_map(|(index, address)| ip_warning(&format!("{field}[{index}]"), address)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn warned_of() {
        for (spec, expected) in [
            (json!({"type": "ClusterIP", "clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"]}), &[][..]),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "loadBalancerIP": "1.2.3.4", "externalIPs": ["1.2.3.4"], "sessionAffinity": "ClientIP"}),
                &[
                    "spec.loadBalancerIP is ignored for headless services",
                    "spec.externalIPs is ignored for headless services",
                    "spec.SessionAffinity is ignored for headless services",
                ],
            ),
            (
                json!({"type": "ClusterIP", "externalIPs": ["001.2.3.4"], "trafficDistribution": "PreferClose"}),
                &[
                    "spec.externalIPs[0]: non-standard IP address \"001.2.3.4\" is invalid: use \"1.2.3.4\"",
                    "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
                    "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
                ],
            ),
            (
                json!({"type": "LoadBalancer", "clusterIP": "FD00::1", "clusterIPs": ["FD00::1"], "loadBalancerIP": "::ffff:1.2.3.4",
                    "loadBalancerSourceRanges": ["10.0.0.1/8"], "externalName": "x"}),
                &[
                    "spec.clusterIPs[0]: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")",
                    "spec.loadBalancerIP: non-standard IP address \"::ffff:1.2.3.4\" is invalid: use \"1.2.3.4\"",
                    "spec.loadBalancerSourceRanges[0]: CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.0.0.1/32\"?)",
                    "spec.externalName is ignored when spec.type is not \"ExternalName\"",
                ],
            ),
            (
                json!({"type": "ExternalName", "externalName": "x", "externalIPs": ["1.2.3.4"]}),
                &["spec.externalIPs is ignored when spec.type is \"ExternalName\""],
            ),
        ] {
            let mut spec = spec;
            if spec.get("sessionAffinity").is_none() {
                spec["sessionAffinity"] = json!("None");
            }
            assert_eq!(of(&json!({"spec": spec})), expected, "{spec}");
        }
        let hints = json!({"metadata": {"annotations": {TOPOLOGY_HINTS: "auto"}}, "spec": {"sessionAffinity": "None"}});
        assert_eq!(
            of(&hints),
            [
                "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead"
            ]
        );
    }
}
