//! What the API says of this node's drivers: its CSINode, and labels and an annotation of its Node
//! (`pkg/volume/csi/nodeinfomanager`).

use std::collections::BTreeMap;

use component::brief;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use proto::csi::v1::NodeGetInfoResponse;
use serde_json::json;

/// Driver names and what the drivers call the node, as JSON.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// Volume types of Kubernetes' past that are left to CSI drivers.
const MIGRATED: (&str, &str) = (
    "storage.alpha.kubernetes.io/migrated-plugins",
    "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,kubernetes.io/cinder,kubernetes.io/gce-pd,kubernetes.io/portworx-volume,kubernetes.io/vsphere-volume",
);
/// How often a write that met another one is tried.
const TRIES: usize = 4;

/// Writes one driver's information at a time.
pub struct NodeInfo {
    client: Client,
    node: String,
    writing: tokio::sync::Mutex<()>,
}

type Ids = BTreeMap<String, String>;

impl NodeInfo {
    pub fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned(), writing: tokio::sync::Mutex::default() }
    }

    /// The node's CSINode, made if it is missing.
    pub async fn csi_node(&self) -> Result<CSINode, kube::Error> {
        let api: Api<CSINode> = Api::all(self.client.clone());
        if let Some(found) = api.get_opt(&self.node).await? {
            return Ok(found);
        }
        let node = Api::<Node>::all(self.client.clone()).get(&self.node).await?;
        match api.create(&PostParams::default(), &empty(&node)).await {
            Err(kube::Error::Api(answer)) if answer.code == 409 => api.get(&self.node).await,
            made => made,
        }
    }

    pub async fn install(&self, driver: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
        if info.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".to_owned());
        }
        let _writing = self.writing.lock().await;
        let topology: BTreeMap<String, String> =
            info.accessible_topology.iter().flat_map(|topology| topology.segments.clone()).collect();
        let failed = |what: &str, why: String| format!("error updating {what} object with CSI driver node info: {why}");
        self.change_ids(&topology, |ids| {
            ids.insert(driver.to_owned(), info.node_id.clone());
        })
        .await
        .map_err(|error| failed("Node", error))?;
        let entry = entry(driver, info, &topology);
        self.change_csi_node(|drivers| install(drivers, entry.clone())).await.map_err(|error| failed("CSINode", error))
    }

    /// Topology labels stay: other drivers and volumes may count on them.
    pub async fn uninstall(&self, driver: &str) -> Result<(), String> {
        let _writing = self.writing.lock().await;
        let removed = self.change_csi_node(|drivers| {
            let before = drivers.len();
            drivers.retain(|known| known.name != driver);
            drivers.len() != before
        });
        removed.await.map_err(|error| format!("error uninstalling CSI driver from CSINode object {error}"))?;
        self.change_ids(&BTreeMap::new(), |ids| {
            ids.remove(driver);
        })
        .await
        .map_err(|error| format!("error removing CSI driver node info from Node object {error}"))
    }

    async fn change_ids(&self, topology: &BTreeMap<String, String>, change: impl Fn(&mut Ids)) -> Result<(), String> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = api.get(&self.node).await.map_err(|error| brief(&error))?;
        if let Some(patch) = node_patch(&node, topology, change)? {
            api.patch(&self.node, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map_err(|error| brief(&error))?;
        }
        Ok(())
    }

    /// `change` says whether it changed anything.
    async fn change_csi_node(&self, change: impl Fn(&mut Vec<CSINodeDriver>) -> bool) -> Result<(), String> {
        let api: Api<CSINode> = Api::all(self.client.clone());
        let mut tries = 0;
        loop {
            let mut object = self.csi_node().await.map_err(|error| brief(&error))?;
            if !change(&mut object.spec.drivers) {
                return Ok(());
            }
            tries += 1;
            match api.replace(&self.node, &PostParams::default(), &object).await {
                Err(kube::Error::Api(answer)) if answer.code == 409 && tries < TRIES => {}
                outcome => return outcome.map(drop).map_err(|error| brief(&error)),
            }
        }
    }
}

fn empty(node: &Node) -> CSINode {
    let name = node.metadata.name.clone().unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..Default::default()
    };
    CSINode {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some([(MIGRATED.0.to_owned(), MIGRATED.1.to_owned())].into()),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: CSINodeSpec { drivers: Vec::new() },
        ..Default::default()
    }
}

