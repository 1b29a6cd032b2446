//! Questions over real sockets, on loopback.

use std::io::{Read, Write};
use std::net::Ipv4Addr;

use hickory_proto::rr::{Name, RData, rdata};

use super::*;
use crate::Config;

fn server(resolv_conf: &std::path::Path) -> (Server, Arc<RwLock<Index>>) {
    let index = Arc::new(RwLock::new(Index::known()));
    let zone = Zone::new(&Config::default()).unwrap();
    let forwarder = Forwarder::new(resolv_conf.to_owned(), Ipv4Addr::new(10, 43, 0, 10).into());
    (Server::new(zone, index.clone(), forwarder), index)
}

async fn start(resolv_conf: &std::path::Path) -> (SocketAddr, Supervisor, Arc<RwLock<Index>>) {
    let (server, index) = server(resolv_conf);
    let (address, supervisor) = listen(&server).await;
    (address, supervisor, index)
}

async fn listen(server: &Server) -> (SocketAddr, Supervisor) {
    let supervisor = Supervisor::new("test");
    // a port that UDP and TCP can both have
    for port in 20_000..21_000 {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if server.clone().listen(address, &supervisor).await.is_ok() {
            return (address, supervisor);
        }
    }
    panic!("no free port");
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask_udp(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await;
    Message::from_vec(&buffer[..received.unwrap().unwrap()]).unwrap()
}

fn ask_tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = std::net::TcpStream::connect(server).unwrap();
    let bytes = message.to_vec().unwrap();
    stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut buffer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut buffer).unwrap();
    Message::from_vec(&buffer).unwrap()
}

