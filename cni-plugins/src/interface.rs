//! Steps that several plugins share: a veth into a sandbox, the addresses and routes inside it.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

use netlink::{Address, IpNet, LinkKind, Mac, Namespace, RouteScope, Rtnl, VethPeer, sysctl};

use crate::spec::{Call, Error, Ip, NetworkResult, Result, Route};

/// How often another random name is tried for the host's end.
const NAME_ATTEMPTS: usize = 10;

/// True when a DEL has no namespace to look into any more.
pub fn is_gone(netns: &str) -> bool {
    netns.is_empty() || !std::path::Path::new(netns).exists()
}

pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| Error::io(format!("cannot read /dev/urandom: {error}")))?;
    Ok(bytes)
}

/// A random, locally administered unicast address.
pub fn random_mac() -> Result<Mac> {
    let mut bytes = random::<6>()?;
    bytes[0] = (bytes[0] | 0x02) & 0xfe;
    Ok(Mac(bytes))
}

/// Both ends of a pair, the sandbox's end named as the runtime wants it.
#[derive(Debug)]
pub struct Pair {
    pub host_name: String,
    pub host_index: u32,
    pub host_mac: String,
    pub sandbox_mac: String,
    pub sandbox_index: u32,
}

/// Creates a veth pair whose peer is born inside the sandbox under its final name: no later move,
/// no rename. `inside` is a socket in `namespace`.
pub fn create_pair(
    host: &mut Rtnl,
    inside: &mut Rtnl,
    namespace: &Namespace,
    call: &Call,
    mtu: u32,
    mac: Option<Mac>,
) -> Result<Pair> {
    if inside.find_link(&call.ifname)?.is_some() {
        return Err(Error::internal(format!(
            "container veth name ({:?}) already exists in {}; the runtime must DEL before it ADDs again",
            call.ifname, call.netns
        )));
    }
    for _ in 0..NAME_ATTEMPTS {
        let suffix = random::<4>()?.map(|byte| format!("{byte:02x}")).concat();
        let host_name = format!("veth{suffix}");
        let peer = VethPeer { name: &call.ifname, mac, namespace: Some(namespace) };
        match host.create_link(&host_name, &LinkKind::Veth { peer }, mtu, None) {
            Ok(()) => return describe_pair(host, inside, call, host_name),
            Err(error) if error.is_exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::internal("failed to find a unique veth name"))
}

fn describe_pair(host: &mut Rtnl, inside: &mut Rtnl, call: &Call, host_name: String) -> Result<Pair> {
    let ours = host.link(&host_name)?;
    let theirs = inside.link(&call.ifname)?;
    let text = |mac: Option<Mac>| mac.map(|mac| mac.to_string()).unwrap_or_default();
    Ok(Pair {
        host_name,
        host_index: ours.index,
        host_mac: text(ours.mac),
        sandbox_mac: text(theirs.mac),
        sandbox_index: theirs.index,
    })
}

/// Sets up the sandbox's interface: up, addresses, routes.
pub fn configure(
    inside: &mut Rtnl,
    namespace: &Namespace,
    index: u32,
    ifname: &str,
    result: &NetworkResult,
) -> Result<()> {
    if result.ips.iter().any(|ip| ip.address.address.is_ipv6()) {
        let name = ifname.to_owned();
        namespace.run(move || {
            // No router advertisements and no waiting for duplicate detection in a sandbox.
            sysctl::ensure(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
            let _ = sysctl::write(&format!("net/ipv6/conf/{name}/accept_dad"), "0");
            let _ = sysctl::write(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
            netlink::Result::Ok(())
        })??;
    }
    // An address on a link that is down is legal and saves the announcement of a half-made one.
    for ip in &result.ips {
        inside.add_address(&Address::new(index, ip.address))?;
    }
    inside.set_up(index)?;
    for (ip, gateway) in result.ips.iter().filter_map(|ip| Some((ip, ip.gateway?))) {
        // With a single address no prefix says that the gateway is on this link.
        if ip.address.prefix == ip.address.bits() {
            inside.add_route(&netlink::Route::direct(IpNet::host(gateway), index, RouteScope::Link))?;
        }
    }
    for route in &result.routes {
        add_route(inside, index, route, &result.ips)?;
    }
    Ok(())
}

fn add_route(inside: &mut Rtnl, index: u32, route: &Route, ips: &[Ip]) -> Result<()> {
    let same_family = |ip: &&Ip| ip.address.address.is_ipv4() == route.dst.address.is_ipv4();
    let gateway: Option<IpAddr> = route.gw.or_else(|| ips.iter().filter(same_family).find_map(|ip| ip.gateway));
    let mut wanted = match gateway {
        Some(gateway) => netlink::Route::via(route.dst, gateway, index),
        None => netlink::Route::direct(route.dst, index, RouteScope::Link),
    };
    wanted.mtu = route.mtu;
    wanted.advertised_mss = route.advmss;
    wanted.priority = route.priority;
    match inside.add_route(&wanted) {
        Err(error) if !error.is_exists() => {
            Err(Error::internal(format!("failed to add route '{} via {gateway:?} dev {index}': {error}", route.dst)))
        }
        _ => Ok(()),
    }
}

/// Compares a sandbox's interface with what an ADD answered.
pub fn verify(call: &Call, previous: &NetworkResult) -> Result<()> {
    let namespace = Namespace::open(&call.netns)?;
    let mut inside = Rtnl::open_in(&namespace)?;
    let link = inside
        .find_link(&call.ifname)?
        .ok_or_else(|| Error::internal(format!("interface {} is not in {}", call.ifname, call.netns)))?;
    let recorded =
        previous.interfaces.iter().find(|interface| interface.name == call.ifname && !interface.sandbox.is_empty());
    let Some(recorded) = recorded else {
        return Err(Error::internal(format!("prevResult has no interface {} in a sandbox", call.ifname)));
    };
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !recorded.mac.is_empty() && recorded.mac != mac {
        return Err(Error::internal(format!("interface {} has address {mac}, not {}", call.ifname, recorded.mac)));
    }
    let addresses = inside.addresses_of(link.index)?;
    for ip in &previous.ips {
        if !addresses.iter().any(|address| address.net == ip.address) {
            return Err(Error::internal(format!("interface {} lacks address {}", call.ifname, ip.address)));
        }
    }
    let routes = inside.routes()?;
    for route in &previous.routes {
        let present = routes.iter().any(|found| {
            found.destination.network() == route.dst.network() && (route.gw.is_none() || found.gateway == route.gw)
        });
        if !present {
            return Err(Error::internal(format!("route {} is missing in {}", route.dst, call.netns)));
        }
    }
    Ok(())
}

/// Removes the sandbox's interface, and with it the host's end. Nothing there is no error.
pub fn remove(call: &Call) -> Result<()> {
    if is_gone(&call.netns) {
        return Ok(());
    }
    let namespace = match Namespace::open(&call.netns) {
        Ok(namespace) => namespace,
        Err(error) if error.is_missing() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut inside = match Rtnl::open_in(&namespace) {
        Ok(inside) => inside,
        // The path is still there, but no namespace is mounted on it any more.
        Err(netlink::Error::System { errno: nix::errno::Errno::EINVAL, .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match inside.delete_link(&call.ifname) {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Turns forwarding on for the families in use.
pub fn enable_forwarding(ips: &[Ip]) -> Result<()> {
    if ips.iter().any(|ip| ip.address.address.is_ipv4()) {
        sysctl::ensure("net/ipv4/ip_forward", "1")?;
    }
    if ips.iter().any(|ip| ip.address.address.is_ipv6()) {
        sysctl::ensure("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// The hardware address asked for: by capability, then by CNI_ARGS, then by configuration.
pub fn requested_mac(call: &Call) -> Result<Option<Mac>> {
    let by_capability: Option<String> = call.runtime("mac")?;
    let by_args = call.args.get("MAC").cloned();
    let config = &call.config;
    let by_config = config.pointer("/args/cni/mac").or_else(|| config.get("mac")).and_then(|mac| mac.as_str());
    match by_capability.or(by_args).or_else(|| by_config.map(str::to_owned)).filter(|mac| !mac.is_empty()) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(Error::config),
    }
}
