//! The sockets of a directory, and what became of them since the last look. [`changes`] is pure.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Tells a socket from another of the same name: inode, and when it was bound (seconds, nanoseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u64, i64, i64);

pub type Listing = BTreeMap<PathBuf, Identity>;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub gone: Vec<PathBuf>,
    pub new: Vec<PathBuf>,
}

/// The directory's sockets, but for those whose names begin with a dot.
pub fn list(directory: &Path) -> Listing {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let visible = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    let sockets = visible.filter_map(|entry| {
        let meta = entry.metadata().ok().filter(|meta| meta.file_type().is_socket())?;
        Some((entry.path(), Identity(meta.ino(), meta.mtime(), meta.mtime_nsec())))
    });
    sockets.collect()
}

/// A socket that was made anew is gone and new.
pub fn changes(before: &Listing, now: &Listing) -> Changes {
    let other = |in_: &Listing, path: &PathBuf, identity: &Identity| in_.get(path) != Some(identity);
    let pick = |from: &Listing, than: &Listing| {
        from.iter().filter(|(path, identity)| other(than, path, identity)).map(|(path, _)| path.clone()).collect()
    };
    Changes { gone: pick(before, now), new: pick(now, before) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(sockets: &[(&str, u64)]) -> Listing {
        sockets.iter().map(|(name, inode)| (PathBuf::from(name), Identity(*inode, 0, 0))).collect()
    }

    #[test]
    fn sockets_come_go_and_are_made_anew() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        for (before, now, gone, new) in [
            (vec![], vec![("a", 1)], vec![], vec!["a"]),
            (vec![("a", 1)], vec![("a", 1)], vec![], vec![]),
            (vec![("a", 1)], vec![("a", 2), ("b", 3)], vec!["a"], vec!["a", "b"]),
            (vec![("a", 1), ("b", 3)], vec![("b", 3)], vec!["a"], vec![]),
        ] {
            let found = changes(&listing(&before), &listing(&now));
            assert_eq!(found, Changes { gone: paths(&gone), new: paths(&new) }, "{before:?} {now:?}");
        }
    }

    #[test]
    fn only_sockets_that_are_no_secret_count() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file.sock"), "").unwrap();
        let bind = |name: &str| std::os::unix::net::UnixListener::bind(at(name)).unwrap();
        let _kept = (bind("one.sock"), bind(".hidden.sock"));
        let first = list(directory.path());
        assert_eq!(first.keys().cloned().collect::<Vec<_>>(), [at("one.sock")]);
        std::fs::remove_file(at("one.sock")).unwrap();
        let _again = bind("one.sock");
        assert_eq!(changes(&first, &list(directory.path())).gone, [at("one.sock")], "it is another one");
        assert!(list(&at("none")).is_empty());
    }
}
