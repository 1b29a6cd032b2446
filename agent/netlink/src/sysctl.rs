//! `/proc/sys/net`, which always shows the network namespace of the thread that reads it.

use std::path::PathBuf;

use crate::{Error, Result};

fn path_of(name: &str) -> PathBuf {
    // thread-self, because /proc/sys/net follows the main thread where it is reached through
    // /proc/self; and slashes, because interface names may hold dots.
    PathBuf::from("/proc/sys").join(name)
}

/// `name` with slashes: `net/ipv4/ip_forward`.
pub fn write(name: &str, value: &str) -> Result<()> {
    let path = path_of(name);
    std::fs::write(&path, value)
        .map_err(|source| Error::Io { operation: format!("write {value} to {}", path.display()), source })
}

pub fn read(name: &str) -> Result<String> {
    let path = path_of(name);
    std::fs::read_to_string(&path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| Error::Io { operation: format!("read {}", path.display()), source })
}

/// Writes only when the value differs, so that a read-only /proc with the right value will do.
pub fn ensure(name: &str, value: &str) -> Result<()> {
    if read(name).is_ok_and(|now| now == value) { Ok(()) } else { write(name, value) }
}
