//! Plugins that run only if `--enable-admission-plugins` names them.

pub mod always;
pub mod anti_affinity;
pub mod event_rate;
pub mod extended_resources;
pub mod external_ips;
pub mod image_policy;
pub mod namespaces;
pub mod node_selector;
pub mod owners;
pub mod pull_images;
pub mod toleration_restriction;

use std::sync::Arc;

use serde_json::Value;

use crate::admit::{Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};

/// A create or update of pods themselves.
fn changes_pod(attributes: &Attributes<'_>) -> bool {
    attributes.is("", "pods")
        && attributes.subresource.is_empty()
        && matches!(attributes.operation, Operation::Create | Operation::Update)
}

/// The namespace of the request, which the cache may not have yet.
async fn namespace_of(attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Result<Arc<Value>> {
    let wanted = attributes.namespace;
    match cluster.get("", "namespaces", "", wanted).await? {
        Some(namespace) => Ok(namespace),
        None => cluster
            .get_live("", "namespaces", "", wanted)
            .await?
            .ok_or_else(|| ApiError::not_found("", "namespaces", wanted)),
    }
}
