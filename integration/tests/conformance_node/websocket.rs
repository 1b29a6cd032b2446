//! `kubectl proxy`, and a WebSocket client just large enough for the API's streams.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use integration::{Lab, Running};
use serde_json::Value;

/// The API by plain HTTP, with the rights of the lab's administrator.
pub struct Proxy {
    pub port: u16,
    connection: TcpStream,
    _kubectl: Running,
}

impl Proxy {
    pub fn start(lab: &Lab) -> Self {
        let mut kubectl = lab.spawn_kubectl(&["proxy", "--port=0", "--reject-paths=^$"]);
        let line = kubectl.line_with("Starting to serve on 127.0.0.1:");
        let port = line.rsplit(':').next().unwrap().trim().parse().unwrap();
        Self { port, connection: connect(port), _kubectl: kubectl }
    }

    /// A strategic merge patch that must succeed; all on one connection.
    pub fn patch(&mut self, path: &str, patch: &Value) {
        let body = patch.to_string();
        let head = format!(
            "PATCH {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/strategic-merge-patch+json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.connection.write_all((head + &body).as_bytes()).unwrap();
        let head = read_head(&mut self.connection);
        assert!(head.starts_with("HTTP/1.1 200"), "PATCH {path} {body}: {head}");
        let head = head.to_ascii_lowercase();
        let header =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        match header("content-length:") {
            Some(length) => {
                self.connection.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
            }
            None => loop {
                let length = usize::from_str_radix(read_until(&mut self.connection, b"\r\n").trim(), 16).unwrap();
                self.connection.read_exact(&mut vec![0; length + 2]).unwrap();
                if length == 0 {
                    break;
                }
            },
        }
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn read_until(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(end) {
        stream.read_exact(&mut byte).unwrap();
        read.push(byte[0]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

fn read_head(stream: &mut TcpStream) -> String {
    read_until(stream, b"\r\n\r\n")
}

pub struct WebSocket {
    stream: TcpStream,
}

impl WebSocket {
    #[track_caller]
    pub fn open(port: u16, path: &str, protocol: &str) -> Self {
        let mut stream = connect(port);
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: {protocol}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101"), "GET {path} as {protocol}: {head}");
        let accepted = head.to_ascii_lowercase().contains(&format!("sec-websocket-protocol: {protocol}"));
        assert!(accepted, "GET {path} as {protocol}: {head}");
        Self { stream }
    }

    /// The next message's bytes; none when the server closes.
    fn message(&mut self) -> Option<Vec<u8>> {
        let mut message = Vec::new();
        loop {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head).ok()?;
            let length = match head[1] & 0x7f {
                126 => {
                    let mut more = [0; 2];
                    self.stream.read_exact(&mut more).ok()?;
                    usize::from(u16::from_be_bytes(more))
                }
                127 => {
                    let mut more = [0; 8];
                    self.stream.read_exact(&mut more).ok()?;
                    usize::try_from(u64::from_be_bytes(more)).unwrap()
                }
                short => usize::from(short),
            };
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).ok()?;
            match head[0] & 0x0f {
                0x8 => return None,
                // pings need no answer in a stream this short
                0x9 | 0xa => continue,
                _ => message.extend(payload),
            }
            if head[0] & 0x80 != 0 {
                return Some(message);
            }
        }
    }

    /// Everything until the end, by channel.
    pub fn channels(&mut self, base64: bool) -> BTreeMap<u8, Vec<u8>> {
        let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        while let Some(message) = self.message() {
            let Some((channel, bytes)) = message.split_first() else { continue };
            let (channel, bytes) = match base64 {
                true => (channel - b'0', decode(bytes)),
                false => (*channel, bytes.to_vec()),
            };
            channels.entry(channel).or_default().extend(bytes);
        }
        channels
    }

    /// Everything until the end, or until nothing came for `patience`.
    pub fn all(&mut self, patience: Duration) -> Vec<u8> {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        std::iter::from_fn(|| self.message()).flatten().collect()
    }
}

fn decode(text: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = text.iter().filter_map(|letter| LETTERS.iter().position(|known| known == letter));
    let mut bytes = Vec::new();
    while let (Some(one), Some(two)) = (bits.next(), bits.next()) {
        bytes.push((one << 2 | two >> 4) as u8);
        let Some(three) = bits.next() else { break };
        bytes.push((two << 4 | three >> 2) as u8);
        let Some(four) = bits.next() else { break };
        bytes.push((three << 6 | four) as u8);
    }
    bytes
}
