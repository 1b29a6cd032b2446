//! Validation of what a claim was given, and of what drivers say about it.

use std::collections::BTreeSet;

use api::field::{Error, ErrorList};
use api::names;
use serde_json::Value;

use super::claim::{MAX_ITEMS, configuration, raw, reference, references, request_names, tolerations};
use super::report::{Report, pool_name};
use crate::kinds::check::{Node, conditions, parse_cidr_sloppy};
use crate::kinds::core::pod::placement::node_selector;
use crate::kinds::core::pod::volume::csi_driver_name;
use crate::kinds::value::{has, list, list_mut, remove, same, text};

const MAX_CONSUMERS: usize = 256;
const MAX_CONDITIONS: usize = 8;
const MAX_DATA: usize = 10 * 1024;
const MAX_ADDRESSES: usize = 16;
const MAX_BINDING: usize = 4;

/// One device, or one share of it.
fn id(device: &Value) -> [&str; 4] {
    ["driver", "pool", "device", "shareID"].map(|field| text(device, field))
}

/// What drivers said of devices that were taken back goes with them.
pub fn drop_deallocated(new: &mut Value, old: &Value) {
    const RESULTS: &str = "status.allocation.devices.results";
    let device = |result: &Value| ["driver", "pool", "device"].map(|field| text(result, field).to_owned());
    let held: Vec<_> = list(new, RESULTS).iter().map(device).collect();
    let gone: Vec<_> = list(old, RESULTS).iter().map(device).filter(|device| !held.contains(device)).collect();
    if let Some(Value::Array(devices)) = new.get_mut("status").and_then(|status| status.get_mut("devices")) {
        devices.retain(|one| !gone.contains(&device(one)));
    }
    if list(new, "status.devices").is_empty() {
        remove(new, "status.devices");
    }
    for one in list_mut(new, RESULTS) {
        remove(one, "skipNodeOperations");
    }
}

/// `ResourceClaimStatus`: an allocation stands until it is taken back as a whole.
pub fn validate(new: &Value, old: &Value) -> ErrorList {
    let mut report = Report::default();
    let status = Node::root(new).child("status");
    let reserved = report.unique(&status, "reservedFor", MAX_CONSUMERS, &["uid"]);
    for consumer in &reserved {
        for field in ["resource", "name", "uid"] {
            consumer.child(field).required(&mut report.said, "");
        }
    }
    let allocated: Vec<_> = list(status.value, "allocation.devices.results").iter().map(id).collect();
    for device in report.unique(&status, "devices", usize::MAX, &["driver", "device", "pool", "shareID"]) {
        device_status(&device, &allocated, &mut report);
    }
    let before = list(old, "status.reservedFor");
    if !status.child("reservedFor").is_empty() && !status.has("allocation") {
        status.child("reservedFor").forbidden(&mut report.said, "may not be specified when `allocated` is not set");
    } else if has(new, "metadata.deletionTimestamp") && reserved.iter().any(|item| !before.contains(item.value)) {
        status.child("reservedFor").forbidden(
            &mut report.said,
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
        );
    }
    let (allocation, was) = (status.child("allocation"), Node::root(old).child("status.allocation"));
    if allocation.exists() && was.exists() {
        if !same(allocation.value, was.value) {
            let detail = "field cannot be modified once set";
            report.declared.push(Error::invalid(&allocation.path, Value::Null, detail));
        }
    } else if allocation.exists() {
        let known = request_names(Node::root(new).child("spec.devices").value);
        validate_allocation(&allocation, &known, &mut report);
    }
    report.errors()
}

fn validate_allocation(allocation: &Node<'_>, known: &BTreeSet<String>, report: &mut Report) {
    let devices = allocation.child("devices");
    for result in report.limited(&devices, "results", MAX_ITEMS) {
        reference(&result.child("request"), known, report);
        report.driver(&result.child("driver"));
        report.pool(&result.child("pool"));
        result.child("device").format(&mut report.said, names::dns1123_label);
        binding(&result, report);
        tolerations(&result, report);
        report.uid(&result.child("shareID"));
    }
    for config in report.limited(&devices, "config", 2 * MAX_ITEMS) {
        config.child("source").required_one_of(&mut report.declared, &["FromClaim", "FromClass"]);
        references(&config, known, report);
        configuration(&config, false, report);
    }
    if allocation.has("nodeSelector") {
        node_selector(&allocation.child("nodeSelector"), &mut report.said);
    }
}

