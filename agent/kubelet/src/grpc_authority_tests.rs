use std::convert::Infallible;
use std::future::{Ready, ready};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::*;

/// Answers everything with nothing.
#[derive(Clone)]
struct Anything;

impl NamedService for Anything {
    const NAME: &'static str = "x";
}

impl Service<http::Request<Body>> for Anything {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        ready(Ok(http::Response::new(Body::empty())))
    }
}

fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream][..], content].concat()
}

/// A literal field with an entry of the static table for its name.
fn field(entry: u8, packed: bool, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap() | if packed { 0x80 } else { 0 };
    [&[0x40 | entry, length][..], value].concat()
}

/// POST http, a path, the authority, and what a gRPC request has besides.
fn fields(authority: &[u8]) -> Vec<u8> {
    let te = b"\x40\x02te\x08trailers";
    [&[0x83, 0x86][..], &field(4, false, b"/x/Call"), authority, &field(31, false, b"application/grpc"), te].concat()
}

fn request(frames: &[Vec<u8>]) -> Vec<u8> {
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
    [begin, frames.concat()].concat()
}

/// The kind of the first frame that answers the request.
async fn answered(bytes: &[u8], piece: usize) -> u8 {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let path = socket.clone();
    let server = tokio::spawn(async move { crate::unix_server::serve(&path, "nothing", Anything).await });
    let mut stream = loop {
        match UnixStream::connect(&socket).await {
            Ok(stream) => break stream,
            // It is about to be made.
            Err(_) => tokio::task::yield_now().await,
        }
    };
    for piece in bytes.chunks(piece) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let kind = loop {
        let mut head = [0; HEAD];
        stream.read_exact(&mut head).await.unwrap();
        let mut content = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        stream.read_exact(&mut content).await.unwrap();
        if head[8] == 1 {
            break head[3];
        }
    };
    server.abort();
    kind
}

#[tokio::test]
async fn who_calls_the_server_by_its_sockets_path_is_answered() {
    const END: u8 = 0x1 | 0x4;
    let path = b"/var/lib/kubelet/device-plugins/kubelet.sock";
    let plain = fields(&field(AUTHORITY, false, path));
    let escaped = fields(&field(AUTHORITY, false, b"%2Fvar%2Flib%2Fkubelet.sock"));
    // `/a/a`, packed: `/` is 011000.
    let packed = fields(&field(AUTHORITY, true, &[0b0110_0000, 0b0110_1100, 0b0000_1111]));
    let (first, rest) = plain.split_at(plain.len() / 2);
    let padded = [&[3, 0, 0, 0, 0, 16][..], &plain, &[0, 0, 0]].concat();
    let cases = [
        ("plain", vec![frame(HEADERS, END, 1, &plain)]),
        ("percent signs", vec![frame(HEADERS, END, 1, &escaped)]),
        ("packed", vec![frame(HEADERS, END, 1, &packed)]),
        ("in two frames", vec![frame(HEADERS, 0x1, 1, first), frame(CONTINUATION, 0x4, 1, rest)]),
        ("padded, with a priority", vec![frame(HEADERS, END | PADDED | PRIORITY, 1, &padded)]),
    ];
    for (what, frames) in cases {
        for piece in [1, 7, usize::MAX] {
            assert_eq!(answered(&request(&frames), piece).await, HEADERS, "{what} in pieces of {piece}");
        }
    }
}

#[test]
fn everything_else_stays() {
    let mut fields = Fields::default();
    let block = [
        &[0x3f, 0xe1, 0x1f, 0xff, 0x80, 0x01][..],
        &field(AUTHORITY, false, b"/s"),
        &[0x7f, 0x01, 0x02, b'/', b'v', 0x00, 0x01, b'/', 0x00, 0x11, 0x02, b'/', b'n'],
    ]
    .concat();
    let passed: Vec<u8> = block.iter().map(|byte| fields.step(*byte)).collect();
    let mut wanted = block.clone();
    wanted[8..10].copy_from_slice(b"aa");
    let at = wanted.len();
    wanted[at - 2..].copy_from_slice(b"aa");
    assert_eq!(passed, wanted);
    for (length, packed) in [(1, &[0x1f][..]), (2, &[0x18, 0xc7][..]), (5, &[0x18, 0xc6, 0x31, 0x8c, 0x63][..])] {
        let letters: Vec<u8> = (0..length).map(|at| letter(true, length, at)).collect();
        assert_eq!(letters, packed);
    }
}
