//! `EncryptionConfiguration` (`apiserver.config.k8s.io/v1`): which resources are encrypted by which
//! keys. Pure.

use std::time::Duration;

use api::field::{Error, Path};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::kms::{Kms, Settings};
use super::provider::{Provider, Scheme};
use crate::authz::go_duration;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<ResourceConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceConfiguration {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<ProviderConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderConfiguration {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    kms: Option<KmsEntry>,
    identity: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KmsEntry {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    endpoint: String,
    timeout: Option<String>,
    cachesize: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(default)]
    name: String,
    #[serde(default)]
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

/// Reads a configuration; the error names the fields and what is wrong with them, in upstream's words.
pub fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let read: Configuration = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if (read.api_version.as_str(), read.kind.as_str()) != ("apiserver.config.k8s.io/v1", "EncryptionConfiguration") {
        return Err(format!(
            "it is {} {}; it must be apiserver.config.k8s.io/v1 EncryptionConfiguration",
            read.api_version, read.kind
        ));
    }
    let (root, mut errors) = (Path::root("resources"), Vec::new());
    if read.resources.is_empty() {
        errors.push(required(&root));
    }
    let mut plugins = Vec::new();
    let entries = read.resources.into_iter().enumerate();
    let rules = entries.map(|(at, entry)| rule(&root.index(at), entry, &mut plugins, &mut errors)).collect();
    if errors.is_empty() { Ok(rules) } else { Err(api::field::join(&errors)) }
}

/// A list at `path` that must not be empty.
fn required(path: &Path) -> Error {
    Error::required(path, format!("at least one {path} is required"))
}

/// `plugins`: the names of KMS providers so far.
fn rule(path: &Path, entry: ResourceConfiguration, plugins: &mut Vec<String>, errors: &mut Vec<Error>) -> Rule {
    let resources = path.child("resources");
    if entry.resources.is_empty() {
        errors.push(required(&resources));
    }
    overlaps(&resources, &entry.resources, errors);
    for (at, resource) in entry.resources.iter().enumerate() {
        if let Some(why) = name_problem(resource) {
            errors.push(Error::invalid(&resources.index(at), resource.as_str(), why));
        }
    }
    if entry.providers.is_empty() {
        errors.push(required(&path.child("providers")));
    }
    let mut providers = Vec::new();
    for (at, provider) in entry.providers.into_iter().enumerate() {
        let path = path.child("providers").index(at);
        read_provider(&path, provider, &mut providers, plugins, errors);
    }
    Rule { patterns: entry.resources, providers }
}

/// Resource and group of a pattern.
fn parts(pattern: &str) -> (&str, &str) {
    pattern.split_once('.').unwrap_or((pattern, ""))
}

fn overlaps(path: &Path, patterns: &[String], errors: &mut Vec<Error>) {
    const DUPLICATE: &str = "the same resource cannot be specified multiple times";
    const MASKED: &str = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked";
    let pairs = || {
        let each = patterns.iter().enumerate();
        each.flat_map(|(at, one)| patterns[at + 1..].iter().map(move |other| (parts(one), parts(other))))
    };
    let masks = |((resource, group), (other, others_group)): ((&str, &str), (&str, &str))| {
        let all = |pattern| pattern == ("*", "*");
        (resource, group) != (other, others_group)
            && (all((resource, group))
                || all((other, others_group))
                || group == others_group && (resource == "*" || other == "*"))
    };
    if pairs().any(|(one, other)| one == other) {
        errors.push(Error::invalid(path, patterns.to_vec(), DUPLICATE));
    }
    if pairs().any(masks) {
        errors.push(Error::invalid(path, patterns.to_vec(), MASKED));
    }
}

fn name_problem(pattern: &str) -> Option<&'static str> {
    let (resource, group) = parts(pattern);
    Some(match pattern {
        _ if pattern.to_lowercase() != pattern => "resource name should not contain capital letters",
        "*" => "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
        "apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations" => {
            "resources which do not have REST API/s cannot be encrypted"
        }
        _ if group == "events.k8s.io" => {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        }
        _ if group == "extensions" => "'extensions' group has been removed and cannot be used for encryption",
        _ if group == "*" && resource != "*" => "encrypting the same resource across groups is not supported",
        _ => return None,
    })
}

