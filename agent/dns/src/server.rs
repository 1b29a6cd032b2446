//! UDP and TCP: receives, answers from the zone or has it forwarded, fits answers to their askers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use component::Supervisor;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Record, RecordType};
use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;

use crate::Error;
use crate::forward::{Forwarder, failure};
use crate::index::Index;
use crate::zone::{Answer, Zone};

/// Bytes that a UDP answer may have without EDNS.
const PLAIN_UDP: u16 = 512;
/// Bytes that pass every path unfragmented (DNS flag day 2020).
const LARGEST_UDP: u16 = 1232;
/// Forwarded queries under way at once, and as many TCP connections.
const LIMIT: usize = 1000;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Aliases that are followed.
const ALIASES: usize = 8;

#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    zone: Zone,
    index: Arc<RwLock<Index>>,
    forwarder: Forwarder,
    /// Rotates lists of addresses.
    turn: AtomicUsize,
    under_way: Arc<Semaphore>,
    /// Apart from the queries: connections that rest must keep nobody from asking.
    connections: Arc<Semaphore>,
}

/// What could be said at once.
enum Reply {
    Ready(Message),
    /// The request itself is for upstream.
    Forward,
    /// The rest of an alias is.
    Follow {
        answers: Vec<Record>,
        target: hickory_proto::rr::Name,
    },
}

impl Server {
    pub fn new(zone: Zone, index: Arc<RwLock<Index>>, forwarder: Forwarder) -> Self {
        let [under_way, connections] = [(); 2].map(|()| Arc::new(Semaphore::new(LIMIT)));
        let turn = AtomicUsize::new(0);
        Self { inner: Arc::new(Inner { zone, index, forwarder, turn, under_way, connections }) }
    }

    pub async fn listen(self, address: SocketAddr, supervisor: &Supervisor) -> Result<(), Error> {
        let failed = |source| Error::Bind { address, source };
        let udp = Arc::new(UdpSocket::bind(address).await.map_err(failed)?);
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        supervisor.spawn("udp", self.clone().serve_udp(udp));
        supervisor.spawn("tcp", self.serve_tcp(tcp));
        Ok(())
    }

