//! Names outside the cluster: upstream servers, a cache, and one query for many askers.
//!
//! Answers are passed on as they came but for the id and the remaining time. Equal questions that
//! come while one is under way wait for it: a loop through this server ends after one round.
//!
//! Servers are asked in resolv.conf's order, but those that do not answer ([`Failing`]) after the others.
//! Whether one answers again is tried beside a question that another server answers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{RData, Record};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long one server may take before the next is asked.
const ATTEMPT: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 2;
/// A server that failed so often in a row is asked last (`max_fails` of CoreDNS' forward).
const MOST_FAILURES: u32 = 2;
/// ... and tried again this often, while there are questions.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Seconds, whatever an answer says.
const LONGEST_POSITIVE: u32 = 30;
const LONGEST_NEGATIVE: u32 = 5;
const CACHE_SIZE: usize = 10_000;
/// resolv.conf is looked at again this often.
const REREAD: Duration = Duration::from_secs(5);
/// systemd's stub listens on loopback, which is another host inside a network namespace; this file
/// names the servers behind it.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
const DNS_PORT: u16 = 53;
/// Bytes that an answer by UDP may have, whatever its asker has room for.
const LARGEST_ANSWER: u16 = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    query: Query,
    dnssec: bool,
    checking_disabled: bool,
}

struct Cached {
    answer: Message,
    at: Instant,
    ttl: u32,
}

/// None when no server answered.
type Outcome = Option<Arc<Message>>;

#[derive(Clone)]
pub struct Forwarder {
    shared: Arc<Shared>,
}

struct Shared {
    resolv_conf: PathBuf,
    behind_stub: PathBuf,
    own: IpAddr,
    upstream: Mutex<Upstream>,
    failing: Mutex<Failing>,
    cache: Mutex<HashMap<Key, Cached>>,
    under_way: Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>,
}

struct Upstream {
    servers: Vec<SocketAddr>,
    looked: Option<Instant>,
    /// Of resolv.conf and of the file behind a stub, when they were last read.
    modified: Option<[Option<SystemTime>; 2]>,
}

impl Forwarder {
    /// `own` is this server's address, which is never asked.
    pub fn new(resolv_conf: PathBuf, own: IpAddr) -> Self {
        Self::with_stub(resolv_conf, BEHIND_STUB.into(), own)
    }