fn read_provider(
    path: &Path,
    entry: ProviderConfiguration,
    providers: &mut Vec<Provider>,
    plugins: &mut Vec<String>,
    errors: &mut Vec<Error>,
) {
    let given = [
        entry.aesgcm.is_some(),
        entry.aescbc.is_some(),
        entry.secretbox.is_some(),
        entry.kms.is_some(),
        entry.identity.is_some(),
    ];
    match given.iter().filter(|given| **given).count() {
        0 => {
            let why =
                "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity";
            errors.push(Error::invalid_unshown(path, why));
            return;
        }
        1 => {}
        _ => {
            let why = "more than one provider specified in a single element, should split into different list elements";
            errors.push(Error::invalid_unshown(path, why));
            return;
        }
    }
    if let Some(kms) = entry.kms {
        match read_plugin(&path.child("kms"), &kms, plugins) {
            Ok(settings) => providers.push(Provider::Kms(Box::new(Kms::new(settings)))),
            Err(more) => errors.extend(more),
        }
        plugins.push(kms.name);
        return;
    }
    let (scheme, name, keys) = match (entry.aesgcm, entry.aescbc, entry.secretbox) {
        (Some(keys), ..) => (Scheme::Gcm, "aesgcm", keys),
        (_, Some(keys), _) => (Scheme::Cbc, "aescbc", keys),
        (.., Some(keys)) => (Scheme::Secretbox, "secretbox", keys),
        _ => {
            providers.push(Provider::Identity);
            return;
        }
    };
    let path = path.child(name).child("keys");
    if keys.keys.is_empty() {
        errors.push(Error::required(&path, "at least one keys is required"));
    }
    for (at, key) in keys.keys.into_iter().enumerate() {
        match read_key(&path.index(at), scheme, &key) {
            Ok(provider) => providers.push(provider),
            Err(more) => errors.extend(more),
        }
    }
}

fn read_plugin(path: &Path, entry: &KmsEntry, others: &[String]) -> Result<Settings, Vec<Error>> {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let mut errors = Vec::new();
    let mut bad = |field: &str, value: &str, why: String| errors.push(Error::invalid(&path.child(field), value, why));
    if entry.name.contains(':') {
        bad("name", &entry.name, format!("invalid KMS provider name {}, must not contain ':'", entry.name));
    }
    if others.contains(&entry.name) {
        bad("name", &entry.name, format!("duplicate KMS provider name {}, names must be unique", entry.name));
    }
    let timeout = entry.timeout.as_deref().map_or(Some(TIMEOUT), go_duration).filter(|timeout| !timeout.is_zero());
    if timeout.is_none() {
        bad("timeout", entry.timeout.as_deref().unwrap_or_default(), "timeout should be a positive value".to_owned());
    }
    let (scheme, rest) = entry.endpoint.split_once("://").unwrap_or(("", &entry.endpoint));
    if entry.endpoint.is_empty() {
        bad("endpoint", "", "endpoint is a mandatory field for a kms".to_owned());
    } else if scheme != "unix" {
        let why = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
        bad("endpoint", &entry.endpoint, why);
    }
    match entry.api_version.as_str() {
        "v2" => {}
        "" | "v1" => {
            let why = "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead";
            bad("apiVersion", &entry.api_version, why.to_owned());
        }
        other => {
            let why = "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported";
            bad("apiVersion", other, why.to_owned());
        }
    }
    if let Some(size) = entry.cachesize {
        errors.push(Error::invalid(&path.child("cachesize"), size, "cachesize is not supported in v2"));
    }
    if entry.name.is_empty() {
        errors.insert(0, Error::required(&path.child("name"), "name is a mandatory field for a provider"));
    }
    match timeout {
        Some(timeout) if errors.is_empty() => {
            // An abstract socket is written with an @.
            let socket = rest.strip_prefix("/@").map_or_else(|| rest.to_owned(), |name| format!("\0{name}"));
            Ok(Settings { name: entry.name.clone(), socket: socket.into(), timeout })
        }
        _ => Err(errors),
    }
}

