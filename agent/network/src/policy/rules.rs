//! (policies, pods, namespaces, this node) → table. Pure.
//!
//! ```text
//! forward ─► established: accept
//!         ─► source in @egress:       jump egress-<address>   (return where a rule allows, else drop)
//!         ─► destination in @ingress: jump ingress-<address>  (return where a rule allows, else drop)
//! ```
//!
//! A rule's pods are the elements of a set of their own, so that a pod that comes or goes somewhere
//! in the cluster changes an element and no rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::selector::Selector;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netlink::IpNet;
use netlink::nft::{
    BaseChain, ChainType, Comparison, ElementValue, Field, Hook, KeyPart, KeyType, Rule, Ruleset, SetKind, SetSpec,
    Statement, Verdict, key, priority,
};

use super::table;
use super::view::{PodView, protocol};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Where the selected pod's own address is.
    const fn own(self) -> Field {
        match self {
            Self::Ingress => Field::DestinationAddress,
            Self::Egress => Field::SourceAddress,
        }
    }

    const fn peer(self) -> Field {
        match self {
            Self::Ingress => Field::SourceAddress,
            Self::Egress => Field::DestinationAddress,
        }
    }
}

/// Bytes of a policy's name in the names of its sets, of which the kernel takes 255 in all.
const LONGEST_NAME: usize = 150;

struct Cluster {
    pods: Vec<PodView>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

pub fn render(
    policies: &[Arc<NetworkPolicy>],
    pods: Vec<PodView>,
    namespaces: &[Arc<Namespace>],
    node: &str,
) -> Ruleset {
    let cluster = Cluster {
        pods: one_per_address(pods),
        namespaces: namespaces
            .iter()
            .map(|each| {
                (each.metadata.name.clone().unwrap_or_default(), each.metadata.labels.clone().unwrap_or_default())
            })
            .collect(),
    };
    let mut policies: Vec<&NetworkPolicy> = policies.iter().map(AsRef::as_ref).collect();
    policies.sort_by_key(|policy| (policy.metadata.namespace.clone(), policy.metadata.name.clone()));
    let mut ruleset = skeleton();
    for pod in cluster.pods.iter().filter(|pod| pod.node == node) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let selecting: Vec<&&NetworkPolicy> =
                policies.iter().filter(|policy| applies(policy, pod, direction)).collect();
            if !selecting.is_empty() {
                pod_chain(&mut ruleset, &cluster, pod, direction, &selecting);
            }
        }
    }
    ruleset
}

/// Whether any of the policies says something about the pod.
pub fn any_applies(policies: &[Arc<NetworkPolicy>], pod: &PodView) -> bool {
    let directions = [Direction::Ingress, Direction::Egress];
    policies.iter().any(|policy| directions.iter().any(|direction| applies(policy, pod, *direction)))
}

/// An address belongs to the pod that is staying.
fn one_per_address(mut pods: Vec<PodView>) -> Vec<PodView> {
    pods.sort_by(|a, b| {
        (a.address, a.leaving, &a.namespace, &a.name).cmp(&(b.address, b.leaving, &b.namespace, &b.name))
    });
    pods.dedup_by_key(|pod| pod.address);
    pods
}

fn skeleton() -> Ruleset {
    let mut ruleset = Ruleset::new(table());
    ruleset.base_chain("forward", BaseChain::new(ChainType::Filter, Hook::Forward, priority::FILTER - 1));
    let established = Statement::has_bits(Field::ConntrackState, Field::ESTABLISHED_OR_RELATED);
    ruleset.rule("forward", Rule::new([established, Statement::accept()]));
    for direction in [Direction::Egress, Direction::Ingress] {
        ruleset.set(direction.name(), SetSpec::new([KeyType::Ipv4], SetKind::VerdictMap));
        let lookup = Statement::VerdictMap { fields: vec![direction.own()], map: direction.name().to_owned() };
        ruleset.rule("forward", Rule::new([lookup]));
    }
    ruleset
}

/// Whether a policy selects a pod and says something about this direction.
fn applies(policy: &NetworkPolicy, pod: &PodView, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let says = match &spec.policy_types {
        Some(types) if !types.is_empty() => types.iter().any(|each| each.eq_ignore_ascii_case(direction.name())),
        // Ingress always, egress when there is a rule for it.
        _ => direction == Direction::Ingress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    };
    says && policy.metadata.namespace.as_deref() == Some(&pod.namespace)
        && selector(spec.pod_selector.as_ref()).matches(&pod.labels)
}

/// An absent or empty selector matches everything; one that cannot be read nothing.
fn selector(of: Option<&LabelSelector>) -> Selector {
    match of {
        None => Selector::everything(),
        Some(selector) => Selector::from_label_selector(Some(selector)).unwrap_or_else(|_| Selector::nothing()),
    }
}

