//! `skiff snapshot`: copies of the cluster's whole state.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use controlplane::snapshot::{self, Info};
use futures::io::AllowStdIo;
use jiff::Timestamp;
use serde_json::json;

use crate::token::ConnectionArguments;

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Save the running server's state
    Save(SaveArguments),
    /// Make a stopped server's state from a snapshot; what was there is kept beside it
    Restore(RestoreArguments),
    /// List the snapshots in the server's own directory
    List(ListArguments),
}

#[derive(Args)]
pub struct SaveArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    #[command(flatten)]
    place: PlaceArguments,
    /// A name, or a path with a slash in it (default: the time)
    snapshot: Option<String>,
}

#[derive(Args)]
pub struct RestoreArguments {
    #[command(flatten)]
    place: PlaceArguments,
    /// A name that `list` shows, or a path with a slash in it
    snapshot: String,
}

#[derive(Args)]
pub struct ListArguments {
    #[command(flatten)]
    place: PlaceArguments,
    /// text, or json for scripts
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

#[derive(Args)]
struct PlaceArguments {
    /// The server's directory
    #[arg(long, default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
}

impl PlaceArguments {
    fn path(&self, name: &str) -> PathBuf {
        if name.contains('/') { PathBuf::from(name) } else { snapshot::default_dir(&self.data_dir).join(name) }
    }
}

pub fn run(command: &SnapshotCommand) -> anyhow::Result<ExitCode> {
    match command {
        SnapshotCommand::Save(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(save(arguments))?;
        }
        SnapshotCommand::Restore(arguments) => restore(arguments)?,
        SnapshotCommand::List(arguments) => list(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn save(arguments: &SaveArguments) -> anyhow::Result<()> {
    let name =
        arguments.snapshot.clone().unwrap_or_else(|| Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string());
    let file = arguments.place.path(&name);
    if file.exists() {
        bail!("{} is there already; choose another name", file.display());
    }
    let dir = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let partial = file.with_extension("partial");
    let outcome = receive(&arguments.connection, &partial).await.and_then(|()| {
        let info = snapshot::inspect(&partial).context("checking what the server sent")?;
        std::fs::rename(&partial, &file).with_context(|| format!("renaming {}", partial.display()))?;
        File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", dir.display()))?;
        Ok(info)
    });
    if outcome.is_err() {
        // What is wrong is told by the outcome.
        let _ = std::fs::remove_file(&partial);
    }
    let Info { revision, keys } = outcome?;
    eprintln!("{keys} keys as of revision {revision}");
    println!("{}", file.display());
    Ok(())
}

async fn receive(connection: &ConnectionArguments, file: &Path) -> anyhow::Result<()> {
    let client = super::client::from_file(&connection.kubeconfig).await?;
    let request = http::Request::get("/skiff/v1/store/snapshot").body(Vec::new())?;
    let sent = client.request_stream(request).await.context("asking the server for a snapshot")?;
    let mut options = File::options();
    // Secrets are in it.
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let out = options.create(true).truncate(true).write(true).open(file);
    let mut out = AllowStdIo::new(out.with_context(|| format!("creating {}", file.display()))?);
    futures::io::copy(sent, &mut out).await.with_context(|| format!("writing {}", file.display()))?;
    out.into_inner().sync_all().with_context(|| format!("syncing {}", file.display()))
}

fn restore(arguments: &RestoreArguments) -> anyhow::Result<()> {
    let file = arguments.place.path(&arguments.snapshot);
    anyhow::ensure!(file.is_file(), "there is no snapshot {}; what there is: skiff snapshot list", file.display());
    let restored = snapshot::restore(&file, &arguments.place.data_dir)?;
    let Info { revision, keys } = restored.info;
    eprintln!("{keys} keys as of revision {revision} are restored; start the server");
    if let Some(replaced) = restored.replaced {
        eprintln!("what was there is now in {}", replaced.display());
    }
    Ok(())
}

fn list(arguments: &ListArguments) -> anyhow::Result<()> {
    let dir = snapshot::default_dir(&arguments.place.data_dir);
    let mut entries: Vec<PathBuf> = match std::fs::read_dir(&dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", dir.display())),
    };
    entries.retain(|path| path.extension().is_none_or(|extension| extension != "partial"));
    entries.sort();
    if arguments.output == "json" {
        let shown: Vec<_> = entries.iter().map(|path| describe(path)).collect();
        println!("{}", serde_json::to_string_pretty(&shown)?);
        return Ok(());
    }
    if entries.is_empty() {
        eprintln!("there is no snapshot in {}; make one with: skiff snapshot save", dir.display());
        return Ok(());
    }
    println!("{:<28}  {:>10}  {:>8}  {:>12}", "NAME", "REVISION", "KEYS", "BYTES");
    for path in entries {
        let shown = describe(&path);
        let name = shown["name"].as_str().unwrap_or_default();
        match shown["error"].as_str() {
            Some(error) => println!("{name:<28}  {error}"),
            None => println!("{name:<28}  {:>10}  {:>8}  {:>12}", shown["revision"], shown["keys"], shown["bytes"]),
        }
    }
    Ok(())
}

fn describe(path: &Path) -> serde_json::Value {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    match snapshot::inspect(path) {
        Ok(Info { revision, keys }) => {
            json!({"name": name, "path": path, "revision": revision, "keys": keys, "bytes": bytes})
        }
        Err(error) => json!({"name": name, "path": path, "bytes": bytes, "error": format!("{error:#}")}),
    }
}
