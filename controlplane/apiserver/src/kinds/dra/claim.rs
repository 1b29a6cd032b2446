//! Validation of what a claim asks for (`pkg/apis/resource/validation/validation.go`).

use std::collections::BTreeSet;

use api::field::Error;
use api::names;
use serde_json::Value;

use super::report::{NOT_FULL, Report, qualified_name};
use super::selector;
use crate::kinds::check::Node;
use crate::kinds::value::{list, text};

pub const MAX_ITEMS: usize = 32;
const MAX_OPTIONS: usize = 8;
const MAX_EXPRESSION: usize = 10 * 1024;
const MAX_PARAMETERS: usize = 10 * 1024;
const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const NOT_A_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// `ResourceClaimSpec`.
pub fn validate(spec: &Node<'_>, report: &mut Report) {
    let devices = spec.child("devices");
    let known = request_names(devices.value);
    for request in report.unique(&devices, "requests", MAX_ITEMS, &["name"]) {
        request_item(&request, report);
    }
    for constraint in report.limited(&devices, "constraints", MAX_ITEMS) {
        references(&constraint, &known, report);
        attribute(&constraint, report);
    }
    for config in report.limited(&devices, "config", MAX_ITEMS) {
        references(&config, &known, report);
        configuration(&config, false, report);
    }
}

fn attribute(constraint: &Node<'_>, report: &mut Report) {
    let (matched, distinct) = (constraint.child("matchAttribute"), constraint.child("distinctAttribute"));
    if matched.exists() {
        report.full_name(&matched);
    } else if distinct.exists() {
        qualified_name(distinct.text(), &distinct.path, &mut report.said);
        if !distinct.text().contains('/') {
            distinct.invalid_text(&mut report.said, NOT_FULL);
        }
    } else {
        constraint.missing(
            &mut report.said,
            "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
        );
    }
}

fn request_item(request: &Node<'_>, report: &mut Report) {
    request.child("name").format(&mut report.said, names::dns1123_label);
    let (exactly, options) = (request.child("exactly"), request.child("firstAvailable"));
    match (exactly.exists(), options.is_empty()) {
        (false, true) => request.missing(&mut report.said, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, false) => report.said.push(Error::invalid(
            &request.path,
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        )),
        (true, true) => device_request(&exactly, report),
        (false, false) => {
            for option in report.unique(request, "firstAvailable", MAX_OPTIONS, &["name"]) {
                option.child("name").format(&mut report.said, names::dns1123_label);
                device_request(&option, report);
            }
        }
    }
}

fn device_request(request: &Node<'_>, report: &mut Report) {
    report.required_format(&request.child("deviceClassName"), names::dns1123_subdomain);
    selectors(request, false, report);
    let count = request.child("count");
    match request.child("allocationMode").text() {
        "All" if count.int() != 0 => {
            count.invalid(&mut report.said, "must not be specified when allocationMode is 'All'");
        }
        "ExactCount" if count.int() <= 0 => count.invalid_int(&mut report.said, "must be greater than zero"),
        _ => report.one_of(&request.child("allocationMode"), &["All", "ExactCount"]),
    }
    tolerations(request, report);
}

/// CEL selectors, of requests and of classes; those that are `stored` are not compiled again.
pub fn selectors(owner: &Node<'_>, stored: bool, report: &mut Report) {
    for selector in report.limited(owner, "selectors", MAX_ITEMS) {
        let expression = selector.child("cel.expression");
        if !selector.has("cel") {
            selector.child("cel").missing(&mut report.said, "");
        } else if stored {
        } else if expression.text().len() > MAX_EXPRESSION {
            report.said.push(Error::too_long(&expression.path, MAX_EXPRESSION));
        } else {
            selector::validate(&expression, report);
        }
    }
}

pub fn tolerations(owner: &Node<'_>, report: &mut Report) {
    for toleration in owner.items("tolerations") {
        let (key, value) = (toleration.child("key"), toleration.child("value"));
        if !key.text().is_empty() {
            key.format(&mut report.declared, names::qualified_name);
        }
        match toleration.child("operator").text() {
            "Exists" if !value.text().is_empty() => {
                value.invalid(&mut report.said, "must be empty for operator `Exists`");
            }
            "Equal" => {
                value.format(&mut report.said, names::label_value);
            }
            _ => report.one_of(&toleration.child("operator"), &["Equal", "Exists"]),
        }
        report.one_of(&toleration.child("effect"), &EFFECTS);
    }
}

/// A taint of a device, in a slice or in a rule; `known` is the effect that it had before.
pub fn taint(taint: &Node<'_>, known: Option<&str>, report: &mut Report) {
    taint.child("key").format(&mut report.said, names::qualified_name);
    if !taint.child("value").text().is_empty() {
        taint.child("value").format(&mut report.said, names::label_value);
    }
    let effect = taint.child("effect");
    if known != Some(effect.text()) {
        effect.required_one_of(&mut report.declared, &EFFECTS);
    }
}

/// Names of requests, and `request/subrequest` of their options.
pub fn request_names(devices: &Value) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for request in list(devices, "requests") {
        let name = text(request, "name");
        known.insert(name.to_owned());
        known.extend(list(request, "firstAvailable").iter().map(|option| format!("{name}/{}", text(option, "name"))));
    }
    known
}

