//! What a hollow pod does next. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use kubelet::pod::actions::{Memory, is_sidecar};
use kubelet::pod::observed::{Observed, Run, RunState, Sandbox};
use kubelet::pod::status::{self, Resize, View};

/// What is to be done about one pod.
#[derive(Debug, PartialEq)]
pub enum Step {
    Nothing,
    Publish(Box<PodStatus>),
    /// The pod is being deleted, and nothing of it runs.
    Remove,
}

pub fn step(pod: &Pod, ip: IpAddr, host_ip: IpAddr, now: Timestamp) -> Step {
    if pod.metadata.deletion_timestamp.is_some() {
        return Step::Remove;
    }
    let last = pod.status.clone().unwrap_or_default();
    if matches!(last.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Step::Nothing;
    }
    let observed = started(pod, ip, &last, now);
    let view = View {
        recursive_read_only_works: false,
        pod,
        last: &last,
        observed: &observed,
        memory: &Memory::default(),
        waiting: &BTreeMap::new(),
        ending: succeeds(pod),
        verdict: None,
        host_ips: &[host_ip],
        resize: Resize::default(),
        now,
    };
    let status = status::generate(&view);
    if status == last { Step::Nothing } else { Step::Publish(Box::new(status)) }
}

/// A Job's pods are there to end; others run on.
fn succeeds(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.kind == "Job" && owner.controller == Some(true))
}

/// The pod as a runtime would show it that starts, and ends, everything at once.
fn started(pod: &Pod, ip: IpAddr, last: &PodStatus, now: Timestamp) -> Observed {
    let Some(spec) = pod.spec.as_ref() else { return Observed::default() };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let at = last.start_time.as_ref().map_or(now, |start| start.0);
    let host_network = spec.host_network == Some(true);
    let sandbox = Sandbox {
        id: format!("{uid}-sandbox"),
        attempt: 0,
        ready: true,
        created_at: at,
        ips: if host_network { Vec::new() } else { vec![ip.to_string()] },
        host_network,
    };
    let init = spec.init_containers.iter().flatten().map(|container| (container, !is_sidecar(container)));
    let main = spec.containers.iter().map(|container| (container, false));
    let over = succeeds(pod);
    let runs = init.chain(main).map(|(container, ends)| run(container, uid, at, ends || over)).collect();
    Observed::new(vec![sandbox], runs)
}

fn run(container: &Container, uid: &str, at: Timestamp, ended: bool) -> Run {
    let image = container.image.clone().unwrap_or_default();
    Run {
        // Another image is another container.
        id: format!("{uid}-{}-{}", container.name, image.replace(|c: char| !c.is_ascii_alphanumeric(), "-")),
        name: container.name.clone(),
        sandbox_id: format!("{uid}-sandbox"),
        restart_count: 0,
        state: if ended { RunState::Exited } else { RunState::Running },
        created_at: at,
        started_at: Some(at),
        finished_at: ended.then_some(at),
        exit_code: 0,
        reason: if ended { "Completed".to_owned() } else { String::new() },
        message: String::new(),
        image_id: image.clone(),
        image,
        hash: String::new(),
        termination_path: String::new(),
        termination_policy: String::new(),
        log_path: String::new(),
        termination_file: None,
        user: None,
        termination_grace: None,
        pre_stop: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const IP: &str = "10.0.0.2";

    fn pod(metadata: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": metadata,
            "spec": {
                "nodeName": "hollow-1",
                "restartPolicy": "Always",
                "initContainers": [{"name": "before", "image": "i"}, {"name": "beside", "image": "i", "restartPolicy": "Always"}],
                "containers": [{"name": "main", "image": "i", "readinessProbe": {"exec": {"command": ["x"]}}}],
            },
            "status": status,
        }))
        .unwrap()
    }

    fn take(pod: &Pod) -> Step {
        step(pod, IP.parse().unwrap(), "192.0.2.1".parse().unwrap(), Timestamp::from_second(1_000).unwrap())
    }

    fn published(step: Step) -> PodStatus {
        match step {
            Step::Publish(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn is_true(status: &PodStatus, name: &str) -> bool {
        status.conditions.iter().flatten().any(|condition| condition.type_ == name && condition.status == "True")
    }

    #[test]
    fn a_bound_pod_runs_and_is_ready_at_once() {
        let status = published(take(&pod(json!({"uid": "u"}), json!({"phase": "Pending"}))));
        assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some(IP)));
        for condition in ["Initialized", "ContainersReady", "Ready"] {
            assert!(is_true(&status, condition), "{condition}: {:?}", status.conditions);
        }
        let before = &status.init_container_statuses.as_ref().unwrap()[0];
        assert_eq!(before.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 0);
        // and nothing more is to be said
        let again = pod(json!({"uid": "u"}), serde_json::to_value(&status).unwrap());
        assert_eq!(take(&again), Step::Nothing);
    }

    #[test]
    fn the_pods_of_a_job_succeed() {
        let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "o", "controller": true});
        let mut of_job = pod(json!({"uid": "u", "ownerReferences": [owner]}), json!({"phase": "Pending"}));
        of_job.spec.as_mut().unwrap().restart_policy = Some("Never".into());
        let status = published(take(&of_job));
        assert_eq!(status.phase.as_deref(), Some("Succeeded"));
        of_job.status = Some(status);
        assert_eq!(take(&of_job), Step::Nothing);
    }

    #[test]
    fn a_deleted_pod_goes() {
        let going = pod(json!({"uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({"phase": "Running"}));
        assert_eq!(take(&going), Step::Remove);
    }
}