/// A headless Service with so many endpoints that no datagram holds them.
fn many(count: u8) -> (k8s_openapi::api::core::v1::Service, k8s_openapi::api::discovery::v1::EndpointSlice) {
    let service =
        r#"{"metadata":{"name":"many","namespace":"default"},"spec":{"clusterIP":"None","ports":[{"port":80}]}}"#;
    let endpoints: Vec<String> = (0..count)
        .map(|number| format!(r#"{{"addresses":["10.42.3.{number}"],"conditions":{{"ready":true}}}}"#))
        .collect();
    let slice = format!(
        r#"{{"metadata":{{"name":"many-1","namespace":"default","labels":{{"kubernetes.io/service-name":"many"}}}},"addressType":"IPv4","endpoints":[{}],"ports":[]}}"#,
        endpoints.join(",")
    );
    (serde_json::from_str(service).unwrap(), serde_json::from_str(&slice).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_fit_their_way() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _supervisor, index) = start(&directory.path().join("resolv.conf")).await;
    let (service, slice) = many(200);
    index.write().apply_service(&service);
    index.write().apply_slice(&slice);
    let name = "many.default.svc.cluster.local.";
    let plain = ask_udp(server, &query(name, RecordType::A)).await;
    assert!(plain.metadata.truncation && plain.metadata.authoritative);
    assert!(plain.to_vec().unwrap().len() <= 512);
    let mut larger = query(name, RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    larger.set_edns(edns);
    let answer = ask_udp(server, &larger).await;
    assert!(answer.edns.is_some() && answer.to_vec().unwrap().len() <= 1232);
    assert!(answer.answers.len() > plain.answers.len());
    let whole = tokio::task::spawn_blocking(move || ask_tcp(server, &query(name, RecordType::A))).await.unwrap();
    assert_eq!(whole.answers.len(), 200);
    assert!(!whole.metadata.truncation);
}

#[tokio::test]
async fn lists_begin_with_another_address_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _supervisor, index) = start(&directory.path().join("resolv.conf")).await;
    let (service, slice) = many(3);
    index.write().apply_service(&service);
    index.write().apply_slice(&slice);
    let mut first = std::collections::HashSet::new();
    for _ in 0..6 {
        let answer = ask_udp(server, &query("many.default.svc.cluster.local.", RecordType::A)).await;
        first.insert(answer.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 3);
}

#[tokio::test]
async fn negative_answers_carry_the_authority() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _supervisor, _) = start(&directory.path().join("resolv.conf")).await;
    let answer = ask_udp(server, &query("none.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(matches!(&answer.authorities[0].data, RData::SOA(soa) if soa.minimum == 5));
    let apex = ask_udp(server, &query("cluster.local.", RecordType::A)).await;
    assert_eq!(apex.metadata.response_code, ResponseCode::NoError);
    assert!(apex.answers.is_empty() && apex.authorities.len() == 1);
}

#[tokio::test]
async fn without_upstream_servers_outside_names_fail_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _supervisor, _) = start(&directory.path().join("resolv.conf")).await;
    let began = std::time::Instant::now();
    let answer = ask_udp(server, &query("www.example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn an_external_name_that_cannot_be_asked_for_is_no_empty_answer() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _supervisor, index) = start(&directory.path().join("resolv.conf")).await;
    let away = r#"{"metadata":{"name":"away","namespace":"default"},"spec":{"type":"ExternalName","externalName":"www.example.com"}}"#;
    index.write().apply_service(&serde_json::from_str(away).unwrap());
    let answer = ask_udp(server, &query("away.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn resting_connections_keep_nobody_from_asking() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _) = server(&directory.path().join("resolv.conf"));
    let (address, _supervisor) = listen(&server).await;
    let _connections: Vec<_> =
        (0..LIMIT).map(|_| server.inner.connections.clone().try_acquire_owned().unwrap()).collect();
    let answer = ask_udp(address, &query("www.example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "there is nobody to forward it to");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_the_answer_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _) = server(&directory.path().join("resolv.conf"));
    // room for the question, not for its answer
    let (mut client, theirs) = tokio::io::duplex(64);
    let question = query("cluster.local.", RecordType::SOA).to_vec().unwrap();
    client.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
    client.write_all(&question).await.unwrap();
    let outcome = tokio::time::timeout(TCP_IDLE * 6, server.serve_stream(theirs)).await;
    assert!(outcome.expect("the connection is held for ever").is_err());
}

#[tokio::test]
async fn noise_gets_no_answer_and_odd_questions_a_code() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _supervisor, _) = start(&directory.path().join("resolv.conf")).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for noise in [&b""[..], b"x", &[0xff; 600]] {
        socket.send_to(noise, server).await.unwrap();
    }
    let mut update = query("cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Status;
    assert_eq!(ask_udp(server, &update).await.metadata.response_code, ResponseCode::NotImp);
    let mut two = query("cluster.local.", RecordType::A);
    two.add_query(Query::query(Name::root(), RecordType::A));
    assert_eq!(ask_udp(server, &two).await.metadata.response_code, ResponseCode::FormErr);
}

/// An upstream server that counts its questions and answers all with one address.
fn upstream(namespace_address: Ipv4Addr) -> (tokio::task::JoinHandle<()>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let socket = std::net::UdpSocket::bind((namespace_address, 53)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let task = tokio::spawn(async move {
        let socket = UdpSocket::from_std(socket).unwrap();
        let mut buffer = vec![0; 4096];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(request.metadata.id, OpCode::Query);
            answer.queries.clone_from(&request.queries);
            let data = RData::A(rdata::A(Ipv4Addr::new(198, 51, 100, 1)));
            answer.answers.push(Record::from_rdata(request.queries[0].name.clone(), 300, data));
            tokio::time::sleep(Duration::from_millis(50)).await;
            socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    (task, asked)
}

#[test]
fn outside_names_are_asked_once_and_kept() {
    // Port 53 is only free for certain in a namespace of one's own.
    let test = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
        let mut rtnl = netlink::Rtnl::open().unwrap();
        let lo = rtnl.link("lo").unwrap();
        rtnl.set_up(lo.index).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let resolv_conf = directory.path().join("resolv.conf");
            std::fs::write(&resolv_conf, "nameserver 127.0.0.9\n").unwrap();
            let (task, asked) = upstream(Ipv4Addr::new(127, 0, 0, 9));
            let (server, _supervisor, index) = start(&resolv_conf).await;
            let question = query("www.Example.com.", RecordType::A);
            let (one, two) = tokio::join!(ask_udp(server, &question), ask_udp(server, &question));
            assert_eq!(one.answers[0].data.to_string(), "198.51.100.1");
            assert_eq!(two.answers.len(), 1);
            assert_eq!(one.queries, question.queries, "the letters' case comes back");
            ask_udp(server, &query("www.example.com.", RecordType::A)).await;
            assert_eq!(asked.load(Ordering::SeqCst), 1, "asked together and kept");
            // an ExternalName is followed
            let away = r#"{"metadata":{"name":"away","namespace":"default"},"spec":{"type":"ExternalName","externalName":"www.example.com"}}"#;
            index.write().apply_service(&serde_json::from_str(away).unwrap());
            let answer = ask_udp(server, &query("away.default.svc.cluster.local.", RecordType::A)).await;
            let shown: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
            assert_eq!(shown, ["www.example.com.", "198.51.100.1"]);
            task.abort();
        });
    };
    std::thread::spawn(test).join().unwrap();
}
