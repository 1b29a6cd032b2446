//! The lab's wires: a bridge on the host, one network namespace and one veth pair per member, and
//! one nf_tables table that lets the lab out to registries and nobody in.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use netlink::nft::{Family, Nft, Table};
use netlink::{Address, BridgePort, IpNet, LinkKind, Namespace, Route, RouteScope, Rtnl, VethPeer};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::processes::{self, netns_path};
use super::state::{HOLLOW, Lab, SERVER, Subnet};

/// The member's end of its link, in every member.
const MEMBER_LINK: &str = "eth0";

/// The first subnet that no address and no route of the host touches, and no other lab has.
pub fn free_subnet(taken: &[Subnet]) -> anyhow::Result<Subnet> {
    let mut rtnl = Rtnl::open()?;
    let mut used: Vec<IpNet> = rtnl.routes()?.into_iter().map(|route| route.destination).collect();
    used.extend(rtnl.addresses()?.into_iter().map(|address| address.net));
    // The default route covers everything and forbids nothing.
    used.retain(|net| net.prefix > 0 && net.address.is_ipv4());
    choose(taken, &used).context(
        "every subnet of 100.64.0.0/10 and 198.18.0.0/15 is in use on this host; take a lab down: skiff lab list",
    )
}

/// Pure.
fn choose(taken: &[Subnet], used: &[IpNet]) -> Option<Subnet> {
    let of_a_lab =
        |net: &IpNet| net.prefix >= Subnet::PREFIX && taken.iter().any(|lab| whole(*lab).contains(net.address));
    // Who has an address of the shared space may claim all of it: Tailscale drops what comes from there by a link
    // that is not its own.
    let shared = IpNet::new(IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10);
    let claimed = used.iter().any(|net| shared.contains(net.address) && !of_a_lab(net));
    let fits = |subnet: &Subnet| {
        let others = claimed && subnet.is_shared();
        !others && !taken.contains(subnet) && !used.iter().any(|net| overlap(*net, *subnet))
    };
    Subnet::all().find(fits)
}

fn whole(subnet: Subnet) -> IpNet {
    net(subnet.address(0))
}

fn overlap(net: IpNet, subnet: Subnet) -> bool {
    let own = whole(subnet);
    net.contains(own.address) || own.contains(net.address)
}

/// `net.ipv4.ip_forward` of the host.
pub fn forwarding() -> String {
    netlink::sysctl::read("net/ipv4/ip_forward").unwrap_or_else(|_| "0".to_owned())
}

/// Makes what is missing, and connects every member.
pub fn ensure(lab: &Lab) -> anyhow::Result<()> {
    ensure_members(lab, &lab.members().collect::<Vec<_>>())
}

/// The same for some members: others that are cut off stay so.
pub fn ensure_members(lab: &Lab, members: &[&str]) -> anyhow::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let bridge = lab.bridge();
    if rtnl.find_link(&bridge)?.is_none() {
        rtnl.create_link(&bridge, &LinkKind::Bridge, 0, None)?;
    }
    let bridge = rtnl.link(&bridge)?.index;
    existing_is_fine(rtnl.add_address(&Address::new(bridge, net(lab.subnet.gateway()))))?;
    rtnl.set_up(bridge)?;
    for member in members {
        ensure_member(&mut rtnl, lab, member, bridge).with_context(|| format!("connecting {member}"))?;
    }
    let forwarding = netlink::sysctl::ensure("net/ipv4/ip_forward", "1");
    let masquerading = nft(&host_table(lab));
    let passing = exception(lab).ensure().map_err(anyhow::Error::msg);
    if let Err(error) = forwarding.map_err(anyhow::Error::from).and(masquerading).and(passing) {
        // The lab works without: only pulling from registries needs the way out.
        eprintln!("the lab cannot reach outside networks: {error:#}");
    }
    Ok(())
}

fn net(address: Ipv4Addr) -> IpNet {
    IpNet::new(IpAddr::V4(address), Subnet::PREFIX)
}

fn existing_is_fine(result: netlink::Result<()>) -> netlink::Result<()> {
    match result {
        Err(error) if error.is_exists() => Ok(()),
        other => other,
    }
}

