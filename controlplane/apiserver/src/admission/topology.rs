//! `PodTopologyLabels`: a binding carries the node's zone and region, so that the pod gets them as
//! labels.

use async_trait::async_trait;

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
        attributes.operation == Operation::Create && attributes.is("", "pods") && attributes.subresource == "binding"
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let node = text(&attributes.object, "target.name");
        let kind = text(&attributes.object, "target.kind");
        if !(kind.is_empty() || kind == "Node") {
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
