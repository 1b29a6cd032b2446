//! `skiff check`: whether this machine can run a node, each failure with its fix.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// One thing a node needs.
struct Finding {
    what: &'static str,
    /// How to mend it; none when all is well.
    fix: Option<String>,
}

fn program(what: &'static str, name: &str, package: &str) -> Finding {
    let fix = find_program(name).is_none().then(|| format!("apt-get install --no-install-recommends {package}"));
    Finding { what, fix }
}

/// An executable in the places where distributions put system programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
}

fn filesystem(what: &'static str, name: &str) -> Finding {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let fix = (!known.lines().any(|line| line.split_whitespace().next_back() == Some(name)))
        .then(|| format!("modprobe {name}"));
    Finding { what, fix }
}

fn sysctl(what: &'static str, path: &str) -> Finding {
    let fix = (!Path::new(path).exists())
        .then(|| format!("{path} does not exist: this kernel lacks the feature; use another kernel"));
    Finding { what, fix }
}

fn cgroup_controllers() -> Finding {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let v1 = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| {
            let in_v2 = v2.split_whitespace().any(|controller| controller == *name);
            let in_v1 = v1.lines().any(|line| {
                let mut fields = line.split_whitespace();
                fields.next() == Some(name) && fields.nth(2) == Some("1")
            });
            !in_v2 && !in_v1
        })
        .collect();
    let fix = (!missing.is_empty()).then(|| {
        format!("the cgroup controllers {} are off; boot with cgroup_enable=memory cgroup_memory=1", missing.join(", "))
    });
    Finding { what: "cgroup controllers cpu, memory and pids", fix }
}

fn findings() -> Vec<Finding> {
    let root = (!nix::unistd::geteuid().is_root()).then(|| "run as root: sudo skiff check".to_owned());
    vec![
        Finding { what: "root", fix: root },
        program("containerd", "containerd", "containerd"),
        program("runc", "runc", "runc"),
        program("nft (rules of a lab's way out)", "nft", "nftables"),
        program("iptables (--proxy-mode iptables)", "iptables-restore", "iptables"),
        cgroup_controllers(),
        filesystem("overlay file system", "overlay"),
        sysctl("network namespaces", "/proc/self/ns/net"),
        sysctl("IPv4 forwarding", "/proc/sys/net/ipv4/ip_forward"),
    ]
}

pub fn run() -> anyhow::Result<ExitCode> {
    let findings = findings();
    for finding in &findings {
        match &finding.fix {
            None => println!("ok       {}", finding.what),
            Some(fix) => println!("missing  {}\n         {fix}", finding.what),
        }
    }
    let missing = findings.iter().filter(|finding| finding.fix.is_some()).count();
    if missing == 0 {
        eprintln!("this machine can run skiff");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{missing} thing(s) are missing");
    Ok(ExitCode::FAILURE)
}