    fn with_stub(resolv_conf: PathBuf, behind_stub: PathBuf, own: IpAddr) -> Self {
        let upstream = Mutex::new(Upstream { servers: Vec::new(), looked: None, modified: None });
        let (failing, cache, under_way) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { resolv_conf, behind_stub, own, upstream, failing, cache, under_way }) }
    }

    /// The answer to `request`, which has exactly one question. SERVFAIL when there is none to be had.
    pub async fn ask(&self, request: &Message) -> Message {
        let Some(query) = request.queries.first() else {
            return failure(request, ResponseCode::FormErr);
        };
        let key = key_of(request, query);
        let outcome = match self.cached(&key) {
            Some(answer) => Some(Arc::new(answer)),
            None => self.ask_once(key, request).await,
        };
        match outcome {
            Some(answer) => for_asker(&answer, request),
            None => failure(request, ResponseCode::ServFail),
        }
    }

    fn cached(&self, key: &Key) -> Option<Message> {
        let mut cache = self.shared.cache.lock();
        let cached = cache.get(key)?;
        let age = u32::try_from(cached.at.elapsed().as_secs()).unwrap_or(u32::MAX);
        if age >= cached.ttl {
            cache.remove(key);
            return None;
        }
        let mut answer = cached.answer.clone();
        for section in [&mut answer.answers, &mut answer.authorities, &mut answer.additionals] {
            for record in section {
                record.ttl = record.ttl.saturating_sub(age);
            }
        }
        Some(answer)
    }

    async fn ask_once(&self, key: Key, request: &Message) -> Outcome {
        let (sender, first) = {
            let mut under_way = self.shared.under_way.lock();
            match under_way.get(&key) {
                Some(other) => (None, other.clone()),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    under_way.insert(key.clone(), receiver.clone());
                    (Some(sender), receiver)
                }
            }
        };
        let Some(sender) = sender else {
            let mut first = first;
            return match first.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().flatten(),
                // The asker that was first has gone away.
                Err(_) => None,
            };
        };
        // Removes the entry also when this future is dropped in the middle.
        let _guard = UnderWay { shared: &self.shared, key: &key };
        let outcome = self.ask_upstream(request).await.map(Arc::new);
        if let Some(answer) = &outcome {
            self.remember(&key, answer);
        }
        sender.send_replace(Some(outcome.clone()));
        outcome
    }

    fn remember(&self, key: &Key, answer: &Message) {
        let ttl = time_to_keep(answer);
        if ttl == 0 || answer.metadata.truncation {
            return;
        }
        let mut cache = self.shared.cache.lock();
        if cache.len() >= CACHE_SIZE {
            cache.retain(|_, cached| cached.at.elapsed() < Duration::from_secs(cached.ttl.into()));
            if cache.len() >= CACHE_SIZE {
                cache.clear();
            }
        }
        cache.insert(key.clone(), Cached { answer: answer.clone(), at: Instant::now(), ttl });
    }

    async fn ask_upstream(&self, request: &Message) -> Option<Message> {
        let servers = self.servers();
        let (servers, again) = self.shared.failing.lock().order(servers, Instant::now());
        for server in again {
            // It keeps nobody waiting, and ends by itself.
            let (forwarder, request) = (self.clone(), request.clone());
            tokio::spawn(async move { forwarder.attempt(server, &request).await });
        }
        for _ in 0..ROUNDS {
            for server in &servers {
                match self.attempt(*server, request).await {
                    Some(answer) if answer.metadata.response_code != ResponseCode::ServFail => return Some(answer),
                    Some(_) => tracing::debug!(%server, "upstream DNS server failed"),
                    None => {}
                }
            }
        }
        None
    }

    /// Asks one server once, and remembers whether it answered: any answer will do.
    async fn attempt(&self, server: SocketAddr, request: &Message) -> Option<Message> {
        let answer = match timeout(ATTEMPT, ask_server(server, request)).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(%server, %error, "upstream DNS server cannot be asked");
                None
            }
            Err(_) => {
                tracing::debug!(%server, "upstream DNS server did not answer");
                None
            }
        };
        let mut failing = self.shared.failing.lock();
        match &answer {
            Some(_) => failing.answered(server),
            None => failing.failed(server, Instant::now()),
        }
        answer
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut upstream = self.shared.upstream.lock();
        if upstream.looked.is_none_or(|looked| looked.elapsed() >= REREAD) {
            upstream.looked = Some(Instant::now());
            // Behind a stub the servers change and resolv.conf does not.
            let modified = [&self.shared.resolv_conf, &self.shared.behind_stub]
                .map(|path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
            if upstream.modified != Some(modified) {
                upstream.modified = Some(modified);
                upstream.servers = self.read_servers();
            }
        }
        upstream.servers.clone()
    }

    fn read_servers(&self) -> Vec<SocketAddr> {
        let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
        let servers = name_servers(&read(&self.shared.resolv_conf), self.shared.own);
        let stub = !servers.is_empty() && servers.iter().all(|server| server.ip().is_loopback());
        if stub {
            let behind = name_servers(&read(&self.shared.behind_stub), self.shared.own);
            if !behind.is_empty() {
                return behind;
            }
        }
        servers
    }
}

/// The servers that did not answer when they were last asked: how often in a row, and when they were last
/// tried.
#[derive(Default)]
struct Failing {
    servers: HashMap<SocketAddr, (u32, Instant)>,
}

impl Failing {
    fn failed(&mut self, server: SocketAddr, now: Instant) {
        let (failures, tried) = self.servers.entry(server).or_insert((0, now));
        (*failures, *tried) = (failures.saturating_add(1), now);
    }

    fn answered(&mut self, server: SocketAddr) {
        self.servers.remove(&server);
    }

    fn is_down(&self, server: &SocketAddr) -> bool {
        self.servers.get(server).is_some_and(|(failures, _)| *failures >= MOST_FAILURES)
    }

