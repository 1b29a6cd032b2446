//! `skiff uninstall`: removes what `skiff server` and `skiff agent` made on this machine. Labs are
//! separate clusters and have `skiff lab down`.

use std::io::IsTerminal;
use std::path::PathBuf;
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
    // Its own link says where it is: it goes first.
    let directories: Vec<&PathBuf> = elsewhere.iter().chain(own).collect();
    if !arguments.yes && !confirmed(&directories)? {
        eprintln!("nothing was removed");
        return Ok(ExitCode::FAILURE);
    }
    let mut problems = Vec::new();
    lab::end_processes_naming(&own, &mut problems);
    let roots: Vec<PathBuf> = directories.iter().map(|directory| (*directory).clone()).collect();
    lab::unmount_under(&roots, &mut problems);
    lab::remove_cgroups("skiff", &mut problems);
    problems.extend(agent::remove_network_objects(&arguments.data_dir));
    for directory in directories {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                problems.push(format!("removing {}: {error}", directory.display()));
            }
            _ => {}
        }
    }
    if problems.is_empty() {
        eprintln!("skiff is gone from this machine; the executable itself stays");
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("skiff is only partly removed:\n  {}", problems.join("\n  "))
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
