//! Address plugins: called in this process when they are ours, as executables when they are not.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use serde::Deserialize;
use serde_json::Value;

use crate::Plugin;
use crate::spec::{Call, Error, NetworkResult, Result};

enum Delegate {
    Ours(Plugin),
    Executable(PathBuf),
}

/// The type of the configuration's `ipam`; empty when there is none.
pub fn kind(call: &Call) -> &str {
    call.config.pointer("/ipam/type").and_then(Value::as_str).unwrap_or_default()
}

fn delegate(call: &Call) -> Result<Delegate> {
    let kind = kind(call);
    if kind.contains('/') {
        return Err(Error::config(format!("invalid plugin name: {kind}")));
    }
    let found = call.path.iter().map(|directory| directory.join(kind)).find(|path| path.is_file());
    let ours = || crate::plugin(kind).filter(|_| matches!(kind, "host-local" | "static"));
    match (found, ours()) {
        (Some(path), Some(plugin)) if is_this_executable(&path) => Ok(Delegate::Ours(plugin)),
        (Some(path), _) => Ok(Delegate::Executable(path)),
        (None, Some(plugin)) => Ok(Delegate::Ours(plugin)),
        (None, None) => Err(Error::internal(format!("failed to find plugin {kind:?} in path {:?}", call.path))),
    }
}

fn is_this_executable(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    identity(path).is_some_and(|found| identity(Path::new("/proc/self/exe")) == Some(found))
}

pub fn add(call: &Call) -> Result<NetworkResult> {
    let value = match delegate(call)? {
        Delegate::Ours(plugin) => (plugin.add)(call)?,
        Delegate::Executable(path) => {
            let printed = execute(&path, "ADD", call)?;
            serde_json::from_slice(&printed)
                .map_err(|error| Error::decode(format!("{} printed no result: {error}", path.display())))?
        }
    };
    let result = NetworkResult::deserialize(value)
        .map_err(|error| Error::decode(format!("the address plugin's result cannot be read: {error}")))?;
    if result.ips.is_empty() {
        return Err(Error::internal("IPAM plugin returned missing IP config"));
    }
    Ok(result)
}

pub fn delete(call: &Call) -> Result<()> {
    run(call, "DEL", |plugin| plugin.delete)
}

pub fn check(call: &Call) -> Result<()> {
    run(call, "CHECK", |plugin| plugin.check)
}

pub fn collect(call: &Call) -> Result<()> {
    run(call, "GC", |plugin| plugin.collect)
}

pub fn status(call: &Call) -> Result<()> {
    run(call, "STATUS", |plugin| plugin.status)
}

/// One of a plugin's commands without a result.
type Act = fn(&Call) -> Result<()>;

fn run(call: &Call, command: &str, ours: fn(&Plugin) -> Act) -> Result<()> {
    if kind(call).is_empty() {
        return Ok(());
    }
    match delegate(call)? {
        Delegate::Ours(plugin) => ours(&plugin)(call),
        Delegate::Executable(path) => execute(&path, command, call).map(drop),
    }
}

/// Runs a plugin with this call's own variables, but for the command.
fn execute(path: &Path, command: &str, call: &Call) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| Error::internal(format!("cannot run {}: {error}", path.display()));
    let mut child = Process::new(path)
        .env("CNI_COMMAND", command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A plugin may exit without reading its configuration; its answer says why.
        let _ = input.write_all(call.config.to_string().as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::from_json(&output.stdout).unwrap_or_else(|| {
        Error::internal(format!("{} failed ({}) and printed no error", path.display(), output.status))
    }))
}
