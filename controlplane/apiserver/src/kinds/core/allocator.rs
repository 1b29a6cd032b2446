//! Service addresses and node ports.

/// Ranges that Service addresses and node ports come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRanges {
    /// IPv4 network of cluster addresses.
    pub cidr: String,
    /// First and last node port.
    pub node_ports: (u16, u16),
}

impl Default for ServiceRanges {
    fn default() -> Self {
        Self { cidr: api::defaults::SERVICE_CIDR.to_owned(), node_ports: (30000, 32767) }
    }
}
