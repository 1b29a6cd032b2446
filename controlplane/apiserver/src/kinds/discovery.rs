//! The `discovery.k8s.io` group: EndpointSlice.

use std::collections::HashSet;
use std::net::IpAddr;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::check::{Node, Seen, ip_warning, labels, parse_ip};
use super::core::endpoint_ip;
use super::table::{UNSET, cell, named, row, some_of, words};
use super::value::{
    default, default_text, int, label, list, list_mut, opt_int, opt_text, remove, same_at, set, text, texts,
};
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

    fn prepare_create(&self, _ctx: &Context<'_>, slice: &mut Value) {
        drop_topology(slice);
    }

    /// Its labels count as much as what a slice holds: they say whose it is.
    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        let held = ["addressType", "endpoints", "ports"].iter().all(|field| new.get(*field) == old.get(*field));
        if held && !same_at(new, old, "metadata.labels") {
            set(new, "metadata.generation", int(old, "metadata.generation") + 1);
        }
        if !same_at(new, old, "endpoints") {
            drop_topology(new);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, slice: &Value) -> ErrorList {
        validate(slice, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new, Some(old));
        let (kind, was) = (Node::root(new).child("addressType"), Node::root(old).child("addressType"));
        kind.immutable_declared(&mut errors, &was);
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = address_warnings(new);
        if old.is_none() && text(new, "addressType") == "FQDN" {
            // The field is not in a spec: upstream's own slip.
            found.insert(0, "spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        found
    }

    fn row(&self, slice: &Value, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = list(slice, "ports")
            .iter()
            .map(|port| match (opt_int(port, "port"), opt_text(port, "name")) {
                (Some(number), _) => number.to_string(),
                (None, Some(name)) => name.to_owned(),
                (None, None) => "*".to_owned(),
            })
            .collect();
        let addresses: Vec<String> = list(slice, "endpoints")
            .iter()
            .flat_map(|endpoint| texts(endpoint, "addresses"))
            .map(str::to_owned)
            .collect();
        let shown = |items: &[String]| match some_of(items, 3) {
            none if none.is_empty() => Value::from(UNSET),
            some => some.into(),
        };
        row(slice, now, vec![cell(slice, "addressType"), shown(&ports), shown(&addresses)])
    }
}

/// What the first version of the API had in the place of a node's name and a zone: nobody sets it any more.
fn drop_topology(slice: &mut Value) {
    for endpoint in list_mut(slice, "endpoints") {
        remove(endpoint, "deprecatedTopology");
    }
}

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGERS: [&str; 2] = ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];

/// Addresses in a notation that others may read otherwise. The controllers' own are sound.
fn address_warnings(slice: &Value) -> Vec<String> {
    if label(slice, MANAGED_BY).is_some_and(|manager| MANAGERS.contains(&manager)) {
        return Vec::new();
    }
    let endpoints = Node::root(slice).items("endpoints");
    let addresses = endpoints.iter().flat_map(|endpoint| endpoint.items("addresses"));
    addresses.filter_map(|address| ip_warning(&address.path.to_string(), address.text())).collect()
}

/// Limits of one slice.
const ENDPOINTS: usize = 1000;
const PORTS: usize = 20_000;
const ADDRESSES: usize = 100;
const HINTS: usize = 8;
const TOPOLOGY_LABELS: usize = 16;

fn validate(slice: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(slice);
    let kind = root.child("addressType");
    validate_endpoints(&root, kind.text(), old, &mut errors);
    validate_ports(&root, &mut errors);
    // Declared rules speak last.
    kind.required_one_of(&mut errors, &["FQDN", "IPv4", "IPv6"]);
    for endpoint in root.items("endpoints") {
        let addresses = endpoint.child("addresses");
        if addresses.required(&mut errors, "") && addresses.len() > ADDRESSES {
            errors.push(Error::too_many(&addresses.path, addresses.len(), ADDRESSES));
        }
    }
    errors
}

