//! `skiff lab list` and `skiff lab timeline`.

use anyhow::{Context, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::network;
use super::processes::Process;
use super::state::Lab;

#[derive(Args)]
pub struct ListArguments {
    /// text, or json for scripts
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    pub output: String,
}

/// What one member is doing.
fn state_of(lab: &Lab, member: &str) -> &'static str {
    let runs = Process::from_file(&lab.pid_file(member)).is_some();
    match (runs, network::is_connected(lab, member)) {
        (true, true) => "running",
        (true, false) => "partitioned",
        (false, _) => "off",
    }
}

pub fn list(arguments: &ListArguments) -> anyhow::Result<()> {
    let labs = Lab::all()?;
    if arguments.output == "json" {
        let labs: Vec<_> = labs.iter().map(describe).collect();
        println!("{}", serde_json::to_string_pretty(&labs)?);
        return Ok(());
    }
    if labs.is_empty() {
        eprintln!("there is no lab; make one with: skiff lab up");
    }
    for lab in labs {
        println!("{}  kubeconfig {}", lab.name, lab.kubeconfig().display());
        for member in lab.members() {
            let address = lab.address(member).map(|address| address.to_string()).unwrap_or_default();
            println!("  {member:<12} {address:<16} {}", state_of(&lab, member));
        }
    }
    Ok(())
}

fn describe(lab: &Lab) -> serde_json::Value {
    let members: Vec<_> = lab
        .members()
        .map(|member| {
            json!({
                "name": member,
                "address": lab.address(member),
                "state": state_of(lab, member),
                "pid": Process::from_file(&lab.pid_file(member)).map(|process| process.pid),
                "netns": lab.netns(member),
                "dataDir": lab.member_dir(member),
                "runDir": lab.member_run_dir(member),
                "log": lab.log(member),
            })
        })
        .collect();
    json!({"name": lab.name, "server": lab.server_url(), "kubeconfig": lab.kubeconfig(), "members": members})
}

#[derive(Args)]
pub struct TimelineArguments {
    /// NAMESPACE/POD
    pub pod: String,
    /// The lab
    #[arg(long, default_value = super::DEFAULT_NAME)]
    pub lab: String,
}

/// One step of an object's life, as every part of skiff logs it with the target `timeline`.
#[derive(Deserialize)]
struct Step {
    /// Microseconds since 1970.
    at: i64,
    step: String,
    pod: String,
}

/// The log line's marker; what follows is a `Step` in JSON.
const MARKER: &str = "timeline ";

pub fn timeline(arguments: &TimelineArguments) -> anyhow::Result<()> {
    let lab = Lab::find(&arguments.lab)?;
    let mut steps: Vec<(i64, String, String)> = Vec::new();
    for member in lab.members() {
        let log = std::fs::read_to_string(lab.log(member))
            .with_context(|| format!("reading {}", lab.log(member).display()))?;
        for line in log.lines() {
            let Some((_, step)) = line.split_once(MARKER) else { continue };
            if let Ok(step) = serde_json::from_str::<Step>(step)
                && step.pod == arguments.pod
            {
                steps.push((step.at, step.step, member.to_owned()));
            }
        }
    }
    steps.sort();
    let Some(&(began, ..)) = steps.first() else {
        bail!("no log of lab {} mentions the pod {:?}; name it as NAMESPACE/POD", lab.name, arguments.pod);
    };
    let mut before = began;
    println!("{:>10}  {:>9}  {:<28} where", "ms", "+ms", "step");
    for (at, step, member) in steps {
        let milliseconds = |microseconds: i64| microseconds as f64 / 1000.0;
        println!("{:>10.1}  {:>9.1}  {step:<28} {member}", milliseconds(at - began), milliseconds(at - before));
        before = at;
    }
    Ok(())
}
