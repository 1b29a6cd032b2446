//! The calls that runtimes before CNI 1.1 do not make: GC and STATUS.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::Error;

/// A plugin that takes longer is broken.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One sandbox's interface that still exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The id that the runtime passed as CNI_CONTAINERID: the sandbox's.
    pub container_id: String,
    /// Usually `eth0`.
    pub ifname: String,
}

pub async fn collect(directory: &Path, conflist: &Value, valid: &[Attachment]) -> Result<(), Error> {
    let valid: Vec<Value> =
        valid.iter().map(|each| json!({ "containerID": each.container_id, "ifname": each.ifname })).collect();
    let mut outcome = Ok(());
    for mut plugin in plugins(conflist) {
        plugin["cni.dev/valid-attachments"] = json!(valid);
        // One plugin's failure must not keep the others from collecting.
        if let Err(error) = call(directory, "GC", &plugin).await {
            outcome = Err(error);
        }
    }
    outcome
}

pub async fn status(directory: &Path, conflist: &Value) -> Result<(), Error> {
    for plugin in plugins(conflist) {
        call(directory, "STATUS", &plugin).await?;
    }
    Ok(())
}

/// Each plugin's configuration as the specification derives it from a list, at 1.1.0.
fn plugins(conflist: &Value) -> Vec<Value> {
    let list = conflist.get("plugins").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .cloned()
        .map(|mut plugin| {
            plugin["cniVersion"] = json!("1.1.0");
            plugin["name"] = conflist["name"].clone();
            plugin
        })
        .collect()
}

async fn call(directory: &Path, command: &'static str, config: &Value) -> Result<(), Error> {
    let name = config["type"].as_str().unwrap_or_default();
    let failed = |message: String| Error::Plugin { plugin: name.to_owned(), command, message };
    let mut child = tokio::process::Command::new(directory.join(name))
        .env("CNI_COMMAND", command)
        .env("CNI_PATH", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be run from {}: {error}", directory.display())))?;
    if let Some(mut input) = child.stdin.take() {
        // A plugin may exit before it has read everything; its answer says why.
        let _ = input.write_all(config.to_string().as_bytes()).await;
    }
    let output = tokio::time::timeout(TIMEOUT, child.wait_with_output())
        .await
        .map_err(|_| failed(format!("did not end within {} s", TIMEOUT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Err(failed(answer["msg"].as_str().unwrap_or("failed without a message").to_owned()))
}
