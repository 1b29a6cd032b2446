//! Who has to go so that a pod which the node needs finds room (`pkg/kubelet/preemption`). Pure.
//!
//! As few pods as can be, the least important QoS class first: guaranteed ones only for what ending all
//! others does not free.

use std::collections::BTreeMap;
use std::fmt::Write;

use api::resources::{self, QosClass, Side, qos_class};
use k8s_openapi::api::core::v1::Pod;

use crate::admission::Shortage;
use crate::eviction::is_critical;
use crate::pod::status::{Cause, Verdict};

const PREEMPTING: &str = "Preempting";

/// What is still missing, by resource: CPU in millicores, the rest in units.
type Needs = BTreeMap<String, i64>;

/// Why a pod ends that makes room.
pub fn verdict() -> Verdict {
    let message = "Preempted in order to admit critical pod".to_owned();
    Verdict { cause: Cause::Evicted, reason: PREEMPTING.to_owned(), message }
}

pub fn is_preempted(verdict: &Verdict) -> bool {
    verdict.reason == PREEMPTING
}

/// Too little can be freed.
pub fn refusal(unmet: &Needs) -> Verdict {
    let mut list = String::new();
    for (name, amount) in unmet {
        // Writing to text cannot fail.
        let _ = write!(list, "(res: {name}, q: {amount}), ");
    }
    let what = "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources";
    let why = "Unexpected error while attempting to recover from admission failure";
    Verdict::refused("UnexpectedAdmissionError", format!("{why}: {what}: [{list}]"))
}

/// The pods to end for `pod`, or what would be missing without all of them.
pub fn choose<'a>(pod: &Pod, others: &[&'a Pod], missing: &[Shortage]) -> Result<Vec<&'a Pod>, Needs> {
    let need = |short: &Shortage| (short.name.clone(), short.requested - (short.capacity - short.used));
    let needs: Needs = missing.iter().map(need).collect();
    let of_class = |class: QosClass| -> Vec<&'a Pod> {
        let giving_way = others.iter().copied().filter(|other| gives_way(other, pod));
        giving_way.filter(|other| qos_class(other) == class).collect()
    };
    let [best_effort, burstable, guaranteed] =
        [QosClass::BestEffort, QosClass::Burstable, QosClass::Guaranteed].map(of_class);
    let unmet = left(&needs, &[&best_effort[..], &burstable[..], &guaranteed[..]].concat());
    if !unmet.is_empty() {
        return Err(unmet);
    }
    let mut chosen = fewest(guaranteed, left(&needs, &[&best_effort[..], &burstable[..]].concat()));
    let more = fewest(burstable, left(&needs, &[&best_effort[..], &chosen[..]].concat()));
    chosen.extend(more);
    let more = fewest(best_effort, left(&needs, &chosen));
    chosen.extend(more);
    Ok(chosen)
}

/// Whether a pod may be ended for another (`types.Preemptable`).
fn gives_way(pod: &Pod, to: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    let less = priority(to).zip(priority(pod)).is_some_and(|(to, own)| to > own);
    less || is_critical(to) && !is_critical(pod)
}

/// What is missing once these have ended.
fn left(needs: &Needs, ended: &[&Pod]) -> Needs {
    let after = |(name, amount): (&String, &i64)| {
        let left = ended.iter().fold(*amount, |left, pod| left.saturating_sub(requested(pod, name)));
        (left > 0).then(|| (name.clone(), left))
    };
    needs.iter().filter_map(after).collect()
}

/// Few pods that free what is needed: ever the one that frees the largest part, of such the smallest.
fn fewest(mut pods: Vec<&Pod>, mut needs: Needs) -> Vec<&Pod> {
    let size = |pod: &Pod| (requested(pod, "memory"), requested(pod, "cpu"));
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let nearest = (0..pods.len()).min_by(|a, b| {
            let (a, b) = (pods[*a], pods[*b]);
            distance(&needs, a).total_cmp(&distance(&needs, b)).then_with(|| size(a).cmp(&size(b)))
        });
        let Some(nearest) = nearest else { break };
        let pod = pods.swap_remove(nearest);
        needs = left(&needs, &[pod]);
        chosen.push(pod);
    }
    chosen
}

/// How much would be missing without the pod, every need weighed alike.
fn distance(needs: &Needs, pod: &Pod) -> f64 {
    let shares = needs.iter().map(|(name, amount)| {
        let left = amount.saturating_sub(requested(pod, name)).max(0);
        (left as f64 / *amount as f64).powi(2)
    });
    shares.sum()
}

fn requested(pod: &Pod, name: &str) -> i64 {
    if name == "pods" {
        return 1;
    }
    let requests = pod.spec.as_ref().map(|spec| resources::of_pod(spec, Side::Requests)).unwrap_or_default();
    let Some(amount) = requests.get(name) else { return 0 };
    if name == "cpu" { amount.milli() } else { amount.units() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, cpu: &str, class: &str) -> Pod {
        let resources = match class {
            "Guaranteed" => json!({"requests": {"cpu": cpu, "memory": "1Mi"}, "limits": {"cpu": cpu, "memory": "1Mi"}}),
            "Burstable" => json!({"requests": {"cpu": cpu}}),
            _ => json!({}),
        };
        let spec = json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn short(name: &str, requested: i64, used: i64, capacity: i64) -> Shortage {
        Shortage { name: name.to_owned(), requested, used, capacity }
    }

    const CRITICAL: i32 = 2_000_000_000;

    #[test]
    fn a_critical_pod_ends_few_and_unimportant_others() {
        let wanted = pod("wanted", CRITICAL, "1", "Burstable");
        let all = [
            pod("best-effort", 0, "0", "BestEffort"),
            pod("small", 0, "200m", "Burstable"),
            pod("large", 0, "900m", "Burstable"),
            pod("guaranteed", 0, "1", "Guaranteed"),
            pod("critical", CRITICAL, "2", "Burstable"),
        ];
        let others: Vec<&Pod> = all.iter().collect();
        for (missing, names) in [
            (vec![short("cpu", 1000, 3100, 4000)], Ok(vec!["small"])),
            (vec![short("cpu", 1000, 3500, 4000)], Ok(vec!["large"])),
            (vec![short("cpu", 1000, 4000, 4000)], Ok(vec!["large", "small"])),
            (vec![short("cpu", 1500, 4000, 4000)], Ok(vec!["guaranteed", "large"])),
            (vec![short("pods", 1, 5, 5)], Ok(vec!["best-effort"])),
            (vec![short("cpu", 1000, 5300, 4000)], Err(200)),
        ] {
            let chosen = choose(&wanted, &others, &missing);
            let chosen = chosen
                .map(|chosen| chosen.into_iter().filter_map(|pod| pod.metadata.name.as_deref()).collect::<Vec<_>>());
            assert_eq!(chosen.map_err(|unmet| unmet["cpu"]), names, "{missing:?}");
        }
        let told = refusal(&choose(&wanted, &others, &[short("cpu", 1000, 5300, 4000)]).unwrap_err());
        assert!(told.message.ends_with("no set of running pods found to reclaim resources: [(res: cpu, q: 200), ]"));
    }

    #[test]
    fn only_less_important_pods_give_way() {
        let plain = pod("plain", 10, "1", "Burstable");
        let high = pod("high", CRITICAL + 1000, "1", "Burstable");
        let critical = pod("critical", CRITICAL, "1", "Burstable");
        let ways = [(&plain, &critical), (&critical, &high), (&critical, &plain), (&critical, &critical)];
        assert_eq!(ways.map(|(pod, to)| gives_way(pod, to)), [true, true, false, false]);
    }
}
