//! `nodeSelector` and node affinity, parsed; and tolerations against taints. Pure.

use api::selector::{Requirement, Selector};
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

/// What a pod wants of its node's labels and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeAffinity {
    pub selector: Selector,
    /// One of these must match; none: no such condition.
    pub required: Option<Vec<NodeTerm>>,
    pub preferred: Vec<(i64, NodeTerm)>,
}

/// All requirements of one term. A term without any matches no node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeTerm {
    labels: Selector,
    fields: Selector,
}

impl NodeAffinity {
    pub fn of(spec: &PodSpec) -> Self {
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        Self {
            selector: spec.node_selector.as_ref().map(Selector::from_map).unwrap_or_default(),
            required: required.map(|required| required.node_selector_terms.iter().map(NodeTerm::of).collect()),
            preferred: preferred
                .into_iter()
                .flatten()
                .map(|term| (i64::from(term.weight), NodeTerm::of(&term.preference)))
                .collect(),
        }
    }

    /// Whether the node may be used at all.
    pub fn allows(&self, node: &Node) -> bool {
        selects(&self.selector, node)
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(node)))
    }

    /// The only node names that can match, if every term pins one.
    pub fn pinned_names(&self) -> Option<Vec<&str>> {
        let terms = self.required.as_ref().filter(|terms| !terms.is_empty())?;
        terms.iter().map(|term| term.fields.exact("metadata.name")).collect()
    }
}

impl NodeTerm {
    pub fn of(term: &NodeSelectorTerm) -> Self {
        Self { labels: parse(term.match_expressions.as_ref()), fields: parse(term.match_fields.as_ref()) }
    }

    pub fn matches(&self, node: &Node) -> bool {
        if self.labels.is_everything() && self.fields.is_everything() {
            return false;
        }
        selects(&self.labels, node)
            && self.fields.matches_with(|field| node.metadata.name.as_deref().filter(|_| field == "metadata.name"))
    }
}

fn selects(selector: &Selector, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    selector.matches_with(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
}

fn parse(requirements: Option<&Vec<NodeSelectorRequirement>>) -> Selector {
    let mut selector = Selector::everything();
    for requirement in requirements.into_iter().flatten() {
        match parse_one(requirement) {
            Some(requirement) => selector.requirements.push(requirement),
            // The API server refuses such a term; one that came through matches no node.
            None => return Selector::nothing(),
        }
    }
    selector
}

fn parse_one(requirement: &NodeSelectorRequirement) -> Option<Requirement> {
    let key = requirement.key.clone();
    let values = requirement.values.clone().unwrap_or_default();
    let number = || values.first().and_then(|value| value.parse().ok());
    Some(match requirement.operator.as_str() {
        "In" => Requirement::In(key, values),
        "NotIn" => Requirement::NotIn(key, values),
        "Exists" => Requirement::Exists(key),
        "DoesNotExist" => Requirement::DoesNotExist(key),
        "Gt" => Requirement::GreaterThan(key, number()?),
        "Lt" => Requirement::LessThan(key, number()?),
        _ => return None,
    })
}

/// The first taint with one of `effects` that no toleration covers.
pub fn untolerated<'t>(taints: &'t [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'t Taint> {
    taints.iter().filter(|taint| effects.contains(&taint.effect.as_str())).find(|taint| !tolerated(taint, tolerations))
}

pub fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            !key.is_empty() && text(&toleration.value) == taint.value.clone().unwrap_or_default()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;

    #[test]
    fn required_terms_are_alternatives_and_their_requirements_are_not() {
        let here = node("n1", json!({"metadata": {"labels": {"zone": "a", "cores": "8"}}}));
        let cases = [
            (json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]), true),
            (json!([{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}]), false),
            (json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}]), true),
            (json!([{"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["4"]}]}]), false),
            (
                json!([{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]},
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
                true,
            ),
            (
                json!([{"matchExpressions": [{"key": "zone", "operator": "Exists"}, {"key": "gpu", "operator": "Exists"}]}]),
                false,
            ),
            (json!([{}]), false),
        ];
        for (terms, want) in cases {
            let pod = pod(json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}));
            assert_eq!(pod.node_affinity.allows(&here.node), want, "{terms}");
        }
    }

    #[test]
    fn tolerations() {
        let taint = Taint { key: "k".into(), value: Some("v".into()), effect: "NoSchedule".into(), time_added: None };
        for (toleration, want) in [
            (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true),
            (json!({"key": "k", "operator": "Equal", "value": "w"}), false),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
        ] {
            let toleration: Toleration = serde_json::from_value(toleration).unwrap();
            assert_eq!(tolerates(&toleration, &taint), want, "{toleration:?}");
        }
    }
}
