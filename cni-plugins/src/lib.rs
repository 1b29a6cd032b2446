//! CNI plugins: what a container runtime calls to give a sandbox its network.
//!
//! Layer: a short-lived executable above `netlink`; knows nothing of Kubernetes. It follows the CNI
//! specification 1.1 (ADD, DEL, CHECK, GC, STATUS, VERSION) and answers in the version that the
//! network configuration names, 0.3.1 to 1.1.0.
//!
//! - [`spec`]: environment, errors with the specification's codes, results and their versions.
//! - one module per plugin: [`loopback`], [`bridge`], [`ptp`], [`host_local`], [`static_ipam`],
//!   [`portmap`], [`bandwidth`], [`tuning`], [`firewall`].
//! - [`interface`]: the steps that plugins share: a veth into a sandbox, its addresses and routes.
//! - [`ipam`]: address plugins, called in this process when they are ours.
//!
//! A pod waits for these plugins to start: nothing here spawns a process, a runtime or a pool on
//! the usual road.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

mod bandwidth;
mod bridge;
mod firewall;
mod host_local;
mod interface;
mod ipam;
mod loopback;
mod masquerade;
mod portmap;
mod ptp;
mod spec;
mod static_ipam;
mod tuning;

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use spec::{Call, Command, Error, Result};

/// The names under which the executable is to be linked into a CNI plugin directory.
pub const PLUGINS: &[&str] =
    &["bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "ptp", "static", "tuning"];

/// What each plugin offers; a plugin without anything to check or collect says so by doing nothing.
pub(crate) struct Plugin {
    /// Prints a result; `None` where the plugin has none of its own (it passes the previous one on).
    add: fn(&Call) -> Result<Value>,
    delete: fn(&Call) -> Result<()>,
    check: fn(&Call) -> Result<()>,
    collect: fn(&Call) -> Result<()>,
    status: fn(&Call) -> Result<()>,
}

fn nothing(_: &Call) -> Result<()> {
    Ok(())
}

fn plugin(name: &str) -> Option<Plugin> {
    Some(match name {
        "loopback" => loopback::PLUGIN,
        "bridge" => bridge::PLUGIN,
        "ptp" => ptp::PLUGIN,
        "host-local" => host_local::PLUGIN,
        "static" => static_ipam::PLUGIN,
        "portmap" => portmap::PLUGIN,
        "bandwidth" => bandwidth::PLUGIN,
        "tuning" => tuning::PLUGIN,
        "firewall" => firewall::PLUGIN,
        _ => return None,
    })
}

/// The whole program.
pub fn main() -> ExitCode {
    let called = std::env::args().next().unwrap_or_default();
    let first = std::env::args().nth(1);
    let own = Path::new(&called).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // `skiff-cni bridge` serves people who try a plugin by hand.
    let name = if plugin(&own).is_some() { own } else { first.unwrap_or(own) };
    match run(&name) {
        Ok(output) => {
            // A runtime that closed its end is not waiting for the answer any more.
            let _ = std::io::stdout().write_all(output.as_bytes());
            ExitCode::SUCCESS
        }
        Err((error, version)) => {
            let _ = writeln!(std::io::stdout(), "{}", error.to_json(&version));
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str) -> std::result::Result<String, (Error, String)> {
    let Some(plugin) = plugin(name) else {
        let names = PLUGINS.join(", ");
        return Err((
            Error::config(format!("no plugin is called {name:?}; link skiff-cni under one of: {names}")),
            spec::NEWEST.to_owned(),
        ));
    };
    let command = Command::from_environment().map_err(|error| (error, spec::NEWEST.to_owned()))?;
    let mut input = Vec::new();
    std::io::stdin()
        .read_to_end(&mut input)
        .map_err(|error| (Error::io(format!("error reading from stdin: {error}")), spec::NEWEST.to_owned()))?;
    if command == Command::Version {
        return Ok(spec::versions(&input));
    }
    let version = spec::config_version(&input);
    dispatch(&plugin, command, &input).map_err(|error| (error, version))
}

fn dispatch(plugin: &Plugin, command: Command, input: &[u8]) -> Result<String> {
    let call = Call::new(command, input)?;
    match command {
        Command::Add => (plugin.add)(&call).map(|result| result.to_string()),
        Command::Delete => (plugin.delete)(&call).map(|()| String::new()),
        Command::Check => (plugin.check)(&call).map(|()| String::new()),
        Command::Collect => (plugin.collect)(&call).map(|()| String::new()),
        Command::Status => (plugin.status)(&call).map(|()| String::new()),
        Command::Version => Ok(spec::versions(input)),
    }
}
