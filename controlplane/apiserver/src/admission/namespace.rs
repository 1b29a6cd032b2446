//! `NamespaceLifecycle`: nothing is created in a namespace that does not exist or is going, and the
//! three namespaces of the system stay.

use async_trait::async_trait;

use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::value::{has, text};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

#[async_trait]
impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        if attributes.is("", "namespaces") {
            return attributes.operation == Operation::Delete;
        }
        // Reviews may be asked about namespaces that are not there.
        matches!(attributes.operation, Operation::Create | Operation::Update)
            && attributes.descriptor.namespaced
            && !attributes.namespace.is_empty()
            && !attributes.is("authorization.k8s.io", "localsubjectaccessreviews")
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        if attributes.operation == Operation::Delete {
            return if IMMORTAL.contains(&attributes.name) {
                Err(attributes.forbid("this namespace may not be deleted"))
            } else {
                Ok(())
            };
        }
        let wanted = attributes.namespace;
        let namespace = match cluster.get("", "namespaces", "", wanted).await? {
            Some(found) => found,
            // The cache may be a moment behind the client that made the namespace.
            None => match cluster.get_live("", "namespaces", "", wanted).await? {
                Some(found) => found,
                None => return Err(ApiError::not_found("", "namespaces", wanted)),
            },
        };
        let going = has(&namespace, "metadata.deletionTimestamp") || text(&namespace, "status.phase") == "Terminating";
        if going && attributes.operation == Operation::Create {
            let message = format!("namespace {wanted} is being terminated");
            return Err(attributes
                .forbid(format!("unable to create new content in namespace {wanted} because it is being terminated"))
                .with_cause("NamespaceTerminating", &message, "metadata.namespace"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn only_living_namespaces() {
        let cluster = Fixed::with(&[
            ("", "namespaces", json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}})),
            ("", "namespaces", json!({"metadata": {"name": "b"}, "status": {"phase": "Terminating"}})),
        ]);
        for (namespace, expected) in [
            ("a", Ok(())),
            (
                "b",
                Err(
                    "pods \"p\" is forbidden: unable to create new content in namespace b because it is being terminated",
                ),
            ),
            ("c", Err("namespaces \"c\" not found")),
        ] {
            let mut request = Request::create("", "pods", json!({"metadata": {"name": "p", "namespace": namespace}}));
            let outcome = request.admit(&NamespaceLifecycle, &cluster).await;
            assert_eq!(outcome, expected.map_err(str::to_owned), "{namespace}");
        }
        let mut request =
            Request::new("", "namespaces", Operation::Delete, json!({"metadata": {"name": "kube-system"}}));
        assert_eq!(
            request.admit(&NamespaceLifecycle, &cluster).await,
            Err("namespaces \"kube-system\" is forbidden: this namespace may not be deleted".to_owned())
        );
    }
}
