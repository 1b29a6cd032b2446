//! The containerd process: found again by its pid file, started detached, watched.
//!
//! The pid file holds the pid, the process's start time (a pid alone may have been given to another
//! process since) and a digest of the configuration it was started with.

use std::fs::{File, OpenOptions};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::io::unix::AsyncFd;

use super::probe::search_path;
use super::{ContainerdError, Paths};

/// The log is moved to `<log>.1` when it is larger than this, in bytes.
const LARGEST_LOG: u64 = 16 << 20;

/// A process by pid and start time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since boot, from `/proc/<pid>/stat`.
    pub started: u64,
    /// Digest of the configuration the process read.
    pub config: String,
}

impl Identity {
    /// The process that the pid file names, if it still runs.
    pub fn load(pid_file: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(pid_file).ok()?;
        let mut words = text.split_whitespace();
        let (pid, started) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let config = words.next().unwrap_or_default().to_owned();
        (start_time(pid) == Some(started)).then_some(Self { pid, started, config })
    }

    fn save(&self, pid_file: &Path) -> std::io::Result<()> {
        let temporary = pid_file.with_extension("pid.tmp");
        std::fs::write(&temporary, format!("{} {} {}\n", self.pid, self.started, self.config))?;
        std::fs::rename(temporary, pid_file)
    }

    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Returns when the process has ended, at once if it has already.
    pub async fn ended(&self) {
        // SAFETY: pidfd_open takes no pointers; a non-negative result is a descriptor that nobody else owns.
        let descriptor = unsafe {
            let fd = nix::libc::syscall(nix::libc::SYS_pidfd_open, self.pid, 0);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
        };
        // SAFETY: the descriptor is owned by the result and stays open and the same for its whole life.
        let watched = descriptor.filter(|_| self.is_alive()).and_then(|fd| unsafe { AsyncFd::register(fd) }.ok());
        match watched {
            Some(descriptor) => {
                let _ = descriptor.readable().await;
            }
            // a kernel older than 5.3, or no such process any more
            None => {
                while self.is_alive() {
                    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
                }
            }
        }
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        if self.is_alive() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal);
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`; none for a process that does not exist or is a zombie.
pub fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The command name, in parentheses, may contain spaces and parentheses itself.
fn parse_start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Starts containerd in a session of its own, so that it outlives the agent, and reaps it when it
/// ends before the agent does.
pub fn start(binary: &Path, paths: &Paths, config_digest: &str) -> Result<Identity, ContainerdError> {
    let failed = |error| ContainerdError::Run { binary: binary.to_owned(), error };
    let log = open_log(&paths.log).map_err(|error| ContainerdError::File {
        doing: "opening",
        path: paths.log.clone(),
        error,
    })?;
    let errors = log.try_clone().map_err(failed)?;
    let mut command = Command::new(binary);
    command
        .arg("--config")
        .arg(&paths.config)
        .env("PATH", search_path())
        // systemd's notification socket belongs to the agent
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(|_| ()).map_err(std::io::Error::from));
    }
    let mut child = command.spawn().map_err(failed)?;
    let pid = child.id() as i32;
    let started = start_time(pid).unwrap_or_default();
    // A thread, not a task: it must reap also while the runtime shuts down, and it owns nothing.
    let _ = std::thread::Builder::new()
        .name("containerd-reaper".to_owned())
        .stack_size(64 << 10)
        .spawn(move || child.wait());
    let identity = Identity { pid, started, config: config_digest.to_owned() };
    identity.save(&paths.pid).map_err(|error| ContainerdError::File {
        doing: "writing",
        path: paths.pid.clone(),
        error,
    })?;
    Ok(identity)
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if is_too_large(path, LARGEST_LOG) {
        std::fs::rename(path, old_log(path))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// The same while containerd writes the log, which it does at the file's end, wherever that is.
pub fn shorten_log(path: &Path) -> std::io::Result<()> {
    shorten(path, LARGEST_LOG)
}

fn shorten(path: &Path, largest: u64) -> std::io::Result<()> {
    if !is_too_large(path, largest) {
        return Ok(());
    }
    std::fs::copy(path, old_log(path))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

fn is_too_large(path: &Path, largest: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > largest)
}

/// Where a log goes that is too large.
pub fn old_log(path: &Path) -> PathBuf {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    old.into()
}

/// The last lines of the log, for an error message.
pub fn log_tail(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = String::new();
    if let Ok(mut file) = File::open(path) {
        let length = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(2048)));
        let mut bytes = Vec::new();
        let _ = file.read_to_end(&mut bytes);
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_survive_odd_names() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";
        assert_eq!(parse_start_time(stat), Some(987_654));
        assert_eq!(parse_start_time("42 (a) Z 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1"), None);
        assert_eq!(parse_start_time("nonsense"), None);
    }

    #[test]
    fn a_log_that_is_being_written_stays_small() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("containerd.log");
        let mut log = open_log(&path).unwrap();
        log.write_all(b"first\n").unwrap();
        shorten(&path, 6).unwrap();
        assert!(!old_log(&path).exists(), "there is room");
        log.write_all(b"second\n").unwrap();
        shorten(&path, 6).unwrap();
        log.write_all(b"third\n").unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&old_log(&path)), read(&path)), ("first\nsecond\n".to_owned(), "third\n".to_owned()));
    }

    #[test]
    fn a_pid_file_of_another_process_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("containerd.pid");
        let own = Identity {
            pid: std::process::id() as i32,
            started: start_time(std::process::id() as i32).unwrap(),
            config: "abc".to_owned(),
        };
        own.save(&file).unwrap();
        assert_eq!(Identity::load(&file), Some(own.clone()));
        Identity { started: own.started + 1, ..own }.save(&file).unwrap();
        assert_eq!(Identity::load(&file), None);
    }
}
