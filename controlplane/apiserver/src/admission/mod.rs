//! The built-in admission plugins, each with Kubernetes' name and behaviour.

use std::sync::Arc;

use crate::admit::Admission;

/// In the order they run.
pub fn all() -> Vec<Arc<dyn Admission>> {
    Vec::new()
}
