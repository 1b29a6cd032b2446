//! Drives the built binaries from outside, as a person does: `skiff`, an unmodified `kubectl`,
//! real containers.
//!
//! ```no_run
//! let lab = integration::Lab::up("story", &["--nodes", "2"]);
//! lab.kubectl(&["create", "deployment", "web", "--image", integration::NGINX]);
//! lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
//! ```
//!
//! A [`Lab`] is taken down when it is dropped, and then looked for: anything left behind fails the
//! test. When a test panics, the lab's logs are printed.

mod clients;
pub mod etcd;
pub mod figures;
mod images;
mod lab;
mod leftovers;
pub mod plugins;
mod run;
mod server;

pub use clients::kubectls;
pub use images::{BUSYBOX, HEALTH, NGINX, health_archive};
pub use lab::Lab;
pub use run::{Output, Running, command, kubectl, kubectl_environment, kubectl_of_version, skiff};
pub use server::Server;
