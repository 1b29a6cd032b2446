//! The kubelet: the pods of one node.

pub mod cgroups;
pub mod config;
pub mod cri;
pub mod layout;
pub mod pod;
pub mod server_contract;
pub mod volume_contract;

pub use config::Config;
