//! How much of a device's capacity several claims may take (`requestPolicy`).

use api::field::{Error, ErrorList};
use api::quantity::Quantity;

use crate::kinds::check::{NON_NEGATIVE, Node};
use crate::kinds::core::pod::quantity;

const MAX_OPTIONS: usize = 10;

/// The capacities of a device, which `shared` says several claims may have.
pub fn validate(capacity: &Node<'_>, shared: bool, errors: &mut ErrorList) {
    let policy = capacity.child("requestPolicy");
    if !policy.exists() {
        return;
    }
    if !shared {
        return policy.forbidden(errors, "allowMultipleAllocations must be true");
    }
    let Some(most) = quantity(capacity.child("value").value) else { return };
    let (values, range, default) = (policy.items("validValues"), policy.child("validRange"), policy.child("default"));
    if !values.is_empty() && range.exists() {
        let detail =
            "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return policy.forbidden(errors, detail);
    }
    let given = if values.is_empty() { "validRange" } else { "validValues" };
    if values.is_empty() && !range.exists() {
        return;
    }
    let Some(default) = quantity(default.value) else {
        return default.missing(errors, format!("required when {given} is defined"));
    };
    if values.is_empty() {
        Range { range: &range, default, most }.validate(errors);
    } else {
        options(&policy.child("validValues"), &values, default, most, errors);
    }
}

fn invalid(node: &Node<'_>, shown: Quantity, detail: impl Into<String>, errors: &mut ErrorList) {
    errors.push(Error::invalid(&node.path, shown.to_string(), detail));
}

/// Options in order, none twice, none too large; the default is one of them.
fn options(all: &Node<'_>, values: &[Node<'_>], default: Quantity, most: Quantity, errors: &mut ErrorList) {
    let amounts: Vec<Quantity> = values.iter().filter_map(|value| quantity(value.value)).collect();
    for (pair, node) in amounts.windows(2).zip(&values[1..]) {
        if pair[0] > pair[1] {
            invalid(node, pair[1], "values must be sorted in ascending order", errors);
        }
    }
    if values.len() > MAX_OPTIONS {
        errors.push(Error::too_many(&all.path, values.len(), MAX_OPTIONS));
    } else {
        for (node, amount) in values.iter().zip(&amounts).filter(|(_, amount)| **amount > most) {
            invalid(node, *amount, format!("option is larger than capacity value: {most}"), errors);
        }
        for (index, node) in values.iter().enumerate().take(amounts.len()) {
            if amounts[..index].contains(&amounts[index]) {
                errors.push(Error::duplicate(&node.path, decimal(amounts[index])));
            }
        }
    }
    // Upstream looks for the default among the options only while it checks these.
    if values.len() > MAX_OPTIONS || !amounts.contains(&default) {
        invalid(all, default, "default value is not valid according to the requestPolicy", errors);
    }
}

fn decimal(amount: Quantity) -> String {
    if amount.is_integer() { amount.units().to_string() } else { (amount.milli() as f64 / 1000.0).to_string() }
}

struct Range<'a> {
    range: &'a Node<'a>,
    default: Quantity,
    most: Quantity,
}

