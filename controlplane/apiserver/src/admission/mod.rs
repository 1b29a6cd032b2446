//! Built-in admission plugins, in Kubernetes' order (`pkg/kubeapiserver/options/plugins.go`).
//!
//! Layer: between the registry and the kinds' hooks; the contract is [`crate::admit::Admission`].
//! One plugin, one small file.

use std::sync::Arc;

use crate::admit::Admission;

/// Every built-in plugin in the order they run.
pub fn all() -> Vec<Arc<dyn Admission>> {
    vec![]
}
