//! MutatingWebhookConfiguration and ValidatingWebhookConfiguration.

use api::field::ErrorList;
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::client_config;
use super::matching::{match_conditions, validate_rule};
use super::not_reserved;
use crate::kinds::check::{Node, Seen, label_selector};
use crate::kinds::table::{named, number, row, size};
use crate::kinds::value::{default, has, list_mut};
use crate::resource::{Column, Context, Hooks};

pub(super) struct Webhooks {
    pub mutating: bool,
}

impl Webhooks {
    /// What is wrong with one, whatever its name.
    pub(super) fn problems(&self, configuration: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let mut seen = Seen::default();
        for webhook in Node::root(configuration).items("webhooks") {
            validate_webhook(&webhook, self.mutating, &mut errors);
            if !seen.insert(webhook.child("name").text()) {
                webhook.child("name").duplicate(&mut errors);
            }
        }
        errors
    }
}

impl Hooks for Webhooks {
    fn defaults(&self, configuration: &mut Value) {
        for webhook in list_mut(configuration, "webhooks") {
            default(webhook, "failurePolicy", "Fail");
            default(webhook, "matchPolicy", "Equivalent");
            default(webhook, "namespaceSelector", json!({}));
            default(webhook, "objectSelector", json!({}));
            default(webhook, "timeoutSeconds", 10);
            if self.mutating {
                default(webhook, "reinvocationPolicy", "Never");
            }
            for rule in list_mut(webhook, "rules") {
                default(rule, "scope", "*");
            }
            if has(webhook, "clientConfig.service") {
                default(webhook, "clientConfig.service.port", 443);
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, configuration: &Value) -> ErrorList {
        let mut errors = self.problems(configuration);
        not_reserved(configuration, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.problems(new)
    }

    fn row(&self, configuration: &Value, now: Timestamp) -> Vec<Value> {
        row(configuration, now, vec![size(configuration, "webhooks").into()])
    }
}

pub(super) fn webhook_columns() -> Vec<Column> {
    named(vec![number("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration")])
}

fn validate_webhook(webhook: &Node<'_>, mutating: bool, errors: &mut ErrorList) {
    let name = webhook.child("name");
    if name.required_format(errors, names::dns1123_subdomain) && name.text().split('.').count() < 3 {
        name.invalid(errors, "should be a domain with at least three segments separated by dots");
    }
    for rule in webhook.items("rules") {
        validate_rule(&rule, errors);
    }
    webhook.child("failurePolicy").optional_one_of(errors, &["Fail", "Ignore"]);
    webhook.child("matchPolicy").optional_one_of(errors, &["Equivalent", "Exact"]);
    if webhook.has("sideEffects") {
        webhook.child("sideEffects").one_of(errors, &["None", "NoneOnDryRun"]);
    } else {
        webhook.child("sideEffects").missing(errors, "must specify one of None, NoneOnDryRun");
    }
    let timeout = webhook.child("timeoutSeconds");
    if timeout.exists() && !(1..=30).contains(&timeout.int()) {
        timeout.invalid(errors, "the timeout value must be between 1 and 30 seconds");
    }
    for field in ["namespaceSelector", "objectSelector"] {
        label_selector(&webhook.child(field), errors);
    }
    if mutating {
        webhook.child("reinvocationPolicy").optional_one_of(errors, &["IfNeeded", "Never"]);
    }
    client_config(&webhook.child("clientConfig"), errors);
    match_conditions(webhook, errors);
    review_versions(webhook, errors);
}

/// The forms of `AdmissionReview` that the webhook understands: one of them must be known here.
fn review_versions(webhook: &Node<'_>, errors: &mut ErrorList) {
    let all = webhook.child("admissionReviewVersions");
    if !all.required(errors, "must specify one of v1, v1beta1") {
        return;
    }
    let versions = webhook.items("admissionReviewVersions");
    let mut seen = Seen::default();
    for version in &versions {
        if seen.insert(version.text()) {
            version.format(errors, names::dns1035_label);
        } else {
            version.invalid(errors, "duplicate version");
        }
    }
    if !versions.iter().any(|version| matches!(version.text(), "v1" | "v1beta1")) {
        all.invalid(errors, "must include at least one of v1, v1beta1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use api::field::join;

    #[test]
    fn webhooks() {
        let hooks = Webhooks { mutating: true };
        let mut configuration = json!({"webhooks": [{"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "s", "namespace": "n"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]}]});
        hooks.defaults(&mut configuration);
        let webhook = &configuration["webhooks"][0];
        for (field, value) in [
            ("failurePolicy", json!("Fail")),
            ("timeoutSeconds", json!(10)),
            ("matchPolicy", json!("Equivalent")),
            ("reinvocationPolicy", json!("Never")),
        ] {
            assert_eq!(webhook[field], value);
        }
        assert_eq!(webhook["clientConfig"]["service"]["port"], 443);
        let mut errors = ErrorList::new();
        validate_webhook(&Node::root(webhook), true, &mut errors);
        assert_eq!(join(&errors), "[]");
        let bad = json!({"name": "a.b", "clientConfig": {"url": "http://x"}, "timeoutSeconds": 40, "admissionReviewVersions": ["v2"]});
        let mut errors = ErrorList::new();
        validate_webhook(&Node::root(&bad), false, &mut errors);
        let found = join(&errors);
        for expected in [
            "at least three segments",
            "'https' is the only allowed URL scheme",
            "sideEffects: Required value: must specify one of None, NoneOnDryRun",
            "between 1 and 30 seconds",
            "must include at least one of v1, v1beta1",
        ] {
            assert!(found.contains(expected), "{expected}: {found}");
        }
        let webhooks = json!({"metadata": {"name": "w"}, "webhooks": [{}, {}]});
        assert_eq!(tested::cells(&Webhooks { mutating: false }, &webhooks, "2026-01-01T00:00:00Z"), "w|2|<unknown>");
    }
}
