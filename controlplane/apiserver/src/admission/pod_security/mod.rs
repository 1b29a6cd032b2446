//! `PodSecurity`: the Pod Security Standards, by labels of the namespace.
//!
//! `enforce` refuses pods; `warn` and `audit` also look at the templates of workloads.
//! [`checks`] holds the standards themselves, pure functions of a pod's metadata and spec.

mod checks;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use api::field::{Error, Path};

use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::value::{at, label, list, name, text};
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
        let policies = Policies::of(&namespace);
        let errors = label_errors(&namespace);
        if !errors.is_empty() {
            let words = format!("Failed to parse policy: {}", api::field::join(&errors));
            attributes.audit.push((format!("{PREFIX}error"), words));
        }
        let mut refusal = None;
        if path.is_empty() {
            let enforce = &policies.enforce;
            let shown = if policies.are_privileged() { "privileged:latest".to_owned() } else { enforce.to_string() };
            attributes.audit.push((format!("{PREFIX}enforce-policy"), shown));
            let found = enforce.violations(&pod);
            refusal = (!found.is_empty()).then(|| format!("violates PodSecurity \"{enforce}\": {found}"));
        }
        let would = |policy: &Policy| {
            let found = policy.violations(&pod);
            (!found.is_empty()).then(|| format!("would violate PodSecurity \"{policy}\": {found}"))
        };
        attributes.audit.extend(would(&policies.audit).map(|words| (format!("{PREFIX}audit-violations"), words)));
        if let Some(why) = refusal {
            return Err(attributes.forbid(why));
        }
        attributes.warnings.extend(would(&policies.warn));
        Ok(())
    }
}

fn template_path(attributes: &Attributes<'_>) -> Option<&'static str> {
    TEMPLATES.iter().find(|(group, plural, _)| attributes.is(group, plural)).map(|(.., path)| *path)
}

/// Updates that bring no new image and no new container are let through: a pod that runs must stay
/// updatable when its namespace becomes stricter.
fn significant(attributes: &Attributes<'_>) -> bool {
    let Some(old) = attributes.old else { return true };
    let images = |pod: &Value, field: &str| -> Vec<(String, String)> {
        list(pod, field).iter().map(|c| (text(c, "name").to_owned(), text(c, "image").to_owned())).collect()
    };
    let changed = |field: &&str| images(old, field) != images(&attributes.object, field);
    let debuggers = images(old, "spec.ephemeralContainers");
    ["spec.containers", "spec.initContainers"].iter().any(changed)
        || images(&attributes.object, "spec.ephemeralContainers").iter().any(|added| !debuggers.contains(added))
}

/// A level and the version it is pinned to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Policy {
    level: Level,
    version: String,
}

impl Policy {
    /// What a namespace's labels say for a mode; an unknown level counts as `otherwise`.
    fn of(namespace: &Value, mode: &str, otherwise: Level) -> Self {
        let level = match label(namespace, &format!("{PREFIX}{mode}")) {
            None => Level::Privileged,
            Some(text) => Level::parse(text).unwrap_or(otherwise),
        };
        let version = label(namespace, &format!("{PREFIX}{mode}-version")).filter(|version| is_version(version));
        Self { level, version: version.unwrap_or("latest").to_owned() }
    }

    /// The minor version of the standards; the newest for `latest`.
    fn minor(&self) -> u32 {
        self.version.strip_prefix("v1.").and_then(|minor| minor.parse().ok()).unwrap_or(u32::MAX)
    }

    fn violations(&self, pod: &Value) -> String {
        checks::violations(self.level, self.minor(), pod)
    }
}

/// What a namespace asks for in the three modes.
struct Policies {
    enforce: Policy,
    audit: Policy,
    warn: Policy,
}

impl Policies {
    /// A mistake in the enforced level closes, one in the others opens. Who enforces is also warned
    /// about templates, unless the labels say otherwise.
    fn of(namespace: &Value) -> Self {
        let enforce = Policy::of(namespace, "enforce", Level::Restricted);
        let audit = Policy::of(namespace, "audit", Level::Privileged);
        let mut warn = Policy::of(namespace, "warn", Level::Privileged);
        let said = |key: &str| label(namespace, &format!("{PREFIX}{key}"));
        if said("warn").is_none() && said("enforce").is_some_and(|level| Level::parse(level).is_some()) {
            warn.level = enforce.level;
            if said("warn-version").is_none() && enforce.level > Level::Privileged {
                warn.version.clone_from(&enforce.version);
            }
        }
        Self { enforce, audit, warn }
    }

