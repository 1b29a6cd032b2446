//! Snapshot files of the embedded store: looking into them, and making a stopped server's store
//! from one. Taking one is the running server's (`/skiff/v1/store/snapshot`).

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use store::{Embedded, StoreError};

/// Where this server's store is.
pub fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("server/db")
}

/// Where `skiff snapshot save` puts snapshots that are given no place.
pub fn default_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("server/snapshots")
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub revision: u64,
    pub keys: u64,
}

impl From<store::SnapshotInfo> for Info {
    fn from(info: store::SnapshotInfo) -> Self {
        Self { revision: info.revision, keys: info.keys }
    }
}

/// Reads the whole file and checks every record of it.
pub fn inspect(file: &Path) -> anyhow::Result<Info> {
    Ok(store::read_snapshot(file, |_| {})?.into())
}

/// What [`restore`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Restored {
    pub info: Info,
    /// Where the store is now that was there before.
    pub replaced: Option<PathBuf>,
}

/// Makes the store of the stopped server in `data_dir` from a snapshot. The store that was there is
/// kept beside it; a restore that fails leaves it in its place.
pub fn restore(file: &Path, data_dir: &Path) -> anyhow::Result<Restored> {
    let place = store_dir(data_dir);
    let exists = place.exists();
    if exists && let Err(StoreError::Locked { .. }) = Embedded::open(&place) {
        bail!("the server of {} runs; stop it, restore, and start it again", data_dir.display());
    }
    let fresh = place.with_extension("restoring");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh)
            .with_context(|| format!("removing {}, left by an interrupted restore", fresh.display()))?;
    }
    let info = Embedded::restore(file, &fresh)?.into();
    let replaced = exists.then(|| unused(&place));
    if let Some(aside) = &replaced {
        rename(&place, aside)?;
    }
    rename(&fresh, &place)?;
    let parent = place.parent().unwrap_or(data_dir);
    File::open(parent).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", parent.display()))?;
    Ok(Restored { info, replaced })
}

/// The first of `db.before-restore-1`, `…-2` and so on that is not there.
fn unused(place: &Path) -> PathBuf {
    let name = |number: u32| place.with_extension(format!("before-restore-{number}"));
    (1..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use store::{Range, Store, Txn};

    async fn keys(dir: &Path) -> Vec<String> {
        let page = Embedded::open(dir).unwrap().range(Range::prefix("/")).await.unwrap();
        page.kvs.iter().map(|kv| kv.key.to_string()).collect()
    }

    #[tokio::test]
    async fn a_restore_replaces_the_store_and_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let (place, file) = (store_dir(dir.path()), dir.path().join("snapshot"));
        let store = Embedded::open(&place).unwrap();
        store.txn(Txn::create("/a", "1")).await.unwrap();
        store.save_snapshot(&file).await.unwrap();
        store.txn(Txn::create("/b", "1")).await.unwrap();
        let running = restore(&file, dir.path()).unwrap_err().to_string();
        assert!(running.contains("runs; stop it"), "{running}");
        drop(store);
        // What an interrupted restore leaves is in nobody's way.
        std::fs::create_dir(place.with_extension("restoring")).unwrap();
        for number in 1..3 {
            let restored = restore(&file, dir.path()).unwrap();
            assert_eq!(restored.info, inspect(&file).unwrap());
            assert_eq!(restored.replaced, Some(place.with_extension(format!("before-restore-{number}"))));
        }
        assert_eq!(keys(&place).await, ["/a"]);
        assert_eq!(keys(&place.with_extension("before-restore-1")).await, ["/a", "/b"]);
        std::fs::write(&file, "rubbish").unwrap();
        assert!(restore(&file, dir.path()).is_err());
        assert_eq!(keys(&place).await, ["/a"], "a restore that fails changes nothing");
    }
}