fn ensure_member(rtnl: &mut Rtnl, lab: &Lab, member: &str, bridge: u32) -> anyhow::Result<()> {
    let name = lab.netns(member);
    make_namespace(&name)?;
    let namespace = Namespace::open(netns_path(&name))?;
    let link = lab.link(member);
    if rtnl.find_link(&link)?.is_none() {
        let peer = VethPeer { name: MEMBER_LINK, mac: None, namespace: Some(&namespace) };
        rtnl.create_link(&link, &LinkKind::Veth { peer }, 0, None)?;
    }
    let link = rtnl.link(&link)?.index;
    rtnl.attach_to_bridge(link, bridge, BridgePort::default())?;
    rtnl.set_up(link)?;

    let address = lab.address(member).context("a member without an address")?;
    let mut inside = Rtnl::open_in(&namespace)?;
    let loopback = inside.link("lo")?.index;
    inside.set_up(loopback)?;
    let own = inside.link(MEMBER_LINK)?.index;
    existing_is_fine(inside.add_address(&Address::new(own, net(address))))?;
    inside.set_up(own)?;
    let everywhere = IpNet::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let mut way_out = Route::direct(everywhere, own, RouteScope::Universe);
    way_out.gateway = Some(IpAddr::V4(lab.subnet.gateway()));
    existing_is_fine(inside.add_route(&way_out))?;
    Ok(())
}

/// Where `ip netns` keeps what it names.
const NAMESPACES: &str = "/run/netns";

/// Makes it a mount of its own whose mounts are shared, as `ip netns add` does. Otherwise the next one of
/// those would mount it over itself, and hide the lab's namespaces where nobody could remove them.
fn share_namespaces() -> anyhow::Result<()> {
    std::fs::create_dir_all(NAMESPACES).context("creating /run/netns")?;
    let directory = File::open(NAMESPACES).context("opening /run/netns")?;
    // `ip netns` takes the same lock.
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, error)| anyhow::anyhow!("locking /run/netns: {error}"))?;
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    let change = |source, flags| mount(source, NAMESPACES, None::<&str>, flags, None::<&str>);
    match change(None, shared) {
        // It is no mount yet.
        Err(nix::Error::EINVAL) => change(Some(NAMESPACES), MsFlags::MS_BIND | MsFlags::MS_REC)
            .and_then(|()| change(None, shared))
            .context("mounting /run/netns on itself"),
        outcome => outcome.context("sharing the mounts of /run/netns"),
    }
}

/// A named network namespace, as `ip netns add` makes it.
fn make_namespace(name: &str) -> anyhow::Result<()> {
    let path = netns_path(name);
    share_namespaces()?;
    if is_namespace(&path) {
        return Ok(());
    }
    File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let target = path.clone();
    // A thread of its own, so that this one stays where it is.
    std::thread::spawn(move || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    })
    .join()
    .map_err(|_| anyhow::anyhow!("making the network namespace {name} panicked"))?
    .with_context(|| format!("making the network namespace {name}"))
}

fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Out to anywhere, but not looking for the cluster's own addresses there; in only as an answer.
fn host_table(lab: &Lab) -> String {
    let (table, bridge, subnet) = (lab.table(), lab.bridge(), lab.subnet.address(0));
    let (pods, services) = (api::defaults::POD_CIDR, api::defaults::SERVICE_CIDR);
    format!(
        "table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n\
         chain postrouting {{\n type nat hook postrouting priority srcnat;\n \
         ip saddr {subnet}/24 oifname != \"{bridge}\" masquerade\n}}\n\
         chain forward {{\n type filter hook forward priority filter;\n \
         oifname \"{bridge}\" iifname != \"{bridge}\" ct state != {{ established, related }} drop\n \
         iifname \"{bridge}\" oifname != \"{bridge}\" ip daddr {{ {pods}, {services} }} reject\n}}\n}}\n"
    )
}

/// What lets the lab's packets pass a host whose iptables drop what is forwarded, as Docker has them do. Where
/// br_netfilter is loaded these are also what members send each other.
fn exception(lab: &Lab) -> agent::FirewallException {
    let bridge = lab.bridge();
    agent::FirewallException {
        built_in: "FORWARD",
        chain: format!("SKIFF-{bridge}"),
        packets: vec![format!("-i {bridge}"), format!("-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED")],
    }
}

