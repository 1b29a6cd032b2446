//! Container images without a registry: building them from files of this machine, reading and
//! writing archives, importing into containerd.
//!
//! Layer: between `containerd` (the process and its socket) and whoever needs an image present:
//! the agent itself for its sandbox image, `skiff images`, the demo and the tests.
//!
//! - [`Rootfs`]: the files of one layer, with the shared libraries an executable needs;
//! - [`Image`]: names, a target descriptor and blobs, either built from a [`Rootfs`] or read from
//!   an OCI or `docker save` archive ([`archive`]); the same files always give the same digests;
//! - [`Importer`]: puts an [`Image`] into containerd's content and image stores.
//!
//! ```no_run
//! # async fn example() -> Result<(), agent::images::ImageError> {
//! let image = agent::images::presets::busybox()?;
//! image.write_archive(std::path::Path::new("busybox.tar"))?;
//! let importer = agent::images::Importer::connect("/run/skiff/containerd.sock".as_ref()).await?;
//! importer.import(&image).await?;
//! # Ok(()) }
//! ```

pub mod archive;
mod elf;
mod image;
mod import;
pub mod pause;
pub mod presets;
mod reference;
mod rootfs;

use std::path::{Path, PathBuf};

pub use image::digest_of as digest;
pub use image::{Blob, Data, Descriptor, Image, ImageConfig};
pub use import::{Importer, Listed};
pub use reference::normalize;
pub use rootfs::Rootfs;

/// Why an image could not be built, read or imported.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{doing} {path}: {error}", path = path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("{path} needs {library}, which is in none of the library directories; install the package that has it", path = path.display())]
    MissingLibrary { path: PathBuf, library: String },
    #[error("{path} is not an image archive: {why}; expected what `skiff images build`, `docker save` or `ctr images export` write", path = path.display())]
    NotAnArchive { path: PathBuf, why: String },
    #[error("the archive names no image; give a name, e.g. `--name example.com/app:1`")]
    Unnamed,
    #[error("{0:?} is not an image name")]
    BadName(String),
    #[error("connecting to containerd at {socket}: {error}; is it running?", socket = socket.display())]
    Connect { socket: PathBuf, error: tonic::transport::Error },
    #[error("{doing}: containerd answered {code:?}: {message}", code = status.code(), message = status.message())]
    Call { doing: String, status: Box<tonic::Status> },
}

impl ImageError {
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { doing, path, error }
    }

    pub(crate) fn call(doing: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        let doing = doing.into();
        move |status| Self::Call { doing, status: Box::new(status) }
    }
}
