//! Configuration files that are read again when they change.

use std::path::{Path, PathBuf};

use component::{Files, Supervisor};

use crate::error::{ApiError, Result};

/// Calls `read` whenever the content of `file` changes; what it cannot use leaves the old
/// configuration in force. `what` names the configuration in logs.
pub fn follow<F>(what: &'static str, file: &Path, supervisor: &Supervisor, read: F) -> Result<()>
where
    F: AsyncReload,
{
    let files = Files::watch([file]).map_err(ApiError::internal)?;
    supervisor.spawn_try(what, run(what, file.to_owned(), files, read));
    Ok(())
}

/// Reads a configuration and puts it in force.
pub trait AsyncReload: Send + 'static {
    fn reload(&mut self) -> impl Future<Output = Result<()>> + Send;
}

async fn run(what: &'static str, file: PathBuf, files: Files, mut read: impl AsyncReload) -> std::io::Result<()> {
    let mut seen = std::fs::read(&file).ok();
    loop {
        files.changed().await?;
        let now = std::fs::read(&file).ok();
        if now == seen {
            continue;
        }
        seen = now;
        match read.reload().await {
            Ok(()) => tracing::info!(file = %file.display(), "the {what} was read again"),
            Err(error) => tracing::warn!(%error, "the old {what} stays"),
        }
    }
}
