//! (index, question) → answer. Pure.
//!
//! ```text
//! <service>.<ns>.svc.<domain>              cluster IPs, or every endpoint of a headless Service
//! <hostname>.<service>.<ns>.svc.<domain>   one endpoint
//! _<port>._<protocol>.<service>.<ns>.svc.<domain>   SRV
//! 10-42-0-5.<ns>.pod.<domain>              10.42.0.5
//! 1.0.43.10.in-addr.arpa                   the name of a cluster IP or endpoint
//! dns-version.<domain>                     version of the naming scheme, TXT
//! ```

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use netlink::IpNet;

use crate::index::{EndpointName, Index, Port, ServiceNames};
use crate::{Config, Error};

/// Seconds that an answer may be kept: an endpoint that is gone is asked for at most this long.
pub const TTL: u32 = 5;
/// Seconds that a missing name may be kept.
const NEGATIVE_TTL: u32 = 5;
/// Version of the naming scheme.
const SCHEMA: &str = "1.1.0";

/// What is to be answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Not the cluster's business.
    Forward,
    /// The cluster's objects are not known yet.
    NotYet,
    /// The name exists; no records where there are none of the type.
    Found { answers: Vec<Record>, additionals: Vec<Record> },
    /// The name is another's: the records of `target` belong into the answer too.
    Alias { alias: Box<Record>, target: Name },
    /// No such name.
    Missing,
}

impl Answer {
    fn records(answers: Vec<Record>) -> Self {
        Self::Found { answers, additionals: Vec::new() }
    }

    /// The name is there, but not with this type.
    fn empty() -> Self {
        Self::records(Vec::new())
    }
}

/// The cluster's domain.
#[derive(Debug, Clone)]
pub struct Zone {
    domain: Name,
    address: Ipv4Addr,
    reverse_nets: Vec<IpNet>,
}

impl Zone {
    pub fn new(config: &Config) -> Result<Self, Error> {
        let failed = |message: String| Error::Domain { domain: config.domain.clone(), message };
        let text = format!("{}.", config.domain.trim_end_matches('.').to_ascii_lowercase());
        let domain = Name::from_ascii(&text).map_err(|error| failed(error.to_string()))?;
        if domain.num_labels() == 0 {
            return Err(failed("it is empty".to_owned()));
        }
        Ok(Self { domain, address: config.address, reverse_nets: config.reverse_nets.clone() })
    }

    /// The authority of a negative answer.
    pub fn soa(&self) -> Record {
        let data =
            SOA::new(self.below(&["ns", "dns"]), self.below(&["hostmaster"]), 1, 7200, 1800, 86400, NEGATIVE_TTL);
        Record::from_rdata(self.domain.clone(), NEGATIVE_TTL, RData::SOA(data))
    }

    fn below(&self, labels: &[&str]) -> Name {
        labels.iter().rev().fold(self.domain.clone(), |name, label| {
            // Labels are Kubernetes names, which are valid and short; a name too long stays what it was.
            name.prepend_label(*label).unwrap_or(name)
        })
    }

    /// `name` as it was asked: answers repeat its letters' case.
    pub fn answer(&self, index: &Index, name: &Name, kind: RecordType) -> Answer {
        if self.domain.zone_of(name) {
            if !index.complete {
                return Answer::NotYet;
            }
            return self.inside(index, name, kind);
        }
        match reverse_address(name) {
            Some(ip) => self.reverse(index, name, kind, ip),
            None => Answer::Forward,
        }
    }

