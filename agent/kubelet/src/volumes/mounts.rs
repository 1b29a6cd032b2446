//! Mounting and unmounting under a pod's directory, and removing it without reaching through a mount.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::files::gone;

/// Whether a file system of its own is mounted at `path` (not a bind mount of the same one).
pub fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    path.parent().is_some_and(|parent| device(path).is_some() && device(path) != device(parent))
}

/// Whether something is mounted at exactly `path`, be it a bind mount.
pub fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    targets_under(&mounts, path).iter().any(|target| target == path)
}

/// Whether something is at `path`, also a dead mount (`ENOTCONN`, `ESTALE`) that cannot be looked at.
/// May block: a file system may not answer.
pub fn is_there(path: &Path) -> bool {
    let missing = |outcome: io::Result<_>| matches!(outcome, Err(error) if error.kind() == io::ErrorKind::NotFound);
    is_mounted(path) || !missing(std::fs::symlink_metadata(path))
}

/// Mounts a tmpfs of at most `size` bytes (the kernel's default, half of memory, if none).
pub fn mount_tmpfs(path: &Path, size: Option<u64>) -> io::Result<()> {
    let options = size.map(|size| format!("size={size}"));
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), options.as_deref()).map_err(io::Error::from)
}

/// Lets mounts that pods make under `directory` be seen by the host and by other pods, as drivers in pods
/// need: where the directory is not part of a shared mount already, it becomes one of its own. Must
/// come before anything is mounted under it: that would be hidden.
pub fn make_shared(directory: &Path) -> io::Result<()> {
    let directory = directory.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if is_shared(&mounts, &directory) {
        return Ok(());
    }
    if let Some(target) = targets_under(&mounts, &directory).first() {
        let why = format!("it is in no shared mount and cannot become one: {} is mounted in it", target.display());
        return Err(io::Error::other(why));
    }
    let none = None::<&str>;
    let failed = |what: &str, error: nix::Error| io::Error::other(format!("{what}: {error}"));
    mount(Some(&directory), &directory, none, MsFlags::MS_BIND, none)
        .map_err(|error| failed("binding it to itself", error))?;
    mount(none, &directory, none, MsFlags::MS_SHARED, none).map_err(|error| {
        // A mount that is not shared would keep another attempt from being made.
        match umount2(&directory, MntFlags::MNT_DETACH) {
            Ok(()) => failed("sharing its mount", error),
            Err(left) => failed(&format!("sharing its mount (which could not be undone: {left})"), error),
        }
    })
}

/// Whether the mount that holds a directory is shared.
fn is_shared(mountinfo: &str, directory: &Path) -> bool {
    let fields = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let holding = fields.filter(|fields| fields.get(4).is_some_and(|target| directory.starts_with(unescape(target))));
    // Of mounts at one place, the newest counts.
    let nearest = holding.max_by_key(|fields| unescape(fields[4]).components().count());
    nearest.is_some_and(|fields| {
        fields.iter().skip(6).take_while(|tag| **tag != "-").any(|tag| tag.starts_with("shared:"))
    })
}

/// Runs mount(8), which knows helpers such as mount.nfs.
pub async fn mount_with_helper(source: &str, path: &Path, kind: &str, options: &[String]) -> io::Result<()> {
    let mut command = tokio::process::Command::new("mount");
    // Without a kind, mount looks at what is there.
    if !kind.is_empty() {
        command.arg("-t").arg(kind);
    }
    if !options.is_empty() {
        command.arg("-o").arg(options.join(","));
    }
    let output = command.arg(source).arg(path).output().await?;
    if output.status.success() {
        return Ok(());
    }
    // as Kubernetes' mounter words it
    let arguments = format!("-t {kind} {source} {}", path.display());
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!(
        "mount failed: {}\nMounting command: mount\nMounting arguments: {arguments}\nOutput: {said}",
        output.status
    )))
}

/// Unmounts everything at or under `directory`, the newest first. Busy mounts are detached: they
/// go when their last user does.
/// What lies under one of `kept` stays.
pub fn unmount_all(directory: &Path, kept: &[PathBuf]) -> io::Result<()> {
    let mut failure = None;
    let found = targets_under(&std::fs::read_to_string("/proc/self/mountinfo")?, directory);
    for target in found.into_iter().filter(|target| !kept.iter().any(|kept| target.starts_with(kept))) {
        let outcome = umount2(&target, MntFlags::UMOUNT_NOFOLLOW)
            .or_else(|_| umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW));
        if let Err(error) = outcome {
            failure.get_or_insert(io::Error::other(format!("unmounting {}: {error}", target.display())));
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Removes a directory tree, unless something is still mounted in it: its content is not ours.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(target) = targets_under(&mounts, directory).first() {
        return Err(io::Error::other(format!(
            "{} is still mounted; {} is kept",
            target.display(),
            directory.display()
        )));
    }
    gone(std::fs::remove_dir_all(directory))
}

/// Mount points at or under a directory in the kernel's list, the newest first.
fn targets_under(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let targets = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut found: Vec<PathBuf> = targets.filter(|target| target.starts_with(directory)).collect();
    found.reverse();
    found
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match (bytes[at], digits.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
            (b'\\', Some(code)) => {
                plain.push(code);
                at += 4;
            }
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_under_the_directory_newest_first() {
        let info = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:5 / /p/a\\040b rw - tmpfs t rw\n3 2 0:6 / /p/a\\040b/c rw - tmpfs t rw\n4 1 0:7 / /pq rw - tmpfs t rw\n";
        assert_eq!(targets_under(info, Path::new("/p")), [PathBuf::from("/p/a b/c"), PathBuf::from("/p/a b")]);
    }

    #[test]
    fn the_nearest_mount_decides_what_is_shared() {
        let info = "1 0 8:1 / / rw - ext4 a rw\n2 1 8:1 /k /k rw shared:5 master:1 - ext4 a rw\n3 2 8:2 / /k/private rw - ext4 b rw\n";
        for (directory, shared) in
            [("/", false), ("/k", true), ("/k/pods", true), ("/k/private/x", false), ("/kk", false)]
        {
            assert_eq!(is_shared(info, Path::new(directory)), shared, "{directory}");
        }
    }

    #[test]
    fn what_cannot_be_looked_at_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // A loop of links answers with an error, as a dead mount does.
        std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
        assert!(!at("loop/staging").exists() && is_there(&at("loop/staging")));
        assert!(is_there(&at("loop")) && !is_there(&at("none")) && !is_there(&at("none/staging")));
        assert!(is_there(Path::new("/proc")));
    }

    #[test]
    fn removing_what_is_not_there_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        remove_tree(&directory.path().join("none")).unwrap();
        unmount_all(&directory.path().join("none"), &[]).unwrap();
    }
}
