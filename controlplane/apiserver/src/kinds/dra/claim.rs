//! Validation of what a claim asks for, and of what it was given
//! (`pkg/apis/resource/validation/validation.go`).

use std::collections::BTreeSet;

use api::field::{Error, ErrorList};
use api::names;
use serde_json::Value;

use crate::kinds::check::{Node, Seen, labels};
use crate::kinds::core::pod::placement::node_selector;
use crate::kinds::core::pod::volume::csi_driver_name;
use crate::kinds::value::{has, list, text};

const MAX_ITEMS: usize = 32;
const MAX_OPTIONS: usize = 8;
const MAX_CONSUMERS: usize = 256;
const MAX_EXPRESSION: usize = 10 * 1024;
const MAX_PARAMETERS: usize = 10 * 1024;
const NOT_A_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// `ResourceClaimSpec`.
pub fn validate(spec: &Node<'_>, errors: &mut ErrorList) {
    let devices = spec.child("devices");
    let known = request_names(devices.value);
    for request in limited(&devices, "requests", MAX_ITEMS, errors) {
        request_item(&request, errors);
    }
    unique_names(&devices, "requests", errors);
    for constraint in limited(&devices, "constraints", MAX_ITEMS, errors) {
        references(&constraint, &known, errors);
        match ["matchAttribute", "distinctAttribute"].iter().find(|field| constraint.has(field)) {
            Some(field) => qualified_attribute(&constraint.child(field), errors),
            None => constraint.missing(
                errors,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            ),
        }
    }
    for config in limited(&devices, "config", MAX_ITEMS, errors) {
        references(&config, &known, errors);
        configuration(&config, errors);
    }
}

/// The items of a list that may not be longer than `most`: none, and an error, when it is.
fn limited<'a>(owner: &Node<'a>, field: &str, most: usize, errors: &mut ErrorList) -> Vec<Node<'a>> {
    let items = owner.items(field);
    if items.len() <= most {
        return items;
    }
    errors.push(Error::too_many(&owner.child(field).path, items.len(), most));
    Vec::new()
}

pub fn unique_names(owner: &Node<'_>, field: &str, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for item in owner.items(field) {
        let name = item.child("name").text();
        if !seen.insert(name) {
            errors.push(Error::duplicate(&item.path, name));
        }
    }
}

fn request_item(request: &Node<'_>, errors: &mut ErrorList) {
    request.child("name").required_format(errors, names::dns1123_label);
    let (exactly, options) = (request.child("exactly"), request.items("firstAvailable"));
    match (exactly.exists(), options.is_empty()) {
        (false, true) => request.missing(errors, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, false) => request
            .invalid(errors, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"),
        (true, true) => device_request(&exactly, errors),
        (false, false) => {
            for option in limited(request, "firstAvailable", MAX_OPTIONS, errors) {
                option.child("name").required_format(errors, names::dns1123_label);
                device_request(&option, errors);
            }
            unique_names(request, "firstAvailable", errors);
        }
    }
}

fn device_request(request: &Node<'_>, errors: &mut ErrorList) {
    request.child("deviceClassName").required_format(errors, names::dns1123_subdomain);
    selectors(request, errors);
    let count = request.child("count");
    match request.child("allocationMode").text() {
        "All" if count.int() != 0 => count.invalid(errors, "must not be specified when allocationMode is 'All'"),
        "ExactCount" if count.int() <= 0 => count.invalid(errors, "must be greater than zero"),
        _ => {
            request.child("allocationMode").one_of(errors, &["All", "ExactCount"]);
        }
    }
    for toleration in request.items("tolerations") {
        tolerates(&toleration, errors);
    }
}

/// CEL selectors, of requests and of classes.
pub fn selectors(owner: &Node<'_>, errors: &mut ErrorList) {
    for selector in limited(owner, "selectors", MAX_ITEMS, errors) {
        let expression = selector.child("cel.expression");
        if !selector.has("cel") {
            selector.child("cel").missing(errors, "");
        } else if expression.text().len() > MAX_EXPRESSION {
            errors.push(Error::too_long(&expression.path, MAX_EXPRESSION));
        } else if let Err(why) = crate::cel::compile(expression.text()) {
            expression.invalid(errors, format!("compilation failed: {why}"));
        }
    }
}

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

fn tolerates(toleration: &Node<'_>, errors: &mut ErrorList) {
    let (key, value, effect) = (toleration.child("key"), toleration.child("value"), toleration.child("effect"));
    if !key.text().is_empty() {
        key.format(errors, names::qualified_name);
    }
    match toleration.child("operator").text() {
        "Exists" if !value.text().is_empty() => value.invalid(errors, "must be empty for operator `Exists`"),
        "Equal" => {
            value.format(errors, names::label_value);
        }
        _ => {
            toleration.child("operator").required_one_of(errors, &["Equal", "Exists"]);
        }
    }
    if !effect.text().is_empty() {
        effect.one_of(errors, &EFFECTS);
    }
}

/// A taint of a device, in a slice or in a rule.
pub fn taint(taint: &Node<'_>, errors: &mut ErrorList) {
    taint.child("key").format(errors, names::qualified_name);
    if !taint.child("value").text().is_empty() {
        taint.child("value").format(errors, names::label_value);
    }
    taint.child("effect").required_one_of(errors, &EFFECTS);
}

/// `domain/name` of an attribute.
fn qualified_attribute(attribute: &Node<'_>, errors: &mut ErrorList) {
    if attribute.required(errors, "name required") && !attribute.text().contains('/') {
        attribute.invalid(errors, "must include a domain");
    }
}

/// Names of requests, and `request/subrequest` of their options.
fn request_names(devices: &Value) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for request in list(devices, "requests") {
        let name = text(request, "name");
        known.insert(name.to_owned());
        known.extend(list(request, "firstAvailable").iter().map(|option| format!("{name}/{}", text(option, "name"))));
    }
    known
}

