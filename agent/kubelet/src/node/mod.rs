//! The Node object: registration, status, lease.
//!
//! [`machine`] is what the host has, [`status`] makes a NodeStatus of it (pure), [`heartbeat`] keeps
//! the API informed, [`lease`] says that the node is alive, [`runtime`] judges what the runtime last said (pure).

pub mod heartbeat;
pub mod lease;
pub mod machine;
pub mod runtime;
pub mod status;
