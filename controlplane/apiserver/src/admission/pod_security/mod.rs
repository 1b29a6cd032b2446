//! `PodSecurity`: the Pod Security Standards, by labels of the namespace.
//!
//! `enforce` refuses pods; `warn` and `audit` also look at the templates of workloads.
//! [`checks`] holds the standards themselves, pure functions of a pod's metadata and spec;
//! [`policy`] what a namespace asks for; [`configuration`] what it asks for if it says nothing, and
//! who is exempt; [`namespace`] what becomes of the pods of one that changes.
//!
//! Upstream: `k8s.io/pod-security-admission/admission`.

mod checks;
mod configuration;
mod namespace;
mod policy;
mod record;

use std::time::Instant;

use async_trait::async_trait;
use serde_json::Value;

use super::config::Configuration;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::value::{at, list, text};
use configuration::Exemptions;
use policy::{PREFIX, Policies, Policy, label_errors};
pub use record::metrics;
use record::{Mode, Of, error, evaluation, exemption};

/// Subresources of pods through which none changes.
const IGNORED: [&str; 8] = ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

#[derive(Default)]
pub struct PodSecurity {
    defaults: Policies,
    exemptions: Exemptions,
}

impl PodSecurity {
    /// # Errors
    ///
    /// What is wrong with the configuration.
    pub fn new(given: Option<&Configuration>) -> std::result::Result<Self, String> {
        given.map_or_else(|| Ok(Self::default()), configuration::read)
    }
}

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
        match template_path(attributes) {
            Some("") => !IGNORED.contains(&attributes.subresource),
            Some(_) => attributes.subresource.is_empty(),
            None => attributes.is("", "namespaces") && attributes.subresource.is_empty(),
        }
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let Some(path) = template_path(attributes) else {
            return self.namespace(attributes, cluster, Instant::now()).await;
        };
        let of = Of::new(attributes, if path.is_empty() { "pod" } else { "controller" });
        if let Some(why) = self.exemptions.of_request(attributes) {
            return exempt(attributes, &of, why);
        }
        let mut found = cluster.get("", "namespaces", "", attributes.namespace).await?;
        if found.is_none() {
            // The cache may be a moment behind the client that made the namespace.
            found = cluster.get_live("", "namespaces", "", attributes.namespace).await?;
        }
        let Some(namespace) = found else { return unknown_namespace(attributes, &of, path.is_empty()) };
        let (policies, errors) = (Policies::of(&namespace, &self.defaults), label_errors(&namespace));
        if errors.is_empty() && policies.are_privileged() && path.is_empty() {
            attributes.audit.push((format!("{PREFIX}enforce-policy"), "privileged:latest".to_owned()));
            evaluation(true, &policies.enforce, Mode::Enforce, &of);
            return Ok(());
        }
        if errors.is_empty() && policies.only_enforce() && !path.is_empty() {
            return Ok(());
        }
        let pod = if path.is_empty() { attributes.object.clone() } else { at(&attributes.object, path).clone() };
        if pod.is_null() || path.is_empty() && !significant(attributes) {
            return Ok(());
        }
        if self.exemptions.has_runtime_class(&pod) {
            return exempt(attributes, &of, "runtimeClass");
        }
        if !errors.is_empty() {
            let words = format!("Failed to parse policy: {}", api::field::join(&errors));
            attributes.audit.push((format!("{PREFIX}error"), words));
            error(false, &of);
        }
        evaluate(attributes, &policies, &pod, &of, path.is_empty())
    }
}

/// Looks at a pod, or at a template that it would come from: only pods themselves are refused.
fn evaluate(attributes: &mut Attributes<'_>, policies: &Policies, pod: &Value, of: &Of, enforces: bool) -> Result<()> {
    let mut refusal = None;
    if enforces {
        let enforce = &policies.enforce;
        attributes.audit.push((format!("{PREFIX}enforce-policy"), enforce.to_string()));
        let found = enforce.violations(pod);
        evaluation(found.is_empty(), enforce, Mode::Enforce, of);
        refusal = (!found.is_empty()).then(|| format!("violates PodSecurity \"{enforce}\": {found}"));
    }
    let would = |policy: &Policy, mode| {
        let found = policy.violations(pod);
        (!found.is_empty()).then(|| {
            evaluation(false, policy, mode, of);
            format!("would violate PodSecurity \"{policy}\": {found}")
        })
    };
    let audited = would(&policies.audit, Mode::Audit);
    attributes.audit.extend(audited.map(|words| (format!("{PREFIX}audit-violations"), words)));
    if let Some(why) = refusal {
        return Err(attributes.forbid(why));
    }
    attributes.warnings.extend(would(&policies.warn, Mode::Warn));
    Ok(())
}

fn exempt(attributes: &mut Attributes<'_>, of: &Of, why: &str) -> Result<()> {
    attributes.audit.push((format!("{PREFIX}exempt"), why.to_owned()));
    exemption(of);
    Ok(())
}

