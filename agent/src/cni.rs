//! The CNI plugins: one executable, `skiff-cni`, under the name of each plugin.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::containerd::find_program;

/// The plugins' names; `skiff-cni` looks at the name that it was started under.
pub const PLUGINS: [&str; 9] =
    ["bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "ptp", "static", "tuning"];

const EXECUTABLE: &str = "skiff-cni";

#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error(
        "{EXECUTABLE} was found neither beside the skiff executable nor on PATH; install it there, or name it with SKIFF_CNI"
    )]
    NotFound,
    #[error("SKIFF_CNI names {path}, which is no file", path = path.display())]
    NoSuchFile { path: PathBuf },
    #[error("linking {path}: {error}", path = path.display())]
    Link { path: PathBuf, error: std::io::Error },
}

/// Where the executable is: as configured, as `SKIFF_CNI` says, beside this program, or on PATH.
pub fn locate(configured: Option<&Path>) -> Result<PathBuf, CniError> {
    let named = configured.map(Path::to_owned).or_else(|| std::env::var_os("SKIFF_CNI").map(PathBuf::from));
    if let Some(path) = named {
        return if path.is_file() { Ok(path) } else { Err(CniError::NoSuchFile { path }) };
    }
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|directory| directory.join(EXECUTABLE));
    beside.filter(|path| path.is_file()).or_else(|| find_program(EXECUTABLE)).ok_or(CniError::NotFound)
}

/// Links every plugin's name in `directory` to `executable`. What is there and right stays;
/// other vendors' plugins are left alone.
pub fn install(executable: &Path, directory: &Path) -> Result<(), CniError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| CniError::Link { path, error }
    };
    std::fs::create_dir_all(directory).map_err(failed(directory))?;
    let executable = std::fs::canonicalize(executable).map_err(failed(executable))?;
    for plugin in PLUGINS {
        let link = directory.join(plugin);
        if std::fs::read_link(&link).is_ok_and(|target| target == executable) {
            continue;
        }
        // In one step: a pod may be starting right now.
        let new = directory.join(format!(".{plugin}.new"));
        let _ = std::fs::remove_file(&new);
        symlink(&executable, &new).and_then(|()| std::fs::rename(&new, &link)).map_err(failed(&link))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_the_executable() {
        let directory = tempfile::tempdir().unwrap();
        let executable = directory.path().join("skiff-cni");
        std::fs::write(&executable, "").unwrap();
        let bin = directory.path().join("bin");
        for _ in 0..2 {
            install(&executable, &bin).unwrap();
        }
        let target = std::fs::read_link(bin.join("bridge")).unwrap();
        assert_eq!(target, std::fs::canonicalize(&executable).unwrap());
        assert_eq!(std::fs::read_dir(&bin).unwrap().count(), PLUGINS.len());
    }

    #[test]
    fn a_configured_path_must_exist() {
        assert!(matches!(locate(Some(Path::new("/nowhere/skiff-cni"))), Err(CniError::NoSuchFile { .. })));
    }
}