fn entry(driver: &str, info: &NodeGetInfoResponse, topology: &BTreeMap<String, String>) -> CSINodeDriver {
    let count = i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX);
    CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id.clone(),
        // none or less: no limit
        allocatable: (count > 0).then_some(VolumeNodeResources { count: Some(count) }),
        topology_keys: (!topology.is_empty()).then(|| topology.keys().cloned().collect()),
    }
}

fn install(drivers: &mut Vec<CSINodeDriver>, entry: CSINodeDriver) -> bool {
    if drivers.contains(&entry) {
        return false;
    }
    drivers.retain(|known| known.name != entry.name);
    drivers.push(entry);
    true
}

/// What the Node lacks; none if it lacks nothing.
fn node_patch(
    node: &Node,
    topology: &BTreeMap<String, String>,
    change: impl Fn(&mut Ids),
) -> Result<Option<serde_json::Value>, String> {
    let annotation = node.metadata.annotations.as_ref().and_then(|all| all.get(NODE_IDS));
    let known: Ids = match annotation.filter(|text| !text.is_empty()) {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| format!("failed to parse node's {NODE_IDS:?} annotation value ({text:?}) err={error}"))?,
        None => Ids::new(),
    };
    let mut ids = known.clone();
    change(&mut ids);
    let labels = node.metadata.labels.as_ref();
    for (key, value) in topology {
        if let Some(other) = labels.and_then(|labels| labels.get(key)).filter(|other| *other != value) {
            return Err(format!(
                "detected topology value collision: driver reported {key:?}:{value:?} but existing label is {key:?}:{other:?}"
            ));
        }
    }
    let labelled = topology.keys().all(|key| labels.is_some_and(|labels| labels.contains_key(key)));
    if ids == known && labelled {
        return Ok(None);
    }
    let text = (!ids.is_empty()).then(|| json!(ids).to_string());
    // Nobody may have written the annotation in between.
    let version = node.metadata.resource_version.clone();
    Ok(Some(json!({"metadata": {"resourceVersion": version, "annotations": {NODE_IDS: text}, "labels": topology}})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(node_id: &str, limit: i64) -> NodeGetInfoResponse {
        NodeGetInfoResponse { node_id: node_id.to_owned(), max_volumes_per_node: limit, ..Default::default() }
    }

    #[test]
    fn drivers_of_a_csi_node() {
        let topology = BTreeMap::from([("zone".to_owned(), "z".to_owned())]);
        let mut drivers = Vec::new();
        assert!(install(&mut drivers, entry("d", &info("id", 0), &topology)));
        assert!(!install(&mut drivers, entry("d", &info("id", 0), &topology)), "nothing new");
        assert!(install(&mut drivers, entry("d", &info("id", i64::MAX), &BTreeMap::new())));
        assert_eq!(drivers.len(), 1);
        let count = drivers[0].allocatable.as_ref().and_then(|allocatable| allocatable.count);
        assert_eq!((count, drivers[0].topology_keys.clone()), (Some(i32::MAX), None));
    }

    #[test]
    fn the_node_gets_ids_and_labels() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "resourceVersion": "5",
            "labels": {"zone": "z"}, "annotations": {NODE_IDS: "{\"a\":\"1\"}"}}}))
        .unwrap();
        let zone = |value: &str| BTreeMap::from([("zone".to_owned(), value.to_owned())]);
        let add = |ids: &mut Ids| drop(ids.insert("b".to_owned(), "2".to_owned()));
        let patch = node_patch(&node, &zone("z"), add).unwrap().unwrap();
        assert_eq!(patch["metadata"]["annotations"][NODE_IDS], "{\"a\":\"1\",\"b\":\"2\"}");
        assert_eq!(patch["metadata"]["resourceVersion"], "5");
        let same = |ids: &mut Ids| drop(ids.insert("a".to_owned(), "1".to_owned()));
        assert_eq!(node_patch(&node, &zone("z"), same), Ok(None));
        let last = |ids: &mut Ids| drop(ids.remove("a"));
        let patch = node_patch(&node, &BTreeMap::new(), last).unwrap().unwrap();
        assert!(patch["metadata"]["annotations"][NODE_IDS].is_null());
        assert_eq!(
            node_patch(&node, &zone("y"), add).unwrap_err(),
            "detected topology value collision: driver reported \"zone\":\"y\" but existing label is \"zone\":\"z\""
        );
    }
}
