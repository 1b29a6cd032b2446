//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::matching::{match_conditions, match_defaults, match_resources};
use super::{compiles, not_reserved, purpose};
use crate::cel::decl::Decl;
use crate::kinds::check::{Node, Seen, conditions};
use crate::kinds::table::{UNSET, named, number, row, size, words};
use crate::kinds::value::{self, default_text, get_mut, has, text};
use crate::policy;
use crate::resource::{ALL_BUT_STATUS, Column, Context, Hooks, Paths};

const MAX_AUDIT_ANNOTATIONS: usize = 20;
/// Bytes.
const LONGEST_VALUE: usize = 5 * 1024;
/// Words of the language, which no variable may be called.
const RESERVED: [&str; 21] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

/// A policy; `rules` is where its validations or mutations are.
pub(super) struct Policy {
    pub rules: &'static str,
}

impl Policy {
    /// What is wrong with one, whatever its name.
    pub(super) fn problems(&self, policy: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(policy).child("spec");
        spec.child("failurePolicy").optional_one_of(&mut errors, &["Fail", "Ignore"]);
        if spec.has("paramKind") {
            param_kind(&spec.child("paramKind"), &mut errors);
        }
        let constraints = spec.child("matchConstraints");
        if !constraints.exists() {
            constraints.missing(&mut errors, "");
        } else {
            match_resources(&constraints, &mut errors);
            if constraints.items("resourceRules").is_empty() {
                constraints.child("resourceRules").missing(&mut errors, "");
            }
        }
        match_conditions(&spec, &mut errors);
        let mut seen = Seen::default();
        let mut variables: Vec<(String, Decl)> = Vec::new();
        for variable in spec.items("variables") {
            let (name, expression) = (variable.child("name"), variable.child("expression"));
            if is_written(&name, "name is not specified", &mut errors) {
                if !is_identifier(name.text()) {
                    name.invalid(&mut errors, "name is not a valid CEL identifier");
                }
                if !seen.insert(name.text()) {
                    name.duplicate(&mut errors);
                }
            }
            let mut decl = Decl::dynamic();
            if is_written(&expression, "expression is not specified", &mut errors) {
                let known = policy::declarations(purpose(&spec), None, None, Some(&variables));
                decl = compiles(&expression, &known, &[], &mut errors);
            }
            variables.push((name.text().to_owned(), decl));
        }
        let known = policy::declarations(purpose(&spec), None, None, Some(&variables));
        self.rules_are_sound(policy, &spec, &known, &mut errors);
        errors
    }
}

