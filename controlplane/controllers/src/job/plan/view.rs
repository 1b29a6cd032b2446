//! A Job and its pods as they are at one moment.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::Pod;

use super::INDEX;
use crate::{meta, podstate};

/// The completion index of a pod.
pub fn index_of(pod: &Pod) -> Option<i32> {
    meta::annotation(&pod.metadata, INDEX)?.parse().ok()
}

pub struct View<'a> {
    pub spec: JobSpec,
    pub pods: &'a [Arc<Pod>],
    pub indexed: bool,
    pub now: Timestamp,
}

impl View<'_> {
    pub fn is_failed(&self, pod: &Pod) -> bool {
        let only_phase = self.spec.pod_failure_policy.is_some() || self.waits_for_failed();
        match podstate::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            _ => meta::is_deleting(&pod.metadata) && !only_phase,
        }
    }

    /// A pod being deleted is replaced only when it has ended.
    pub fn waits_for_failed(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    pub fn active(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().filter(|pod| podstate::is_active(pod))
    }

    pub fn terminating(&self) -> i32 {
        self.pods.iter().filter(|pod| meta::is_deleting(&pod.metadata) && !podstate::is_finished(pod)).count() as i32
    }

    pub fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    pub fn in_range(&self, index: i32) -> bool {
        (0..self.completions()).contains(&index)
    }
}

pub fn is_suspended(view: &View<'_>) -> bool {
    view.spec.suspend == Some(true)
}
