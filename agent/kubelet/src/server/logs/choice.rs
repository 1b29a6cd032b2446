//! Which run of a container a log request means. Messages are the kubelet's.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::server_contract::{ContainerRun, PodRuntimeView};

/// The run whose log is wanted: the newest that was started, or the one before it.
pub fn choose<'a>(
    pod: &Pod,
    view: &'a PodRuntimeView,
    container: &str,
    previous: bool,
) -> Result<&'a ContainerRun, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let started = |run: &&ContainerRun| run.name == container && run.started_at.is_some();
    let mut runs = view.containers.iter().filter(started);
    if previous {
        // The newest run that has ended, leaving out the current one if that is it.
        let mut ended = runs.filter(|run| !run.running);
        let current_ended = !view.containers.iter().any(|run| run.name == container && run.running);
        let waiting_after = is_waiting_after_end(pod, container);
        let found = if current_ended && !waiting_after { ended.nth(1) } else { ended.next() };
        return found.ok_or_else(|| format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    match runs.next() {
        Some(run) => Ok(run),
        None => Err(unavailable(pod, name, container)),
    }
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == container)
}

/// Between two runs the ended one is the "last state" already: it is the previous run.
fn is_waiting_after_end(pod: &Pod, container: &str) -> bool {
    status_of(pod, container).is_some_and(|status| {
        let waiting = status.state.as_ref().is_some_and(|state| state.waiting.is_some());
        waiting && status.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
    })
}

fn unavailable(pod: &Pod, name: &str, container: &str) -> String {
    let Some(status) = status_of(pod, container) else {
        return format!("container {container:?} in pod {name:?} is not available");
    };
    let state = status.state.as_ref();
    if state.is_some_and(|state| state.terminated.is_some()) {
        return format!("container {container:?} in pod {name:?} is terminated");
    }
    let reason = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
    let why = match reason {
        Some("ErrImagePull") => ": image can't be pulled",
        Some("ImagePullBackOff") => ": trying and failing to pull image",
        Some(reason) => return format!("container {container:?} in pod {name:?} is waiting to start: {reason}"),
        None => " - no logs yet",
    };
    format!("container {container:?} in pod {name:?} is waiting to start{why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(attempt: u32, running: bool) -> ContainerRun {
        ContainerRun {
            name: "c".into(),
            id: format!("id-{attempt}"),
            attempt,
            running,
            started_at: Some(jiff::Timestamp::UNIX_EPOCH),
            finished_at: None,
            log_path: format!("/c/{attempt}.log").into(),
        }
    }

    fn pod(state: serde_json::Value) -> Pod {
        let status = json!({ "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": state["state"], "lastState": state["lastState"] });
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": { "containerStatuses": [status] } }))
            .unwrap()
    }

    fn chosen(pod: &Pod, runs: &[ContainerRun], previous: bool) -> Result<u32, String> {
        let view = PodRuntimeView { sandbox_id: None, containers: runs.to_vec() };
        choose(pod, &view, "c", previous).map(|run| run.attempt)
    }

    #[test]
    fn the_newest_run_or_the_one_before() {
        let running = pod(json!({ "state": { "running": {} } }));
        assert_eq!(chosen(&running, &[run(1, true), run(0, false)], false), Ok(1));
        assert_eq!(chosen(&running, &[run(1, true), run(0, false)], true), Ok(0));
        let message = "previous terminated container \"c\" in pod \"p\" not found";
        assert_eq!(chosen(&running, &[run(0, true)], true), Err(message.to_owned()));
    }

    #[test]
    fn a_crashed_container_in_back_off_is_its_own_previous_run() {
        let backing_off = pod(json!({ "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": 1 } } }));
        assert_eq!(chosen(&backing_off, &[run(3, false), run(2, false)], true), Ok(3));
        assert_eq!(chosen(&backing_off, &[run(3, false), run(2, false)], false), Ok(3));
        let ended = pod(json!({ "state": { "terminated": { "exitCode": 1 } } }));
        assert_eq!(chosen(&ended, &[run(3, false), run(2, false)], true), Ok(2));
    }

    #[test]
    fn without_a_run_the_message_says_why() {
        let cases = [
            (
                json!({ "state": { "waiting": { "reason": "ContainerCreating" } } }),
                "is waiting to start: ContainerCreating",
            ),
            (
                json!({ "state": { "waiting": { "reason": "ErrImagePull" } } }),
                "is waiting to start: image can't be pulled",
            ),
            (
                json!({ "state": { "waiting": { "reason": "ImagePullBackOff" } } }),
                "is waiting to start: trying and failing to pull image",
            ),
            (json!({ "state": { "terminated": { "exitCode": 0 } } }), "is terminated"),
        ];
        for (state, ending) in cases {
            assert_eq!(chosen(&pod(state), &[], false), Err(format!("container \"c\" in pod \"p\" {ending}")));
        }
    }
}
