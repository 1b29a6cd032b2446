//! Which plugins run, and in which order: `--enable-admission-plugins`,
//! `--disable-admission-plugins` and `--admission-control-config-file`, as kube-apiserver takes
//! them (`pkg/kubeapiserver/options/plugins.go`, `k8s.io/apiserver/pkg/server/options/admission.go`).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use component::Supervisor;

use super::config::Configurations;
use super::manifests::{self, Manifests};
use super::{
    certificates, classes, declared_features, limit_ranger, namespace, node_restriction, optional, pod_security,
    priority, quota, resize, runtime_class, service_account, storage, taints, topology,
};
use crate::admit::Admission;
use crate::error::{ApiError, Result};
use crate::{policy, webhook};

/// What an operator says about admission.
#[derive(Debug, Clone, Default)]
pub struct AdmissionOptions {
    /// Plugins beside those that are on by default.
    pub enable: Vec<String>,
    /// Plugins that are on by default and shall not be.
    pub disable: Vec<String>,
    /// An `AdmissionConfiguration`.
    pub config_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standard {
    On,
    Off,
    /// On, and without anything to do: what it is about is off by default (`GenericWorkload` and
    /// `WorkloadWithJob`), and there is no switching that on here.
    Idle,
}
use Standard::{Idle, Off, On};

/// Every plugin of Kubernetes v1.37 in the order they run.
const ORDER: [(&str, Standard); 41] = [
    ("AlwaysAdmit", Off),
    ("NamespaceAutoProvision", Off),
    ("NamespaceLifecycle", On),
    ("NamespaceExists", Off),
    ("LimitPodHardAntiAffinityTopology", Off),
    ("LimitRanger", On),
    ("ServiceAccount", On),
    // Upstream leaves it to installers, which all turn it on.
    ("NodeRestriction", On),
    ("TaintNodesByCondition", On),
    ("AlwaysPullImages", Off),
    ("ImagePolicyWebhook", Off),
    ("PodSecurity", On),
    ("PodNodeSelector", Off),
    ("Priority", On),
    ("DefaultTolerationSeconds", On),
    ("PodTolerationRestriction", Off),
    ("EventRateLimit", Off),
    ("ExtendedResourceToleration", Off),
    ("DefaultStorageClass", On),
    ("StorageObjectInUseProtection", On),
    ("PodGroupProtection", Idle),
    ("OwnerReferencesPermissionEnforcement", Off),
    ("PersistentVolumeClaimResize", On),
    ("RuntimeClass", On),
    ("CertificateApproval", On),
    ("CertificateSigning", On),
    ("ClusterTrustBundleAttest", On),
    ("CertificateSubjectRestriction", On),
    ("DefaultIngressClass", On),
    ("DenyServiceExternalIPs", Off),
    ("PodTopologyLabels", On),
    ("PodGroupWorkloadExists", Idle),
    ("NodeDeclaredFeatureValidator", On),
    ("JobValidation", Idle),
    ("PodResizeValidator", On),
    (MUTATING_POLICY, On),
    (MUTATING_WEBHOOK, On),
    (VALIDATING_POLICY, On),
    (VALIDATING_WEBHOOK, On),
    ("ResourceQuota", On),
    ("AlwaysDeny", Off),
];
const MUTATING_POLICY: &str = "MutatingAdmissionPolicy";
const MUTATING_WEBHOOK: &str = "MutatingAdmissionWebhook";
const VALIDATING_POLICY: &str = "ValidatingAdmissionPolicy";
const VALIDATING_WEBHOOK: &str = "ValidatingAdmissionWebhook";

/// All names, sorted, as upstream's help shows them.
fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = ORDER.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names
}

