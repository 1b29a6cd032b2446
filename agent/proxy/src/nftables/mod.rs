//! [`Rules`] as one nf_tables table, `skiff_proxy`.
//!
//! Packets meet a verdict map first: destination, protocol and port in one look-up, however many
//! Services there are. A Service's chain picks an endpoint's chain at random (or the one the client
//! is stuck to), and that chain translates. Packets to be masqueraded are marked on their way.
//!
//! ```text
//! prerouting, output ─► services ─► service-… ─► endpoint-…  (dnat)
//!                          └─► external-… ─► service-…
//! postrouting ─► masquerade what is marked
//! input, forward, output (filter) ─► reject or drop where there is no endpoint
//! ```

mod apply;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use netlink::IpNet;
use netlink::nft::{
    BaseChain, ChainType, ElementValue, Family, Field, Hook, KeyPart, KeyType, Reject, Rule, Ruleset, SetKind, SetSpec,
    Statement, Table, Verdict, key, priority,
};

pub use apply::Writer;

use crate::Settings;
use crate::model::{Endpoint, PortName, Rules, ServicePort};
use crate::names::nft_name;

/// kube-proxy's mark for packets to be masqueraded.
const MASQUERADE_MARK: u32 = 0x4000;

const SERVICES: &str = "services";
const SERVICE_IPS: &str = "service-ips";
const NODE_PORTS: &str = "service-nodeports";
const NO_ENDPOINT_IPS: &str = "no-endpoint-services";
const NO_ENDPOINT_PORTS: &str = "no-endpoint-nodeports";
const FIREWALL_IPS: &str = "firewall-ips";
const CLUSTER_IPS: &str = "cluster-ips";
const REJECT: &str = "reject-chain";
const ENDPOINTS_CHECK: &str = "endpoints-check";
const PORTS_CHECK: &str = "nodeports-check";

pub fn table() -> Table {
    Table::new(Family::Ipv4, "skiff_proxy")
}

fn by_address() -> Vec<Field> {
    vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort]
}

fn by_port() -> Vec<Field> {
    vec![Field::Protocol, Field::DestinationPort]
}

pub fn render(rules: &Rules, settings: &Settings) -> Ruleset {
    let mut ruleset = skeleton(settings);
    for (name, port) in &rules.ports {
        Render { ruleset: &mut ruleset, settings, name, port }.all();
    }
    ruleset
}

