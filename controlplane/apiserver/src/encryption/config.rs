//! `EncryptionConfiguration` (`apiserver.config.k8s.io/v1`): which resources are encrypted by which
//! keys. Pure.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::provider::{Provider, Scheme};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    resources: Vec<ResourceConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceConfiguration {
    resources: Vec<String>,
    providers: Vec<ProviderConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderConfiguration {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    kms: Option<serde_json::Value>,
    identity: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    secret: String,
}

/// What is done with the resources that `patterns` name.
#[derive(Debug)]
pub struct Rule {
    /// `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group), `*.*`.
    patterns: Vec<String>,
    /// The first writes, all read.
    pub providers: Vec<Provider>,
}

impl Rule {
    /// `resource` is `plural` or `plural.group`.
    pub fn covers(&self, resource: &str) -> bool {
        let group = resource.split_once('.').map_or("", |(_, group)| group);
        self.patterns.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some("*") => true,
            Some(wanted) => wanted == group,
            None => pattern == resource,
        })
    }
}

/// Reads a configuration; the error names the field and what is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let read: Configuration = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if (read.api_version.as_str(), read.kind.as_str()) != ("apiserver.config.k8s.io/v1", "EncryptionConfiguration") {
        return Err(format!(
            "it is {} {}; it must be apiserver.config.k8s.io/v1 EncryptionConfiguration",
            read.api_version, read.kind
        ));
    }
    if read.resources.is_empty() {
        return Err("resources: Required value: at least one resources entry is needed".to_owned());
    }
    read.resources.into_iter().enumerate().map(|(at, entry)| rule(&format!("resources[{at}]"), entry)).collect()
}

fn rule(path: &str, entry: ResourceConfiguration) -> Result<Rule, String> {
    if entry.resources.is_empty() {
        return Err(format!("{path}.resources: Required value: at least one resource is needed"));
    }
    for (at, resource) in entry.resources.iter().enumerate() {
        let bad = |why: &str| Err(format!("{path}.resources[{at}]: Invalid value: {resource:?}: {why}"));
        if resource == "*" {
            return bad("use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources");
        }
        if resource.chars().any(char::is_uppercase) {
            return bad("resource name should be in lowercase");
        }
        if resource.strip_suffix(".").is_some_and(|name| name != "*") || resource.is_empty() {
            return bad("must be NAME, NAME.GROUP, *.GROUP, *. or *.*");
        }
    }
    if entry.providers.is_empty() {
        return Err(format!("{path}.providers: Required value: at least one provider is needed"));
    }
    let mut providers = Vec::new();
    for (at, provider) in entry.providers.into_iter().enumerate() {
        read_provider(&format!("{path}.providers[{at}]"), provider, &mut providers)?;
    }
    Ok(Rule { patterns: entry.resources, providers })
}

fn read_provider(path: &str, entry: ProviderConfiguration, providers: &mut Vec<Provider>) -> Result<(), String> {
    let given = [
        entry.aesgcm.is_some(),
        entry.aescbc.is_some(),
        entry.secretbox.is_some(),
        entry.kms.is_some(),
        entry.identity.is_some(),
    ];
    match given.iter().filter(|given| **given).count() {
        0 => {
            return Err(format!(
                "{path}: Required value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"
            ));
        }
        1 => {}
        _ => return Err(format!("{path}: Invalid value: more than one provider specified in a single element")),
    }
    if entry.kms.is_some() {
        return Err(format!("{path}: Unsupported value: this server has aesgcm, aescbc, secretbox and identity"));
    }
    let (scheme, name, keys) = match (entry.aesgcm, entry.aescbc, entry.secretbox) {
        (Some(keys), ..) => (Scheme::Gcm, "aesgcm", keys),
        (_, Some(keys), _) => (Scheme::Cbc, "aescbc", keys),
        (.., Some(keys)) => (Scheme::Secretbox, "secretbox", keys),
        _ => {
            providers.push(Provider::Identity);
            return Ok(());
        }
    };
    if keys.keys.is_empty() {
        return Err(format!("{path}.{name}.keys: Required value: at least one key is needed"));
    }
    for (at, key) in keys.keys.into_iter().enumerate() {
        let path = format!("{path}.{name}.keys[{at}]");
        if key.name.is_empty() || key.name.contains(':') {
            return Err(format!("{path}.name: Invalid value: {:?}: must be a name without ':'", key.name));
        }
        // The value stays out of the message: it is a secret.
        let secret = BASE64_STANDARD
            .decode(key.secret.trim())
            .map_err(|_| format!("{path}.secret: Invalid value: \"REDACTED\": secret must be base64 encoded"))?;
        let provider = Provider::new(scheme, &key.name, &secret).ok_or_else(|| {
            format!(
                "{path}.secret: Invalid value: \"REDACTED\": secret is not of the expected length, got {}, expected one of {}",
                secret.len(),
                if scheme == Scheme::Secretbox { "[32]" } else { "[16 24 32]" }
            )
        })?;
        providers.push(provider);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(resources: &str, providers: &str) -> Result<Vec<Rule>, String> {
        parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: {resources}\n  providers: {providers}\n"
        ))
    }

    #[test]
    fn patterns_cover_resources() {
        for (pattern, resource, covered) in [
            ("secrets", "secrets", true),
            ("secrets", "secrets.example.com", false),
            ("deployments.apps", "deployments.apps", true),
            ("*.apps", "deployments.apps", true),
            ("*.apps", "secrets", false),
            ("*.", "secrets", true),
            ("*.", "deployments.apps", false),
            ("*.*", "deployments.apps", true),
            ("*.*", "secrets", true),
        ] {
            let rules = with(&format!("['{pattern}']"), "[{identity: {}}]").unwrap();
            assert_eq!(rules[0].covers(resource), covered, "{pattern} {resource}");
        }
    }

    #[test]
    fn mistakes_are_named_by_their_field() {
        let cases = [
            ("['*']", "[{identity: {}}]", "resources[0].resources[0]: Invalid value: \"*\""),
            ("[]", "[{identity: {}}]", "resources[0].resources: Required value"),
            ("[Secrets]", "[{identity: {}}]", "lowercase"),
            ("[secrets]", "[]", "resources[0].providers: Required value"),
            ("[secrets]", "[{}]", "resources[0].providers[0]: Required value"),
            ("[secrets]", "[{identity: {}, aescbc: {keys: []}}]", "more than one provider"),
            ("[secrets]", "[{aesgcm: {keys: []}}]", "resources[0].providers[0].aesgcm.keys: Required value"),
            (
                "[secrets]",
                "[{aesgcm: {keys: [{name: a, secret: c2hvcnQ=}]}}]",
                "keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 5",
            ),
            ("[secrets]", "[{aesgcm: {keys: [{name: a, secret: '%'}]}}]", "must be base64"),
            ("[secrets]", "[{aesgcm: {keys: [{name: 'a:b', secret: c2hvcnQ=}]}}]", "keys[0].name"),
            ("[secrets]", "[{rot13: {}}]", "rot13"),
        ];
        for (resources, providers, expected) in cases {
            let error = with(resources, providers).unwrap_err();
            assert!(error.contains(expected), "{resources} {providers}: {error}");
        }
        assert!(parse("apiVersion: v1\nkind: List\nresources: []").unwrap_err().contains("EncryptionConfiguration"));
    }
}
