//! Changes in a directory, by inotify(7): for logs that are followed and manifests that come and go.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// A directory under watch.
pub struct Changes {
    inotify: Inotify,
    /// A second descriptor of the same instance, for the runtime to wait on.
    readiness: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Files that appear, go, are renamed, grow, or are closed after writing. Fails when the directory does not
    /// exist, or the host's limit of inotify instances is reached.
    pub fn of(directory: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(directory, flags)?;
        let readiness = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor belongs to the value that is registered and lives as long as it.
        let readiness =
            unsafe { AsyncFd::register(readiness) }.map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self { inotify, readiness })
    }

    /// Returns when something changed since the last call; several changes count as one.
    pub async fn next(&mut self) {
        let Ok(mut ready) = self.readiness.readable().await else { return std::future::pending().await };
        while self.inotify.read_events().is_ok() {}
        ready.clear_ready();
    }
}