/// A peer's selectors, read once for all pods.
struct Chosen<'a> {
    namespaces: BTreeSet<&'a str>,
    pods: Selector,
}

impl Chosen<'_> {
    fn has(&self, pod: &PodView) -> bool {
        self.namespaces.contains(pod.namespace.as_str()) && self.pods.matches(&pod.labels)
    }
}

type Ports<'a> = Option<&'a Vec<NetworkPolicyPort>>;
type Peers<'a> = Option<&'a Vec<NetworkPolicyPeer>>;

/// The rules of one direction: ports and peers.
fn policy_rules(spec: &NetworkPolicySpec, direction: Direction) -> Vec<(Ports<'_>, Peers<'_>)> {
    match direction {
        Direction::Ingress => {
            spec.ingress.iter().flatten().map(|rule| (rule.ports.as_ref(), rule.from.as_ref())).collect()
        }
        Direction::Egress => spec.egress.iter().flatten().map(|rule| (rule.ports.as_ref(), rule.to.as_ref())).collect(),
    }
}

/// What tells a policy's sets from those of others in its namespace.
fn set_name(policy: &NetworkPolicy) -> &str {
    match (policy.metadata.name.as_deref().unwrap_or_default(), &policy.metadata.uid) {
        (name, Some(uid)) if name.len() > LONGEST_NAME => uid,
        (name, _) => name,
    }
}

fn pod_chain(
    ruleset: &mut Ruleset,
    cluster: &Cluster,
    pod: &PodView,
    direction: Direction,
    policies: &[&&NetworkPolicy],
) {
    let chain = format!("{}-{}", direction.name(), pod.address);
    // A pod cannot be kept from itself: what it sends to a Service may come back to it.
    let itself = Statement::in_net(direction.peer(), IpNet::host(pod.address.into()));
    ruleset.rule(&chain, Rule::new([itself, Statement::Verdict(Verdict::Return)]));
    for policy in policies {
        let Some(spec) = &policy.spec else { continue };
        let name = set_name(policy);
        for (at, (ports, peers)) in policy_rules(spec, direction).into_iter().enumerate() {
            let source = RuleSource {
                cluster,
                pod,
                direction,
                id: format!("{}-{}/{name}/{at}", direction.name(), pod.namespace),
            };
            source.write(ruleset, &chain, ports, peers);
        }
    }
    let comment = format!("{}/{}", pod.namespace, pod.name);
    ruleset.rule(&chain, Rule::new([Statement::drop()]).comment(comment));
    let address = key(&[KeyPart::Address(pod.address.into())]);
    if let Some(map) = ruleset.sets.get_mut(direction.name()) {
        map.elements.insert(address, ElementValue::Verdict(Verdict::Jump(chain)));
    }
}

/// One rule of one policy, for one pod.
struct RuleSource<'a> {
    cluster: &'a Cluster,
    pod: &'a PodView,
    direction: Direction,
    /// Names the rule's sets: equal for every pod that the policy selects.
    id: String,
}