/// Conditions to wait for before binding, and those that call it off: both or none.
pub fn binding(owner: &Node<'_>, report: &mut Report) {
    let fields = ["bindingConditions", "bindingFailureConditions"];
    for field in fields {
        for condition in report.limited(owner, field, MAX_BINDING) {
            condition.format(&mut report.said, names::qualified_name);
        }
    }
    let [wanted, failed] = fields.map(|field| owner.items(field));
    let twice = |items: &[Node<'_>], index: usize| items[..index].iter().any(|item| item.value == items[index].value);
    for (index, condition) in wanted.iter().enumerate() {
        if twice(&wanted, index) {
            condition.duplicate(&mut report.said);
        }
    }
    for (index, condition) in failed.iter().enumerate() {
        if twice(&failed, index) {
            condition.duplicate(&mut report.said);
        }
        if wanted.iter().any(|item| item.value == condition.value) {
            let detail = "bindingFailureConditions must not overlap with bindingConditions";
            condition.invalid(&mut report.said, detail);
        }
    }
    for (given, lacking, [have, need]) in [(&failed, &wanted, [1, 0]), (&wanted, &failed, [0, 1])] {
        if !given.is_empty() && lacking.is_empty() {
            let detail = format!("{} are required to use {}", fields[need], fields[have]);
            owner.child(fields[need]).invalid(&mut report.said, detail);
        }
    }
}

fn device_status(device: &Node<'_>, allocated: &[[&str; 4]], report: &mut Report) {
    csi_driver_name(&device.child("driver"), &mut report.said);
    pool_name(&device.child("pool"), &mut report.said);
    device.child("device").format(&mut report.said, names::dns1123_label);
    report.uid(&device.child("shareID"));
    let own = id(device.value);
    if !allocated.contains(&own) {
        let shown = own.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        report.said.push(Error::invalid(&device.path, shown, "must be an allocated device in the claim"));
    }
    let held = device.child("conditions");
    if held.len() > MAX_CONDITIONS {
        report.said.push(Error::too_many(&held.path, held.len(), MAX_CONDITIONS));
    }
    conditions(device, "conditions", &mut report.said);
    if device.has("data") {
        raw(&device.child("data"), MAX_DATA, report);
    }
    let network = device.child("networkData");
    report.max_bytes(&network.child("interfaceName"), 256);
    report.max_bytes(&network.child("hardwareAddress"), 128);
    for address in report.unique(&network, "ips", MAX_ADDRESSES, &[]) {
        interface_address(&address, &mut report.said);
    }
}

/// An address with its network's length, in its canonical form.
fn interface_address(address: &Node<'_>, errors: &mut ErrorList) {
    let Some((ip, length)) = parse_cidr_sloppy(address.text()) else {
        return address
            .invalid_text(errors, "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)");
    };
    let canonical = format!("{ip}/{length}");
    if canonical != address.text() {
        address.invalid(errors, format!("must be in canonical form ({canonical:?})"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    fn claim(status: Value) -> Value {
        json!({"spec": {"devices": {"requests": [{"name": "r"}]}}, "status": status})
    }

    fn result(extra: Value) -> Value {
        let mut result = json!({"request": "r", "driver": "d", "pool": "p", "device": "x"});
        for (key, value) in extra.as_object().unwrap() {
            result[key] = value.clone();
        }
        result
    }

    #[test]
    fn allocations_stand() {
        let allocation = json!({"devices": {"results": [result(json!({}))]}});
        let pod = json!([{"resource": "pods", "name": "p", "uid": "1"}]);
        let allocated = claim(json!({ "allocation": allocation }));
        let none = claim(json!({}));
        for (new, old, expected) in [
            (allocated.clone(), &none, "[]"),
            (claim(json!({"allocation": allocation, "reservedFor": pod})), &allocated, "[]"),
            (none.clone(), &allocated, "[]"),
            (
                claim(json!({ "reservedFor": pod })),
                &allocated,
                "status.reservedFor: Forbidden: may not be specified when `allocated` is not set",
            ),
            (
                claim(json!({"allocation": {"devices": {}}})),
                &allocated,
                "status.allocation: Invalid value: null: field cannot be modified once set",
            ),
            (
                claim(
                    json!({"allocation": allocation, "reservedFor": [{"uid": "1"}, {"resource": "pods", "name": "p", "uid": "1"}]}),
                ),
                &allocated,
                "[status.reservedFor[0].resource: Required value, status.reservedFor[0].name: Required value, \
                 status.reservedFor[1]: Duplicate value: {\"name\":\"p\",\"resource\":\"pods\",\"uid\":\"1\"}]",
            ),
        ] {
            assert_eq!(join(&validate(&new, old)), expected, "{new}");
        }
        let mut going = claim(json!({"allocation": allocation, "reservedFor": pod}));
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(
            join(&validate(&going, &allocated)),
            "status.reservedFor: Forbidden: new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"
        );
    }

    #[test]
    fn allocations_refused() {
        for (allocation, expected) in [
            (
                json!({"devices": {"results": [result(json!({"request": "x", "driver": "", "pool": "", "shareID": "s"}))], "config": [{"source": "Air", "opaque": {"driver": "d", "parameters": {}}}]}}),
                "[status.allocation.devices.results[0].request: Invalid value: \"x\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/', \
                 status.allocation.devices.results[0].driver: Required value, status.allocation.devices.results[0].pool: Required value, \
                 status.allocation.devices.results[0].shareID: Invalid value: \"s\": must be a lowercase UUID in 8-4-4-4-12 format, \
                 status.allocation.devices.config[0].source: Unsupported value: \"Air\": supported values: \"FromClaim\", \"FromClass\"]",
            ),
            (
                json!({"devices": {"results": [result(json!({"bindingConditions": ["a", "a"]}))]}}),
                "[status.allocation.devices.results[0].bindingConditions[1]: Duplicate value: \"a\", \
                 status.allocation.devices.results[0].bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions]",
            ),
            (
                json!({"devices": {"results": [result(json!({"bindingConditions": ["a"], "bindingFailureConditions": ["a"]}))]}}),
                "status.allocation.devices.results[0].bindingFailureConditions[0]: Invalid value: \"a\": bindingFailureConditions must not overlap with bindingConditions",
            ),
        ] {
            assert_eq!(join(&validate(&claim(json!({ "allocation": allocation })), &claim(json!({})))), expected);
        }
    }

    #[test]
    fn drivers_report() {
        let allocation = json!({"devices": {"results": [result(json!({}))]}});
        let device = |extra: Value| {
            let mut device = result(extra);
            remove(&mut device, "request");
            claim(json!({"allocation": allocation, "devices": [device]}))
        };
        for (new, expected) in [
            (device(json!({"data": {"a": 1}, "networkData": {"ips": ["10.0.0.1/8", "2001:db8::1/64"]}})), "[]"),
            (
                device(json!({"device": "y"})),
                "status.devices[0]: Invalid value: \"d/p/y\": must be an allocated device in the claim",
            ),
            (
                device(
                    json!({"data": 7, "networkData": {"interfaceName": "i".repeat(257), "ips": ["10.0.0.1", "10.0.0.01/8", "10.0.0.1"]}}),
                ),
                "[status.devices[0].data: Invalid value: \"<value omitted>\": must be a valid JSON object, \
                 status.devices[0].networkData.ips[0]: Invalid value: \"10.0.0.1\": must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64), \
                 status.devices[0].networkData.ips[1]: Invalid value: \"10.0.0.01/8\": must be in canonical form (\"10.0.0.1/8\"), \
                 status.devices[0].networkData.ips[2]: Invalid value: \"10.0.0.1\": must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64), \
                 status.devices[0].networkData.interfaceName: Too long: may not be more than 256 bytes, \
                 status.devices[0].networkData.ips[2]: Duplicate value: \"10.0.0.1\"]",
            ),
        ] {
            let old = claim(json!({ "allocation": allocation }));
            assert_eq!(join(&validate(&new, &old)), expected);
        }
        let (mut taken, held) =
            (claim(json!({"devices": [{"driver": "d", "pool": "p", "device": "x"}]})), device(json!({})));
        drop_deallocated(&mut taken, &held);
        assert_eq!(taken["status"], json!({}));
    }
}
