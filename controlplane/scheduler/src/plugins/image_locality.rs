//! ImageLocality: prefers nodes that have the pod's images, the more so the larger they are and
//! the more nodes have them (so that one node does not draw every pod of a rare image).

use std::collections::HashMap;

use crate::cluster::Snapshot;
use crate::framework::{CycleState, MAX_SCORE, Plugin, Point};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

const MIB: i64 = 1024 * 1024;
/// Less on a node than this does not count; more than [`MOST`] per container does not count more.
const LEAST: i64 = 23 * MIB;
const MOST: i64 = 1000 * MIB;

pub struct ImageLocality;

/// The share of all nodes that have each image of the pod.
struct Spread(HashMap<String, f64>);

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score]
    }

    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, _nodes: &[usize]) -> bool {
        let all = snapshot.nodes.len().max(1) as f64;
        let spread: HashMap<String, f64> = images(pod)
            .map(|image| {
                let having = snapshot.nodes.iter().filter(|node| node.images.contains_key(&image)).count();
                (image, having as f64 / all)
            })
            .filter(|(_, share)| *share > 0.0)
            .collect();
        let any = !spread.is_empty();
        state.put(Spread(spread));
        any
    }

    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Spread(spread)) = state.get::<Spread>() else { return 0 };
        let present = images(pod).filter_map(|image| {
            let size = *node.images.get(&image)? as f64;
            Some((size * spread.get(&image)?) as i64)
        });
        let containers = images(pod).count() as i64;
        scaled(present.sum(), containers)
    }
}

fn scaled(bytes: i64, containers: i64) -> i64 {
    let most = MOST * containers.max(1);
    MAX_SCORE * (bytes.clamp(LEAST, most) - LEAST) / (most - LEAST)
}

/// The image of each container, with a tag as nodes report them.
fn images(pod: &PodInfo) -> impl Iterator<Item = String> + '_ {
    let spec = pod.spec();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let containers = spec.into_iter().flat_map(|spec| &spec.containers);
    init.chain(containers).filter_map(|container| container.image.as_deref()).map(with_tag)
}

fn with_tag(image: &str) -> String {
    let after_slash = image.rfind('/').map_or(0, |slash| slash + 1);
    if image[after_slash..].contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn nodes_with_the_image_score_higher() {
        let having = node(
            "a",
            json!({"status": {"images": [
            {"names": ["nginx:latest", "docker.io/library/nginx:latest"], "sizeBytes": 600 * MIB}]}}),
        );
        let snapshot =
            Snapshot { nodes: Arc::new(vec![Arc::new(having), Arc::new(node("b", json!({})))]), ..Snapshot::default() };
        let pod = pod(json!({"containers": [{"name": "c", "image": "nginx"}]}));
        let mut state = CycleState::default();
        assert!(ImageLocality.pre_score(&mut state, &pod, &snapshot, &[0, 1]));
        let scores: Vec<i64> = snapshot.nodes.iter().map(|node| ImageLocality.score(&state, &pod, node)).collect();
        assert_eq!(scores, [28, 0], "300 MiB of 23 to 1000");
    }

    #[test]
    fn images_without_a_tag_mean_latest() {
        for (image, want) in [
            ("nginx", "nginx:latest"),
            ("host:5000/nginx", "host:5000/nginx:latest"),
            ("nginx:1.25", "nginx:1.25"),
            ("nginx@sha256:ab", "nginx@sha256:ab"),
        ] {
            assert_eq!(with_tag(image), want);
        }
    }
}
