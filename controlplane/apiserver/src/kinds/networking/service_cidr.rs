//! ServiceCIDRs and IPAddresses: which addresses Services may have and which are taken.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::{IMMUTABLE, Node, parse_cidr_sloppy};
use crate::kinds::table::{NONE, named, row, words};
use crate::kinds::value::{has, name, text, texts};
use crate::resource::{Column, Context, Hooks};

pub struct IpAddress;

impl Hooks for IpAddress {
    fn validate_create(&self, _ctx: &Context<'_>, address: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(address);
        root.child("metadata.name").strict_ip(&mut errors);
        let parent = root.child("spec.parentRef");
        if !parent.exists() {
            parent.missing(&mut errors, "");
            return errors;
        }
        if !parent.child("group").text().is_empty() {
            parent.child("group").format(&mut errors, names::dns1123_subdomain);
        }
        for field in ["resource", "name", "namespace"] {
            if !parent.child(field).text().is_empty() {
                parent.child(field).format(&mut errors, names::path_segment);
            }
        }
        for field in ["resource", "name"] {
            parent.child(field).required(&mut errors, "");
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let (parent, was) = (Node::root(new).child("spec.parentRef"), Node::root(old).child("spec.parentRef"));
        parent.immutable_declared(&mut errors, &was);
        errors
    }

    fn row(&self, address: &Value, _now: Timestamp) -> Vec<Value> {
        let parent = if has(address, "spec.parentRef") {
            let part = |field: &str| text(address, &format!("spec.parentRef.{field}")).to_owned();
            let resource = match part("group").to_lowercase() {
                group if group.is_empty() => part("resource").to_lowercase(),
                group => format!("{}.{group}", part("resource").to_lowercase()),
            };
            [resource, part("namespace"), part("name")]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/")
        } else {
            NONE.to_owned()
        };
        vec![name(address).into(), parent.into()]
    }
}

/// No age among them, unlike nearly everywhere else.
pub fn address_columns() -> Vec<Column> {
    vec![
        Column::name(),
        words(
            "ParentRef",
            "parentRef references the resource that an IPAddress is attached to. An IPAddress must reference a parent object.",
        ),
    ]
}

pub struct ServiceCidr;

impl Hooks for ServiceCidr {
    fn validate_create(&self, _ctx: &Context<'_>, cidr: &Value) -> ErrorList {
        validate(cidr)
    }

    /// A second network may be added; nothing else may change.
    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let (ours, before) = (Node::root(new).items("spec.cidrs"), texts(old, "spec.cidrs"));
        let mut errors = ErrorList::new();
        if ours.len() != before.len() && (before.len(), ours.len()) != (1, 2) {
            Node::root(new).child("spec.cidrs").invalid(&mut errors, IMMUTABLE);
            return errors;
        }
        for (network, _) in ours.iter().zip(&before).filter(|(network, was)| network.text() != **was) {
            network.invalid(&mut errors, IMMUTABLE);
        }
        if ours.len() != before.len() {
            errors.extend(validate(new));
        }
        errors
    }

    fn row(&self, cidr: &Value, now: Timestamp) -> Vec<Value> {
        row(cidr, now, vec![texts(cidr, "spec.cidrs").join(",").into()])
    }
}

fn validate(cidr: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let list = Node::root(cidr).child("spec.cidrs");
    let networks = Node::root(cidr).items("spec.cidrs");
    // The whole spec is shown, by the names of its Go fields.
    let mut refuse = |detail: &str| errors.push(Error::invalid(&list.path, json!({"CIDRs": list.value}), detail));
    let family = |network: &Node<'_>| parse_cidr_sloppy(network.text()).map(|(address, _)| address.is_ipv4());
    match networks.as_slice() {
        [] => list.missing(&mut errors, "at least one CIDR required"),
        [one, two] if family(one).is_none() || family(two).is_none() || family(one) == family(two) => {
            refuse("may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64")
        }
        [_] | [_, _] => networks.iter().for_each(|network| network.strict_cidr(&mut errors)),
        _ => refuse("may only hold up to 2 values"),
    }
    errors
}

pub fn columns() -> Vec<Column> {
    named(vec![words(
        "CIDRs",
        "cidrs defines the IP blocks in CIDR notation (e.g. \"192.168.0.0/24\" or \"2001:db8::/64\") from which to assign service cluster IPs. Max of two CIDRs is allowed, one of each IP family. This field is immutable.",
    )])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, updated};

    #[test]
    fn networks_of_services() {
        let with = |cidrs: Value| json!({"metadata": {"name": "c"}, "spec": {"cidrs": cidrs}});
        for (cidrs, expected) in [
            (json!(["10.0.0.0/16", "2001:db8::/64"]), "[]"),
            (json!([]), "spec.cidrs: Required value: at least one CIDR required"),
            (
                json!(["10.0.0.0/16", "10.1.0.0/16"]),
                "spec.cidrs: Invalid value: {\"CIDRs\":[\"10.0.0.0/16\",\"10.1.0.0/16\"]}: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            ),
            (
                json!(["10.0.0.1/16"]),
                "spec.cidrs[0]: Invalid value: \"10.0.0.1/16\": must not have bits set beyond the prefix length",
            ),
            (
                json!(["2001:DB8::/64"]),
                "spec.cidrs[0]: Invalid value: \"2001:DB8::/64\": must be in canonical form (\"2001:db8::/64\")",
            ),
            (
                json!(["x"]),
                "spec.cidrs[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ),
        ] {
            assert_eq!(created(&ServiceCidr, &with(cidrs.clone())), expected, "{cidrs}");
        }
        let old = with(json!(["10.0.0.0/16"]));
        for (cidrs, expected) in [
            (json!(["10.0.0.0/16"]), "[]"),
            (json!(["10.0.0.0/16", "2001:db8::/64"]), "[]"),
            (json!(["10.1.0.0/16"]), "spec.cidrs[0]: Invalid value: \"10.1.0.0/16\": field is immutable"),
            (json!([]), "spec.cidrs: Invalid value: []: field is immutable"),
        ] {
            assert_eq!(updated(&ServiceCidr, &old, &with(cidrs.clone())), expected, "{cidrs}");
        }
    }

    #[test]
    fn addresses_of_services() {
        let with = |name: &str, parent: Value| json!({"metadata": {"name": name}, "spec": {"parentRef": parent}});
        let service = json!({"resource": "services", "namespace": "n", "name": "s"});
        for (address, expected) in [
            (with("10.0.0.1", service.clone()), "[]"),
            (
                with("010.0.0.1", service.clone()),
                "metadata.name: Invalid value: \"010.0.0.1\": must not have leading 0s",
            ),
            (
                with("2001:DB8::1", service.clone()),
                "metadata.name: Invalid value: \"2001:DB8::1\": must be in canonical form (\"2001:db8::1\")",
            ),
            (with("10.0.0.1", json!(null)), "spec.parentRef: Required value"),
            (
                with("10.0.0.1", json!({"name": "a/b"})),
                "[spec.parentRef.name: Invalid value: \"a/b\": may not contain '/', spec.parentRef.resource: Required value]",
            ),
        ] {
            assert_eq!(created(&IpAddress, &address), expected, "{address}");
        }
        let old = with("10.0.0.1", service);
        assert_eq!(
            updated(&IpAddress, &old, &with("10.0.0.1", json!({"resource": "services", "name": "t"}))),
            "spec.parentRef: Invalid value: null: field is immutable"
        );
        assert_eq!(cells(&IpAddress, &old, "2026-01-01T00:00:00Z"), "10.0.0.1|services/n/s");
    }
}
