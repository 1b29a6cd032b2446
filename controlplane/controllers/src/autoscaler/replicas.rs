//! Pure: replicas from measured values. Kubernetes' arithmetic: pods without metrics count as what
//! slows the change down (full when shrinking, idle when growing), pods that just start as idle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{meta, podstate};

/// CPU of a pod that starts says little: this long after its start it counts when it was ready.
const INITIALIZATION: i64 = 5 * 60;
const FIRST_READINESS: i64 = 30;

/// A pod's name to its measured amount (millicores, bytes × 1000, or any milli-unit).
pub type Values = BTreeMap<String, i64>;

/// When a pod's amount was measured, and over how many seconds before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub at: Timestamp,
    pub window: i64,
}

pub type Samples = BTreeMap<String, Sample>;

#[derive(Debug, Default, PartialEq)]
pub struct Groups {
    pub measured: BTreeSet<String>,
    pub unready: BTreeSet<String>,
    pub missing: BTreeSet<String>,
}

/// Sorts the target's pods; finished ones and those being deleted are left out. `cpu`: when its values were
/// measured, if they are of CPU.
pub fn group(pods: &[Arc<Pod>], values: &Values, cpu: Option<&Samples>, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods.iter().filter(|pod| podstate::phase(pod) != "Failed" && !meta::is_deleting(&pod.metadata)) {
        let name = pod.name_any();
        let starts = |samples: &Samples| values.contains_key(&name) && is_starting(pod, samples.get(&name), now);
        if podstate::phase(pod) == "Pending" || cpu.is_some_and(starts) {
            groups.unready.insert(name);
        } else if values.contains_key(&name) {
            groups.measured.insert(name);
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

fn is_starting(pod: &Pod, sample: Option<&Sample>, now: Timestamp) -> bool {
    let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let ready = podstate::condition(pod, "Ready");
    let (Some(start), Some(ready)) = (start, ready) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(start, |time| time.0);
    if meta::after(start, INITIALIZATION) > now {
        // What it used before it was ready is still in the sample.
        ready.status != "True" || sample.is_some_and(|sample| sample.at < meta::after(changed, sample.window))
    } else {
        ready.status != "True" && meta::after(start, FIRST_READINESS) > changed
    }
}

pub struct Input<'a> {
    pub values: &'a Values,
    pub groups: &'a Groups,
    pub current: i32,
    /// Accepted deviation from the target ratio: shrinking, growing.
    pub tolerance: (f64, f64),
}

fn within(ratio: f64, (down, up): (f64, f64)) -> bool {
    ratio >= 1.0 - down && ratio <= 1.0 + up
}

/// By a ratio of measured to target. `ratio_of` takes the values that count, with the part (0 or 1)
/// of a full share that pods without a value stand for.
pub fn by_ratio(input: &Input<'_>, ratio_of: impl Fn(&Values, &BTreeMap<String, bool>) -> f64) -> i32 {
    let measured: Values = input
        .values
        .iter()
        .filter(|(name, _)| input.groups.measured.contains(*name))
        .map(|(n, v)| (n.clone(), *v))
        .collect();
    let ratio = ratio_of(&measured, &BTreeMap::new());
    let mut assumed: BTreeMap<String, bool> = BTreeMap::new();
    let count_unready = ratio > 1.0 && !input.groups.unready.is_empty();
    if !count_unready && input.groups.missing.is_empty() {
        if within(ratio, input.tolerance) {
            return input.current;
        }
        return ceil(ratio * measured.len() as f64);
    }
    assumed.extend(input.groups.missing.iter().map(|name| (name.clone(), ratio < 1.0)));
    if count_unready {
        assumed.extend(input.groups.unready.iter().map(|name| (name.clone(), false)));
    }
    let again = ratio_of(&measured, &assumed);
    let turned = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
    if within(again, input.tolerance) || turned {
        return input.current;
    }
    let wanted = ceil(again * (measured.len() + assumed.len()) as f64);
    let wrong_way = (again < 1.0 && wanted > input.current) || (again > 1.0 && wanted < input.current);
    if wrong_way { input.current } else { wanted }
}

fn ceil(value: f64) -> i32 {
    value.ceil() as i32
}

/// Percent of the pods' requests, against a percent target.
pub fn by_utilization(input: &Input<'_>, requests: &BTreeMap<String, i64>, target: i32) -> (i32, i32) {
    let request = |name: &String| requests.get(name).copied().unwrap_or(0);
    let utilization = |measured: &Values, assumed: &BTreeMap<String, bool>| -> f64 {
        let full = f64::from(target.max(100)) / 100.0;
        let assumed_use: f64 =
            assumed.iter().filter(|(_, full)| **full).map(|(name, _)| request(name) as f64 * full).sum();
        let used = measured.values().sum::<i64>() as f64 + assumed_use;
        let total = measured.keys().chain(assumed.keys()).map(request).sum::<i64>() as f64;
        if total == 0.0 { 0.0 } else { used / total }
    };
    let measured: Values = input
        .values
        .iter()
        .filter(|(name, _)| input.groups.measured.contains(*name))
        .map(|(n, v)| (n.clone(), *v))
        .collect();
    let shown = (utilization(&measured, &BTreeMap::new()) * 100.0) as i32;
    let replicas =
        by_ratio(input, |measured, assumed| utilization(measured, assumed) * 100.0 / f64::from(target.max(1)));
    (replicas, shown)
}

/// The average over the pods, against an average target (same unit).
pub fn by_average(input: &Input<'_>, target: i64) -> (i32, i64) {
    let average = |measured: &Values, assumed: &BTreeMap<String, bool>| -> f64 {
        let assumed_sum = assumed.values().filter(|full| **full).count() as f64 * target as f64;
        let count = (measured.len() + assumed.len()).max(1) as f64;
        (measured.values().sum::<i64>() as f64 + assumed_sum) / count
    };
    let measured: Values = input
        .values
        .iter()
        .filter(|(name, _)| input.groups.measured.contains(*name))
        .map(|(n, v)| (n.clone(), *v))
        .collect();
    let shown = average(&measured, &BTreeMap::new()) as i64;
    let replicas = by_ratio(input, |measured, assumed| average(measured, assumed) / target.max(1) as f64);
    (replicas, shown)
}

/// One value for all pods: against a value for the object.
pub fn by_value(value: i64, target: i64, ready: i32, current: i32, tolerance: (f64, f64)) -> i32 {
    let ratio = value as f64 / target.max(1) as f64;
    if current == 0 {
        // no pod to multiply, none to keep: whatever there is to do asks for the first ones
        return ceil(ratio);
    }
    if within(ratio, tolerance) { current } else { ceil(ratio * f64::from(ready)) }
}

/// One value for all pods: against a value per pod.
pub fn by_value_per_pod(value: i64, target: i64, current: i32, tolerance: (f64, f64)) -> i32 {
    if current == 0 {
        return ceil(value as f64 / target.max(1) as f64);
    }
    let ratio = value as f64 / (target.max(1) as f64 * f64::from(current));
    if within(ratio, tolerance) { current } else { ceil(value as f64 / target.max(1) as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: (f64, f64) = (0.1, 0.1);

    fn groups(measured: &[&str], unready: &[&str], missing: &[&str]) -> Groups {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Groups { measured: set(measured), unready: set(unready), missing: set(missing) }
    }

    #[test]
    fn utilization_scales_up_down_and_stays() {
        for (used, current, expected) in [(500, 2, 2), (540, 2, 2), (800, 2, 4), (200, 2, 1)] {
            let values = Values::from([("a".to_owned(), used), ("b".to_owned(), used)]);
            let requests = BTreeMap::from([("a".to_owned(), 1000), ("b".to_owned(), 1000)]);
            let input =
                Input { values: &values, groups: &groups(&["a", "b"], &[], &[]), current, tolerance: TOLERANCE };
            assert_eq!(by_utilization(&input, &requests, 50).0, expected, "{used}");
        }
    }

    #[test]
    fn pods_without_values_damp_the_change() {
        let requests: BTreeMap<String, i64> = ["a", "b", "c"].map(|name| (name.to_owned(), 1000)).into();
        let outcome = |used: i64, groups: &Groups| {
            let values = Values::from([("a".to_owned(), used), ("b".to_owned(), used)]);
            by_utilization(&Input { values: &values, groups, current: 3, tolerance: TOLERANCE }, &requests, 50).0
        };
        // 100 % of two: alone 4 pods; with one idle 67 % of three: 4
        assert_eq!(outcome(1000, &groups(&["a", "b"], &[], &["c"])), 4);
        // 20 % of two: alone 1 pod; with one full 47 % of three: within tolerance
        assert_eq!(outcome(200, &groups(&["a", "b"], &[], &["c"])), 3);
        assert_eq!(outcome(600, &groups(&["a", "b"], &["c"], &[])), 3, "growing on starting pods waits");
    }

    #[test]
    fn averages_and_values() {
        let values = Values::from([("a".to_owned(), 30_000), ("b".to_owned(), 10_000)]);
        let input = Input { values: &values, groups: &groups(&["a", "b"], &[], &[]), current: 2, tolerance: TOLERANCE };
        assert_eq!(by_average(&input, 10_000), (4, 20_000));
        assert_eq!(by_value(50, 10, 2, 2, TOLERANCE), 10);
        assert_eq!(by_value_per_pod(50, 10, 2, TOLERANCE), 5);
        assert_eq!(by_value_per_pod(21, 10, 2, TOLERANCE), 2);
    }

    #[test]
    fn without_pods_any_load_asks_for_the_first() {
        assert_eq!([0, 1, 10, 25].map(|value| by_value(value, 10, 0, 0, TOLERANCE)), [0, 1, 1, 3]);
        assert_eq!([0, 1, 10, 25].map(|value| by_value_per_pod(value, 10, 0, TOLERANCE)), [0, 1, 1, 3]);
        assert_eq!(by_value(0, 10, 3, 3, TOLERANCE), 0);
    }

    #[test]
    fn a_cpu_sample_from_before_readiness_does_not_count() {
        use crate::podstate::testing::{at, pod, ready};
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        let started = |started: i64, since: i64| {
            let mut pod = ready(pod("a", "n1", "Running"), since);
            pod.status.get_or_insert_default().start_time = Some(Time(at(started)));
            [Arc::new(pod)]
        };
        let values = Values::from([("a".to_owned(), 100)]);
        let unready = |pods: &[Arc<Pod>], measured: i64, now: i64| {
            let samples = Samples::from([("a".to_owned(), Sample { at: at(measured), window: 15 })]);
            group(pods, &values, Some(&samples), at(now)).unready.contains("a")
        };
        assert!(unready(&started(100, 120), 134, 140), "the window began before the pod was ready");
        assert!(!unready(&started(100, 120), 135, 140));
        assert!(!unready(&started(100, 450), 451, 460), "it started long ago");
        assert_eq!(group(&started(100, 120), &values, None, at(140)).measured.len(), 1, "not of CPU");
    }
}
