//! What a lab is on disk: `/var/lib/skiff/lab/<name>`, with its sockets under `/run/skiff/lab/<name>`.
//!
//! `lab.json` says what was asked for; everything else (what runs, what exists) is looked up, so a
//! lab whose processes were all killed is still known and can be taken down.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::BadUsage;

/// The member that is the control plane.
pub const SERVER: &str = "server";
/// The member whose process is all hollow nodes.
pub const HOLLOW: &str = "hollow";

/// What `lab up` was asked for, and the addresses it chose.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Lab {
    pub name: String,
    pub subnet: Subnet,
    pub nodes: Vec<String>,
    /// How many more nodes are only pretended.
    #[serde(default)]
    pub hollow_nodes: u16,
    pub proxy_mode: String,
    /// `embedded`, or `etcd=URL,…`
    pub store: String,
    /// Prefix length of each node's part of the pod network.
    pub node_cidr_mask: u8,
    /// Image archives that every node imports when it starts.
    #[serde(default)]
    pub images: Vec<PathBuf>,
    /// More arguments for `skiff server` and for every `skiff agent`.
    #[serde(default)]
    pub server_arguments: Vec<String>,
    #[serde(default)]
    pub node_arguments: Vec<String>,
    /// Bootstrap token with which nodes join. Everybody may read `lab.json`: it has a file of its own, and stands
    /// only in those that earlier versions wrote.
    #[serde(default, skip_serializing)]
    pub token: String,
    /// `net.ipv4.ip_forward` of the host before the first lab.
    pub forwarding_before: String,
}

/// A /24 of one of two address spaces that ordinary hosts do not route: the shared 100.64.0.0/10 (RFC 6598), and
/// 198.18.0.0/15, that of benchmarks (RFC 2544).
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub struct Subnet {
    /// Not in `lab.json` as earlier versions wrote it.
    #[serde(default = "shared")]
    pub first: u8,
    pub second: u8,
    pub third: u8,
}

/// The first number of the shared address space.
const fn shared() -> u8 {
    100
}

impl Subnet {
    pub const PREFIX: u8 = 24;

    /// Of the shared address space.
    pub fn is_shared(self) -> bool {
        self.first == shared()
    }

    pub fn address(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.first, self.second, self.third, host)
    }

    /// The host's address on the lab's bridge.
    pub fn gateway(self) -> Ipv4Addr {
        self.address(1)
    }

    pub fn server(self) -> Ipv4Addr {
        self.address(2)
    }

    /// All hollow nodes have this one.
    pub fn hollow(self) -> Ipv4Addr {
        self.address(3)
    }

    /// `index` counts from 0.
    pub fn node(self, index: usize) -> Ipv4Addr {
        // A lab has at most MAX_NODES nodes, so the sum fits.
        self.address(10 + index as u8)
    }

    /// All candidates, in the order they are tried.
    pub fn all() -> impl Iterator<Item = Subnet> {
        let benchmarks = (18..20).map(|second| (198, second));
        let starts = (64..128).map(|second| (shared(), second)).chain(benchmarks);
        starts.flat_map(|(first, second)| (0..=255).map(move |third| Subnet { first, second, third }))
    }
}

/// As many nodes as the subnet has addresses for.
pub const MAX_NODES: usize = 200;

/// Where labs live; `SKIFF_LAB_ROOT` moves them, e.g. to a larger disk.
pub fn root() -> PathBuf {
    std::env::var_os("SKIFF_LAB_ROOT").map_or_else(|| PathBuf::from("/var/lib/skiff/lab"), PathBuf::from)
}

/// Sockets and pid files: short paths, since a socket's path has at most 107 bytes.
pub fn run_root() -> PathBuf {
    PathBuf::from("/run/skiff/lab")
}

impl Lab {
    pub fn check_name(name: &str) -> anyhow::Result<()> {
        if name.is_empty() || name.len() > 20 || !api::names::dns1123_label(name).is_empty() {
            return Err(BadUsage(format!(
                "{name:?} cannot name a lab: use at most 20 lower case letters, digits and '-', starting and ending with a letter or digit"
            ))
            .into());
        }
        Ok(())
    }

    pub fn dir(&self) -> PathBuf {
        root().join(&self.name)
    }

    pub fn run_dir(&self) -> PathBuf {
        run_root().join(&self.name)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("admin.kubeconfig")
    }

    fn token_file(&self) -> PathBuf {
        self.dir().join("token")
    }

    /// Data of one member (`server` or a node).
    pub fn member_dir(&self, member: &str) -> PathBuf {
        self.dir().join(member)
    }

    pub fn member_run_dir(&self, member: &str) -> PathBuf {
        self.run_dir().join(member)
    }

    pub fn log(&self, member: &str) -> PathBuf {
        self.dir().join(format!("{member}.log"))
    }

    pub fn pid_file(&self, member: &str) -> PathBuf {
        self.member_run_dir(member).join("skiff.pid")
    }

    pub fn server_url(&self) -> String {
        format!("https://{}:{}", self.subnet.server(), api::defaults::API_PORT)
    }

    pub fn members(&self) -> impl Iterator<Item = &str> {
        let hollow = (self.hollow_nodes > 0).then_some(HOLLOW);
        std::iter::once(SERVER).chain(self.nodes.iter().map(String::as_str)).chain(hollow)
    }

    /// The names of the hollow nodes, as their process gives them.
    pub fn hollow_names(&self) -> impl Iterator<Item = String> {
        hollow_names(self.hollow_nodes)
    }

