//! The `discovery.k8s.io` group: EndpointSlice.

use std::net::IpAddr;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::check::{Node, Seen, parse_ip};
use super::core::special;
use super::table::{UNSET, cell, named, row, some_of, words};
use super::value::{default, default_text, list, list_mut, opt_int, texts};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Slice)]
}

fn descriptor() -> Descriptor {
    Descriptor::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices").with_generation()
}

struct Slice;

impl Hooks for Slice {
    fn defaults(&self, slice: &mut Value) {
        for port in list_mut(slice, "ports") {
            default(port, "name", "");
            default_text(port, "protocol", "TCP");
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, slice: &Value) -> ErrorList {
        validate(slice)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new);
        Node::root(new).child("addressType").immutable(&mut errors, &Node::root(old).child("addressType"));
        errors
    }

    fn row(&self, slice: &Value, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = list(slice, "ports")
            .iter()
            .map(|port| opt_int(port, "port").map_or_else(|| "*".to_owned(), |number| number.to_string()))
            .collect();
        let addresses: Vec<String> = list(slice, "endpoints")
            .iter()
            .flat_map(|endpoint| texts(endpoint, "addresses"))
            .map(str::to_owned)
            .collect();
        let shown = |items: &[String]| Value::from(if items.is_empty() { UNSET.to_owned() } else { some_of(items, 3) });
        row(slice, now, vec![cell(slice, "addressType"), shown(&ports), shown(&addresses)])
    }
}

fn validate(slice: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(slice);
    let kind = root.child("addressType");
    if kind.text().is_empty() {
        kind.missing(&mut errors, "");
    } else {
        kind.one_of(&mut errors, &["FQDN", "IPv4", "IPv6"]);
    }
    let endpoints = root.items("endpoints");
    if endpoints.len() > 1000 {
        errors.push(Error::too_many(&root.child("endpoints").path, endpoints.len(), 1000));
        return errors;
    }
    for endpoint in endpoints {
        addresses(&endpoint, kind.text(), &mut errors);
        if endpoint.has("hostname") {
            endpoint.child("hostname").format(&mut errors, names::dns1123_label);
        }
        if endpoint.has("nodeName") {
            endpoint.child("nodeName").format(&mut errors, names::dns1123_subdomain);
        }
    }
    let mut seen = Seen::default();
    for port in root.items("ports") {
        let name = port.child("name");
        if !name.text().is_empty() {
            name.format(&mut errors, names::dns1123_label);
        }
        if !seen.insert(name.text()) {
            name.duplicate(&mut errors);
        }
        port.child("protocol").required_one_of(&mut errors, &["SCTP", "TCP", "UDP"]);
        if port.has("port") {
            port.child("port").port_number(&mut errors);
        }
        if port.has("appProtocol") {
            port.child("appProtocol").format(&mut errors, names::qualified_name);
        }
    }
    errors
}

fn addresses(endpoint: &Node<'_>, kind: &str, errors: &mut ErrorList) {
    let given = endpoint.items("addresses");
    if given.is_empty() {
        endpoint.child("addresses").missing(errors, "must contain at least 1 address");
    } else if given.len() > 100 {
        errors.push(Error::too_many(&endpoint.child("addresses").path, given.len(), 100));
    }
    for address in given {
        match (kind, parse_ip(address.text())) {
            ("FQDN", _) => {
                address.format(errors, names::dns1123_subdomain);
            }
            ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) => {
                for problem in parse_ip(address.text()).map(special).unwrap_or_default() {
                    address.invalid(errors, problem);
                }
            }
            ("IPv4", Some(_)) => address.invalid(errors, "must be an IPv4 address"),
            ("IPv6", Some(_)) => address.invalid(errors, "must be an IPv6 address"),
            _ => {
                address.ip(errors);
            }
        }
    }
}

fn columns() -> Vec<Column> {
    named(vec![
        words("AddressType", "addressType specifies the type of address carried by this EndpointSlice."),
        words("Ports", "ports specifies the list of network ports exposed by each endpoint in this slice."),
        words("Endpoints", "endpoints is a list of unique endpoints in this slice."),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn slices() {
        let mut slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}], "ports": [{"port": 80}]});
        Slice.defaults(&mut slice);
        assert_eq!(slice["ports"][0], json!({"port": 80, "name": "", "protocol": "TCP"}));
        assert_eq!(join(&validate(&slice)), "[]");
        let shown: Vec<String> =
            Slice.row(&slice, Timestamp::UNIX_EPOCH).iter().map(|c| c.as_str().unwrap().to_owned()).collect();
        assert_eq!(shown.join("|"), "s|IPv4|80|10.0.0.1,10.0.0.2|<unknown>");
        slice["endpoints"] = json!([{"addresses": ["::1"]}, {"addresses": ["127.0.0.1"]}, {}]);
        assert_eq!(
            join(&validate(&slice)),
            "[endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address, endpoints[1].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128), endpoints[2].addresses: Required value: must contain at least 1 address]"
        );
    }
}
