//! gRPC contracts that other programs define, generated from the files under `proto/`.
//!
//! A file with `package a.b.v1;` is the module `proto::a::b::v1`, e.g. [`runtime::v1`] for CRI or
//! [`containerd::services::content::v1`] for containerd's content store. Message and field names
//! and numbers are the wire contract; nothing here is skiff's own.
//!
//! [`unix_channel`] connects a client to a socket.

#![allow(clippy::all, missing_docs)]

use std::path::{Path, PathBuf};

use tonic::transport::{Channel, Endpoint};

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// What a pod is in protobuf: a `FileDescriptorSet` of `kubernetes/core/v1/pod.proto`, whose messages are in
/// the package `pod`.
pub const POD_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pod.descriptors"));

/// Connects to a gRPC server on a unix socket. Fails at once if nothing listens there; after that
/// the channel reconnects by itself when the server comes back.
pub async fn unix_channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    endpoint().connect_with_connector(connector(socket)).await
}

/// Like [`unix_channel`], but connects with the first call.
pub fn unix_channel_lazy(socket: &Path) -> Channel {
    endpoint().connect_with_connector_lazy(connector(socket))
}

fn endpoint() -> Endpoint {
    // The authority is never resolved: the connector below ignores it.
    Endpoint::from_static("http://localhost")
}

fn connector(
    socket: &Path,
) -> impl tower::Service<
    tonic::transport::Uri,
    Response = hyper_util::rt::TokioIo<tokio::net::UnixStream>,
    Error = std::io::Error,
    Future = impl Future<Output = std::io::Result<hyper_util::rt::TokioIo<tokio::net::UnixStream>>> + Send,
> + Send
+ 'static {
    let socket: PathBuf = socket.to_owned();
    tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    })
}
