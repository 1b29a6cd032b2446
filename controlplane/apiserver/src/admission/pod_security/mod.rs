//! `PodSecurity`: the Pod Security Standards, by labels of the namespace.
//!
//! `enforce` refuses pods; `warn` and `audit` also look at the templates of workloads.
//! [`checks`] holds the standards themselves, pure functions of a pod's metadata and spec.

mod checks;

use async_trait::async_trait;
use serde_json::Value;

use api::field::{Error, Path};

use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::value::{at, label, name, same_at};
use checks::Level;

const PREFIX: &str = "pod-security.kubernetes.io/";

pub struct PodSecurity;

/// Kinds with a pod template and where it is.
const TEMPLATES: [(&str, &str, &str); 9] = [
    ("", "podtemplates", "template"),
    ("", "replicationcontrollers", "spec.template"),
    ("apps", "replicasets", "spec.template"),
    ("apps", "deployments", "spec.template"),
    ("apps", "statefulsets", "spec.template"),
    ("apps", "daemonsets", "spec.template"),
    ("batch", "jobs", "spec.template"),
    ("batch", "cronjobs", "spec.jobTemplate.spec.template"),
    ("", "pods", ""),
];

#[async_trait]
impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        if !matches!(attributes.operation, Operation::Create | Operation::Update) {
            return false;
        }
        let pods = attributes.is("", "pods");
        let subresource = attributes.subresource.is_empty() || pods && attributes.subresource == "ephemeralcontainers";
        subresource && (attributes.is("", "namespaces") || template_path(attributes).is_some())
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        if attributes.is("", "namespaces") {
            return namespace(attributes, cluster).await;
        }
        let Some(path) = template_path(attributes) else { return Ok(()) };
        let Some(namespace) = cluster.get("", "namespaces", "", attributes.namespace).await? else { return Ok(()) };
        let pod = if path.is_empty() { attributes.object.clone() } else { at(&attributes.object, path).clone() };
        if pod.is_null() || path.is_empty() && !significant(attributes) {
            return Ok(());
        }
        let enforce = Policy::of(&namespace, "enforce");
        let violations = |policy: &Policy| checks::violations(policy.level, &pod);
        if path.is_empty() {
            attributes.audit.push((format!("{PREFIX}enforce-policy"), enforce.to_string()));
            let found = violations(&enforce);
            if !found.is_empty() {
                return Err(attributes.forbid(format!("violates PodSecurity \"{enforce}\": {found}")));
            }
        }
        let audit = Policy::of(&namespace, "audit");
        let found = violations(&audit);
        if !found.is_empty() {
            attributes
                .audit
                .push((format!("{PREFIX}audit-violations"), format!("would violate PodSecurity \"{audit}\": {found}")));
        }
        let warn = Policy::of(&namespace, "warn");
        let found = violations(&warn);
        if !found.is_empty() {
            attributes.warnings.push(format!("would violate PodSecurity \"{warn}\": {found}"));
        }
        Ok(())
    }
}

fn template_path(attributes: &Attributes<'_>) -> Option<&'static str> {
    TEMPLATES.iter().find(|(group, plural, _)| attributes.is(group, plural)).map(|(.., path)| *path)
}

/// Updates that touch nothing the standards look at are let through: a pod that runs must stay
/// updatable when its namespace becomes stricter.
fn significant(attributes: &Attributes<'_>) -> bool {
    let Some(old) = attributes.old else { return true };
    !["spec.containers", "spec.initContainers", "spec.ephemeralContainers", "spec.volumes", "spec.securityContext"]
        .iter()
        .all(|field| same_at(old, &attributes.object, field))
}

/// A level and the version it is pinned to.
struct Policy {
    level: Level,
    version: String,
}

impl Policy {
    /// What a namespace's labels say for a mode; malformed labels count as the strictest level, so
    /// that a typing mistake does not open anything.
    fn of(namespace: &Value, mode: &str) -> Self {
        let level = match label(namespace, &format!("{PREFIX}{mode}")) {
            None => Level::Privileged,
            Some(text) => Level::parse(text).unwrap_or(Level::Restricted),
        };
        let version = label(namespace, &format!("{PREFIX}{mode}-version")).filter(|version| is_version(version));
        Self { level, version: version.unwrap_or("latest").to_owned() }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.level.name(), self.version)
    }
}

