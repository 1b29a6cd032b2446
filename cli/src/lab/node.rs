//! `skiff lab node …` and `skiff lab exec`: using and breaking one member of a lab.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
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
    /// Connect a partitioned node again; it also loses and delays no more
    Heal(MemberArguments),
    /// Lose a share of the packets between a node and the others; `heal` ends it
    Drop(DropArguments),
    /// Delay the packets that go to a node; `heal` ends it
    Delay(DelayArguments),
}

#[derive(Args)]
pub struct MemberArguments {
    /// LAB/NODE (or LAB/server); without LAB/, of the lab "default"
    pub node: String,
}

#[derive(Args)]
pub struct DropArguments {
    /// LAB/NODE (or LAB/server); without LAB/, of the lab "default"
    pub node: String,
    /// The share to lose in each direction, 0 to 100
    #[arg(long, value_parser = parse_percent)]
    pub percent: f64,
}

#[derive(Args)]
pub struct DelayArguments {
    /// LAB/NODE (or LAB/server); without LAB/, of the lab "default"
    pub node: String,
    /// How long, in milliseconds
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub ms: u32,
    /// How much that varies, in milliseconds
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub jitter_ms: u32,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.trim_end_matches('%').parse().ok();
    share.filter(|share| (0.0..=100.0).contains(share)).ok_or_else(|| "give a number from 0 to 100".to_owned())
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
            network::ensure_members(&lab, &[&member])?;
            up::start(&lab, &member)?;
            eprintln!("{member} of lab {} is started", lab.name);
            Ok(())
        }
        NodeCommand::Partition(arguments) => connect(&arguments.node, false),
        NodeCommand::Heal(arguments) => connect(&arguments.node, true),
        NodeCommand::Drop(arguments) => {
            let (lab, member) = find(&arguments.node)?;
            network::set_loss(&lab, &member, arguments.percent)?;
            eprintln!("{member} of lab {} loses {} % of its packets", lab.name, arguments.percent);
            Ok(())
        }
        NodeCommand::Delay(arguments) => {
            let (lab, member) = find(&arguments.node)?;
            network::set_delay(&lab, &member, arguments.ms, arguments.jitter_ms)?;
            eprintln!("packets to {member} of lab {} take {} ms longer", lab.name, arguments.ms);
            Ok(())
        }
    }
}

fn connect(text: &str, connected: bool) -> anyhow::Result<()> {
    let (lab, member) = find(text)?;
    network::set_connected(&lab, &member, connected)?;
    if connected {
        network::set_loss(&lab, &member, 0.0)?;
        network::set_delay(&lab, &member, 0, 0)?;
    }
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
    super::require_root()?;
    let (lab, member) = find(&arguments.node)?;
    let socket = lab.member_run_dir(&member).join("containerd/containerd.sock");
    let mut command = Command::new(&arguments.command[0]);
    command
        .args(&arguments.command[1..])
        .env("KUBECONFIG", lab.kubeconfig())
        .env("CONTAINERD_ADDRESS", &socket)
        .env("CONTAINERD_NAMESPACE", "k8s.io")
        .env("CONTAINER_RUNTIME_ENDPOINT", format!("unix://{}", socket.display()));
    processes::enter(&mut command, &lab.netns(&member))?;
    let status = command.status().with_context(|| format!("running {:?} on {member}", arguments.command[0]))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
