//! What this machine has: containerd's executable and version, capabilities, a working overlay.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::mount::{MsFlags, mount, umount};

use super::ContainerdError;
use super::config::Layout;

/// Searched after `$PATH`, which may be short when a service manager starts the agent.
pub const USUAL_PLACES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `PATH` for containerd, which looks for its shim, runc and iptables there.
pub fn search_path() -> String {
    match std::env::var("PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{USUAL_PLACES}"),
        _ => USUAL_PLACES.to_owned(),
    }
}

/// The first executable file called `name` on [`search_path`].
pub fn find(name: &str) -> Option<PathBuf> {
    search_path().split(':').map(|directory| Path::new(directory).join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// containerd's executable, or what to install.
pub fn containerd() -> Result<PathBuf, ContainerdError> {
    let binary =
        find("containerd").ok_or(ContainerdError::NotInstalled { program: "containerd", package: "containerd" })?;
    find("containerd-shim-runc-v2")
        .ok_or(ContainerdError::NotInstalled { program: "containerd-shim-runc-v2", package: "containerd" })?;
    find("runc").ok_or(ContainerdError::NotInstalled { program: "runc", package: "runc" })?;
    Ok(binary)
}

/// The configuration layout for `binary`. Asking it costs a process start, so the answer is kept
/// in `cache` for as long as the executable stays the same.
pub async fn layout(binary: &Path, cache: &Path) -> Result<Layout, ContainerdError> {
    let stamp = stamp_of(binary);
    if let Some((known, version)) =
        std::fs::read_to_string(cache).ok().as_deref().and_then(|text| text.split_once('\n'))
        && known == stamp
        && let Some(layout) = layout_of(version)
    {
        return Ok(layout);
    }
    let output = tokio::process::Command::new(binary)
        .arg("--version")
        .output()
        .await
        .map_err(|error| ContainerdError::Run { binary: binary.to_owned(), error })?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let layout = layout_of(&version)
        .ok_or_else(|| ContainerdError::Version { binary: binary.to_owned(), version: version.clone() })?;
    // Only a saving of time: a cache that cannot be written is asked again.
    let _ = std::fs::write(cache, format!("{stamp}\n{version}"));
    Ok(layout)
}

fn stamp_of(binary: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(binary) else { return String::new() };
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    format!("{} {} {}", binary.display(), metadata.len(), modified.as_nanos())
}

/// From the line `containerd --version` prints: `containerd github.com/... 1.6.20~ds1 ...`.
fn layout_of(version: &str) -> Option<Layout> {
    let numbered = version.split_whitespace().skip(1).map(|word| word.trim_start_matches('v'));
    let number = numbered.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = number.split(['.', '-', '~', '+']);
    let major: u32 = parts.next()?.parse().ok()?;
    let minor: u32 = parts.next()?.parse().ok()?;
    match (major, minor) {
        (0, _) => None,
        (1, minor) if minor < 4 => None,
        (1, _) => Some(Layout::V2),
        (major, minor) => Some(Layout::V3 { bin_dirs: (major, minor) >= (2, 1) }),
    }
}

/// Whether this process may lower `oom_score_adj` and raise resource limits.
pub fn has_cap_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|set| set & (1 << CAP_SYS_RESOURCE) != 0)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// `overlayfs` if an overlay can be mounted under `directory`, else `native` (copies; for
/// directories that are on an overlay themselves, as in a container).
pub fn snapshotter(directory: &Path) -> &'static str {
    let place = directory.join(".overlay-probe");
    let works = try_overlay(&place);
    let _ = std::fs::remove_dir_all(&place);
    if works { "overlayfs" } else { "native" }
}

fn try_overlay(place: &Path) -> bool {
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| place.join(name));
    if [&lower, &upper, &work, &merged].iter().any(|directory| std::fs::create_dir_all(directory).is_err()) {
        return false;
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mounted = mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).is_ok();
    if mounted {
        let _ = umount(&merged);
    }
    mounted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_choose_the_layout() {
        let cases = [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", Some(Layout::V2)),
            ("containerd github.com/containerd/containerd 1.7.12 ", Some(Layout::V2)),
            (
                "containerd github.com/containerd/containerd/v2 v2.1.3 c787fb98911740dd3ff2d0e45ce88cdf01410486",
                Some(Layout::V3 { bin_dirs: true }),
            ),
            ("containerd github.com/containerd/containerd/v2 v2.0.5 ", Some(Layout::V3 { bin_dirs: false })),
            ("containerd github.com/containerd/containerd/v2 2.1.9+unknown ", Some(Layout::V3 { bin_dirs: true })),
            ("containerd containerd.io v1.7.22 7f7fdf5fed64eb6a7caf99b3e12efcf9d60e311c", Some(Layout::V2)),
            ("containerd github.com/containerd/containerd 1.2.0", None),
            ("", None),
        ];
        for (version, expected) in cases {
            assert_eq!(layout_of(version), expected, "{version}");
        }
    }

    #[test]
    fn capabilities_are_read_from_status() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001fffeffffff\n"), Some(0x1ff_feff_ffff));
        assert_eq!(effective_capabilities(""), None);
    }
}
