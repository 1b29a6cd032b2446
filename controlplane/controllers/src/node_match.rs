//! Pure: whether a node satisfies a pod's node selector and required node affinity.

use api::selector::{Requirement, Selector};
use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, PodSpec};

use crate::meta;

pub fn fits(spec: &PodSpec, node: &Node) -> bool {
    let labels = meta::labels(&node.metadata);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| matches(selector, node))
}

/// Any term will do; within a term everything must hold. An empty term matches nothing.
pub fn matches(selector: &NodeSelector, node: &Node) -> bool {
    let labels = meta::labels(&node.metadata);
    selector.node_selector_terms.iter().any(|term| {
        let (expressions, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
        let (expressions, fields) = (expressions.unwrap_or_default(), fields.unwrap_or_default());
        let by_label = || parse(expressions).is_some_and(|selector| selector.matches(labels));
        let field = |key: &str| (key == "metadata.name").then_some(node.metadata.name.as_deref()).flatten();
        let by_field = || parse(fields).is_some_and(|selector| selector.matches_with(field));
        !(expressions.is_empty() && fields.is_empty()) && by_label() && by_field()
    })
}

/// None when a requirement is not valid: it matches nothing.
fn parse(requirements: &[NodeSelectorRequirement]) -> Option<Selector> {
    let mut selector = Selector::everything();
    for requirement in requirements {
        let (key, values) = (requirement.key.clone(), requirement.values.clone().unwrap_or_default());
        let number = || values.first().and_then(|value| value.parse().ok());
        selector.requirements.push(match requirement.operator.as_str() {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::DoesNotExist(key),
            "Gt" => Requirement::GreaterThan(key, number()?),
            "Lt" => Requirement::LessThan(key, number()?),
            _ => return None,
        });
    }
    Some(selector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeSelectorTerm;

    #[test]
    fn terms_are_alternatives_and_requirements_are_not() {
        let mut node = Node::default();
        node.metadata.name = Some("n1".into());
        node.metadata.labels =
            Some([("disk".to_owned(), "ssd".to_owned()), ("cores".to_owned(), "8".to_owned())].into());
        let requirement = |key: &str, operator: &str, values: &[&str]| NodeSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        };
        let term = |labels: Vec<NodeSelectorRequirement>, fields: Vec<NodeSelectorRequirement>| NodeSelectorTerm {
            match_expressions: Some(labels),
            match_fields: Some(fields),
        };
        for (terms, expected) in [
            (vec![term(vec![requirement("disk", "In", &["ssd"])], vec![])], true),
            (vec![term(vec![requirement("disk", "In", &["ssd"]), requirement("cores", "Gt", &["8"])], vec![])], false),
            (
                vec![term(vec![requirement("cores", "Lt", &["9"])], vec![requirement("metadata.name", "In", &["n1"])])],
                true,
            ),
            (vec![term(vec![], vec![requirement("metadata.name", "In", &["n2"])])], false),
            (vec![term(vec![], vec![]), term(vec![requirement("disk", "Exists", &[])], vec![])], true),
            (vec![term(vec![], vec![])], false),
        ] {
            assert_eq!(matches(&NodeSelector { node_selector_terms: terms.clone() }, &node), expected, "{terms:?}");
        }
    }
}