    /// The order to ask in, and those to try besides. When all are down, all are asked as if none were.
    fn order(&mut self, mut servers: Vec<SocketAddr>, now: Instant) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        self.servers.retain(|server, _| servers.contains(server));
        servers.sort_by_key(|server| self.is_down(server));
        let mut again = Vec::new();
        if servers.first().is_some_and(|first| !self.is_down(first)) {
            for (server, (failures, tried)) in &mut self.servers {
                if *failures >= MOST_FAILURES && now.duration_since(*tried) >= TRY_AGAIN {
                    *tried = now;
                    again.push(*server);
                }
            }
        }
        (servers, again)
    }
}

struct UnderWay<'a> {
    shared: &'a Shared,
    key: &'a Key,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.shared.under_way.lock().remove(self.key);
    }
}

fn key_of(request: &Message, query: &Query) -> Key {
    let mut query = query.clone();
    query.name = query.name.to_lowercase();
    Key {
        query,
        dnssec: request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        checking_disabled: request.metadata.checking_disabled,
    }
}

/// The `nameserver` lines of a resolv.conf, without this server itself.
fn name_servers(text: &str, own: IpAddr) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
            // `fe80::1%eth0`: a scope is of no use outside the host's own namespace
            address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, DNS_PORT))
        })
        .filter(|server| server.ip() != own && !server.ip().is_unspecified())
        .collect()
}

/// Seconds, from the answer's records.
fn time_to_keep(answer: &Message) -> u32 {
    let smallest = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    match answer.metadata.response_code {
        ResponseCode::NoError if !answer.answers.is_empty() => {
            smallest(&answer.answers).unwrap_or(0).min(LONGEST_POSITIVE)
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = answer.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                _ => None,
            });
            soa.unwrap_or(0).min(LONGEST_NEGATIVE)
        }
        _ => 0,
    }
}

/// The shared answer with this asker's id and question, letters' case included.
fn for_asker(answer: &Message, request: &Message) -> Message {
    let mut message = answer.clone();
    message.metadata.id = request.metadata.id;
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.queries.clone_from(&request.queries);
    if request.edns.is_none() {
        message.edns = None;
    }
    message
}

pub fn failure(request: &Message, code: ResponseCode) -> Message {
    let mut message = Message::error_msg(request.metadata.id, request.metadata.op_code, code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.queries.clone_from(&request.queries);
    message
}

/// By UDP; by TCP when the answer does not fit.
async fn ask_server(server: SocketAddr, request: &Message) -> std::io::Result<Message> {
    let mut query = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.metadata.checking_disabled = request.metadata.checking_disabled;
    query.queries.clone_from(&request.queries);
    query.edns.clone_from(&request.edns);
    if let Some(edns) = &mut query.edns {
        edns.set_max_payload(edns.max_payload().min(LARGEST_ANSWER));
    }
    let bytes = query.to_vec().map_err(std::io::Error::other)?;
    let answer = by_udp(server, &bytes, &query).await?;
    if answer.metadata.truncation { by_tcp(server, &bytes, &query).await } else { Ok(answer) }
}

async fn by_udp(server: SocketAddr, bytes: &[u8], query: &Message) -> std::io::Result<Message> {
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; LARGEST_ANSWER.into()];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else on this port is a stray or a forgery: the real answer may still come.
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && is_answer(&answer, query)
        {
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, bytes: &[u8], query: &Message) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(std::io::Error::other)?;
    if is_answer(&answer, query) { Ok(answer) } else { Err(std::io::Error::other("an answer to another question")) }
}

