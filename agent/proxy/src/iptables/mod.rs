//! [`Rules`] as iptables rules under stock kube-proxy's chain names, written by `iptables-restore`.
//!
//! For kernels without nf_tables, and for people whose tools look for these chains. The text is
//! rendered whole; only chains that changed are sent.

mod apply;

use std::collections::BTreeMap;

use crate::Settings;
use crate::model::{Endpoint, PortName, Rules, ServicePort};
use crate::names::iptables_chain;

pub use apply::{Writer, remove};

const MARK: &str = "0x4000";

/// The chains of one table with their rules, each rule as after `-A CHAIN `.
pub type Table = BTreeMap<String, Vec<String>>;

/// Both tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    pub filter: Table,
    pub nat: Table,
}

/// A jump from a built-in chain, made once: table, chain, rule.
pub const JUMPS: &[(&str, &str, &str)] = &[
    (
        "filter",
        "INPUT",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
    ),
    (
        "filter",
        "OUTPUT",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
    ),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
    ),
    ("filter", "INPUT", "-m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS"),
    (
        "filter",
        "INPUT",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES",
    ),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES",
    ),
    ("filter", "FORWARD", "-m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD"),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
    ),
    (
        "filter",
        "OUTPUT",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
    ),
    ("filter", "INPUT", "-j KUBE-FIREWALL"),
    ("filter", "OUTPUT", "-j KUBE-FIREWALL"),
    ("nat", "OUTPUT", "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"),
    ("nat", "PREROUTING", "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"),
    ("nat", "POSTROUTING", "-m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING"),
];

pub fn render(rules: &Rules, settings: &Settings) -> Text {
    let mut text = skeleton(rules);
    for (name, port) in &rules.ports {
        Render { text: &mut text, settings, name, port }.all();
    }
    let node_ports = "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL";
    let services = text.nat.entry("KUBE-SERVICES".into()).or_default();
    if settings.node_port_nets.is_empty() {
        services.push(format!("{node_ports} -j KUBE-NODEPORTS"));
    }
    for net in &settings.node_port_nets {
        services.push(format!("{node_ports} -d {net} -j KUBE-NODEPORTS"));
    }
    text
}

fn skeleton(rules: &Rules) -> Text {
    let mut text = Text::default();
    for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-NODEPORTS"] {
        text.filter.entry(chain.into()).or_default();
    }
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS"] {
        text.nat.entry(chain.into()).or_default();
    }
    text.filter.insert(
        "KUBE-FORWARD".into(),
        vec![
            "-m conntrack --ctstate INVALID -j DROP".into(),
            format!("-m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MARK}/{MARK} -j ACCEPT"),
            "-m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into(),
        ],
    );
    // Node ports on 127.0.0.1 need route_localnet; nobody else may use it.
    let martians = "-m comment --comment \"block incoming localnet connections\" ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";
    text.filter.insert("KUBE-FIREWALL".into(), vec![martians.into()]);
    for (port, check) in &rules.health_checks {
        let rule = format!(
            "-m comment --comment \"{}/{} health check node port\" -p tcp -m tcp --dport {port} -j ACCEPT",
            check.namespace, check.service
        );
        text.filter.entry("KUBE-NODEPORTS".into()).or_default().push(rule);
    }
    text.nat.insert("KUBE-MARK-MASQ".into(), vec![format!("-j MARK --or-mark {MARK}")]);
    text.nat.insert(
        "KUBE-POSTROUTING".into(),
        vec![
            format!("-m mark ! --mark {MARK}/{MARK} -j RETURN"),
            format!("-j MARK --xor-mark {MARK}"),
            "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully".into(),
        ],
    );
    text
}

struct Render<'a> {
    text: &'a mut Text,
    settings: &'a Settings,
    name: &'a PortName,
    port: &'a ServicePort,
}