/// The secret itself stays out of every message.
fn read_key(path: &Path, scheme: Scheme, key: &Key) -> Result<Provider, Vec<Error>> {
    let mut errors = Vec::new();
    if key.name.is_empty() {
        errors.push(Error::required(&path.child("name"), "name is a mandatory field for a key"));
    }
    let path = path.child("secret");
    if key.secret.is_empty() {
        errors.push(Error::required(&path, "secret is a mandatory field for a key"));
        return Err(errors);
    }
    let Ok(secret) = BASE64_STANDARD.decode(key.secret.trim()) else {
        errors.push(Error::invalid(&path, "REDACTED", "secrets must be base64 encoded"));
        return Err(errors);
    };
    let Some(provider) = Provider::new(scheme, &key.name, &secret) else {
        let lengths = if scheme == Scheme::Secretbox { "[32]" } else { "[16 24 32]" };
        let why = format!("secret is not of the expected length, got {}, expected one of {lengths}", secret.len());
        errors.push(Error::invalid(&path, "REDACTED", why));
        return Err(errors);
    };
    if errors.is_empty() { Ok(provider) } else { Err(errors) }
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
        let one = "[{identity: {}}]";
        let key = |key: &str| format!("[{{aesgcm: {{keys: [{key}]}}}}]");
        let kms = |rest: &str| format!("[{{kms: {{apiVersion: v2, {rest}}}}}]");
        let star = "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources";
        for (resources, providers, expected) in [
            ("['*']", one, format!("resources[0].resources[0]: Invalid value: \"*\": {star}")),
            ("[]", one, "resources[0].resources: Required value: at least one resources[0].resources is required".to_owned()),
            ("[Secrets]", one, "resources[0].resources[0]: Invalid value: \"Secrets\": resource name should not contain capital letters".to_owned()),
            ("['pods.*']", one, "resources[0].resources[0]: Invalid value: \"pods.*\": encrypting the same resource across groups is not supported".to_owned()),
            ("[events.events.k8s.io]", one, "resources[0].resources[0]: Invalid value: \"events.events.k8s.io\": '*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file".to_owned()),
            ("[secrets, secrets]", one, "resources[0].resources: Invalid value: [\"secrets\",\"secrets\"]: the same resource cannot be specified multiple times".to_owned()),
            ("[secrets, '*.']", one, "resources[0].resources: Invalid value: [\"secrets\",\"*.\"]: using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked".to_owned()),
            ("[secrets]", "[]", "resources[0].providers: Required value: at least one resources[0].providers is required".to_owned()),
            ("[secrets]", "[{}]", "resources[0].providers[0]: Invalid value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity".to_owned()),
            ("[secrets]", "[{identity: {}, aescbc: {keys: []}}]", "resources[0].providers[0]: Invalid value: more than one provider specified in a single element, should split into different list elements".to_owned()),
            ("[secrets]", "[{aesgcm: {keys: []}}]", "resources[0].providers[0].aesgcm.keys: Required value: at least one keys is required".to_owned()),
            ("[secrets]", &key("{name: a, secret: c2hvcnQ=}"), "resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 5, expected one of [16 24 32]".to_owned()),
            ("[secrets]", &key("{name: a, secret: '%'}"), "resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secrets must be base64 encoded".to_owned()),
            ("[secrets]", &key("{}"), "[resources[0].providers[0].aesgcm.keys[0].name: Required value: name is a mandatory field for a key, resources[0].providers[0].aesgcm.keys[0].secret: Required value: secret is a mandatory field for a key]".to_owned()),
            ("[secrets]", &kms("name: k, endpoint: 'unix:///x', cachesize: 5"), "resources[0].providers[0].kms.cachesize: Invalid value: 5: cachesize is not supported in v2".to_owned()),
            ("[secrets]", &kms("name: 'a:b', endpoint: 'tcp://x', timeout: 0s"), "[resources[0].providers[0].kms.name: Invalid value: \"a:b\": invalid KMS provider name a:b, must not contain ':', resources[0].providers[0].kms.timeout: Invalid value: \"0s\": timeout should be a positive value, resources[0].providers[0].kms.endpoint: Invalid value: \"tcp://x\": unsupported scheme \"tcp\" for KMS provider, only unix is supported]".to_owned()),
            ("[secrets]", &kms(""), "[resources[0].providers[0].kms.name: Required value: name is a mandatory field for a provider, resources[0].providers[0].kms.endpoint: Invalid value: \"\": endpoint is a mandatory field for a kms]".to_owned()),
        ] {
            assert_eq!(with(resources, providers).unwrap_err(), expected);
        }
        let twice = "[{kms: {apiVersion: v2, name: k, endpoint: 'unix:///x'}}, {kms: {apiVersion: v2, name: k, endpoint: 'unix:///y'}}]";
        assert!(with("[secrets]", twice).unwrap_err().ends_with("duplicate KMS provider name k, names must be unique"));
        assert!(with("[secrets]", "[{rot13: {}}]").unwrap_err().contains("rot13"));
        assert!(with("['*.', '*.apps', deployments.batch]", one).is_ok());
        assert!(parse("apiVersion: v1\nkind: List\nresources: []").unwrap_err().contains("EncryptionConfiguration"));
    }
}
