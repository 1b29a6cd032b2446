//! Reservations as files, in the reference plugin's layout, so that either can follow the other:
//! `<dataDir>/<network>/<address>` holds the container's id and interface, `last_reserved_ip.<set>`
//! the address given last, and `lock` is held with flock(2) during every change.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::spec::{Error, Result};

const LAST: &str = "last_reserved_ip.";
const LINE_BREAK: &str = "\r\n";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub id: String,
    /// Empty in files of versions that did not write it.
    pub ifname: String,
}

/// Locked while it exists.
pub struct Store {
    directory: PathBuf,
    _lock: Flock<File>,
}

fn io(what: &str, path: &Path, error: impl std::fmt::Display) -> Error {
    Error::io(format!("host-local: cannot {what} {}: {error}", path.display()))
}

impl Store {
    pub fn open(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|error| io("create", directory, error))?;
        let path = directory.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| io("open", &path, error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io("lock", &path, errno))?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// False when somebody has the address.
    pub fn reserve(&self, owner: &Owner, ip: IpAddr, set: usize) -> Result<bool> {
        let path = self.directory.join(ip.to_string());
        let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(io("create", &path, error)),
        };
        let content = format!("{}{LINE_BREAK}{}", owner.id, owner.ifname);
        if let Err(error) = file.write_all(content.as_bytes()) {
            let _ = std::fs::remove_file(&path);
            return Err(io("write", &path, error));
        }
        let last = self.directory.join(format!("{LAST}{set}"));
        if let Err(error) = std::fs::write(&last, ip.to_string()) {
            let _ = std::fs::remove_file(&path);
            return Err(io("write", &last, error));
        }
        Ok(true)
    }

    /// Takes back a reservation that was made just now.
    pub fn free(&self, ip: IpAddr) -> Result<()> {
        let path = self.directory.join(ip.to_string());
        std::fs::remove_file(&path).map_err(|error| io("remove", &path, error))
    }

    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        std::fs::read_to_string(self.directory.join(format!("{LAST}{set}"))).ok()?.trim().parse().ok()
    }

    pub fn taken(&self) -> Result<HashSet<IpAddr>> {
        let entries = std::fs::read_dir(&self.directory).map_err(|error| io("list", &self.directory, error))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    fn owner_of(&self, ip: IpAddr) -> Option<Owner> {
        let content = std::fs::read_to_string(self.directory.join(ip.to_string())).ok()?;
        let mut lines = content.lines();
        let id = lines.next().unwrap_or_default().trim().to_owned();
        Some(Owner { id, ifname: lines.next().unwrap_or_default().trim().to_owned() })
    }

    pub fn addresses_of(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let held = |ip: &IpAddr| self.owner_of(*ip).is_some_and(|found| is_same(&found, owner));
        Ok(self.taken()?.into_iter().filter(held).collect())
    }

    pub fn release(&self, owner: &Owner) -> Result<()> {
        self.retain(|found| !is_same(found, owner))
    }

    /// Releases every reservation that `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&Owner) -> bool) -> Result<()> {
        for ip in self.taken()? {
            if self.owner_of(ip).is_some_and(|owner| !keep(&owner)) {
                let path = self.directory.join(ip.to_string());
                std::fs::remove_file(&path).map_err(|error| io("remove", &path, error))?;
            }
        }
        Ok(())
    }
}

/// A reservation without an interface name belongs to the container as a whole.
fn is_same(found: &Owner, wanted: &Owner) -> bool {
    found.id == wanted.id && (found.ifname.is_empty() || found.ifname == wanted.ifname)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_have_the_reference_layout() {
        let directory = tempfile::tempdir().unwrap();
        let owner = Owner { id: "c1".into(), ifname: "eth0".into() };
        let ip: IpAddr = "10.42.0.2".parse().unwrap();
        {
            let store = Store::open(directory.path()).unwrap();
            assert!(store.reserve(&owner, ip, 0).unwrap());
            assert!(!store.reserve(&owner, ip, 0).unwrap());
            assert_eq!(store.last_reserved(0), Some(ip));
            assert_eq!(store.addresses_of(&owner).unwrap(), [ip]);
        }
        assert_eq!(std::fs::read_to_string(directory.path().join("10.42.0.2")).unwrap(), "c1\r\neth0");
        std::fs::write(directory.path().join("10.42.0.3"), "c1").unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.release(&owner).unwrap();
        assert!(store.taken().unwrap().is_empty());
    }
}
