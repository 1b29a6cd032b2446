//! The files of one image layer.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{ImageError, elf};

/// A tree of files under absolute paths. Parent directories come by themselves. Everything belongs
/// to root and carries no times, so the same content gives the same bytes.
#[derive(Debug, Default, Clone)]
pub struct Rootfs {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, data: Vec<u8> },
    Symlink { target: String },
}

impl Rootfs {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        self.put(path, Entry::Directory { mode });
        self
    }

    pub fn file(mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) -> Self {
        self.put(path, Entry::File { mode, data: data.into() });
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.put(path, Entry::Symlink { target: target.to_owned() });
        self
    }

    /// Copies one file of this machine (through symbolic links) to `path`.
    pub fn host_file(mut self, host: &Path, path: &str) -> Result<Self, ImageError> {
        self.add_host_file(host, path)?;
        Ok(self)
    }

    /// Copies an executable of this machine to `path`, with its dynamic loader and every shared
    /// library it needs, each at the path where the loader looks for it.
    pub fn executable(mut self, host: &Path, path: &str) -> Result<Self, ImageError> {
        self.add_host_file(host, path)?;
        for (library, found) in elf::closure(host)? {
            self.add_host_file(&found, &library)?;
        }
        Ok(self)
    }

    fn add_host_file(&mut self, host: &Path, path: &str) -> Result<(), ImageError> {
        let data = std::fs::read(host).map_err(ImageError::file("reading", host))?;
        let mode = std::fs::metadata(host).map_err(ImageError::file("examining", host))?.permissions().mode() & 0o7777;
        self.put(path, Entry::File { mode, data });
        Ok(())
    }

    fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/').to_owned();
        for parent in Path::new(&path).ancestors().skip(1).map(Path::to_owned).filter(|p| *p != PathBuf::new()) {
            self.entries.entry(parent.to_string_lossy().into_owned()).or_insert(Entry::Directory { mode: 0o755 });
        }
        self.entries.insert(path, entry);
    }

    /// The layer as an uncompressed tar stream.
    pub(super) fn to_tar(&self) -> std::io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            match entry {
                Entry::Directory { mode } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Entry::File { mode, data } => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(data.len() as u64);
                    tar.append_data(&mut header, path, data.as_slice())?;
                }
                Entry::Symlink { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        tar.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_parents_first_and_the_same_bytes_each_time() {
        let rootfs = Rootfs::new().file("/a/b/c", 0o644, "x").symlink("/a/l", "b").directory("/tmp", 0o1777);
        let tar = rootfs.to_tar().unwrap();
        assert_eq!(tar, rootfs.clone().to_tar().unwrap());
        let mut archive = tar::Archive::new(tar.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["a/", "a/b/", "a/b/c", "a/l", "tmp/"]);
    }
}
