//! `make bench`: the figures of README, each beside a floor measured in the same run.
//!
//! Machines differ and have neighbours, so only ratios mean anything, and nothing here fails for
//! being slow.

mod idle;
mod pods;
mod startup;

use std::path::{Path, PathBuf};

use integration::figures::{Figure, print};
use integration::{BUSYBOX, NGINX, command, skiff};

fn archives() -> [PathBuf; 2] {
    let dir = std::env::temp_dir();
    [("nginx", NGINX), ("busybox", BUSYBOX)].map(|(preset, name)| {
        let path = dir.join(format!("skiff-bench-{preset}.tar"));
        command(
            skiff(),
            &["images", "build", preset, "--name", name, "--output", &path.display().to_string()],
            &[],
            "",
        )
        .expect_ok();
        path
    })
}

fn size(path: &Path) -> String {
    std::fs::metadata(path)
        .map_or_else(|error| error.to_string(), |meta| format!("{:.1} MiB", meta.len() as f64 / f64::from(1 << 20)))
}

fn main() -> anyhow::Result<()> {
    // The only provider of this process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let archives = archives();
    let mut figures = vec![
        Figure::new("size of skiff", size(&skiff()), ""),
        Figure::new("size of skiff-cni", size(&skiff().with_file_name("skiff-cni")), ""),
    ];
    figures.extend(runtime.block_on(startup::measure(&archives))?);
    let lab = integration::Lab::up("bench", &[]);
    idle::start_pod(&lab);
    figures.extend(runtime.block_on(idle::measure(&lab, "in a fresh lab")));
    figures.extend(runtime.block_on(pods::measure(&lab))?);
    figures.extend(runtime.block_on(idle::measure(&lab, "after 70 pods came and went")));
    print(&figures);
    Ok(())
}
