//! Endpoints, superseded by EndpointSlices.

use api::field::ErrorList;
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::service_validation::endpoint_ip;
use crate::kinds::check::{Node, ip_warning};
use crate::kinds::table::{NONE, named, row, some_of, words};
use crate::kinds::value::{default_text, int, label, list, list_mut, same_at, text};
use crate::resource::{Column, Context, Hooks};

pub struct Endpoints;

impl Hooks for Endpoints {
    fn defaults(&self, endpoints: &mut Value) {
        for subset in list_mut(endpoints, "subsets") {
            for port in list_mut(subset, "ports") {
                default_text(port, "protocol", "TCP");
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, endpoints: &Value) -> ErrorList {
        validate(endpoints)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        // What was taken once stays.
        if same_at(new, old, "subsets") { ErrorList::new() } else { validate(new) }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(new)
    }

    fn row(&self, endpoints: &Value, now: Timestamp) -> Vec<Value> {
        let mut found = Vec::new();
        for subset in list(endpoints, "subsets") {
            let addresses = list(subset, "addresses").iter().map(|address| text(address, "ip"));
            if list(subset, "ports").is_empty() {
                found.extend(addresses.map(str::to_owned));
                continue;
            }
            for port in list(subset, "ports") {
                for address in list(subset, "addresses") {
                    found.push(host_port(text(address, "ip"), int(port, "port")));
                }
            }
        }
        let shown = if list(endpoints, "subsets").is_empty() { NONE.to_owned() } else { some_of(&found, 3) };
        row(endpoints, now, vec![shown.into()])
    }
}

/// `10.0.0.1:80`, `[::1]:80`.
pub fn host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

pub fn columns() -> Vec<Column> {
    named(vec![words("Endpoints", "The set of all endpoints is the union of all subsets.")])
}

/// Addresses in a notation that others may read otherwise. The controller's own are sound.
fn warnings(endpoints: &Value) -> Vec<String> {
    if label(endpoints, "endpoints.kubernetes.io/managed-by") == Some("endpoint-controller") {
        return Vec::new();
    }
    let subsets = Node::root(endpoints).items("subsets");
    let lists = subsets.iter().flat_map(|subset| ["addresses", "notReadyAddresses"].map(|field| subset.items(field)));
    let warned = lists.flatten().filter_map(|address| {
        let ip = address.child("ip");
        ip_warning(&ip.path.to_string(), ip.text())
    });
    warned.collect()
}

fn validate(endpoints: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for subset in Node::root(endpoints).items("subsets") {
        let (ready, waiting) = (subset.items("addresses"), subset.items("notReadyAddresses"));
        if ready.is_empty() && waiting.is_empty() {
            subset.missing(&mut errors, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in ready.iter().chain(&waiting) {
            validate_address(address, &mut errors);
        }
        let ports = subset.items("ports");
        for port in &ports {
            validate_port(port, ports.len() > 1, &mut errors);
        }
    }
    errors
}

fn validate_address(address: &Node<'_>, errors: &mut ErrorList) {
    let (ip, host, node) = (address.child("ip"), address.child("hostname"), address.child("nodeName"));
    ip.legacy_ip(errors);
    if !host.text().is_empty() {
        host.format(errors, names::dns1123_label);
    }
    if node.exists() {
        node.format(errors, names::dns1123_subdomain);
    }
    endpoint_ip(&ip, errors);
}

fn validate_port(port: &Node<'_>, needs_name: bool, errors: &mut ErrorList) {
    let name = port.child("name");
    if !name.text().is_empty() {
        name.format(errors, names::dns1123_label);
    } else if needs_name {
        name.missing(errors, "");
    }
    port.child("port").port_number(errors);
    port.child("protocol").required_one_of(errors, &["SCTP", "TCP", "UDP"]);
    if port.has("appProtocol") {
        port.child("appProtocol").format(errors, names::qualified_name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated};
    use serde_json::json;

    fn with(subset: Value) -> Value {
        json!({"metadata": {"name": "e"}, "subsets": [subset]})
    }

    #[test]
    fn refused() {
        for (subset, expected) in [
            (json!({"addresses": [{"ip": "10.0.0.1", "nodeName": "n.a"}], "ports": [{"port": 80}]}), "[]"),
            (
                json!({"ports": [{"port": 80}]}),
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
            ),
            (
                json!({"addresses": [{"ip": "x", "nodeName": "N"}]}),
                "[subsets[0].addresses[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff), \
                 subsets[0].addresses[0].nodeName: Invalid value: \"N\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*'), \
                 subsets[0].addresses[0].ip: Invalid value: \"x\": must be a valid IP address]",
            ),
            (
                json!({"notReadyAddresses": [{"ip": "127.0.0.1"}, {"ip": "010.0.0.1"}]}),
                "[subsets[0].notReadyAddresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128), \
                 subsets[0].notReadyAddresses[1].ip: Invalid value: \"010.0.0.1\": must not have leading 0s]",
            ),
            (
                json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 0, "name": "a"}, {"port": 1, "protocol": "X", "appProtocol": "a/b/c"}]}),
                "[subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, \
                 subsets[0].ports[1].name: Required value, \
                 subsets[0].ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\", \
                 subsets[0].ports[1].appProtocol: Invalid value: \"a/b/c\": a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')]",
            ),
        ] {
            assert_eq!(created(&Endpoints, &with(subset.clone())), expected, "{subset}");
        }
    }

    #[test]
    fn old_notations_stay_and_are_warned_of() {
        let old = with(json!({"addresses": [{"ip": "010.0.0.1"}], "notReadyAddresses": [{"ip": "FD00::1"}]}));
        assert_eq!(updated(&Endpoints, &old, &old), "[]");
        assert_ne!(created(&Endpoints, &old), "[]");
        assert_eq!(
            warnings(&old),
            [
                "subsets[0].addresses[0].ip: non-standard IP address \"010.0.0.1\" is invalid: use \"10.0.0.1\"",
                "subsets[0].notReadyAddresses[0].ip: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")",
            ]
        );
        let mut managed = old;
        managed["metadata"]["labels"] = json!({"endpoints.kubernetes.io/managed-by": "endpoint-controller"});
        assert_eq!(warnings(&managed), Vec::<String>::new());
    }
}
