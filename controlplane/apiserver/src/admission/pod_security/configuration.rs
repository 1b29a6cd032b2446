//! `PodSecurityConfiguration` (`pod-security.admission.config.k8s.io`): what namespaces ask for that
//! say nothing, and who is exempt.

use std::collections::BTreeSet;

use api::field::{Error, Path};
use api::names;
use serde::Deserialize;
use serde_json::Value;

use super::super::config::Configuration;
use super::PodSecurity;
use super::checks::Level;
use super::policy::{LEVELS, Policies, Policy, VERSIONS, is_version};
use crate::admit::Attributes;
use crate::kinds::value::text;

const GROUP: &str = "pod-security.admission.config.k8s.io";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    exemptions: Exemptions,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Defaults {
    enforce: String,
    enforce_version: String,
    audit: String,
    audit_version: String,
    warn: String,
    warn_version: String,
}

/// Who is not looked at.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Exemptions {
    usernames: Vec<String>,
    pub namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

impl Exemptions {
    /// The reason for which a request is exempt.
    pub fn of_request(&self, attributes: &Attributes<'_>) -> Option<&'static str> {
        if self.has_namespace(attributes.namespace) {
            Some("namespace")
        } else if self.usernames.contains(&attributes.user.name) {
            Some("user")
        } else {
            None
        }
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.iter().any(|exempt| exempt == name)
    }

    pub fn has_runtime_class(&self, pod: &Value) -> bool {
        let class = text(pod, "spec.runtimeClassName");
        self.runtime_classes.iter().any(|exempt| exempt == class)
    }
}

/// # Errors
///
/// Fields and what is wrong with them, in upstream's words.
pub fn read(given: &Configuration) -> Result<PodSecurity, String> {
    let File { defaults, exemptions } =
        given.typed(GROUP, &["v1", "v1beta1", "v1alpha1"], "PodSecurityConfiguration")?;
    let mut errors = Vec::new();
    let mut policy = |mode: &str, level: &str, version: &str| default_policy(mode, level, version, &mut errors);
    // In upstream's order of checks.
    let enforce = policy("enforce", &defaults.enforce, &defaults.enforce_version);
    let warn = policy("warn", &defaults.warn, &defaults.warn_version);
    let audit = policy("audit", &defaults.audit, &defaults.audit_version);
    let label = |name: &str| names::dns1123_label(name).join(", ");
    let subdomain = |name: &str| names::dns1123_subdomain(name).join(", ");
    let given_name = |name: &str| if name.is_empty() { "username must not be empty".to_owned() } else { String::new() };
    check("namespaces", &exemptions.namespaces, label, &mut errors);
    check("runtimeClasses", &exemptions.runtime_classes, subdomain, &mut errors);
    check("usernames", &exemptions.usernames, given_name, &mut errors);
    if errors.is_empty() {
        Ok(PodSecurity { defaults: Policies { enforce, audit, warn }, exemptions })
    } else {
        Err(given.wrong(api::field::join(&errors)))
    }
}

/// Empty: privileged, latest.
fn default_policy(mode: &str, level: &str, version: &str, errors: &mut Vec<Error>) -> Policy {
    let mut policy = Policy::default();
    let path = |name: String| Path::root("defaults").child(&name);
    if !level.is_empty() {
        match Level::parse(level) {
            Some(parsed) => policy.level = parsed,
            None => errors.push(Error::invalid(&path(mode.to_owned()), level, LEVELS)),
        }
    }
    if !version.is_empty() {
        if !is_version(version) {
            errors.push(Error::invalid(&path(format!("{mode}-version")), version, VERSIONS));
        }
        version.clone_into(&mut policy.version);
    }
    policy
}

/// `problem` is empty for a name that is good.
fn check(field: &str, names: &[String], problem: impl Fn(&str) -> String, errors: &mut Vec<Error>) {
    let mut seen = BTreeSet::new();
    for (at, name) in names.iter().enumerate() {
        let path = Path::root("exemptions").child(field).index(at);
        let why = problem(name);
        if !why.is_empty() {
            errors.push(Error::invalid(&path, name.as_str(), why));
        } else if !seen.insert(name) {
            errors.push(Error::duplicate(&path, name.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::config::given;
    use super::*;
    use serde_json::json;

    fn plugin(body: Value) -> Result<PodSecurity, String> {
        let mut config =
            json!({"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration"});
        config.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        read(&given(config))
    }

    #[test]
    fn every_version_with_defaults() {
        for version in ["v1", "v1beta1", "v1alpha1"] {
            let body = json!({"apiVersion": format!("{GROUP}/{version}"), "defaults": {"enforce": "baseline", "warn-version": "v1.30"}});
            let found = plugin(body).unwrap().defaults;
            assert_eq!(
                found.modes().map(|(_, policy)| policy.to_string()),
                ["baseline:latest", "privileged:latest", "privileged:v1.30"]
            );
        }
    }

    /// Upstream's rows (`TestValidatePodSecurityConfiguration`).
    #[test]
    fn mistakes_are_named_by_their_field() {
        for (body, expected) in [
            (
                json!({"defaults": {"enforce": "x"}}),
                "defaults.enforce: Invalid value: \"x\": must be one of privileged, baseline, restricted",
            ),
            (
                json!({"defaults": {"audit-version": "v1"}}),
                "defaults.audit-version: Invalid value: \"v1\": must be \"latest\" or \"v1.x\"",
            ),
            (
                json!({"exemptions": {"usernames": [""]}}),
                "exemptions.usernames[0]: Invalid value: \"\": username must not be empty",
            ),
            (json!({"exemptions": {"usernames": ["a", "b", "a"]}}), "exemptions.usernames[2]: Duplicate value: \"a\""),
            (
                json!({"exemptions": {"namespaces": ["kube-system", "kube-system"]}}),
                "exemptions.namespaces[1]: Duplicate value: \"kube-system\"",
            ),
            (
                json!({"exemptions": {"namespaces": ["A"]}}),
                "exemptions.namespaces[0]: Invalid value: \"A\": a lowercase RFC 1123 label",
            ),
            (
                json!({"exemptions": {"runtimeClasses": ["a_b"]}}),
                "exemptions.runtimeClasses[0]: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain",
            ),
            (json!({"exemptions": {"users": []}}), "unknown field `users`"),
            (
                json!({"kind": "Other"}),
                "\"PodSecurityConfiguration\" of \"pod-security.admission.config.k8s.io/v1\" is needed",
            ),
        ] {
            let error = plugin(body).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }
}
