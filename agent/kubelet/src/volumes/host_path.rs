//! hostPath volumes: what must be at the path, and what is made there.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Checks (and for the `OrCreate` types, makes) what a hostPath volume of `kind` points at.
/// Messages are Kubernetes'.
pub fn check(path: &Path, kind: &str) -> Result<(), String> {
    let found = fs::metadata(path).ok().map(|meta| meta.file_type());
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(test);
    let fail = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => make_directory(path),
        "Directory" | "DirectoryOrCreate" if is(fs::FileType::is_dir) => Ok(()),
        "Directory" | "DirectoryOrCreate" => fail("a directory"),
        "FileOrCreate" if found.is_none() => make_file(path),
        "File" | "FileOrCreate" if is(fs::FileType::is_file) => Ok(()),
        "File" | "FileOrCreate" => fail("a file"),
        "Socket" if is(FileTypeExt::is_socket) => Ok(()),
        "Socket" => fail("a socket file"),
        "CharDevice" if is(FileTypeExt::is_char_device) => Ok(()),
        "CharDevice" => fail("a character device"),
        "BlockDevice" if is(FileTypeExt::is_block_device) => Ok(()),
        "BlockDevice" => fail("a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

fn make_directory(path: &Path) -> Result<(), String> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| format!("mkdir {}: {error}", path.display()))
}

fn make_file(path: &Path) -> Result<(), String> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .map(|_| ())
        .map_err(|error| format!("open {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn each_type_wants_its_kind_of_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let cases = [
            (directory.path().to_owned(), "Directory", true),
            (at("file"), "Directory", false),
            (at("file"), "File", true),
            (at("none"), "File", false),
            (at("socket"), "Socket", true),
            (at("file"), "Socket", false),
            ("/dev/null".into(), "CharDevice", true),
            ("/dev/null".into(), "BlockDevice", false),
            (at("none"), "", true),
            (at("new/dir"), "DirectoryOrCreate", true),
            (at("new/file"), "DirectoryOrCreate", true),
            (at("made"), "FileOrCreate", true),
            (at("file"), "Nonsense", false),
        ];
        for (path, kind, fine) in cases {
            assert_eq!(check(&path, kind).is_ok(), fine, "{} as {kind:?}", path.display());
        }
        let message = check(&at("none"), "Directory").unwrap_err();
        assert_eq!(message, format!("hostPath type check failed: {} is not a directory", at("none").display()));
    }
}
