//! FlowSchemas: which requests belong to which priority level.

use std::cmp::Ordering;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::{conditions, fixed};
use crate::kinds::check::Node;
use crate::kinds::core::pod::internal::{self, Field, Is};
use crate::kinds::table::{NONE, count, named, row_wide, words};
use crate::kinds::value::{default_int, int, list, name, opt_text, same, text, texts};
use crate::resource::{ALL_BUT_STATUS, Column, Context, Hooks, Paths};

const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const SUBJECTS: [(&str, &str); 3] = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
const NAME: &[Field] = &[Field("name", "Name", Is::Text)];
const METHOD: &[Field] = &[Field("type", "Type", Is::Text)];

const SPEC: &[Field] = &[
    Field("priorityLevelConfiguration", "PriorityLevelConfiguration", Is::Within(NAME)),
    Field("matchingPrecedence", "MatchingPrecedence", Is::Nil),
    Field("distinguisherMethod", "DistinguisherMethod", Is::Of(METHOD)),
    Field(
        "rules",
        "Rules",
        Is::Of(&[
            Field(
                "subjects",
                "Subjects",
                Is::Of(&[
                    Field("kind", "Kind", Is::Text),
                    Field("user", "User", Is::Of(NAME)),
                    Field("group", "Group", Is::Of(NAME)),
                    Field(
                        "serviceAccount",
                        "ServiceAccount",
                        Is::Of(&[Field("namespace", "Namespace", Is::Text), Field("name", "Name", Is::Text)]),
                    ),
                ]),
            ),
            Field(
                "resourceRules",
                "ResourceRules",
                Is::Of(&[
                    Field("verbs", "Verbs", Is::Nil),
                    Field("apiGroups", "APIGroups", Is::Nil),
                    Field("resources", "Resources", Is::Nil),
                    Field("clusterScope", "ClusterScope", Is::Flag),
                    Field("namespaces", "Namespaces", Is::Nil),
                ]),
            ),
            Field(
                "nonResourceRules",
                "NonResourceRules",
                Is::Of(&[Field("verbs", "Verbs", Is::Nil), Field("nonResourceURLs", "NonResourceURLs", Is::Nil)]),
            ),
        ]),
    ),
];

pub struct Schema;

impl Hooks for Schema {
    fn defaults(&self, schema: &mut Value) {
        default_int(schema, "spec.matchingPrecedence", 1000);
    }

    fn validate_create(&self, _ctx: &Context<'_>, schema: &Value) -> ErrorList {
        validate_schema(schema)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate_schema(new)
    }

    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        conditions(new)
    }

    fn row(&self, schema: &Value, now: Timestamp) -> Vec<Value> {
        let dangling = list(schema, "status.conditions").iter().find(|condition| text(condition, "type") == "Dangling");
        let missing = dangling.map_or("?", |condition| text(condition, "status"));
        row_wide(
            schema,
            now,
            vec![
                text(schema, "spec.priorityLevelConfiguration.name").into(),
                count(schema, "spec.matchingPrecedence"),
                opt_text(schema, "spec.distinguisherMethod.type").unwrap_or(NONE).into(),
            ],
            vec![missing.into()],
        )
    }

    fn row_order(&self) -> Option<fn(&Value, &Value) -> Ordering> {
        Some(precedence_order)
    }
}

/// In the order in which schemas are tried.
fn precedence_order(one: &Value, other: &Value) -> Ordering {
    let key = |schema: &Value| (int(schema, "spec.matchingPrecedence"), name(schema).to_owned());
    key(one).cmp(&key(other))
}

