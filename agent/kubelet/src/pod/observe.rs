//! Asking the runtime what it has of a pod.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use proto::runtime::v1::Container;

use super::observed::{Observed, Run, RunState, Sandbox};
use crate::cri::{Runtime, RuntimeError};

/// How soon the runtime is asked again about what ended, doubling...
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// ... up to this.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// What Kubernetes keeps of a termination message file, bytes.
const MESSAGE_LIMIT: u64 = 4096;
/// What it keeps of the log with `FallbackToLogsOnError`.
const LOG_LIMIT: u64 = 2048;
const LOG_LINES: usize = 80;

/// Everything of one pod.
pub async fn pod(runtime: &Runtime, uid: &str) -> Result<Observed, RuntimeError> {
    let (sandboxes, containers) =
        tokio::try_join!(runtime.list_sandboxes(Some(uid)), runtime.list_containers(Some(uid)))?;
    let mut seen = Vec::new();
    for sandbox in sandboxes {
        if let Some(sandbox) = gone_is_none(self::sandbox(runtime, &sandbox.id).await)? {
            seen.push(sandbox);
        }
    }
    let mut runs = Vec::new();
    for container in containers {
        if let Some(run) = gone_is_none(run(runtime, &container.id, &container.pod_sandbox_id).await)? {
            runs.push(run);
        }
    }
    Ok(Observed::new(seen, runs))
}

pub async fn sandbox(runtime: &Runtime, id: &str) -> Result<Sandbox, RuntimeError> {
    Ok(Sandbox::from_status(&runtime.sandbox_status(id).await?))
}

/// One run, with its termination message if it ended.
pub async fn run(runtime: &Runtime, id: &str, sandbox_id: &str) -> Result<Run, RuntimeError> {
    let mut run = Run::from_status(&runtime.container_status(id).await?, sandbox_id);
    if run.state == RunState::Exited {
        run.message = termination_message(&run);
    }
    Ok(run)
}

/// Pauses between looks at a run whose end was announced, about a second in all.
const LOOKS: [u64; 8] = [3, 6, 12, 25, 50, 100, 200, 400];

/// A run that the runtime announced to have changed. containerd tells of an exit before its own CRI
/// side has taken note of it, so a run that still seems to run is looked at again, a few times.
pub async fn changed_run(runtime: &Runtime, id: &str, sandbox_id: &str) -> Result<Run, RuntimeError> {
    for pause in LOOKS {
        let seen = run(runtime, id, sandbox_id).await?;
        if !seen.is_running() {
            return Ok(seen);
        }
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
    }
    run(runtime, id, sandbox_id).await
}

/// One run that has just ended. The runtime's own bookkeeping may be a moment behind its event.
pub async fn ended_run(runtime: &Runtime, id: &str, sandbox_id: &str) -> Result<Run, RuntimeError> {
    let mut delay = FIRST_LOOK;
    loop {
        let run = run(runtime, id, sandbox_id).await?;
        if !run.is_running() || delay > LAST_LOOK {
            return Ok(run);
        }
        tokio::time::sleep(delay).await;
        delay *= 2;
    }
}

/// A sandbox whose own process has just ended, likewise.
pub async fn ended_sandbox(runtime: &Runtime, id: &str) -> Result<Sandbox, RuntimeError> {
    let mut delay = FIRST_LOOK;
    loop {
        let sandbox = sandbox(runtime, id).await?;
        if !sandbox.ready || delay > LAST_LOOK {
            return Ok(sandbox);
        }
        tokio::time::sleep(delay).await;
        delay *= 2;
    }
}

fn gone_is_none<T>(answer: Result<T, RuntimeError>) -> Result<Option<T>, RuntimeError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sandbox ids by container id.
pub fn owners(containers: &[Container]) -> HashMap<&str, &str> {
    containers.iter().map(|container| (container.id.as_str(), container.pod_sandbox_id.as_str())).collect()
}

/// What the container wrote for the purpose, or the end of its log if it failed and the policy says so,
/// or the runtime's own message.
fn termination_message(run: &Run) -> String {
    let written =
        run.termination_file.as_deref().map(|file| tail_bytes(Path::new(file), MESSAGE_LIMIT)).unwrap_or_default();
    if !written.is_empty() {
        return written;
    }
    if run.termination_policy == "FallbackToLogsOnError" && run.exit_code != 0 {
        let log = log_tail(Path::new(&run.log_path));
        if !log.is_empty() {
            return log;
        }
    }
    run.message.clone()
}

fn tail_bytes(path: &Path, limit: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The text of the last lines of a CRI log.
fn log_tail(path: &Path) -> String {
    // Each line carries a time stamp, the stream and a tag: room for those of a full tail.
    let raw = tail_bytes(path, LOG_LIMIT + 64 * LOG_LINES as u64);
    let mut text = String::new();
    let lines: Vec<&str> = raw.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
        let mut fields = line.splitn(4, ' ');
        if let (Some(_), Some(_), Some(tag), Some(content)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        {
            text.push_str(content);
            if tag.starts_with('F') {
                text.push('\n');
            }
        }
    }
    let cut = text.len().saturating_sub(LOG_LIMIT as usize);
    let start = (cut..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_cri_log() {
        let file = std::env::temp_dir().join(format!("skiff-log-tail-{}", std::process::id()));
        let lines = "2026-01-01T00:00:00.000000000Z stdout F one\n2026-01-01T00:00:00.000000000Z stderr P tw\n2026-01-01T00:00:00.000000000Z stderr F o\n";
        std::fs::write(&file, lines).unwrap();
        assert_eq!(log_tail(&file), "one\ntwo\n");
        assert_eq!(tail_bytes(&file, 2), "o\n");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(log_tail(&file), "");
    }
}
