//! Taking a node's runtime down completely: containerd, shims, containers, mounts, files.
//!
//! Works after `kill -9` of everything: what to remove is found from processes' command lines, from
//! `/proc/self/mountinfo` and from the directories, never from memory. It goes on after an error and
//! reports them all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::Paths;
use super::process::{Identity, old_log, start_time};

/// Stops containerd and every shim and container it started, unmounts what lies under its
/// directories, and removes these. Returns what could not be removed, with the reasons.
pub async fn remove(paths: &Paths) -> Vec<String> {
    let mut problems = Vec::new();
    stop_containerd(paths, &mut problems).await;
    stop_shims(paths, &mut problems).await;
    remove_shim_sockets(&paths.state);
    unmount_under(&[&paths.state, &paths.root], &mut problems);
    for directory in [&paths.state, &paths.root] {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                problems.push(format!("removing {}: {error}", directory.display()));
            }
            _ => {}
        }
    }
    for file in [&paths.socket, &paths.pid, &paths.config, &paths.log, &paths.config.with_extension("version")] {
        let _ = std::fs::remove_file(file);
    }
    let _ = std::fs::remove_file(old_log(&paths.log));
    let _ = std::fs::remove_file(format!("{}.ttrpc", paths.socket.display()));
    problems
}

async fn stop_containerd(paths: &Paths, problems: &mut Vec<String>) {
    let Some(identity) = Identity::load(&paths.pid) else { return };
    identity.signal(Signal::SIGTERM);
    if tokio::time::timeout(Duration::from_secs(5), identity.ended()).await.is_ok() {
        return;
    }
    identity.signal(Signal::SIGKILL);
    if tokio::time::timeout(Duration::from_secs(5), identity.ended()).await.is_err() {
        problems.push(format!("containerd (pid {}) does not end", identity.pid));
    }
}

/// Shims are started with `-address <containerd's socket>`; the processes of their containers are
/// found through the bundles' `init.pid` files.
async fn stop_shims(paths: &Paths, problems: &mut Vec<String>) {
    let mut victims: Vec<(i32, u64)> = init_pids(&paths.state);
    victims.extend(processes_with_argument(&paths.socket.to_string_lossy()));
    for (pid, started) in &victims {
        if start_time(*pid) == Some(*started) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
    for (pid, started) in victims {
        let identity = Identity { pid, started, config: String::new() };
        if tokio::time::timeout(Duration::from_secs(5), identity.ended()).await.is_err() {
            problems.push(format!("process {pid} of a container does not end"));
        }
    }
}

fn init_pids(state: &Path) -> Vec<(i32, u64)> {
    bundles(state)
        .into_iter()
        .filter_map(|bundle| {
            let pid: i32 = std::fs::read_to_string(bundle.join("init.pid")).ok()?.trim().parse().ok()?;
            // The pid may have been given to another process since: it must be in a container's cgroup,
            // whose path ends with the bundle's name.
            let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            let id = bundle.file_name()?.to_string_lossy().into_owned();
            cgroups.lines().any(|line| line.contains(&id)).then_some(())?;
            Some((pid, start_time(pid)?))
        })
        .collect()
}

/// One directory per container: `<state>/io.containerd.runtime.v2.task/<namespace>/<id>`.
fn bundles(state: &Path) -> Vec<PathBuf> {
    let list = |directory: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(directory)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    list(&state.join("io.containerd.runtime.v2.task")).iter().flat_map(|namespace| list(namespace)).collect()
}

/// Removes the sockets of shims that are gone. Shims make them in a directory of their own choosing,
/// outside containerd's, and a shim that is killed leaves its socket behind. To be called before the
/// state directory goes, because only the bundles in it say which sockets are ours.
pub fn remove_shim_sockets(state: &Path) {
    for socket in shim_sockets(state) {
        let refused = std::os::unix::net::UnixStream::connect(&socket)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        if refused {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Shims listen in /run/containerd/s, whatever containerd's own directories are; each bundle says where.
fn shim_sockets(state: &Path) -> Vec<PathBuf> {
    bundles(state)
        .iter()
        .filter_map(|bundle| std::fs::read_to_string(bundle.join("address")).ok())
        .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
        .collect()
}

fn processes_with_argument(argument: &str) -> Vec<(i32, u64)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            is_shim_of(&command, argument)
        })
        .filter_map(|pid| Some((pid, start_time(pid)?)))
        .collect()
}

/// `cmdline`: NUL-separated arguments of a process.
fn is_shim_of(cmdline: &[u8], socket: &str) -> bool {
    let arguments: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    let program = arguments.first().copied().unwrap_or_default();
    let is_shim = program.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(b"containerd-shim"));
    is_shim && arguments.windows(2).any(|pair| pair[0] == b"-address" && pair[1] == socket.as_bytes())
}

/// Unmounts everything at or under `directories`, the newest mount first.
pub(crate) fn unmount_under(directories: &[&Path], problems: &mut Vec<String>) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for target in mounts_under(&mounts, directories) {
        if let Err(error) = umount2(&target, MntFlags::MNT_DETACH) {
            problems.push(format!("unmounting {}: {error}", target.display()));
        }
    }
}

fn mounts_under(mountinfo: &str, directories: &[&Path]) -> Vec<PathBuf> {
    let targets = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut found: Vec<PathBuf> = targets
        .map(PathBuf::from)
        .filter(|target| directories.iter().any(|directory| target.starts_with(directory)))
        .collect();
    found.reverse();
    found
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let code =
            bytes.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (bytes[at], code) {
            (b'\\', Some(code)) => {
                out.push(code);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_come_newest_first_and_only_ours() {
        let info = "1 0 8:1 / / rw - ext4 /dev/vda rw\n\
                    2 1 0:5 / /run/skiff/a\\040b rw - tmpfs tmpfs rw\n\
                    3 2 0:6 / /run/skiff/a\\040b/c rw - tmpfs tmpfs rw\n\
                    4 1 0:7 / /run/skiffy rw - tmpfs tmpfs rw\n";
        let found = mounts_under(info, &[Path::new("/run/skiff")]);
        assert_eq!(found, [PathBuf::from("/run/skiff/a b/c"), PathBuf::from("/run/skiff/a b")]);
    }

    #[test]
    fn only_sockets_without_a_listener_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = |name: &str| {
            let bundle = directory.path().join("io.containerd.runtime.v2.task/k8s.io").join(name);
            std::fs::create_dir_all(&bundle).unwrap();
            let socket = directory.path().join(name);
            std::fs::write(bundle.join("address"), format!("unix://{}", socket.display())).unwrap();
            (std::os::unix::net::UnixListener::bind(&socket).unwrap(), socket)
        };
        let (_listening, alive) = bundle("alive");
        let (gone, dead) = bundle("dead");
        drop(gone);
        remove_shim_sockets(directory.path());
        assert!(alive.exists() && !dead.exists());
    }

    #[test]
    fn shims_are_told_apart_by_their_socket() {
        let line = b"/usr/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0-id\0x\0-address\0/run/a.sock\0";
        assert!(is_shim_of(line, "/run/a.sock"));
        assert!(!is_shim_of(line, "/run/b.sock"));
        assert!(!is_shim_of(b"vi\0-address\0/run/a.sock\0", "/run/a.sock"));
    }
}
