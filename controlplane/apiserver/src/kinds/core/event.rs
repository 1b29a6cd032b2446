//! Events, stored as `v1` and served as `v1` and `events.k8s.io/v1`: two shapes of one thing.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

use super::event_validation;
use crate::error::Result;
use crate::kinds::table::words;
use crate::kinds::value::{at, get, name, opt_int, text};
use crate::resource::{Column, Context, Hooks, since};

/// Fields of `v1` and their names in `events.k8s.io/v1`.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

pub struct Event;

impl Hooks for Event {
    fn validate_create(&self, ctx: &Context<'_>, event: &Value) -> ErrorList {
        event_validation::validate_create(event, ctx)
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        event_validation::validate_update(new, ctx)
    }

    fn convert(&self, event: &mut Value, from: (&str, &str), _to: (&str, &str)) -> Result<()> {
        let to_core = from.0 == "events.k8s.io";
        if let Some(fields) = event.as_object_mut() {
            for (core, new) in RENAMED {
                let (source, target) = if to_core { (new, core) } else { (core, new) };
                if let Some(value) = fields.remove(source) {
                    fields.insert(target.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn row(&self, event: &Value, now: Timestamp) -> Vec<Value> {
        cells(event, now)
    }
}

pub fn columns() -> Vec<Column> {
    vec![
        words("Last Seen", "The time at which the most recent occurrence of this event was recorded."),
        words("Type", "Type of this event (Normal, Warning), new types could be added in the future"),
        words("Reason", "This should be a short, machine understandable string that gives the reason for the transition into the object's current status."),
        words("Object", "The object that this event is about."),
        words("Subobject", "If referring to a piece of an object instead of an entire object, this string should contain a valid JSON/Go field access statement.").wide(),
        words("Source", "The component reporting this event. Should be a short machine understandable string.").wide(),
        words("Message", "A human-readable description of the status of this operation."),
        words("First Seen", "The time at which the event was first recorded. (Time of server receipt is in TypeMeta.)").wide(),
        words("Count", "The number of times this event has occurred.").wide(),
        Column::name().wide(),
    ]
}

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let first = get(event, "firstTimestamp").or_else(|| get(event, "eventTime")).unwrap_or(&Value::Null);
    let last = get(event, "series.lastObservedTime").or_else(|| get(event, "lastTimestamp")).unwrap_or(first);
    let count =
        opt_int(event, "series.count").or_else(|| opt_int(event, "count")).filter(|count| *count != 0).unwrap_or(1);
    let kind = text(event, "involvedObject.kind").to_lowercase();
    let target = match text(event, "involvedObject.name") {
        "" => kind,
        object => format!("{kind}/{object}"),
    };
    let component = match text(event, "source.component") {
        "" => text(event, "reportingComponent"),
        component => component,
    };
    let host = match text(event, "source.host") {
        "" => text(event, "reportingInstance"),
        host => host,
    };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        since(last, now),
        text(event, "type").into(),
        text(event, "reason").into(),
        target.into(),
        text(event, "involvedObject.fieldPath").into(),
        source.into(),
        at(event, "message").as_str().unwrap_or("").trim().into(),
        since(first, now),
        count.into(),
        name(event).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_shapes() {
        let core = json!({"involvedObject": {"name": "p"}, "message": "m", "count": 2, "reportingComponent": "k", "reason": "R"});
        let mut event = core.clone();
        Event.convert(&mut event, ("", "v1"), ("events.k8s.io", "v1")).unwrap();
        assert_eq!(
            event,
            json!({"regarding": {"name": "p"}, "note": "m", "deprecatedCount": 2, "reportingController": "k", "reason": "R"})
        );
        Event.convert(&mut event, ("events.k8s.io", "v1"), ("", "v1")).unwrap();
        assert_eq!(event, core);
    }

    #[test]
    fn rows() {
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal", "reason": "Pulled",
            "message": "ok\n", "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:04:30Z", "count": 3, "source": {"component": "kubelet", "host": "n"}});
        let shown: Vec<String> = cells(&event, now).iter().map(|c| c.to_string().replace('"', "")).collect();
        assert_eq!(shown.join("|"), "30s|Normal|Pulled|pod/p||kubelet, n|ok|5m|3|e");
    }
}