    fn inside(&self, index: &Index, name: &Name, kind: RecordType) -> Answer {
        let depth = usize::from(name.num_labels() - self.domain.num_labels());
        let labels: Option<Vec<String>> =
            name.iter().take(depth).map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase)).collect();
        let Some(labels) = labels else { return Answer::Missing };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let question = Question { zone: self, index, name, kind };
        match labels.as_slice() {
            [] => self.apex(name, kind),
            ["dns-version"] => question.text(SCHEMA),
            ["dns"] | ["svc"] | ["pod"] => Answer::empty(),
            ["ns", "dns"] => question.addresses(&[self.address.into()]),
            [namespace, "svc"] => existing(index.has_namespace(namespace)),
            [namespace, "pod"] => existing(index.has_namespace(namespace)),
            [address, namespace, "pod"] => question.pod(address, namespace),
            [service, namespace, "svc"] => question.service(service, namespace),
            [label, service, namespace, "svc"] if label.starts_with('_') => {
                question.protocol_only(label, service, namespace)
            }
            [hostname, service, namespace, "svc"] => question.endpoint(hostname, service, namespace),
            [port, protocol, service, namespace, "svc"] => question.port(port, protocol, service, namespace),
            _ => Answer::Missing,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => {
                let mut soa = self.soa();
                soa.name = name.clone();
                Answer::records(vec![soa])
            }
            RecordType::NS => {
                let server = self.below(&["ns", "dns"]);
                let glue = address_record(&server, self.address.into());
                let record = Record::from_rdata(name.clone(), TTL, RData::NS(NS(server)));
                Answer::Found { answers: vec![record], additionals: vec![glue] }
            }
            _ => Answer::empty(),
        }
    }

    fn reverse(&self, index: &Index, name: &Name, kind: RecordType, ip: IpAddr) -> Answer {
        let ours = self.reverse_nets.iter().any(|net| net.contains(ip));
        if !index.complete {
            return if ours { Answer::NotYet } else { Answer::Forward };
        }
        let mut targets = Vec::new();
        if let Some((namespace, service)) = index.service_at(ip) {
            targets.push(self.below(&[service, namespace, "svc"]));
        } else {
            for (namespace, service) in index.services_of_endpoint(ip) {
                let endpoints = index.endpoints(namespace, service);
                let hostnames = endpoints.iter().filter(|endpoint| endpoint.address == ip);
                targets.extend(hostnames.map(|endpoint| self.below(&[&endpoint.hostname, service, namespace, "svc"])));
            }
        }
        if ip == IpAddr::V4(self.address) && targets.is_empty() {
            targets.push(self.below(&["ns", "dns"]));
        }
        match (targets.is_empty(), ours) {
            (true, true) => Answer::Missing,
            (true, false) => Answer::Forward,
            _ if kind != RecordType::PTR => Answer::empty(),
            _ => Answer::records(
                targets.into_iter().map(|to| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(to)))).collect(),
            ),
        }
    }
}

fn existing(exists: bool) -> Answer {
    if exists { Answer::empty() } else { Answer::Missing }
}

/// The address of a complete reverse name.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let text = name.to_ascii().to_ascii_lowercase();
    let labels: Vec<&str> = text.trim_end_matches('.').split('.').collect();
    match labels.as_slice() {
        [a, b, c, d, "in-addr", "arpa"] => format!("{d}.{c}.{b}.{a}").parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let digits: String = nibbles.iter().rev().copied().collect();
            u128::from_str_radix(&digits, 16).ok().map(|bits| IpAddr::V6(bits.into()))
        }
        _ => None,
    }
}

fn address_record(name: &Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

/// One question, inside the domain.
struct Question<'a> {
    zone: &'a Zone,
    index: &'a Index,
    name: &'a Name,
    kind: RecordType,
}

