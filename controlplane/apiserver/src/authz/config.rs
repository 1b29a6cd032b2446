//! Who is asked about rights, in which order: `--authorization-mode`, or an
//! `AuthorizationConfiguration` (`apiserver.config.k8s.io`).

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::Mode;
use super::webhook::{Settings, Version, Webhook};
use crate::cel;
use crate::error::{ApiError, Result};

/// What an operator says about authorization.
#[derive(Debug, Clone)]
pub struct AuthorizationOptions {
    pub modes: Vec<String>,
    /// For the mode `Webhook`: a kubeconfig, and how long its yes and its no hold.
    pub webhook: Option<(PathBuf, Duration, Duration)>,
    /// An `AuthorizationConfiguration`, instead of both.
    pub config_file: Option<PathBuf>,
}

impl AuthorizationOptions {
    /// Whether `--authorization-mode` has a mode that never says no.
    pub fn allows_everything(&self) -> bool {
        self.config_file.is_none() && self.modes.iter().any(|mode| mode == "AlwaysAllow")
    }
}

impl Default for AuthorizationOptions {
    fn default() -> Self {
        Self { modes: vec!["Node".to_owned(), "RBAC".to_owned()], webhook: None, config_file: None }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    authorizers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    webhook: Option<WebhookEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WebhookEntry {
    #[serde(rename = "authorizedTTL")]
    authorized: Option<String>,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized: Option<String>,
    cache_unauthorized_requests: Option<bool>,
    timeout: String,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: Option<String>,
    failure_policy: String,
    connection_info: Connection,
    #[serde(default)]
    match_conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Connection {
    #[serde(rename = "type")]
    kind: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    expression: String,
}

/// One of those to ask, before its kubeconfig has been read.
enum Planned {
    Plain(Mode),
    Webhook(PathBuf, Settings),
}

/// Reads the configuration and makes those who are asked.
pub async fn modes(options: &AuthorizationOptions) -> Result<Vec<Mode>> {
    let unusable = |why: String| ApiError::internal(format!("configuring authorization: {why}"));
    let planned = match &options.config_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| unusable(format!("reading {}: {error}", path.display())))?;
            parse(&text).map_err(|why| unusable(format!("{}: {why}", path.display())))?
        }
        None => from_flags(options).map_err(unusable)?,
    };
    let mut modes = Vec::new();
    for one in planned {
        modes.push(match one {
            Planned::Plain(mode) => mode,
            Planned::Webhook(path, settings) => Mode::Webhook(Box::new(Webhook::new(&path, settings).await?)),
        });
    }
    Ok(modes)
}

fn plain(name: &str) -> Option<Mode> {
    Some(match name {
        "Node" => Mode::Node,
        "RBAC" => Mode::Rbac,
        "AlwaysAllow" => Mode::AlwaysAllow,
        "AlwaysDeny" => Mode::AlwaysDeny,
        _ => return None,
    })
}

fn from_flags(options: &AuthorizationOptions) -> Result<Vec<Planned>, String> {
    let mut planned = Vec::new();
    for name in &options.modes {
        planned.push(match (plain(name), &options.webhook) {
            (Some(mode), _) => Planned::Plain(mode),
            (None, Some((path, authorized, unauthorized))) if name == "Webhook" => {
                let settings = Settings {
                    timeout: Duration::from_secs(30),
                    authorized: *authorized,
                    unauthorized: *unauthorized,
                    denies_on_failure: false,
                    version: Version::V1,
                    conditions: Vec::new(),
                };
                Planned::Webhook(path.clone(), settings)
            }
            (None, None) if name == "Webhook" => {
                return Err("authorization-mode Webhook's authorization config file not passed: --authorization-webhook-config-file".to_owned());
            }
            _ => return Err(format!("authorization-mode {name:?} is not a valid mode; Node, RBAC, Webhook, AlwaysAllow and AlwaysDeny are")),
        });
    }
    if planned.is_empty() {
        return Err("at least one --authorization-mode must be passed".to_owned());
    }
    Ok(planned)
}

fn parse(text: &str) -> Result<Vec<Planned>, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let version = file.api_version.strip_prefix("apiserver.config.k8s.io/").unwrap_or_default();
    if file.kind != "AuthorizationConfiguration" || !matches!(version, "v1" | "v1beta1" | "v1alpha1") {
        return Err(format!(
            "it is a {} of {:?}; an AuthorizationConfiguration of \"apiserver.config.k8s.io/v1\" is needed",
            file.kind, file.api_version
        ));
    }
    if file.authorizers.is_empty() {
        return Err("authorizers: Required value: at least one authorization mode must be defined".to_owned());
    }
    let mut names: Vec<&str> = Vec::new();
    let mut planned = Vec::new();
    for (at, entry) in file.authorizers.iter().enumerate() {
        if names.contains(&entry.name.as_str()) {
            return Err(format!("authorizers[{at}].name: Duplicate value: {:?}", entry.name));
        }
        names.push(&entry.name);
        planned.push(match (plain(&entry.kind), &entry.webhook) {
            (Some(mode), None) => Planned::Plain(mode),
            (Some(_), Some(_)) => {
                return Err(format!(
                    "authorizers[{at}].webhook: Invalid value: \"non-null\": may only be specified when type=Webhook"
                ));
            }
            (None, Some(webhook)) if entry.kind == "Webhook" => {
                webhook.planned().map_err(|why| format!("authorizers[{at}].webhook.{why}"))?
            }
            (None, None) if entry.kind == "Webhook" => {
                return Err(format!("authorizers[{at}].webhook: Required value: required when type=Webhook"));
            }
            _ => return Err(format!("authorizers[{at}].type: Unsupported value: {:?}", entry.kind)),
        });
    }
    Ok(planned)
}