fn references(owner: &Node<'_>, known: &BTreeSet<String>, errors: &mut ErrorList) {
    for name in limited(owner, "requests", MAX_ITEMS, errors) {
        if !known.contains(name.text()) {
            name.invalid(errors, NOT_A_REQUEST);
        }
    }
    owner.child("requests").unique(errors);
}

/// `opaque` parameters for a driver, in claims and classes.
pub fn configuration(config: &Node<'_>, errors: &mut ErrorList) {
    let opaque = config.child("opaque");
    if !opaque.exists() {
        return opaque.missing(errors, "");
    }
    if opaque.child("driver").required(errors, "") {
        csi_driver_name(&opaque.child("driver"), errors);
    }
    let parameters = opaque.child("parameters");
    if parameters.value.is_null() {
        parameters.missing(errors, "");
    } else if parameters.value.to_string().len() > MAX_PARAMETERS {
        errors.push(Error::too_long(&parameters.path, MAX_PARAMETERS));
    } else if !parameters.value.is_object() {
        errors.push(Error::invalid(&parameters.path, "<value omitted>", "must be a valid JSON object"));
    }
}

pub fn configurations(owner: &Node<'_>, errors: &mut ErrorList) {
    for config in limited(owner, "config", MAX_ITEMS, errors) {
        configuration(&config, errors);
    }
}

/// Segments of a subdomain each, 253 characters in all.
pub fn pool_name(name: &Node<'_>, errors: &mut ErrorList) {
    if !name.required(errors, "") {
        return;
    }
    if name.text().len() > 253 {
        errors.push(Error::too_long(&name.path, 253));
    }
    for part in name.text().split('/') {
        for problem in names::dns1123_subdomain(part) {
            errors.push(Error::invalid(&name.path, part, problem));
        }
    }
}

/// `ResourceClaimStatus`: an allocation stands until it is taken back as a whole.
pub fn validate_status(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(new).child("status");
    let reserved = limited(&status, "reservedFor", MAX_CONSUMERS, &mut errors);
    let mut seen = Seen::default();
    for consumer in &reserved {
        for field in ["resource", "name", "uid"] {
            consumer.child(field).required(&mut errors, "");
        }
        if !seen.insert(consumer.child("uid").text()) {
            errors.push(Error::duplicate(&consumer.path, consumer.child("uid").text()));
        }
    }
    let before = list(old, "status.reservedFor");
    if !reserved.is_empty() && !status.has("allocation") {
        status.child("reservedFor").forbidden(&mut errors, "may not be specified when `allocated` is not set");
    } else if has(new, "metadata.deletionTimestamp") && reserved.iter().any(|item| !before.contains(item.value)) {
        status.child("reservedFor").forbidden(
            &mut errors,
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
        );
    }
    let (allocation, was) = (status.child("allocation"), Node::root(old).child("status.allocation"));
    if allocation.exists() && was.exists() {
        allocation.immutable(&mut errors, &was);
    } else if allocation.exists() {
        validate_allocation(&allocation, &request_names(Node::root(new).child("spec.devices").value), &mut errors);
    }
    errors
}

