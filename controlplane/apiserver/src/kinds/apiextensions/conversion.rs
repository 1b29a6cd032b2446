//! How objects get from one version to another.

use api::field::ErrorList;
use api::names;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::kinds::admissionregistration::client_config;
use crate::kinds::check::{Node, Seen};
use crate::kinds::value::{text, texts};
use crate::proxy::dial;

/// Messages name the fields as upstream keeps them, not as `v1` has them.
pub fn validate(conversion: &Node<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    if !conversion.exists() {
        return;
    }
    conversion.child("strategy").required_one_of(errors, &["None", "Webhook"]);
    let renamed = |from: &str, to: &str| Node::new(conversion.child(from).value, conversion.path.child(to));
    let config = renamed("webhook.clientConfig", "webhookClientConfig");
    let versions = renamed("webhook.conversionReviewVersions", "conversionReviewVersions");
    if conversion.child("strategy").text() != "Webhook" {
        for given in [config, versions].iter().filter(|given| given.exists() && *given.value != json!([])) {
            given.forbidden(errors, "should not be set when strategy is not set to Webhook");
        }
        return;
    }
    if config.exists() {
        client_config(&config, errors);
        let bundle = config.child("caBundle");
        if !may_be_invalid(old)
            && let Some(why) = invalid_bundle(bundle.text())
        {
            bundle.invalid(errors, why);
        }
    } else {
        config.missing(errors, "required when strategy is set to Webhook");
    }
    review_versions(&versions, old, errors);
}

/// A bundle may be as unusable as it was, and anything before the definition is established.
fn may_be_invalid(old: Option<&Value>) -> bool {
    old.is_none_or(|old| {
        !crate::crd::is_established(&old["status"])
            || invalid_bundle(text(old, "spec.conversion.webhook.clientConfig.caBundle")).is_some()
    })
}

/// Why there is no certificate in a `caBundle`.
fn invalid_bundle(bundle: &str) -> Option<String> {
    if bundle.is_empty() || dial::roots(bundle).is_ok() {
        return None;
    }
    let pem = BASE64_STANDARD.decode(bundle).unwrap_or_default();
    let pem = String::from_utf8_lossy(&pem);
    let why = match () {
        () if pem.contains("-----BEGIN CERTIFICATE-----") => "failed to parse certificate: x509: malformed certificate",
        () if pem.contains("-----BEGIN ") => "no valid certificate authority data seen",
        () => "unable to parse bytes as PEM block",
    };
    Some(format!("unable to load root certificates: {why}"))
}

fn is_known_review(version: &str) -> bool {
    matches!(version, "v1" | "v1beta1")
}

/// The forms of `ConversionReview` that the webhook understands: one of them must be known here,
/// unless none of the old ones was.
fn review_versions(all: &Node<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    let versions: Vec<&str> = all.value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if versions.is_empty() {
        return all.missing(errors, "");
    }
    let mut seen = Seen::default();
    for (index, version) in versions.iter().enumerate() {
        let value = Value::from(*version);
        let given = Node::new(&value, all.path.index(index));
        if seen.insert(*version) {
            given.format(errors, names::dns1035_label);
        } else {
            given.invalid(errors, "duplicate version");
        }
    }
    let before = old.map(|old| texts(old, "spec.conversion.webhook.conversionReviewVersions")).unwrap_or_default();
    let wanted = before.is_empty() || before.iter().any(|version| is_known_review(version));
    if wanted && !versions.iter().any(|version| is_known_review(version)) {
        all.invalid(errors, "must include at least one of v1, v1beta1");
    }
}