/// Nothing is known about what the namespace asks for: no pod, and a note at templates.
fn unknown_namespace(attributes: &mut Attributes<'_>, of: &Of, enforces: bool) -> Result<()> {
    error(true, of);
    let message = format!("failed to lookup namespace {:?}", attributes.namespace);
    attributes.audit.push((format!("{PREFIX}error"), format!("{message}: not found")));
    if enforces { Err(ApiError::internal(message)) } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    use super::super::config::given;
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
            Request::create("", "pods", pod()).admit(&PodSecurity::default(), &strict).await,
            Err("pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")".to_owned())
        );
        assert_eq!(
            Request::create("", "pods", pod()).admit(&PodSecurity::default(), &cluster(json!({}))).await,
            Ok(())
        );
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
        assert_eq!(request.admit(&PodSecurity::default(), &warns).await, Ok(()));
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
            request.admit(&PodSecurity::default(), &cluster(prefixed.collect())).await.unwrap();
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
        assert_eq!(request.admit(&PodSecurity::default(), &strict).await, Ok(()));
        request.object["spec"]["containers"][0]["image"] = json!("b");
        assert!(request.admit(&PodSecurity::default(), &strict).await.unwrap_err().contains("host namespaces"));
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
                .admit(&PodSecurity::default(), &Fixed::default())
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
        request.admit(&PodSecurity::default(), &cluster).await.unwrap();
        assert_eq!(
            request.warnings[1],
            "p: allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile"
        );
    }

    #[tokio::test]
    async fn configured_defaults_and_exemptions() {
        let config = given(json!({
            "apiVersion": "pod-security.admission.config.k8s.io/v1",
            "kind": "PodSecurityConfiguration",
            "defaults": {"enforce": "baseline", "enforce-version": "v1.30", "warn": "restricted"},
            "exemptions": {"usernames": ["eve"], "namespaces": ["free"], "runtimeClasses": ["vm"]},
        }));
        let plugin = PodSecurity::new(Some(&config)).unwrap();
        let namespace =
            |name: &str, labels: Value| ("", "namespaces", json!({"metadata": {"name": name, "labels": labels}}));
        let cluster = Fixed::with(&[
            namespace("n", json!({})),
            namespace("free", json!({"pod-security.kubernetes.io/enforce": "restricted"})),
            namespace("open", json!({"pod-security.kubernetes.io/enforce": "privileged"})),
        ]);
        for (user, place, class, refused, note) in [
            ("u", "n", "", true, ("enforce-policy", "baseline:v1.30")),
            ("eve", "n", "", false, ("exempt", "user")),
            ("u", "free", "", false, ("exempt", "namespace")),
            ("eve", "free", "", false, ("exempt", "namespace")),
            ("u", "n", "vm", false, ("exempt", "runtimeClass")),
            ("u", "open", "", false, ("enforce-policy", "privileged:v1.30")),
        ] {
            let pod = json!({"metadata": {"name": "p", "namespace": place},
                "spec": {"hostPID": true, "runtimeClassName": class, "containers": []}});
            let mut request = Request::create("", "pods", pod);
            request.user = crate::authn::UserInfo::new(user, &[]);
            let outcome = request.admit(&plugin, &cluster).await;
            assert_eq!(outcome.is_err(), refused, "{user} {place} {class}: {outcome:?}");
            let (key, value) = &request.audit[0];
            assert_eq!((key.as_str(), value.as_str()), (format!("{PREFIX}{}", note.0).as_str(), note.1));
            let warned = request.warnings.len();
            assert_eq!(warned, usize::from(place == "open"), "the default to warn counts beside labels");
        }
        let mut page = String::new();
        metrics(&mut page);
        for line in [
            "pod_security_evaluations_total{decision=\"deny\",mode=\"enforce\",policy_level=\"baseline\",policy_version=\"v1.30\",request_operation=\"create\",resource=\"pod\",subresource=\"\"} ",
            "pod_security_exemptions_total{request_operation=\"create\",resource=\"pod\",subresource=\"\"} ",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }

    #[tokio::test]
    async fn labels_of_exempt_namespaces_are_in_vain() {
        let config = given(json!({"apiVersion": "pod-security.admission.config.k8s.io/v1",
            "kind": "PodSecurityConfiguration", "exemptions": {"namespaces": ["n"]}}));
        let plugin = PodSecurity::new(Some(&config)).unwrap();
        let namespace = |labels: Value| json!({"metadata": {"name": "n", "labels": labels}});
        let labels = json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/audit-version": "v1.30",
            "pod-security.kubernetes.io/warn": "restricted"});
        let warning = "namespace \"n\" is exempt from Pod Security, and the policy (enforce=baseline:latest, warn=restricted:latest) will be ignored";
        for (old, new, expected) in [
            (None, json!({}), vec![]),
            (None, labels.clone(), vec![warning]),
            (Some(json!({})), labels.clone(), vec![warning]),
            (Some(labels.clone()), labels, vec![]),
        ] {
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            let mut request = Request::new("", "namespaces", operation, namespace(new));
            request.old = old.map(namespace);
            request.admit(&plugin, &Fixed::default()).await.unwrap();
            assert_eq!(request.warnings, expected);
        }
    }
}
