//! The Node object: registration, status, lease.
//!
//! [`machine`] is what the host has, [`status`] makes a NodeStatus of it (pure), [`heartbeat`] keeps
//! the API informed, [`lease`] says that the node is alive.

pub mod heartbeat;
pub mod lease;
pub mod machine;
pub mod status;
