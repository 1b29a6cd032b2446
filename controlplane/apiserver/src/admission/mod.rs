//! Built-in admission plugins, in Kubernetes' order (`pkg/kubeapiserver/options/plugins.go`).
//!
//! Layer: between the registry and the kinds' hooks; the contract is [`crate::admit::Admission`].
//! One plugin, one small file; what a plugin decides is a function of objects, tested without a
//! server where it does not ask the cluster. [`plugins`] says which of them run, in which order, the
//! cluster's own webhooks and policies among them; [`config`] reads their configurations, [`manifests`]
//! webhooks and policies from files.

mod certificates;
mod classes;
pub mod config;
mod declared_features;
mod limit_ranger;
pub mod manifests;
mod mountable;
mod namespace;
mod node_restriction;
mod optional;
mod plugins;
pub mod pod_security;
mod priority;
mod quota;
mod resize;
mod runtime_class;
mod service_account;
mod storage;
mod taints;
mod topology;

#[cfg(test)]
pub mod fake;

pub use plugins::{AdmissionOptions, build};

use crate::admit::{Attributes, Operation};

/// A create of the resource itself, not of a subresource.
fn creates(attributes: &Attributes<'_>, group: &str, plural: &str) -> bool {
    attributes.operation == Operation::Create && attributes.subresource.is_empty() && attributes.is(group, plural)
}

/// An update of the resource itself.
fn updates(attributes: &Attributes<'_>, group: &str, plural: &str) -> bool {
    attributes.operation == Operation::Update && attributes.subresource.is_empty() && attributes.is(group, plural)
}

/// Whether an update changes what is wished of the object: its generation counts that.
fn changes_generation(attributes: &Attributes<'_>) -> bool {
    let generation = |object: &serde_json::Value| crate::kinds::value::int(object, "metadata.generation");
    attributes.old.is_some_and(|old| generation(old) != generation(&attributes.object))
}

/// Pods that the kubelet mirrors from static manifests.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

fn is_mirror(pod: &serde_json::Value) -> bool {
    crate::kinds::value::annotation(pod, MIRROR_ANNOTATION).is_some()
}
