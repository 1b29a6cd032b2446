//! What webhooks and policies are about: rules, `MatchResources`, match conditions.

use api::field::{Error, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::{compiles, purpose};
use crate::kinds::check::{Node, Seen, label_selector};
use crate::kinds::value::{default, list_mut};
use crate::policy;

pub(super) fn match_conditions(owner: &Node<'_>, errors: &mut ErrorList) {
    let conditions = owner.items("matchConditions");
    if conditions.len() > 64 {
        errors.push(Error::too_many(&owner.child("matchConditions").path, conditions.len(), 64));
    }
    let mut seen = Seen::default();
    let known = policy::declarations(purpose(owner), None, None, None);
    for condition in conditions {
        let expression = condition.child("expression");
        if expression.required(errors, "") {
            compiles(&expression, &known, &["bool"], errors);
        }
        let name = condition.child("name");
        if name.required_format(errors, names::qualified_name) && !seen.insert(name.text()) {
            name.duplicate(errors);
        }
    }
}

pub(super) fn validate_rule(rule: &Node<'_>, errors: &mut ErrorList) {
    let wild = |field: &str| {
        let items = rule.items(field);
        items.len() > 1 && items.iter().any(|item| item.text() == "*")
    };
    for (field, others) in [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")]
    {
        rule.child(field).required(errors, "");
        if wild(field) {
            rule.child(field).invalid(errors, format!("if '*' is present, must not specify other {others}"));
        }
        if field == "operations" {
            for operation in rule.items("operations") {
                operation.one_of(errors, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]);
            }
        }
    }
    for version in rule.items("apiVersions") {
        version.required(errors, "");
    }
    rule_resources(rule, errors);
    rule.child("scope").optional_one_of(errors, &["*", "Cluster", "Namespaced"]);
}

/// `pods`, `pods/status`, `*/scale`, `*`, `*/*`: none of them covered by another.
fn rule_resources(rule: &Node<'_>, errors: &mut ErrorList) {
    let all = rule.child("resources");
    all.required(errors, "");
    let (mut of_any, mut any_of) = (Seen::default(), Seen::default());
    let (mut every, mut every_whole, mut whole) = (false, false, false);
    let items = rule.items("resources");
    for item in &items {
        let text = item.text();
        every |= text == "*/*";
        every_whole |= text == "*";
        let Some((resource, sub)) = text.split_once('/') else {
            whole |= !matches!(text, "" | "*");
            item.required(errors, "");
            continue;
        };
        if any_of.contains(resource) {
            item.invalid(errors, format!("if '{resource}/*' is present, must not specify {text}"));
        }
        if of_any.contains(sub) {
            item.invalid(errors, format!("if '*/{sub}' is present, must not specify {text}"));
        }
        if sub == "*" {
            any_of.insert(resource);
        }
        if resource == "*" {
            of_any.insert(sub);
        }
    }
    if items.len() > 1 && every {
        all.invalid(errors, "if '*/*' is present, must not specify other resources");
    }
    if every_whole && whole {
        all.invalid(errors, "if '*' is present, must not specify other resources without subresources");
    }
}

/// Defaults of `MatchResources`.
pub(super) fn match_defaults(resources: &mut Value) {
    default(resources, "matchPolicy", "Equivalent");
    default(resources, "namespaceSelector", json!({}));
    default(resources, "objectSelector", json!({}));
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in list_mut(resources, field) {
            default(rule, "scope", "*");
        }
    }
}

pub(super) fn match_resources(resources: &Node<'_>, errors: &mut ErrorList) {
    resources.child("matchPolicy").optional_one_of(errors, &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        label_selector(&resources.child(field), errors);
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in resources.items(field) {
            validate_rule(&rule, errors);
            let mut seen = Seen::default();
            for name in rule.items("resourceNames") {
                name.format(errors, names::path_segment);
                if !seen.insert(name.text()) {
                    name.duplicate(errors);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    #[test]
    fn rules_refused() {
        let whole = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
        let with = |field: &str, value: Value| {
            let mut rule = whole.clone();
            rule[field] = value;
            rule
        };
        for (rule, expected) in [
            (whole.clone(), "[]"),
            (
                json!({"scope": "X"}),
                "[operations: Required value, apiGroups: Required value, apiVersions: Required value, resources: Required value, \
                 scope: Unsupported value: \"X\": supported values: \"*\", \"Cluster\", \"Namespaced\"]",
            ),
            (
                with("operations", json!(["*", "PATCH"])),
                "[operations: Invalid value: [\"*\",\"PATCH\"]: if '*' is present, must not specify other operations, \
                 operations[1]: Unsupported value: \"PATCH\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"]",
            ),
            (
                with("apiGroups", json!(["*", "apps"])),
                "apiGroups: Invalid value: [\"*\",\"apps\"]: if '*' is present, must not specify other API groups",
            ),
            (
                with("resources", json!(["*", "pods", "pods/*", "pods/status", "*/scale", "a/scale"])),
                "[resources[3]: Invalid value: \"pods/status\": if 'pods/*' is present, must not specify pods/status, \
                 resources[5]: Invalid value: \"a/scale\": if '*/scale' is present, must not specify a/scale, \
                 resources: Invalid value: [\"*\",\"pods\",\"pods/*\",\"pods/status\",\"*/scale\",\"a/scale\"]: if '*' is present, must not specify other resources without subresources]",
            ),
        ] {
            let mut errors = ErrorList::new();
            validate_rule(&Node::root(&rule), &mut errors);
            assert_eq!(join(&errors), expected, "{rule}");
        }
    }
}