fn is_version(text: &str) -> bool {
    let number = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'))
    };
    text == "latest" || text.strip_prefix("v1.").is_some_and(number)
}

/// Labels must be well-formed; pods that a stricter level would refuse are warned about.
async fn namespace(attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
    let mut errors = Vec::new();
    let labels = Path::root("metadata").child("labels");
    for mode in ["enforce", "audit", "warn"] {
        let (level_key, version_key) = (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
        if let Some(level) = label(&attributes.object, &level_key).filter(|level| Level::parse(level).is_none()) {
            errors.push(Error::invalid(
                &labels.key(&level_key),
                level,
                "must be one of privileged, baseline, restricted",
            ));
        }
        if let Some(version) = label(&attributes.object, &version_key).filter(|version| !is_version(version)) {
            errors.push(Error::invalid(&labels.key(&version_key), version, "must be \"latest\" or \"v1.x\""));
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("", "Namespace", name(&attributes.object), &errors));
    }
    let Some(old) = attributes.old else { return Ok(()) };
    let (new, was) = (Policy::of(&attributes.object, "enforce"), Policy::of(old, "enforce"));
    if new.level <= was.level {
        return Ok(());
    }
    let namespace_name = name(&attributes.object).to_owned();
    let mut found: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    for pod in cluster.list("", "pods", &namespace_name).await? {
        let reasons = checks::reasons(new.level, &pod);
        if !reasons.is_empty() {
            found.entry(reasons).or_default().push(name(&pod).to_owned());
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    attributes.warnings.push(format!(
        "existing pods in namespace \"{namespace_name}\" violate the new PodSecurity enforce level \"{new}\""
    ));
    for (reasons, mut pods) in found {
        pods.sort();
        let more = match pods.len() {
            1 => String::new(),
            2 => " (and 1 other pod)".to_owned(),
            count => format!(" (and {} other pods)", count - 1),
        };
        attributes.warnings.push(format!("{}{more}: {reasons}", pods[0]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    fn cluster(labels: Value) -> Fixed {
        Fixed::with(&[("", "namespaces", json!({"metadata": {"name": "n", "labels": labels}}))])
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c"}]}})
    }

    #[tokio::test]
    async fn enforced() {
        let strict = cluster(json!({"pod-security.kubernetes.io/enforce": "restricted"}));
        assert_eq!(
            Request::create("", "pods", pod()).admit(&PodSecurity, &strict).await,
            Err("pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")".to_owned())
        );
        assert_eq!(Request::create("", "pods", pod()).admit(&PodSecurity, &cluster(json!({}))).await, Ok(()));
    }

    #[tokio::test]
    async fn warned_about_templates() {
        let warns = cluster(
            json!({"pod-security.kubernetes.io/warn": "baseline", "pod-security.kubernetes.io/warn-version": "v1.30"}),
        );
        let mut request = Request::create(
            "apps",
            "deployments",
            json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"template": {"spec": {"hostNetwork": true, "containers": []}}}}),
        );
        assert_eq!(request.admit(&PodSecurity, &warns).await, Ok(()));
        assert_eq!(
            request.warnings,
            ["would violate PodSecurity \"baseline:v1.30\": host namespaces (hostNetwork=true)"]
        );
    }

    #[tokio::test]
    async fn labels_of_namespaces() {
        let mut request = Request::create(
            "",
            "namespaces",
            json!({"metadata": {"name": "n", "labels": {"pod-security.kubernetes.io/enforce": "x"}}}),
        );
        assert!(
            request
                .admit(&PodSecurity, &Fixed::default())
                .await
                .unwrap_err()
                .contains("must be one of privileged, baseline, restricted")
        );
        let cluster = Fixed::with(&[("", "pods", pod())]);
        let mut request = Request::new(
            "",
            "namespaces",
            Operation::Update,
            json!({"metadata": {"name": "n", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}),
        );
        request.old = Some(json!({"metadata": {"name": "n"}}));
        request.admit(&PodSecurity, &cluster).await.unwrap();
        assert_eq!(
            request.warnings[1],
            "p: allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile"
        );
    }
}
