//! gRPC servers for programs on this node, on sockets in the kubelet's directory
//! (`pkg/kubelet/apis/grpc`): who may reach the socket may ask.

use std::convert::Infallible;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::time::Instant;
use tonic::Status;
use tonic::server::NamedService;
use tower::Service;

use crate::files;
use crate::grpc_authority::Unnamed;

/// How soon the socket is made again when that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// Of the socket's directory.
const MODE: u32 = 0o750;

/// Serves for as long as the task lives. `what` is what cannot be asked while it does not.
pub async fn serve<S>(socket: &Path, what: &str, service: S)
where
    S: Service<http::Request<tonic::body::Body>, Response = http::Response<tonic::body::Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    loop {
        match listen(socket) {
            Ok(listener) => {
                let incoming = futures::stream::unfold(listener, |listener| async {
                    Some((listener.accept().await.map(|(stream, _)| Unnamed::new(stream)), listener))
                });
                let server = tonic::transport::Server::builder().add_service(service.clone());
                if let Err(error) = server.serve_with_incoming(incoming).await {
                    tracing::warn!(%error, "{what} could not be told; trying again");
                }
            }
            Err(error) => {
                tracing::warn!(%error, socket = %socket.display(), "{what} cannot be asked; trying again");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(MODE).create(directory)?;
    }
    files::gone(std::fs::remove_file(socket))?;
    UnixListener::bind(socket)
}

/// How often may be asked: a bucket that fills with the time.
pub struct Limiter(Mutex<Bucket>);

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limiter {
    const PER_SECOND: f64 = 100.0;
    const BURST: f64 = 10.0;

    /// Takes a token if there is one.
    pub fn admit(&self) -> Result<(), Status> {
        let mut bucket = self.0.lock();
        let now = Instant::now();
        let filled = (now - bucket.at).as_secs_f64() * Self::PER_SECOND;
        *bucket = Bucket { tokens: (bucket.tokens + filled).min(Self::BURST), at: now };
        if bucket.tokens < 1.0 {
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self(Mutex::new(Bucket { tokens: Self::BURST, at: Instant::now() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_asks_too_often_waits() {
        let limiter = Limiter::default();
        let admitted = || (0..20).filter(|_| limiter.admit().is_ok()).count();
        assert_eq!(admitted(), 10, "a burst");
        assert_eq!(limiter.admit().unwrap_err().message(), "rejected by rate limit");
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(admitted(), 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(admitted(), 10, "no more than that is saved");
    }

    #[tokio::test]
    async fn the_socket_of_before_makes_way() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("sub/api.sock");
        drop(listen(&socket).unwrap());
        assert!(socket.exists());
        listen(&socket).unwrap();
    }
}
