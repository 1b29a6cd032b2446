//! A pod's resolv.conf (`pkg/kubelet/network/dns`). Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use proto::runtime::v1::DnsConfig;

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

/// The cluster's part in it.
#[derive(Debug, Clone)]
pub struct ClusterDns {
    pub servers: Vec<IpAddr>,
    pub domain: String,
}

/// A resolv.conf's contents, and warnings for the event `DNSConfigForming`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resolver {
    pub config: DnsConfig,
    pub warnings: Vec<String>,
}

/// Parses the host's resolv.conf.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("nameserver") => config.servers.extend(fields.next().map(str::to_owned)),
            // The last search or domain line wins.
            Some("search") => config.searches = fields.map(trim_dot).collect(),
            Some("domain") => config.searches = fields.take(1).map(trim_dot).collect(),
            Some("options") => config.options = fields.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config
}

fn trim_dot(domain: &str) -> String {
    if domain == "." { domain.to_owned() } else { domain.trim_end_matches('.').to_owned() }
}

/// What the pod's policy and its own additions make of the cluster's and the host's.
pub fn resolver(pod: &Pod, cluster: &ClusterDns, host: &DnsConfig) -> Resolver {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let mut warnings = Vec::new();
    let mut config = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirstWithHostNet" => cluster_first(pod, cluster, host, &mut warnings),
        "ClusterFirst" if !host_network => cluster_first(pod, cluster, host, &mut warnings),
        _ => default_policy(host),
    };
    if let Some(own) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        append(&mut config.servers, own.nameservers.iter().flatten());
        append(&mut config.searches, own.searches.iter().flatten());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            config.options.retain(|known| known.split(':').next() != Some(name.as_str()));
            config.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    limit(&mut config, &mut warnings);
    Resolver { config, warnings }
}

fn append<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn cluster_first(pod: &Pod, cluster: &ClusterDns, host: &DnsConfig, warnings: &mut Vec<String>) -> DnsConfig {
    if cluster.servers.is_empty() {
        warnings.push("kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.".to_owned());
        return default_policy(host);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = &cluster.domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    }
    append(&mut searches, host.searches.iter());
    DnsConfig {
        servers: cluster.servers.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

/// The host's own; with no server the local one, so that the runtime does not copy its file.
fn default_policy(host: &DnsConfig) -> DnsConfig {
    let mut config = host.clone();
    if config.servers.is_empty() {
        config.servers = vec!["127.0.0.1".to_owned()];
    }
    config
}

fn limit(config: &mut DnsConfig, warnings: &mut Vec<String>) {
    if config.servers.len() > MAX_NAMESERVERS {
        config.servers.truncate(MAX_NAMESERVERS);
        warnings.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            config.servers.join(" ")
        ));
    }
    let mut length = 0;
    let fitting = config
        .searches
        .iter()
        .take(MAX_SEARCHES)
        .take_while(|domain| {
            length += domain.len() + 1;
            length <= MAX_SEARCH_CHARACTERS + 1
        })
        .count();
    if fitting < config.searches.len() {
        config.searches.truncate(fitting);
        warnings.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            config.searches.join(" ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster() -> ClusterDns {
        ClusterDns { servers: vec!["10.43.0.10".parse().unwrap()], domain: "cluster.local".to_owned() }
    }

    fn host() -> DnsConfig {
        parse_resolv_conf(
            "# host\nnameserver 1.1.1.1\nnameserver 8.8.8.8\nsearch example.org lan.\noptions ndots:1 edns0\n",
        )
    }

    fn resolve(spec: serde_json::Value) -> Resolver {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "web"}, "spec": spec})).unwrap();
        resolver(&pod, &cluster(), &host())
    }

    fn lines(resolver: &Resolver) -> (String, String, String) {
        let config = &resolver.config;
        (config.servers.join(" "), config.searches.join(" "), config.options.join(" "))
    }

    #[test]
    fn policies() {
        let cluster_first = "web.svc.cluster.local svc.cluster.local cluster.local example.org lan";
        for (spec, servers, searches, options) in [
            (json!({}), "10.43.0.10", cluster_first, "ndots:5"),
            (json!({"hostNetwork": true}), "1.1.1.1 8.8.8.8", "example.org lan", "ndots:1 edns0"),
            (
                json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                "10.43.0.10",
                cluster_first,
                "ndots:5",
            ),
            (json!({"dnsPolicy": "Default"}), "1.1.1.1 8.8.8.8", "example.org lan", "ndots:1 edns0"),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]}}),
                "9.9.9.9",
                "a.b",
                "ndots:2 rotate",
            ),
            (
                json!({"dnsConfig": {"nameservers": ["9.9.9.9", "10.43.0.10"], "options": [{"name": "ndots", "value": "2"}]}}),
                "10.43.0.10 9.9.9.9",
                cluster_first,
                "ndots:2",
            ),
        ] {
            let expected = (servers.to_owned(), searches.to_owned(), options.to_owned());
            assert_eq!(lines(&resolve(spec.clone())), expected, "{spec}");
        }
    }

    #[test]
    fn limits_are_said() {
        let resolver = resolve(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]}}),
        );
        assert_eq!(resolver.config.servers.len(), 3);
        assert!(resolver.warnings[0].starts_with("Nameserver limits were exceeded"), "{:?}", resolver.warnings);
    }
}
