//! Built-in admission plugins, in Kubernetes' order (`pkg/kubeapiserver/options/plugins.go`).
//!
//! Layer: between the registry and the kinds' hooks; the contract is [`crate::admit::Admission`].
//! One plugin, one small file; what a plugin decides is a function of objects, tested without a
//! server where it does not ask the cluster. Webhooks and policies of the cluster's own run after
//! these and before [`quota`], which therefore is separate.

mod certificates;
mod classes;
mod limit_ranger;
mod mountable;
mod namespace;
mod node_restriction;
mod pod_security;
mod priority;
mod quota;
mod runtime_class;
mod service_account;
mod storage;
mod taints;
mod topology;

#[cfg(test)]
pub mod fake;

use std::sync::Arc;

use crate::admit::{Admission, Attributes, Operation};

/// Every built-in plugin in the order they run, but for the last.
pub fn before_webhooks() -> Vec<Arc<dyn Admission>> {
    vec![
        Arc::new(namespace::NamespaceLifecycle),
        Arc::new(limit_ranger::LimitRanger),
        Arc::new(service_account::ServiceAccount),
        Arc::new(node_restriction::NodeRestriction),
        Arc::new(taints::TaintNodesByCondition),
        Arc::new(pod_security::PodSecurity),
        Arc::new(priority::Priority),
        Arc::new(taints::DefaultTolerationSeconds),
        Arc::new(storage::DefaultStorageClass),
        Arc::new(storage::StorageObjectInUseProtection),
        Arc::new(storage::PersistentVolumeClaimResize),
        Arc::new(runtime_class::RuntimeClass),
        Arc::new(certificates::CertificateApproval),
        Arc::new(certificates::CertificateSigning),
        Arc::new(certificates::ClusterTrustBundleAttest),
        Arc::new(certificates::CertificateSubjectRestriction),
        Arc::new(classes::DefaultIngressClass),
        Arc::new(topology::PodTopologyLabels),
    ]
}

/// What counts usage: last, when nothing changes the object any more.
pub fn after_webhooks() -> Vec<Arc<dyn Admission>> {
    vec![Arc::new(quota::ResourceQuota::default())]
}

/// Every built-in plugin in the order they run.
pub fn all() -> Vec<Arc<dyn Admission>> {
    let mut plugins = before_webhooks();
    plugins.extend(after_webhooks());
    plugins
}

/// A create of the resource itself, not of a subresource.
fn creates(attributes: &Attributes<'_>, group: &str, plural: &str) -> bool {
    attributes.operation == Operation::Create && attributes.subresource.is_empty() && attributes.is(group, plural)
}

/// An update of the resource itself.
fn updates(attributes: &Attributes<'_>, group: &str, plural: &str) -> bool {
    attributes.operation == Operation::Update && attributes.subresource.is_empty() && attributes.is(group, plural)
}

/// Pods that the kubelet mirrors from static manifests.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

fn is_mirror(pod: &serde_json::Value) -> bool {
    crate::kinds::value::annotation(pod, MIRROR_ANNOTATION).is_some()
}
