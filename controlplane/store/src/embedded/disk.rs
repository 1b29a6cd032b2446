//! What the engine asks of a disk, and the real one.
//!
//! Lowest layer of the engine. [`Disk`] is one directory; [`DiskFile`] one open file of it, which
//! stays readable after its name is gone. Tests put a disk in its place that loses unsynced data
//! and unsynced names, so every assumption about what survives a power cut stands here: bytes
//! survive once [`DiskFile::sync`] returned, names (made, replaced, removed) once
//! [`Disk::sync_names`] did, and a sector of 512 bytes is written whole or not at all.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::damage::Damage;
use crate::StoreError;

/// One directory.
pub trait Disk: Send + Sync + 'static {
    /// For messages.
    fn path(&self) -> &Path;
    fn names(&self) -> io::Result<Vec<String>>;
    /// An empty file; one of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Replaces `to`, if there is one.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all of the above durable.
    fn sync_names(&self) -> io::Result<()>;
}

/// One open file.
pub trait DiskFile: Send + Sync + 'static {
    fn length(&self) -> io::Result<u64>;
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Fills `bytes`, or fails with `UnexpectedEof`.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
}

const LOCK: &str = "lock";
/// Every Secret is in these files: they are their owner's alone, as etcd's are.
const OWN_DIRECTORY: u32 = 0o700;
pub const OWN_FILE: u32 = 0o600;

/// A directory of the file system, locked against other processes as long as this lives.
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory if it is missing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let damage = Damage::of(path);
        std::fs::create_dir_all(path).map_err(damage.io("making the directory"))?;
        // Also where an earlier version made it.
        let own = std::fs::set_permissions(path, Permissions::from_mode(OWN_DIRECTORY));
        own.map_err(damage.io("setting the permissions of"))?;
        let place = path.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&place);
        let lock = lock.map_err(Damage::of(&place).io("opening"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(Damage::of(&place).io("locking")(error)),
        }
    }
}

impl Disk for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(OWN_FILE);
        Ok(Arc::new(options.open(self.path.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(File::options().read(true).write(true).open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        Self::set_len(self, length)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_open_to_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server/db");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let disk = Directory::open(&path).unwrap();
        drop(disk.create("00000001.log").unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("00000001.log"))), (OWN_DIRECTORY, OWN_FILE));
    }
}
