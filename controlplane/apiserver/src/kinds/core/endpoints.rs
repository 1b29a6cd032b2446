//! Endpoints, superseded by EndpointSlices.

use api::field::ErrorList;
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::service_validation::special;
use crate::kinds::check::{Node, parse_ip};
use crate::kinds::table::{NONE, named, row, some_of, words};
use crate::kinds::value::{default_text, int, list, list_mut, text};
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

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate(new)
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

fn validate(endpoints: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for subset in Node::root(endpoints).items("subsets") {
        let (ready, waiting) = (subset.items("addresses"), subset.items("notReadyAddresses"));
        if ready.is_empty() && waiting.is_empty() {
            subset.missing(&mut errors, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in ready.iter().chain(&waiting) {
            let ip = address.child("ip");
            match parse_ip(ip.text()) {
                None => {
                    ip.ip(&mut errors);
                }
                Some(parsed) => special(parsed).into_iter().for_each(|problem| ip.invalid(&mut errors, problem)),
            }
            if !address.child("hostname").text().is_empty() {
                address.child("hostname").format(&mut errors, names::dns1123_label);
            }
        }
        let ports = subset.items("ports");
        for port in &ports {
            let name = port.child("name");
            if !name.text().is_empty() {
                name.format(&mut errors, names::dns1123_label);
            } else if ports.len() > 1 {
                name.missing(&mut errors, "");
            }
            port.child("port").port_number(&mut errors);
            port.child("protocol").required_one_of(&mut errors, &["SCTP", "TCP", "UDP"]);
        }
    }
    errors
}
