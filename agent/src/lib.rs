//! agent
pub mod containerd;
pub mod images;
pub mod join;
