//! Namespaces: their labels must be right, and pods that a stricter level would refuse are warned of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::checks::{self, Level};
use super::policy::{PREFIX, Policies, Policy, label_errors};
use super::{Exemptions, PodSecurity};
use crate::admit::{Attributes, Cluster};
use crate::error::{ApiError, Result};
use crate::kinds::value::{flag, label, list, name, text};

/// Pods that are looked at, at most.
const MOST: usize = 3000;
const LONGEST: Duration = Duration::from_secs(1);

impl PodSecurity {
    /// `now`: when the pods begin to be looked at.
    pub(super) async fn namespace(
        &self,
        attributes: &mut Attributes<'_>,
        cluster: &dyn Cluster,
        now: Instant,
    ) -> Result<()> {
        let errors = label_errors(&attributes.object);
        if !errors.is_empty() && attributes.old.is_none_or(|old| label_errors(old) != errors) {
            return Err(ApiError::invalid("", "Namespace", name(&attributes.object), &errors));
        }
        let policies = Policies::of(&attributes.object, &self.defaults);
        let namespace = name(&attributes.object).to_owned();
        let exempt = self.exemptions.has_namespace(&namespace);
        let Some(old) = attributes.old else {
            let warning = exempt.then(|| self.ignored(&namespace, &policies, &attributes.object)).flatten();
            attributes.warnings.extend(warning);
            return Ok(());
        };
        let was = Policies::of(old, &self.defaults).enforce;
        let new = &policies.enforce;
        let relaxed = new.version == was.version && new.level <= was.level;
        if *new == was || new.level == Level::Privileged || relaxed {
            return Ok(());
        }
        if exempt {
            attributes.warnings.extend(self.ignored(&namespace, &policies, &attributes.object));
            return Ok(());
        }
        let Ok(pods) = cluster.list("", "pods", &namespace).await else {
            attributes.warnings.push("failed to list pods while checking new PodSecurity enforce level".to_owned());
            return Ok(());
        };
        let pods = in_order(&self.exemptions, pods);
        let has_time = || now.elapsed() < LONGEST;
        attributes.warnings.extend(warnings(&namespace, new, &pods, MOST, has_time));
        Ok(())
    }

    /// What an exempt namespace asks for in vain.
    fn ignored(&self, namespace: &str, policies: &Policies, object: &Value) -> Option<String> {
        if policies.are_privileged() || policies.are_as(&self.defaults) {
            return None;
        }
        let said = |key: String| label(object, &key).is_some();
        let asked = policies.modes().into_iter().filter(|(mode, policy)| {
            policy.level != Level::Privileged
                && (said(format!("{PREFIX}{mode}")) || said(format!("{PREFIX}{mode}-version")))
        });
        let asked: Vec<String> = asked.map(|(mode, policy)| format!("{mode}={policy}")).collect();
        Some(format!(
            "namespace {namespace:?} is exempt from Pod Security, and the policy ({}) will be ignored",
            asked.join(", ")
        ))
    }
}

/// One pod of each controller first: they are alike.
fn in_order(exemptions: &Exemptions, pods: Vec<Arc<Value>>) -> Vec<Arc<Value>> {
    let mut seen = BTreeSet::new();
    let looked_at = pods.into_iter().filter(|pod| !exemptions.has_runtime_class(pod));
    let (mut first, more): (Vec<_>, Vec<_>) = looked_at.partition(|pod| {
        let owners = list(pod, "metadata.ownerReferences");
        let controller = owners.iter().find(|owner| flag(owner, "controller"));
        controller.is_none_or(|controller| seen.insert(text(controller, "uid").to_owned()))
    });
    first.extend(more);
    first
}

/// Pods with the same faults share a line. `most` pods are looked at, and none after `has_time` says no.
fn warnings(
    namespace: &str,
    policy: &Policy,
    pods: &[Arc<Value>],
    most: usize,
    has_time: impl Fn() -> bool,
) -> Vec<String> {
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut checked = 0;
    for pod in pods.iter().take(most) {
        let reasons = checks::reasons(policy.level, policy.minor(), pod);
        if !reasons.is_empty() {
            found.entry(reasons).or_default().push(name(pod));
        }
        checked += 1;
        if !has_time() {
            break;
        }
    }
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, pods)| {
            let more = match pods.len() {
                1 => String::new(),
                2 => " (and 1 other pod)".to_owned(),
                count => format!(" (and {} other pods)", count - 1),
            };
            format!("{}{more}: {reasons}", pods.iter().min().unwrap_or(&""))
        })
        .collect();
    lines.sort();
    let mut all = Vec::new();
    if checked < pods.len() {
        let total = pods.len();
        all.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if !lines.is_empty() {
        all.push(format!(
            "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{policy}\""
        ));
    }
    all.extend(lines);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, controller: &str, spec: Value) -> Arc<Value> {
        let owners = match controller {
            "" => json!([]),
            uid => json!([{"uid": "other"}, {"uid": uid, "controller": true}]),
        };
        Arc::new(json!({"metadata": {"name": name, "ownerReferences": owners}, "spec": spec}))
    }

    #[test]
    fn alike_pods_come_last_and_exempt_ones_not_at_all() {
        let exemptions: Exemptions = serde_json::from_value(json!({"runtimeClasses": ["runc"]})).unwrap();
        let pods = [("a", "x", ""), ("b", "x", ""), ("c", "", ""), ("d", "y", "runc"), ("e", "y", ""), ("f", "x", "")]
            .map(|(name, owner, class)| pod(name, owner, json!({"runtimeClassName": class})));
        let ordered = in_order(&exemptions, pods.to_vec());
        assert_eq!(ordered.iter().map(|pod| name(pod)).collect::<Vec<_>>(), ["a", "c", "e", "b", "f"]);
    }

    /// Upstream's rows (`TestValidateNamespace`, `TestEvaluatePodsInNamespace`).
    #[test]
    fn pods_with_the_same_faults_share_a_line() {
        let bad = json!({"hostPID": true});
        let worse = json!({"hostPID": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}]});
        let policy = Policy { level: Level::Baseline, version: "v1.30".to_owned() };
        let lines = |pods: &[Arc<Value>], most, time| warnings("n", &policy, pods, most, || time);
        let first = "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:v1.30\"";
        let pods = [pod("c", "", bad.clone()), pod("b", "", bad.clone()), pod("d", "", worse), pod("a", "", json!({}))];
        assert_eq!(
            lines(&pods, 10, true),
            [first, "b (and 1 other pod): host namespaces", "d: host namespaces, privileged"]
        );
        assert_eq!(lines(&[pod("a", "", json!({}))], 10, true), [""; 0]);
        let three = ["x", "y", "z"].map(|name| pod(name, "", bad.clone()));
        assert_eq!(lines(&three, 10, true)[1], "x (and 2 other pods): host namespaces");
        assert_eq!(
            lines(&three, 2, true),
            [
                "new PodSecurity enforce level only checked against the first 2 of 3 existing pods",
                first,
                "x (and 1 other pod): host namespaces"
            ]
        );
        assert_eq!(
            lines(&three, 3, false)[0],
            "new PodSecurity enforce level only checked against the first 1 of 3 existing pods"
        );
    }
}
