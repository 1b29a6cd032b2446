//! `subPath` mounts: part of a volume, bound so that a link planted in the volume cannot lead out of
//! it between check and use (`pkg/volume/util/subpath`).
//!
//! The path is opened beneath the volume with `openat2(RESOLVE_BENEATH)`, and what was opened, not
//! its name, is bound onto a file or directory of the kubelet's own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
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

fn make_directories(root: &OwnedFd, path: &str) -> Result<(), SubPathError> {
    let mut made = PathBuf::new();
    for part in Path::new(path).components() {
        let parent = made.clone();
        made.push(part);
        let made_text = made.to_string_lossy().into_owned();
        let failed = |errno| SubPathError::Make { path: made_text.clone(), errno };
        if open_one(root, &made_text).is_ok() {
            continue;
        }
        let parent_fd = if parent.as_os_str().is_empty() {
            None
        } else {
            Some(open_one(root, &parent.to_string_lossy()).map_err(failed)?)
        };
        let directory = parent_fd.as_ref().map_or(root.as_fd(), |fd| fd.as_fd());
        match nix::sys::stat::mkdirat(directory, part.as_os_str(), Mode::from_bits_truncate(0o750)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
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
}
