//! NetworkPolicy enforcement: one nf_tables table in the forward hook.

use component::{Informers, Supervisor};
use netlink::nft::{Family, Table};

pub fn table() -> Table {
    Table::new(Family::Ipv4, "skiff_policy")
}

pub fn start(_node_name: &str, _informers: &Informers, _supervisor: &Supervisor) {}
