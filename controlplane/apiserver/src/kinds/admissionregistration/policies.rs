//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

use super::matching::{match_conditions, match_defaults, match_resources};
use super::{compiles, not_reserved, purpose};
use crate::cel::decl::Decl;
use crate::kinds::check::{Node, Seen, conditions};
use crate::kinds::table::{UNSET, named, number, row, size, words};
use crate::kinds::value::{default_text, get_mut, has, text};
use crate::policy;
use crate::resource::{ALL_BUT_STATUS, Column, Context, Hooks, Paths};

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
        if spec.has("paramKind") {
            for field in ["apiVersion", "kind"] {
                spec.child("paramKind").child(field).required(&mut errors, "");
            }
        }
        let mut seen = Seen::default();
        let mut variables: Vec<(String, Decl)> = Vec::new();
        for variable in spec.items("variables") {
            let expression = variable.child("expression");
            let mut decl = Decl::dynamic();
            if expression.required(&mut errors, "expression is not specified") {
                let known = policy::declarations(purpose(&spec), None, None, Some(&variables));
                decl = compiles(&expression, &known, &[], &mut errors);
            }
            let name = variable.child("name");
            if name.required(&mut errors, "name is not specified") && !seen.insert(name.text()) {
                name.duplicate(&mut errors);
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
        let mut errors = ErrorList::new();
        conditions(&Node::root(new), "status.conditions", &mut errors);
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
                spec.child(field)
                    .missing(errors, "validations or auditAnnotations must be specified; they cannot both be empty");
            }
        }
        for validation in root.items(self.rules) {
            let expression = validation.child("expression");
            if expression.required(errors, "expression is not specified") {
                compiles(&expression, known, &["bool"], errors);
            }
            let message = validation.child("messageExpression");
            if !message.text().is_empty() {
                compiles(&message, known, &["string"], errors);
            }
            validation
                .child("reason")
                .optional_one_of(errors, &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"]);
        }
        for annotation in spec.items("auditAnnotations") {
            annotation.child("key").required(errors, "");
            let value = annotation.child("valueExpression");
            if value.required(errors, "valueExpression is not specified") {
                compiles(&value, known, &["string", "null"], errors);
            }
        }
    }
}

pub(super) fn policy_columns(rules: &'static str, description: &'static str) -> Vec<Column> {
    named(vec![
        number(rules, description),
        words("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
    ])
}