impl Render<'_> {
    fn all(mut self) {
        self.endpoints();
        self.internal();
        if self.port.has_outside() {
            self.outside();
        }
    }

    fn chain(&self, prefix: &str) -> String {
        iptables_chain(prefix, self.name, None)
    }

    fn endpoint_chain(&self, endpoint: &Endpoint) -> String {
        iptables_chain("KUBE-SEP-", self.name, Some(endpoint))
    }

    fn nat(&mut self, chain: &str, rule: String) {
        self.text.nat.entry(chain.to_owned()).or_default().push(rule);
    }

    fn filter(&mut self, chain: &str, rule: String) {
        self.text.filter.entry(chain.to_owned()).or_default().push(rule);
    }

    /// `-p tcp -m tcp`
    fn protocol(&self) -> String {
        let name = self.name.protocol.name();
        format!("-p {name} -m {name}")
    }

    fn to(&self, address: std::net::Ipv4Addr) -> String {
        format!("{} -d {address}/32 --dport {}", self.protocol(), self.port.port)
    }

    fn comment(&self, words: &str) -> String {
        format!("-m comment --comment \"{}{words}\"", self.name)
    }

    fn endpoints(&mut self) {
        for endpoint in self.port.all_endpoints() {
            let chain = self.endpoint_chain(endpoint);
            let comment = self.comment("");
            self.nat(&chain, format!("{comment} -s {}/32 -j KUBE-MARK-MASQ", endpoint.address));
            let affinity = match self.port.affinity {
                Some(_) => format!("-m recent --name {chain} --set "),
                None => String::new(),
            };
            let protocol = self.protocol();
            self.nat(&chain, format!("{comment} {affinity}{protocol} -j DNAT --to-destination {endpoint}"));
        }
    }

    fn choose(&mut self, chain: &str, endpoints: &[Endpoint]) {
        let comment = |endpoint: &Endpoint| format!("-m comment --comment \"{} -> {endpoint}\"", self.name);
        let mut rules = Vec::new();
        if let Some(timeout) = self.port.affinity {
            for endpoint in endpoints {
                let target = self.endpoint_chain(endpoint);
                let seconds = timeout.as_secs();
                rules.push(format!(
                    "{} -m recent --name {target} --rcheck --seconds {seconds} --reap -j {target}",
                    comment(endpoint)
                ));
            }
        }
        for (at, endpoint) in endpoints.iter().enumerate() {
            let left = endpoints.len() - at;
            // The last one takes what the others did not.
            let chance = match left {
                1 => String::new(),
                _ => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            rules.push(format!("{} {chance}-j {}", comment(endpoint), self.endpoint_chain(endpoint)));
        }
        for rule in rules {
            self.nat(chain, rule);
        }
    }

    fn without_endpoints(&self) -> (&'static str, &'static str) {
        if self.port.usable_elsewhere { (" has no local endpoints", "DROP") } else { (" has no endpoints", "REJECT") }
    }

    /// The chain for all endpoints of a policy, filled once.
    fn service_chain(&mut self, prefix: &str, endpoints: &[Endpoint]) -> String {
        let chain = self.chain(prefix);
        if !self.text.nat.contains_key(&chain) {
            let comment = self.comment(" cluster IP");
            let to = self.to(self.port.cluster_ip);
            let outside = self.settings.cluster_cidr;
            if prefix == self.internal_prefix() {
                self.nat(&chain, format!("{comment} {to} ! -s {outside} -j KUBE-MARK-MASQ"));
            }
            self.choose(&chain, endpoints);
        }
        chain
    }

    fn internal_prefix(&self) -> &'static str {
        if self.port.internal_local { "KUBE-SVL-" } else { "KUBE-SVC-" }
    }

    fn internal(&mut self) {
        let endpoints = self.port.internal_endpoints().to_vec();
        let to = self.to(self.port.cluster_ip);
        if endpoints.is_empty() {
            let (words, target) = self.without_endpoints();
            let comment = self.comment(words);
            return self.filter("KUBE-SERVICES", format!("{comment} {to} -j {target}"));
        }
        let chain = self.service_chain(self.internal_prefix(), &endpoints);
        let comment = self.comment(" cluster IP");
        self.nat("KUBE-SERVICES", format!("{comment} {to} -j {chain}"));
    }

    fn outside(&mut self) {
        let endpoints = self.port.outside_endpoints().to_vec();
        if !endpoints.is_empty() || !self.port.cluster_endpoints.is_empty() {
            let chain = self.external_chain(&endpoints);
            self.lead_to(&chain);
        }
        if endpoints.is_empty() {
            let (words, target) = self.without_endpoints();
            let comment = self.comment(words);
            for address in self.port.outside_ips() {
                let to = self.to(address);
                self.filter("KUBE-EXTERNAL-SERVICES", format!("{comment} {to} -j {target}"));
            }
            if let Some(port) = self.port.node_port {
                let protocol = self.protocol();
                let to = format!("-m addrtype --dst-type LOCAL {protocol} --dport {port}");
                self.filter("KUBE-EXTERNAL-SERVICES", format!("{comment} {to} -j {target}"));
            }
        }
    }

    fn lead_to(&mut self, chain: &str) {
        for address in &self.port.external_ips {
            let (comment, to) = (self.comment(" external IP"), self.to(*address));
            self.nat("KUBE-SERVICES", format!("{comment} {to} -j {chain}"));
        }
        let entry = if self.port.source_ranges.is_empty() { chain.to_owned() } else { self.firewall(chain) };
        for address in &self.port.load_balancer_ips {
            let (comment, to) = (self.comment(" loadbalancer IP"), self.to(*address));
            self.nat("KUBE-SERVICES", format!("{comment} {to} -j {entry}"));
        }
        if let Some(port) = self.port.node_port {
            let (comment, protocol) = (self.comment(""), self.protocol());
            self.nat("KUBE-NODEPORTS", format!("{comment} {protocol} --dport {port} -j {chain}"));
        }
    }

    fn firewall(&mut self, chain: &str) -> String {
        if self.port.load_balancer_ips.is_empty() {
            return chain.to_owned();
        }
        let firewall = self.chain("KUBE-FW-");
        let comment = self.comment(" loadbalancer IP");
        for range in self.port.allowed_sources(self.settings.node_ip) {
            self.nat(&firewall, format!("{comment} -s {range} -j {chain}"));
        }
        let dropped = format!("-m comment --comment \"{} traffic not accepted by {firewall}\"", self.name);
        for address in &self.port.load_balancer_ips {
            let to = self.to(*address);
            self.filter("KUBE-PROXY-FIREWALL", format!("{dropped} {to} -j DROP"));
        }
        firewall
    }

    fn external_chain(&mut self, endpoints: &[Endpoint]) -> String {
        let chain = self.chain("KUBE-EXT-");
        let name = self.name;
        if !self.port.external_local {
            let all = self.service_chain("KUBE-SVC-", endpoints);
            self.nat(
                &chain,
                format!(
                    "-m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ"
                ),
            );
            self.nat(&chain, format!("-j {all}"));
            return chain;
        }
        let anywhere = self.port.cluster_endpoints.clone();
        if !anywhere.is_empty() {
            let all = self.service_chain("KUBE-SVC-", &anywhere);
            let pods = self.settings.cluster_cidr;
            self.nat(
                &chain,
                format!("-m comment --comment \"pod traffic for {name} external destinations\" -s {pods} -j {all}"),
            );
            self.nat(&chain, format!("-m comment --comment \"masquerade LOCAL traffic for {name} external destinations\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
            self.nat(&chain, format!("-m comment --comment \"route LOCAL traffic for {name} external destinations\" -m addrtype --src-type LOCAL -j {all}"));
        }
        if !endpoints.is_empty() {
            let local = self.service_chain("KUBE-SVL-", endpoints);
            self.nat(&chain, format!("-j {local}"));
        }
        chain
    }
}
