//! `skiff lab node …` and `skiff lab exec`: using and breaking one member of a lab.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

use super::state::{Lab, SERVER, split_member};
use super::{down, network, processes, up};

#[derive(Subcommand)]
pub enum NodeCommand {
    /// Shut a node down in order: its containers get SIGTERM, then everything ends
    Stop(MemberArguments),
    /// Start a node that was stopped or killed
    Start(MemberArguments),
    /// End everything on a node at once, as a power cut does
    Kill(MemberArguments),
    /// Cut a node off from the others and the server
    Partition(MemberArguments),
    /// Connect a partitioned node again
    Heal(MemberArguments),
}

#[derive(Args)]
pub struct MemberArguments {
    /// LAB/NODE (or LAB/server); without LAB/, of the lab "default"
    pub node: String,
}

#[derive(Args)]
pub struct ExecArguments {
    /// LAB/NODE (or LAB/server); without LAB/, of the lab "default"
    pub node: String,
    /// The command and its arguments, after --
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

fn find(text: &str) -> anyhow::Result<(Lab, String)> {
    let (name, member) = split_member(text);
    let lab = Lab::find(name)?;
    if lab.address(member).is_none() {
        let members: Vec<&str> = lab.members().collect();
        bail!("lab {name} has no {member:?}; it has {}", members.join(", "));
    }
    Ok((lab, member.to_owned()))
}

pub fn run(command: &NodeCommand) -> anyhow::Result<()> {
    super::require_root()?;
    match command {
        NodeCommand::Stop(arguments) => stop(&arguments.node, Signal::SIGTERM),
        NodeCommand::Kill(arguments) => stop(&arguments.node, Signal::SIGKILL),
        NodeCommand::Start(arguments) => {
            let (lab, member) = find(&arguments.node)?;
            network::ensure(&lab)?;
            up::start(&lab, &member)?;
            eprintln!("{member} of lab {} is started", lab.name);
            Ok(())
        }
        NodeCommand::Partition(arguments) => connect(&arguments.node, false),
        NodeCommand::Heal(arguments) => connect(&arguments.node, true),
    }
}

fn connect(text: &str, connected: bool) -> anyhow::Result<()> {
    let (lab, member) = find(text)?;
    network::set_connected(&lab, &member, connected)?;
    eprintln!("{member} of lab {} is {}", lab.name, if connected { "connected" } else { "cut off" });
    Ok(())
}

/// The containers' own grace before the rest ends.
const STOP_GRACE: Duration = Duration::from_secs(10);

fn stop(text: &str, signal: Signal) -> anyhow::Result<()> {
    let (lab, member) = find(text)?;
    let members = [member.clone()];
    let mut problems = Vec::new();
    if signal == Signal::SIGTERM {
        // The agent first, so that it does not restart what ends; then everything politely.
        let leader: Vec<_> = processes::Process::from_file(&lab.pid_file(&member)).into_iter().collect();
        processes::end(&leader, Signal::SIGTERM, STOP_GRACE);
        processes::end(&down::every_process(&lab, &members), Signal::SIGTERM, STOP_GRACE);
    } else {
        processes::end(&down::every_process(&lab, &members), Signal::SIGKILL, STOP_GRACE);
    }
    down::end_processes(&lab, &members, &mut problems);
    if member != SERVER {
        // A machine that is off has nothing mounted.
        down::unmount_under(&[lab.member_run_dir(&member), lab.member_dir(&member)], &mut problems);
    }
    if !problems.is_empty() {
        bail!("{member} of lab {} is only partly off: {}", lab.name, problems.join("; "));
    }
    eprintln!("{member} of lab {} is off", lab.name);
    Ok(())
}

/// Runs a command with the member's network and surroundings; its exit code is ours.
pub fn exec(arguments: &ExecArguments) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    super::require_root()?;
    let (lab, member) = find(&arguments.node)?;
    let path = processes::netns_path(&lab.netns(&member));
    let namespace = std::fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let socket = lab.member_run_dir(&member).join("containerd/containerd.sock");
    let mut command = Command::new(&arguments.command[0]);
    command
        .args(&arguments.command[1..])
        .env("KUBECONFIG", lab.kubeconfig())
        .env("CONTAINERD_ADDRESS", &socket)
        .env("CONTAINERD_NAMESPACE", "k8s.io")
        .env("CONTAINER_RUNTIME_ENDPOINT", format!("unix://{}", socket.display()));
    // SAFETY: setns is one system call, safe between fork and exec.
    unsafe {
        command.pre_exec(move || Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?));
    }
    let status = command.status().with_context(|| format!("running {:?} on {member}", arguments.command[0]))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
