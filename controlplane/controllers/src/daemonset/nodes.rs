//! Pure: which nodes a DaemonSet's pod suits, and the pod for one of them.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Toleration,
};

use crate::meta;
use crate::node_match;
use crate::podstate;
use crate::revisions::HASH_LABEL;
use crate::taints::{self, NO_EXECUTE, NO_SCHEDULE};

const NAME_FIELD: &str = "metadata.name";

/// Tolerations every daemon pod has.
fn tolerations(host_network: bool) -> Vec<Toleration> {
    let toleration = |key: &str, effect: &str| Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some(effect.to_owned()),
        ..Default::default()
    };
    let mut all = vec![
        toleration(taints::NOT_READY, NO_EXECUTE),
        toleration(taints::UNREACHABLE, NO_EXECUTE),
        toleration(taints::DISK_PRESSURE, NO_SCHEDULE),
        toleration(taints::MEMORY_PRESSURE, NO_SCHEDULE),
        toleration(taints::PID_PRESSURE, NO_SCHEDULE),
        toleration(taints::UNSCHEDULABLE, NO_SCHEDULE),
    ];
    if host_network {
        all.push(toleration(taints::NETWORK_UNAVAILABLE, NO_SCHEDULE));
    }
    all
}

/// The template of the set's pods, with what every daemon pod has.
pub fn template(set: &DaemonSet, hash: &str) -> PodTemplateSpec {
    let mut template = set.spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    if let Some(generation) = meta::annotation(&set.metadata, "deprecated.daemonset.template.generation") {
        labels.insert("pod-template-generation".to_owned(), generation.to_owned());
    }
    let spec = template.spec.get_or_insert_default();
    let own = spec.tolerations.get_or_insert_default();
    for toleration in tolerations(spec.host_network == Some(true)) {
        let same = |known: &Toleration| {
            known.key == toleration.key && known.effect == toleration.effect && known.operator == toleration.operator
        };
        if !own.iter().any(same) {
            own.push(toleration);
        }
    }
    template
}

/// Whether the node should get the pod, and whether one that is there may stay.
pub fn should_run(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let elsewhere =
        spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && Some(name) != node.metadata.name.as_deref());
    if elsewhere || !node_match::fits(spec, node) {
        return (false, false);
    }
    let tolerated = |effects: &[&str]| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        let mut relevant = taints.filter(|taint| effects.contains(&taint.effect.as_str()));
        relevant.all(|taint| spec.tolerations.iter().flatten().any(|toleration| taints::tolerates(toleration, taint)))
    };
    (tolerated(&[NO_SCHEDULE, NO_EXECUTE]), tolerated(&[NO_EXECUTE]))
}

fn name_requirement(node: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    }
}

/// Makes the scheduler place the pod on `node`: every required term also names it.
pub fn aim(pod: &mut Pod, node: &str) {
    let affinity = pod.spec.get_or_insert_default().affinity.get_or_insert_default();
    let required =
        &mut affinity.node_affinity.get_or_insert_default().required_during_scheduling_ignored_during_execution;
    let term = NodeSelectorTerm { match_fields: Some(vec![name_requirement(node)]), match_expressions: None };
    // the set's own terms were checked by `should_run`
    *required = Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node a pod is on, or asks for.
pub fn target(pod: &Pod) -> Option<String> {
    let name = podstate::node_name(pod);
    if !name.is_empty() {
        return Some(name.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.filter(|field| field.key == NAME_FIELD && field.operator == "In");
    named.filter_map(|field| field.values.as_ref()?.first().cloned()).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeSpec, Taint};

    #[test]
    fn taints_keep_new_pods_away_and_only_no_execute_drives_old_ones_out() {
        let node = |key: &str, effect: &str| Node {
            spec: Some(NodeSpec {
                taints: Some(vec![Taint { key: key.into(), effect: effect.into(), ..Default::default() }]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let spec = template(&DaemonSet::default(), "h").spec.unwrap_or_default();
        for (node, expected) in [
            (Node::default(), (true, true)),
            (node("team", NO_SCHEDULE), (false, true)),
            (node("team", NO_EXECUTE), (false, false)),
            (node(taints::UNREACHABLE, NO_EXECUTE), (true, true)),
            (node(taints::UNSCHEDULABLE, NO_SCHEDULE), (true, true)),
            (node(taints::NETWORK_UNAVAILABLE, NO_SCHEDULE), (false, true)),
        ] {
            assert_eq!(should_run(&spec, &node), expected, "{:?}", node.spec);
        }
        let mut selective = spec;
        selective.node_selector = Some([("disk".to_owned(), "ssd".to_owned())].into());
        assert_eq!(should_run(&selective, &Node::default()), (false, false));
    }

    #[test]
    fn a_pod_is_aimed_at_its_node() {
        let mut pod = Pod::default();
        assert_eq!(target(&pod), None);
        aim(&mut pod, "n1");
        assert_eq!(target(&pod).as_deref(), Some("n1"));
    }
}
