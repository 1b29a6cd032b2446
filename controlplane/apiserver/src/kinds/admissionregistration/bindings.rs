//! Bindings of both kinds of policies.

use api::field::ErrorList;
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::matching::{match_defaults, match_resources};
use super::not_reserved;
use crate::kinds::check::{Node, Seen, label_selector};
use crate::kinds::table::{UNSET, go_selector, named, row, words};
use crate::kinds::value::{at, get_mut, has, text};
use crate::resource::{Column, Context, Hooks};

pub(super) struct Binding {
    /// Validating bindings say what a failed validation does.
    pub actions: bool,
}

impl Binding {
    /// What is wrong with one, whatever its name.
    pub(super) fn problems(&self, binding: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(binding).child("spec");
        let policy = spec.child("policyName");
        if !policy.text().is_empty() {
            policy.format(&mut errors, names::dns1123_subdomain);
        }
        param_ref(&spec.child("paramRef"), &mut errors);
        match_resources(&spec.child("matchResources"), &mut errors);
        if self.actions {
            let actions = spec.items("validationActions");
            let mut seen = Seen::default();
            for action in &actions {
                action.one_of(&mut errors, &["Audit", "Deny", "Warn"]);
                if !seen.insert(action.text()) {
                    action.duplicate(&mut errors);
                }
            }
            let has = |name: &str| actions.iter().any(|action| action.text() == name);
            if has("Deny") && has("Warn") {
                spec.child("validationActions").invalid(&mut errors, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
            }
        }
        // Declared rules speak last.
        policy.required(&mut errors, "");
        if self.actions {
            spec.child("validationActions").required(&mut errors, "");
        }
        errors
    }
}

impl Hooks for Binding {
    fn defaults(&self, binding: &mut Value) {
        if let Some(resources) = get_mut(binding, "spec.matchResources") {
            match_defaults(resources);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, binding: &Value) -> ErrorList {
        let mut errors = self.problems(binding);
        not_reserved(binding, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.problems(new)
    }

    fn row(&self, binding: &Value, now: Timestamp) -> Vec<Value> {
        let params = at(binding, "spec.paramRef");
        // Whether the kind of parameters has namespaces cannot be told from here.
        let params = match (text(params, "namespace"), text(params, "name")) {
            (_, "") if has(params, "selector") => go_selector(at(params, "selector")),
            (_, "") => UNSET.to_owned(),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        row(binding, now, vec![text(binding, "spec.policyName").into(), params.into()])
    }
}

fn param_ref(params: &Node<'_>, errors: &mut ErrorList) {
    if !params.exists() {
        return;
    }
    let (name, selector) = (params.child("name"), params.child("selector"));
    let both = "name and selector are mutually exclusive";
    let named = !name.text().is_empty();
    if named {
        name.format(errors, names::path_segment);
        if selector.exists() {
            name.forbidden(errors, both);
        }
    }
    if selector.exists() {
        label_selector(&selector, errors);
        if named {
            selector.forbidden(errors, both);
        }
    }
    if !named && !selector.exists() {
        params.missing(errors, "one of name or selector must be specified");
    }
    params.child("parameterNotFoundAction").required_one_of(errors, &["Deny", "Allow"]);
}

pub(super) fn binding_columns() -> Vec<Column> {
    named(vec![
        words("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
        words("ParamRef", "ParamRef indicates the param resource which sets the configration param"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use serde_json::json;

    #[test]
    fn bindings() {
        let hooks = Binding { actions: true };
        let with = |spec: Value| json!({"metadata": {"name": "b"}, "spec": spec});
        for (spec, expected) in [
            (json!({"policyName": "p", "validationActions": ["Deny"]}), "[]"),
            (json!({}), "[spec.policyName: Required value, spec.validationActions: Required value]"),
            (
                json!({"policyName": "p", "validationActions": ["Warn"], "paramRef": {"name": "n", "selector": {}}}),
                "[spec.paramRef.name: Forbidden: name and selector are mutually exclusive, \
                 spec.paramRef.selector: Forbidden: name and selector are mutually exclusive, \
                 spec.paramRef.parameterNotFoundAction: Required value]",
            ),
            (
                json!({"policyName": "p", "validationActions": ["Warn", "Log"], "paramRef": {"parameterNotFoundAction": "X"}}),
                "[spec.paramRef: Required value: one of name or selector must be specified, \
                 spec.paramRef.parameterNotFoundAction: Unsupported value: \"X\": supported values: \"Deny\", \"Allow\", \
                 spec.validationActions[1]: Unsupported value: \"Log\": supported values: \"Audit\", \"Deny\", \"Warn\"]",
            ),
        ] {
            assert_eq!(tested::created(&hooks, &with(spec.clone())), expected, "{spec}");
        }
    }
}