fn nft(text: &str) -> anyhow::Result<()> {
    feed_nft(&mut Command::new("nft"), text)
}

fn feed_nft(command: &mut Command, text: &str) -> anyhow::Result<()> {
    let mut child = command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running nft; install it with: apt-get install nftables")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes()).context("writing to nft")?;
    }
    let output = child.wait_with_output().context("waiting for nft")?;
    if !output.status.success() {
        bail!("nft refused the lab's rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Cuts or restores a member's link at the bridge.
pub fn set_connected(lab: &Lab, member: &str, connected: bool) -> anyhow::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let link = rtnl.link(&lab.link(member))?.index;
    if connected {
        rtnl.set_up(link)?
    } else {
        rtnl.set_down(link)?
    }
    Ok(())
}

/// The nf_tables table in a member's namespace that loses packets.
const LOSS_TABLE: &str = "skiff_lab_loss";

/// Loses this share of what a member sends to others and receives from them; none with 0.
pub fn set_loss(lab: &Lab, member: &str, percent: f64) -> anyhow::Result<()> {
    // numgen counts whole numbers.
    let share = (percent * 1000.0).round().clamp(0.0, 100_000.0) as u32;
    if share == 0 {
        let namespace = Namespace::open(netns_path(&lab.netns(member)))?;
        return namespace.run(|| remove_table(Family::Inet, LOSS_TABLE))?;
    }
    let lose = match share {
        100_000.. => "drop".to_owned(),
        _ => format!("numgen random mod 100000 < {share} drop"),
    };
    let text = format!(
        "table inet {LOSS_TABLE}\ndelete table inet {LOSS_TABLE}\ntable inet {LOSS_TABLE} {{\n\
         chain in {{\n type filter hook prerouting priority -450;\n iifname \"{MEMBER_LINK}\" {lose}\n}}\n\
         chain out {{\n type filter hook postrouting priority 450;\n oifname \"{MEMBER_LINK}\" {lose}\n}}\n}}\n"
    );
    let mut command = Command::new("nft");
    processes::enter(&mut command, &lab.netns(member))?;
    feed_nft(&mut command, &text)
}

/// Holds what goes to a member back for this long; no longer with 0.
pub fn set_delay(lab: &Lab, member: &str, milliseconds: u32, jitter: u32) -> anyhow::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let link = rtnl.link(&lab.link(member))?.index;
    if milliseconds == 0 {
        return match rtnl.delete_root_qdisc(link) {
            Err(error) if !error.is_missing() => Err(error.into()),
            _ => Ok(()),
        };
    }
    rtnl.replace_delay(link, milliseconds, jitter).map_err(|error| {
        if error.is_missing() {
            anyhow::anyhow!(
                "this kernel cannot delay packets: it has no netem (CONFIG_NET_SCH_NETEM; `modprobe sch_netem`, on \
                 Debian cloud kernels install linux-image-amd64); dropping works without: skiff lab node drop"
            )
        } else {
            error.into()
        }
    })
}

/// Whether a member's link is up at the bridge.
pub fn is_connected(lab: &Lab, member: &str) -> bool {
    Rtnl::open().and_then(|mut rtnl| rtnl.link(&lab.link(member))).is_ok_and(|link| link.up)
}

/// Removes links, namespaces and rules; goes on after a failure.
pub fn remove(lab: &Lab, problems: &mut Vec<String>) {
    let mut note = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            problems.push(format!("removing {what}: {error:#}"));
        }
    };
    match Rtnl::open() {
        Ok(mut rtnl) => {
            for name in lab.members().map(|member| lab.link(member)).chain([lab.bridge()]) {
                let result = match rtnl.delete_link(&name) {
                    Err(error) if !error.is_missing() => Err(error.into()),
                    _ => Ok(()),
                };
                note(&name, result);
            }
        }
        Err(error) => note("links", Err(error.into())),
    }
    for member in lab.members() {
        let name = lab.netns(member);
        note(&name, remove_namespace(&name));
    }
    let table = lab.table();
    note(&table, remove_table(Family::Ipv4, &table));
    exception(lab).remove();
    let others = Lab::all_of_this_boot().unwrap_or_default().into_iter().any(|other| other.name != lab.name);
    // After a reboot it is as others want it.
    if !others && lab.forwarding_before == "0" && lab.is_of_this_boot() {
        note("ip_forward", netlink::sysctl::ensure("net/ipv4/ip_forward", "0").map_err(Into::into));
    }
}

