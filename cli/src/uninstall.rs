//! `skiff uninstall`: removes what `skiff server` and `skiff agent` made on this machine. Labs are
//! separate clusters and have `skiff lab down`.

use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::lab;

#[derive(Args)]
pub struct UninstallArguments {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// What --data-dir of the server or the agent was
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// What --run-dir was
    #[arg(long, default_value = "/run/skiff")]
    run_dir: PathBuf,
    /// Configuration and the administrator's kubeconfig
    #[arg(long, default_value = "/etc/skiff")]
    config_dir: PathBuf,
}

pub fn run(arguments: &UninstallArguments) -> anyhow::Result<ExitCode> {
    lab::require_root()?;
    let labs = lab::names()?;
    if !labs.is_empty() {
        anyhow::bail!("there are labs ({}); take them down first: skiff lab down NAME", labs.join(", "));
    }
    let elsewhere = agent::kubelet_elsewhere(&arguments.data_dir);
    let own = [&arguments.run_dir, &arguments.data_dir, &arguments.config_dir];
    let entries: Vec<PathBuf> = elsewhere.iter().flat_map(|root| agent::kubelet_entries(root)).collect();
    if !arguments.yes && !confirmed(&elsewhere.iter().chain(own).collect::<Vec<_>>())? {
        eprintln!("nothing was removed");
        return Ok(ExitCode::FAILURE);
    }
    let mut problems = Vec::new();
    lab::end_processes_naming(&own, &mut problems);
    // The kernel's names are those without links.
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let roots: Vec<PathBuf> = entries.iter().chain(own).map(real).collect();
    lab::unmount_under(&roots, &mut problems);
    lab::remove_cgroups("skiff", &mut problems);
    problems.extend(agent::remove_network_objects(&arguments.data_dir));
    // A link among our own says where the kubelet's directory is: that goes first.
    for path in &entries {
        remove(path, &mut problems);
    }
    if let Some(root) = &elsewhere {
        remove_if_empty(root, &mut problems);
    }
    for path in own {
        remove(path, &mut problems);
    }
    if problems.is_empty() {
        eprintln!("skiff is gone from this machine; the executable itself stays");
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("skiff is only partly removed:\n  {}", problems.join("\n  "))
}

fn remove(path: &Path, problems: &mut Vec<String>) {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            problems.push(format!("removing {}: {error}", path.display()));
        }
        _ => {}
    }
}

/// Removes a directory that others may have something in, with the mount that the kubelet made of it.
fn remove_if_empty(directory: &Path, problems: &mut Vec<String>) {
    let unmounted = unmount_own(directory);
    let is_empty = std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        if let Err(error) = unmounted {
            problems.push(format!("unmounting {}: {error}", directory.display()));
        }
        return;
    }
    let removed = match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            nix::mount::umount2(directory, nix::mount::MntFlags::MNT_DETACH)
                .map_err(std::io::Error::from)
                .and_then(|()| std::fs::remove_dir(directory))
        }
        outcome => outcome,
    };
    if let Err(error) = removed {
        problems.push(format!("removing {}: {error}", directory.display()));
    }
}

/// Unmounts what the kubelet mounted at the directory. Not lazily: what others mounted in it would go too.
fn unmount_own(directory: &Path) -> std::io::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    if is_bound_to_itself(&table, directory) {
        nix::mount::umount2(directory, nix::mount::MntFlags::empty())?;
    }
    Ok(())
}

/// Whether the newest mount at the directory shows what is there without it: the kubelet makes such a one to
/// share it. A file system that somebody mounted there is theirs.
fn is_bound_to_itself(mountinfo: &str, directory: &Path) -> bool {
    struct Mount<'a> {
        id: &'a str,
        parent: &'a str,
        device: &'a str,
        shown: PathBuf,
        point: PathBuf,
    }
    let path = |text: &str| PathBuf::from(lab::unescape(text));
    let parse = |line| {
        let fields: Vec<&str> = str::split(line, ' ').take(5).collect();
        let [id, parent, device, shown, point] = fields[..] else { return None };
        Some(Mount { id, parent, device, shown: path(shown), point: path(point) })
    };
    let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(parse).collect();
    let Some(newest) = mounts.iter().rfind(|mount| mount.point == directory) else { return false };
    let Some(below) = mounts.iter().find(|mount| mount.id == newest.parent) else { return false };
    let inner = directory.strip_prefix(&below.point);
    // By components: a path joined with nothing ends with a slash.
    newest.device == below.device && inner.is_ok_and(|inner| below.shown.join(inner) == newest.shown)
}

fn confirmed(directories: &[&PathBuf]) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        anyhow::bail!("this removes all pods and all data; give --yes to do it without being asked");
    }
    let list: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
    eprint!("This ends all pods of this machine and removes {}. Go on? [y/N] ", list.join(", "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kubelets_own_mount_of_its_directory_goes() {
        let root = "1 0 8:1 /@ / rw - btrfs /dev/sda rw";
        let bound = "2 1 8:1 /@/var/lib/kubelet /var/lib/kubelet rw shared:1 - btrfs /dev/sda rw";
        let disk = "3 1 8:2 / /var/lib/kubelet rw - ext4 /dev/sdb rw";
        let elsewhere = "4 1 8:1 /@/srv/kubelet /var/lib/kubelet rw - btrfs /dev/sda rw";
        let on_disk = "5 3 8:2 / /var/lib/kubelet rw shared:2 - ext4 /dev/sdb rw";
        let inside = "6 1 8:1 /@/var/lib/kubelet/pods /var/lib/kubelet/pods rw - btrfs /dev/sda rw";
        for (mounts, expected) in [
            (vec![root], false),
            (vec![root, bound], true),
            (vec![root, disk], false),
            (vec![root, elsewhere], false),
            (vec![root, disk, on_disk], true),
            (vec![root, inside], false),
        ] {
            let table = mounts.join("\n");
            assert_eq!(is_bound_to_itself(&table, Path::new("/var/lib/kubelet")), expected, "{table}");
        }
    }

    #[test]
    fn what_others_have_in_the_kubelets_directory_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let place = root.path().join("kubelet");
        for entry in agent::kubelet_entries(&place) {
            std::fs::create_dir_all(entry).expect("a directory of the kubelet's");
        }
        let other = place.join("other");
        std::fs::write(&other, "").expect("a file of another's");
        let clean = || {
            let mut problems = Vec::new();
            agent::kubelet_entries(&place).iter().for_each(|entry| remove(entry, &mut problems));
            remove_if_empty(&place, &mut problems);
            assert!(problems.is_empty(), "{problems:?}");
        };
        clean();
        let left: Vec<_> = std::fs::read_dir(&place).expect("it stays").flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, std::slice::from_ref(&other));
        remove(&other, &mut Vec::new());
        clean();
        assert!(!place.exists());
    }
}