impl Hooks for Policy {
    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn defaults(&self, policy: &mut Value) {
        default_text(policy, "spec.failurePolicy", "Fail");
        if let Some(resources) = get_mut(policy, "spec.matchConstraints") {
            match_defaults(resources);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, policy: &Value) -> ErrorList {
        let mut errors = self.problems(policy);
        not_reserved(policy, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.problems(new)
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let (mut errors, policy) = (ErrorList::new(), Node::root(new));
        for warning in policy.items("status.typeChecking.expressionWarnings") {
            warning.child("warning").required(&mut errors, "");
            let place = warning.child("fieldRef");
            if place.text().trim().is_empty() {
                place.missing(&mut errors, "");
            }
        }
        conditions(&policy, "status.conditions", &mut errors);
        errors
    }

    fn row(&self, policy: &Value, now: Timestamp) -> Vec<Value> {
        let params = if has(policy, "spec.paramKind") {
            format!("{}/{}", text(policy, "spec.paramKind.apiVersion"), text(policy, "spec.paramKind.kind"))
        } else {
            UNSET.to_owned()
        };
        row(policy, now, vec![size(policy, self.rules).into(), params.into()])
    }
}

impl Policy {
    fn rules_are_sound(&self, policy: &Value, spec: &Node<'_>, known: &[(&str, Decl)], errors: &mut ErrorList) {
        let root = Node::root(policy);
        if self.rules == "spec.mutations" {
            root.child(self.rules).required(errors, "mutations must contain at least one item");
            spec.child("reinvocationPolicy").required_one_of(errors, &["IfNeeded", "Never"]);
            for mutation in root.items(self.rules) {
                match mutation.child("patchType").text() {
                    "ApplyConfiguration" => {
                        let expression = mutation.child("applyConfiguration.expression");
                        if expression.required(errors, "") {
                            compiles(&expression, known, &["Object"], errors);
                        }
                    }
                    "JSONPatch" => {
                        let expression = mutation.child("jsonPatch.expression");
                        if expression.required(errors, "") {
                            compiles(&expression, known, &["list(JSONPatch)", "list(dyn)"], errors);
                        }
                    }
                    _ => {
                        mutation.child("patchType").required_one_of(errors, &["ApplyConfiguration", "JSONPatch"]);
                    }
                }
            }
            return;
        }
        if root.items(self.rules).is_empty() && spec.items("auditAnnotations").is_empty() {
            for field in ["validations", "auditAnnotations"] {
                spec.child(field).missing(errors, "validations or auditAnnotations must contain at least one item");
            }
        }
        for validation in root.items(self.rules) {
            validate_validation(&validation, known, errors);
        }
        audit_annotations(policy, spec, known, errors);
    }
}

fn validate_validation(validation: &Node<'_>, known: &[(&str, Decl)], errors: &mut ErrorList) {
    let (expression, computed, message) =
        (validation.child("expression"), validation.child("messageExpression"), validation.child("message"));
    if is_written(&expression, "expression is not specified", errors) {
        compiles(&expression, known, &["bool"], errors);
    }
    let is_blank = |node: &Node<'_>| !node.text().is_empty() && node.text().trim().is_empty();
    if is_blank(&computed) {
        computed.invalid(errors, "must be non-empty if specified");
    } else if !computed.text().is_empty() {
        // What is said of a refusal does not depend on anybody's rights.
        let known: Vec<_> = known.iter().filter(|(name, _)| !name.starts_with("authorizer")).cloned().collect();
        compiles(&computed, &known, &["string"], errors);
    }
    if is_blank(&message) {
        message.invalid(errors, "message must be non-empty if specified");
    } else if message.text().trim().contains(['\n', '\r']) {
        message.invalid(errors, "message must not contain line breaks");
    }
    validation
        .child("reason")
        .optional_one_of(errors, &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"]);
}

/// Each under a key of its own, which in the audit log stands behind the policy's name.
fn audit_annotations(policy: &Value, spec: &Node<'_>, known: &[(&str, Decl)], errors: &mut ErrorList) {
    let annotations = spec.items("auditAnnotations");
    if annotations.len() > MAX_AUDIT_ANNOTATIONS {
        let detail = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
        spec.child("auditAnnotations").invalid(errors, detail);
    }
    let mut seen = Seen::default();
    for annotation in annotations {
        let (key, expression) = (annotation.child("key"), annotation.child("valueExpression"));
        let whole = format!("{}/{}", value::name(policy), key.text());
        if value::name(policy).is_empty() {
            key.invalid_text(errors, "requires metadata.name be non-empty");
        } else {
            for problem in names::qualified_name(&whole) {
                errors.push(Error::invalid(&key.path, whole.as_str(), problem));
            }
        }
        if expression.text().trim().len() > LONGEST_VALUE {
            expression.missing(errors, format!("must not exceed {LONGEST_VALUE} bytes in length"));
        } else if is_written(&expression, "valueExpression is not specified", errors) {
            compiles(&expression, known, &["string", "null"], errors);
        }
        if !seen.insert(key.text()) {
            key.duplicate(errors);
        }
    }
}

/// Whether there is more than blanks; an error when not.
fn is_written(node: &Node<'_>, detail: &str, errors: &mut ErrorList) -> bool {
    let written = !node.text().trim().is_empty();
    if !written {
        node.missing(errors, detail);
    }
    written
}

fn is_identifier(name: &str) -> bool {
    let letter = |byte: u8| byte == b'_' || byte.is_ascii_alphabetic();
    name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
        && !RESERVED.contains(&name)
}

/// A group, a version and a kind as there can be.
fn param_kind(params: &Node<'_>, errors: &mut ErrorList) {
    let (version, kind) = (params.child("apiVersion"), params.child("kind"));
    if version.required(errors, "") {
        param_version(&version, errors);
    }
    if kind.required(errors, "") {
        let problems = names::dns1035_label(&kind.text().to_lowercase());
        if !problems.is_empty() {
            let detail = format!("may have mixed case, but should otherwise match: {}", problems.join(","));
            kind.invalid(errors, detail);
        }
    }
}

fn param_version(whole: &Node<'_>, errors: &mut ErrorList) {
    let parts: Vec<&str> = whole.text().split('/').collect();
    let (group, version) = match parts[..] {
        [version] => ("", version),
        [group, version] => (group, version),
        _ => return whole.invalid(errors, format!("unexpected GroupVersion string: {}", whole.text())),
    };
    let mut wrong = |part: &str, problems: Vec<String>| {
        if !problems.is_empty() {
            errors.push(Error::invalid(&whole.path, part, problems.join(",")));
        }
    };
    if !group.is_empty() {
        wrong(group, names::dns1123_subdomain(group));
    }
    if version.is_empty() {
        wrong(whole.text(), vec!["version must be specified".to_owned()]);
    } else {
        wrong(version, names::dns1035_label(version));
    }
}

pub(super) fn policy_columns(rules: &'static str, description: &'static str) -> Vec<Column> {
    named(vec![
        number(rules, description),
        words("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use serde_json::json;

    const VALIDATING: Policy = Policy { rules: "spec.validations" };

    fn policy(extra: Value) -> Value {
        let mut policy = json!({"metadata": {"name": "p"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
            "validations": [{"expression": "true"}]}});
        for (path, found) in extra.as_object().unwrap() {
            value::set(&mut policy, path, found.clone());
        }
        policy
    }

    #[test]
    fn validations_say_something_in_one_line() {
        let with = |validation: Value| tested::created(&VALIDATING, &policy(json!({"spec.validations": [validation]})));
        assert_eq!(with(json!({"expression": "true", "message": " one line\n"})), "[]");
        for (validation, expected) in [
            (json!({"expression": " "}), "expression: Required value: expression is not specified"),
            (
                json!({"expression": "true", "message": "two\nlines"}),
                "message: Invalid value: \"two\\nlines\": message must not contain line breaks",
            ),
            (
                json!({"expression": "true", "message": " "}),
                "message: Invalid value: \" \": message must be non-empty if specified",
            ),
            (
                json!({"expression": "true", "messageExpression": " "}),
                "messageExpression: Invalid value: \" \": must be non-empty if specified",
            ),
        ] {
            assert_eq!(with(validation.clone()), format!("spec.validations[0].{expected}"), "{validation}");
        }
        let detail = "Required value: validations or auditAnnotations must contain at least one item";
        assert_eq!(
            tested::created(&VALIDATING, &policy(json!({"spec.validations": []}))),
            format!("[spec.validations: {detail}, spec.auditAnnotations: {detail}]")
        );
    }

    #[test]
    fn messages_do_not_ask_for_rights() {
        let with = |validation: Value| tested::created(&VALIDATING, &policy(json!({"spec.validations": [validation]})));
        let check = "authorizer.group('').resource('pods').check('get').reason()";
        let refused = with(json!({"expression": "true", "messageExpression": check}));
        assert!(refused.starts_with("spec.validations[0].messageExpression: Invalid value: "), "{refused}");
        assert!(refused.contains("undeclared reference to 'authorizer'"), "{refused}");
        assert_eq!(with(json!({"expression": "authorizer.group('').resource('pods').check('get').allowed()"})), "[]");
    }

    #[test]
    fn warnings_about_types_say_what_and_where() {
        let with = |warnings: Value| {
            let made = policy(json!({"status": {"typeChecking": {"expressionWarnings": warnings}}}));
            tested::updated_sub(&VALIDATING, "status", &made, &made)
        };
        assert_eq!(with(json!([{"fieldRef": "spec.validations[0].expression", "warning": "x"}])), "[]");
        assert_eq!(
            with(json!([{"fieldRef": " "}])),
            "[status.typeChecking.expressionWarnings[0].warning: Required value, status.typeChecking.expressionWarnings[0].fieldRef: Required value]"
        );
    }

    #[test]
    fn variables_have_names_that_expressions_can_say() {
        for (name, fits) in [("_a1", true), ("a-b", false), ("1a", false), ("in", false), ("namespace", false)] {
            let made = policy(json!({"spec.variables": [{"name": name, "expression": "1"}]}));
            let expected =
                format!("spec.variables[0].name: Invalid value: {name:?}: name is not a valid CEL identifier");
            assert_eq!(tested::created(&VALIDATING, &made), if fits { "[]" } else { expected.as_str() }, "{name}");
        }
    }

    #[test]
    fn parameters_are_of_a_kind_that_can_be() {
        let kind = |version: &str, kind: &str| {
            tested::created(&VALIDATING, &policy(json!({"spec.paramKind": {"apiVersion": version, "kind": kind}})))
        };
        assert_eq!(kind("v1", "ConfigMap"), "[]");
        assert_eq!(kind("rules.example.com/v1", "Limit"), "[]");
        assert_eq!(
            kind("a/b/c", "Limit"),
            "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"
        );
        assert_eq!(
            kind("example.com/", "Limit"),
            "spec.paramKind.apiVersion: Invalid value: \"example.com/\": version must be specified"
        );
        assert!(kind("Example/v1", "Limit").starts_with("spec.paramKind.apiVersion: Invalid value: \"Example\": a "));
        assert!(kind("v1", "A_B").starts_with(
            "spec.paramKind.kind: Invalid value: \"A_B\": may have mixed case, but should otherwise match: a DNS-1035"
        ));
    }

    #[test]
    fn audit_annotations_have_keys_of_their_own() {
        let one = |key: &str| json!({"key": key, "valueExpression": "'x'"});
        let with =
            |annotations: Value| tested::created(&VALIDATING, &policy(json!({"spec.auditAnnotations": annotations})));
        assert_eq!(with(json!([one("a"), one("b")])), "[]");
        assert_eq!(with(json!([one("a"), one("a")])), "spec.auditAnnotations[1].key: Duplicate value: \"a\"");
        let slashed = with(json!([one("a/b")]));
        assert!(slashed.starts_with("spec.auditAnnotations[0].key: Invalid value: \"p/a/b\": a valid label key"));
        let many: Vec<Value> = (0..=MAX_AUDIT_ANNOTATIONS).map(|number| one(&format!("a{number}"))).collect();
        assert!(with(json!(many)).ends_with(": must not have more than 20 auditAnnotations"));
        let long = format!("'{}'", "x".repeat(LONGEST_VALUE));
        assert_eq!(
            with(json!([{"key": "a", "valueExpression": long}])),
            "spec.auditAnnotations[0].valueExpression: Required value: must not exceed 5120 bytes in length"
        );
    }
}
