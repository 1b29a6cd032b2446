//! Containers' log files are kept bounded (`pkg/kubelet/logs/container_log_manager.go`): a file that
//! grew over its limit is renamed with the time, the runtime opens a new one, and all but the newest
//! of the old ones are compressed or removed. [`surplus`] is pure.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;

use crate::context::NodeContext;
use crate::manager::Manager;

const PERIOD: Duration = Duration::from_secs(10);

pub async fn run(node: Arc<NodeContext>, manager: Arc<Manager>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        for snapshot in manager.snapshots() {
            for run in snapshot.observed.runs.iter().filter(|run| run.is_running() && !run.log_path.is_empty()) {
                let log = PathBuf::from(&run.log_path);
                if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > node.config.container_log_max_size)
                    && let Err(error) = rotate(&node, &log, &run.id).await
                {
                    tracing::warn!(log = %log.display(), error, "a container's log could not be rotated; trying again");
                }
            }
        }
    }
}

async fn rotate(node: &NodeContext, log: &Path, container_id: &str) -> Result<(), String> {
    let keep = node.config.container_log_max_files.max(2) as usize;
    let old = rotated(log);
    // The file to be rotated now and the new one count too.
    for path in surplus(&old, keep.saturating_sub(2)) {
        std::fs::remove_file(&path).map_err(|error| format!("removing {}: {error}", path.display()))?;
    }
    for path in rotated(log).into_iter().filter(|path| path.extension().is_none_or(|extension| extension != "gz")) {
        tokio::task::spawn_blocking(move || compress(&path)).await.map_err(|error| error.to_string())??;
    }
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let renamed = PathBuf::from(format!("{}.{stamp}", log.display()));
    std::fs::rename(log, &renamed).map_err(|error| format!("renaming: {error}"))?;
    if let Err(error) = node.runtime.reopen_log(container_id).await {
        // The runtime still writes to the renamed file: give it its name back.
        let _ = std::fs::rename(&renamed, log);
        return Err(error.to_string());
    }
    Ok(())
}

/// What was rotated from a log, oldest first.
fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry.file_name().to_string_lossy().starts_with(&prefix)
                && !entry.file_name().to_string_lossy().ends_with(".tmp")
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// The oldest beyond `keep`.
pub fn surplus(oldest_first: &[PathBuf], keep: usize) -> Vec<PathBuf> {
    oldest_first[..oldest_first.len().saturating_sub(keep)].to_vec()
}

fn compress(path: &Path) -> Result<(), String> {
    let target = PathBuf::from(format!("{}.gz", path.display()));
    let unfinished = PathBuf::from(format!("{}.tmp", target.display()));
    let write = || -> std::io::Result<()> {
        let mut encoder = GzEncoder::new(std::fs::File::create(&unfinished)?, Compression::default());
        std::io::copy(&mut std::fs::File::open(path)?, &mut encoder)?;
        encoder.finish()?.flush()?;
        std::fs::rename(&unfinished, &target)?;
        std::fs::remove_file(path)
    };
    write().map_err(|error| format!("compressing {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_are_compressed_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        for name in ["0.log", "0.log.20260101-000000.gz", "0.log.20260102-000000", "1.log"] {
            std::fs::write(directory.path().join(name), "text").unwrap();
        }
        let old = rotated(&log);
        assert_eq!(old.len(), 2);
        assert_eq!(surplus(&old, 1), [directory.path().join("0.log.20260101-000000.gz")]);
        assert!(surplus(&old, 5).is_empty());
        compress(&directory.path().join("0.log.20260102-000000")).unwrap();
        assert!(
            directory.path().join("0.log.20260102-000000.gz").exists()
                && !directory.path().join("0.log.20260102-000000").exists()
        );
    }
}
