//! LimitRanges. Neighbour: [`super::quota`].

use std::collections::BTreeSet;

use api::field::{Error, ErrorList};
use api::names;
use api::quantity::{Format, Quantity};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::pod::quantity;
use super::pod::resources::{container_name, overcommits, resource_name};
use crate::kinds::check::{Node, Seen};
use crate::kinds::table::created_at_row;
use crate::kinds::value::{entries, list_mut, map, name, set, text};
use crate::resource::{Context, Hooks};

pub struct LimitRange;

impl Hooks for LimitRange {
    /// A container's default limit is its maximum; its default request its default limit, else
    /// its minimum.
    fn defaults(&self, range: &mut Value) {
        for item in list_mut(range, "spec.limits") {
            if text(item, "type") != "Container" {
                continue;
            }
            let part = |item: &Value, field: &str| map(item, field).cloned().unwrap_or_default();
            let (mut limits, mut requests) = (part(item, "default"), part(item, "defaultRequest"));
            fill(&mut limits, &part(item, "max"));
            fill(&mut requests, &limits);
            fill(&mut requests, &part(item, "min"));
            for (field, amounts) in [("default", limits), ("defaultRequest", requests)] {
                if !amounts.is_empty() {
                    set(item, field, amounts);
                }
            }
        }
    }

    /// One that nobody named gets a name.
    fn prepare_create(&self, _ctx: &Context<'_>, range: &mut Value) {
        if name(range).is_empty() {
            set(range, "metadata.name", uuid::Uuid::new_v4().to_string());
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, range: &Value) -> ErrorList {
        validate_range(range)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate_range(new)
    }

    fn row(&self, range: &Value, _now: Timestamp) -> Vec<Value> {
        created_at_row(range)
    }
}

fn fill(amounts: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (resource, amount) in from {
        amounts.entry(resource).or_insert_with(|| amount.clone());
    }
}

const TYPES: [&str; 3] = ["Container", "PersistentVolumeClaim", "Pod"];

fn validate_range(range: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut types = Seen::default();
    for item in Node::root(range).items("spec.limits") {
        let type_ = item.child("type");
        let sound = type_.format(&mut errors, names::qualified_name);
        if sound && !type_.text().contains('/') && !TYPES.contains(&type_.text()) {
            type_.invalid_text(&mut errors, "must be a standard limit type or fully qualified");
        }
        if !types.insert(type_.text()) {
            type_.duplicate(&mut errors);
        }
        amounts(&item, type_.text(), &mut errors);
        for name in names_of(item.value) {
            Limits { item: &item, name }.validate(&mut errors);
        }
    }
    errors
}

/// Which resources are limited by what.
fn amounts(item: &Node<'_>, type_: &str, errors: &mut ErrorList) {
    let check = if matches!(type_, "Pod" | "Container") { container_name } else { resource_name };
    let named = |field: &str, errors: &mut ErrorList| {
        for (name, amount) in item.entries(field) {
            check(name, &amount, errors);
        }
    };
    named("max", errors);
    named("min", errors);
    for field in ["default", "defaultRequest"] {
        if type_ != "Pod" {
            named(field, errors);
        } else if !item.child(field).is_empty() {
            item.child(field).forbidden(errors, "may not be specified when `type` is 'Pod'");
        }
    }
    if type_ == "PersistentVolumeClaim" && !item.has("min.storage") && !item.has("max.storage") {
        item.child("limits")
            .missing(errors, "either minimum or maximum storage value is required, but neither was provided");
    }
    named("maxLimitRequestRatio", errors);
}

/// Every resource that an item names.
fn names_of(item: &Value) -> BTreeSet<&str> {
    let pod = text(item, "type") == "Pod";
    ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
        .into_iter()
        .filter(|field| !pod || !field.starts_with("default"))
        .flat_map(|field| entries(item, field))
        .map(|(name, _)| name)
        .collect()
}

/// What an item says of one resource.
struct Limits<'a> {
    item: &'a Node<'a>,
    name: &'a str,
}

