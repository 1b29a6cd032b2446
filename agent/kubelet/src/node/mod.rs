//! The Node object: registration, status, lease.
//!
//! [`machine`] is what the host has, [`status`] makes a NodeStatus of it (pure), [`heartbeat`] keeps
//! the API informed.

pub mod heartbeat;
pub mod machine;
pub mod status;
