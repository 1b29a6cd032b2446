//! `skiff lab up`: from nothing, or from any interrupted state, to nodes that are Ready.
//!
//! The order is chosen for speed: addresses and certificates are decided here, so the server and
//! all agents start at the same moment, and each agent's containerd starts while the server does.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api::cluster::ClusterNetwork;
use clap::{Args, Parser};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::api::WatchEvent;

use super::processes;
use super::state::{HOLLOW, Lab, MAX_NODES, SERVER, Subnet, root, write_private};
use crate::server::ServerArguments;
use crate::{BadUsage, Command, CommandLine};

#[derive(Args, Debug, Clone)]
pub struct UpArguments {
    /// The lab's name
    #[arg(default_value = super::DEFAULT_NAME)]
    pub name: String,
    /// How many nodes (default: 1, or as many as the lab has); 0 only with hollow nodes
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=MAX_NODES as i64))]
    pub nodes: Option<u16>,
    /// How many nodes to pretend besides, for tests of scale: they take pods, and run nothing. Beside
    /// real nodes they have the taint skiff/hollow:NoSchedule
    #[arg(long)]
    pub hollow_nodes: Option<u16>,
    /// How Services reach the kernel
    #[arg(long, value_parser = ["nftables", "iptables"])]
    pub proxy_mode: Option<String>,
    /// Where the cluster's state is kept: embedded, or etcd=URL,...
    #[arg(long)]
    pub store: Option<String>,
    /// Prefix length of each node's part of the pod network (default: 24)
    #[arg(long, value_parser = clap::value_parser!(u8).range(17..=30))]
    pub node_cidr_mask: Option<u8>,
    /// An image archive that every node imports when it starts; may be repeated
    #[arg(long)]
    pub image: Vec<PathBuf>,
    /// An argument for the lab's `skiff server`, as in --server-arg=--cluster-domain=lab.test; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    pub server_arg: Vec<String>,
    /// An argument for every node's `skiff agent`, as in --node-arg=--node-label=disk=ssd; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    pub node_arg: Vec<String>,
    /// Give up when the nodes are not Ready after this many seconds
    #[arg(long, default_value_t = 120)]
    pub timeout: u64,
}

pub fn run(arguments: &UpArguments) -> anyhow::Result<()> {
    super::require_root()?;
    Lab::check_name(&arguments.name)?;
    let began = Instant::now();
    let _lock = lock()?;
    let lab = plan(arguments)?;
    // A member that refuses its arguments is told of before anything is made.
    let network = server_options(&lab)?.network()?;
    for node in &lab.nodes {
        parse(&agent_arguments(&lab, node)?)?;
    }
    check_size(&lab, &network)?;
    lab.save()?;
    std::fs::create_dir_all(lab.run_dir()).with_context(|| format!("creating {}", lab.run_dir().display()))?;
    super::network::ensure(&lab).context("setting up the lab's network")?;
    write_credentials(&lab, &network)?;
    for member in lab.members() {
        start(&lab, member)?;
    }
    drop(_lock);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(wait_for_nodes(&lab, began, Duration::from_secs(arguments.timeout)))?;
    let hollow = if lab.hollow_nodes > 0 { format!(" and {} hollow", lab.hollow_nodes) } else { String::new() };
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("lab {} is up: {} node(s){hollow} Ready after {seconds:.2} s", lab.name, lab.nodes.len());
    println!("export KUBECONFIG={}", lab.kubeconfig().display());
    Ok(())
}

/// Whether there are nodes, and a pod network for each.
fn check_size(lab: &Lab, network: &ClusterNetwork) -> anyhow::Result<()> {
    let nodes = lab.nodes.len() + usize::from(lab.hollow_nodes);
    if nodes == 0 {
        return Err(BadUsage("a lab needs a node: give --nodes or --hollow-nodes".to_owned()).into());
    }
    let room = 1usize << lab.node_cidr_mask.saturating_sub(network.pods.prefix).min(32);
    if nodes > room {
        return Err(BadUsage(format!(
            "the pod network {}/{} has room for {room} nodes of /{} each, not for {nodes}: give each less with --node-cidr-mask",
            network.pods.address, network.pods.prefix, lab.node_cidr_mask
        ))
        .into());
    }
    Ok(())
}

