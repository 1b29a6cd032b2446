//! One device of a ResourceSlice.

use api::field::{Error, ErrorList};
use api::names;
use serde_json::Value;

use super::report::{Report, qualified_name};
use super::slice::{LISTS, PLACEMENTS, counters, set_to_true, taken};
use super::{allocation, capacity, claim};
use crate::kinds::check::Node;
use crate::kinds::core::pod::placement::node_selector;
use crate::kinds::value::same_at;

const MAX_CONSUMED: usize = 2;
const MAX_TAINTS: usize = 16;
const MAX_ATTRIBUTES: usize = 32;
const MAX_VALUES: usize = 48;
const MAX_VALUE: usize = 64;

pub fn validate(device: &Node<'_>, before: Option<&Value>, per_device: bool, report: &mut Report) {
    device.child("name").format(&mut report.said, names::dns1123_label);
    numbers(device, &mut report.said);
    for (key, attribute) in device.entries("attributes") {
        qualified_name(key, &device.child("attributes").path, &mut report.said);
        validate_attribute(&attribute, report);
    }
    let changed = |field: &str| before.is_none_or(|before| !same_at(before, device.value, field));
    if changed("capacity") {
        let shared = device.child("allowMultipleAllocations").flag();
        for (key, amount) in device.entries("capacity") {
            qualified_name(key, &device.child("capacity").path, &mut report.said);
            capacity::validate(&amount, shared, &mut report.said);
        }
    }
    let taints = device.items("taints");
    if changed("taints") && taints.len() > MAX_TAINTS {
        report.said.push(Error::too_many(&device.child("taints").path, taints.len(), MAX_TAINTS));
    } else if changed("taints") {
        for taint in taints {
            claim::taint(&taint, None, report);
        }
    }
    for consumed in report.unique(device, "consumesCounters", MAX_CONSUMED, &["counterSet"]) {
        counters(&consumed, "counterSet", report);
    }
    device_placement(device, per_device, &mut report.said);
    allocation::binding(device, report);
}

/// How much may be said of a device.
fn numbers(device: &Node<'_>, errors: &mut ErrorList) {
    let described = device.child("attributes").len() + device.child("capacity").len();
    if described > MAX_ATTRIBUTES {
        let detail = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errors.push(Error::invalid(&device.path, described, detail));
    }
    let values = |attribute: &Node<'_>| LISTS.iter().map(|field| attribute.child(field).len()).sum::<usize>().max(1);
    let values: usize = device.entries("attributes").iter().map(|(_, attribute)| values(attribute)).sum();
    if values > MAX_VALUES {
        let detail = format!("the total number of attribute values must not exceed {MAX_VALUES}");
        errors.push(Error::invalid(&device.path, values, detail));
    }
}

fn device_placement(device: &Node<'_>, per_device: bool, errors: &mut ErrorList) {
    let ways = &PLACEMENTS[..3];
    if !per_device {
        if ways.iter().any(|way| device.has(way)) {
            let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.push(Error::invalid(&device.path, Value::Null, detail));
        }
        return;
    }
    let name = device.child("nodeName");
    if name.exists() && name.text().is_empty() {
        name.invalid(errors, "must not be empty");
    } else if name.exists() {
        name.format(errors, names::dns1123_subdomain);
    }
    if device.has("nodeSelector") {
        node_selector(&device.child("nodeSelector"), errors);
    }
    set_to_true(&device.child("allNodes"), errors);
    let given = taken(device, ways);
    let one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    match given.len() {
        0 => device.missing(errors, one),
        1 => {}
        _ => errors.push(Error::invalid(&device.path, format!("{{{}}}", given.join(", ")), one)),
    }
}

/// One value, of one type.
fn validate_attribute(attribute: &Node<'_>, report: &mut Report) {
    let (string, version) = (attribute.child("string"), attribute.child("version"));
    if string.exists() {
        long(&string, &mut report.said);
    }
    if version.exists() {
        is_version(&version, &mut report.said);
    }
    for field in LISTS {
        if attribute.has(field) && attribute.child(field).is_empty() {
            attribute.child(field).invalid(&mut report.said, "must not be empty if specified");
        }
    }
    for item in attribute.items("strings") {
        long(&item, &mut report.said);
    }
    for item in attribute.items("versions") {
        is_version(&item, &mut report.said);
    }
    let all = ["int", "bool", "string", "version", "ints", "bools", "strings", "versions"];
    let given: Vec<&str> = all.into_iter().filter(|field| attribute.has(field)).collect();
    let known = all.map(|field| format!("`{field}`")).join(", ");
    match given.len() {
        0 => report.declared.push(Error::invalid(&attribute.path, "", format!("must specify one of: {known}"))),
        1 => {}
        _ => report.declared.push(Error::invalid(
            &attribute.path,
            format!("{{{}}}", given.join(", ")),
            format!("must specify exactly one of: {known}"),
        )),
    }
}

