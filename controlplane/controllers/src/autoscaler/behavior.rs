//! Pure: how fast and how far an autoscaler may go.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec};

use crate::meta;

/// How long a smaller size is put off by default: 5 minutes.
const DOWN_WINDOW: i64 = 300;

/// What was recommended and done lately.
#[derive(Debug, Default)]
pub struct History {
    recommended: Vec<(Timestamp, i32)>,
    /// Positive when it grew.
    changes: Vec<(Timestamp, i32)>,
}

impl History {
    /// What an autoscaler begins with, and a restarted controller: the present size counts as recommended,
    /// so that shrinking waits for its window then too.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommended.is_empty() {
            self.recommended.push((now, current));
        }
    }

    pub fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        self.changes.push((now, to - from));
    }

    /// Replicas added (or removed) within the last `seconds`.
    fn changed(&self, seconds: i32, up: bool, now: Timestamp) -> i32 {
        let since = meta::after(now, -i64::from(seconds));
        let recent = self.changes.iter().filter(|(at, change)| *at > since && (*change > 0) == up);
        recent.map(|(_, change)| change.abs()).sum()
    }

    /// What there were when the policy's period began.
    fn before(&self, policy: &HPAScalingPolicy, current: i32, now: Timestamp) -> i32 {
        let changed = |up| self.changed(policy.period_seconds, up, now);
        current - changed(true) + changed(false)
    }

    fn forget(&mut self, now: Timestamp) {
        let hour = meta::after(now, -3600);
        self.recommended.retain(|(at, _)| *at > hour);
        self.changes.retain(|(at, _)| *at > hour);
    }
}

#[derive(Debug, PartialEq)]
pub struct Limited {
    pub replicas: i32,
    /// Of the condition ScalingLimited.
    pub status: &'static str,
    pub reason: &'static str,
    pub text: &'static str,
    /// Of the condition AbleToScale, when a window held the size.
    pub stabilized: Option<(&'static str, &'static str)>,
}

fn policy(type_: &str, value: i32, period_seconds: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds }
}

/// The rules with Kubernetes' defaults: up 4 pods or 100 % in 15 s, down 100 % in 15 s.
fn rules(spec: &HorizontalPodAutoscalerSpec) -> (HPAScalingRules, HPAScalingRules) {
    let behavior = spec.behavior.clone().unwrap_or_default();
    let fill = |given: Option<HPAScalingRules>, window: i64, policies: Vec<HPAScalingPolicy>| {
        let given = given.unwrap_or_default();
        HPAScalingRules {
            stabilization_window_seconds: given.stabilization_window_seconds.or(i32::try_from(window).ok()),
            select_policy: given.select_policy.or_else(|| Some("Max".to_owned())),
            policies: given.policies.filter(|list| !list.is_empty()).or(Some(policies)),
            tolerance: given.tolerance,
        }
    };
    let up = fill(behavior.scale_up, 0, vec![policy("Pods", 4, 15), policy("Percent", 100, 15)]);
    (up, fill(behavior.scale_down, DOWN_WINDOW, vec![policy("Percent", 100, 15)]))
}

/// Accepted deviation from the target: shrinking, growing.
pub fn tolerance(spec: &HorizontalPodAutoscalerSpec) -> (f64, f64) {
    let (up, down) = rules(spec);
    let of = |rules: HPAScalingRules| {
        rules.tolerance.map_or(0.1, |quantity| api::quantity::Quantity::from(&quantity).milli() as f64 / 1000.0)
    };
    (of(down), of(up))
}

pub fn limit(
    spec: &HorizontalPodAutoscalerSpec,
    history: &mut History,
    current: i32,
    wish: i32,
    now: Timestamp,
) -> Limited {
    let (up, down) = rules(spec);
    history.forget(now);
    history.recommended.push((now, wish));
    let (steady, stabilized) = stabilize(history, &up, &down, current, wish, now);
    let within = |replicas| Limited {
        replicas,
        status: "False",
        reason: "DesiredWithinRange",
        text: "the desired count is within the acceptable range",
        stabilized,
    };
    let limited = |replicas, reason, text| Limited { replicas, status: "True", reason, text, stabilized };
    let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    if steady > current {
        let reach = current.max(up_limit(&up, history, current, now));
        if steady > most && reach >= most {
            let text = "the desired replica count is more than the maximum replica count";
            return limited(most, "TooManyReplicas", text);
        }
        if steady > reach {
            let text = "the desired replica count is increasing faster than the maximum scale rate";
            return limited(reach.min(most), "ScaleUpLimit", text);
        }
    } else if steady < current {
        let reach = current.min(down_limit(&down, history, current, now));
        if steady < least && reach <= least {
            let text = "the desired replica count is less than the minimum replica count";
            return limited(least, "TooFewReplicas", text);
        }
        if steady < reach {
            let text = "the desired replica count is decreasing faster than the maximum scale rate";
            return limited(reach.max(least), "ScaleDownLimit", text);
        }
    }
    within(steady.clamp(least, most.max(least)))
}