pub fn references(owner: &Node<'_>, known: &BTreeSet<String>, report: &mut Report) {
    for name in report.unique(owner, "requests", MAX_ITEMS, &[]) {
        reference(&name, known, report);
    }
}

pub fn reference(name: &Node<'_>, known: &BTreeSet<String>, report: &mut Report) {
    let parts: Vec<&str> = name.text().split('/').collect();
    if parts.len() <= 2 {
        for part in parts {
            for problem in names::dns1123_label(part) {
                report.said.push(Error::invalid(&name.path, part, problem));
            }
        }
    }
    if !known.contains(name.text()) {
        name.invalid_text(&mut report.said, NOT_A_REQUEST);
    }
}

/// `opaque` parameters for a driver, in claims and classes; those that are `stored` may be of any
/// size.
pub fn configuration(config: &Node<'_>, stored: bool, report: &mut Report) {
    let opaque = config.child("opaque");
    if !opaque.exists() {
        return opaque.missing(&mut report.said, "");
    }
    report.driver(&opaque.child("driver"));
    raw(&opaque.child("parameters"), if stored { usize::MAX } else { MAX_PARAMETERS }, report);
}

/// A JSON object of any fields, of at most so many bytes.
pub fn raw(value: &Node<'_>, most: usize, report: &mut Report) {
    if value.value.is_null() {
        value.missing(&mut report.said, "");
    } else if value.value.to_string().len() > most {
        report.said.push(Error::too_long(&value.path, most));
    } else if !value.value.is_object() {
        report.said.push(Error::invalid(&value.path, "<value omitted>", "must be a valid JSON object"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    fn check(devices: Value) -> String {
        let (object, mut report) = (json!({"spec": {"devices": devices}}), Report::default());
        validate(&Node::root(&object).child("spec"), &mut report);
        join(&report.errors())
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
        let plain = || request(json!({}));
        for (devices, expected) in [
            (
                json!({"requests": [plain()], "config": [{"requests": ["r"], "opaque": {"driver": "d", "parameters": {}}}]}),
                "[]",
            ),
            (
                json!({"requests": [{"name": "r", "firstAvailable": [{"name": "s", "deviceClassName": "c", "allocationMode": "All"}]}], "constraints": [{"requests": ["r/s"], "matchAttribute": "a/b"}, {"distinctAttribute": "a/b"}]}),
                "[]",
            ),
            (
                json!({"requests": [plain(), plain()]}),
                "spec.devices.requests[1]: Duplicate value: {\"exactly\":{\"allocationMode\":\"ExactCount\",\"count\":1,\"deviceClassName\":\"c\"},\"name\":\"r\"}",
            ),
            (
                json!({"constraints": vec![json!({"matchAttribute": "a/b"}); 33]}),
                "spec.devices.constraints: Too many: 33: must have at most 32 items",
            ),
            (
                json!({"requests": [{"name": "r"}]}),
                "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            ),
            (
                json!({"requests": [{"name": "r", "exactly": exactly, "firstAvailable": [{}]}]}),
                "spec.devices.requests[0]: Invalid value: null: exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
            ),
            (
                json!({"requests": [request(json!({"count": -1, "deviceClassName": ""}))]}),
                "[spec.devices.requests[0].exactly.count: Invalid value: -1: must be greater than zero, spec.devices.requests[0].exactly.deviceClassName: Required value]",
            ),
            (
                json!({"requests": [request(json!({"allocationMode": "All"}))]}),
                "spec.devices.requests[0].exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'",
            ),
            (
                json!({"requests": [request(json!({"allocationMode": "Some"}))]}),
                "spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Some\": supported values: \"All\", \"ExactCount\"",
            ),
            (
                json!({"requests": [request(json!({"tolerations": [{"operator": "Exists", "value": "v"}, {"operator": "Is", "effect": "Never"}]}))]}),
                "[spec.devices.requests[0].exactly.tolerations[0].value: Invalid value: \"v\": must be empty for operator `Exists`, \
                 spec.devices.requests[0].exactly.tolerations[1].operator: Unsupported value: \"Is\": supported values: \"Equal\", \"Exists\", \
                 spec.devices.requests[0].exactly.tolerations[1].effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"]",
            ),
            (
                json!({"requests": [plain()], "constraints": [{"requests": ["x", "x"], "distinctAttribute": "b"}, {}]}),
                "[spec.devices.constraints[0].requests[0]: Invalid value: \"x\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/', \
                 spec.devices.constraints[0].requests[1]: Invalid value: \"x\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/', \
                 spec.devices.constraints[0].distinctAttribute: Invalid value: \"b\": a fully qualified name must be a domain and a name separated by a slash, \
                 spec.devices.constraints[1]: Required value: exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set, \
                 spec.devices.constraints[0].requests[1]: Duplicate value: \"x\"]",
            ),
            (
                json!({"requests": [plain()], "config": [{"opaque": {"parameters": 7}}, {}]}),
                "[spec.devices.config[0].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object, \
                 spec.devices.config[1].opaque: Required value, spec.devices.config[0].opaque.driver: Required value]",
            ),
        ] {
            assert_eq!(check(devices), expected);
        }
    }
}
