//! `skiff lab down`: removes every trace of a lab, whatever state it is in.
//!
//! Nothing is taken from memory of what was started: processes are found by the network namespace
//! they live in and by the lab's paths in their command lines, cgroups, mounts and links by name.
//! Each step goes on when another failed, and all failures are told at the end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::network;
use super::processes::{self, Process};
use super::state::{Lab, SERVER};

pub fn run(name: &str) -> anyhow::Result<()> {
    super::require_root()?;
    Lab::check_name(name)?;
    let lab = match Lab::load(name) {
        Ok(Some(lab)) => lab,
        Ok(None) if !network::has_traces(name) => {
            eprintln!("there is no lab {name:?}: nothing to do");
            return Ok(());
        }
        // Who removed its directory did not remove the lab.
        _ => network::reconstruct(name),
    };
    let mut problems = Vec::new();
    end_processes(&lab, &lab.members().map(str::to_owned).collect::<Vec<_>>(), &mut problems);
    for node in &lab.nodes {
        agent::containerd::remove_shim_sockets(&lab.member_run_dir(node).join("containerd"));
    }
    unmount_under(&[lab.dir(), lab.run_dir()], &mut problems);
    remove_cgroups(&lab.cgroup_root(), &mut problems);
    network::remove(&lab, &mut problems);
    // What is known of the lab goes last: while anything is left, the same command finds it again.
    let dirs = [Some(lab.run_dir()), problems.is_empty().then(|| lab.dir())];
    for dir in dirs.into_iter().flatten() {
        if let Err(error) = std::fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            problems.push(format!("removing {}: {error}", dir.display()));
        }
    }
    if problems.is_empty() {
        eprintln!("lab {name} is down");
        return Ok(());
    }
    anyhow::bail!(
        "lab {name} is only partly down:\n  {}\nrun the same command again when the causes are gone",
        problems.join("\n  ")
    )
}

/// Ends everything that runs in these members: agents and the server first, so that nothing is
/// restarted, then runtimes, shims and containers.
pub fn end_processes(lab: &Lab, members: &[String], problems: &mut Vec<String>) {
    let leaders: Vec<Process> = members.iter().filter_map(|member| Process::from_file(&lab.pid_file(member))).collect();
    let left = processes::end(&leaders, Signal::SIGTERM, Duration::from_secs(5));
    processes::end(&left, Signal::SIGKILL, Duration::from_secs(5));
    // A process may fork while it is being ended, so look until there is none.
    for _ in 0..20 {
        let found = every_process(lab, members);
        if found.is_empty() {
            return;
        }
        processes::end(&found, Signal::SIGKILL, Duration::from_secs(5));
    }
    let left: Vec<String> = every_process(lab, members).iter().map(|process| process.pid.to_string()).collect();
    if !left.is_empty() {
        problems.push(format!("these processes do not end: {}", left.join(", ")));
    }
}

/// All processes of the given members, by namespace, by path and by cgroup.
pub fn every_process(lab: &Lab, members: &[String]) -> Vec<Process> {
    let namespaces: Vec<String> = members.iter().map(|member| lab.netns(member)).collect();
    let mut found = processes::in_namespaces(&namespaces);
    for member in members {
        found.extend(processes::naming(&lab.member_run_dir(member)));
        if member != SERVER {
            found.extend(processes::naming(&lab.member_dir(member)));
        }
        for dir in cgroup_directories(&lab.cgroup(member)) {
            found.extend(cgroup_processes(&dir));
        }
    }
    found.sort_by_key(|process| process.pid);
    found.dedup();
    found
}

/// This cgroup in every hierarchy: `/sys/fs/cgroup` itself (v2) or its subdirectories (v1).
fn cgroup_directories(cgroup: &str) -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let relative = cgroup.trim_start_matches('/');
    let hierarchies = std::fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(base.to_owned())
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(relative))
        .filter(|dir| dir.is_dir())
        .collect()
}

fn cgroup_processes(dir: &Path) -> Vec<Process> {
    let mut found = Vec::new();
    walk(dir, &mut |dir| {
        let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|pid| Process::of(pid.parse().ok()?)));
    });
    found
}

/// Calls `visit` for every directory below `dir`, deepest first, and for `dir` itself.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(dir);
}

pub fn remove_cgroups(root: &str, problems: &mut Vec<String>) {
    for hierarchy in cgroup_directories(root) {
        walk(&hierarchy, &mut |dir| {
            if let Err(error) = std::fs::remove_dir(dir) {
                problems.push(format!("removing the cgroup {}: {error}", dir.display()));
            }
        });
    }
}

/// Unmounts everything below these directories, latest first.
pub fn unmount_under(roots: &[PathBuf], problems: &mut Vec<String>) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| roots.iter().any(|root| point.starts_with(root)))
        .collect();
    points.reverse();
    for point in points {
        if let Err(error) = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH)
            && error != nix::Error::EINVAL
            && error != nix::Error::ENOENT
        {
            problems.push(format!("unmounting {}: {error}", point.display()));
        }
    }
}

/// mountinfo writes blanks, tabs, newlines and backslashes in octal.
pub fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}
