//! agent
pub mod containerd;
pub mod images;
