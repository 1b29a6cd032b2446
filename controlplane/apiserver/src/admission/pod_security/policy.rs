//! What a namespace asks for by its labels.

use api::field::{Error, Path};
use serde_json::Value;

use super::checks::{self, Level};
use crate::kinds::value::label;

pub const PREFIX: &str = "pod-security.kubernetes.io/";
pub const LEVELS: &str = "must be one of privileged, baseline, restricted";
pub const VERSIONS: &str = "must be \"latest\" or \"v1.x\"";

/// A level and the version it is pinned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub level: Level,
    pub version: String,
}

impl Default for Policy {
    fn default() -> Self {
        Self { level: Level::Privileged, version: "latest".to_owned() }
    }
}

impl Policy {
    /// What a namespace's labels say for a mode; an unknown level counts as `otherwise`.
    fn of(namespace: &Value, mode: &str, default: &Self, otherwise: Level) -> Self {
        let level = match label(namespace, &format!("{PREFIX}{mode}")) {
            None => default.level,
            Some(text) => Level::parse(text).unwrap_or(otherwise),
        };
        let version = match label(namespace, &format!("{PREFIX}{mode}-version")) {
            None => &default.version,
            Some(version) if is_version(version) => version,
            Some(_) => "latest",
        };
        Self { level, version: version.to_owned() }
    }

    /// The minor version of the standards; the newest for `latest`.
    pub fn minor(&self) -> u32 {
        self.version.strip_prefix("v1.").and_then(|minor| minor.parse().ok()).unwrap_or(u32::MAX)
    }

    pub fn violations(&self, pod: &Value) -> String {
        checks::violations(self.level, self.minor(), pod)
    }

    /// Privileged is the same in every version.
    pub fn is_as(&self, other: &Self) -> bool {
        self.level == Level::Privileged && other.level == Level::Privileged || self == other
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.level.name(), self.version)
    }
}

/// What a namespace asks for in the three modes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    pub enforce: Policy,
    pub audit: Policy,
    pub warn: Policy,
}

impl Policies {
    /// A mistake in the enforced level closes, one in the others opens. Who enforces more than the
    /// cluster warns of is also warned about templates, unless the labels say otherwise.
    pub fn of(namespace: &Value, defaults: &Self) -> Self {
        let enforce = Policy::of(namespace, "enforce", &defaults.enforce, Level::Restricted);
        let audit = Policy::of(namespace, "audit", &defaults.audit, Level::Privileged);
        let mut warn = Policy::of(namespace, "warn", &defaults.warn, Level::Privileged);
        let said = |key: &str| label(namespace, &format!("{PREFIX}{key}"));
        let enforces = said("enforce").is_some_and(|level| Level::parse(level).is_some());
        if said("warn").is_none() && enforces && enforce.level > warn.level {
            warn.level = enforce.level;
            if said("warn-version").is_none() {
                warn.version.clone_from(&enforce.version);
            }
        }
        Self { enforce, audit, warn }
    }

    pub fn are_privileged(&self) -> bool {
        self.enforce.level == Level::Privileged && self.only_enforce()
    }

    /// Whether templates need not be looked at.
    pub fn only_enforce(&self) -> bool {
        self.audit.level == Level::Privileged && self.warn.level == Level::Privileged
    }

    /// With its name, in the order they are shown.
    pub fn modes(&self) -> [(&'static str, &Policy); 3] {
        [("enforce", &self.enforce), ("audit", &self.audit), ("warn", &self.warn)]
    }

    pub fn are_as(&self, other: &Self) -> bool {
        self.modes().iter().zip(other.modes()).all(|((_, one), (_, other))| one.is_as(other))
    }
}

pub fn is_version(text: &str) -> bool {
    let number = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'))
    };
    text == "latest" || text.strip_prefix("v1.").is_some_and(number)
}

pub fn label_errors(namespace: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    let labels = Path::root("metadata").child("labels");
    for mode in ["enforce", "audit", "warn"] {
        for (key, fits, detail) in [
            (format!("{PREFIX}{mode}"), (|level| Level::parse(level).is_some()) as fn(&str) -> bool, LEVELS),
            (format!("{PREFIX}{mode}-version"), is_version, VERSIONS),
        ] {
            if let Some(value) = label(namespace, &key).filter(|value| !fits(value)) {
                errors.push(Error::invalid(&labels.key(&key), value, detail));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(text: &str) -> Policy {
        let (level, version) = text.split_once(':').unwrap();
        Policy { level: Level::parse(level).unwrap(), version: version.to_owned() }
    }

    /// Upstream's rows (`TestPolicyToEvaluate`).
    #[test]
    fn labels_over_defaults() {
        let defaults = |enforce: &str, audit: &str, warn: &str| Policies {
            enforce: policy(enforce),
            audit: policy(audit),
            warn: policy(warn),
        };
        let restrictive = || defaults("baseline:v1.2", "baseline:v1.2", "baseline:v1.2");
        for (labels, given, expected) in [
            (json!({}), Policies::default(), ["privileged:latest"; 3]),
            (json!({}), restrictive(), ["baseline:v1.2"; 3]),
            (
                json!({"enforce": "baseline", "enforce-version": "v1.22"}),
                Policies::default(),
                ["baseline:v1.22", "privileged:latest", "baseline:v1.22"],
            ),
            (
                json!({"enforce": "baseline", "enforce-version": "v1.22", "warn-version": "latest"}),
                Policies::default(),
                ["baseline:v1.22", "privileged:latest", "baseline:latest"],
            ),
            (
                json!({"enforce": "baseline", "warn": "privileged"}),
                Policies::default(),
                ["baseline:latest", "privileged:latest", "privileged:latest"],
            ),
            (json!({"enforce": "restricted"}), restrictive(), ["restricted:v1.2", "baseline:v1.2", "restricted:v1.2"]),
            (json!({"enforce": "privileged"}), restrictive(), ["privileged:v1.2", "baseline:v1.2", "baseline:v1.2"]),
            (
                json!({"enforce": "x", "audit": "x", "warn": "x"}),
                restrictive(),
                ["restricted:v1.2", "privileged:v1.2", "privileged:v1.2"],
            ),
            (
                json!({"enforce-version": "x", "audit-version": "v1.01", "warn-version": "v2.0"}),
                restrictive(),
                ["baseline:latest"; 3],
            ),
        ] {
            let prefixed = labels.as_object().unwrap().iter();
            let prefixed: Value = prefixed.map(|(key, value)| (format!("{PREFIX}{key}"), value.clone())).collect();
            let found = Policies::of(&json!({"metadata": {"labels": prefixed}}), &given);
            assert_eq!(found.modes().map(|(_, policy)| policy.to_string()), expected, "{labels}");
        }
    }
}
