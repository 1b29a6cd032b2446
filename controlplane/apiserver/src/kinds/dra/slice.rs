//! ResourceSlices: the devices that a driver offers.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::report::{Report, pool_name};
use super::{device, uppercase_driver};
use crate::kinds::check::Node;
use crate::kinds::core::pod::internal::{self, SELECTOR_TERM};
use crate::kinds::core::pod::placement::node_selector;
use crate::kinds::core::pod::volume::csi_driver_name;
use crate::kinds::table::{cell, named, row, words};
use crate::kinds::value::{self, default, has, list, list_mut, text};
use crate::resource::{Column, Context, Feature, Hooks, SwitchedOff};

const MAX_DEVICES: usize = 128;
/// With taints, counters or lists of attributes.
const MAX_RICH_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
const MAX_COUNTERS: usize = 32;
pub const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];
/// Ways to say where the devices of a slice are.
pub const PLACEMENTS: [&str; 4] = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];

/// Features that are off: `DRAPartitionableDevicesType`, `DRAOptionalNodeOperations`,
/// `DRADeviceCompatibilityGroups`, `DRANodeAllocatableResources`, `DRAListTypeAttributes`.
const OFF: &[Feature] = &[
    &["spec.partitionTypeAttribute"],
    &["spec.skipNodeOperations"],
    &["spec.devices.*.consumesCounters.*.compatibilityGroups"],
    &["spec.devices.*.nodeAllocatableResources"],
    &[
        "spec.devices.*.attributes.*.bools",
        "spec.devices.*.attributes.*.ints",
        "spec.devices.*.attributes.*.strings",
        "spec.devices.*.attributes.*.versions",
    ],
];

pub struct Slice;

impl Hooks for Slice {
    fn switched_off(&self) -> SwitchedOff {
        SwitchedOff { at: "", features: OFF }
    }

    fn prepare_create(&self, ctx: &Context<'_>, slice: &mut Value) {
        date_taints(slice, ctx.now);
    }

    fn prepare_update(&self, ctx: &Context<'_>, new: &mut Value, _old: &Value) {
        date_taints(new, ctx.now);
    }

    fn validate_create(&self, _ctx: &Context<'_>, slice: &Value) -> ErrorList {
        validate(slice, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate(new, Some(old))
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        uppercase_driver("spec.driver", text(new, "spec.driver")).into_iter().collect()
    }

    fn row(&self, slice: &Value, now: Timestamp) -> Vec<Value> {
        row(slice, now, vec![cell(slice, "spec.nodeName"), cell(slice, "spec.driver"), cell(slice, "spec.pool.name")])
    }
}

/// Taints get their time.
fn date_taints(slice: &mut Value, now: Timestamp) {
    for device in list_mut(slice, "spec.devices") {
        for taint in list_mut(device, "taints") {
            default(taint, "timeAdded", api::scalar::time(now));
        }
    }
}

pub fn has_lists(device: &Value) -> bool {
    value::entries(device, "attributes").any(|(_, attribute)| LISTS.iter().any(|field| has(attribute, field)))
}

fn validate(slice: &Value, old: Option<&Value>) -> ErrorList {
    let mut report = Report::default();
    let spec = Node::root(slice).child("spec");
    csi_driver_name(&spec.child("driver"), &mut report.said);
    pool(&spec.child("pool"), &mut report.said);
    if let Some(old) = old {
        for field in ["pool.name", "driver", "nodeName"] {
            spec.child(field).immutable(&mut report.said, &Node::root(old).child("spec").child(field));
        }
    }
    placement(&spec, &mut report.said);
    if spec.has("sharedCounters") && spec.has("devices") {
        let detail = "only one of `sharedCounters` or `devices` is allowed";
        report.said.push(Error::invalid(&spec.path, "", detail));
    }
    devices(&spec, old, &mut report);
    for set in report.unique(&spec, "sharedCounters", MAX_COUNTER_SETS, &["name"]) {
        counters(&set, "name", &mut report);
    }
    report.errors()
}

fn pool(pool: &Node<'_>, errors: &mut ErrorList) {
    pool_name(&pool.child("name"), errors);
    let (count, generation) = (pool.child("resourceSliceCount"), pool.child("generation"));
    if count.int() <= 0 {
        count.invalid_int(errors, "must be greater than zero");
    }
    if generation.int() < 0 {
        generation.invalid(errors, "must be greater than or equal to zero");
    }
}

/// The ways that were really taken, each in backquotes.
pub fn taken(owner: &Node<'_>, ways: &[&str]) -> Vec<String> {
    let said = |way: &&&str| owner.has(way) && owner.child(way).value != "" && owner.child(way).value != false;
    ways.iter().filter(said).map(|way| format!("`{way}`")).collect()
}

fn placement(spec: &Node<'_>, errors: &mut ErrorList) {
    let name = spec.child("nodeName");
    if name.exists() && name.text().is_empty() {
        name.invalid(errors, "must be either unset or set to a non-empty string");
    } else if name.exists() {
        name.format(errors, names::dns1123_subdomain);
    }
    let selector = spec.child("nodeSelector");
    if selector.exists() {
        node_selector(&selector, errors);
        let terms = selector.child("nodeSelectorTerms");
        if terms.len() != 1 {
            errors.push(internal::invalid(
                &terms.path,
                terms.value,
                SELECTOR_TERM,
                "must have exactly one node selector term",
            ));
        }
    }
    for field in ["allNodes", "perDeviceNodeSelection"] {
        set_to_true(&spec.child(field), errors);
    }
    let given = taken(spec, &PLACEMENTS);
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match given.len() {
        0 => spec.missing(errors, one),
        1 => {}
        _ => errors.push(Error::invalid(
            &spec.path,
            format!("{{{}}}", given.join(", ")),
            format!("{one}, but multiple fields are set"),
        )),
    }
}

pub fn set_to_true(flag: &Node<'_>, errors: &mut ErrorList) {
    if flag.exists() && !flag.flag() {
        flag.invalid(errors, "must be either unset or set to true");
    }
}

/// A set of counters that is offered, or part of one that a device takes.
pub fn counters(owner: &Node<'_>, name: &str, report: &mut Report) {
    report.required_format(&owner.child(name), names::dns1123_label);
    let counters = owner.child("counters");
    counters.required(&mut report.declared, "");
    if counters.len() > MAX_COUNTERS {
        report.said.push(Error::too_many(&counters.path, counters.len(), MAX_COUNTERS));
        return;
    }
    for (key, _) in owner.entries("counters") {
        for problem in names::dns1123_label(key) {
            report.declared.push(Error::invalid(&counters.path, key, problem));
        }
    }
}

fn devices(spec: &Node<'_>, old: Option<&Value>, report: &mut Report) {
    let (given, path) = (spec.items("devices"), spec.child("devices").path);
    let rich = |device: &Node<'_>| {
        !device.child("taints").is_empty() || !device.child("consumesCounters").is_empty() || has_lists(device.value)
    };
    let most = if given.iter().any(rich) { MAX_RICH_DEVICES } else { MAX_DEVICES };
    if given.len() > most {
        return report.said.push(Error::too_many(&path, given.len(), most));
    }
    let per_device = spec.child("perDeviceNodeSelection").flag();
    for device in &given {
        let name = device.child("name").text();
        let before = old.and_then(|old| list(old, "spec.devices").iter().find(|held| text(held, "name") == name));
        device::validate(device, before, per_device, report);
    }
    let all: Vec<&str> = given.iter().map(|device| device.child("name").text()).collect();
    for (index, device) in given.iter().enumerate() {
        if all[..index].contains(&all[index]) {
            report.said.push(Error::duplicate(&device.path, all[index]));
        }
    }
}