/// Without the nft program: on a machine that lacks it there is no table, and the lab is to go all the same.
fn remove_table(family: Family, name: &str) -> anyhow::Result<()> {
    match Nft::open().and_then(|mut nft| nft.delete_table(&Table::new(family, name))) {
        Err(error) if !error.is_unsupported() => Err(error.into()),
        _ => Ok(()),
    }
}

fn remove_namespace(name: &str) -> anyhow::Result<()> {
    let path = netns_path(name);
    if !path.exists() {
        return Ok(());
    }
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: not mounted, a plain file of an interrupted start
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(error) => bail!("unmounting {}: {error}", path.display()),
    }
    std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
}

/// The members of a lab whose network namespaces are there.
fn members_found(name: &str, namespaces: &Path) -> Vec<String> {
    let prefix = format!("skiff-{name}-");
    let entries = std::fs::read_dir(namespaces).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(&prefix).map(str::to_owned))
        .filter(|member| is_member(member))
        .collect()
}

/// Whether the host still has something of a lab whose directory is gone.
pub fn has_traces(name: &str) -> bool {
    !members_found(name, Path::new(NAMESPACES)).is_empty()
}

/// A lab whose `lab.json` cannot be read, put together from the names it left on the host. After a reboot
/// that is nothing but its directories.
pub fn reconstruct(name: &str) -> Lab {
    let members = members_found(name, Path::new(NAMESPACES));
    let subnet = members.iter().find_map(|member| namespace_subnet(name, member));
    Lab {
        name: name.to_owned(),
        // That of no lab: it names no link of this host.
        subnet: subnet.unwrap_or(Subnet { first: 0, second: 0, third: 0 }),
        nodes: members.into_iter().filter(|member| member != SERVER).collect(),
        hollow_nodes: 0,
        proxy_mode: String::new(),
        store: String::new(),
        node_cidr_mask: 24,
        images: Vec::new(),
        server_arguments: Vec::new(),
        node_arguments: Vec::new(),
        token: String::new(),
        forwarding_before: "1".to_owned(),
    }
}

/// Whether a lab names a member so: `a-b-server` is not one of lab `a`.
fn is_member(text: &str) -> bool {
    let number = |text: &str| text.parse::<u16>().is_ok();
    matches!(text, SERVER | HOLLOW) || text.strip_prefix("node-").is_some_and(number)
}

