//! The networks and the domain that all parts of a cluster agree on.
//!
//! The server is told them (`skiff server --cluster-cidr --service-cidr --cluster-dns
//! --cluster-domain`), and publishes them as the ConfigMap `kube-public/skiff-cluster`; nodes read
//! it when they start, so a node is told nothing but where the server is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::{defaults, names};

pub const NAMESPACE: &str = "kube-public";
pub const NAME: &str = "skiff-cluster";

/// An IPv4 network, `10.42.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl Net {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.address)
    }

    fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The address `index` after the network's own.
    fn nth(self, index: u32) -> Ipv4Addr {
        u32::from(self.address).saturating_add(index).into()
    }
}

impl std::str::FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("{text:?} is no IPv4 network; it has the form 10.43.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(problem)?;
        let address: Ipv4Addr = address.parse().map_err(|_| problem())?;
        let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(problem)?;
        let net = Self { address, prefix };
        if u32::from(address) & net.mask() != u32::from(address) {
            let network = Ipv4Addr::from(u32::from(address) & net.mask());
            return Err(format!("{text:?} has bits set after its prefix; did you mean {network}/{prefix}?"));
        }
        Ok(net)
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetwork {
    pub pods: Net,
    pub services: Net,
    /// The cluster DNS address, one of `services`.
    pub dns: Ipv4Addr,
    pub domain: String,
}

impl ClusterNetwork {
    /// Checks that the parts fit together; without `dns` it is the tenth address of the Services'.
    pub fn new(pods: &str, services: &str, dns: Option<Ipv4Addr>, domain: &str) -> Result<Self, String> {
        let (pods, services): (Net, Net) = (pods.parse()?, services.parse()?);
        if pods.overlaps(services) {
            return Err(format!("the pod network {pods} and the Service network {services} overlap"));
        }
        if services.prefix > 28 {
            return Err(format!("the Service network {services} is too small; give it a prefix of at most /28"));
        }
        let dns = dns.unwrap_or_else(|| services.nth(10));
        if !services.contains(dns) || dns == services.nth(0) || dns == services.nth(1) {
            return Err(format!(
                "the DNS address {dns} must be in the Service network {services}, after its first two"
            ));
        }
        let domain = domain.trim_end_matches('.').to_owned();
        if let Some(problem) = names::dns1123_subdomain(&domain).into_iter().next() {
            return Err(format!("the cluster domain {domain:?} is not usable: {problem}"));
        }
        Ok(Self { pods, services, dns, domain })
    }

    /// The address of the Service `kubernetes`.
    pub fn api_service(&self) -> Ipv4Addr {
        self.services.nth(1)
    }

    /// The ConfigMap's data.
    pub fn to_data(&self) -> BTreeMap<String, String> {
        [
            ("clusterCIDR", self.pods.to_string()),
            ("serviceCIDR", self.services.to_string()),
            ("clusterDNS", self.dns.to_string()),
            ("clusterDomain", self.domain.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    pub fn from_data(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let get = |key: &str| data.get(key).map(String::as_str).ok_or_else(|| format!("it has no {key:?}"));
        let dns = get("clusterDNS")?;
        let dns = dns.parse().map_err(|_| format!("clusterDNS {dns:?} is no IPv4 address"))?;
        Self::new(get("clusterCIDR")?, get("serviceCIDR")?, Some(dns), get("clusterDomain")?)
    }
}

impl Default for ClusterNetwork {
    fn default() -> Self {
        Self {
            pods: Net { address: Ipv4Addr::new(10, 42, 0, 0), prefix: 16 },
            services: Net { address: Ipv4Addr::new(10, 43, 0, 0), prefix: 16 },
            dns: Ipv4Addr::new(10, 43, 0, 10),
            domain: defaults::CLUSTER_DOMAIN.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_publishes_is_what_nodes_read() {
        let other = ClusterNetwork::new("10.244.0.0/16", "10.96.0.0/12", None, "lab.example.").unwrap();
        assert_eq!(other.dns, Ipv4Addr::new(10, 96, 0, 10));
        assert_eq!(other.api_service(), Ipv4Addr::new(10, 96, 0, 1));
        for cluster in [ClusterNetwork::default(), other] {
            assert_eq!(ClusterNetwork::from_data(&cluster.to_data()), Ok(cluster));
        }
        let default =
            ClusterNetwork::new(defaults::POD_CIDR, defaults::SERVICE_CIDR, None, defaults::CLUSTER_DOMAIN).unwrap();
        assert_eq!(default, ClusterNetwork::default());
    }

    #[test]
    fn networks_that_do_not_fit_together() {
        let dns = |text: &str| Some(text.parse().unwrap());
        for (pods, services, dns, domain, words) in [
            ("10.42.0.0", "10.43.0.0/16", None, "a", "no IPv4 network"),
            ("10.42.0.0/33", "10.43.0.0/16", None, "a", "no IPv4 network"),
            ("10.42.1.0/16", "10.43.0.0/16", None, "a", "did you mean 10.42.0.0/16"),
            ("10.0.0.0/8", "10.43.0.0/16", None, "a", "overlap"),
            ("10.42.0.0/16", "10.43.0.0/30", None, "a", "too small"),
            ("10.42.0.0/16", "10.43.0.0/16", dns("10.42.0.10"), "a", "must be in the Service network"),
            ("10.42.0.0/16", "10.43.0.0/16", dns("10.43.0.1"), "a", "after its first two"),
            ("10.42.0.0/16", "10.43.0.0/16", None, "Not_A_Domain", "not usable"),
        ] {
            let error = ClusterNetwork::new(pods, services, dns, domain).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(ClusterNetwork::from_data(&BTreeMap::new()).unwrap_err().contains("clusterDNS"));
        assert!("0.0.0.0/0".parse::<Net>().unwrap().contains(Ipv4Addr::new(1, 2, 3, 4)));
    }
}
