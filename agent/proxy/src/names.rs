//! Names of chains: a hash, so that they are unique within the kernel's length, and for nf_tables
//! the plain words after it.

use sha2::{Digest, Sha256};

use crate::model::{Endpoint, PortName};

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The first `length` characters of the base32 form of the SHA-256 of `text`; `length` at most 16.
fn hash(text: &str, length: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let mut bits = 0u128;
    for byte in &digest[..10] {
        bits = bits << 8 | u128::from(*byte);
    }
    // 80 bits are 16 characters of five
    (0..length.min(16)).map(|at| char::from(ALPHABET[(bits >> (75 - 5 * at) & 31) as usize])).collect()
}

/// kube-proxy's own: the port's name, then its protocol, then the endpoint.
fn identity(port: &PortName, endpoint: Option<&Endpoint>) -> String {
    let endpoint = endpoint.map(ToString::to_string).unwrap_or_default();
    format!("{port}{}{endpoint}", port.protocol.name())
}

/// `KUBE-SVC-...` and its kind, as kube-proxy names them.
pub fn iptables_chain(prefix: &str, port: &PortName, endpoint: Option<&Endpoint>) -> String {
    format!("{prefix}{}", hash(&identity(port, endpoint), 16))
}

/// Name of a chain or set of the nf_tables table. The kernel allows 127 characters.
pub fn nft_name(kind: &str, port: &PortName, endpoint: Option<&Endpoint>) -> String {
    let hash = hash(&identity(port, endpoint), 8);
    let PortName { namespace, service, port: name, protocol } = port;
    let mut text = format!("{kind}-{hash}-{namespace}/{service}/{}/{name}", protocol.name());
    if let Some(endpoint) = endpoint {
        text.push_str(&format!("__{}/{}", endpoint.address, endpoint.port));
    }
    text.truncate(127);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn names_are_kube_proxys() {
        let port =
            PortName { namespace: "ns1".into(), service: "svc1".into(), port: "p80".into(), protocol: Protocol::Tcp };
        assert_eq!(iptables_chain("KUBE-SVC-", &port, None), "KUBE-SVC-XPGD46QRK7WJZT7O");
        let endpoint = Endpoint { address: "10.180.0.1".parse().unwrap(), port: 80, local: false };
        assert_eq!(iptables_chain("KUBE-SEP-", &port, Some(&endpoint)), "KUBE-SEP-SXIVWICOYRO3J4NJ");
        assert!(nft_name("service", &port, None).starts_with("service-"));
    }
}