fn namespace_subnet(name: &str, member: &str) -> Option<Subnet> {
    let namespace = Namespace::open(netns_path(&format!("skiff-{name}-{member}"))).ok()?;
    let addresses = Rtnl::open_in(&namespace).ok()?.addresses().ok()?;
    addresses.iter().find_map(|address| match address.net.address {
        IpAddr::V4(v4) => match v4.octets() {
            [first @ (100 | 198), second, third, _] => Some(Subnet { first, second, third }),
            _ => None,
        },
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_lab_of_before_a_reboot_can_be_taken_down() {
        let lab = reconstruct("nowhere");
        assert_eq!((lab.name.as_str(), lab.nodes.len()), ("nowhere", 0));
        assert!(Subnet::all().all(|subnet| subnet != lab.subnet), "no other lab's links are meant");
    }

    #[test]
    fn members_of_other_labs_are_none_of_this_one() {
        for (text, expected) in
            [("server", true), ("hollow", true), ("node-12", true), ("b-server", false), ("node-1-server", false)]
        {
            assert_eq!(is_member(text), expected, "{text}");
        }
    }

    #[test]
    fn a_lab_without_its_directory_is_found_by_its_namespaces() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["skiff-a-server", "skiff-a-node-2", "skiff-a-b-server", "somebody-elses"] {
            File::create(directory.path().join(name)).unwrap();
        }
        let mut found = members_found("a", directory.path());
        found.sort();
        assert_eq!(found, ["node-2", "server"]);
        assert!(members_found("c", directory.path()).is_empty() && !has_traces("nowhere"));
    }

    #[test]
    fn a_lab_keeps_away_from_whoever_claims_the_shared_addresses() {
        let nets = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let other = Subnet { first: 100, second: 64, third: 0 };
        // in use, labs, the subnet that is chosen
        let cases: &[(&[&str], &[Subnet], &str)] = &[
            (&["192.0.2.1/24"], &[], "100.64.0.0"),
            // another lab's bridge
            (&["100.64.0.1/24", "100.64.0.0/24"], &[other], "100.64.1.0"),
            // Tailscale's interface
            (&["100.101.102.103/32"], &[], "198.18.0.0"),
            (&["100.101.102.103/32", "100.64.0.1/24", "198.18.0.0/16"], &[other], "198.19.0.0"),
            (&["100.64.0.0/10"], &[], "198.18.0.0"),
        ];
        for (used, taken, expected) in cases {
            let chosen = choose(taken, &nets(used)).unwrap();
            assert_eq!(chosen.address(0).to_string(), *expected, "{used:?}");
        }
    }

    #[test]
    fn a_lab_passes_a_host_whose_iptables_drop_what_is_forwarded() {
        let host = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            let iptables = |arguments: &[&str]| {
                let output = Command::new("iptables").args(arguments).output().expect("apt-get install iptables");
                String::from_utf8(output.stdout).unwrap()
            };
            iptables(&["-P", "FORWARD", "DROP"]);
            let lab = reconstruct("nowhere");
            exception(&lab).ensure().unwrap();
            let listing = iptables(&["-S"]);
            for rule in [
                "-A FORWARD -j SKIFF-skl0000",
                "-A SKIFF-skl0000 -i skl0000 -j ACCEPT",
                "-A SKIFF-skl0000 -o skl0000 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            ] {
                assert!(listing.lines().any(|line| line == rule), "{rule}: {listing}");
            }
            exception(&lab).ensure().unwrap();
            assert_eq!(iptables(&["-S"]), listing, "once is enough");
            remove(&lab, &mut Vec::new());
            assert!(!iptables(&["-S"]).contains("SKIFF"));
        };
        std::thread::spawn(host).join().unwrap();
    }

    #[test]
    fn a_lab_of_before_a_reboot_leaves_the_hosts_forwarding_alone() {
        let host = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            netlink::sysctl::write("net/ipv4/ip_forward", "1").unwrap();
            let lab = Lab { forwarding_before: "0".to_owned(), ..reconstruct("nowhere") };
            let mut problems = Vec::new();
            remove(&lab, &mut problems);
            assert_eq!((problems, forwarding()), (Vec::<String>::new(), "1".to_owned()));
        };
        std::thread::spawn(host).join().unwrap();
    }

    #[test]
    fn rules_go_without_the_nft_program() {
        let host = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            let mut nft = Nft::open().unwrap();
            let mut making = netlink::nft::Transaction::new(&Table::new(Family::Ipv4, "skiff_lab_a"));
            making.add_table();
            nft.commit(making).unwrap();
            // the second time there is none
            for _ in 0..2 {
                remove_table(Family::Ipv4, "skiff_lab_a").unwrap();
                assert!(nft.tables(Family::Ipv4).unwrap().is_empty());
            }
        };
        std::thread::spawn(host).join().unwrap();
    }

    #[test]
    fn overlaps_in_both_directions() {
        let subnet = Subnet { first: 100, second: 64, third: 0 };
        for (text, expected) in [([100, 64, 0, 5], 32), ([100, 64, 0, 0], 10), ([100, 64, 0, 0], 24)]
            .map(|(octets, prefix)| ((octets, prefix), true))
            .into_iter()
            .chain([(([100, 64, 1, 0], 24), false), (([10, 0, 0, 0], 8), false)])
        {
            let net = IpNet::new(IpAddr::V4(Ipv4Addr::from(text.0)), text.1);
            assert_eq!(overlap(net, subnet), expected, "{text:?}");
        }
    }
}
