//! Validation of Events (`ValidateEventCreate`, `ValidateEventUpdate`): what `v1` always asked for,
//! and the stricter rules of `events.k8s.io/v1`, which take a request's group to apply.

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::Value;

use crate::kinds::check::Node;
use crate::kinds::value::{has, int, text};
use crate::resource::Context;

/// Bytes.
const LONGEST: usize = 128;
const LONGEST_NOTE: usize = 1024;

pub fn validate_create(event: &Value, ctx: &Context<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    legacy(event, ctx.namespace, &mut errors);
    if !is_strict(ctx) {
        return errors;
    }
    let root = Node::root(event);
    root.child("metadata.name").format(&mut errors, names::dns1123_subdomain);
    series(event, &mut errors);
    root.child("eventTime").required(&mut errors, "");
    let type_ = root.child("type");
    if !matches!(type_.text(), "Normal" | "Warning") {
        errors.push(Error::invalid(&type_.path, "", format!("has invalid value: {}", type_.text())));
    }
    for (field, set) in [
        ("firstTimestamp", has(event, "firstTimestamp")),
        ("lastTimestamp", has(event, "lastTimestamp")),
        ("count", int(event, "count") != 0),
        ("source", ["component", "host"].iter().any(|part| !text(&event["source"], part).is_empty())),
    ] {
        if set {
            errors.push(Error::invalid(&Path::root(field), "", "needs to be unset"));
        }
    }
    errors
}

/// Strict events may change as much as others: Kubernetes compares the new event with itself.
pub fn validate_update(new: &Value, ctx: &Context<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    legacy(new, ctx.namespace, &mut errors);
    errors
}

fn is_strict(ctx: &Context<'_>) -> bool {
    ctx.group == "events.k8s.io"
}

/// `eventTime` marks events of the newer sort, which must be complete.
fn legacy(event: &Value, namespace: &str, errors: &mut ErrorList) {
    let root = Node::root(event);
    let involved = root.child("involvedObject.namespace");
    let fits = match (has(event, "eventTime"), involved.text()) {
        (false, "") => namespace == "default",
        (false, involved) => involved == namespace,
        (true, "") => matches!(namespace, "default" | "kube-system"),
        (true, _) => true,
    };
    if !fits {
        involved.invalid_text(errors, "does not match event.namespace");
    }
    if !has(event, "eventTime") {
        return;
    }
    let controller = text(event, "reportingComponent");
    let path = Path::root("reportingController");
    if controller.is_empty() {
        errors.push(Error::required(&path, ""));
    }
    for problem in names::qualified_name(controller) {
        errors.push(Error::invalid(&path, controller, problem));
    }
    for field in ["reportingInstance", "action", "reason"] {
        let found = root.child(field);
        found.required(errors, "");
        too_long(&found, LONGEST, errors);
    }
    too_long(&root.child("message"), LONGEST_NOTE, errors);
}

fn too_long(node: &Node<'_>, most: usize, errors: &mut ErrorList) {
    if node.text().len() > most {
        errors.push(Error::invalid(&node.path, "", format!("can have at most {most} characters")));
    }
}

fn series(event: &Value, errors: &mut ErrorList) {
    let series = Node::root(event).child("series");
    if !series.exists() {
        return;
    }
    if series.child("count").int() < 2 {
        errors.push(Error::invalid(&series.child("count").path, "", "should be at least 2"));
    }
    series.child("lastObservedTime").required(errors, "");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::core::event::Event;
    use crate::kinds::tested::{created, updated};

    fn event(namespace: &str, api: &str, fields: Value) -> Value {
        let mut event = json!({"apiVersion": api, "metadata": {"name": "e", "namespace": namespace}});
        for (key, value) in fields.as_object().unwrap() {
            event[key] = value.clone();
        }
        event
    }

    fn full() -> Value {
        json!({"eventTime": "2026-01-01T00:00:00.000000Z", "reportingComponent": "a/b", "reportingInstance": "i",
            "action": "a", "reason": "r", "type": "Normal", "involvedObject": {"namespace": "n", "name": "p"}})
    }

    fn but(change: Value) -> Value {
        let mut fields = full();
        for (key, value) in change.as_object().unwrap() {
            fields[key] = value.clone();
        }
        fields
    }

    #[test]
    fn created_ones() {
        let mismatch = |shown: &str| {
            format!("involvedObject.namespace: Invalid value: \"{shown}\": does not match event.namespace")
        };
        for (namespace, api, fields, expected) in [
            ("n", "v1", json!({"involvedObject": {"namespace": "n"}}), "[]".to_owned()),
            ("default", "v1", json!({}), "[]".to_owned()),
            ("kube-system", "v1", json!({}), mismatch("")),
            ("n", "v1", json!({"involvedObject": {"namespace": "m"}}), mismatch("m")),
            ("n", "v1", full(), "[]".to_owned()),
            ("m", "v1", full(), "[]".to_owned()),
            ("kube-system", "v1", but(json!({"involvedObject": {}})), "[]".to_owned()),
            ("n", "v1", but(json!({"involvedObject": {}})), mismatch("")),
            (
                "n",
                "v1",
                but(json!({"reportingComponent": "a b", "reportingInstance": "x".repeat(129), "action": "", "message": "x".repeat(1025), "type": "X"})),
                "[reportingController: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]'), \
                 reportingInstance: Invalid value: \"\": can have at most 128 characters, action: Required value, \
                 message: Invalid value: \"\": can have at most 1024 characters]".to_owned(),
            ),
            ("n", "events.k8s.io/v1", full(), "[]".to_owned()),
            (
                "n",
                "events.k8s.io/v1",
                json!({"involvedObject": {"namespace": "n"}, "type": "X", "count": 1, "firstTimestamp": "2026-01-01T00:00:00Z",
                    "lastTimestamp": "2026-01-01T00:00:00Z", "source": {"host": "h"}, "series": {"count": 1}}),
                "[series.count: Invalid value: \"\": should be at least 2, series.lastObservedTime: Required value, \
                 eventTime: Required value, type: Invalid value: \"\": has invalid value: X, \
                 firstTimestamp: Invalid value: \"\": needs to be unset, lastTimestamp: Invalid value: \"\": needs to be unset, \
                 count: Invalid value: \"\": needs to be unset, source: Invalid value: \"\": needs to be unset]".to_owned(),
            ),
        ] {
            assert_eq!(created(&Event, &event(namespace, api, fields.clone())), expected, "{namespace} {api} {fields}");
        }
    }

    #[test]
    fn a_strict_one_may_change_its_note() {
        for (change, expected) in [
            (json!({"message": "patched", "series": {"count": 1}}), "[]"),
            (json!({"action": ""}), "action: Required value"),
        ] {
            let (old, new) = (event("n", "events.k8s.io/v1", full()), event("n", "events.k8s.io/v1", but(change)));
            assert_eq!(updated(&Event, &old, &new), expected);
        }
    }
}