pub fn columns() -> Vec<Column> {
    named(vec![
        words("Node", "NodeName identifies the node which provides the resources in this pool."),
        words("Driver", "Driver identifies the DRA driver providing the capacity information."),
        words("Pool", "Pool describes the pool that this ResourceSlice belongs to."),
    ])
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::kinds::tested::{created, prepared, updated};
    use serde_json::json;

    pub fn slice(extra: Value) -> Value {
        let mut slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "d.example.com", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "nodeName": "n"}});
        for (path, value) in extra.as_object().unwrap() {
            value::set(&mut slice, path, value.clone());
        }
        slice
    }

    #[test]
    fn slices_refused() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"spec.pool": {"name": "", "generation": -1}, "spec.driver": "D"}),
                "[spec.pool.name: Required value, spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero, \
                 spec.pool.generation: Invalid value: -1: must be greater than or equal to zero]",
            ),
            (
                json!({"spec.allNodes": true}),
                "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set",
            ),
            (
                json!({"spec.nodeName": null, "spec.allNodes": false}),
                "[spec.allNodes: Invalid value: false: must be either unset or set to true, \
                 spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required]",
            ),
            (
                json!({"spec.devices": [], "spec.sharedCounters": [{"name": "A"}, {"name": "b", "counters": {"C": {"value": "1"}}}]}),
                "[spec: Invalid value: \"\": only one of `sharedCounters` or `devices` is allowed, \
                 spec.sharedCounters[0].name: Invalid value: \"A\": LABEL, spec.sharedCounters[0].counters: Required value, \
                 spec.sharedCounters[1].counters: Invalid value: \"C\": LABEL]",
            ),
            (
                json!({"spec.devices": vec![json!({"name": "a"}); 129]}),
                "spec.devices: Too many: 129: must have at most 128 items",
            ),
            (json!({"spec.devices": [{"name": "a"}, {"name": "a"}]}), "spec.devices[1]: Duplicate value: \"a\""),
        ] {
            let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
            assert_eq!(created(&Slice, &slice(extra)), expected.replace("LABEL", label));
        }
        let (old, new) = (slice(json!({})), slice(json!({"spec.driver": "e.example.com", "spec.nodeName": "m"})));
        assert_eq!(
            updated(&Slice, &old, &new),
            "[spec.driver: Invalid value: \"e.example.com\": field is immutable, spec.nodeName: Invalid value: \"m\": field is immutable]"
        );
        assert_eq!(
            Slice.warnings(&slice(json!({"spec.driver": "D"})), None),
            ["spec.driver: driver names should be lowercase; \"D\" contains uppercase characters"]
        );
    }

    #[test]
    fn what_is_off_goes() {
        let given = json!({"partitionTypeAttribute": "a/b", "devices": [{"nodeAllocatableResources": {"cpu": {}}, "attributes": {"a": {"ints": [1]}}, "taints": [{"key": "k"}]}]});
        let mut new = json!({ "spec": given });
        prepared(&Slice, &mut new, &json!({}));
        assert_eq!(
            new["spec"],
            json!({"devices": [{"attributes": {"a": {}}, "taints": [{"key": "k", "timeAdded": "1970-01-01T00:00:00Z"}]}]})
        );
        let mut kept = json!({ "spec": given });
        prepared(&Slice, &mut kept, &json!({ "spec": given }));
        assert_eq!(
            (kept["spec"]["partitionTypeAttribute"].as_str(), &kept["spec"]["devices"][0]["attributes"]["a"]["ints"]),
            (Some("a/b"), &json!([1]))
        );
    }
}
