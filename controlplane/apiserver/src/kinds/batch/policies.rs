//! Validation of what decides that a Job has failed or succeeded: `podFailurePolicy`,
//! `successPolicy`, and the sets of indexes that status and policies speak of.

use api::field::{Error, ErrorList};
use api::names;

use crate::kinds::check::{Node, Seen};
use crate::kinds::value::{list, text};

const MAX_RULES: usize = 20;
const MAX_CONDITIONS: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_INDEXES_TEXT: usize = 64 * 1024;

pub fn failure(spec: &Node<'_>, errors: &mut ErrorList) {
    let rules = spec.items("podFailurePolicy.rules");
    if rules.len() > MAX_RULES {
        errors.push(Error::too_many(&spec.child("podFailurePolicy.rules").path, rules.len(), MAX_RULES));
    }
    for rule in rules {
        action(spec, &rule.child("action"), errors);
        let (codes, conditions) = (rule.child("onExitCodes"), rule.items("onPodConditions"));
        if codes.exists() {
            exit_codes(spec, &codes, errors);
        }
        if conditions.len() > MAX_CONDITIONS {
            errors.push(Error::too_many(&rule.child("onPodConditions").path, conditions.len(), MAX_CONDITIONS));
        }
        for condition in &conditions {
            condition.child("type").format(errors, names::qualified_name);
            let status = condition.child("status");
            if status.required(errors, "valid values: [\"False\" \"True\" \"Unknown\"]") {
                status.one_of(errors, &["False", "True", "Unknown"]);
            }
        }
        match (codes.exists(), conditions.is_empty()) {
            (true, false) => {
                let detail = "specifying both OnExitCodes and OnPodConditions is not supported";
                errors.push(Error::invalid_unshown(&rule.path, detail));
            }
            (false, true) => {
                let detail = "specifying one of OnExitCodes and OnPodConditions is required";
                errors.push(Error::invalid_unshown(&rule.path, detail));
            }
            _ => {}
        }
    }
}

fn action(spec: &Node<'_>, action: &Node<'_>, errors: &mut ErrorList) {
    if !action.required(errors, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]") {
        return;
    }
    if action.text() == "FailIndex" && !spec.has("backoffLimitPerIndex") {
        action.invalid(errors, "requires the backoffLimitPerIndex to be set");
    }
    action.one_of(errors, &["Count", "FailIndex", "FailJob", "Ignore"]);
}

fn exit_codes(spec: &Node<'_>, codes: &Node<'_>, errors: &mut ErrorList) {
    let operator = codes.child("operator");
    if operator.required(errors, "valid values: [\"In\" \"NotIn\"]") {
        operator.one_of(errors, &["In", "NotIn"]);
    }
    let container = codes.child("containerName");
    let known = ["template.spec.containers", "template.spec.initContainers"]
        .iter()
        .flat_map(|field| list(spec.value, field))
        .any(|known| text(known, "name") == container.text());
    if container.exists() && !known {
        container.invalid(errors, "must be one of the container or initContainer names in the pod template");
    }
    let values = codes.items("values");
    if values.is_empty() {
        codes.child("values").invalid(errors, "at least one value is required");
    } else if values.len() > MAX_EXIT_CODES {
        errors.push(Error::too_many(&codes.child("values").path, values.len(), MAX_EXIT_CODES));
    }
    let mut seen = Seen::default();
    for value in &values {
        if operator.text() == "In" && value.int() == 0 {
            value.invalid(errors, "must not be 0 for the In operator");
        }
        if !seen.insert(value.int().to_string()) {
            value.duplicate(errors);
        }
    }
    if !values.is_sorted_by_key(Node::int) {
        codes.child("values").invalid(errors, "must be ordered");
    }
}

pub fn success(spec: &Node<'_>, errors: &mut ErrorList) {
    let policy = spec.child("successPolicy");
    if !policy.exists() {
        return;
    }
    if spec.child("completionMode").text() != "Indexed" {
        return policy.invalid(errors, "requires indexed completion mode");
    }
    let (rules, completions) = (policy.items("rules"), spec.child("completions").int());
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        policy.child("rules").missing(errors, detail);
    } else if rules.len() > MAX_RULES {
        errors.push(Error::too_many(&policy.child("rules").path, rules.len(), MAX_RULES));
    }
    for rule in rules {
        let (count, indexes) = (rule.child("succeededCount"), rule.child("succeededIndexes"));
        if !count.exists() && !indexes.exists() {
            rule.missing(errors, "at least one of succeededCount or succeededIndexes must be specified");
        }
        if indexes.text().len() > MAX_INDEXES_TEXT {
            errors.push(Error::too_long(&indexes.path, MAX_INDEXES_TEXT));
        }
        let chosen = parse_indexes(indexes.text(), completions);
        if let Err(why) = &chosen {
            indexes.invalid(errors, format!("error parsing succeededIndexes: {why}"));
        }
        if !count.exists() || !count.non_negative(errors) {
            continue;
        }
        if count.int() > completions {
            let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
            count.invalid(errors, detail);
        }
        let total: i64 = chosen.iter().flatten().map(|(first, last)| last - first + 1).sum();
        if indexes.exists() && count.int() > total {
            count.invalid(errors, format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"));
        }
    }
}