/// What is there without any Service.
fn skeleton(settings: &Settings) -> Ruleset {
    let mut ruleset = Ruleset::new(table());
    let address_map = SetSpec::new([KeyType::Ipv4, KeyType::Protocol, KeyType::Port], SetKind::VerdictMap);
    let port_map = SetSpec::new([KeyType::Protocol, KeyType::Port], SetKind::VerdictMap);
    for name in [SERVICE_IPS, NO_ENDPOINT_IPS, FIREWALL_IPS] {
        ruleset.set(name, address_map.clone());
    }
    for name in [NODE_PORTS, NO_ENDPOINT_PORTS] {
        ruleset.set(name, port_map.clone());
    }
    ruleset.set(CLUSTER_IPS, SetSpec::new([KeyType::Ipv4], SetKind::Set));

    let new = || Statement::has_bits(Field::ConntrackState, Field::NEW);
    let map = |fields: Vec<Field>, map: &str| Statement::VerdictMap { fields, map: map.to_owned() };
    ruleset.base_chain("prerouting", BaseChain::new(ChainType::Nat, Hook::Prerouting, priority::DSTNAT));
    ruleset.base_chain("output", BaseChain::new(ChainType::Nat, Hook::Output, priority::DSTNAT));
    for chain in ["prerouting", "output"] {
        ruleset.rule(chain, Rule::new([Statement::jump(SERVICES)]));
    }
    ruleset.rule(SERVICES, Rule::new([map(by_address(), SERVICE_IPS)]));
    for mut to_node in to_node_addresses(settings) {
        to_node.push(map(by_port(), NODE_PORTS));
        ruleset.rule(SERVICES, Rule::new(to_node));
    }
    ruleset.base_chain("postrouting", BaseChain::new(ChainType::Nat, Hook::Postrouting, priority::SRCNAT));
    ruleset.rule(
        "postrouting",
        Rule::new([
            Statement::has_bits(Field::Mark, MASQUERADE_MARK),
            // A tunnel around the packet must not be masqueraded again.
            Statement::AndMark(!MASQUERADE_MARK),
            Statement::Masquerade { fully_random: true },
        ]),
    );
    firewall_hook(&mut ruleset, "firewall-prerouting", Hook::Prerouting);
    firewall_hook(&mut ruleset, "firewall-output", Hook::Output);
    for (chain, hook) in
        [("filter-input", Hook::Input), ("filter-forward", Hook::Forward), ("filter-output", Hook::Output)]
    {
        ruleset.base_chain(chain, BaseChain::new(ChainType::Filter, hook, priority::FILTER));
        if hook == Hook::Input {
            ruleset.rule(chain, Rule::new([new(), Statement::jump(PORTS_CHECK)]));
        }
        ruleset.rule(chain, Rule::new([new(), Statement::jump(ENDPOINTS_CHECK)]));
    }
    for mut to_node in to_node_addresses(settings) {
        to_node.push(map(by_port(), NO_ENDPOINT_PORTS));
        ruleset.rule(PORTS_CHECK, Rule::new(to_node));
    }
    ruleset.rule(ENDPOINTS_CHECK, Rule::new([map(by_address(), NO_ENDPOINT_IPS)]));
    let to_cluster_ip =
        Statement::InSet { fields: vec![Field::DestinationAddress], set: CLUSTER_IPS.to_owned(), negated: false };
    ruleset.rule(ENDPOINTS_CHECK, Rule::new([to_cluster_ip, Statement::goto(REJECT)]).comment("no such port"));
    // A local process is still sending when an ICMP answer to its SYN comes, and would only notice at
    // the next try, a second later; a reset it takes at once.
    let tcp = Statement::equals(Field::Protocol, [6]);
    ruleset.rule(REJECT, Rule::new([tcp, Statement::Reject(Reject::TcpReset)]));
    ruleset.rule(REJECT, Rule::new([Statement::Reject(Reject::PortUnreachable)]));
    ruleset
}

/// Before translation, where the load balancer's address can still be seen.
fn firewall_hook(ruleset: &mut Ruleset, chain: &str, hook: Hook) {
    ruleset.base_chain(chain, BaseChain::new(ChainType::Filter, hook, priority::DSTNAT - 20));
    let new = Statement::has_bits(Field::ConntrackState, Field::NEW);
    let lookup = Statement::VerdictMap { fields: by_address(), map: FIREWALL_IPS.to_owned() };
    ruleset.rule(chain, Rule::new([new, lookup]));
}

/// Matches for packets to the addresses that node ports are on.
fn to_node_addresses(settings: &Settings) -> Vec<Vec<Statement>> {
    let local = Statement::equals(Field::DestinationType, Field::LOCAL.to_ne_bytes());
    let loopback = IpNet::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8);
    let mut common = vec![local, Statement::not_in_net(Field::DestinationAddress, loopback)];
    if let Some(served) = settings.served_here {
        common.push(Statement::not_in_net(Field::DestinationAddress, IpNet::host(served.into())));
    }
    if settings.node_port_nets.is_empty() {
        return vec![common];
    }
    let within = |net: &IpNet| [&common[..], &[Statement::in_net(Field::DestinationAddress, *net)]].concat();
    settings.node_port_nets.iter().map(within).collect()
}

struct Render<'a> {
    ruleset: &'a mut Ruleset,
    settings: &'a Settings,
    name: &'a PortName,
    port: &'a ServicePort,
}