impl Question<'_> {
    fn text(&self, text: &str) -> Answer {
        match self.kind {
            RecordType::TXT => {
                let data = RData::TXT(TXT::new(vec![text.to_owned()]));
                Answer::records(vec![Record::from_rdata(self.name.clone(), TTL, data)])
            }
            _ => Answer::empty(),
        }
    }

    fn addresses(&self, ips: &[IpAddr]) -> Answer {
        let fits = |ip: &&IpAddr| match self.kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            _ => false,
        };
        Answer::records(ips.iter().filter(fits).map(|ip| address_record(self.name, *ip)).collect())
    }

    /// Any address, as CoreDNS' `pods insecure`: the name proves nothing about a pod.
    fn pod(&self, address: &str, namespace: &str) -> Answer {
        if !self.index.has_namespace(namespace) {
            return Answer::Missing;
        }
        let ip = if address.matches('-').count() == 3 && !address.contains("--") {
            address.replace('-', ".").parse().ok()
        } else {
            address.replace('-', ":").parse().ok()
        };
        ip.map_or(Answer::Missing, |ip| self.addresses(&[ip]))
    }

    fn service(&self, service: &str, namespace: &str) -> Answer {
        let Some(names) = self.index.service(namespace, service) else { return Answer::Missing };
        if let Some(target) = &names.external_name {
            return self.alias(target);
        }
        if self.kind == RecordType::SRV {
            return self.ports(names, service, namespace, |_| true);
        }
        if !names.headless {
            return self.addresses(&names.cluster_ips);
        }
        let ips: Vec<IpAddr> = self.index.endpoints(namespace, service).iter().map(|each| each.address).collect();
        if ips.is_empty() { Answer::Missing } else { self.addresses(&ips) }
    }

    fn alias(&self, target: &str) -> Answer {
        let text = format!("{}.", target.trim_end_matches('.'));
        let Ok(target) = Name::from_ascii(&text) else { return Answer::empty() };
        let alias = Record::from_rdata(self.name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
        match self.kind {
            RecordType::CNAME => Answer::records(vec![alias]),
            _ => Answer::Alias { alias: Box::new(alias), target },
        }
    }

    fn endpoint(&self, hostname: &str, service: &str, namespace: &str) -> Answer {
        let endpoints = self.index.endpoints(namespace, service);
        let named: Vec<&EndpointName> =
            endpoints.into_iter().filter(|each| each.hostname.eq_ignore_ascii_case(hostname)).collect();
        if self.index.service(namespace, service).is_none() || named.is_empty() {
            return Answer::Missing;
        }
        if self.kind == RecordType::SRV {
            return self.endpoint_ports(&named, service, namespace, |_| true);
        }
        self.addresses(&named.iter().map(|each| each.address).collect::<Vec<_>>())
    }

    /// `_tcp.<service>`: there, when some port has the protocol, but without records of its own.
    fn protocol_only(&self, label: &str, service: &str, namespace: &str) -> Answer {
        let ports = self.index.service(namespace, service).map(|names| &names.ports);
        existing(ports.is_some_and(|ports| ports.iter().any(|port| label.strip_prefix('_') == Some(&port.protocol))))
    }

    fn port(&self, port: &str, protocol: &str, service: &str, namespace: &str) -> Answer {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
            return Answer::Missing;
        };
        let Some(names) = self.index.service(namespace, service) else { return Answer::Missing };
        let matches = |each: &Port| each.name.eq_ignore_ascii_case(port) && each.protocol == protocol;
        let answer = self.ports(names, service, namespace, matches);
        match answer {
            Answer::Found { ref answers, .. } if answers.is_empty() => Answer::Missing,
            Answer::Found { .. } if self.kind != RecordType::SRV => Answer::empty(),
            other => other,
        }
    }

    fn ports(&self, names: &ServiceNames, service: &str, namespace: &str, matches: impl Fn(&Port) -> bool) -> Answer {
        if names.headless {
            let endpoints = self.index.endpoints(namespace, service);
            return self.endpoint_ports(&endpoints, service, namespace, matches);
        }
        let target = self.zone.below(&[service, namespace, "svc"]);
        let ports: Vec<&Port> = names.ports.iter().filter(|port| matches(port)).collect();
        let answers = ports.iter().map(|port| self.srv(port.number, &target, ports.len())).collect();
        let additionals = names.cluster_ips.iter().map(|ip| address_record(&target, *ip)).collect();
        Answer::Found { answers, additionals }
    }

    fn endpoint_ports(
        &self,
        endpoints: &[&EndpointName],
        service: &str,
        namespace: &str,
        matches: impl Fn(&Port) -> bool,
    ) -> Answer {
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let count = endpoints.iter().flat_map(|each| &each.ports).filter(|port| matches(port)).count();
        for endpoint in endpoints {
            let target = self.zone.below(&[&endpoint.hostname, service, namespace, "svc"]);
            for port in endpoint.ports.iter().filter(|port| matches(port)) {
                answers.push(self.srv(port.number, &target, count));
            }
            additionals.push(address_record(&target, endpoint.address));
        }
        Answer::Found { answers, additionals }
    }

    /// Weights share out 100, as CoreDNS does.
    fn srv(&self, port: u16, target: &Name, count: usize) -> Record {
        let weight = u16::try_from(100 / count.max(1)).unwrap_or(1).max(1);
        Record::from_rdata(self.name.clone(), TTL, RData::SRV(SRV::new(0, weight, port, target.clone())))
    }
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