/// Names of the plugins that run, in order; `Err` says everything that is wrong with the flags.
fn chosen(options: &AdmissionOptions) -> std::result::Result<Vec<&'static str>, String> {
    let mut wrong = Vec::new();
    let mut unknown = false;
    for (flag, given) in [("enable", &options.enable), ("disable", &options.disable)] {
        for name in given {
            if !ORDER.iter().any(|(known, _)| known == name) {
                unknown = true;
                wrong.push(format!("{flag}-admission-plugins plugin {name:?} is unknown"));
            }
        }
    }
    let disabled: BTreeSet<&str> = options.disable.iter().map(String::as_str).collect();
    let both: BTreeSet<&str> =
        options.enable.iter().map(String::as_str).filter(|name| disabled.contains(name)).collect();
    if !both.is_empty() {
        let both = both.into_iter().collect::<Vec<_>>().join(" ");
        wrong.push(format!("[{both}] in enable-admission-plugins and disable-admission-plugins overlapped"));
    }
    if unknown {
        wrong.push(format!("known plugins are {}", names().join(", ")));
    }
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    let enabled = |name: &&str| options.enable.iter().any(|given| given == name);
    let runs = |(name, default): &&(&'static str, Standard)| match default {
        On => !disabled.contains(name),
        Off => enabled(name),
        Idle => false,
    };
    Ok(ORDER.iter().filter(runs).map(|(name, _)| *name).collect())
}

/// The plugins that run, in order, as the flags and files say.
pub async fn build(options: &AdmissionOptions, supervisor: &Supervisor) -> Result<Vec<Arc<dyn Admission>>> {
    let wrong = |why: String| ApiError::internal(format!("configuring admission: {why}"));
    let names = chosen(options).map_err(wrong)?;
    let known = |name: &str| ORDER.iter().any(|(known, _)| *known == name);
    let mut given = match &options.config_file {
        Some(file) => Configurations::read(file, &names, known).await.map_err(wrong)?,
        None => Configurations::default(),
    };
    let mut plugins: Vec<Arc<dyn Admission>> = Vec::new();
    for name in &names {
        let made = make(name, &names, &mut given, &plugins, supervisor).await.map_err(wrong)?;
        plugins.extend(made);
    }
    given.check_all_taken(&names).map_err(wrong)?;
    Ok(plugins)
}

