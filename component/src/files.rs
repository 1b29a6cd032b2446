//! Files that are read again when they change: certificates, keys, configuration, manifests, logs.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// Wakes when something happens in the directories of some files. The directories are watched, not
/// the files: what is replaced by rename, or through a symbolic link of a mounted volume, counts.
pub struct Files {
    inotify: AsyncFd<Descriptor>,
}

/// What puts other content under a name.
const REPLACED: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF);

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Files {
    /// Must be called inside a tokio runtime.
    pub fn watch<'a>(paths: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        Self::watch_directories(paths.into_iter().map(directory).collect(), REPLACED)
    }

    /// The files of one directory, whichever come and go; with `growing`, also while they are written.
    pub fn watch_all_in(directory: &Path, growing: bool) -> io::Result<Self> {
        let events = if growing { REPLACED | AddWatchFlags::IN_MODIFY } else { REPLACED };
        Self::watch_directories(BTreeSet::from([directory.to_owned()]), events)
    }

    fn watch_directories(directories: BTreeSet<PathBuf>, events: AddWatchFlags) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        for directory in directories {
            inotify.add_watch(&directory, events).map_err(|error| {
                io::Error::new(io::Error::from(error).kind(), format!("watching {}: {error}", directory.display()))
            })?;
        }
        // SAFETY: the descriptor is owned by the value and closed with it, never before.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) };
        Ok(Self { inotify: inotify.map_err(|error| io::Error::other(error.to_string()))? })
    }

    /// Returns after at least one change since the last call.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut seen = false;
            loop {
                match ready.get_inner().0.read_events() {
                    Ok(events) => seen |= !events.is_empty(),
                    Err(Errno::EAGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if seen {
                return Ok(());
            }
        }
    }
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_replaced_by_rename_is_noticed() {
        let dir = std::env::temp_dir().join(format!("skiff-files-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("tls.crt");
        let files = Files::watch([path.as_path()]).unwrap();
        std::fs::write(dir.join("new"), "2").unwrap();
        std::fs::rename(dir.join("new"), &path).unwrap();
        files.changed().await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2");
        std::fs::remove_dir_all(&dir).unwrap();
        let missing = Files::watch([path.as_path()]).err().unwrap();
        assert!(missing.to_string().contains("skiff-files-"), "{missing}");
    }
}
