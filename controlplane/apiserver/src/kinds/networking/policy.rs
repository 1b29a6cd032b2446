//! NetworkPolicies.

use std::collections::HashSet;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::{Node, cidr_warnings, label_selector, parse_cidr_sloppy};
use crate::kinds::table::{named, row, selector, words};
use crate::kinds::value::{at, default_text, list, list_mut, set};
use crate::resource::{Column, Context, Hooks};

const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

pub struct NetworkPolicy;

impl Hooks for NetworkPolicy {
    fn defaults(&self, policy: &mut Value) {
        for direction in ["spec.ingress", "spec.egress"] {
            for rule in list_mut(policy, direction) {
                for port in list_mut(rule, "ports") {
                    default_text(port, "protocol", "TCP");
                }
            }
        }
        if list(policy, "spec.policyTypes").is_empty() {
            // Every policy is about ingress; about egress only when it says something of it.
            let egress = !list(policy, "spec.egress").is_empty();
            set(policy, "spec.policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, policy: &Value) -> ErrorList {
        validate(policy, &HashSet::new())
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate(new, &networks(old))
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        for_each_network(new, |network| warnings.extend(cidr_warnings(network)));
        warnings
    }

    fn row(&self, policy: &Value, now: Timestamp) -> Vec<Value> {
        row(policy, now, vec![selector(at(policy, "spec.podSelector")).into()])
    }
}

/// Calls `with` for every network that a policy names.
fn for_each_network(policy: &Value, mut with: impl FnMut(&Node<'_>)) {
    for (direction, peers) in DIRECTIONS {
        for rule in Node::root(policy).items(&format!("spec.{direction}")) {
            for peer in rule.items(peers) {
                let block = peer.child("ipBlock");
                if block.has("cidr") {
                    with(&block.child("cidr"));
                }
                block.items("except").iter().for_each(&mut with);
            }
        }
    }
}

fn networks(policy: &Value) -> HashSet<String> {
    let mut found = HashSet::new();
    for_each_network(policy, |network| {
        found.insert(network.text().to_owned());
    });
    found
}

/// `known`: networks that the stored policy holds already, in whatever notation.
fn validate(policy: &Value, known: &HashSet<String>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(policy).child("spec");
    label_selector(&spec.child("podSelector"), &mut errors);
    for (direction, peers) in DIRECTIONS {
        for rule in spec.items(direction) {
            for port in rule.items("ports") {
                validate_port(&port, &mut errors);
            }
            for peer in rule.items(peers) {
                validate_peer(&peer, known, &mut errors);
            }
        }
    }
    let types = spec.items("policyTypes");
    if types.len() > 2 {
        spec.child("policyTypes").invalid(&mut errors, "may not specify more than two policyTypes");
        return errors;
    }
    for kind in types {
        kind.one_of(&mut errors, &["Ingress", "Egress"]);
    }
    errors
}

fn validate_port(port: &Node<'_>, errors: &mut ErrorList) {
    port.child("protocol").optional_one_of(errors, &["TCP", "UDP", "SCTP"]);
    let (first, last) = (port.child("port"), port.child("endPort"));
    match first.value {
        Value::Null => {
            if last.exists() {
                last.invalid(errors, "may not be specified when `port` is not specified");
            }
        }
        Value::String(name) => {
            if last.exists() {
                last.invalid(errors, "may not be specified when `port` is non-numeric");
            }
            for problem in names::port_name(name) {
                first.invalid(errors, problem);
            }
        }
        _ => {
            first.port_number(errors);
            if last.exists() {
                if last.int() < first.int() {
                    // The start of the range is what is shown.
                    errors.push(Error::invalid(&last.path, first.int(), "must be greater than or equal to `port`"));
                }
                last.port_number(errors);
            }
        }
    }
}

fn validate_peer(peer: &Node<'_>, known: &HashSet<String>, errors: &mut ErrorList) {
    let selectors = ["podSelector", "namespaceSelector"];
    for field in selectors {
        label_selector(&peer.child(field), errors);
    }
    let selects = selectors.iter().any(|field| peer.has(field));
    let block = peer.child("ipBlock");
    if block.exists() {
        ip_block(&block, known, errors);
        if selects {
            peer.forbidden(errors, "may not specify both ipBlock and another peer");
        }
    } else if !selects {
        peer.missing(errors, "must specify a peer");
    }
}

fn ip_block(block: &Node<'_>, known: &HashSet<String>, errors: &mut ErrorList) {
    let cidr = block.child("cidr");
    if !cidr.required(errors, "") {
        return;
    }
    let readable = |network: &Node<'_>, errors: &mut ErrorList| known.contains(network.text()) || network.cidr(errors);
    if !readable(&cidr, errors) {
        return;
    }
    let Some(outer) = parse_cidr_sloppy(cidr.text()) else { return };
    for except in block.items("except") {
        if !readable(&except, errors) {
            continue;
        }
        if parse_cidr_sloppy(except.text()).is_some_and(|inner| !strictly_within(inner, outer)) {
            except.invalid(errors, "must be a strict subset of `cidr`");
        }
    }
}

fn strictly_within(inner: (std::net::IpAddr, u8), outer: (std::net::IpAddr, u8)) -> bool {
    use std::net::IpAddr;
    if inner.1 <= outer.1 {
        return false;
    }
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 4),
        IpAddr::V6(v6) => (u128::from(v6), 6),
    };
    let ((a, family_a), (b, family_b)) = (bits(inner.0), bits(outer.0));
    let same_prefix = outer.1 == 0 || (a >> (128 - u32::from(outer.1))) == (b >> (128 - u32::from(outer.1)));
    family_a == family_b && same_prefix
}

pub fn columns() -> Vec<Column> {
    named(vec![words("Pod-Selector", "podSelector selects the pods to which this NetworkPolicy object applies.")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use api::field::join;

    #[test]
    fn policies() {
        let mut policy = json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}});
        NetworkPolicy.defaults(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        for (rule, expected) in [
            (json!({"from": [{}]}), "spec.ingress[0].from[0]: Required value: must specify a peer"),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16", "10.1.0.0/16"]}}]}),
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                json!({"ports": [{"port": 80, "endPort": 79}]}),
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
            ),
            (
                json!({"ports": [{"port": "A", "endPort": 79, "protocol": "ICMP"}]}),
                "[spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\", \
                 spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when `port` is non-numeric, \
                 spec.ingress[0].ports[0].port: Invalid value: \"A\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), \
                 spec.ingress[0].ports[0].port: Invalid value: \"A\": must contain at least one letter (a-z)]",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.1/8", "except": ["010.0.0.0/9", "::ffff:10.0.0.0/104"]}}]}),
                "[spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length, \
                 spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"010.0.0.0/9\": must not have leading 0s in IP or prefix length, \
                 spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"::ffff:10.0.0.0/104\": must not have an IPv4-mapped IPv6 address, \
                 spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"::ffff:10.0.0.0/104\": must be a strict subset of `cidr`]",
            ),
            (
                json!({"ports": [{"endPort": 79}]}),
                "spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when `port` is not specified",
            ),
        ] {
            let policy = json!({"spec": {"ingress": [rule]}});
            assert_eq!(join(&validate(&policy, &HashSet::new())), expected, "{rule}");
            assert_eq!(tested::updated(&NetworkPolicy, &json!({"spec": {}}), &policy), expected, "{rule}");
        }
        // What is stored already may stay.
        let loose =
            json!({"spec": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.1/8", "except": ["010.1.0.0/16"]}}]}]}});
        assert_eq!(tested::updated(&NetworkPolicy, &loose, &loose), "[]");
    }
}
