//! Files that are replaced whole, and what may be gone already.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Where the next content of a file is written.
pub fn draft(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}"))
}

/// Replaces a file in one step: a crash, also the machine's, leaves what was there or all of this.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = draft(path);
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(content)?;
    file.sync_data()?;
    std::fs::rename(draft, path)
}

/// The same with a value as JSON.
pub fn replace_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?)
}

/// What is not there need not be removed.
pub fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_its_draft_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        replace_json(&path, &1).unwrap();
        replace_json(&path, &[2]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[2]");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        gone(std::fs::remove_file(&path)).unwrap();
        gone(std::fs::remove_file(&path)).unwrap();
        assert!(gone(std::fs::remove_file(directory.path())).is_err());
    }
}