/// The lab as it should be: the one there is, changed as asked, or a new one.
fn plan(arguments: &UpArguments) -> anyhow::Result<Lab> {
    let wanted = arguments.nodes.map(usize::from);
    if let Some(mut lab) = Lab::load(&arguments.name)? {
        for (what, asked, has) in
            [("--proxy-mode", &arguments.proxy_mode, &lab.proxy_mode), ("--store", &arguments.store, &lab.store)]
        {
            if asked.as_ref().is_some_and(|asked| asked != has) {
                bail!(
                    "lab {} runs with {what} {has}; take it down to change that: skiff lab down {}",
                    lab.name,
                    lab.name
                );
            }
        }
        if arguments.hollow_nodes.is_some_and(|hollow| hollow != lab.hollow_nodes) {
            bail!(
                "lab {} has {} hollow nodes; take it down to change that: skiff lab down {}",
                lab.name,
                lab.hollow_nodes,
                lab.name
            );
        }
        if let Some(what) = changed(&lab, arguments, &images(&arguments.image)?) {
            bail!(
                "lab {} was made with another {what}; take it down to change that: skiff lab down {}",
                lab.name,
                lab.name
            );
        }
        if wanted.is_some_and(|nodes| nodes < lab.nodes.len()) {
            bail!("lab {} has {} nodes; nodes can be added, not taken away", lab.name, lab.nodes.len());
        }
        for number in lab.nodes.len()..wanted.unwrap_or(0) {
            lab.nodes.push(format!("node-{}", number + 1));
        }
        if !lab.is_of_this_boot() {
            lab.forwarding_before = forwarding_before(&Lab::all_of_this_boot()?);
        }
        return Ok(lab);
    }
    let taken: Vec<Subnet> = Lab::all()?.iter().map(|lab| lab.subnet).collect();
    Ok(Lab {
        name: arguments.name.clone(),
        subnet: super::network::free_subnet(&taken)?,
        nodes: (1..=wanted.unwrap_or(1)).map(|number| format!("node-{number}")).collect(),
        hollow_nodes: arguments.hollow_nodes.unwrap_or(0),
        proxy_mode: arguments.proxy_mode.clone().unwrap_or_else(|| "nftables".to_owned()),
        store: arguments.store.clone().unwrap_or_else(|| "embedded".to_owned()),
        node_cidr_mask: arguments.node_cidr_mask.unwrap_or(24),
        images: images(&arguments.image)?,
        server_arguments: arguments.server_arg.clone(),
        node_arguments: arguments.node_arg.clone(),
        token: controlplane::token::BootstrapToken::generate().to_string(),
        forwarding_before: forwarding_before(&Lab::all_of_this_boot()?),
    })
}

/// The host's forwarding before the first lab, which turned it on: from another lab of this boot, as long as there
/// is one.
fn forwarding_before(others: &[Lab]) -> String {
    others.first().map_or_else(super::network::forwarding, |lab| lab.forwarding_before.clone())
}

/// The flag whose value, where it is given, is not what the lab was made with.
fn changed(lab: &Lab, arguments: &UpArguments, images: &[PathBuf]) -> Option<&'static str> {
    let other = |asked: &[String], has: &[String]| !asked.is_empty() && asked != has;
    [
        ("--node-cidr-mask", arguments.node_cidr_mask.is_some_and(|mask| mask != lab.node_cidr_mask)),
        ("--image", !images.is_empty() && images != lab.images),
        ("--server-arg", other(&arguments.server_arg, &lab.server_arguments)),
        ("--node-arg", other(&arguments.node_arg, &lab.node_arguments)),
    ]
    .into_iter()
    .find_map(|(what, differs)| differs.then_some(what))
}

/// Absolute paths: nodes started later have another working directory.
fn images(archives: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    archives
        .iter()
        .map(|path| path.canonicalize().with_context(|| format!("finding the image archive {}", path.display())))
        .collect()
}

/// Two `lab up` at once would choose the same subnet.
fn lock() -> anyhow::Result<nix::fcntl::Flock<std::fs::File>> {
    std::fs::create_dir_all(root()).with_context(|| format!("creating {}", root().display()))?;
    let path = root().join(".lock");
    let file = std::fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, error)| anyhow::anyhow!("locking {}: {error}", path.display()))
}

/// The PKI and the kubeconfig, before any process starts: a node needs the CA's digest to join.
fn write_credentials(lab: &Lab, network: &ClusterNetwork) -> anyhow::Result<()> {
    let data = lab.member_dir(SERVER);
    let names = controlplane::pki::ServerNames::new(
        &network.domain,
        [lab.subnet.server().to_string(), network.api_service().to_string()],
    );
    let pki = controlplane::pki::Pki::ensure(&data.join("server/tls"), &names)?;
    let kubeconfig = controlplane::kubeconfig::with_certificate(
        &format!("skiff-{}", lab.name),
        &lab.server_url(),
        &pki.ca.certificate,
        "system:admin",
        &pki.admin,
    );
    write_private(&lab.kubeconfig(), &serde_json::to_string_pretty(&kubeconfig)?)?;
    let token = controlplane::token::with_ca(&lab.token, &pki.ca.certificate)?;
    write_private(&lab.dir().join("join-token"), &token)
}

