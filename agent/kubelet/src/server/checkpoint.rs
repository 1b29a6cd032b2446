//! `/checkpoint/`: what a container is now, in an archive that a runtime can make it from again
//! (`pkg/kubelet/server/server.go: checkpoint`).
//!
//! The runtime writes the archive, with the container's memory; its directory is root's alone.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use jiff::Zoned;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::reply::{self, Reply};
use super::route::query_values;
use crate::server_contract::NodePods;

/// The container that is meant.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub container: &'a str,
}

/// Why there is no archive. Messages are Kubernetes'.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("pod does not exist")]
    NoPod,
    #[error("container {0} does not exist")]
    NoContainer(String),
    #[error("cannot parse value of timeout parameter")]
    Timeout,
    #[error("checkpointing of {0} failed ({1})")]
    Failed(String, String),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Failed(..) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::NOT_FOUND,
        }
    }
}

/// Answers where the archive is.
pub async fn serve(pods: &dyn NodePods, directory: &Path, of: Of<'_>, query: Option<&str>) -> Reply {
    match archive(pods, directory, of, query).await {
        Ok(path) => reply::json(&json!({ "items": [path.display().to_string()] })),
        Err(refused) => reply::error(refused.status(), refused.to_string()),
    }
}

async fn archive(pods: &dyn NodePods, directory: &Path, of: Of<'_>, query: Option<&str>) -> Result<PathBuf, Refused> {
    let pod = pods.pod(of.namespace, of.pod).ok_or(Refused::NoPod)?;
    if !has(&pod, of.container) {
        return Err(Refused::NoContainer(of.container.to_owned()));
    }
    let seconds = timeout(query)?;
    let failed = |why: String| Refused::Failed(format!("{}/{}/{}", of.namespace, of.pod, of.container), why);
    let limit = u64::try_from(seconds);
    let limit = limit.map_err(|_| failed("CheckpointContainer requires the timeout value to be > 0".to_owned()))?;
    let view = pods.runtime_view(pod.metadata.uid.as_deref().unwrap_or_default());
    let run = view.container(of.container, false).filter(|run| run.running);
    let run = run.ok_or_else(|| failed(format!("container {} not found", of.container)))?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| failed(format!("making the directory {}: {error}", directory.display())))?;
    let path = directory.join(file_name(of, &Zoned::now()));
    let written = pods.runtime().checkpoint_container(&run.id, &path, Duration::from_secs(limit)).await;
    written.map_err(|error| failed(error.runtime_message()))?;
    Ok(path)
}

/// Whether the pod has a container of this name, of whichever kind.
fn has(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let names = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|known| &known.name);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|known| &known.name);
    names.chain(ephemeral).any(|name| name == container)
}

/// Seconds; the last of several values counts.
fn timeout(query: Option<&str>) -> Result<i64, Refused> {
    let Some(last) = query_values(query, "timeout").pop() else { return Ok(0) };
    last.parse().map_err(|_| Refused::Timeout)
}

fn file_name(of: Of<'_>, at: &Zoned) -> String {
    // As Go writes it: no offset is a letter.
    let offset = if at.offset().seconds() == 0 { "Z".to_owned() } else { at.strftime("%:z").to_string() };
    let at = at.strftime("%Y-%m-%dT%H:%M:%S");
    format!("checkpoint-{}_{}-{}-{at}{offset}.tar", of.pod, of.namespace, of.container)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::{TimeZone, offset};

    use super::*;

    const OF: Of<'_> = Of { namespace: "ns", pod: "p", container: "c" };

    #[test]
    fn archives_are_named_by_container_and_time() {
        for (zone, name) in [
            (TimeZone::UTC, "checkpoint-p_ns-c-1970-01-01T00:00:00Z.tar"),
            (TimeZone::fixed(offset(2)), "checkpoint-p_ns-c-1970-01-01T02:00:00+02:00.tar"),
        ] {
            assert_eq!(file_name(OF, &Timestamp::UNIX_EPOCH.to_zoned(zone)), name);
        }
    }

    #[test]
    fn the_last_timeout_counts() {
        for (query, seconds) in [
            (None, Ok(0)),
            (Some("x=1"), Ok(0)),
            (Some("timeout=5&timeout=7"), Ok(7)),
            (Some("timeout=-1"), Ok(-1)),
            (Some("timeout="), Err(Refused::Timeout)),
            (Some("timeout=1s"), Err(Refused::Timeout)),
        ] {
            assert_eq!(timeout(query), seconds, "{query:?}");
        }
    }

    #[test]
    fn every_kind_of_container_is_found() {
        let pod = json!({"spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}], "ephemeralContainers": [{"name": "e"}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        for (name, found) in [("c", true), ("i", true), ("e", true), ("x", false)] {
            assert_eq!(has(&pod, name), found, "{name}");
        }
    }

    #[test]
    fn what_failed_is_told_from_what_is_not_there() {
        for (refused, status, message) in [
            (Refused::NoPod, 404, "pod does not exist"),
            (Refused::NoContainer("c".to_owned()), 404, "container c does not exist"),
            (Refused::Timeout, 404, "cannot parse value of timeout parameter"),
            (Refused::Failed("ns/p/c".to_owned(), "no".to_owned()), 500, "checkpointing of ns/p/c failed (no)"),
        ] {
            assert_eq!((refused.status().as_u16(), refused.to_string().as_str()), (status, message));
        }
    }
}
