//! `NodeDeclaredFeatureValidator`: a bound pod is not changed in ways that its node does not say it
//! can follow (`status.declaredFeatures`).
//!
//! Upstream: `plugin/pkg/admission/nodedeclaredfeatures` and
//! `k8s.io/component-helpers/nodedeclaredfeatures`. Features that are off by default in v1.37 are
//! left out: what would need them is refused by validation.

use api::quantity::Quantity;
use async_trait::async_trait;
use serde_json::Value;

use super::changes_generation;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::core::pod::quantity;
use crate::kinds::value::{at, list, text};

/// What a change may need of a node, sorted by name.
const FEATURES: [(&str, Needed); 2] = [
    ("GuaranteedQoSPodCPUResize", resizes_guaranteed_cpu),
    ("InPlacePodLevelResourcesVerticalScaling", resizes_pod_level),
];

/// Whether a pod that was the first and shall be the second needs it.
type Needed = fn(&Value, &Value) -> bool;

pub struct NodeDeclaredFeatureValidator;

#[async_trait]
impl Admission for NodeDeclaredFeatureValidator {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatureValidator"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", "pods")
            && matches!(attributes.subresource, "" | "resize")
            && attributes.operation == Operation::Update
            && !text(&attributes.object, "spec.nodeName").is_empty()
            && changes_generation(attributes)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let Some(old) = attributes.old else { return Ok(()) };
        let needed = FEATURES.iter().filter(|(_, needed)| needed(old, &attributes.object)).map(|(name, _)| *name);
        let mut missing: Vec<&str> = needed.collect();
        if missing.is_empty() {
            return Ok(());
        }
        let name = text(&attributes.object, "spec.nodeName");
        let Some(node) = cluster.get("", "nodes", "", name).await? else {
            return Err(attributes.forbid(format!("node {name:?} not found")));
        };
        let declared = list(&node, "status.declaredFeatures");
        missing.retain(|feature| declared.iter().all(|other| other != feature));
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(", ");
        Err(attributes
            .forbid(format!("pod update requires features {missing} which are not available on node {name:?}")))
    }
}

/// A pod with processors of its own gets others.
fn resizes_guaranteed_cpu(old: &Value, new: &Value) -> bool {
    // One that has no status yet may be of any class.
    if !matches!(text(old, "status.qosClass"), "" | "Guaranteed") {
        return false;
    }
    // Validation keeps the containers as they are but for their resources.
    let mut pairs = list(old, "spec.containers").iter().zip(list(new, "spec.containers"));
    let cpu = |container: &Value| quantity(at(container, "resources.requests.cpu")).unwrap_or(Quantity::ZERO);
    pairs.any(|(before, after)| cpu(before) != cpu(after))
}

fn resizes_pod_level(old: &Value, new: &Value) -> bool {
    let (old, new) = (at(old, "spec.resources"), at(new, "spec.resources"));
    let side = |resources: &Value, side: &str| {
        let amounts = at(resources, side).as_object().into_iter().flatten();
        amounts.map(|(name, amount)| (name.clone(), quantity(amount))).collect::<Vec<_>>()
    };
    let amounts = |resources: &Value| ["requests", "limits"].map(|name| side(resources, name));
    old.is_null() != new.is_null() || amounts(old) != amounts(new)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    fn pod(class: &str, generation: i64, cpu: &str, own: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "generation": generation}, "status": {"qosClass": class},
            "spec": {"nodeName": "able", "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        if !own.is_null() {
            pod["spec"]["resources"] = own;
        }
        pod
    }

    /// Upstream's rows (`TestNodeDeclaredFeatureValidator`, and of each feature `TestInferForUpdate`).
    #[tokio::test]
    async fn nodes_must_be_able_to_follow() {
        let node =
            |name: &str, features: Value| json!({"metadata": {"name": name}, "status": {"declaredFeatures": features}});
        let cluster = Fixed::with(&[
            (
                "",
                "nodes",
                node("able", json!(["GuaranteedQoSPodCPUResize", "InPlacePodLevelResourcesVerticalScaling"])),
            ),
            ("", "nodes", node("half", json!(["InPlacePodLevelResourcesVerticalScaling"]))),
            ("", "nodes", node("old", json!([]))),
        ]);
        let (none, own) = (Value::Null, |cpu: &str| json!({"requests": {"cpu": cpu}}));
        let guaranteed = |cpu: &str| pod("Guaranteed", 2, cpu, none.clone());
        let lacks = |features: &str, node: &str| {
            Err(format!(
                "pods \"p\" is forbidden: pod update requires features {features} which are not available on node \"{node}\""
            ))
        };
        const CPU: &str = "GuaranteedQoSPodCPUResize";
        const LEVEL: &str = "InPlacePodLevelResourcesVerticalScaling";
        for (subresource, node, new, expected) in [
            ("resize", "able", guaranteed("2"), Ok(())),
            ("resize", "half", guaranteed("2"), lacks(CPU, "half")),
            ("", "old", guaranteed("2"), lacks(CPU, "old")),
            ("status", "old", guaranteed("2"), Ok(())),
            ("resize", "old", guaranteed("1000m"), Ok(())),
            ("resize", "old", pod("Guaranteed", 1, "2", none.clone()), Ok(())),
            ("resize", "", guaranteed("2"), Ok(())),
            ("resize", "gone", guaranteed("2"), Err("pods \"p\" is forbidden: node \"gone\" not found".to_owned())),
            ("resize", "half", pod("Guaranteed", 2, "1", own("1")), Ok(())),
            ("resize", "old", pod("Guaranteed", 2, "1", own("1")), lacks(LEVEL, "old")),
            ("resize", "old", pod("Guaranteed", 2, "2", own("1")), lacks(&format!("{CPU}, {LEVEL}"), "old")),
        ] {
            let (mut new, mut old) = (new, pod("Guaranteed", 1, "1", none.clone()));
            (new["spec"]["nodeName"], old["spec"]["nodeName"]) = (node.into(), node.into());
            let mut request = Request::new("", "pods", Operation::Update, new);
            (request.old, request.subresource) = (Some(old), subresource);
            let outcome = request.admit(&NodeDeclaredFeatureValidator, &cluster).await;
            assert_eq!(outcome, expected, "{subresource} {node}");
        }
    }

    #[test]
    fn what_needs_which() {
        let none = || Value::Null;
        assert!(!resizes_guaranteed_cpu(&pod("Burstable", 1, "1", none()), &pod("Burstable", 2, "2", none())));
        assert!(resizes_guaranteed_cpu(&pod("", 1, "1", none()), &pod("", 2, "2", none())), "of no class yet");
        let own = |own: Value| pod("Guaranteed", 1, "1", own);
        for (old, new, needed) in [
            (none(), none(), false),
            (none(), json!({}), true),
            (json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "1000m"}}), false),
            (json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "2"}}), true),
            (json!({"limits": {"cpu": "1"}}), json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}), true),
        ] {
            assert_eq!(resizes_pod_level(&own(old.clone()), &own(new.clone())), needed, "{old} {new}");
        }
    }
}