/// Ranges of indexes, both ends inclusive.
pub type Indexes = Vec<(i64, i64)>;

/// `1,3-5,7`: growing, and below `completions`.
pub fn parse_indexes(text: &str, completions: i64) -> Result<Indexes, String> {
    let mut ranges = Indexes::new();
    if text.is_empty() {
        return Ok(ranges);
    }
    let number = |part: &str| -> Result<i64, String> {
        part.parse::<i32>()
            .map(i64::from)
            .map_err(|_| format!("cannot convert string to integer for index: \"{part}\""))
    };
    for part in text.split(',') {
        let ends: Vec<&str> = part.split('-').collect();
        let (first, last) = match ends.as_slice() {
            [one] => (number(one)?, number(one)?),
            [first, last] => (number(first)?, number(last)?),
            _ => {
                return Err(format!(
                    "the fragment \"{part}\" violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if ends.len() == 2 && first >= last {
            return Err(format!("non-increasing order, previous: {first}, current: {last}"));
        }
        if let Some((_, before)) = ranges.last().filter(|(_, before)| *before >= first) {
            return Err(format!("non-increasing order, previous: {before}, current: {first}"));
        }
        if let Some(beyond) = [first, last].iter().find(|index| **index >= completions) {
            return Err(format!("too large index: \"{beyond}\""));
        }
        ranges.push((first, last));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::{Value, json};

    fn check(test: fn(&Node<'_>, &mut ErrorList), spec: &Value) -> String {
        let (object, mut errors) = (json!({"spec": spec}), ErrorList::new());
        test(&Node::root(&object).child("spec"), &mut errors);
        join(&errors)
    }

    #[test]
    fn failure_policies_refused() {
        let containers = json!({"spec": {"containers": [{"name": "c"}]}});
        for (rule, expected) in [
            (json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}), "[]"),
            (
                json!({"action": "FailIndex", "onPodConditions": [{"type": "X", "status": "True"}]}),
                "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
            ),
            (
                json!({"action": "Ignore", "onExitCodes": {"containerName": "d", "operator": "In", "values": [3, 0, 3]}}),
                "[spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"d\": must be one of the container or initContainer names in the pod template, \
                 spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator, \
                 spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Duplicate value: 3, \
                 spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [3,0,3]: must be ordered]",
            ),
        ] {
            let spec = json!({"template": containers, "podFailurePolicy": {"rules": [rule]}});
            assert_eq!(check(failure, &spec), expected);
        }
    }

    #[test]
    fn success_policies_refused() {
        let spec =
            |rule: Value| json!({"completionMode": "Indexed", "completions": 5, "successPolicy": {"rules": [rule]}});
        for (spec, expected) in [
            (spec(json!({"succeededIndexes": "0,2-4", "succeededCount": 4})), "[]"),
            (
                spec(json!({})),
                "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
            ),
            (
                spec(json!({"succeededIndexes": "3,1"})),
                "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"3,1\": error parsing succeededIndexes: non-increasing order, previous: 3, current: 1",
            ),
            (
                spec(json!({"succeededIndexes": "0-1", "succeededCount": 3})),
                "spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)",
            ),
            (json!({"successPolicy": {}}), "spec.successPolicy: Invalid value: {}: requires indexed completion mode"),
        ] {
            assert_eq!(check(success, &spec), expected);
        }
    }

    #[test]
    fn sets_of_indexes() {
        assert_eq!(parse_indexes("", 1), Ok(vec![]));
        assert_eq!(parse_indexes("0,2-4", 5), Ok(vec![(0, 0), (2, 4)]));
        for (text, why) in [
            ("5", "too large index: \"5\""),
            ("a", "cannot convert string to integer for index: \"a\""),
            ("4-2", "non-increasing order, previous: 4, current: 2"),
            (
                "1-2-3",
                "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
        ] {
            assert_eq!(parse_indexes(text, 5), Err(why.to_owned()), "{text}");
        }
    }
}
