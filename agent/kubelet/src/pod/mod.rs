//! One pod on this node: what is wanted of it, what is seen of it, what to do about it.
//!
//! Pure: [`actions`] and [`ending`] decide, [`status`], [`phase`] and [`conditions`] describe,
//! [`restart`] says what runs again, [`backoff`] waits, [`observed`] is what they look at. Effects: [`observe`], [`make_sandbox`],
//! [`isolation`], [`make_container`], [`devices`], [`stop`], [`cleanup`], [`hooks`], [`sub_path`]. [`worker`] ties
//! them together.

pub mod actions;
pub mod backoff;
pub mod cleanup;
pub mod conditions;
pub mod devices;
pub mod ending;
pub mod hooks;
pub mod isolation;
pub mod labels;
pub mod mailbox;
pub mod make_container;
pub mod make_sandbox;
pub mod observe;
pub mod observed;
pub mod phase;
pub mod restart;
pub mod status;
pub mod stop;
pub mod sub_path;
pub mod worker;