fn long(text: &Node<'_>, errors: &mut ErrorList) {
    if text.text().len() > MAX_VALUE {
        errors.push(Error::too_long(&text.path, MAX_VALUE));
    }
}

fn is_version(version: &Node<'_>, errors: &mut ErrorList) {
    if !is_semver(version.text()) {
        version.invalid_text(errors, "must be a string compatible with semver.org spec 2.0.0");
    }
    long(version, errors);
}

/// `1.2.3-alpha.1+build`.
fn is_semver(text: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, early) = rest.split_once('-').map_or((rest, None), |(core, early)| (core, Some(early)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && early.is_none_or(|early| early.split('.').all(|part| number(part) || word(part) && !digits(part)))
        && build.is_none_or(|build| build.split('.').all(word))
}

#[cfg(test)]
mod tests {
    use super::super::slice::Slice;
    use super::super::slice::tests::slice;
    use super::*;
    use crate::kinds::tested::created;
    use serde_json::json;

    #[test]
    fn devices_refused() {
        let at = "spec.devices[0]";
        for (device, expected) in [
            (
                json!({"attributes": {"a": {"int": 1}, "d/b": {"version": "1.2.3-a.1+b"}}, "taints": [{"key": "k", "effect": "None"}]}),
                "[]".to_owned(),
            ),
            (
                json!({"taints": [{"key": "k", "effect": "Never"}, {"key": "k"}]}),
                format!(
                    "[{at}.taints[0].effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \"None\", {at}.taints[1].effect: Required value]"
                ),
            ),
            (
                json!({"attributes": {"a": {}, "b": {"int": 1, "bool": true}, "c": {"version": "1"}, "d": {"string": "s".repeat(65)}}}),
                format!(
                    "[{at}.attributes[c].version: Invalid value: \"1\": must be a string compatible with semver.org spec 2.0.0, \
                     {at}.attributes[d].string: Too long: may not be more than 64 bytes, \
                     {at}.attributes[a]: Invalid value: \"\": must specify one of: `int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`, \
                     {at}.attributes[b]: Invalid value: \"{{int, bool}}\": must specify exactly one of: `int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`]"
                ),
            ),
            (
                json!({"nodeName": "n"}),
                format!(
                    "{at}: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
                ),
            ),
            (
                json!({"capacity": {"a": {"value": "1", "requestPolicy": {}}}}),
                format!("{at}.capacity[a].requestPolicy: Forbidden: allowMultipleAllocations must be true"),
            ),
            (
                json!({"consumesCounters": [{"counterSet": "a", "counters": {"c": {"value": "1"}}}, {"counterSet": "a"}]}),
                format!(
                    "[{at}.consumesCounters[1]: Duplicate value: {{\"counterSet\":\"a\"}}, {at}.consumesCounters[1].counters: Required value]"
                ),
            ),
        ] {
            let mut device = device;
            device["name"] = json!("a");
            assert_eq!(created(&Slice, &slice(json!({"spec.devices": [device]}))), expected);
        }
        let many: serde_json::Map<String, Value> = (0..33).map(|n| (format!("a{n}"), json!({"int": 1}))).collect();
        assert_eq!(
            created(&Slice, &slice(json!({"spec.devices": [{"name": "a", "attributes": many}]}))),
            "spec.devices[0]: Invalid value: 33: the total number of attributes and capacities must not exceed 32"
        );
        let per_device = slice(
            json!({"spec.nodeName": null, "spec.perDeviceNodeSelection": true, "spec.devices": [{"name": "a"}, {"name": "b", "nodeName": "n", "allNodes": true}, {"name": "c", "allNodes": true}]}),
        );
        assert_eq!(
            created(&Slice, &per_device),
            "[spec.devices[0]: Required value: exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec, \
             spec.devices[1]: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec]"
        );
    }

    #[test]
    fn versions() {
        for (text, fits) in [
            ("1.2.3", true),
            ("1.2.3-a-b.1+x.0", true),
            ("01.2.3", false),
            ("1.2", false),
            ("1.2.3-01", false),
            ("1.2.3-0a", true),
            ("1.2.3+", false),
        ] {
            assert_eq!(is_semver(text), fits, "{text}");
        }
    }
}
