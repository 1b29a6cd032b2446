//! kube-scheduler: puts pods on nodes.
//!
//! Layer: control plane, above the API only (a `kube::Client`).
//! - `framework` is Kubernetes' scheduling framework, `plugins` its default plugins;
//! - `pod`, `node`, `cluster` are the picture that scheduling works on, `event` what changes it;
//! - `queue` says which pod is next, `cycle` where it goes: both pure;
//! - `driver` does it: informers in, bindings, conditions and events out.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod cluster;
mod cycle;
mod devices;
mod driver;
mod event;
mod framework;
mod node;
mod node_selector;
mod nominations;
mod plugins;
mod pod;
mod queue;
mod refusal;
mod report;
mod resource;
#[cfg(test)]
mod testing;

pub use driver::start;