/// None: another of `all` does its work too. `before`: those that run before it.
async fn make(
    name: &str,
    all: &[&str],
    given: &mut Configurations,
    before: &[Arc<dyn Admission>],
    supervisor: &Supervisor,
) -> std::result::Result<Option<Arc<dyn Admission>>, String> {
    Ok(Some(match name {
        "AlwaysAdmit" => Arc::new(optional::always::AlwaysAdmit),
        "NamespaceAutoProvision" => Arc::new(optional::namespaces::NamespaceAutoProvision),
        "NamespaceLifecycle" => Arc::new(namespace::NamespaceLifecycle),
        "NamespaceExists" => Arc::new(optional::namespaces::NamespaceExists),
        "LimitPodHardAntiAffinityTopology" => Arc::new(optional::anti_affinity::LimitPodHardAntiAffinityTopology),
        "LimitRanger" => Arc::new(limit_ranger::LimitRanger),
        "ServiceAccount" => Arc::new(service_account::ServiceAccount),
        "NodeRestriction" => Arc::new(node_restriction::NodeRestriction),
        "TaintNodesByCondition" => Arc::new(taints::TaintNodesByCondition),
        "AlwaysPullImages" => Arc::new(optional::pull_images::AlwaysPullImages),
        "ImagePolicyWebhook" => {
            Arc::new(optional::image_policy::ImagePolicyWebhook::new(given.take(name).as_ref()).await?)
        }
        "PodSecurity" => Arc::new(pod_security::PodSecurity::new(given.take(name).as_ref())?),
        "PodNodeSelector" => Arc::new(optional::node_selector::PodNodeSelector::new(given.take(name).as_ref())?),
        "Priority" => Arc::new(priority::Priority),
        "DefaultTolerationSeconds" => Arc::new(taints::DefaultTolerationSeconds),
        "PodTolerationRestriction" => {
            Arc::new(optional::toleration_restriction::PodTolerationRestriction::new(given.take(name).as_ref())?)
        }
        "EventRateLimit" => Arc::new(optional::event_rate::EventRateLimit::new(given.take(name).as_ref())?),
        "ExtendedResourceToleration" => Arc::new(optional::extended_resources::ExtendedResourceToleration),
        "DefaultStorageClass" => Arc::new(storage::DefaultStorageClass),
        "StorageObjectInUseProtection" => Arc::new(storage::StorageObjectInUseProtection),
        "OwnerReferencesPermissionEnforcement" => Arc::new(optional::owners::OwnerReferencesPermissionEnforcement),
        "PersistentVolumeClaimResize" => Arc::new(storage::PersistentVolumeClaimResize),
        "RuntimeClass" => Arc::new(runtime_class::RuntimeClass),
        "CertificateApproval" => Arc::new(certificates::CertificateApproval),
        "CertificateSigning" => Arc::new(certificates::CertificateSigning),
        "ClusterTrustBundleAttest" => Arc::new(certificates::ClusterTrustBundleAttest),
        "CertificateSubjectRestriction" => Arc::new(certificates::CertificateSubjectRestriction),
        "DefaultIngressClass" => Arc::new(classes::DefaultIngressClass),
        "DenyServiceExternalIPs" => Arc::new(optional::external_ips::DenyServiceExternalIps),
        "PodTopologyLabels" => Arc::new(topology::PodTopologyLabels),
        "NodeDeclaredFeatureValidator" => Arc::new(declared_features::NodeDeclaredFeatureValidator),
        "PodResizeValidator" => Arc::new(resize::PodResizeValidator),
        MUTATING_POLICY if all.contains(&MUTATING_WEBHOOK) => return Ok(None),
        // Each may call for another run of the other.
        MUTATING_POLICY | MUTATING_WEBHOOK => {
            let (policies, webhooks) = (all.contains(&MUTATING_POLICY), all.contains(&MUTATING_WEBHOOK));
            let own = if policies { given.take(MUTATING_POLICY) } else { None };
            let kind = "MutatingAdmissionPolicyConfiguration";
            let of_policies = Manifests::of_policies(own.as_ref(), kind, manifests::MUTATING_POLICIES, supervisor)?;
            let own = if webhooks { given.take(MUTATING_WEBHOOK) } else { None };
            let (credentials, of_webhooks) =
                webhook::configuration(own.as_ref(), manifests::MUTATING_WEBHOOKS, supervisor).await?;
            Arc::new(webhook::Mutating {
                policies: policies.then_some(of_policies),
                webhooks: webhooks.then_some(of_webhooks),
                credentials,
                before: before.to_vec(),
            })
        }
        VALIDATING_POLICY => {
            let kind = "ValidatingAdmissionPolicyConfiguration";
            let own = given.take(name);
            let manifests = Manifests::of_policies(own.as_ref(), kind, manifests::VALIDATING_POLICIES, supervisor)?;
            Arc::new(policy::Validating { manifests })
        }
        VALIDATING_WEBHOOK => {
            let own = given.take(name);
            let (credentials, manifests) =
                webhook::configuration(own.as_ref(), manifests::VALIDATING_WEBHOOKS, supervisor).await?;
            Arc::new(webhook::Validating { credentials, manifests })
        }
        "ResourceQuota" => Arc::new(quota::ResourceQuota::default()),
        "AlwaysDeny" => Arc::new(optional::always::AlwaysDeny),
        other => return Err(format!("{other}: the plugin is listed, and there is nothing that makes it")),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    fn options(enable: &[&str], disable: &[&str]) -> AdmissionOptions {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        AdmissionOptions { enable: owned(enable), disable: owned(disable), config_file: None }
    }

    async fn built(options: &AdmissionOptions) -> std::result::Result<Vec<&'static str>, String> {
        build(options, &Supervisor::new("test"))
            .await
            .map(|plugins| plugins.iter().map(|plugin| plugin.name()).collect())
            .map_err(|error| error.message().split_once("configuring admission: ").unwrap_or_default().1.to_owned())
    }

    #[tokio::test]
    async fn every_plugin_says_its_own_name() {
        let all: Vec<&str> = ORDER.iter().filter(|(_, default)| *default != Idle).map(|(name, _)| *name).collect();
        let configured = |name: &&&str| !["ImagePolicyWebhook", "EventRateLimit"].contains(*name);
        let names: Vec<&str> = all.iter().filter(configured).copied().collect();
        // Policies run within the webhooks' plugin.
        let expected: Vec<&str> = names.iter().filter(|name| **name != MUTATING_POLICY).copied().collect();
        assert_eq!(built(&options(&names, &[])).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn flags_switch_plugins() {
        let standard = built(&AdmissionOptions::default()).await.unwrap();
        let on = |name| standard.contains(&name);
        assert!(on("NamespaceLifecycle") && on("ResourceQuota") && on("NodeRestriction") && on("PodResizeValidator"));
        assert!(!on("AlwaysPullImages") && !on("AlwaysAdmit") && !on("AlwaysDeny"));
        let flags = options(&["AlwaysPullImages", "AlwaysDeny", "LimitRanger"], &["PodSecurity", "Priority"]);
        let changed = built(&flags).await.unwrap();
        let place = |name: &str| changed.iter().position(|other| *other == name);
        assert!(place("PodSecurity").is_none() && place("Priority").is_none() && place("NodeRestriction").is_some());
        assert!(place("TaintNodesByCondition") < place("AlwaysPullImages"), "the flag's order does not count");
        assert_eq!(changed.last(), Some(&"AlwaysDeny"));
        let policies = built(&options(&[], &[MUTATING_WEBHOOK])).await.unwrap();
        assert!(policies.contains(&MUTATING_POLICY), "{policies:?}");
        let idle = built(&options(&["JobValidation"], &["PodGroupProtection"])).await.unwrap();
        assert_eq!(idle, standard, "on and off are the same");
    }

    #[tokio::test]
    async fn a_container_that_a_policy_adds_gets_the_accounts_token_too() {
        const GROUP: &str = "admissionregistration.k8s.io";
        let expression = "[JSONPatch{op: 'add', path: '/spec/containers/-', value: {'name': 'added', 'image': 'i'}}]";
        let policy = json!({"metadata": {"name": "adds"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}]}});
        let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "adds"}});
        let cluster = Fixed::with(&[
            ("", "serviceaccounts", json!({"metadata": {"name": "default", "namespace": "n"}})),
            (GROUP, "mutatingadmissionpolicies", policy),
            (GROUP, "mutatingadmissionpolicybindings", binding),
        ]);
        let before: Vec<Arc<dyn Admission>> = vec![Arc::new(service_account::ServiceAccount)];
        let mutating = webhook::Mutating {
            policies: Some(Manifests::default()),
            webhooks: None,
            credentials: webhook::credentials::Credentials::default(),
            before: before.clone(),
        };
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [{"name": "own", "image": "i"}]}});
        let mut request = Request::create("", "pods", pod);
        request.admit(&*before[0], &cluster).await.unwrap();
        request.admit(&mutating, &cluster).await.unwrap();
        let spec = &request.object["spec"];
        assert_eq!(spec["containers"][1]["name"], "added", "{spec:#}");
        assert_eq!(spec["containers"][1]["volumeMounts"], spec["containers"][0]["volumeMounts"]);
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn mistakes_in_flags_are_named() {
        for (enable, disable, expected) in [
            (
                &["Nope"][..],
                &[][..],
                "enable-admission-plugins plugin \"Nope\" is unknown; known plugins are AlwaysAdmit, AlwaysDeny, AlwaysPullImages, ",
            ),
            (&[], &["nope"], "disable-admission-plugins plugin \"nope\" is unknown; known plugins are "),
            (
                &["PodSecurity", "AlwaysAdmit"],
                &["PodSecurity", "AlwaysAdmit"],
                "[AlwaysAdmit PodSecurity] in enable-admission-plugins and disable-admission-plugins overlapped",
            ),
            (&["EventRateLimit"], &[], "EventRateLimit: it needs a configuration"),
        ] {
            let error = built(&options(enable, disable)).await.unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