fn is_answer(answer: &Message, query: &Message) -> bool {
    answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == query.queries
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Edns;
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    #[test]
    fn servers_are_read_without_ourselves() {
        let text = "# a comment\nnameserver 192.0.2.1\nnameserver 10.43.0.10\n nameserver ::1\noptions ndots:5\nnameserver bad\n";
        let servers = name_servers(text, "10.43.0.10".parse().unwrap());
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[::1]:53"]);
    }

    #[test]
    fn servers_behind_a_stub_are_followed_when_they_change() {
        let directory = tempfile::tempdir().unwrap();
        let (resolv_conf, behind) = (directory.path().join("resolv.conf"), directory.path().join("behind"));
        std::fs::write(&resolv_conf, "nameserver 127.0.0.53\n").unwrap();
        std::fs::write(&behind, "nameserver 192.0.2.1\n").unwrap();
        let forwarder = Forwarder::with_stub(resolv_conf, behind.clone(), "10.43.0.10".parse().unwrap());
        assert_eq!(forwarder.servers(), [SocketAddr::from(([192, 0, 2, 1], 53))]);
        std::fs::write(&behind, "nameserver 192.0.2.2\n").unwrap();
        let written = std::fs::File::options().write(true).open(&behind).unwrap();
        // Both writes may be in one tick of the file system's clock.
        written.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
        forwarder.shared.upstream.lock().looked = None;
        assert_eq!(forwarder.servers(), [SocketAddr::from(([192, 0, 2, 2], 53))]);
    }

    #[test]
    fn servers_that_do_not_answer_are_asked_last_until_they_do() {
        let servers = [1u8, 2, 3].map(|last| SocketAddr::from(([192, 0, 2, last], 53)));
        let [first, second, third] = servers;
        let (mut failing, start) = (Failing::default(), Instant::now());
        failing.failed(first, start);
        assert_eq!(failing.order(servers.to_vec(), start), (servers.to_vec(), vec![]), "once is nothing");
        failing.failed(first, start);
        assert_eq!(failing.order(servers.to_vec(), start), (vec![second, third, first], vec![]));
        let later = start + TRY_AGAIN;
        assert_eq!(failing.order(servers.to_vec(), later), (vec![second, third, first], vec![first]));
        assert!(failing.order(servers.to_vec(), later).1.is_empty(), "one question tries it for all");
        failing.answered(first);
        assert_eq!(failing.order(servers.to_vec(), later), (servers.to_vec(), vec![]));
        for server in [first, second, third, first, second, third] {
            failing.failed(server, start);
        }
        assert_eq!(failing.order(servers.to_vec(), later), (servers.to_vec(), vec![]), "all are asked anyway");
        failing.order(vec![first], later);
        assert_eq!(failing.servers.len(), 1, "what resolv.conf names no more is forgotten");
    }

    fn question(name: &str) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message
    }

    /// Says for every name that it does not exist.
    async fn deny(socket: UdpSocket) {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = failure(&Message::from_vec(&buffer[..length]).unwrap(), ResponseCode::NXDomain);
            socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn no_server_is_promised_more_room_than_there_is() {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = upstream.local_addr().unwrap();
        let mut request = question("large.example.");
        let mut edns = Edns::new();
        edns.set_max_payload(65_494);
        request.edns = Some(edns);
        let asking = tokio::spawn(async move { ask_server(server, &request).await });
        let mut buffer = vec![0; 4096];
        let (length, peer) = upstream.recv_from(&mut buffer).await.unwrap();
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(asked.edns.as_ref().map(Edns::max_payload), Some(LARGEST_ANSWER));
        upstream.send_to(&failure(&asked, ResponseCode::NXDomain).to_vec().unwrap(), peer).await.unwrap();
        assert_eq!(asking.await.unwrap().unwrap().metadata.response_code, ResponseCode::NXDomain);
    }

    #[tokio::test]
    async fn a_dead_server_does_not_slow_every_name() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let live = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = vec![silent.local_addr().unwrap(), live.local_addr().unwrap()];
        let live = tokio::spawn(deny(live));
        let forwarder =
            Forwarder::with_stub("/nonexistent".into(), "/nonexistent".into(), "10.43.0.10".parse().unwrap());
        // As read from files that are not there, and so do not change.
        *forwarder.shared.upstream.lock() =
            Upstream { servers, looked: Some(Instant::now()), modified: Some([None, None]) };
        let (one, two) = (question("one.example."), question("two.example."));
        tokio::join!(forwarder.ask(&one), forwarder.ask(&two));
        let began = Instant::now();
        let third = forwarder.ask(&question("three.example.")).await;
        assert_eq!(third.metadata.response_code, ResponseCode::NXDomain);
        assert!(began.elapsed() < ATTEMPT, "{:?}", began.elapsed());

        // It comes back, and is the first again.
        let silent = tokio::spawn(deny(silent));
        let deadline = Instant::now() + Duration::from_secs(10);
        for number in 0.. {
            forwarder.ask(&question(&format!("again-{number}.example."))).await;
            if forwarder.shared.failing.lock().servers.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "it answers and is not asked");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        live.abort();
        silent.abort();
    }
}
