//! SchedulingGates: a pod with `spec.schedulingGates` is not considered until they are removed.

use crate::framework::{Plugin, Point};
use crate::pod::PodInfo;

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreEnqueue]
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), String> {
        let gates = pod.spec().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default();
        if gates.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = gates.iter().map(|gate| gate.name.as_str()).collect();
        Err(format!("waiting for scheduling gates: [{}]", names.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gates_hold_a_pod_back() {
        let gated = crate::testing::pod(json!({"containers": [], "schedulingGates": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(SchedulingGates.pre_enqueue(&gated), Err("waiting for scheduling gates: [a b]".to_owned()));
        assert_eq!(SchedulingGates.pre_enqueue(&crate::testing::pod(json!({"containers": []}))), Ok(()));
    }
}