    async fn serve_udp(self, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        loop {
            let Ok((length, asker)) = socket.recv_from(&mut buffer).await else { continue };
            let Some(request) = parse(&buffer[..length]) else { continue };
            let limit = udp_limit(&request);
            match self.answer_now(&request) {
                Reply::Ready(answer) => send_udp(&socket, asker, &request, answer, limit).await,
                later => {
                    // Beyond the limit a query is lost, as on a busy network: its asker asks again.
                    let Ok(permit) = self.inner.under_way.clone().try_acquire_owned() else { continue };
                    let (server, socket) = (self.clone(), socket.clone());
                    // Ends by itself: every attempt upstream has its time.
                    tokio::spawn(async move {
                        let answer = server.answer_later(&request, later).await;
                        send_udp(&socket, asker, &request, answer, limit).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn serve_tcp(self, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(permit) = self.inner.connections.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            // Ends by itself: a connection on which nothing is asked or read is closed.
            tokio::spawn(async move {
                let _ = server.serve_stream(stream).await;
                drop(permit);
            });
        }
    }

    async fn serve_stream(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        loop {
            let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
            let mut buffer = vec![0; length.into()];
            tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut buffer)).await??;
            let Some(request) = parse(&buffer) else { return Ok(()) };
            let answer = match self.answer_now(&request) {
                Reply::Ready(answer) => answer,
                later => self.answer_later(&request, later).await,
            };
            let bytes = encode(&request, answer, u16::MAX);
            let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
            let answer = [&length.to_be_bytes(), bytes.as_slice()].concat();
            tokio::time::timeout(TCP_IDLE, stream.write_all(&answer)).await??;
        }
    }

    /// From memory alone.
    fn answer_now(&self, request: &Message) -> Reply {
        let query = match question(request) {
            Ok(query) => query,
            Err(code) => return Reply::Ready(failure(request, code)),
        };
        let mut answers = Vec::new();
        let mut name = query.name.clone();
        let index = self.inner.index.read();
        for _ in 0..ALIASES {
            match self.inner.zone.answer(&index, &name, query.query_type) {
                Answer::Forward if answers.is_empty() => return Reply::Forward,
                Answer::Forward => return Reply::Follow { answers, target: name },
                Answer::NotYet => return Reply::Ready(failure(request, ResponseCode::ServFail)),
                Answer::Missing => return Reply::Ready(self.authoritative(request, answers, Vec::new(), true)),
                Answer::Found { answers: mut found, additionals } => {
                    self.rotate(&mut found);
                    answers.extend(found);
                    return Reply::Ready(self.authoritative(request, answers, additionals, false));
                }
                Answer::Alias { alias, target } => {
                    answers.push(*alias);
                    name = target;
                }
            }
        }
        // A ring of aliases.
        Reply::Ready(failure(request, ResponseCode::ServFail))
    }

    async fn answer_later(&self, request: &Message, reply: Reply) -> Message {
        match reply {
            Reply::Ready(message) => message,
            Reply::Forward => self.inner.forwarder.ask(request).await,
            Reply::Follow { mut answers, target } => {
                let kind = request.queries.first().map_or(RecordType::A, |query| query.query_type);
                let mut onward = request.clone();
                onward.queries = vec![Query::query(target, kind)];
                let rest = self.inner.forwarder.ask(&onward).await;
                answers.extend(rest.answers);
                let mut message = self.authoritative(request, answers, Vec::new(), false);
                // The alias is ours, what lies behind it is not: whether that is there, or could be asked for, is
                // for upstream to say.
                message.metadata.response_code = rest.metadata.response_code;
                message
            }
        }
    }

    fn authoritative(
        &self,
        request: &Message,
        answers: Vec<Record>,
        additionals: Vec<Record>,
        missing: bool,
    ) -> Message {
        let mut message = Message::response(request.metadata.id, request.metadata.op_code);
        message.metadata.authoritative = true;
        message.metadata.recursion_desired = request.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.queries.clone_from(&request.queries);
        if missing {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        if missing || answers.is_empty() {
            message.authorities.push(self.inner.zone.soa());
        }
        message.answers = answers;
        message.additionals = additionals;
        message
    }

    /// Another first address each time: clients take the first.
    fn rotate(&self, records: &mut [Record]) {
        if records.len() > 1 {
            let turn = self.inner.turn.fetch_add(1, Ordering::Relaxed);
            records.rotate_left(turn % records.len());
        }
    }
}

/// A query; answers and noise are not answered.
fn parse(bytes: &[u8]) -> Option<Message> {
    Message::from_vec(bytes).ok().filter(|message| message.metadata.message_type == MessageType::Query)
}

fn question(request: &Message) -> Result<&Query, ResponseCode> {
    if request.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Err(ResponseCode::BADVERS);
    }
    match request.queries.as_slice() {
        [query] if query.query_class == DNSClass::IN => Ok(query),
        [_] => Err(ResponseCode::Refused),
        _ => Err(ResponseCode::FormErr),
    }
}

fn udp_limit(request: &Message) -> u16 {
    request.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, LARGEST_UDP))
}

async fn send_udp(socket: &UdpSocket, asker: SocketAddr, request: &Message, answer: Message, limit: u16) {
    // An asker that is gone is nobody's error.
    let _ = socket.send_to(&encode(request, answer, limit), asker).await;
}

/// The message's bytes; what does not fit is left out, extra records first, and the asker told to
/// come by TCP when answers are missing.
fn encode(request: &Message, mut answer: Message, limit: u16) -> Vec<u8> {
    answer.edns = request.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST_UDP).set_dnssec_ok(asked.flags().dnssec_ok);
        edns
    });
    let fits = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(limit));
    if let Some(bytes) = fits(&answer) {
        return bytes;
    }
    answer.additionals.clear();
    if let Some(bytes) = fits(&answer) {
        return bytes;
    }
    answer.metadata.truncation = true;
    answer.authorities.clear();
    while !answer.answers.is_empty() {
        let keep = answer.answers.len() / 2;
        answer.answers.truncate(keep);
        if let Some(bytes) = fits(&answer) {
            return bytes;
        }
    }
    answer.to_vec().unwrap_or_default()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
