//! HorizontalPodAutoscalers: replicas that follow metrics.
//!
//! - [`metrics`]: reading `metrics.k8s.io`, `custom.metrics.k8s.io`, `external.metrics.k8s.io`;
//! - [`replicas`]: how many replicas a metric asks for; pure;
//! - [`behavior`]: stabilization windows, scaling policies and limits; pure;
//! - this module: one look every 15 seconds per autoscaler, as metrics have no watch.

mod behavior;
mod metrics;
mod replicas;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::selector::Selector;
use component::{EventType, Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, Controller, Key, Pods, synced};
use crate::discovery;
use crate::error::{During, Result, message};
use crate::meta;
use behavior::History;

const PERIOD: Duration = Duration::from_secs(15);
const WORKERS: usize = 5;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("horizontal-pod-autoscaler");
    let autoscalers = context.informers.of::<HorizontalPodAutoscaler>();
    let changed = queue.clone();
    autoscalers.on_change(move |change| {
        let spec = |scaler: &Arc<HorizontalPodAutoscaler>| scaler.spec.clone();
        if change.old.map(spec) != change.new.map(spec) {
            changed.add(meta::key(&change.object().metadata));
        }
    });
    let ready = synced!(autoscalers, context.pods.informer);
    let worker = Arc::new(Worker {
        controller: controller.clone(),
        autoscalers,
        pods: context.pods.clone(),
        histories: Mutex::default(),
        selectors: Mutex::default(),
    });
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

struct Worker {
    controller: Controller,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Pods,
    histories: Mutex<HashMap<Key, History>>,
    selectors: Mutex<Selectors>,
}

/// What the targets of the autoscalers select.
type Selectors = HashMap<Key, Selector>;

/// The autoscalers of a namespace whose targets select any of these pods.
fn selecting(selectors: &Selectors, namespace: &str, pods: &[Arc<Pod>]) -> Vec<Key> {
    let selects = |selector: &Selector| pods.iter().any(|pod| selector.matches(meta::labels(&pod.metadata)));
    let own = selectors.iter().filter(|(key, selector)| key.0 == namespace && selects(selector));
    let mut keys: Vec<Key> = own.map(|(key, _)| key.clone()).collect();
    keys.sort();
    keys
}

/// The condition, and its reason, that tells this controller's zero from one that a person set.
const SCALED_TO_ZERO: &str = "ScaledToZero";

/// Where a look begins: metrics are asked only when their answer may be followed.
#[derive(Debug, PartialEq)]
enum Course {
    /// Somebody else set zero: that pauses scaling.
    Paused,
    /// The bounds alone decide, for this reason.
    Bounded(i32, &'static str),
    Measured,
}

/// `slept`: the last change that this controller made was to zero. `outlives_pods`: some metric is
/// there when no pod is, so that it can say when to wake up.
fn course(current: i32, least: i32, most: i32, slept: bool, outlives_pods: bool) -> Course {
    if current == 0 && !(slept && (least != 0 || outlives_pods)) {
        Course::Paused
    } else if current > most {
        Course::Bounded(most, "Current number of replicas above Spec.MaxReplicas")
    } else if current < least {
        Course::Bounded(least, "Current number of replicas below Spec.MinReplicas")
    } else {
        Course::Measured
    }
}

fn scales_without_pods(spec: &HorizontalPodAutoscalerSpec) -> bool {
    spec.metrics.iter().flatten().any(|metric| matches!(metric.type_.as_str(), "Object" | "External"))
}

/// What one look found, as it goes into the status.
struct Look {
    conditions: Vec<HorizontalPodAutoscalerCondition>,
    metrics: Option<Vec<MetricStatus>>,
    current: i32,
    desired: i32,
    scaled: bool,
    /// Of the autoscaler, where this look has written its status already.
    version: Option<String>,
}

/// The object that is scaled.
struct Target {
    api: Api<DynamicObject>,
    scale: Scale,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(scaler) = self.autoscalers.get(&key.0, &key.1) else {
            self.histories.lock().remove(&key);
            self.selectors.lock().remove(&key);
            return Ok(Outcome::Done);
        };
        if meta::is_deleting(&scaler.metadata) {
            return Ok(Outcome::Done);
        }
        let now = meta::now();
        let old = scaler.status.clone().unwrap_or_default();
        let mut look = Look {
            conditions: old.conditions.clone().unwrap_or_default(),
            metrics: old.current_metrics.clone(),
            current: old.current_replicas.unwrap_or(0),
            desired: old.desired_replicas,
            scaled: false,
            version: None,
        };
        match self.target(&scaler).await {
            Err(problem) => {
                self.selectors.lock().remove(&key);
                self.warn(&scaler, "FailedGetScale", &problem);
                let text = format!("the HPA controller was unable to get the target's current scale: {problem}");
                set(&mut look.conditions, "AbleToScale", "False", "FailedGetScale", &text, now);
            }
            Ok(target) => {
                let text = "the HPA controller was able to get the target's current scale";
                set(&mut look.conditions, "AbleToScale", "True", "SucceededGetScale", text, now);
                self.scale(&key, &scaler, target, &mut look, now).await;
            }
        }
        self.write_status(&key, &scaler, look, now).await?;
        Ok(Outcome::After(PERIOD))
    }