    fn are_privileged(&self) -> bool {
        [&self.enforce, &self.audit, &self.warn].iter().all(|policy| policy.level == Level::Privileged)
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

/// Labels must be well-formed, unless they were as they are before; pods that a stricter level would
/// refuse are warned about.
async fn namespace(attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
    let errors = label_errors(&attributes.object);
    if !errors.is_empty() && attributes.old.is_none_or(|old| label_errors(old) != errors) {
        return Err(ApiError::invalid("", "Namespace", name(&attributes.object), &errors));
    }
    let Some(old) = attributes.old else { return Ok(()) };
    let (new, was) = (Policies::of(&attributes.object).enforce, Policies::of(old).enforce);
    let relaxed = new.version == was.version && new.level <= was.level;
    if new == was || new.level == Level::Privileged || relaxed {
        return Ok(());
    }
    let namespace = name(&attributes.object).to_owned();
    let pods = cluster.list("", "pods", &namespace).await?;
    attributes.warnings.extend(namespace_warnings(&namespace, &new, &pods));
    Ok(())
}

fn label_errors(namespace: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    let labels = Path::root("metadata").child("labels");
    for mode in ["enforce", "audit", "warn"] {
        for (key, fits, detail) in [
            (
                format!("{PREFIX}{mode}"),
                (|level| Level::parse(level).is_some()) as fn(&str) -> bool,
                "must be one of privileged, baseline, restricted",
            ),
            (format!("{PREFIX}{mode}-version"), is_version, "must be \"latest\" or \"v1.x\""),
        ] {
            if let Some(value) = label(namespace, &key).filter(|value| !fits(value)) {
                errors.push(Error::invalid(&labels.key(&key), value, detail));
            }
        }
    }
    errors
}

/// Pods with the same faults share a line.
fn namespace_warnings(namespace: &str, policy: &Policy, pods: &[Arc<Value>]) -> Vec<String> {
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in pods {
        let reasons = checks::reasons(policy.level, policy.minor(), pod);
        if !reasons.is_empty() {
            found.entry(reasons).or_default().push(name(pod));
        }
    }
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, mut pods)| {
            pods.sort_unstable();
            let more = match pods.len() {
                1 => String::new(),
                2 => " (and 1 other pod)".to_owned(),
                count => format!(" (and {} other pods)", count - 1),
            };
            format!("{}{more}: {reasons}", pods[0])
        })
        .collect();
    lines.sort();
    if !lines.is_empty() {
        let first = format!(
            "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{policy}\""
        );
        lines.insert(0, first);
    }
    lines
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
    async fn enforcing_warns_about_templates() {
        let deployment =
            || json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"template": {"spec": {"hostPID": true}}}});
        for (labels, expected) in [
            (
                json!({"enforce": "baseline", "enforce-version": "v1.30"}),
                "would violate PodSecurity \"baseline:v1.30\": host namespaces (hostPID=true)",
            ),
            (json!({"enforce": "baseline", "warn": "privileged"}), ""),
            (json!({"warn": "nonsense"}), ""),
        ] {
            let prefixed =
                labels.as_object().unwrap().iter().map(|(key, value)| (format!("{PREFIX}{key}"), value.clone()));
            let mut request = Request::create("apps", "deployments", deployment());
            request.admit(&PodSecurity, &cluster(prefixed.collect())).await.unwrap();
            assert_eq!(request.warnings.join(""), expected, "{labels}");
        }
    }

    #[tokio::test]
    async fn running_pods_stay_updatable() {
        let strict = cluster(json!({"pod-security.kubernetes.io/enforce": "baseline"}));
        let old = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"hostPID": true, "containers": [{"name": "c", "image": "a"}]}});
        let mut request = Request::new("", "pods", Operation::Update, old.clone());
        request.object["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        request.old = Some(old);
        assert_eq!(request.admit(&PodSecurity, &strict).await, Ok(()));
        request.object["spec"]["containers"][0]["image"] = json!("b");
        assert!(request.admit(&PodSecurity, &strict).await.unwrap_err().contains("host namespaces"));
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
