//! Pure: what a namespace being deleted says about itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NamespaceCondition;

use super::Left;
use crate::meta;

#[derive(Debug, Default)]
pub struct Progress {
    pub undiscovered: Vec<String>,
    pub failures: Vec<String>,
    pub remaining: BTreeMap<String, usize>,
    pub finalizers: BTreeMap<String, usize>,
    pub grace: i64,
}

impl Progress {
    pub fn add(&mut self, resource: String, left: Left) {
        self.remaining.insert(resource, left.count);
        for (finalizer, count) in left.finalizers {
            *self.finalizers.entry(finalizer).or_insert(0) += count;
        }
        self.grace = self.grace.max(left.grace);
    }

    pub fn is_done(&self) -> bool {
        self.undiscovered.is_empty() && self.failures.is_empty() && self.remaining.is_empty()
    }
}

/// Type, then reason and message when well, then reason when not.
const CONDITIONS: [(&str, &str, &str, &str); 5] = [
    (
        "NamespaceDeletionDiscoveryFailure",
        "ResourcesDiscovered",
        "All resources successfully discovered",
        "DiscoveryFailed",
    ),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
        "GroupVersionParsingFailed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
        "ContentDeletionFailed",
    ),
    ("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed", "SomeResourcesRemain"),
    (
        "NamespaceFinalizersRemaining",
        "ContentHasNoFinalizers",
        "All content-preserving finalizers finished",
        "SomeFinalizersRemain",
    ),
];

pub fn updated(
    mut conditions: Vec<NamespaceCondition>,
    progress: &Progress,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let problems = [
        (!progress.undiscovered.is_empty()).then(|| {
            format!(
                "Discovery failed for some groups, {} failing: {}",
                progress.undiscovered.len(),
                progress.undiscovered.join(", ")
            )
        }),
        None,
        (!progress.failures.is_empty()).then(|| {
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                progress.failures.len(),
                progress.failures.join(", ")
            )
        }),
        remaining(&progress.remaining),
        finalizers(&progress.finalizers),
    ];
    for ((name, well, all_well, badly), problem) in CONDITIONS.into_iter().zip(problems) {
        let status = if problem.is_some() { "True" } else { "False" };
        let reason = if problem.is_some() { badly } else { well };
        let message = problem.unwrap_or_else(|| all_well.to_owned());
        set(&mut conditions, name, status, reason, message, now);
    }
    conditions
}

fn remaining(resources: &BTreeMap<String, usize>) -> Option<String> {
    let list: Vec<_> =
        resources.iter().map(|(resource, count)| format!("{resource}. has {count} resource instances")).collect();
    (!list.is_empty()).then(|| format!("Some resources are remaining: {}", list.join(", ")))
}

fn finalizers(finalizers: &BTreeMap<String, usize>) -> Option<String> {
    let list: Vec<_> = finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    (!list.is_empty()).then(|| format!("Some content in the namespace has finalizers remaining: {}", list.join(", ")))
}

fn set(
    conditions: &mut Vec<NamespaceCondition>,
    name: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let next = NamespaceCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: meta::stamp(now),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == name) {
        None => conditions.push(next),
        Some(known) if known.status == next.status && known.reason == next.reason && known.message == next.message => {}
        Some(known) => *known = next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;

    #[test]
    fn what_remains_is_said_and_unchanged_conditions_stay() {
        let mut progress = Progress::default();
        progress
            .add("pods".into(), Left { count: 2, finalizers: [("example.com/keep".to_owned(), 1)].into(), grace: 30 });
        let conditions = updated(Vec::new(), &progress, at(1));
        let find =
            |name: &str| conditions.iter().find(|condition| condition.type_ == name).cloned().unwrap_or_default();
        let content = find("NamespaceContentRemaining");
        assert_eq!(content.message.as_deref(), Some("Some resources are remaining: pods. has 2 resource instances"));
        let finalizers = find("NamespaceFinalizersRemaining").message.unwrap_or_default();
        assert!(finalizers.ends_with("example.com/keep in 1 resource instances"), "{finalizers}");
        assert_eq!(find("NamespaceDeletionContentFailure").status, "False");
        assert_eq!(updated(conditions.clone(), &progress, at(9)), conditions);
        assert!(Progress::default().is_done());
    }
}
