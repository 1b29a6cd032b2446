//! Pure: what a failed pod means to its Job, and when enough indexes have succeeded.

use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyRule, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::{self, Indexes};
use crate::meta;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Counts towards the backoff limit.
    Count,
    /// Made again without being counted.
    Ignore,
    /// Its index fails at once.
    FailIndex,
    /// The whole Job fails, with this message.
    FailJob(String),
}

/// The first rule that matches decides.
pub fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    let rules = policy.map(|policy| policy.rules.as_slice()).unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let Some(why) = matches(rule, pod, index) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(why),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod, index: usize) -> Option<String> {
    let shown = meta::display(&pod.metadata);
    let status = pod.status.as_ref()?;
    if let Some(codes) = &rule.on_exit_codes {
        let containers =
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        let wanted = containers.filter(|status| codes.container_name.as_ref().is_none_or(|name| *name == status.name));
        let mut failed = wanted.filter_map(|status| Some((&status.name, exit_code(status)?)));
        let (name, code) = failed.find(|(_, code)| codes.values.contains(code) == (codes.operator == "In"))?;
        let action = &rule.action;
        return Some(format!(
            "Container {name} for pod {shown} failed with exit code {code} matching {action} rule at index {index}"
        ));
    }
    let patterns = rule.on_pod_conditions.as_ref()?;
    let found = status.conditions.iter().flatten().find(|condition| {
        patterns.iter().any(|pattern| {
            pattern.type_ == condition.type_ && pattern.status.as_deref().unwrap_or("True") == condition.status
        })
    })?;
    let action = &rule.action;
    Some(format!("Pod {shown} has condition {} matching {action} rule at index {index}", found.type_))
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    let code = status.state.as_ref()?.terminated.as_ref()?.exit_code;
    (code != 0).then_some(code)
}

/// The number of the first success rule that `completed` satisfies.
pub fn succeeded(policy: Option<&SuccessPolicy>, completed: &Indexes) -> Option<usize> {
    let rules = policy.map(|policy| policy.rules.as_slice()).unwrap_or_default();
    rules.iter().position(|rule| {
        let asked = rule.succeeded_indexes.as_deref().map(indexes::parse);
        let have = match &asked {
            Some(asked) => asked.intersection(completed).count(),
            None => completed.len(),
        };
        match (rule.succeeded_count, &asked) {
            (Some(count), _) => have >= usize::try_from(count).unwrap_or(usize::MAX),
            (None, Some(asked)) => have == asked.len(),
            (None, None) => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::batch::v1::{PodFailurePolicyOnExitCodesRequirement, SuccessPolicyRule};
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, PodStatus};

    fn exited(code: i32) -> Pod {
        let terminated = ContainerStateTerminated { exit_code: code, ..Default::default() };
        let status = ContainerStatus {
            name: "main".into(),
            state: Some(ContainerState { terminated: Some(terminated), ..Default::default() }),
            ..Default::default()
        };
        let mut pod = Pod {
            status: Some(PodStatus { container_statuses: Some(vec![status]), ..Default::default() }),
            ..Default::default()
        };
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("default".into());
        pod
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let rule = |action: &str, operator: &str, values: &[i32]| PodFailurePolicyRule {
            action: action.into(),
            on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                container_name: None,
                operator: operator.into(),
                values: values.to_vec(),
            }),
            on_pod_conditions: None,
        };
        let policy = PodFailurePolicy { rules: vec![rule("Ignore", "In", &[1, 2]), rule("FailJob", "NotIn", &[3])] };
        assert_eq!(judge(Some(&policy), &exited(2)), Verdict::Ignore);
        assert_eq!(judge(Some(&policy), &exited(3)), Verdict::Count);
        let message = "Container main for pod default/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(judge(Some(&policy), &exited(42)), Verdict::FailJob(message.into()));
        assert_eq!(judge(None, &exited(42)), Verdict::Count);
    }

    #[test]
    fn success_rules_count_indexes() {
        let policy = SuccessPolicy {
            rules: vec![
                SuccessPolicyRule { succeeded_indexes: Some("0,2".into()), succeeded_count: None },
                SuccessPolicyRule { succeeded_indexes: None, succeeded_count: Some(3) },
            ],
        };
        assert_eq!(succeeded(Some(&policy), &Indexes::from([0, 1])), None);
        assert_eq!(succeeded(Some(&policy), &Indexes::from([0, 2])), Some(0));
        assert_eq!(succeeded(Some(&policy), &Indexes::from([1, 2, 3])), Some(1));
    }
}
