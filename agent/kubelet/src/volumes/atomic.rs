//! Writing a volume's files so that a reader sees all of the old or all of the new
//! (`pkg/volume/util/atomic_writer.go`).
//!
//! ```text
//! <volume>/..2026_11_22_05_11_36.3141592653/dir/file    the files of one version
//! <volume>/..data -> ..2026_11_22_05_11_36.3141592653   changed by one rename
//! <volume>/dir    -> ..data/dir                         what containers open
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use super::payload::Payload;
use crate::files::gone;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
/// Kubernetes' limits for the path of a file in a volume, in bytes.
const LONGEST_PATH: usize = 4096;
const LONGEST_NAME: usize = 255;

/// Makes `volume` hold exactly `payload`. Returns whether anything changed. `prepare` is called
/// with the directory of the new version before anyone can see it (ownership).
pub fn write(volume: &Path, payload: &Payload, prepare: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<bool> {
    for path in payload.keys() {
        validate(path)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}: {why}")))?;
    }
    let old = fs::read_link(volume.join(DATA)).ok().map(|target| volume.join(target));
    let old_paths = old.as_deref().map(files_under).transpose()?.unwrap_or_default();
    if let Some(old) = &old
        && is_same(old, &old_paths, payload)
    {
        return Ok(false);
    }
    let version = new_version(volume)?;
    if let Err(error) = fill(&version, payload).and_then(|()| prepare(&version)) {
        let _ = fs::remove_dir_all(&version);
        return Err(error);
    }
    link_top_levels(volume, payload)?;
    let next = volume.join(NEW_DATA);
    let _ = fs::remove_file(&next);
    symlink(version.file_name().unwrap_or_default(), &next)?;
    fs::rename(&next, volume.join(DATA))?;
    unlink_gone(volume, &old_paths, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(old)?;
    }
    Ok(true)
}

fn validate(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("it is empty");
    }
    if path.len() > LONGEST_PATH {
        return Err("it is too long");
    }
    let mut components = Path::new(path).components();
    if components.clone().any(|part| !matches!(part, Component::Normal(_))) {
        return Err("it must be relative and may not contain \"..\"");
    }
    if components.any(|part| part.as_os_str().len() > LONGEST_NAME) {
        return Err("a part of it is too long");
    }
    if path.starts_with("..") {
        return Err("it may not start with \"..\"");
    }
    Ok(())
}

/// Relative paths of all regular files.
fn files_under(directory: &Path) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        let entries = match fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            } else if let Ok(relative) = entry.path().strip_prefix(directory) {
                found.insert(relative.to_string_lossy().into_owned());
            }
        }
    }
    Ok(found)
}

fn is_same(old: &Path, old_paths: &BTreeSet<String>, payload: &Payload) -> bool {
    if !old_paths.iter().eq(payload.keys()) || !old.is_dir() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let full = old.join(path);
        // Group bits that fsGroup added are not a difference: only the owner's bits are compared.
        let same_mode = fs::metadata(&full).is_ok_and(|meta| meta.permissions().mode() & 0o700 == file.mode & 0o700);
        same_mode && fs::read(&full).is_ok_and(|data| data == file.data)
    })
}

fn new_version(volume: &Path) -> io::Result<PathBuf> {
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    loop {
        let version = volume.join(format!("{stamp}.{}", rand::random::<u32>()));
        match fs::create_dir(&version) {
            Ok(()) => {
                fs::set_permissions(&version, fs::Permissions::from_mode(0o755))?;
                return Ok(version);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

fn fill(version: &Path, payload: &Payload) -> io::Result<()> {
    for (path, file) in payload {
        let full = version.join(path);
        if let Some(parent) = full.parent().filter(|parent| *parent != version) {
            make_directories(version, parent)?;
        }
        let mut output = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full)?;
        io::Write::write_all(&mut output, &file.data)?;
        if let Some(user) = file.user {
            chown(&full, Some(user), None)?;
        }
        // Set afterwards: what is given at creation is reduced by the umask.
        output.set_permissions(fs::Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

fn make_directories(top: &Path, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for made in directory.ancestors().take_while(|made| *made != top) {
        fs::set_permissions(made, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The first parts of the payload's paths.
fn top_levels<'a>(paths: impl Iterator<Item = &'a String>) -> BTreeSet<&'a str> {
    paths.filter_map(|path| path.split('/').next()).collect()
}

fn link_top_levels(volume: &Path, payload: &Payload) -> io::Result<()> {
    for name in top_levels(payload.keys()) {
        let link = volume.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    Ok(())
}

fn unlink_gone(volume: &Path, old_paths: &BTreeSet<String>, payload: &Payload) -> io::Result<()> {
    let now = top_levels(payload.keys());
    for name in top_levels(old_paths.iter()).difference(&now) {
        gone(fs::remove_file(volume.join(name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { data: text.as_bytes().to_vec(), mode: 0o640, user: None };
        files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    fn visible(volume: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(volume)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn versions_replace_each_other_in_one_step() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path();
        assert!(write(volume, &payload(&[("a", "1"), ("d/e", "2")]), |_| Ok(())).unwrap());
        assert_eq!(visible(volume), ["a", "d"]);
        assert_eq!(fs::read_to_string(volume.join("d/e")).unwrap(), "2");
        assert_eq!(fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(volume.join(DATA)).unwrap();

        assert!(!write(volume, &payload(&[("a", "1"), ("d/e", "2")]), |_| Ok(())).unwrap(), "nothing changed");
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), first);

        assert!(write(volume, &payload(&[("a", "3"), ("f", "4")]), |_| Ok(())).unwrap());
        assert_eq!(visible(volume), ["a", "f"]);
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join(first).exists(), "the old version is gone");
    }

    #[test]
    fn an_empty_payload_still_has_its_data_link() {
        let directory = tempfile::tempdir().unwrap();
        assert!(write(directory.path(), &Payload::new(), |_| Ok(())).unwrap());
        assert!(fs::read_link(directory.path().join(DATA)).is_ok());
    }

    #[test]
    fn a_failure_leaves_the_old_version() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &payload(&[("a", "1")]), |_| Ok(())).unwrap();
        let refused = |_: &Path| Err(io::Error::other("no"));
        assert!(write(directory.path(), &payload(&[("a", "2")]), refused).is_err());
        assert_eq!(fs::read_to_string(directory.path().join("a")).unwrap(), "1");
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["", "/etc/passwd", "../x", "a/../../x", "..x", "..data/x"] {
            let result = write(directory.path(), &payload(&[(path, "x")]), |_| Ok(()));
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }
}
