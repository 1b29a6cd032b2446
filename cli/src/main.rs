//! `skiff`: Kubernetes in one small binary. This file is the command line; each command has a
//! module of its own.

mod access;
mod agent_command;
mod check;
mod client;
mod hollow;
mod images;
mod lab;
mod server;
mod snapshot;
mod store_command;
mod token;
mod uninstall;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "skiff", version, about = "Kubernetes made small: a cluster in about a second", max_term_width = 100)]
struct CommandLine {
    /// What to log: error, warn, info, debug or trace, also per part, as in info,kubelet=debug
    #[arg(long, global = true, env = "SKIFF_LOG", default_value = "info,kube_client=off,kube_runtime=error")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane, and a node unless told otherwise
    Server(Box<server::ServerArguments>),
    /// Run a node of an existing cluster
    Agent(Box<agent_command::AgentArguments>),
    /// Pretend nodes: what `lab up --hollow-nodes` starts
    #[command(hide = true)]
    Hollow(hollow::HollowArguments),
    /// Throwaway clusters on this machine
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Tokens with which nodes join
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Copies of the cluster's whole state
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Look into the store
    #[command(subcommand)]
    Store(store_command::StoreCommand),
    /// Images of a node's container runtime
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// Look whether this machine can run skiff, and say how to mend what is missing
    Check,
    /// Remove everything that skiff made on this machine
    Uninstall(uninstall::UninstallArguments),
    /// Print version and the Kubernetes version served
    Version,
}

fn main() -> ExitCode {
    let arguments = CommandLine::parse();
    start_logging(&arguments.log);
    if !matches!(arguments.command, Command::Server(_) | Command::Agent(_) | Command::Hollow(_)) {
        end_with_the_reader();
    }
    // Two TLS providers in one process panic at the first handshake: choose before any.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("skiff: a TLS provider was already chosen");
        return ExitCode::FAILURE;
    }
    let outcome = match arguments.command {
        Command::Server(arguments) => server::run(&arguments),
        Command::Agent(arguments) => agent_command::run(&arguments),
        Command::Hollow(arguments) => hollow::run(&arguments),
        Command::Lab(command) => lab::run(command),
        Command::Token(command) => token::run(&command),
        Command::Snapshot(command) => snapshot::run(&command),
        Command::Store(command) => store_command::run(&command),
        Command::Images(command) => images::run(&command),
        Command::Check => check::run(),
        Command::Uninstall(arguments) => uninstall::run(&arguments),
        Command::Version => {
            println!("skiff {} (Kubernetes v{})", api::version::SKIFF, api::version::SHORT);
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("skiff: {error:#}");
        if error.is::<BadUsage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

/// What was asked for cannot be, whatever the machine's state: exit code 2, as for an unknown flag.
#[derive(Debug)]
struct BadUsage(String);

impl std::fmt::Display for BadUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadUsage {}

/// `skiff check | head -1` ends quietly when its reader does, as other commands do. The long-lived
/// commands keep ignoring SIGPIPE: a client that goes must not end them.
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action is no function of ours; no other thread runs yet.
    let restored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    if let Err(error) = restored {
        tracing::debug!(%error, "SIGPIPE keeps being ignored");
    }
}

fn start_logging(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("skiff: --log {filter:?} is not understood ({error}); logging at info");
        EnvFilter::new("info")
    });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