fn validate_allocation(allocation: &Node<'_>, known: &BTreeSet<String>, errors: &mut ErrorList) {
    for result in limited(&allocation.child("devices"), "results", MAX_ITEMS, errors) {
        if !known.contains(result.child("request").text()) {
            result.child("request").invalid(errors, NOT_A_REQUEST);
        }
        if result.child("driver").required(errors, "") {
            csi_driver_name(&result.child("driver"), errors);
        }
        pool_name(&result.child("pool"), errors);
        result.child("device").format(errors, names::dns1123_label);
    }
    for config in limited(&allocation.child("devices"), "config", 2 * MAX_ITEMS, errors) {
        config.child("source").required_one_of(errors, &["FromClaim", "FromClass"]);
        references(&config, known, errors);
        configuration(&config, errors);
    }
    if allocation.has("nodeSelector") {
        node_selector(&allocation.child("nodeSelector"), errors);
    }
}

/// Metadata that a template's claims get.
pub fn template_metadata(metadata: &Node<'_>, errors: &mut ErrorList) {
    labels(&metadata.child("labels"), errors);
    crate::kinds::meta::annotations(&metadata.child("annotations"), errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    fn check(devices: Value) -> String {
        let (object, mut errors) = (json!({"spec": {"devices": devices}}), ErrorList::new());
        validate(&Node::root(&object).child("spec"), &mut errors);
        join(&errors)
    }

    #[test]
    fn claims_refused() {
        let exactly = json!({"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1});
        let request = |extra: Value| {
            let mut exactly = exactly.clone();
            for (key, value) in extra.as_object().unwrap() {
                exactly[key] = value.clone();
            }
            json!({"name": "r", "exactly": exactly})
        };
        for (devices, expected) in [
            (
                json!({"requests": [request(json!({}))], "config": [{"requests": ["r"], "opaque": {"driver": "d", "parameters": {}}}]}),
                "[]",
            ),
            (
                json!({"requests": [request(json!({})), request(json!({}))]}),
                "spec.devices.requests[1]: Duplicate value: \"r\"",
            ),
            (
                json!({"requests": [{"name": "r"}]}),
                "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            ),
            (
                json!({"requests": [request(json!({"count": 0}))]}),
                "spec.devices.requests[0].exactly.count: Invalid value: 0: must be greater than zero",
            ),
            (
                json!({"requests": [request(json!({"allocationMode": "Some"}))]}),
                "spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Some\": supported values: \"All\", \"ExactCount\"",
            ),
            (
                json!({"requests": [request(json!({"tolerations": [{"operator": "Exists", "value": "v"}]}))]}),
                "spec.devices.requests[0].exactly.tolerations[0].value: Invalid value: \"v\": must be empty for operator `Exists`",
            ),
            (
                json!({"requests": [request(json!({}))], "constraints": [{"requests": ["x"], "matchAttribute": "a/b"}]}),
                "spec.devices.constraints[0].requests[0]: Invalid value: \"x\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
            ),
            (
                json!({"requests": [request(json!({}))], "config": [{"opaque": {"driver": "d", "parameters": 7}}]}),
                "spec.devices.config[0].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object",
            ),
        ] {
            assert_eq!(check(devices), expected);
        }
    }

    #[test]
    fn allocations_stand() {
        let claim = |allocation: Value, reserved: Value| json!({"spec": {"devices": {"requests": [{"name": "r"}]}}, "status": {"allocation": allocation, "reservedFor": reserved}});
        let result = json!({"devices": {"results": [{"request": "r", "driver": "d", "pool": "p", "device": "x"}]}});
        let pod = json!([{"resource": "pods", "name": "p", "uid": "1"}]);
        let allocated = claim(result.clone(), json!([]));
        assert_eq!(join(&validate_status(&allocated, &claim(Value::Null, json!([])))), "[]");
        assert_eq!(join(&validate_status(&claim(result, pod.clone()), &allocated)), "[]");
        assert_eq!(
            join(&validate_status(&claim(Value::Null, pod), &allocated)),
            "status.reservedFor: Forbidden: may not be specified when `allocated` is not set"
        );
        assert!(
            join(&validate_status(&claim(json!({"devices": {}}), json!([])), &allocated))
                .ends_with("field is immutable")
        );
    }
}
