//! Network namespaces by path.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use crate::{Error, Result};

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::Io { operation: format!("open network namespace {}", path.display()), source }),
        }
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Device and inode: equal for two handles of one namespace.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let metadata = self.file.metadata().map_err(|source| Error::Io {
            operation: format!("inspect network namespace {}", self.path.display()),
            source,
        })?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Runs `work` on a thread of its own inside this namespace. The caller's thread never moves,
    /// so a failure can leave nothing in the wrong namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let operation = || format!("enter network namespace {}", self.path.display());
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || setns(&self.file, CloneFlags::CLONE_NEWNET).map(|()| work()))
                .map_err(|error| Error::Thread { operation: operation(), what: error.to_string() })?;
            match thread.join() {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(errno)) => Err(Error::system(operation(), errno)),
                Err(_) => Err(Error::Thread { operation: operation(), what: "it panicked".to_owned() }),
            }
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
