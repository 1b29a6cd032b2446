//! `LimitPodHardAntiAffinityTopology`: no pod keeps others from more than a node.

use async_trait::async_trait;

use super::changes_pod;
use crate::admit::{Admission, Attributes, Cluster};
use crate::error::Result;
use crate::kinds::value::{list, text};

const HOSTNAME: &str = "kubernetes.io/hostname";
const TERMS: &str = "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution";

pub struct LimitPodHardAntiAffinityTopology;

#[async_trait]
impl Admission for LimitPodHardAntiAffinityTopology {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        changes_pod(attributes)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        let keys = list(&attributes.object, TERMS).iter().map(|term| text(term, "topologyKey"));
        match { keys }.find(|key| *key != HOSTNAME) {
            Some(key) => Err(attributes.forbid(format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::{Fixed, Request};
    use super::*;
    use crate::admit::Operation;
    use serde_json::json;

    /// Upstream's rows (`TestInterPodAffinityAdmission`).
    #[tokio::test]
    async fn topology_keys() {
        let required = |keys: &[&str]| {
            let terms: Vec<_> = keys.iter().map(|key| json!({"topologyKey": key})).collect();
            json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}})
        };
        for (affinity, refused) in [
            (json!({}), None),
            (
                json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "podAffinityTerm": {"topologyKey": "az"}}]}}),
                None,
            ),
            (required(&[HOSTNAME]), None),
            (required(&[" zone "]), Some(" zone ")),
            (required(&[HOSTNAME, "topology.kubernetes.io/zone"]), Some("topology.kubernetes.io/zone")),
            (
                json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}),
                None,
            ),
        ] {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"affinity": affinity}});
            let expected = refused.map_or(Ok(()), |key| {
                Err(format!("pods \"p\" is forbidden: affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key kubernetes.io/hostname is allowed"))
            });
            let admit =
                async |mut request: Request| request.admit(&LimitPodHardAntiAffinityTopology, &Fixed::default()).await;
            assert_eq!(admit(Request::create("", "pods", pod.clone())).await, expected, "{affinity}");
            assert_eq!(admit(Request::new("", "pods", Operation::Update, pod.clone())).await, expected);
            let mut status = Request::new("", "pods", Operation::Update, pod);
            status.subresource = "status";
            assert_eq!(admit(status).await, Ok(()));
        }
    }
}
