//! What a DeviceTaintRule says of the evictions that it causes, or would cause. Pure; the texts are
//! upstream's.

use k8s_openapi::api::resource::v1::DeviceTaintRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::taints::NO_EXECUTE;

const KIND: &str = "EvictionInProgress";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices in slices that the rule selects.
    pub published: usize,
    /// Devices of claims that it selects.
    pub allocated: usize,
    /// Pods that have to go, or would have to.
    pub pods: usize,
    /// In so many namespaces.
    pub namespaces: usize,
    /// Pods that went already.
    pub evicted: usize,
}

pub fn known(rule: &DeviceTaintRule) -> Option<&Condition> {
    let conditions = rule.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == KIND)
}

/// The condition to write; none: it stands already. Its time is that of the last change of anything in
/// it, by which updates are spaced.
pub fn changed(rule: &DeviceTaintRule, counts: &Counts, now: &Time) -> Option<Condition> {
    let (status, reason, mut message) = said(&rule.spec.taint.effect, counts);
    if counts.evicted > 0 {
        if !message.is_empty() {
            message.push(' ');
        }
        message.push_str(&format!("{} evicted since starting the controller.", counted(counts.evicted, "pod", "pods")));
    }
    let known = known(rule);
    let condition = Condition {
        type_: KIND.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: rule.metadata.generation,
        last_transition_time: known.map_or_else(|| now.clone(), |known| known.last_transition_time.clone()),
    };
    (known != Some(&condition)).then(|| Condition { last_transition_time: now.clone(), ..condition })
}

/// Status, reason and message for an effect.
fn said(effect: &str, counts: &Counts) -> (&'static str, &'static str, String) {
    let namespaces = counted(counts.namespaces, "namespace", "different namespaces");
    match effect {
        NO_EXECUTE if counts.pods > 0 => {
            let pods = counted(counts.pods, "pod needs", "pods need");
            ("True", "PodsPendingEviction", format!("{pods} to be evicted in {namespaces}."))
        }
        NO_EXECUTE if counts.evicted > 0 => ("False", "Completed", String::new()),
        NO_EXECUTE => ("False", "NotStarted", String::new()),
        "None" => {
            let published = counted(counts.published, "published device", "published devices");
            let allocated = counted(counts.allocated, "allocated device", "allocated devices");
            let pods = counted(counts.pods, "pod", "pods");
            let message = format!(
                "{published} selected. {allocated} selected. {pods} would be evicted in {namespaces} if the effect was \
                 NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update."
            );
            ("False", "NoEffect", message)
        }
        _ => ("False", "OtherEffect", "Eviction only happens for the NoExecute effect.".to_owned()),
    }
}

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use serde_json::json;

    fn rule(effect: &str) -> DeviceTaintRule {
        let spec = json!({"deviceSelector": {}, "taint": {"key": "k", "effect": effect}});
        serde_json::from_value(json!({"metadata": {"name": "r", "generation": 3}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_rule_says_what_it_does() {
        let none = Counts::default();
        let later = " if the effect was NoExecute. This information will not be updated again. \
                     Recreate the DeviceTaintRule to trigger an update.";
        for (effect, counts, want) in [
            ("NoExecute", none, ("False", "NotStarted", String::new())),
            (
                "NoExecute",
                Counts { pods: 1, namespaces: 1, ..none },
                ("True", "PodsPendingEviction", "1 pod needs to be evicted in 1 namespace.".to_owned()),
            ),
            (
                "NoExecute",
                Counts { pods: 3, namespaces: 2, evicted: 1, ..none },
                (
                    "True",
                    "PodsPendingEviction",
                    "3 pods need to be evicted in 2 different namespaces. \
                     1 pod evicted since starting the controller."
                        .to_owned(),
                ),
            ),
            (
                "NoExecute",
                Counts { evicted: 4, ..none },
                ("False", "Completed", "4 pods evicted since starting the controller.".to_owned()),
            ),
            (
                "None",
                Counts { published: 2, allocated: 1, pods: 1, namespaces: 1, ..none },
                (
                    "False",
                    "NoEffect",
                    format!(
                        "2 published devices selected. 1 allocated device selected. \
                         1 pod would be evicted in 1 namespace{later}"
                    ),
                ),
            ),
            (
                "None",
                none,
                (
                    "False",
                    "NoEffect",
                    format!(
                        "0 published devices selected. 0 allocated devices selected. \
                         0 pods would be evicted in 0 different namespaces{later}"
                    ),
                ),
            ),
            (
                "NoSchedule",
                none,
                ("False", "OtherEffect", "Eviction only happens for the NoExecute effect.".to_owned()),
            ),
        ] {
            let condition = changed(&rule(effect), &counts, &Time(at(100))).unwrap();
            assert_eq!(condition.observed_generation, Some(3));
            assert_eq!((condition.status.as_str(), condition.reason.as_str(), condition.message), want);
        }
    }

    #[test]
    fn a_condition_is_written_when_something_in_it_changed() {
        let mut rule = rule("NoExecute");
        let first = changed(&rule, &Counts::default(), &Time(at(100))).unwrap();
        rule.status.get_or_insert_default().conditions = Some(vec![first]);
        assert_eq!(changed(&rule, &Counts::default(), &Time(at(200))), None);
        let evicted = Counts { evicted: 1, ..Counts::default() };
        assert_eq!(changed(&rule, &evicted, &Time(at(200))).unwrap().last_transition_time, Time(at(200)));
        rule.metadata.generation = Some(4);
        assert!(changed(&rule, &Counts::default(), &Time(at(200))).is_some());
    }
}
