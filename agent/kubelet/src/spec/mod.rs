//! From a pod's spec to what CRI is asked: pure translations, one concern a file.

pub mod command;
pub mod container;
pub mod dns;
pub mod env;
pub mod env_file;
pub mod hosts;
pub mod mounts;
pub mod sandbox;
pub mod security;