fn validate_endpoints(root: &Node<'_>, kind: &str, old: Option<&Value>, errors: &mut ErrorList) {
    let endpoints = root.items("endpoints");
    if endpoints.len() > ENDPOINTS {
        return errors.push(Error::too_many(&root.child("endpoints").path, endpoints.len(), ENDPOINTS));
    }
    let known: HashSet<&str> =
        old.into_iter().flat_map(|old| list(old, "endpoints")).flat_map(|one| texts(one, "addresses")).collect();
    for endpoint in endpoints {
        for address in endpoint.items("addresses") {
            validate_address(&address, kind, known.contains(address.text()), errors);
        }
        if endpoint.has("nodeName") {
            endpoint.child("nodeName").format(errors, names::dns1123_subdomain);
        }
        let topology = endpoint.child("deprecatedTopology");
        if topology.len() > TOPOLOGY_LABELS {
            errors.push(Error::too_many(&topology.path, topology.len(), TOPOLOGY_LABELS));
        }
        labels(&topology, errors);
        if endpoint.has("hostname") {
            endpoint.child("hostname").format(errors, names::dns1123_label);
        }
        for field in ["forZones", "forNodes"] {
            hints(&endpoint.child("hints"), field, errors);
        }
    }
}

fn hints(hints: &Node<'_>, field: &str, errors: &mut ErrorList) {
    let given = hints.items(field);
    if given.len() > HINTS {
        return errors.push(Error::too_many(&hints.child(field).path, given.len(), HINTS));
    }
    let mut seen = Seen::default();
    for hint in given {
        let name = hint.child("name");
        if !seen.insert(name.text()) {
            name.duplicate(errors);
        }
    }
}

/// `known`: the stored slice has it already, in whatever notation.
fn validate_address(address: &Node<'_>, kind: &str, known: bool, errors: &mut ErrorList) {
    if kind == "FQDN" {
        address.format(errors, names::dns1123_subdomain);
        return;
    }
    if !matches!(kind, "IPv4" | "IPv6") || !known && !address.legacy_ip(errors) {
        return;
    }
    match (kind, parse_ip(address.text())) {
        ("IPv4", Some(IpAddr::V6(_))) => address.invalid(errors, "must be an IPv4 address"),
        ("IPv6", Some(IpAddr::V4(_))) => address.invalid(errors, "must be an IPv6 address"),
        _ => {}
    }
    endpoint_ip(address, errors);
}

fn validate_ports(root: &Node<'_>, errors: &mut ErrorList) {
    let ports = root.items("ports");
    if ports.len() > PORTS {
        return errors.push(Error::too_many(&root.child("ports").path, ports.len(), PORTS));
    }
    let mut seen = Seen::default();
    for port in ports {
        let name = port.child("name");
        if !name.text().is_empty() {
            name.format(errors, names::dns1123_label);
        }
        if !seen.insert(name.text()) {
            name.duplicate(errors);
        }
        port.child("protocol").one_of(errors, &["SCTP", "TCP", "UDP"]);
        if port.has("port") {
            port.child("port").port_number(errors);
        }
        if port.has("appProtocol") {
            port.child("appProtocol").format(errors, names::qualified_name);
        }
    }
}