/// The size nearest to the present one among those recommended within each direction's window.
fn stabilize(
    history: &History,
    up: &HPAScalingRules,
    down: &HPAScalingRules,
    current: i32,
    wish: i32,
    now: Timestamp,
) -> (i32, Option<(&'static str, &'static str)>) {
    let within = |rules: &HPAScalingRules| {
        let seconds = i64::from(rules.stabilization_window_seconds.unwrap_or(0));
        let since = meta::after(now, -seconds);
        history.recommended.iter().filter(move |(at, _)| *at > since).map(|(_, replicas)| *replicas)
    };
    let lowest_up = within(up).chain([wish]).min().unwrap_or(wish);
    let highest_down = within(down).chain([wish]).max().unwrap_or(wish);
    let steady = if current < lowest_up { lowest_up } else { current.min(highest_down) };
    let steady = if current >= lowest_up && current < highest_down { current } else { steady };
    let told = match steady.cmp(&wish) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Less => Some((
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent recommendation",
        )),
        std::cmp::Ordering::Greater => Some((
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent recommendation",
        )),
    };
    (steady, told)
}

fn up_limit(rules: &HPAScalingRules, history: &History, current: i32, now: Timestamp) -> i32 {
    let limits = rules.policies.iter().flatten().map(|policy| {
        let start = history.before(policy, current, now);
        match policy.type_.as_str() {
            "Pods" => start + policy.value,
            _ => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => limits.min().unwrap_or(current),
        _ => limits.max().unwrap_or(current),
    }
}

fn down_limit(rules: &HPAScalingRules, history: &History, current: i32, now: Timestamp) -> i32 {
    let limits = rules.policies.iter().flatten().map(|policy| {
        let start = history.before(policy, current, now);
        match policy.type_.as_str() {
            "Pods" => start - policy.value,
            _ => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        // the policy that changes least keeps most
        Some("Min") => limits.max().unwrap_or(current),
        _ => limits.min().unwrap_or(current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;

    fn spec(least: i32, most: i32) -> HorizontalPodAutoscalerSpec {
        HorizontalPodAutoscalerSpec { min_replicas: Some(least), max_replicas: most, ..Default::default() }
    }

    #[test]
    fn growing_is_bounded_by_rate_and_maximum() {
        let outcome = |current, wish| {
            let limited = limit(&spec(1, 20), &mut History::default(), current, wish, at(10_000));
            (limited.replicas, limited.reason)
        };
        assert_eq!(outcome(2, 3), (3, "DesiredWithinRange"));
        assert_eq!(outcome(2, 10), (6, "ScaleUpLimit"));
        assert_eq!(outcome(8, 16), (16, "DesiredWithinRange"));
        assert_eq!(outcome(16, 40), (20, "TooManyReplicas"));
    }

    #[test]
    fn growth_within_the_period_counts() {
        let mut history = History::default();
        history.scaled(2, 6, at(9_995));
        assert_eq!(limit(&spec(1, 100), &mut history, 6, 50, at(10_000)).replicas, 6);
        assert_eq!(limit(&spec(1, 100), &mut history, 6, 50, at(10_020)).replicas, 12);
    }

    #[test]
    fn the_size_it_begins_with_counts_as_recommended() {
        let mut history = History::default();
        history.begin(5, at(10_000));
        let held = limit(&spec(1, 10), &mut history, 5, 1, at(10_000));
        assert_eq!((held.replicas, held.stabilized.map(|told| told.0)), (5, Some("ScaleDownStabilized")));
        history.begin(1, at(10_015));
        assert_eq!(limit(&spec(1, 10), &mut history, 5, 1, at(10_299)).replicas, 5);
        assert_eq!(limit(&spec(1, 10), &mut history, 5, 1, at(10_300)).replicas, 1);
        let mut growing = History::default();
        growing.begin(2, at(10_000));
        assert_eq!(limit(&spec(1, 10), &mut growing, 2, 4, at(10_000)).replicas, 4, "growing has no window");
    }

    #[test]
    fn what_shrank_within_the_period_may_grow_back() {
        let mut history = History::default();
        history.scaled(10, 4, at(9_995));
        assert_eq!(limit(&spec(1, 100), &mut history, 4, 50, at(10_000)).replicas, 20, "twice of ten");
    }

    #[test]
    fn shrinking_waits_for_its_window() {
        let mut history = History::default();
        assert_eq!(limit(&spec(1, 10), &mut history, 5, 5, at(10_000)).replicas, 5);
        let held = limit(&spec(1, 10), &mut history, 5, 2, at(10_100));
        assert_eq!((held.replicas, held.stabilized.map(|told| told.0)), (5, Some("ScaleDownStabilized")));
        assert_eq!(limit(&spec(1, 10), &mut history, 5, 2, at(10_301)).replicas, 2);
        assert_eq!(limit(&spec(3, 10), &mut History::default(), 5, 1, at(1)).replicas, 3);
        let zero = limit(&spec(0, 10), &mut History::default(), 1, 0, at(1));
        assert_eq!((zero.replicas, zero.reason), (0, "DesiredWithinRange"));
        assert_eq!(limit(&spec(0, 10), &mut History::default(), 0, 7, at(1)).replicas, 4, "4 pods in 15 s");
    }
}
