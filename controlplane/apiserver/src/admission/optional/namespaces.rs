//! `NamespaceAutoProvision` makes the namespace that something is created in; `NamespaceExists`
//! insists on it for every write.

use async_trait::async_trait;
use serde_json::json;

use super::namespace_of;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;

pub struct NamespaceAutoProvision;

#[async_trait]
impl Admission for NamespaceAutoProvision {
    fn name(&self) -> &'static str {
        "NamespaceAutoProvision"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create && in_namespace(attributes)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        // Nothing is made for a question.
        if attributes.dry_run || cluster.get("", "namespaces", "", attributes.namespace).await?.is_some() {
            return Ok(());
        }
        // As a client would make it: what may not be a namespace is refused, others have their say, and
        // it is written down whence it came.
        match cluster.submit("", "namespaces", json!({"metadata": {"name": attributes.namespace}})).await {
            Err(error) if !error.is_already_exists() => Err(attributes.forbid(error.message())),
            _ => Ok(()),
        }
    }
}

pub struct NamespaceExists;

#[async_trait]
impl Admission for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation != Operation::Connect && in_namespace(attributes)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        namespace_of(attributes, cluster).await.map(drop)
    }
}

fn in_namespace(attributes: &Attributes<'_>) -> bool {
    !attributes.namespace.is_empty() && !attributes.is("", "namespaces")
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::{Fixed, Request};
    use super::*;
    use crate::kinds::value::name;

    fn cluster() -> Fixed {
        Fixed::with(&[("", "namespaces", json!({"metadata": {"name": "there"}}))])
    }

    fn pod(operation: Operation, namespace: &str) -> Request {
        Request::new("", "pods", operation, json!({"metadata": {"name": "p", "namespace": namespace}}))
    }

    #[tokio::test]
    async fn made_when_something_is_created() {
        let cluster = cluster();
        for (operation, namespace, expected) in [
            (Operation::Create, "there", 1),
            (Operation::Update, "other", 1),
            (Operation::Create, "new", 2),
            (Operation::Create, "new", 2),
        ] {
            pod(operation, namespace).admit(&NamespaceAutoProvision, &cluster).await.unwrap();
            let namespaces = cluster.list("", "namespaces", "").await.unwrap();
            assert_eq!(namespaces.len(), expected, "{operation:?} in {namespace}");
        }
        let made = cluster.list("", "namespaces", "").await.unwrap()[1].clone();
        assert_eq!(name(&made), "new");
    }

    #[tokio::test]
    async fn insisted_on() {
        for operation in [Operation::Create, Operation::Update, Operation::Delete] {
            assert_eq!(pod(operation, "there").admit(&NamespaceExists, &cluster()).await, Ok(()));
            assert_eq!(
                pod(operation, "gone").admit(&NamespaceExists, &cluster()).await,
                Err("namespaces \"gone\" not found".to_owned())
            );
        }
        assert_eq!(pod(Operation::Connect, "gone").admit(&NamespaceExists, &cluster()).await, Ok(()));
    }
}