impl Render<'_> {
    fn all(mut self) {
        let cluster_ip = self.port.cluster_ip;
        let cluster_key = key(&[KeyPart::Address(cluster_ip.into())]);
        self.element(CLUSTER_IPS, cluster_key, ElementValue::None);
        self.endpoints();
        self.internal();
        if self.port.has_outside() {
            self.outside();
        }
    }

    fn element(&mut self, set: &str, key: Vec<u8>, value: ElementValue) {
        if let Some(set) = self.ruleset.sets.get_mut(set) {
            set.elements.insert(key, value);
        }
    }

    fn address_key(&self, address: Ipv4Addr) -> Vec<u8> {
        let protocol = self.name.protocol.number();
        key(&[KeyPart::Address(address.into()), KeyPart::Protocol(protocol), KeyPart::Port(self.port.port)])
    }

    fn goto(&mut self, set: &str, key: Vec<u8>, chain: String) {
        self.element(set, key, ElementValue::Verdict(Verdict::Goto(chain)));
    }

    fn endpoint_chain(&self, endpoint: &Endpoint) -> String {
        nft_name("endpoint", self.name, Some(endpoint))
    }

    /// Named by its time too: a set's shape cannot be changed, and one whose shape differs has the whole table
    /// written anew, which makes every Service forget its clients.
    fn affinity_set(&self, endpoint: &Endpoint, timeout: Duration) -> String {
        nft_name(&format!("affinity{}", timeout.as_secs()), self.name, Some(endpoint))
    }

    fn endpoints(&mut self) {
        for endpoint in self.port.all_endpoints() {
            let chain = self.endpoint_chain(endpoint);
            let own = Statement::in_net(Field::SourceAddress, IpNet::host(endpoint.address.into()));
            let mark = Statement::OrMark(MASQUERADE_MARK);
            self.ruleset.rule(&chain, Rule::new([own, mark]).comment("an endpoint that calls itself"));
            if let Some(timeout) = self.port.affinity {
                let set = self.affinity_set(endpoint, timeout);
                self.ruleset.set(&set, SetSpec::new([KeyType::Ipv4], SetKind::Dynamic { timeout }));
                self.ruleset
                    .rule(&chain, Rule::new([Statement::UpdateSet { set, fields: vec![Field::SourceAddress] }]));
            }
            let protocol = Statement::equals(Field::Protocol, [self.name.protocol.number()]);
            let translate = Statement::DestinationNat { address: endpoint.address, port: endpoint.port };
            self.ruleset.rule(&chain, Rule::new([protocol, translate]));
        }
    }

    /// Rules that send a packet to one of `endpoints`.
    fn choose(&mut self, chain: &str, endpoints: &[Endpoint]) {
        if let Some(timeout) = self.port.affinity {
            for endpoint in endpoints {
                let set = self.affinity_set(endpoint, timeout);
                let stuck = Statement::InSet { fields: vec![Field::SourceAddress], set, negated: false };
                let target = Statement::goto(self.endpoint_chain(endpoint));
                self.ruleset.rule(chain, Rule::new([stuck, target]));
            }
        }
        let targets: Vec<Verdict> =
            endpoints.iter().map(|endpoint| Verdict::Goto(self.endpoint_chain(endpoint))).collect();
        let last = match targets.as_slice() {
            [only] => Statement::Verdict(only.clone()),
            _ => Statement::RandomVerdict(targets),
        };
        self.ruleset.rule(chain, Rule::new([last]));
    }

    fn internal(&mut self) {
        let endpoints = self.port.internal_endpoints().to_vec();
        let key = self.address_key(self.port.cluster_ip);
        if endpoints.is_empty() {
            let verdict = self.verdict_without_endpoints();
            return self.element(NO_ENDPOINT_IPS, key, ElementValue::Verdict(verdict));
        }
        let chain = nft_name("service", self.name, None);
        let outside_cluster = Statement::not_in_net(Field::SourceAddress, self.settings.cluster_cidr);
        let to_cluster_ip = Statement::in_net(Field::DestinationAddress, IpNet::host(self.port.cluster_ip.into()));
        let mark = Statement::OrMark(MASQUERADE_MARK);
        self.ruleset.rule(&chain, Rule::new([to_cluster_ip, outside_cluster, mark]));
        self.choose(&chain, &endpoints);
        self.goto(SERVICE_IPS, key, chain);
    }

    fn verdict_without_endpoints(&self) -> Verdict {
        if self.port.usable_elsewhere { Verdict::Drop } else { Verdict::Goto(REJECT.to_owned()) }
    }

    fn outside_keys(&self) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
        let addresses = self.port.outside_ips().map(|address| self.address_key(address)).collect();
        let protocol = KeyPart::Protocol(self.name.protocol.number());
        (addresses, self.port.node_port.map(|port| key(&[protocol, KeyPart::Port(port)])))
    }

    fn outside(&mut self) {
        let (addresses, node_port) = self.outside_keys();
        let endpoints = self.port.outside_endpoints().to_vec();
        // Pods and this node may use what strangers may not: under policy Local they go anywhere.
        let reachable = !endpoints.is_empty() || !self.port.cluster_endpoints.is_empty();
        if reachable {
            let chain = self.external_chain(&endpoints);
            for key in &addresses {
                self.goto(SERVICE_IPS, key.clone(), chain.clone());
            }
            if let Some(key) = &node_port {
                self.goto(NODE_PORTS, key.clone(), chain);
            }
        }
        if endpoints.is_empty() {
            let verdict = self.verdict_without_endpoints();
            for key in addresses {
                self.element(NO_ENDPOINT_IPS, key, ElementValue::Verdict(verdict.clone()));
            }
            if let Some(key) = node_port {
                self.element(NO_ENDPOINT_PORTS, key, ElementValue::Verdict(verdict));
            }
        }
        self.firewall();
    }

    fn external_chain(&mut self, endpoints: &[Endpoint]) -> String {
        let chain = nft_name("external", self.name, None);
        let mark = Statement::OrMark(MASQUERADE_MARK);
        if !self.port.external_local {
            self.ruleset.rule(&chain, Rule::new([mark]).comment("the answer must come back this way"));
            self.choose(&chain, endpoints);
            return chain;
        }
        let anywhere = self.port.cluster_endpoints.clone();
        if !anywhere.is_empty() {
            let inside = nft_name("inside", self.name, None);
            self.choose(&inside, &anywhere);
            let from_pods = Statement::in_net(Field::SourceAddress, self.settings.cluster_cidr);
            self.ruleset.rule(&chain, Rule::new([from_pods, Statement::goto(inside.clone())]));
            let from_here = Statement::equals(Field::SourceType, Field::LOCAL.to_ne_bytes());
            self.ruleset.rule(&chain, Rule::new([from_here.clone(), mark]));
            self.ruleset.rule(&chain, Rule::new([from_here, Statement::goto(inside)]));
        }
        if !endpoints.is_empty() {
            self.choose(&chain, endpoints);
        }
        chain
    }

    fn firewall(&mut self) {
        if self.port.source_ranges.is_empty() || self.port.load_balancer_ips.is_empty() {
            return;
        }
        let chain = nft_name("firewall", self.name, None);
        for range in self.port.allowed_sources(self.settings.node_ip) {
            let allowed = Statement::in_net(Field::SourceAddress, range);
            self.ruleset.rule(&chain, Rule::new([allowed, Statement::Verdict(Verdict::Return)]));
        }
        self.ruleset.rule(&chain, Rule::new([Statement::drop()]));
        for address in self.port.load_balancer_ips.clone() {
            let key = self.address_key(address);
            self.goto(FIREWALL_IPS, key, chain.clone());
        }
    }
}
