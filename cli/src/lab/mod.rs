//! `skiff lab`: throwaway clusters on one Linux machine, without Docker.
//!
//! Each member (the control plane `server`, and every node) lives in a network namespace of its
//! own, joined by a bridge whose subnet no route of the host covers. A node has its own agent,
//! containerd, directories and cgroup. Nothing of a lab is outside:
//!
//! ```text
//! /var/lib/skiff/lab/<name>/         lab.json, token, join-token, admin.kubeconfig, <member>.log, <member>/…
//! /run/skiff/lab/<name>/<member>/    sockets and pid files
//! netns skiff-<name>-<member>, bridge skl…, links skl…p…, nf_tables table skiff_lab_<name>
//! cgroup skiff-lab-<name>/<member>, iptables chain SKIFF-skl… where the host drops what is forwarded
//! ```
//!
//! [`state`] says what a lab is, [`network`] and [`processes`] make and remove its parts,
//! [`up`], [`down`] and [`node`] are the commands.

mod down;
mod network;
mod node;
mod processes;
mod show;
mod state;
mod up;

pub use down::{remove_cgroups, unescape, unmount_under};
pub use state::hollow_names;

use clap::{Args, Subcommand};

pub const DEFAULT_NAME: &str = "default";

#[derive(Subcommand)]
pub enum LabCommand {
    /// Make a lab, or complete one that was interrupted; returns when every node is Ready
    Up(up::UpArguments),
    /// Remove a lab and everything that it made
    Down(NameArguments),
    /// List labs and what runs of them
    List(show::ListArguments),
    /// Print the path of a lab's kubeconfig
    Kubeconfig(NameArguments),
    /// Run a command in a node's network, with its container runtime and the cluster's kubeconfig
    Exec(node::ExecArguments),
    /// Stop, start, kill, partition, slow down or heal a node (or `server`)
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Show the life of a pod with milliseconds, from the logs of a lab
    Timeline(show::TimelineArguments),
}

#[derive(Args)]
pub struct NameArguments {
    /// The lab's name
    #[arg(default_value = DEFAULT_NAME)]
    pub name: String,
}

pub fn run(command: LabCommand) -> anyhow::Result<std::process::ExitCode> {
    match command {
        LabCommand::Up(arguments) => up::run(&arguments)?,
        LabCommand::Down(arguments) => down::run(&arguments.name)?,
        LabCommand::List(arguments) => show::list(&arguments)?,
        LabCommand::Kubeconfig(arguments) => println!("{}", state::Lab::find(&arguments.name)?.kubeconfig().display()),
        LabCommand::Exec(arguments) => return node::exec(&arguments),
        LabCommand::Node(command) => node::run(&command)?,
        LabCommand::Timeline(arguments) => show::timeline(&arguments)?,
    }
    Ok(std::process::ExitCode::SUCCESS)
}

/// The labs of this machine.
pub fn names() -> anyhow::Result<Vec<String>> {
    Ok(state::Lab::all()?.into_iter().map(|lab| lab.name).collect())
}

/// Ends every process that names a path below one of these directories.
pub fn end_processes_naming(directories: &[&std::path::PathBuf], problems: &mut Vec<String>) {
    let found: Vec<_> = directories.iter().flat_map(|directory| processes::naming(directory)).collect();
    let left = processes::end(&found, nix::sys::signal::Signal::SIGTERM, std::time::Duration::from_secs(10));
    let left = processes::end(&left, nix::sys::signal::Signal::SIGKILL, std::time::Duration::from_secs(5));
    problems.extend(left.iter().map(|process| format!("process {} does not end", process.pid)));
}

pub fn require_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    anyhow::bail!("labs need root, for network namespaces and containers; run the same command with sudo")
}
