//! `skiff hollow`: the process of a lab's hollow nodes. People say `skiff lab up --hollow-nodes N`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use component::Supervisor;

use crate::agent_command::wait_for_end;
use crate::lab::hollow_names;

#[derive(Args)]
pub struct HollowArguments {
    /// The administrator's kubeconfig
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The address that all nodes call theirs
    #[arg(long)]
    address: IpAddr,
    /// How many
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    nodes: u16,
    /// Let only pods come that tolerate the taint skiff/hollow
    #[arg(long)]
    tainted: bool,
}

pub fn run(arguments: &HollowArguments) -> anyhow::Result<ExitCode> {
    let runtime = component::memory::runtime().build().context("starting the runtime")?;
    runtime.block_on(async {
        let supervisor = Supervisor::new("skiff");
        let config = agent::hollow::Config {
            names: hollow_names(arguments.nodes).collect(),
            address: arguments.address,
            tainted: arguments.tainted,
            client: crate::client::from_file(&arguments.kubeconfig).await?,
        };
        agent::hollow::start(config, &supervisor);
        component::memory::rest_lightly(&supervisor);
        wait_for_end().await?;
        if !supervisor.shut_down(Duration::from_secs(10)).await {
            tracing::warn!("some tasks did not end within 10 s");
        }
        Ok(ExitCode::SUCCESS)
    })
}