fn columns() -> Vec<Column> {
    named(vec![
        words("AddressType", "addressType specifies the type of address carried by this EndpointSlice."),
        words("Ports", "ports specifies the list of network ports exposed by each endpoint in this slice."),
        words(
            "Endpoints",
            "endpoints is a list of unique endpoints in this slice. Each slice may include a maximum of 1000 endpoints.",
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, prepared, updated, with};
    use api::field::join;
    use serde_json::json;

    #[test]
    fn slices() {
        let mut slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}], "ports": [{"port": 80}]});
        Slice.defaults(&mut slice);
        assert_eq!(slice["ports"][0], json!({"port": 80, "name": "", "protocol": "TCP"}));
        assert_eq!(join(&validate(&slice, None)), "[]");
        let shown: Vec<String> =
            Slice.row(&slice, Timestamp::UNIX_EPOCH).iter().map(|c| c.as_str().unwrap().to_owned()).collect();
        assert_eq!(shown.join("|"), "s|IPv4|80|10.0.0.1,10.0.0.2|<unknown>");
        slice["endpoints"] = json!([{"addresses": ["::1"]}, {"addresses": ["127.0.0.1"]}, {}]);
        assert_eq!(
            join(&validate(&slice, None)),
            "[endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address, endpoints[0].addresses[0]: Invalid value: \"::1\": may not be in the loopback range (127.0.0.0/8, ::1/128), endpoints[1].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128), endpoints[2].addresses: Required value]"
        );
    }

    #[test]
    fn refused() {
        let with = |kind: &str, endpoint: Value| json!({"metadata": {"name": "s"}, "addressType": kind, "endpoints": [endpoint]});
        for (slice, expected) in [
            (json!({"metadata": {"name": "s"}}), "addressType: Required value"),
            (
                json!({"metadata": {"name": "s"}, "addressType": "IPv5", "ports": [{"name": "a", "protocol": "X"}, {"name": "a", "port": 0}]}),
                "[ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\", \
                 ports[1].name: Duplicate value: \"a\", ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive, \
                 addressType: Unsupported value: \"IPv5\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"]",
            ),
            (
                with(
                    "IPv4",
                    json!({"addresses": ["010.0.0.1", "x"], "hints": {"forZones": [{"name": "z"}, {"name": "z"}]}}),
                ),
                "[endpoints[0].addresses[0]: Invalid value: \"010.0.0.1\": must not have leading 0s, \
                 endpoints[0].addresses[1]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff), \
                 endpoints[0].hints.forZones[1].name: Duplicate value: \"z\"]",
            ),
            (with("FQDN", json!({"addresses": ["a.example"]})), "[]"),
        ] {
            assert_eq!(created(&Slice, &slice), expected, "{slice}");
        }
        let loose = with("IPv4", json!({"addresses": ["010.0.0.1"]}));
        assert_eq!(updated(&Slice, &loose, &loose), "[]");
        assert_eq!(
            updated(
                &Slice,
                &with("FQDN", json!({"addresses": ["10.0.0.1"]})),
                &with("IPv4", json!({"addresses": ["10.0.0.1"]}))
            ),
            "addressType: Invalid value: null: field is immutable"
        );
    }

    #[test]
    fn labels_count_as_a_generation() {
        let old = json!({"metadata": {"name": "s", "generation": 3, "labels": {"a": "b"}}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": null});
        for (path, value, generation) in [
            ("metadata.labels", json!({"a": "c"}), 4),
            ("metadata.annotations", json!({"a": "c"}), 3),
            // Counted where everything outside the metadata is.
            ("endpoints", json!([]), 3),
        ] {
            let mut new = old.clone();
            set(&mut new, path, value);
            prepared(&Slice, &mut new, &old);
            assert_eq!(new["metadata"]["generation"], generation, "{path}");
        }
    }

    #[test]
    fn old_topology_is_taken_from_nobody() {
        let placed = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "deprecatedTopology": {"a": "b"}}]});
        let (mut new, mut bare) = (placed.clone(), placed.clone());
        remove(&mut bare["endpoints"][0], "deprecatedTopology");
        with(&placed, "", |ctx| Slice.prepare_create(ctx, &mut new));
        assert_eq!(new, bare);
        let mut new = placed.clone();
        prepared(&Slice, &mut new, &bare);
        assert_eq!(new, bare);
        let mut kept = placed.clone();
        prepared(&Slice, &mut kept, &placed);
        assert_eq!(kept, placed);
    }

    #[test]
    fn doubtful_slices_are_warned_of() {
        let slice = |kind: &str, address: &str| json!({"metadata": {"name": "s"}, "addressType": kind, "endpoints": [{"addresses": [address]}]});
        let named = slice("FQDN", "a.example");
        assert_eq!(Slice.warnings(&named, None), ["spec.addressType: FQDN endpoints are deprecated"]);
        assert!(Slice.warnings(&named, Some(&named)).is_empty());
        let mut loose = slice("IPv6", "2001:DB8::1");
        assert_eq!(
            Slice.warnings(&loose, Some(&loose)),
            [
                "endpoints[0].addresses[0]: IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")"
            ]
        );
        loose["metadata"]["labels"] = json!({MANAGED_BY: MANAGERS[0]});
        assert!(Slice.warnings(&loose, None).is_empty());
    }

    #[test]
    fn rows() {
        let endpoints: Vec<Value> = (1..=5).map(|n| json!({"addresses": [format!("10.0.0.{n}")]})).collect();
        for (slice, shown) in [
            (
                json!({"ports": [{"port": 80}, {"port": 81}, {"port": 82}, {"port": 83}], "endpoints": endpoints}),
                "80,81,82 + 1 more...|10.0.0.1,10.0.0.2,10.0.0.3 + 2 more...",
            ),
            (json!({"ports": [{}]}), "*|<unset>"),
            (json!({"ports": [{"name": "http"}]}), "http|<unset>"),
            (json!({}), "<unset>|<unset>"),
        ] {
            let mut slice = slice;
            slice["metadata"] = json!({"name": "s"});
            slice["addressType"] = "IPv4".into();
            assert_eq!(cells(&Slice, &slice, "2026-01-01T00:00:00Z"), format!("s|IPv4|{shown}|<unknown>"));
        }
    }
}