impl WebhookEntry {
    fn planned(&self) -> Result<Planned, String> {
        let time = |field: &str, text: Option<&str>, cached: Option<bool>, default: u64| match (cached, text) {
            (Some(false), _) => Ok(Duration::ZERO),
            (_, None) => Ok(Duration::from_secs(default)),
            (_, Some(text)) => go_duration(text).ok_or(format!("{field}: Invalid value: {text:?}")),
        };
        let denies_on_failure = match self.failure_policy.as_str() {
            "NoOpinion" => false,
            "Deny" => true,
            other => {
                return Err(format!(
                    "failurePolicy: Unsupported value: {other:?}: supported values: \"NoOpinion\", \"Deny\""
                ));
            }
        };
        for version in std::iter::once(&self.subject_access_review_version)
            .chain(&self.match_condition_subject_access_review_version)
        {
            if !matches!(version.as_str(), "v1" | "v1beta1") {
                return Err(format!(
                    "subjectAccessReviewVersion: Unsupported value: {version:?}: supported values: \"v1\", \"v1beta1\""
                ));
            }
        }
        let path = match (self.connection_info.kind.as_str(), &self.connection_info.kube_config_file) {
            ("KubeConfigFile", Some(path)) => path.clone(),
            ("KubeConfigFile", None) => return Err("connectionInfo.kubeConfigFile: Required value".to_owned()),
            (other, _) => {
                return Err(format!(
                    "connectionInfo.type: Unsupported value: {other:?}: supported values: \"KubeConfigFile\""
                ));
            }
        };
        let conditions = self.match_conditions.iter().enumerate().map(|(at, condition)| {
            cel::compile(&condition.expression).map_err(|error| {
                format!("matchConditions[{at}].expression: Invalid value: {:?}: {error}", condition.expression)
            })
        });
        let timeout = go_duration(&self.timeout).filter(|time| !time.is_zero() && *time <= Duration::from_secs(30));
        let settings = Settings {
            timeout: timeout.ok_or(format!("timeout: Invalid value: {:?}: must be > 0s and <= 30s", self.timeout))?,
            authorized: time("authorizedTTL", self.authorized.as_deref(), self.cache_authorized_requests, 300)?,
            unauthorized: time("unauthorizedTTL", self.unauthorized.as_deref(), self.cache_unauthorized_requests, 30)?,
            denies_on_failure,
            version: if self.subject_access_review_version == "v1" { Version::V1 } else { Version::V1Beta1 },
            conditions: conditions.collect::<Result<_, _>>()?,
        };
        Ok(Planned::Webhook(path, settings))
    }
}

/// `1h30m`, `30s`, `500ms`.
pub fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        total += number
            * match &rest[digits..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, seconds) in [("1h30m", 5400.0), ("30s", 30.0), ("500ms", 0.5), ("1.5m", 90.0)] {
            assert_eq!(go_duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "5", "x", "5d", "-1s"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    #[test]
    fn configurations_are_checked() {
        let with = |authorizers: &str| {
            format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: [{authorizers}]\n"
            )
        };
        let hook = |rest: &str| {
            with(&format!(
                "{{type: Webhook, name: a, webhook: {{timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Deny, \
                 connectionInfo: {{type: KubeConfigFile, kubeConfigFile: /x}}{rest}}}}}, {{type: RBAC, name: b}}"
            ))
        };
        let planned =
            parse(&hook(", unauthorizedTTL: 1m, matchConditions: [{expression: \"request.user != 'x'\"}]")).unwrap();
        let [Planned::Webhook(path, settings), Planned::Plain(Mode::Rbac)] = &planned[..] else { panic!() };
        assert_eq!((path.as_path(), settings.conditions.len()), (std::path::Path::new("/x"), 1));
        assert_eq!((settings.authorized, settings.unauthorized), (Duration::from_secs(300), Duration::from_secs(60)));
        assert!(settings.denies_on_failure);
        assert_eq!(settings.version, Version::V1);
        let older = hook("").replace("subjectAccessReviewVersion: v1,", "subjectAccessReviewVersion: v1beta1,");
        let older = parse(&older).unwrap();
        assert!(matches!(&older[0], Planned::Webhook(_, settings) if settings.version == Version::V1Beta1));
        for (text, word) in [
            (with(""), "at least one"),
            (with("{type: RBAC, name: a}, {type: Node, name: a}"), "Duplicate"),
            (with("{type: ABAC, name: a}"), "ABAC"),
            (with("{type: Webhook, name: a}"), "Required"),
            (hook(", matchConditions: [{expression: 'request.'}]"), "matchConditions[0]"),
            (hook(", authorizedTTL: soon"), "authorizedTTL"),
        ] {
            let Err(problem) = parse(&text) else { panic!("accepted: {text}") };
            assert!(problem.contains(word), "{problem}");
        }
        let flags = |modes: &[&str]| {
            let modes = modes.iter().map(|mode| (*mode).to_owned()).collect();
            from_flags(&AuthorizationOptions { modes, ..AuthorizationOptions::default() }).map(|planned| planned.len())
        };
        assert_eq!(flags(&["Node", "RBAC"]), Ok(2));
        assert!(flags(&["Webhook"]).is_err() && flags(&["ABAC"]).is_err() && flags(&[]).is_err());
    }
}