    pub fn address(&self, member: &str) -> Option<Ipv4Addr> {
        match member {
            SERVER => return Some(self.subnet.server()),
            HOLLOW => return (self.hollow_nodes > 0).then(|| self.subnet.hollow()),
            _ => {}
        }
        self.nodes.iter().position(|node| node == member).map(|index| self.subnet.node(index))
    }

    /// Whether it was up since this machine started: `/run` begins empty.
    pub fn is_of_this_boot(&self) -> bool {
        self.run_dir().exists()
    }

    /// The network namespace's name, as `ip netns` shows it.
    pub fn netns(&self, member: &str) -> String {
        format!("skiff-{}-{member}", self.name)
    }

    pub fn bridge(&self) -> String {
        format!("skl{:02x}{:02x}", self.subnet.second, self.subnet.third)
    }

    /// The host's end of a member's link. Interface names have at most 15 bytes.
    pub fn link(&self, member: &str) -> String {
        let last = self.address(member).map_or(0, |address| address.octets()[3]);
        format!("{}p{last}", self.bridge())
    }

    /// The cgroup under which all pods of a member run, relative to each hierarchy's root.
    pub fn cgroup(&self, member: &str) -> String {
        format!("/{}/{member}", self.cgroup_root())
    }

    pub fn cgroup_root(&self) -> String {
        format!("skiff-lab-{}", self.name)
    }

    /// The host's nf_tables table of this lab.
    pub fn table(&self) -> String {
        format!("skiff_lab_{}", self.name.replace('-', "_"))
    }

    pub fn load(name: &str) -> anyhow::Result<Option<Self>> {
        let path = root().join(name).join("lab.json");
        match std::fs::read(&path) {
            Ok(bytes) => {
                let mut lab: Self = serde_json::from_slice(&bytes).with_context(|| {
                    format!("{} is damaged; remove the lab with: skiff lab down {name}", path.display())
                })?;
                if lab.token.is_empty() {
                    // Who may not read it does nothing that needs it.
                    lab.token = std::fs::read_to_string(lab.token_file()).unwrap_or_default();
                }
                Ok(Some(lab))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// The lab, or an error that lists the ones there are.
    pub fn find(name: &str) -> anyhow::Result<Self> {
        match Self::load(name)? {
            Some(lab) => Ok(lab),
            None => {
                let known: Vec<String> = Self::all()?.into_iter().map(|lab| lab.name).collect();
                let known = if known.is_empty() {
                    "there is none".to_owned()
                } else {
                    format!("there is {}", known.join(", "))
                };
                bail!("there is no lab {name:?} ({known}); make one with: skiff lab up {name}")
            }
        }
    }

    pub fn save(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.dir()).with_context(|| format!("creating {}", self.dir().display()))?;
        write_private(&self.token_file(), &self.token)?;
        let path = self.dir().join("lab.json");
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    pub fn all() -> anyhow::Result<Vec<Self>> {
        let mut labs = Vec::new();
        for name in directory_names(&root())? {
            if let Ok(Some(lab)) = Self::load(&name) {
                labs.push(lab);
            }
        }
        labs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(labs)
    }

    pub fn all_of_this_boot() -> anyhow::Result<Vec<Self>> {
        Ok(Self::all()?.into_iter().filter(Self::is_of_this_boot).collect())
    }
}

/// Writes what only root may read.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.with_context(|| format!("writing {}", path.display()))
}

fn directory_names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", dir.display())),
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// `hollow-1` and so on.
pub fn hollow_names(count: u16) -> impl Iterator<Item = String> {
    (1..=count).map(|number| format!("hollow-{number}"))
}

/// `NAME/NODE`, or `NODE` of the default lab.
pub fn split_member(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or((super::DEFAULT_NAME, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(name: &str) -> Lab {
        Lab {
            name: name.into(),
            subnet: Subnet { first: 100, second: 127, third: 255 },
            nodes: (1..=MAX_NODES).map(|n| format!("node-{n}")).collect(),
            hollow_nodes: 1,
            proxy_mode: "nftables".into(),
            store: "embedded".into(),
            node_cidr_mask: 24,
            images: Vec::new(),
            server_arguments: Vec::new(),
            node_arguments: Vec::new(),
            token: String::new(),
            forwarding_before: "0".into(),
        }
    }

    #[test]
    fn interface_names_fit_and_differ() {
        let lab = lab("a-rather-long-name");
        let mut names: Vec<String> = lab.members().map(|member| lab.link(member)).collect();
        names.push(lab.bridge());
        assert!(names.iter().all(|name| name.len() <= 15), "{names:?}");
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_everybody_may_read_holds_no_token() {
        let lab = Lab { token: "abcdef.0123456789abcdef".into(), ..lab("a") };
        let text = serde_json::to_string(&lab).unwrap();
        assert!(!text.contains("0123456789abcdef"), "{text}");
        // as earlier versions wrote it
        let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
        old["token"] = lab.token.clone().into();
        assert_eq!(serde_json::from_value::<Lab>(old).unwrap(), lab);
    }

    #[test]
    fn labs_of_earlier_versions_keep_their_addresses() {
        let subnet: Subnet = serde_json::from_str(r#"{"second":64,"third":7}"#).unwrap();
        assert_eq!(subnet.server(), Ipv4Addr::new(100, 64, 7, 2));
    }

    #[test]
    fn names_of_labs() {
        for good in ["a", "ci-1"] {
            assert!(Lab::check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a/b", "..", "-a", "a-very-long-lab-name-indeed"] {
            assert!(Lab::check_name(bad).is_err(), "{bad}");
        }
    }
}
