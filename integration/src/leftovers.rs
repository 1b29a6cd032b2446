//! What a lab that was taken down must not leave: looked for by name on the whole host.

use std::path::Path;

use crate::run::command;

/// Everything that still carries the lab's name or lives in its places.
pub(crate) fn of_lab(name: &str, bridge: &str) -> Vec<String> {
    let mut found = Vec::new();
    for path in [format!("/var/lib/skiff/lab/{name}"), format!("/run/skiff/lab/{name}")] {
        if Path::new(&path).exists() {
            found.push(format!("directory {path}"));
        }
        found.extend(processes_naming(&format!("{path}/")));
    }
    let prefix = format!("skiff-{name}-");
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(format!("network namespace {}", entry.file_name().to_string_lossy()));
        }
    }
    for entry in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(bridge) {
            found.push(format!("link {}", entry.file_name().to_string_lossy()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let needle = format!("skiff/lab/{name}/");
    found.extend(mounts.lines().filter(|line| line.contains(&needle)).map(|line| format!("mount {line}")));
    found.extend(cgroups(&format!("skiff-lab-{name}")));
    let tables = command("nft", &["list", "tables"], &[], "").stdout;
    let table = format!("skiff_lab_{}", name.replace('-', "_"));
    found.extend(tables.lines().filter(|line| line.ends_with(&table)).map(|line| format!("nf_tables {line}")));
    found
}

fn cgroups(name: &str) -> Vec<String> {
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(base.to_owned())
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(name))
        .filter(|path| path.is_dir())
        .map(|path| format!("cgroup {}", path.display()))
        .collect()
}

fn processes_naming(path: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str().filter(|name| name.parse::<u32>().is_ok())?.to_owned();
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (pid != own && line.contains(path)).then(|| format!("process {pid}: {line}"))
        })
        .collect()
}