impl Limits<'_> {
    fn amount(&self, field: &str) -> Option<Quantity> {
        if text(self.item.value, "type") == "Pod" && field.starts_with("default") {
            return None;
        }
        map(self.item.value, field).and_then(|amounts| amounts.get(self.name)).and_then(quantity)
    }

    fn invalid(&self, field: &str, shown: Quantity, detail: String, errors: &mut ErrorList) {
        errors.push(Error::invalid(&self.item.child(field).path.key(self.name), shown.to_string(), detail));
    }

    /// min ≤ defaultRequest ≤ default ≤ max, and a ratio that these leave room for.
    fn validate(&self, errors: &mut ErrorList) {
        let (min, max) = (self.amount("min"), self.amount("max"));
        let (limit, request) = (self.amount("default"), self.amount("defaultRequest"));
        let ordered = |low: (Option<Quantity>, &str), high: (Option<Quantity>, &str)| match (low, high) {
            ((Some(small), small_is), (Some(large), large_is)) if small > large => {
                Some((small, large, format!("{small_is} value {small} is greater than {large_is} value {large}")))
            }
            _ => None,
        };
        if let Some((small, _, detail)) = ordered((min, "min"), (max, "max")) {
            self.invalid("min", small, detail, errors);
        }
        if let Some((_, large, detail)) = ordered((min, "min"), (request, "default request")) {
            self.invalid("defaultRequest", large, detail, errors);
        }
        if let Some((small, _, detail)) = ordered((request, "default request"), (max, "max")) {
            self.invalid("defaultRequest", small, detail, errors);
        }
        if let Some((small, _, detail)) = ordered((request, "default request"), (limit, "default limit")) {
            self.invalid("defaultRequest", small, detail, errors);
        }
        if let Some((small, _, detail)) = ordered((min, "min"), (limit, "default")) {
            self.invalid("default", small, detail, errors);
        }
        if let Some((_, large, detail)) = ordered((limit, "default"), (max, "max")) {
            self.invalid("default", large, detail, errors);
        }
        self.ratio(min, max, errors);
        if let (Some(limit), Some(request)) = (limit, request)
            && !overcommits(self.name)
            && limit != request
        {
            let detail = format!("default value {limit} must equal to defaultRequest value {request} in {}", self.name);
            self.invalid("defaultRequest", request, detail, errors);
        }
    }

    fn ratio(&self, min: Option<Quantity>, max: Option<Quantity>, errors: &mut ErrorList) {
        const FIELD: &str = "maxLimitRequestRatio";
        let Some(ratio) = self.amount(FIELD) else { return };
        if ratio < Quantity::from_units(1, Format::DecimalSi) {
            self.invalid(FIELD, ratio, format!("ratio {ratio} is less than 1"), errors);
        }
        let (Some(min), Some(max)) = (min, max) else { return };
        let fine = [ratio, min, max].iter().all(|amount| amount.units() < i64::MAX / 1000);
        let number = |amount: Quantity| if fine { amount.milli() as f64 / 1000.0 } else { amount.units() as f64 };
        let most = number(max) / number(min);
        if number(ratio) > most {
            self.invalid(FIELD, ratio, format!("ratio {ratio} is greater than max/min = {most:.6}"), errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated};
    use serde_json::json;

    #[test]
    fn defaults_follow_from_each_other() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1", "memory": "1Mi"}}]}});
        LimitRange.defaults(&mut range);
        assert_eq!(range["spec"]["limits"][0]["default"], json!({"cpu": "2"}));
        assert_eq!(range["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    }

    #[test]
    fn the_nameless_are_named() {
        let mut range = json!({"metadata": {"generateName": ""}});
        crate::kinds::tested::with(&json!({}), "", |ctx| LimitRange.prepare_create(ctx, &mut range));
        assert_eq!(name(&range).len(), 36);
    }

    #[test]
    fn ranges_refused() {
        for (item, expected) in [
            (
                json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}}),
                "[]",
            ),
            (json!({"type": "example.com/GPU", "max": {"example.com/a": "2"}}), "[]"),
            (
                json!({"type": "X"}),
                "spec.limits[0].type: Invalid value: \"X\": must be a standard limit type or fully qualified",
            ),
            (
                json!({"type": "Container", "max": {"storage": "1"}}),
                "[spec.limits[0].max[storage]: Invalid value: \"storage\": must be a standard resource for containers, \
                 spec.limits[0].default[storage]: Invalid value: \"storage\": must be a standard resource for containers, \
                 spec.limits[0].defaultRequest[storage]: Invalid value: \"storage\": must be a standard resource for containers]",
            ),
            (
                json!({"type": "Pod", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1"}}),
                "[spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod', \
                 spec.limits[0].defaultRequest: Forbidden: may not be specified when `type` is 'Pod']",
            ),
            (
                json!({"type": "PersistentVolumeClaim", "max": {"requests.storage": "1"}}),
                "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}),
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "9"}, "defaultRequest": {"cpu": "1"}, "default": {"cpu": "3"}}),
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "2"}, "defaultRequest": {"cpu": "3"}, "default": {"cpu": "1"}}),
                "[spec.limits[0].defaultRequest[cpu]: Invalid value: \"3\": default request value 3 is greater than max value 2, \
                 spec.limits[0].defaultRequest[cpu]: Invalid value: \"3\": default request value 3 is greater than default limit value 1]",
            ),
            (
                json!({"type": "Container", "min": {"cpu": "2"}, "defaultRequest": {"cpu": "2"}, "default": {"cpu": "1"}}),
                "[spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1, \
                 spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1]",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}, "default": {"cpu": "3"}}),
                "spec.limits[0].default[cpu]: Invalid value: \"2\": default value 3 is greater than max value 2",
            ),
            (
                json!({"type": "Pod", "max": {"cpu": "2"}, "min": {"cpu": "1500m"}, "maxLimitRequestRatio": {"cpu": "1500m", "memory": "500m"}}),
                "[spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"1500m\": ratio 1500m is greater than max/min = 1.333333, \
                 spec.limits[0].maxLimitRequestRatio[memory]: Invalid value: \"500m\": ratio 500m is less than 1]",
            ),
            (
                json!({"type": "Container", "default": {"hugepages-2Mi": "4Mi"}, "defaultRequest": {"hugepages-2Mi": "2Mi"}}),
                "spec.limits[0].defaultRequest[hugepages-2Mi]: Invalid value: \"2Mi\": default value 4Mi must equal to defaultRequest value 2Mi in hugepages-2Mi",
            ),
        ] {
            let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [item]}});
            assert_eq!(created(&LimitRange, &range), expected, "{range}");
            assert_eq!(updated(&LimitRange, &range, &range), expected, "{range}");
        }
        let twice = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Pod"}, {"type": "Pod"}]}});
        assert_eq!(created(&LimitRange, &twice), "spec.limits[1].type: Duplicate value: \"Pod\"");
    }
}
