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
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    #[arg(long, default_value = "/run/skiff")]
    run_dir: PathBuf,
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
    let is_empty = std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
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
