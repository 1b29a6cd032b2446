//! Why the store could not do something. Messages name what was done, to what, and what helps.

use std::path::PathBuf;

use crate::Revision;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// `compacted` is the oldest revision that can be read; 0: not known.
    #[error("revision {requested} has been compacted; list again")]
    Compacted { requested: Revision, compacted: Revision },

    /// `current`: 0 if not known.
    #[error("revision {requested} lies in the future of the store")]
    FutureRevision { requested: Revision, current: Revision },

    #[error("a watch of {prefix:?} fell behind: {queued} events were waiting for it; list again and watch from there")]
    WatchTooSlow { prefix: String, queued: usize },

    #[error("{path} is damaged: {detail}; restore a snapshot that is whole (skiff snapshot restore)")]
    Damaged { path: PathBuf, detail: String },

    #[error(
        "{path} is of an earlier version of skiff, whose store this one does not read; take a snapshot with that \
         version (skiff snapshot save), move the file away, and restore the snapshot here (skiff snapshot restore)"
    )]
    OtherFormat { path: PathBuf },

    #[error("{path} is in use by another process; stop it, or give this server another --data-dir")]
    Locked { path: PathBuf },

    #[error("{doing} {path}: {detail}; check the disk's free space and health, then start the server again")]
    Io { doing: &'static str, path: PathBuf, detail: String },

    #[error("{store} takes its snapshots with its own tool: {instead}")]
    NoSnapshot { store: &'static str, instead: String },

    #[error("the store is closed")]
    Closed,

    #[error("{doing} at etcd {endpoints}: {detail}; check that the members are up and that the certificates fit")]
    Unavailable { doing: &'static str, endpoints: String, detail: String },

    #[error("encrypting the value of key {key:?}: {detail}")]
    Unsealed { key: String, detail: String },

    /// Values that were stored encrypted and cannot be read; at least one.
    #[error("unable to transform {}", unreadable(.0))]
    Unreadable(Vec<Unreadable>),

    #[error("writing {key:?}: {bytes} bytes are more than the store takes ({limit})")]
    TooLarge { key: String, bytes: usize, limit: usize },
}

/// A value that is there and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub key: String,
    /// Where it was last written.
    pub revision: Revision,
    pub why: String,
}

fn unreadable(all: &[Unreadable]) -> String {
    let more = if all.len() > 1 { format!(" (and {} more)", all.len() - 1) } else { String::new() };
    all.first().map_or_else(String::new, |first| format!("key {:?}: {}{more}", first.key, first.why))
}
