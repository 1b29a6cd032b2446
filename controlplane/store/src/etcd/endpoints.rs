//! Talking to an etcd cluster: one lazy connection per member, and which one to use.
//!
//! A call goes to the member that answered last; when it cannot be reached the next one is tried.
//! A write is only repeated when it was certainly not sent.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};

use crate::StoreError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that may wait on a connection, of all streams together. Each stream has a bound of its own; what one
/// of them leaves unread must not keep the others, and the calls between them, from going on.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// How often a call goes round the members, and the pause after a round.
const ROUNDS: usize = 4;
const PAUSE: Duration = Duration::from_millis(150);

/// Certificates for `https` endpoints, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signed the members' certificates.
    pub ca: Vec<u8>,
    /// What this client shows: certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

pub struct Endpoints {
    channels: Vec<Channel>,
    current: AtomicUsize,
    names: String,
}

/// Whether a call may be sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    Freely,
    /// Only if it cannot have arrived.
    IfUnsent,
}

impl Endpoints {
    /// `urls` as in `https://10.0.0.1:2379`. Connects with the first call.
    pub fn new(urls: &[String], tls: Option<&EtcdTls>) -> Result<Self, StoreError> {
        let names = urls.join(",");
        let invalid =
            |detail: String| StoreError::Unavailable { doing: "connecting", endpoints: names.clone(), detail };
        if urls.is_empty() {
            return Err(invalid("no endpoint is given".to_owned()));
        }
        let channel = |url: &String| -> Result<Channel, StoreError> {
            let mut endpoint = Endpoint::from_shared(url.clone())
                .map_err(|error| invalid(format!("{url:?} is not a URL like https://host:2379: {error}")))?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .initial_connection_window_size(CONNECTION_WINDOW);
            if let Some(tls) = tls.filter(|_| url.starts_with("https:")) {
                endpoint = endpoint.tls_config(config(tls)).map_err(|error| invalid(error.to_string()))?;
            }
            Ok(endpoint.connect_lazy())
        };
        let channels = urls.iter().map(channel).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { channels, current: AtomicUsize::new(0), names })
    }

    /// The members, as they were given.
    pub fn names(&self) -> &str {
        &self.names
    }

    /// The member to use now, e.g. for a stream.
    pub fn channel(&self) -> Channel {
        self.channels[self.current.load(Ordering::Relaxed) % self.channels.len()].clone()
    }

    /// Turns to the next member: this one does not answer.
    pub fn rotate(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls a member, or another if that cannot be reached.
    pub async fn call<T, F>(
        &self,
        doing: &'static str,
        repeat: Repeat,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last = Status::unavailable("not tried");
        for attempt in 1..=ROUNDS * self.channels.len() {
            let answer = tokio::time::timeout(CALL_TIMEOUT, call(self.channel())).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in 10 s"))) {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if may_repeat(&status, repeat) => last = status,
                Err(status) => return Err(self.error(doing, &status)),
            }
            self.rotate();
            if attempt % self.channels.len() == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Err(self.error(doing, &last))
    }

    pub fn error(&self, doing: &'static str, status: &Status) -> StoreError {
        StoreError::Unavailable { doing, endpoints: self.names.clone(), detail: status.message().to_owned() }
    }
}

fn config(tls: &EtcdTls) -> ClientTlsConfig {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
    match &tls.identity {
        Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
        None => config,
    }
}

fn may_repeat(status: &Status, repeat: Repeat) -> bool {
    match repeat {
        Repeat::Freely => matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) || is_broken(status),
        Repeat::IfUnsent => status.code() == Code::Unavailable && is_connect_error(status),
    }
}

/// Whether the connection broke under the call: what a member answers itself has no source.
fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Whether the connection was never there.
fn is_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    status.message().contains("tcp connect error")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member that ends takes its connections along, and the answers to what is under way on them.
    #[test]
    fn a_read_whose_connection_broke_is_repeated() {
        let broken = Status::from_error(Box::new(std::io::Error::other("connection reset by peer")));
        assert_eq!(broken.code(), Code::Unknown);
        for (status, freely) in [
            (broken, true),
            (Status::unavailable("etcdserver: leader changed"), true),
            (Status::unknown("etcdserver: user name is empty"), false),
            (Status::resource_exhausted("etcdserver: mvcc: database space exceeded"), false),
        ] {
            assert_eq!(may_repeat(&status, Repeat::Freely), freely, "{status}");
            assert!(!may_repeat(&status, Repeat::IfUnsent), "it may have been written: {status}");
        }
    }
}
