//! `bench-api [SECTION…]`: what the API server and its store do, each beside a floor measured in the
//! same run, the two by turns. Everything is asked for over TLS on loopback.
//!
//! Sections: creates, reads, watches, memory, contended, store; all of them when none is named.
//! The program is also its own server: `bench-api serve DIR DELAY` is an API server without controllers,
//! `bench-api floor DIR DELAY` and `bench-api keeper DIR DELAY` are bare hyper and rustls servers (see
//! [`bare`]); a sync of their stores takes so many microseconds longer (see [`disk`]).

mod bare;
mod child;
mod client;
mod creates;
mod disk;
mod engine;
mod memory;
mod reads;
mod watches;

use std::time::Duration;

use integration::figures::{Figure, print};

const SECTIONS: [&str; 6] = ["creates", "reads", "watches", "memory", "contended", "store"];

fn main() -> anyhow::Result<()> {
    // The only provider of this process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, dir, delay] = arguments.as_slice()
        && matches!(role.as_str(), "serve" | "floor" | "keeper")
    {
        return runtime.block_on(child::run(role, dir.as_ref(), Duration::from_micros(delay.parse()?)));
    }
    if let Some(unknown) = arguments.iter().find(|section| !SECTIONS.contains(&section.as_str())) {
        anyhow::bail!("there is no section {unknown:?}; there are: {}", SECTIONS.join(", "));
    }
    let mut figures = Vec::new();
    for section in SECTIONS {
        if arguments.is_empty() || arguments.iter().any(|wanted| wanted == section) {
            eprintln!("{section} ...");
            figures.extend(runtime.block_on(measure(section))?);
        }
    }
    print(&figures);
    Ok(())
}

async fn measure(section: &str) -> anyhow::Result<Vec<Figure>> {
    match section {
        "creates" => creates::measure().await,
        "reads" => reads::measure().await,
        "watches" => watches::measure().await,
        "memory" => memory::measure().await,
        "contended" => creates::contended().await,
        _ => engine::measure().await,
    }
}
