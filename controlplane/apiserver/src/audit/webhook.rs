//! Events posted to a webhook as `EventList`s, many at once.

use std::sync::Arc;
use std::time::Duration;

use component::Supervisor;
use tokio::sync::mpsc;

use super::Audit;
use crate::remote::Remote;

/// Events that wait to be posted, as upstream's buffer.
const QUEUE: usize = 10_000;
const BATCH: usize = 400;
const COLLECT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Before a refused post is tried again; four times in all, each wait longer.
const BACKOFF: Duration = Duration::from_secs(10);
const TRIES: u32 = 4;

pub fn start(
    remote: Remote,
    batch: Option<(usize, Duration)>,
    audit: Arc<Audit>,
    supervisor: &Supervisor,
) -> mpsc::Sender<String> {
    let (sender, mut lines) = mpsc::channel(QUEUE);
    let (most, collect) = batch.unwrap_or((BATCH, COLLECT));
    supervisor.spawn("audit-webhook", async move {
        let mut batch: Vec<String> = Vec::new();
        while let Some(first) = lines.recv().await {
            batch.push(first);
            let full = async {
                while batch.len() < most {
                    match lines.recv().await {
                        Some(line) => batch.push(line),
                        None => break,
                    }
                }
            };
            let _ = tokio::time::timeout(collect, full).await;
            let count = batch.len();
            let list = format!(
                "{{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{{}},\"items\":[{}]}}",
                batch.join(",")
            );
            batch.clear();
            if let Err(error) = post(&remote, list).await {
                tracing::error!(%error, events = count, "posting audit events");
                audit.lose(count);
            }
        }
    });
    sender
}

async fn post(remote: &Remote, list: String) -> Result<(), String> {
    let mut wait = BACKOFF;
    for attempt in 1.. {
        match remote.post(list.clone(), TIMEOUT).await {
            Ok(_) => return Ok(()),
            Err(error) if attempt >= TRIES || !error.is_worth_retrying() => return Err(error.to_string()),
            Err(error) => tracing::debug!(%error, attempt, "posting audit events; trying again"),
        }
        tokio::time::sleep(wait).await;
        wait = wait.mul_f64(1.5);
    }
    Ok(())
}
