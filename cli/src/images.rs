//! `skiff images`: a node's images without a registry.

use std::path::PathBuf;
use std::process::ExitCode;

use agent::images::{Image, Importer, archive, normalize, presets};
use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub enum ImagesCommand {
    /// Import archives (OCI, or `docker save`) into a node's containerd
    Import(ImportArguments),
    /// List a node's images
    List(RuntimeArguments),
    /// Remove an image from a node by name
    Remove(RemoveArguments),
    /// Build an archive of a program of this machine: nginx, busybox, or any executable
    Build(BuildArguments),
}

#[derive(Args)]
pub struct RuntimeArguments {
    /// containerd's socket; `skiff lab exec NAME/NODE -- skiff images ...` sets it
    #[arg(long, env = "CONTAINERD_ADDRESS", default_value = "/run/skiff/containerd/containerd.sock")]
    socket: PathBuf,
}

#[derive(Args)]
pub struct ImportArguments {
    #[command(flatten)]
    runtime: RuntimeArguments,
    /// Paths of the archives
    #[arg(required = true)]
    archives: Vec<PathBuf>,
}

#[derive(Args)]
pub struct RemoveArguments {
    #[command(flatten)]
    runtime: RuntimeArguments,
    /// The image's name, as `list` shows it
    name: String,
}

#[derive(Args)]
pub struct BuildArguments {
    /// `nginx` or `busybox` from the distribution's packages, or the path of an executable
    what: String,
    /// Where to write the archive
    #[arg(long, short)]
    output: PathBuf,
    /// The image's name (default: docker.io/library/<program>:latest)
    #[arg(long)]
    name: Option<String>,
}

pub fn run(command: &ImagesCommand) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        ImagesCommand::Build(arguments) => build(arguments)?,
        ImagesCommand::Import(arguments) => runtime.block_on(import(arguments))?,
        ImagesCommand::List(arguments) => runtime.block_on(list(arguments))?,
        ImagesCommand::Remove(arguments) => {
            let name = normalize(&arguments.name)?;
            runtime.block_on(async { Importer::connect(&arguments.runtime.socket).await?.remove(&name).await })?;
            eprintln!("removed {name}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn build(arguments: &BuildArguments) -> anyhow::Result<()> {
    let mut image: Image = match arguments.what.as_str() {
        "nginx" => presets::nginx()?,
        "busybox" => presets::busybox()?,
        path => {
            let path = PathBuf::from(path);
            let program = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            presets::executable(arguments.name.as_deref().unwrap_or(&program), &path)?
        }
    };
    if let Some(name) = &arguments.name {
        image.names = vec![normalize(name)?];
    }
    image.write_archive(&arguments.output)?;
    eprintln!("wrote {} with {}", arguments.output.display(), image.names.join(", "));
    Ok(())
}

async fn import(arguments: &ImportArguments) -> anyhow::Result<()> {
    let importer = Importer::connect(&arguments.runtime.socket).await?;
    for path in &arguments.archives {
        for image in archive::read(path)? {
            importer.import(&image).await?;
            eprintln!("imported {}", image.names.join(", "));
        }
    }
    Ok(())
}

async fn list(arguments: &RuntimeArguments) -> anyhow::Result<()> {
    for image in Importer::connect(&arguments.socket).await?.list().await? {
        println!("{:<60} {}", image.name, image.digest);
    }
    Ok(())
}