impl RuleSource<'_> {
    fn write(&self, ruleset: &mut Ruleset, chain: &str, ports: Ports<'_>, peers: Peers<'_>) {
        let ports = ports.map_or(&[][..], Vec::as_slice);
        let (numbered, named): (Vec<&NetworkPolicyPort>, Vec<_>) = ports.iter().partition(|port| !self.by_peer(port));
        let port_matches: Vec<Vec<Statement>> = match ports.is_empty() {
            true => vec![Vec::new()],
            false => numbered.iter().filter_map(|port| self.port(port)).collect(),
        };
        for peer in self.peer_matches(ruleset, peers) {
            for port in &port_matches {
                let allow = [Statement::Verdict(Verdict::Return)];
                ruleset.rule(chain, Rule::new([&peer[..], &port[..], &allow[..]].concat()));
            }
        }
        if !named.is_empty() {
            self.named_ports(ruleset, chain, &named, peers);
        }
    }

    /// The port's number is not this pod's to say but each peer's own.
    fn by_peer(&self, port: &NetworkPolicyPort) -> bool {
        self.direction == Direction::Egress && matches!(port.port, Some(IntOrString::String(_)))
    }

    /// None when a named port is none of this pod's.
    fn port(&self, port: &NetworkPolicyPort) -> Option<Vec<Statement>> {
        let protocol = protocol(port.protocol.as_deref())?;
        let mut matches = vec![Statement::equals(Field::Protocol, [protocol])];
        let number = match &port.port {
            None => return Some(matches),
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok()?,
            Some(IntOrString::String(name)) => self.pod.port(name, protocol)?,
        };
        let bound = |comparison, value: u16| Statement::Compare {
            field: Field::DestinationPort,
            comparison,
            value: value.to_be_bytes().to_vec(),
        };
        match port.end_port.and_then(|end| u16::try_from(end).ok()) {
            Some(end) => matches.extend([bound(Comparison::AtLeast, number), bound(Comparison::AtMost, end)]),
            None => matches.push(bound(Comparison::Equal, number)),
        }
        Some(matches)
    }

    /// One entry per alternative; an empty one matches every peer.
    fn peer_matches(&self, ruleset: &mut Ruleset, peers: Peers<'_>) -> Vec<Vec<Statement>> {
        let peers = peers.map_or(&[][..], Vec::as_slice);
        if peers.is_empty() {
            return vec![Vec::new()];
        }
        let mut found: Vec<Vec<Statement>> =
            peers.iter().filter_map(|peer| self.block(peer.ip_block.as_ref()?)).collect();
        if peers.iter().any(|peer| peer.ip_block.is_none()) {
            // Looking through the cluster's pods once does for all pods that the policy selects.
            if !ruleset.sets.contains_key(&self.id) {
                let set = ruleset.set(&self.id, SetSpec::new([KeyType::Ipv4], SetKind::Set));
                for address in self.selected(peers).map(|pod| pod.address) {
                    set.elements.insert(key(&[KeyPart::Address(address.into())]), ElementValue::None);
                }
            }
            let member = Statement::InSet { fields: vec![self.direction.peer()], set: self.id.clone(), negated: false };
            found.push(vec![member]);
        }
        found
    }

    fn block(&self, block: &IPBlock) -> Option<Vec<Statement>> {
        let field = self.direction.peer();
        let parse = |text: &String| text.parse::<IpNet>().ok().filter(|net| net.address.is_ipv4());
        let mut matches = vec![Statement::in_net(field, parse(&block.cidr)?)];
        matches.extend(block.except.iter().flatten().filter_map(parse).map(|net| Statement::not_in_net(field, net)));
        Some(matches)
    }

    /// The pods that any of the peers' selectors select.
    fn selected(&self, peers: &[NetworkPolicyPeer]) -> impl Iterator<Item = &PodView> {
        let by_labels = peers.iter().filter(|peer| peer.ip_block.is_none());
        let chosen: Vec<Chosen<'_>> = by_labels
            .map(|peer| Chosen {
                namespaces: self.namespaces(peer.namespace_selector.as_ref()),
                pods: selector(peer.pod_selector.as_ref()),
            })
            .collect();
        self.cluster.pods.iter().filter(move |pod| chosen.iter().any(|peer| peer.has(pod)))
    }

    /// Those that a peer's selector selects; the policy's own without one.
    fn namespaces(&self, of: Option<&LabelSelector>) -> BTreeSet<&str> {
        if of.is_none() {
            return BTreeSet::from([self.pod.namespace.as_str()]);
        }
        let selector = selector(of);
        let selected = self.cluster.namespaces.iter().filter(|(_, labels)| selector.matches(labels));
        selected.map(|(name, _)| name.as_str()).collect()
    }

    /// Named ports of peers: address, protocol and port together are the element.
    fn named_ports(&self, ruleset: &mut Ruleset, chain: &str, ports: &[&NetworkPolicyPort], peers: Peers<'_>) {
        let name = format!("{}/named", self.id);
        if !ruleset.sets.contains_key(&name) {
            self.named_port_set(ruleset, &name, ports, peers);
        }
        let fields = vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
        let member = Statement::InSet { fields, set: name, negated: false };
        ruleset.rule(chain, Rule::new([member, Statement::Verdict(Verdict::Return)]));
    }

    fn named_port_set(&self, ruleset: &mut Ruleset, name: &str, ports: &[&NetworkPolicyPort], peers: Peers<'_>) {
        let peers = peers.map_or(&[][..], Vec::as_slice);
        let spec = SetSpec::new([KeyType::Ipv4, KeyType::Protocol, KeyType::Port], SetKind::Set);
        let everyone: Vec<&PodView> = match peers.is_empty() {
            true => self.cluster.pods.iter().collect(),
            false => self.selected(peers).collect(),
        };
        let set = ruleset.set(name, spec);
        for port in ports {
            let Some((protocol, port)) = protocol(port.protocol.as_deref()).zip(port.port.as_ref()) else { continue };
            let IntOrString::String(port) = port else { continue };
            for pod in &everyone {
                if let Some(number) = pod.port(port, protocol) {
                    let parts =
                        [KeyPart::Address(pod.address.into()), KeyPart::Protocol(protocol), KeyPart::Port(number)];
                    set.elements.insert(key(&parts), ElementValue::None);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
