//! HTTP: connections, what a request is about, representations, and the pipeline that a request
//! goes through.
//!
//! [`serve`] and [`inprocess`] are the two ways in; both call [`pipeline::handle`].

pub mod body;
mod features;
pub mod health;
pub mod info;
pub mod inprocess;
pub mod metrics;
pub mod negotiate;
pub mod options;
mod ordered;
pub mod paths;
pub mod pipeline;
mod process;
pub mod query;
pub mod render;
pub mod resources;
pub mod serve;
mod socket_token;
mod stored;
pub mod tls;
mod zpages;