impl Range<'_> {
    fn validate(&self, errors: &mut ErrorList) {
        let node = |field: &str| self.range.child(field);
        let amount = |field: &str| quantity(node(field).value);
        let (default, most) = (self.default, self.most);
        let Some(min) = amount("min") else {
            return node("min").missing(errors, "required when validRange is defined");
        };
        if min > most {
            invalid(&node("min"), min, format!("min is larger than capacity value: {most}"), errors);
        }
        if default < min {
            // Upstream names the bound, and shows the default.
            invalid(&node("min"), default, format!("default is less than min: {min}"), errors);
        }
        if let Some(max) = amount("max") {
            if min > max {
                invalid(&node("max"), min, format!("min is larger than max: {max}"), errors);
            }
            if max > most {
                invalid(&node("max"), max, format!("max is larger than capacity value: {most}"), errors);
            }
            if default > max {
                invalid(&node("max"), default, format!("default is more than max: {max}"), errors);
            }
        }
        let before = errors.len();
        self.countable([Some(min), amount("max"), amount("step")], errors);
        if let Some(step) = amount("step").filter(|_| errors.len() == before) {
            self.step(step, min, amount("max"), errors);
        }
    }

    /// Of a range with fractions everything is counted in thousandths.
    fn countable(&self, bounds: [Option<Quantity>; 3], errors: &mut ErrorList) {
        const NANOS: i128 = 1_000_000;
        if bounds.iter().flatten().all(|amount| amount.is_integer()) {
            return;
        }
        let [min, max, step] = bounds;
        for (field, amount) in [("default", Some(self.default)), ("min", min), ("max", max), ("step", step)] {
            let Some(amount) = amount else { continue };
            if amount.nanos() % NANOS != 0 || i64::try_from(amount.nanos() / NANOS).is_err() {
                let node = self.range.child(field);
                invalid(&node, amount, "value cannot be represented as a milli value", errors);
            }
        }
    }

    fn step(&self, step: Quantity, min: Quantity, max: Option<Quantity>, errors: &mut ErrorList) {
        let node = |field: &str| self.range.child(field);
        if step <= Quantity::ZERO {
            return invalid(&node("step"), step, "must be greater than zero", errors);
        }
        let (added, most) = (min + step, self.most);
        if added > most {
            let detail = format!("one step {added} is larger than capacity value: {most}");
            invalid(&node("step"), step, detail, errors);
        }
        let parts = [("default", Some(self.default)), ("min", Some(min)), ("max", max), ("step", Some(step))];
        let fine = parts.iter().any(|(_, amount)| amount.is_some_and(|amount| !amount.is_integer()));
        let before = errors.len();
        for (field, amount) in parts.iter().filter_map(|(field, amount)| Some((field, (*amount)?))) {
            if !fine && amount.is_negative() {
                invalid(&node(field), amount, NON_NEGATIVE, errors);
            }
        }
        if errors.len() > before {
            return;
        }
        let count = |amount: Quantity| i128::from(if fine { amount.milli() } else { amount.units() });
        for value in [Some(self.default), max].into_iter().flatten() {
            if (count(value) - count(min)).checked_rem(count(step)) != Some(0) {
                let detail = format!("value is not a multiple of a given step ({step}) from ({min})");
                invalid(&node("step"), value, detail, errors);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies_refused() {
        for (shared, policy, expected) in [
            (true, json!({"default": "1", "validValues": ["1", "2"]}), "[]"),
            (true, json!({"default": "500m", "validRange": {"min": "500m", "max": "1500m", "step": "500m"}}), "[]"),
            (false, json!({}), "c.requestPolicy: Forbidden: allowMultipleAllocations must be true"),
            (
                true,
                json!({"validValues": ["1"], "validRange": {}}),
                "c.requestPolicy: Forbidden: exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time",
            ),
            (
                true,
                json!({"validValues": ["1"]}),
                "c.requestPolicy.default: Required value: required when validValues is defined",
            ),
            (
                true,
                json!({"validRange": {}}),
                "c.requestPolicy.default: Required value: required when validRange is defined",
            ),
            (
                true,
                json!({"default": "3", "validValues": ["2", "1", "1", "11"]}),
                "[c.requestPolicy.validValues[1]: Invalid value: \"1\": values must be sorted in ascending order, \
                 c.requestPolicy.validValues[3]: Invalid value: \"11\": option is larger than capacity value: 10, \
                 c.requestPolicy.validValues[2]: Duplicate value: \"1\", \
                 c.requestPolicy.validValues: Invalid value: \"3\": default value is not valid according to the requestPolicy]",
            ),
            (
                true,
                json!({"default": "3", "validRange": {"max": "1"}}),
                "c.requestPolicy.validRange.min: Required value: required when validRange is defined",
            ),
            (
                true,
                json!({"default": "1", "validRange": {"min": "11", "max": "12"}}),
                "[c.requestPolicy.validRange.min: Invalid value: \"11\": min is larger than capacity value: 10, \
                 c.requestPolicy.validRange.min: Invalid value: \"1\": default is less than min: 11, \
                 c.requestPolicy.validRange.max: Invalid value: \"12\": max is larger than capacity value: 10]",
            ),
            (
                true,
                json!({"default": "3", "validRange": {"min": "2", "max": "1"}}),
                "[c.requestPolicy.validRange.max: Invalid value: \"2\": min is larger than max: 1, \
                 c.requestPolicy.validRange.max: Invalid value: \"3\": default is more than max: 1]",
            ),
            (
                true,
                json!({"default": "1", "validRange": {"min": "1", "step": "0"}}),
                "c.requestPolicy.validRange.step: Invalid value: \"0\": must be greater than zero",
            ),
            (
                true,
                json!({"default": "2", "validRange": {"min": "1", "max": "5", "step": "3"}}),
                "[c.requestPolicy.validRange.step: Invalid value: \"2\": value is not a multiple of a given step (3) from (1), \
                 c.requestPolicy.validRange.step: Invalid value: \"5\": value is not a multiple of a given step (3) from (1)]",
            ),
            (
                true,
                json!({"default": "20u", "validRange": {"min": "10u", "step": "1u"}}),
                "[c.requestPolicy.validRange.default: Invalid value: \"20u\": value cannot be represented as a milli value, \
                 c.requestPolicy.validRange.min: Invalid value: \"10u\": value cannot be represented as a milli value, \
                 c.requestPolicy.validRange.step: Invalid value: \"1u\": value cannot be represented as a milli value]",
            ),
            (
                true,
                json!({"default": "1", "validRange": {"min": "1", "step": "10"}}),
                "c.requestPolicy.validRange.step: Invalid value: \"10\": one step 11 is larger than capacity value: 10",
            ),
        ] {
            let (object, mut errors) = (json!({"c": {"value": "10", "requestPolicy": policy}}), ErrorList::new());
            validate(&Node::root(&object).child("c"), shared, &mut errors);
            assert_eq!(api::field::join(&errors), expected, "{policy}");
        }
    }
}
