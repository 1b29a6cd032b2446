//! `PodTopologyLabels`: a pod has its node's zone and region as labels: those of a binding, or of a
//! pod that names its node from the start.

use async_trait::async_trait;

use super::creates;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::value::{ensure_map, label, text};

const COPIED: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub struct PodTopologyLabels;

#[async_trait]
impl Admission for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        creates(attributes, "", "pods") || is_binding(attributes)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let node = if !is_binding(attributes) {
            text(&attributes.object, "spec.nodeName")
        } else if text(&attributes.object, "target.kind") == "Node" {
            text(&attributes.object, "target.name")
        } else {
            ""
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = cluster.get("", "nodes", "", node).await? else { return Ok(()) };
        for key in COPIED {
            if let Some(value) = label(&node, key) {
                ensure_map(&mut attributes.object, "metadata.labels").insert(key.to_owned(), value.into());
            }
        }
        Ok(())
    }
}

fn is_binding(attributes: &Attributes<'_>) -> bool {
    attributes.operation == Operation::Create && attributes.is("", "pods") && attributes.subresource == "binding"
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn bindings_and_placed_pods_take_the_nodes_topology() {
        let zone = |zone: &str| json!({"topology.kubernetes.io/zone": zone});
        let node = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z", "a": "b"}}});
        let cluster = Fixed::with(&[("", "nodes", node)]);
        let target = |kind: &str| json!({"metadata": {"name": "p"}, "target": {"kind": kind, "name": "n"}});
        for (subresource, object, expected) in [
            ("", json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}}), zone("z")),
            ("", json!({"metadata": {"name": "p"}, "spec": {"nodeName": "gone"}}), json!(null)),
            ("", json!({"metadata": {"name": "p"}, "spec": {}}), json!(null)),
            ("binding", target("Node"), zone("z")),
            ("binding", target("Other"), json!(null)),
        ] {
            let mut request = Request::create("", "pods", object);
            request.subresource = subresource;
            request.admit(&PodTopologyLabels, &cluster).await.unwrap();
            assert_eq!(request.object["metadata"]["labels"], expected);
        }
    }
}
