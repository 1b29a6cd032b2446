//! What an ADD answers: interfaces, addresses, routes, DNS.

use netlink::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{Error, Result, at_least};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// From version 1.1.0 on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Path of the namespace; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// "4" or "6", before version 1.0.0.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Index into the result's interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    #[serde(with = "as_text")]
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<std::net::IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    #[serde(with = "as_text")]
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<std::net::IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkResult {
    #[serde(rename = "cniVersion")]
    pub version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    pub dns: Dns,
}

impl NetworkResult {
    /// As JSON of one version of the specification.
    pub fn into_json(mut self, version: &str) -> Result<Value> {
        version.clone_into(&mut self.version);
        for ip in &mut self.ips {
            let family = if ip.address.address.is_ipv4() { "4" } else { "6" };
            ip.version = if at_least(version, (1, 0, 0)) { String::new() } else { family.to_owned() };
        }
        if !at_least(version, (1, 1, 0)) {
            for interface in &mut self.interfaces {
                interface.mtu = 0;
            }
            for route in &mut self.routes {
                (route.mtu, route.advmss, route.priority) = (0, 0, 0);
            }
        }
        serde_json::to_value(self).map_err(|error| Error::internal(format!("result cannot be written: {error}")))
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Values with `Display` and `FromStr` as JSON strings.
mod as_text {
    use super::{Deserialize, Deserializer, Serializer};

    pub fn serialize<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T: std::str::FromStr<Err = String>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_their_family_only_before_1_0_0() {
        let result = NetworkResult {
            ips: vec![Ip {
                version: String::new(),
                interface: Some(0),
                address: "10.42.0.5/24".parse().unwrap(),
                gateway: Some("10.42.0.1".parse().unwrap()),
            }],
            interfaces: vec![Interface { name: "eth0".into(), mtu: 1450, ..Interface::default() }],
            ..NetworkResult::default()
        };
        let old = result.clone().into_json("0.4.0").unwrap();
        assert_eq!(old["ips"][0]["version"], "4");
        assert!(old["interfaces"][0].get("mtu").is_none());
        let new = result.into_json("1.1.0").unwrap();
        assert_eq!(
            new["ips"][0],
            serde_json::json!({"interface": 0, "address": "10.42.0.5/24", "gateway": "10.42.0.1"})
        );
        assert_eq!(new["interfaces"][0]["mtu"], 1450);
    }
}
