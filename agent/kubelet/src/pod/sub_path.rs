//! `subPath` mounts: part of a volume, bound so that a link planted in the volume cannot lead out of
//! it between check and use (`pkg/volume/util/subpath`).
//!
//! The path is opened beneath the volume with `openat2(RESOLVE_BENEATH)`, and what was opened, not
//! its name, is bound onto a file or directory of the kubelet's own.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    #[error("subpath \"{path}\" is outside of its volume or cannot be opened: {errno}")]
    Open { path: String, errno: Errno },
    #[error("making directory \"{path}\": {errno}")]
    Make { path: String, errno: Errno },
    #[error("binding {path} at {target}: {source}")]
    Bind { path: String, target: String, source: std::io::Error },
}

/// Binds `volume/sub_path` at `target` and returns it. Missing directories are made, as Kubernetes does.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, SubPathError> {
    let fd = open_beneath(volume, sub_path)?;
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let failed =
        |source| SubPathError::Bind { path: sub_path.to_owned(), target: target.display().to_string(), source };
    release(target);
    let is_directory = std::fs::metadata(&source).map_err(failed)?.is_dir();
    make_target(target, is_directory).map_err(failed)?;
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|errno| failed(errno.into()))?;
    Ok(target.to_owned())
}

fn make_target(target: &Path, is_directory: bool) -> std::io::Result<()> {
    if is_directory {
        return std::fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::File::options().create(true).append(true).open(target).map(|_| ())
}

/// Undoes a bind that an earlier run of the container left.
fn release(target: &Path) {
    if target.exists() {
        let _ = umount2(target, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(target).or_else(|_| std::fs::remove_dir(target));
    }
}

fn open_beneath(volume: &Path, sub_path: &str) -> Result<OwnedFd, SubPathError> {
    let failed = |errno| SubPathError::Open { path: sub_path.to_owned(), errno };
    let root = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed)?;
    match open_one(&root, sub_path) {
        Ok(fd) => Ok(fd),
        Err(Errno::ENOENT) => {
            make_directories(&root, sub_path)?;
            open_one(&root, sub_path).map_err(failed)
        }
        Err(errno) => Err(failed(errno)),
    }
}

fn open_one(root: &OwnedFd, path: &str) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root.as_fd(), path, how)
}

/// Makes what is missing of `path`. The last directory gets the volume's own mode, whatever the umask is:
/// who may write to the volume may write to this part of it (a group given by `fsGroup`, say).
fn make_directories(root: &OwnedFd, path: &str) -> Result<(), SubPathError> {
    let failed = |made: &Path, errno| SubPathError::Make { path: made.to_string_lossy().into_owned(), errno };
    let mode = nix::sys::stat::fstat(root).map_err(|errno| failed(Path::new("."), errno))?.st_mode & 0o7777;
    let (mut made, mut newest) = (PathBuf::new(), None);
    for part in Path::new(path).components() {
        let parent = made.clone();
        made.push(part);
        if open_one(root, &made.to_string_lossy()).is_ok() {
            newest = None;
            continue;
        }
        newest = make_directory(root, &parent, part.as_os_str(), mode).map_err(|errno| failed(&made, errno))?;
    }
    newest.map_or(Ok(()), |directory| set_mode(&directory, mode).map_err(|errno| failed(&made, errno)))
}

/// Makes a directory and opens it; nothing, when somebody else made it meanwhile.
fn make_directory(root: &OwnedFd, parent: &Path, name: &OsStr, mode: u32) -> nix::Result<Option<OwnedFd>> {
    let opened = if parent.as_os_str().is_empty() { None } else { Some(open_one(root, &parent.to_string_lossy())?) };
    let parent = opened.as_ref().map_or(root.as_fd(), |fd| fd.as_fd());
    // Not through a link that was put in its place.
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match nix::sys::stat::mkdirat(parent, name, Mode::from_bits_truncate(mode & 0o777)) {
        Ok(()) => openat(parent, name, flags, Mode::empty()).map(Some),
        Err(Errno::EEXIST) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn set_mode(directory: &OwnedFd, mode: u32) -> nix::Result<()> {
    nix::sys::stat::fchmod(directory, Mode::from_bits_truncate(mode))
}

/// Unmounts and removes every sub-path bind of a pod.
pub fn release_all(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        while umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            release_all(&path);
        } else {
            let _ = std::fs::remove_file(&path);
        }
    }
    // Never recursively: were something still mounted below, its contents must stay.
    let _ = std::fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_planted_link_does_not_lead_out() {
        let volume = std::env::temp_dir().join(format!("skiff-subpath-{}", std::process::id()));
        std::fs::create_dir_all(volume.join("real")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("real", volume.join("in")).unwrap();
        assert!(open_beneath(&volume, "real").is_ok());
        assert!(open_beneath(&volume, "in").is_ok());
        assert!(open_beneath(&volume, "new/deep").is_ok());
        assert!(volume.join("new/deep").is_dir());
        assert!(open_beneath(&volume, "out").is_err());
        assert!(open_beneath(&volume, "out/passwd").is_err());
        std::fs::remove_dir_all(&volume).unwrap();
    }

    #[test]
    fn what_is_made_has_the_volumes_mode() {
        let volume = tempfile::tempdir().unwrap();
        let mode = |path: &str| std::fs::metadata(volume.path().join(path)).unwrap().permissions().mode() & 0o7777;
        std::fs::create_dir(volume.path().join("old")).unwrap();
        let old = mode("old");
        std::fs::set_permissions(volume.path(), std::fs::Permissions::from_mode(0o2777)).unwrap();
        for (path, wanted) in [("new", 0o2777), ("a/b", 0o2777), ("old/c", 0o2777), ("old", old)] {
            open_beneath(volume.path(), path).unwrap();
            assert_eq!(mode(path), wanted, "{path}");
        }
    }
}
