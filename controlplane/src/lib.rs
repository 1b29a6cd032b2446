//! controlplane
pub mod kubeconfig;
pub mod pki;