/// Starts a member's process unless it runs.
pub fn start(lab: &Lab, member: &str) -> anyhow::Result<()> {
    let pid_file = lab.pid_file(member);
    if processes::Process::from_file(&pid_file).is_some() {
        return Ok(());
    }
    for dir in [lab.member_dir(member), lab.member_run_dir(member)] {
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let arguments = match member {
        SERVER => server_arguments(lab),
        HOLLOW => hollow_arguments(lab),
        node => agent_arguments(lab, node)?,
    };
    // Everybody on this machine may read a process' arguments.
    let environment = if member == SERVER { vec![("SKIFF_TOKEN", lab.token.as_str())] } else { Vec::new() };
    processes::start(&lab.netns(member), member, &arguments, &environment, &lab.log(member), &pid_file)?;
    Ok(())
}

fn server_arguments(lab: &Lab) -> Vec<String> {
    let data = lab.member_dir(SERVER);
    let address = lab.subnet.server().to_string();
    [
        "server",
        "--disable-agent",
        "--data-dir",
        &data.display().to_string(),
        "--bind-address",
        &address,
        "--advertise-address",
        &address,
        "--store",
        &lab.store,
        "--node-cidr-mask",
        &lab.node_cidr_mask.to_string(),
        "--kubeconfig",
        &lab.member_run_dir(SERVER).join("admin.kubeconfig").display().to_string(),
    ]
    .into_iter()
    .chain(lab.server_arguments.iter().map(String::as_str))
    .map(str::to_owned)
    .collect()
}

/// What `skiff` would make of a member's arguments.
fn parse(arguments: &[String]) -> anyhow::Result<CommandLine> {
    let words = std::iter::once("skiff").chain(arguments.iter().map(String::as_str));
    CommandLine::try_parse_from(words).map_err(|error| BadUsage(error.to_string().trim().to_owned()).into())
}

fn server_options(lab: &Lab) -> anyhow::Result<ServerArguments> {
    // Its environment has the token, whatever that of this process has.
    let arguments = [server_arguments(lab), vec!["--token".to_owned(), lab.token.clone()]].concat();
    match parse(&arguments)?.command {
        Command::Server(arguments) => Ok(*arguments),
        _ => bail!("the lab's server is no server"),
    }
}

fn agent_arguments(lab: &Lab, member: &str) -> anyhow::Result<Vec<String>> {
    let address = lab.address(member).with_context(|| format!("{member} is no node of lab {}", lab.name))?;
    let text = |path: std::path::PathBuf| path.display().to_string();
    let mut arguments = vec![
        "agent".into(),
        "--server".into(),
        lab.server_url(),
        "--token-file".into(),
        text(lab.dir().join("join-token")),
        "--node-name".into(),
        member.to_owned(),
        "--node-ip".into(),
        address.to_string(),
        "--data-dir".into(),
        text(lab.member_dir(member)),
        "--run-dir".into(),
        text(lab.member_run_dir(member)),
        "--pod-log-dir".into(),
        text(lab.member_dir(member).join("pod-logs")),
        "--cgroup-root".into(),
        lab.cgroup(member),
        "--proxy-mode".into(),
        lab.proxy_mode.clone(),
        // A lab shares its disk with everything else on the machine and is not to evict for that.
        "--eviction-hard".into(),
        "nodefs.available<0%,nodefs.inodesFree<0%,imagefs.available<0%".into(),
        "--image-gc-high-threshold".into(),
        "100".into(),
    ];
    for image in &lab.images {
        arguments.extend(["--image".into(), text(image.clone())]);
    }
    arguments.extend(lab.node_arguments.iter().cloned());
    Ok(arguments)
}

fn hollow_arguments(lab: &Lab) -> Vec<String> {
    let mut arguments = vec![
        "hollow".to_owned(),
        "--kubeconfig".to_owned(),
        lab.kubeconfig().display().to_string(),
        "--address".to_owned(),
        lab.subnet.hollow().to_string(),
        "--nodes".to_owned(),
        lab.hollow_nodes.to_string(),
    ];
    if !lab.nodes.is_empty() {
        arguments.push("--tainted".to_owned());
    }
    arguments
}

/// Follows the Node objects until all are Ready, saying what is missing meanwhile.
async fn wait_for_nodes(lab: &Lab, began: Instant, limit: Duration) -> anyhow::Result<()> {
    let mut missing: BTreeSet<String> = lab.nodes.iter().cloned().chain(lab.hollow_names()).collect();
    let waiting = async {
        while !missing.is_empty() {
            // The server may not answer yet: a refused connection is cheap and the next try is soon.
            let address = (lab.subnet.server(), api::defaults::API_PORT);
            let followed = match tokio::net::TcpStream::connect(address).await {
                Ok(_) => follow_nodes(lab, &mut missing).await,
                Err(error) => Err(error.into()),
            };
            if followed.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        anyhow::Ok(())
    };
    let progress = async {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            eprintln!("still waiting for lab {}, {:.0} s so far", lab.name, began.elapsed().as_secs_f64());
        }
    };
    let outcome = tokio::select! {
        outcome = waiting => outcome,
        error = death(lab) => Err(error),
        () = progress => Ok(()),
        () = tokio::time::sleep(limit) => {
            let logs: Vec<String> = lab.members().map(|member| lab.log(member).display().to_string()).collect();
            bail!("not all nodes were Ready after {} s; look at {}", limit.as_secs(), logs.join(", "))
        }
    };
    outcome
}

/// Returns why once one of the lab's processes has ended.
async fn death(lab: &Lab) -> anyhow::Error {
    loop {
        let running = lab.members().filter_map(|member| processes::Process::from_file(&lab.pid_file(member)));
        let ends: Vec<_> = running.map(|process| process.ended().boxed()).collect();
        // From here on: who ended before is found now, who ends later wakes this.
        if let Err(error) = member_died(lab) {
            return error;
        }
        if let (Err(error), ..) = futures::future::select_all(ends).await {
            return anyhow::Error::new(error).context("waiting for the lab's processes");
        }
    }
}

fn member_died(lab: &Lab) -> anyhow::Result<()> {
    for member in lab.members() {
        if processes::Process::from_file(&lab.pid_file(member)).is_none() {
            let log = std::fs::read_to_string(lab.log(member)).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("{member} ended; the end of {}:\n{}", lab.log(member).display(), tail.join("\n"));
        }
    }
    Ok(())
}

async fn follow_nodes(lab: &Lab, missing: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let client = super::super::client::from_file(&lab.kubeconfig()).await?;
    let nodes: kube::Api<Node> = kube::Api::all(client);
    let parameters = kube::api::WatchParams::default().timeout(60);
    let mut events = nodes.watch(&parameters, "0").await?.boxed();
    while let Some(event) = events.next().await {
        if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event?
            && is_ready(&node)
        {
            missing.remove(node.metadata.name.as_deref().unwrap_or_default());
            if missing.is_empty() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> Lab {
        let lab = serde_json::json!({
            "name": "a", "subnet": { "second": 64, "third": 0 }, "nodes": ["node-1"], "proxy_mode": "nftables",
            "store": "embedded", "node_cidr_mask": 24, "images": ["/a.tar"], "server_arguments": ["--port=6444"],
            "token": "abcdef.0123456789abcdef", "forwarding_before": "0",
        });
        serde_json::from_value(lab).unwrap()
    }

    #[test]
    fn the_last_of_several_labs_knows_how_the_host_was() {
        for before in ["0", "1"] {
            let first = Lab { forwarding_before: before.to_owned(), ..lab() };
            assert_eq!(forwarding_before(&[first]), before);
        }
    }

    #[test]
    fn the_token_is_no_argument_that_everybody_can_read() {
        let lab = lab();
        let all = [server_arguments(&lab), agent_arguments(&lab, "node-1").unwrap()].concat();
        assert!(!all.iter().any(|word| word.contains("0123456789abcdef")), "{all:?}");
    }

    #[test]
    fn what_a_lab_cannot_take_up_any_more_is_said() {
        // flags, archives, the flag that is told of
        type Case<'a> = (&'a [&'a str], &'a [&'a str], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            (&[], &[], None),
            (&["--server-arg=--port=6444", "--node-cidr-mask=24"], &["/a.tar"], None),
            (&["--server-arg=--port=6445"], &[], Some("--server-arg")),
            (&["--node-arg=--node-label=a=b"], &[], Some("--node-arg")),
            (&["--node-cidr-mask=26"], &[], Some("--node-cidr-mask")),
            (&[], &["/b.tar"], Some("--image")),
        ];
        for (flags, archives, expected) in cases {
            let words: Vec<String> = ["lab", "up", "a"].iter().chain(*flags).map(|word| (*word).to_owned()).collect();
            let Command::Lab(crate::lab::LabCommand::Up(arguments)) = parse(&words).unwrap().command else { panic!() };
            let archives: Vec<PathBuf> = archives.iter().map(PathBuf::from).collect();
            assert_eq!(changed(&lab(), &arguments, &archives), *expected, "{flags:?} {archives:?}");
        }
    }
}
