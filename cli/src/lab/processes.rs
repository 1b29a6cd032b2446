//! The lab's processes: started detached in their member's network namespace, found again by pid
//! file or by the namespace they live in, ended by pid.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    started: u64,
}

impl Process {
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may hold spaces; fields count after its closing parenthesis.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        if state == "Z" || state == "X" {
            return None;
        }
        Some(Self { pid, started: fields.nth(18)?.parse().ok()? })
    }

    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    pub fn signal(self, signal: Signal) {
        if self.alive() {
            // It may have ended since: that is what was wanted.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Returns once it has ended.
    pub async fn ended(self) -> std::io::Result<()> {
        let Some(descriptor) = pidfd(self.pid) else {
            if self.alive() {
                // A kernel before 5.3 does not tell: whoever waits has a limit of their own.
                std::future::pending::<()>().await;
            }
            return Ok(());
        };
        // Another one may have its pid by now.
        if self.alive() {
            // SAFETY: the descriptor is owned by what watches it, and stays the same for all its life.
            let watched = unsafe { AsyncFd::register(descriptor) }?;
            watched.readable().await?.retain_ready();
        }
        Ok(())
    }

    pub fn from_file(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let known = Self { pid: pid.parse().ok()?, started: started.parse().ok()? };
        known.alive().then_some(known)
    }

    fn to_file(self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, format!("{} {}\n", self.pid, self.started))
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// Starts `skiff` with `arguments` in a network namespace and under a host name of its own (which pods in
/// the host's network see), detached, output to `log`.
pub fn start(
    netns: &str,
    host: &str,
    arguments: &[String],
    environment: &[(&str, &str)],
    log: &Path,
    pid_file: &Path,
) -> anyhow::Result<Process> {
    let skiff = std::env::current_exe().context("finding skiff's own executable")?;
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening the log {}", log.display()))?;
    let mut command = Command::new(&skiff);
    command.args(arguments).envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    enter(&mut command, netns)?;
    let host = host.to_owned();
    // SAFETY: three system calls that allocate nothing, safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWUTS)?;
            nix::unistd::sethostname(&host)?;
            Ok(nix::unistd::setsid().map(drop)?)
        });
    }
    let child = command.spawn().with_context(|| format!("starting {}", skiff.display()))?;
    let pid = i32::try_from(child.id()).context("pid out of range")?;
    let process =
        Process::of(pid).with_context(|| format!("{} ended at once; see {}", skiff.display(), log.display()))?;
    process.to_file(pid_file)?;
    Ok(process)
}

/// Makes a command run in a network namespace.
pub fn enter(command: &mut Command, netns: &str) -> anyhow::Result<()> {
    let namespace = File::open(netns_path(netns)).with_context(|| format!("opening network namespace {netns}"))?;
    // SAFETY: setns is one system call, safe between fork and exec.
    unsafe {
        command.pre_exec(move || Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?));
    }
    Ok(())
}

pub fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Every process in one of these network namespaces.
pub fn in_namespaces(names: &[String]) -> Vec<Process> {
    let inodes: Vec<u64> =
        names.iter().filter_map(|name| std::fs::metadata(netns_path(name)).ok()).map(|meta| meta.ino()).collect();
    every_process(|pid| std::fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| inodes.contains(&meta.ino())))
}

/// Every process whose command line names a path under `dir`: containerd, its shims.
pub fn naming(dir: &Path) -> Vec<Process> {
    let prefix = format!("{}/", dir.display());
    every_process(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| contains(word, prefix.as_bytes())))
    })
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// This process and all that called it: a shell whose command line names a directory of a lab, and then takes
/// the lab down, is none of the lab's.
fn callers() -> Vec<i32> {
    let parent = |pid: &i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the command's name: the state, then the parent.
        let parent: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (parent > 0).then_some(parent)
    };
    std::iter::successors(Some(std::process::id() as i32), parent).collect()
}

fn every_process(wanted: impl Fn(i32) -> bool) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let callers = callers();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| !callers.contains(pid) && wanted(*pid))
        .filter_map(Process::of)
        .collect()
}

/// Sends `signal` to all and waits until they have ended; returns those that had not within `limit`.
pub fn end(processes: &[Process], signal: Signal, limit: Duration) -> Vec<Process> {
    for process in processes {
        process.signal(signal);
    }
    let deadline = Instant::now() + limit;
    let mut left = processes.to_vec();
    loop {
        // Children of this very process would stay zombies: collect them.
        while matches!(
            nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)),
            Ok(status) if status != nix::sys::wait::WaitStatus::StillAlive
        ) {}
        left.retain(|process| process.alive());
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        wait_for_one(&left, deadline.saturating_duration_since(Instant::now()));
    }
}

/// Waits until one of them ends, by its pidfd, or the time is over.
fn wait_for_one(processes: &[Process], limit: Duration) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let descriptors: Vec<std::os::fd::OwnedFd> = processes.iter().filter_map(|process| pidfd(process.pid)).collect();
    let mut polled: Vec<PollFd<'_>> = descriptors.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    let limit = u16::try_from(limit.as_millis().clamp(1, 1000)).unwrap_or(1000);
    // A failure only means looking again.
    let _ = poll(&mut polled, PollTimeout::from(limit));
}

fn pidfd(pid: i32) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: pidfd_open takes two integers; a non-negative result is a new descriptor that is ours.
    unsafe {
        let fd = nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0);
        (fd >= 0).then(|| std::os::fd::OwnedFd::from_raw_fd(fd as i32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_a_lab_down_is_not_ended_with_it() {
        let callers = callers();
        let (own, parent) = (std::process::id() as i32, nix::unistd::getppid().as_raw());
        assert_eq!(callers[0], own);
        assert!(parent == 0 || callers[1] == parent, "{callers:?}");
        assert!(!every_process(|_| true).iter().any(|process| callers.contains(&process.pid)));
    }

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        assert!(process.alive());
        assert!(!Process { started: process.started + 1, ..process }.alive(), "another process with the same pid");
        process.signal(Signal::SIGKILL);
        child.wait().unwrap();
        assert!(!process.alive());
    }
}
