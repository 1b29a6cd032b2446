//! How long kubelets may keep Secrets and ConfigMaps cached, by the size of the cluster: the
//! annotation `node.alpha.kubernetes.io/ttl` in seconds.

use std::sync::Arc;

use component::{Outcome, WorkQueue};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, synced};
use crate::error::During;
use crate::meta;

const TTL: &str = "node.alpha.kubernetes.io/ttl";
/// Smallest and largest cluster of each step (they overlap, so that a cluster at an edge does not
/// change its mind with every node), and the seconds.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// The step for `nodes`, coming from `step`.
fn step(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

pub fn start(context: &Context) {
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("ttl-controller");
    let nodes = context.informers.of::<Node>();
    let current = Arc::new(Mutex::new(0));
    let (changed, all, shared) = (queue.clone(), nodes.clone(), current.clone());
    nodes.on_change(move |change| {
        if change.old.is_some() != change.new.is_some() {
            let mut current = shared.lock();
            let next = step(*current, all.len());
            if next != *current {
                *current = next;
                all.list().iter().for_each(|node| changed.add(node.name_any()));
            }
        }
        if change.new.is_some() {
            changed.add(change.object().name_any());
        }
    });
    let (cached, writer) = (nodes.clone(), controller.clone());
    controller.run(&queue, 1, synced!(nodes), move |name: String| {
        let (cached, writer, seconds) = (cached.clone(), writer.clone(), STEPS[*current.lock()].2.to_string());
        async move {
            let Some(node) = cached.get("", &name) else { return Ok(Outcome::Done) };
            if meta::annotation(&node.metadata, TTL) != Some(&seconds) {
                let patch = Patch::Merge(json!({"metadata": {"annotations": {TTL: seconds}}}));
                let patched = writer.cluster::<Node>().patch(&name, &PatchParams::default(), &patch).await;
                patched.unless_gone("annotating node", &name)?;
            }
            Ok(Outcome::Done)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        for (from, nodes, expected) in
            [(0, 2, 0), (0, 100, 0), (0, 101, 1), (1, 95, 1), (1, 89, 0), (0, 5000, 4), (4, 1, 0)]
        {
            assert_eq!(step(from, nodes), expected, "{nodes} nodes from step {from}");
        }
    }
}
