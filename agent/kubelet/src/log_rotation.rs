//! Containers' log files are kept bounded (`pkg/kubelet/logs/container_log_manager.go`): a file that
//! grew over its limit is renamed with the time, the runtime opens a new one, and all but the newest
//! of the old ones are compressed or removed. [`plan`] is pure.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Zoned;

use crate::context::NodeContext;
use crate::manager::Manager;

const PERIOD: Duration = Duration::from_secs(10);

pub async fn run(node: Arc<NodeContext>, manager: Arc<Manager>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        for snapshot in manager.snapshots() {
            for run in snapshot.observed.runs.iter().filter(|run| run.is_running() && !run.log_path.is_empty()) {
                let log = PathBuf::from(&run.log_path);
                if let Err(error) = look_at(&node, &log, &run.id).await {
                    tracing::warn!(log = %log.display(), error, "a container's log could not be rotated; trying again");
                }
            }
        }
    }
}

async fn look_at(node: &NodeContext, log: &Path, container_id: &str) -> Result<(), String> {
    match std::fs::metadata(log) {
        Ok(meta) if meta.len() < node.config.container_logs.max_size => Ok(()),
        Ok(_) => rotate(node, log, container_id).await,
        // Someone removed it: what the container says from now on is kept again.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => reopen(node, container_id).await,
        Err(error) => Err(error.to_string()),
    }
}

async fn reopen(node: &NodeContext, container_id: &str) -> Result<(), String> {
    match node.runtime.reopen_log(container_id).await {
        // It ended meanwhile, and so did its log.
        Err(error) if error.is_not_found() || error.runtime_message().contains("container is not running") => Ok(()),
        answer => answer.map_err(|error| error.to_string()),
    }
}

async fn rotate(node: &NodeContext, log: &Path, container_id: &str) -> Result<(), String> {
    let keep = node.config.container_logs.max_files;
    let path = log.to_owned();
    tokio::task::spawn_blocking(move || make_room(&path, keep)).await.map_err(|error| error.to_string())??;
    // Times in names are local, as Kubernetes writes them.
    let renamed = with_suffix(log, &Zoned::now().strftime(".%Y%m%d-%H%M%S").to_string());
    std::fs::rename(log, &renamed).map_err(|error| format!("renaming: {error}"))?;
    if let Err(error) = node.runtime.reopen_log(container_id).await {
        // The runtime still writes to the renamed file: give it its name back.
        let _ = std::fs::rename(&renamed, log);
        return Err(error.to_string());
    }
    Ok(())
}

/// Removes what is too much once the log and its successor are there too, and compresses the rest.
fn make_room(log: &Path, keep: u32) -> Result<(), String> {
    let plan = plan(rotated(log), keep);
    for path in plan.remove {
        std::fs::remove_file(&path).map_err(|error| format!("removing {}: {error}", path.display()))?;
    }
    plan.compress.iter().try_for_each(|path| compress(path))
}

/// What was rotated from a log, and what is left of a compression that was interrupted.
fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).map(|entry| entry.path()).collect()
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    remove: Vec<PathBuf>,
    compress: Vec<PathBuf>,
}

fn plan(files: Vec<PathBuf>, keep: u32) -> Plan {
    let is = |path: &Path, suffix: &str| path.extension().is_some_and(|extension| extension == suffix);
    let unused = |path: &PathBuf| is(path, "tmp") || files.contains(&with_suffix(path, ".gz"));
    let (mut remove, mut used): (Vec<_>, Vec<_>) = files.iter().cloned().partition(unused);
    // Names are times: the oldest first.
    used.sort();
    let kept = used.split_off(used.len().saturating_sub(keep.saturating_sub(2) as usize));
    remove.extend(used);
    Plan { remove, compress: kept.into_iter().filter(|path| !is(path, "gz")).collect() }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn compress(path: &Path) -> Result<(), String> {
    let unfinished = with_suffix(path, ".tmp");
    let write = || -> std::io::Result<()> {
        let mut log = File::open(path)?;
        let mode = log.metadata()?.permissions().mode();
        let target = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&unfinished)?;
        let mut encoder = GzEncoder::new(target, Compression::default());
        std::io::copy(&mut log, &mut encoder)?;
        encoder.finish()?.flush()?;
        std::fs::rename(&unfinished, with_suffix(path, ".gz"))?;
        std::fs::remove_file(path)
    };
    write().map_err(|error| format!("compressing {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(|name| Path::new("/c/0.log").with_extension(format!("log.{name}"))).collect()
    }

    #[test]
    fn the_newest_are_compressed_and_the_others_go() {
        let old = &["20260103-000000", "20260101-000000.gz", "20260102-000000.gz"];
        for (files, keep, remove, compress) in [
            (&[][..], 5, &[][..], &[][..]),
            (old, 5, &[], &["20260103-000000"]),
            (old, 4, &["20260101-000000.gz"], &["20260103-000000"]),
            (old, 3, &["20260101-000000.gz", "20260102-000000.gz"], &["20260103-000000"]),
            (old, 2, &["20260101-000000.gz", "20260102-000000.gz", "20260103-000000"], &[]),
            // an interrupted compression is begun again, a finished one is not
            (&["20260101-000000", "20260101-000000.tmp"], 5, &["20260101-000000.tmp"], &["20260101-000000"]),
            (&["20260101-000000", "20260101-000000.gz"], 5, &["20260101-000000"], &[]),
        ] {
            let expected = Plan { remove: paths(remove), compress: paths(compress) };
            assert_eq!(plan(paths(files), keep), expected, "{files:?}, {keep}");
        }
    }

    #[test]
    fn what_is_compressed_is_the_same_text() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        for name in ["0.log", "0.log.20260102-000000", "1.log"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        std::fs::set_permissions(with_suffix(&log, ".20260102-000000"), std::fs::Permissions::from_mode(0o640))
            .unwrap();
        make_room(&log, 5).unwrap();
        let compressed = with_suffix(&log, ".20260102-000000.gz");
        assert_eq!(rotated(&log), std::slice::from_ref(&compressed));
        assert_eq!(std::fs::metadata(&compressed).unwrap().permissions().mode() & 0o777, 0o640);
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(&compressed).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "0.log.20260102-000000");
    }
}
