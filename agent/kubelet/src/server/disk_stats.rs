//! What pods have on disk, for `/stats/summary`: what their containers wrote and logged, and their volumes.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

/// How long a pod's volumes are believed to be as large as they were: finding out is a walk through all files,
/// and Kubernetes' kubelet does so once a minute, too.
const BELIEVED: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// `FsStats`: a file system, and what one has in it.
pub fn told(file_system: &Value, used: Used) -> Value {
    let mut told = file_system.clone();
    if !told.is_object() {
        told = json!({});
    }
    told["usedBytes"] = used.bytes.into();
    told["inodesUsed"] = used.inodes.into();
    told
}

/// What emptyDir volumes hold, by pod UID.
#[derive(Default)]
pub struct Volumes {
    seen: Mutex<HashMap<String, (Instant, Used)>>,
}

impl Volumes {
    /// `root` is the kubelet's directory. Pods that are not named any more are forgotten.
    pub async fn of(&self, root: &Path, pods: Vec<String>) -> HashMap<String, Used> {
        let now = Instant::now();
        self.seen.lock().retain(|uid, (at, _)| now.duration_since(*at) < BELIEVED && pods.contains(uid));
        let unknown: Vec<(String, PathBuf)> = {
            let seen = self.seen.lock();
            let unknown = pods.into_iter().filter(|uid| !seen.contains_key(uid));
            unknown.map(|uid| (uid.clone(), empty_dirs(root, &uid))).collect()
        };
        let walk = move || unknown.into_iter().map(|(uid, directory)| (uid, walk(&directory))).collect::<Vec<_>>();
        let found = tokio::task::spawn_blocking(walk).await.unwrap_or_default();
        let mut seen = self.seen.lock();
        seen.extend(found.into_iter().map(|(uid, used)| (uid, (now, used))));
        seen.iter().map(|(uid, (_, used))| (uid.clone(), *used)).collect()
    }
}

fn empty_dirs(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid).join("volumes/kubernetes.io~empty-dir")
}

/// Everything below a directory that is on the same disk: a volume in memory is not.
fn walk(directory: &Path) -> Used {
    let Ok(top) = directory.symlink_metadata() else { return Used::default() };
    let mut used = Used::default();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            used += Used { bytes: meta.blocks() * 512, inodes: 1 };
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn volumes_are_looked_at_once_a_minute() {
        let root = tempfile::tempdir().unwrap();
        let volume = empty_dirs(root.path(), "a").join("data");
        std::fs::create_dir_all(&volume).unwrap();
        let (volumes, pods) = (Volumes::default(), || vec!["a".to_owned(), "b".to_owned()]);
        let before = volumes.of(root.path(), pods()).await;
        assert_eq!((before["a"].inodes, before["b"]), (1, Used::default()));
        std::fs::write(volume.join("file"), vec![1; 10_000]).unwrap();
        assert_eq!(volumes.of(root.path(), pods()).await, before);
        tokio::time::advance(BELIEVED).await;
        let after = volumes.of(root.path(), pods()).await;
        assert_eq!(after["a"].inodes, 2);
        assert!(after["a"].bytes >= before["a"].bytes + 10_000, "{after:?}");
        assert!(volumes.of(root.path(), Vec::new()).await.is_empty());
    }

    #[test]
    fn what_is_used_is_told_beside_the_file_system() {
        let disk = json!({ "capacityBytes": 9, "usedBytes": 8, "inodesUsed": 7 });
        let expected = json!({ "capacityBytes": 9, "usedBytes": 2, "inodesUsed": 1 });
        assert_eq!(told(&disk, Used { bytes: 2, inodes: 1 }), expected);
        assert_eq!(told(&Value::Null, Used::default()), json!({ "usedBytes": 0, "inodesUsed": 0 }));
    }
}
