//! ServiceCIDRs and IPAddresses: which addresses Services may have and which are taken.

use api::field::{Error, ErrorList, Path};
use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::check::{Node, parse_ip};
use crate::kinds::table::{NONE, named, row, words};
use crate::kinds::value::{has, name, same_at, text, texts};
use crate::resource::{Column, Context, Hooks};

pub struct IpAddress;

impl Hooks for IpAddress {
    fn validate_create(&self, _ctx: &Context<'_>, address: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::root("metadata").child("name");
        match parse_ip(name(address)) {
            None => errors.push(Error::invalid(
                &path,
                name(address),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            )),
            Some(ip) if ip.to_string() != name(address) => {
                errors.push(Error::invalid(&path, name(address), format!("must be in canonical form (\"{ip}\")")));
            }
            Some(_) => {}
        }
        let parent = Node::root(address).child("spec.parentRef");
        if !parent.exists() {
            parent.missing(&mut errors, "");
        } else {
            for field in ["resource", "name"] {
                parent.child(field).required(&mut errors, "");
            }
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        Node::root(new).child("spec.parentRef").immutable(&mut errors, &Node::root(old).child("spec.parentRef"));
        errors
    }

    fn row(&self, address: &Value, now: Timestamp) -> Vec<Value> {
        let parent = if has(address, "spec.parentRef") {
            let part = |field: &str| text(address, &format!("spec.parentRef.{field}")).to_owned();
            let resource = match part("group") {
                group if group.is_empty() => part("resource"),
                group => format!("{}.{group}", part("resource")),
            };
            [resource, part("namespace"), part("name")]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/")
        } else {
            NONE.to_owned()
        };
        row(address, now, vec![parent.into()])
    }
}

pub fn address_columns() -> Vec<Column> {
    named(vec![words("ParentRef", "ParentRef references the resource that an IPAddress is attached to.")])
}

pub struct ServiceCidr;

impl Hooks for ServiceCidr {
    fn validate_create(&self, _ctx: &Context<'_>, cidr: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let list = Node::root(cidr).child("spec.cidrs");
        match list.len() {
            0 => list.missing(&mut errors, "at least one CIDR required"),
            1 | 2 => {}
            _ => list.invalid(&mut errors, "may only hold up to 2 values"),
        }
        for network in Node::root(cidr).items("spec.cidrs") {
            network.cidr(&mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        if !same_at(old, new, "spec.cidrs") && !texts(old, "spec.cidrs").is_empty() {
            Node::root(new).child("spec.cidrs").invalid(&mut errors, "field is immutable");
        }
        errors
    }

    fn row(&self, cidr: &Value, now: Timestamp) -> Vec<Value> {
        row(cidr, now, vec![texts(cidr, "spec.cidrs").join(",").into()])
    }
}

pub fn columns() -> Vec<Column> {
    named(vec![words(
        "CIDRs",
        "CIDRs defines the IP blocks in CIDR notation (e.g. \"192.168.0.0/24\" or \"2001:db8::/64\") from which to assign service cluster IPs.",
    )])
}
