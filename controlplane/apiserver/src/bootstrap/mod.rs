//! What every cluster has from its first second: namespaces, roles, priority classes.
//!
//! [`policy`] is the RBAC table.

pub mod policy;

use std::sync::Arc;

use serde_json::json;

use crate::admit::Cluster;
use crate::error::Result;
use crate::server::Api;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing.
pub async fn start(api: &Arc<Api>) -> Result<()> {
    for name in NAMESPACES {
        ensure(api, "", "namespaces", json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        })).await?;
    }
    // All at once, so that the store commits them together.
    let creates = policy::objects().into_iter().map(|object| {
        let plural = format!("{}s", object["kind"].as_str().unwrap_or_default().to_lowercase());
        async move { ensure(api, "rbac.authorization.k8s.io", &plural, object).await }
    });
    futures::future::try_join_all(creates).await?;
    Ok(())
}

/// Creates an object unless it exists.
pub async fn ensure(api: &Api, group: &str, plural: &str, object: serde_json::Value) -> Result<()> {
    match api.create(group, plural, object).await {
        Err(error) if error.is_already_exists() => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}
