//! Running a provider: one process for one question (`plugin.go: ExecPlugin`).

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::protocol::{Response, ResponseError, response};
use super::settings::Provider;
use crate::images::totals::Totals;

/// For all of them alike: enough for a second try of what they ask in turn.
const LIMIT: Duration = Duration::from_secs(60);
/// An answer's bytes; what follows is not read.
const LARGEST: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("error execing credential provider plugin {name} for image {image}: {why}")]
    Run { name: String, image: String, why: String },
    #[error(transparent)]
    Response(#[from] ResponseError),
}

/// Asks, and reads the answer.
pub async fn run(
    executable: &Path,
    provider: &Provider,
    image: &str,
    request: &Value,
    totals: &Totals,
) -> Result<Response, ExecError> {
    let began = Instant::now();
    let outcome = tokio::time::timeout(LIMIT, output(executable, provider, request)).await;
    let outcome = outcome.unwrap_or_else(|_| Err("context deadline exceeded".to_owned()));
    totals.provider_ran(&provider.name, began.elapsed(), outcome.is_err());
    let failed = |why| ExecError::Run { name: provider.name.clone(), image: image.to_owned(), why };
    let output = outcome.map_err(failed)?;
    Ok(response(&provider.api_version, &output)?)
}

/// What it printed. The error ends with what it said of it.
async fn output(executable: &Path, provider: &Provider, request: &Value) -> Result<Vec<u8>, String> {
    let mut child = Command::new(executable)
        .args(&provider.args)
        // On top of the agent's own.
        .envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{}: {error}", executable.display()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let question = format!("{request}\n");
    let ask = async move {
        if let Some(mut stdin) = stdin {
            // One that does not read it closes it: no failure.
            let _ = stdin.write_all(question.as_bytes()).await;
        }
    };
    let ((), output, said, status) = tokio::join!(ask, read(stdout), read(stderr), child.wait());
    let status = status.map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(output);
    }
    Err(format!("{}: {}", ended(status), String::from_utf8_lossy(&said)))
}

async fn read(source: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(source) = source {
        // What was read up to an error is what there is.
        let _ = source.take(LARGEST).read_to_end(&mut text).await;
    }
    text
}

/// As Go says it.
fn ended(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit status {code}"))
}
