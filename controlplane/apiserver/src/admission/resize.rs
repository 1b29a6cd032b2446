//! `PodResizeValidator`: a running pod grows no larger than its node, and only on Linux.

use api::quantity::Quantity;
use api::resources::{Side, of_pod};
use async_trait::async_trait;
use serde_json::Value;

use super::changes_generation;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::core::pod::quantity;
use crate::kinds::value::{at, label, text};

const OS: &str = "kubernetes.io/os";

pub struct PodResizeValidator;

#[async_trait]
impl Admission for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", "pods")
            && attributes.subresource == "resize"
            && attributes.operation == Operation::Update
            && !text(&attributes.object, "spec.nodeName").is_empty()
            && changes_generation(attributes)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let wanted = text(&attributes.object, "spec.nodeName");
        let Some(node) = cluster.get("", "nodes", "", wanted).await? else {
            return Err(attributes.forbid(format!("node {wanted:?} not found")));
        };
        if let Some(why) = too_large(&attributes.object, &node)? {
            return Err(attributes.forbid(why));
        }
        match label(&node, OS).unwrap_or_default() {
            "linux" => Ok(()),
            other => {
                Err(attributes
                    .forbid(format!("pod resize is only supported on linux nodes, node {wanted:?} is {other:?}")))
            }
        }
    }
}

fn too_large(pod: &Value, node: &Value) -> Result<Option<String>> {
    // Validation has let it through: what cannot be read is this server's fault, and not let through.
    let spec = serde_json::from_value(at(pod, "spec").clone());
    let spec = spec.map_err(|error| ApiError::internal(format!("reading the spec of the resized pod: {error}")))?;
    let asked = of_pod(&spec, Side::Requests);
    let over = ["cpu", "memory"].into_iter().filter_map(|name| {
        let count = |amount: &Quantity| if name == "cpu" { amount.milli() } else { amount.units() };
        let there = quantity(&node["status"]["allocatable"][name]).as_ref().map_or(0, count);
        let asked = asked.get(name).map_or(0, count);
        (asked > there).then(|| format!("{name}, requested: {asked}, allocatable: {there}"))
    });
    let over: Vec<String> = over.collect();
    Ok((!over.is_empty()).then(|| format!("node didn't have enough allocatable resources: {}", over.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    /// Upstream's rows (`TestResizeAdmission`).
    #[tokio::test]
    async fn resizes_fit_their_node() {
        let node = |name: &str, os: &str| json!({"metadata": {"name": name, "labels": {OS: os}}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi"}}});
        let cluster = Fixed::with(&[("", "nodes", node("l", "linux")), ("", "nodes", node("w", "windows"))]);
        const SHORT: &str = "node didn't have enough allocatable resources: ";
        let pod = |node: &str, generation: i64, cpu: &str, memory: &str| {
            json!({"metadata": {"name": "p", "generation": generation}, "spec": {"nodeName": node, "containers": [
                {"name": "main", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
        };
        for (subresource, node, generation, cpu, memory, refused) in [
            ("resize", "l", 2, "2", "1Gi", None),
            ("resize", "l", 2, "1", "2Gi", None),
            ("", "l", 2, "10", "1Gi", None),
            ("resize", "l", 1, "10", "1Gi", None),
            ("resize", "", 2, "10", "1Gi", None),
            ("resize", "l", 2, "10", "1Gi", Some(format!("{SHORT}cpu, requested: 10000, allocatable: 4000"))),
            (
                "resize",
                "l",
                2,
                "1",
                "10Gi",
                Some(format!("{SHORT}memory, requested: 10737418240, allocatable: 8589934592")),
            ),
            (
                "resize",
                "l",
                2,
                "10",
                "10Gi",
                Some(format!(
                    "{SHORT}cpu, requested: 10000, allocatable: 4000; memory, requested: 10737418240, allocatable: 8589934592"
                )),
            ),
            (
                "resize",
                "w",
                2,
                "2",
                "1Gi",
                Some("pod resize is only supported on linux nodes, node \"w\" is \"windows\"".to_owned()),
            ),
            ("resize", "gone", 2, "2", "1Gi", Some("node \"gone\" not found".to_owned())),
        ] {
            let mut request = Request::new("", "pods", Operation::Update, pod(node, generation, cpu, memory));
            request.old = Some(pod(node, 1, "1", "1Gi"));
            request.subresource = subresource;
            let expected = refused.map_or(Ok(()), |why| Err(format!("pods \"p\" is forbidden: {why}")));
            assert_eq!(request.admit(&PodResizeValidator, &cluster).await, expected, "{subresource} {node} {cpu}");
        }
    }

    #[test]
    fn a_pod_that_cannot_be_read_is_not_let_through() {
        let pod = json!({"spec": {"containers": [{"name": 1}]}});
        let error = too_large(&pod, &json!({})).unwrap_err();
        assert!(error.message().contains("reading the spec of the resized pod: "), "{}", error.message());
    }
}