    /// By group and kind: the version that the reference names need not be served any more.
    async fn target(&self, scaler: &HorizontalPodAutoscaler) -> std::result::Result<Target, String> {
        let reference = &scaler.spec.scale_target_ref;
        let (client, group) = (&self.controller.client, discovery::group_of(reference.api_version.as_deref()));
        let served = discovery::kind(client, group, &reference.kind).await.map_err(|error| message(&error))?;
        let namespace = scaler.namespace().unwrap_or_default();
        let mut problem = None;
        for served in served {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &served.api);
            match api.get_scale(&reference.name).await {
                Ok(scale) => return Ok(Target { api, scale }),
                Err(error) => _ = problem.get_or_insert_with(|| message(&error)),
            }
        }
        Err(problem.unwrap_or_else(|| format!("no matches for kind \"{}\" in group \"{group}\"", reference.kind)))
    }

    async fn scale(
        &self,
        key: &Key,
        scaler: &HorizontalPodAutoscaler,
        target: Target,
        look: &mut Look,
        now: Timestamp,
    ) {
        let current = target.scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
        let (least, most) = (scaler.spec.min_replicas.unwrap_or(1), scaler.spec.max_replicas);
        look.current = current;
        self.histories.lock().entry(key.clone()).or_default().begin(current, now);
        let outlives_pods = scales_without_pods(&scaler.spec);
        let slept = look.conditions.iter().any(|c| c.type_ == SCALED_TO_ZERO && c.status == "True");
        let wish = match course(current, least, most, slept, outlives_pods) {
            Course::Paused => {
                let text = "scaling is disabled since the replica count of the target is zero";
                set(&mut look.conditions, "ScalingActive", "False", "ScalingDisabled", text, now);
                look.desired = 0;
                return;
            }
            Course::Bounded(replicas, reason) => Some((replicas, reason.to_owned())),
            Course::Measured => self.measured(key, scaler, &target, look, now).await,
        };
        let Some((desired, reason)) = wish else { return };
        look.desired = desired;
        if desired == current {
            return;
        }
        let to_zero = current > 0 && desired == 0 && least == 0 && outlives_pods;
        let text = "the HPA controller scaled the workload to zero";
        if to_zero {
            set(&mut look.conditions, SCALED_TO_ZERO, "True", SCALED_TO_ZERO, text, now);
            // Known before it is done: later nobody could tell this zero from a person's.
            match self.note_conditions(key, look).await {
                Ok(version) => look.version = version,
                Err(error) => {
                    self.warn(scaler, "FailedUpdateStatus", &message(&error));
                    look.desired = current;
                    return;
                }
            }
        }
        let mut changed = target.scale;
        changed.spec.get_or_insert_default().replicas = Some(desired);
        let name = &scaler.spec.scale_target_ref.name;
        match target.api.replace_scale(name, &PostParams::default(), &changed).await {
            Ok(_) => {
                let text = format!("New size: {desired}; reason: {reason}");
                self.controller.events.object_event(scaler, EventType::Normal, "SuccessfulRescale", text);
                let text = format!("the HPA controller was able to update the target scale to {desired}");
                set(&mut look.conditions, "AbleToScale", "True", "SucceededRescale", &text, now);
                if !to_zero {
                    let text = "the HPA controller did not scale the workload to zero";
                    set(&mut look.conditions, SCALED_TO_ZERO, "False", "NotScaledToZero", text, now);
                }
                self.histories.lock().entry(key.clone()).or_default().scaled(current, desired, now);
                look.scaled = true;
            }
            Err(error) => {
                let text = format!("New size: {desired}; reason: {reason}; error: {}", message(&error));
                self.warn(scaler, "FailedRescale", &text);
                let text = format!("the HPA controller was unable to update the target scale: {}", message(&error));
                set(&mut look.conditions, "AbleToScale", "False", "FailedUpdateScale", &text, now);
                look.desired = current;
            }
        }
    }

    /// The size that metrics, behavior and limits lead to, and why.
    async fn measured(
        &self,
        key: &Key,
        scaler: &HorizontalPodAutoscaler,
        target: &Target,
        look: &mut Look,
        now: Timestamp,
    ) -> Option<(i32, String)> {
        let selector = target.scale.status.as_ref().and_then(|status| status.selector.clone()).unwrap_or_default();
        if selector.is_empty() {
            let text = "the HPA target's scale is missing a selector";
            self.warn(scaler, "SelectorRequired", "selector is required");
            self.warn(scaler, "FailedComputeMetricsReplicas", "selector is required");
            set(&mut look.conditions, "ScalingActive", "False", "InvalidSelector", text, now);
            return None;
        }
        let reader = metrics::Reader::new(&self.controller.client, &self.pods, scaler, &selector, look.current, now);
        if let Some(text) = self.ambiguity(key, &selector, reader.pods()) {
            self.warn(scaler, "AmbiguousSelector", &text);
            self.warn(scaler, "FailedComputeMetricsReplicas", &text);
            set(&mut look.conditions, "ScalingActive", "False", "AmbiguousSelector", &text, now);
            return None;
        }
        let mut best: Option<metrics::Proposal> = None;
        let (mut statuses, mut failures) = (Vec::new(), Vec::new());
        for spec in scaler.spec.metrics.iter().flatten() {
            match reader.propose(spec).await {
                Ok(proposal) => {
                    statuses.push(proposal.status.clone());
                    if best.as_ref().is_none_or(|known| proposal.replicas > known.replicas) {
                        best = Some(proposal);
                    }
                }
                Err(problem) => {
                    // the place stays: clients read these by the index of the metric
                    statuses.push(MetricStatus::default());
                    self.warn(scaler, problem.reason, &problem.text);
                    failures.push(problem);
                }
            }
        }
        let measures = statuses.len();
        look.metrics = Some(statuses);
        // with a metric missing, shrinking is not safe
        let usable = best.filter(|best| failures.is_empty() || best.replicas >= look.current);
        let Some(best) = usable else {
            let invalid = failures.len();
            let first = failures.into_iter().next().unwrap_or_else(metrics::Problem::nothing_to_measure);
            let text = format!("the HPA was unable to compute the replica count: {}", first.text);
            set(&mut look.conditions, "ScalingActive", "False", first.reason, &text, now);
            let text =
                format!("invalid metrics ({invalid} invalid out of {measures}), first error is: {}", first.whole());
            self.warn(scaler, "FailedComputeMetricsReplicas", &text);
            return None;
        };
        let text = format!("the HPA was able to successfully calculate a replica count from {}", best.metric);
        set(&mut look.conditions, "ScalingActive", "True", "ValidMetricFound", &text, now);
        let mut histories = self.histories.lock();
        let history = histories.entry(key.clone()).or_default();
        let limited = behavior::limit(&scaler.spec, history, look.current, best.replicas, now);
        let (reason, text) =
            limited.stabilized.unwrap_or(("ReadyForNewScale", "recommended size matches current size"));
        set(&mut look.conditions, "AbleToScale", "True", reason, text, now);
        set(&mut look.conditions, "ScalingLimited", limited.status, limited.reason, limited.text, now);
        let reason = match limited.replicas > look.current {
            true => format!("{} above target", best.metric),
            false => "All metrics below target".to_owned(),
        };
        Some((limited.replicas, reason))
    }

    /// What is wrong where several autoscalers would scale the same pods: none of them does.
    fn ambiguity(&self, key: &Key, selector: &str, pods: &[Arc<Pod>]) -> Option<String> {
        let parsed = Selector::parse_labels(selector).unwrap_or_else(|_| Selector::nothing());
        let mut selectors = self.selectors.lock();
        selectors.insert(key.clone(), parsed);
        let keys = selecting(&selectors, &key.0, pods);
        let shown: Vec<String> = keys.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
        (keys.len() > 1)
            .then(|| format!("pods by selector {selector} are controlled by multiple HPAs: [{}]", shown.join(" ")))
    }

    fn warn(&self, scaler: &HorizontalPodAutoscaler, reason: &str, text: &str) {
        self.controller.events.object_event(scaler, EventType::Warning, reason, text);
    }

    /// Returns the version that the autoscaler has then.
    async fn note_conditions(&self, key: &Key, look: &Look) -> kube::Result<Option<String>> {
        let api: Api<HorizontalPodAutoscaler> = self.controller.namespaced(&key.0);
        let patch = Patch::Merge(json!({"status": {"conditions": look.conditions}}));
        Ok(api.patch_status(&key.1, &PatchParams::default(), &patch).await?.metadata.resource_version)
    }

    async fn write_status(
        &self,
        key: &Key,
        scaler: &HorizontalPodAutoscaler,
        look: Look,
        now: Timestamp,
    ) -> Result<()> {
        let old = scaler.status.clone().unwrap_or_default();
        let status = HorizontalPodAutoscalerStatus {
            conditions: Some(look.conditions),
            current_metrics: look.metrics,
            current_replicas: Some(look.current),
            desired_replicas: look.desired,
            last_scale_time: if look.scaled { meta::stamp(now) } else { old.last_scale_time.clone() },
            observed_generation: old.observed_generation,
        };
        if scaler.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = HorizontalPodAutoscaler { status: Some(status), ..scaler.clone() };
        if look.version.is_some() {
            changed.metadata.resource_version = look.version;
        }
        let api: Api<HorizontalPodAutoscaler> = self.controller.namespaced(&key.0);
        let written = api.replace_status(&key.1, &PostParams::default(), &changed).await;
        written.unless_gone("updating the status of", &meta::display(&scaler.metadata)).map(drop)
    }
}