fn validate_schema(schema: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(schema).child("spec");
    let precedence = spec.child("matchingPrecedence");
    if precedence.int() < 1 {
        precedence.invalid(&mut errors, "must be a positive value");
    } else if precedence.int() > 10_000 {
        precedence.invalid(&mut errors, "must not be greater than 10000");
    } else if precedence.int() == 1 && name(schema) != "exempt" {
        precedence.invalid(&mut errors, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    let method = spec.child("distinguisherMethod");
    if method.exists() && !matches!(method.child("type").text(), "ByNamespace" | "ByUser") {
        let shown = serde_json::json!({"Type": method.child("type").text()});
        errors.push(Error::not_supported(&method.child("type").path, shown, &["ByNamespace", "ByUser"]));
    }
    let level = spec.child("priorityLevelConfiguration.name");
    if level.required(&mut errors, "must reference a priority level") {
        level.format(&mut errors, names::dns1123_subdomain);
    }
    for rules in spec.items("rules") {
        policy(&rules, &mut errors);
    }
    if fixed("flowschemas", schema).is_some_and(|fixed| !same(&fixed, spec.value)) {
        let detail = format!("spec of '{}' must equal the fixed value", name(schema));
        errors.push(internal::invalid(&spec.path, spec.value, SPEC, &detail));
    }
    errors
}

fn policy(rules: &Node<'_>, errors: &mut ErrorList) {
    rules.child("subjects").required(errors, "subjects must contain at least one value");
    for item in rules.items("subjects") {
        subject(&item, errors);
    }
    let (resources, others) = (rules.items("resourceRules"), rules.items("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        rules.missing(errors, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for rule in resources {
        resource_rule(&rule, errors);
    }
    for rule in others {
        verbs(&rule, errors);
        urls(&rule, errors);
    }
}

/// The field of the subject's kind, and no other.
fn subject(subject: &Node<'_>, errors: &mut ErrorList) {
    let kind = subject.child("kind");
    let Some((kind, field)) = SUBJECTS.iter().find(|(known, _)| *known == kind.text()) else {
        kind.one_of(errors, &SUBJECTS.map(|(kind, _)| kind));
        return;
    };
    let own = subject.child(field);
    if !own.exists() {
        own.missing(errors, format!("{field} is required when subject kind is '{kind}'"));
    } else {
        let name = own.child("name");
        let named = name.required(errors, "");
        if *kind == "ServiceAccount" {
            if named && name.text() != "*" {
                name.format(errors, names::dns1123_subdomain);
            }
            if own.child("namespace").required(errors, "must specify namespace for service account") {
                own.child("namespace").format(errors, names::dns1123_label);
            }
        }
    }
    for field in ["serviceAccount", "user", "group"] {
        let other = SUBJECTS.iter().find(|(other, of)| *of == field && other != kind);
        if let Some((kind, field)) = other.filter(|_| subject.has(field)) {
            subject.child(field).forbidden(errors, format!("{field} is forbidden when subject kind is not '{kind}'"));
        }
    }
}

fn is_any(rule: &Node<'_>, field: &str) -> bool {
    texts(rule.value, field).contains(&"*")
}

/// `*` stands alone.
fn alone(rule: &Node<'_>, field: &str, others: &str, errors: &mut ErrorList) {
    if rule.child(field).len() > 1 && is_any(rule, field) {
        rule.child(field).invalid(errors, format!("if '*' is present, must not specify other {others}"));
    }
}

fn verbs(rule: &Node<'_>, errors: &mut ErrorList) {
    let verbs = rule.child("verbs");
    if !verbs.required(errors, "verbs must contain at least one value") {
        return;
    }
    alone(rule, "verbs", "verbs", errors);
    if !is_any(rule, "verbs") && !texts(rule.value, "verbs").iter().all(|verb| VERBS.contains(verb)) {
        errors.push(Error::not_supported(&verbs.path, verbs.value.clone(), &VERBS));
    }
}

fn resource_rule(rule: &Node<'_>, errors: &mut ErrorList) {
    verbs(rule, errors);
    if rule.child("apiGroups").required(errors, "resource rules must supply at least one api group") {
        alone(rule, "apiGroups", "api groups", errors);
    }
    if rule.child("resources").required(errors, "resource rules must supply at least one resource") {
        alone(rule, "resources", "resources", errors);
    }
    let namespaces = rule.child("namespaces");
    if namespaces.is_empty() && !rule.child("clusterScope").flag() {
        namespaces.missing(errors, "resource rules that are not cluster scoped must supply at least one namespace");
    } else if is_any(rule, "namespaces") {
        alone(rule, "namespaces", "namespaces", errors);
    } else {
        for namespace in rule.items("namespaces") {
            for problem in names::dns1123_label(namespace.text()) {
                namespace.invalid_text(
                    errors,
                    format!("each member of this list must be '*' or a DNS-1123 label; {problem}"),
                );
            }
        }
    }
}

fn urls(rule: &Node<'_>, errors: &mut ErrorList) {
    let all = rule.child("nonResourceURLs");
    if !all.required(errors, "nonResourceURLs must contain at least one value") {
        return;
    }
    if is_any(rule, "nonResourceURLs") {
        return alone(rule, "nonResourceURLs", "non-resource URLs", errors);
    }
    for url in rule.items("nonResourceURLs") {
        if let Some(problem) = url_problem(url.text()) {
            url.invalid_text(errors, problem);
        }
    }
}

fn url_problem(path: &str) -> Option<&'static str> {
    match path {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !path.starts_with('/') => Some("must start with slash"),
        _ if path.contains(' ') => Some("must not contain white-space"),
        _ if path.contains("//") => Some("must not contain double slash"),
        _ if path.matches('*').count() > 1 || path.contains('*') && !path.ends_with("/*") => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

pub fn columns() -> Vec<Column> {
    let mut columns = named(vec![
        words("PriorityLevel", "`name` is the name of the priority level configuration being referenced Required."),
        words(
            "MatchingPrecedence",
            "matchingPrecedence is used to choose among the FlowSchemas that match a given request.",
        ),
        words(
            "DistinguisherMethod",
            "`distinguisherMethod` defines how to compute the flow distinguisher for requests that match this schema. `nil` specifies that the distinguisher is disabled and thus will always be the empty string.",
        ),
    ]);
    columns.push(words("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"));
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated, updated_sub};
    use crate::kinds::value::set;
    use serde_json::json;

    fn schema(extra: Value) -> Value {
        let mut schema = json!({"metadata": {"name": "s"}, "spec": {"priorityLevelConfiguration": {"name": "system"}, "rules": [{
            "subjects": [{"kind": "User", "user": {"name": "u"}}],
            "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["*"]}]}]}});
        for (path, value) in extra.as_object().expect("the test's own fields") {
            set(&mut schema, path, value.clone());
        }
        schema
    }

    #[test]
    fn schemas_refused() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"spec.matchingPrecedence": -1}),
                "spec.matchingPrecedence: Invalid value: -1: must be a positive value",
            ),
            (
                json!({"spec.matchingPrecedence": 10001}),
                "spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000",
            ),
            (
                json!({"spec.matchingPrecedence": 1}),
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
            ),
            (
                json!({"spec.distinguisherMethod": {"type": "ByLuck"}}),
                "spec.distinguisherMethod.type: Unsupported value: {\"Type\":\"ByLuck\"}: supported values: \"ByNamespace\", \"ByUser\"",
            ),
            (
                json!({"spec.priorityLevelConfiguration": {}}),
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
            ),
            (
                json!({"spec.rules": [{}]}),
                "[spec.rules[0].subjects: Required value: subjects must contain at least one value, \
                 spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty]",
            ),
        ] {
            assert_eq!(created(&Schema, &schema(extra.clone())), expected, "{extra}");
        }
    }

    #[test]
    fn subjects_refused() {
        for (item, expected) in [
            (json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "n"}}), "[]"),
            (
                json!({"kind": "Robot"}),
                "s.kind: Unsupported value: \"Robot\": supported values: \"Group\", \"ServiceAccount\", \"User\"",
            ),
            (json!({"kind": "User"}), "s.user: Required value: user is required when subject kind is 'User'"),
            (json!({"kind": "Group", "group": {}}), "s.group.name: Required value"),
            (
                json!({"kind": "ServiceAccount", "serviceAccount": {}}),
                "[s.serviceAccount.name: Required value, s.serviceAccount.namespace: Required value: must specify namespace for service account]",
            ),
            (
                json!({"kind": "User", "user": {"name": "u"}, "group": {}, "serviceAccount": {}}),
                "[s.serviceAccount: Forbidden: serviceAccount is forbidden when subject kind is not 'ServiceAccount', \
                 s.group: Forbidden: group is forbidden when subject kind is not 'Group']",
            ),
        ] {
            let (object, mut errors) = (json!({ "s": item }), ErrorList::new());
            subject(&Node::root(&object).child("s"), &mut errors);
            assert_eq!(api::field::join(&errors), expected, "{item}");
        }
    }

    #[test]
    fn rules_refused() {
        let verbs = "supported values: \"create\", \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\"";
        let resource = |verbs: &[&str], groups: &[&str], resources: &[&str], namespaces: &[&str]| json!({"resourceRules": [{"verbs": verbs, "apiGroups": groups, "resources": resources, "namespaces": namespaces}]});
        let at = "spec.rules[0].resourceRules[0]";
        for (rules, expected) in [
            (resource(&["*"], &["*"], &["*"], &["*"]), "[]".to_owned()),
            (resource(&["get", "fly"], &[""], &["pods"], &["n"]), format!("{at}.verbs: Unsupported value: [\"get\",\"fly\"]: {verbs}")),
            (
                resource(&["*", "get"], &["*", ""], &["*", "a"], &["*", "n"]),
                format!(
                    "[{at}.verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not specify other verbs, \
                     {at}.apiGroups: Invalid value: [\"*\",\"\"]: if '*' is present, must not specify other api groups, \
                     {at}.resources: Invalid value: [\"*\",\"a\"]: if '*' is present, must not specify other resources, \
                     {at}.namespaces: Invalid value: [\"*\",\"n\"]: if '*' is present, must not specify other namespaces]"
                ),
            ),
            (
                resource(&[], &[], &[], &[]),
                format!(
                    "[{at}.verbs: Required value: verbs must contain at least one value, \
                     {at}.apiGroups: Required value: resource rules must supply at least one api group, \
                     {at}.resources: Required value: resource rules must supply at least one resource, \
                     {at}.namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace]"
                ),
            ),
            (
                json!({"nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/", "/a/*", "", "a", "/a b", "//", "/*/a"]}]}),
                "[spec.rules[0].nonResourceRules[0].nonResourceURLs[2]: Invalid value: \"\": must not be empty, \
                 spec.rules[0].nonResourceRules[0].nonResourceURLs[3]: Invalid value: \"a\": must start with slash, \
                 spec.rules[0].nonResourceRules[0].nonResourceURLs[4]: Invalid value: \"/a b\": must not contain white-space, \
                 spec.rules[0].nonResourceRules[0].nonResourceURLs[5]: Invalid value: \"//\": must not contain double slash, \
                 spec.rules[0].nonResourceRules[0].nonResourceURLs[6]: Invalid value: \"/*/a\": wildcard can only do suffix matching]"
                    .to_owned(),
            ),
            (
                json!({"nonResourceRules": [{}]}),
                "[spec.rules[0].nonResourceRules[0].verbs: Required value: verbs must contain at least one value, \
                 spec.rules[0].nonResourceRules[0].nonResourceURLs: Required value: nonResourceURLs must contain at least one value]"
                    .to_owned(),
            ),
        ] {
            let mut rules = rules;
            rules["subjects"] = json!([{"kind": "User", "user": {"name": "u"}}]);
            assert_eq!(created(&Schema, &schema(json!({"spec.rules": [rules]}))), expected);
        }
        let rules = resource(&["get"], &[""], &["pods"], &["A"]);
        let found = created(&Schema, &schema(json!({"spec.rules": [rules]})));
        assert!(found.contains("namespaces[0]: Invalid value: \"A\": each member of this list must be '*' or a DNS-1123 label; a lowercase"), "{found}");
    }

    #[test]
    fn fixed_schemas_stay() {
        let mut standard = crate::bootstrap::flowcontrol::objects("flowschemas");
        let all = standard.iter_mut().find(|schema| name(schema) == "catch-all").expect("every cluster has it");
        assert_eq!(updated(&Schema, all, all), "[]");
        let mut changed = all.clone();
        set(&mut changed, "spec.rules", json!([]));
        assert_eq!(
            updated(&Schema, all, &changed),
            "spec: Invalid value: {\"PriorityLevelConfiguration\":{\"Name\":\"catch-all\"},\"MatchingPrecedence\":10000,\"DistinguisherMethod\":{\"Type\":\"ByUser\"},\"Rules\":[]}: spec of 'catch-all' must equal the fixed value"
        );
    }

    #[test]
    fn statuses() {
        let status = json!({"status": {"conditions": [{"type": "Dangling"}, {"type": "Dangling"}, {}]}});
        assert_eq!(
            updated_sub(&Schema, "status", &json!({}), &status),
            "[status.conditions[1].type: Duplicate value: \"Dangling\", status.conditions[2].type: Required value: must not be empty]"
        );
    }
}