fn set(
    conditions: &mut Vec<HorizontalPodAutoscalerCondition>,
    name: &str,
    status: &str,
    reason: &str,
    text: &str,
    now: Timestamp,
) {
    let mut next = HorizontalPodAutoscalerCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(text.to_owned()),
        last_transition_time: meta::stamp(now),
        observed_generation: None,
    };
    match conditions.iter_mut().find(|condition| condition.type_ == name) {
        None => conditions.push(next),
        Some(known) => {
            if known.status == next.status {
                next.last_transition_time = known.last_transition_time.clone();
            }
            *known = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscalers_of_the_same_pods_know_of_each_other() {
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let selector = |text: &str| Selector::parse_labels(text).expect("a selector");
        let selectors = Selectors::from([
            (key("default", "web"), selector("app=web")),
            (key("default", "all"), selector("app")),
            (key("default", "db"), selector("app=db")),
            (key("other", "web"), selector("app=web")),
        ]);
        let mut pod = Pod::default();
        pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        let pods = [Arc::new(pod)];
        assert_eq!(selecting(&selectors, "default", &pods), [key("default", "all"), key("default", "web")]);
        assert_eq!(selecting(&selectors, "other", &pods), [key("other", "web")]);
        assert!(selecting(&selectors, "default", &[]).is_empty());
    }

    #[test]
    fn only_its_own_zero_is_left_again() {
        for (current, least, slept, outlives_pods, expected) in [
            (0, 1, false, false, Course::Paused),
            (0, 0, false, true, Course::Paused),
            (0, 0, true, false, Course::Paused),
            (0, 0, true, true, Course::Measured),
            (0, 2, true, false, Course::Bounded(2, "Current number of replicas below Spec.MinReplicas")),
            (1, 2, false, false, Course::Bounded(2, "Current number of replicas below Spec.MinReplicas")),
            (9, 2, true, true, Course::Bounded(5, "Current number of replicas above Spec.MaxReplicas")),
            (3, 0, false, true, Course::Measured),
        ] {
            assert_eq!(course(current, least, 5, slept, outlives_pods), expected, "{current} {least} {slept}");
        }
    }
}
