//! The server's edges: what lies in its store, who it passes requests on to, how it ends.
#![allow(clippy::unwrap_used)]

mod admission;
mod aggregation;
mod connections;
mod encryption;
mod extension;
mod hook;
mod lifecycle;
mod policies;
mod requestheader;
mod versions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apiserver::KeyPair;
use http::Request;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Status code and body of one request.
async fn ask(client: &kube::Client, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response =
        client.send(request.body(kube::client::Body::from(body.as_bytes().to_vec())).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))))
}

/// Asks again until `wanted` of the answer holds.
async fn eventually(client: &kube::Client, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..600 {
        let (code, answer) = ask(client, "GET", path, "").await;
        if wanted(code, &answer) {
            return answer;
        }
        last = answer;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} never became what was wanted; at last {last:#}");
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

/// An HTTP/1.1 connection over TLS to a server that `ca` signed, showing `identity`.
async fn connect(ca: &str, identity: Option<&KeyPair>, address: SocketAddr) -> std::io::Result<Stream> {
    connect_for(&[], ca, identity, address).await
}

/// The same, for one of these protocols (ALPN).
async fn connect_for(
    protocols: &[&[u8]],
    ca: &str,
    identity: Option<&KeyPair>,
    address: SocketAddr,
) -> std::io::Result<Stream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = match identity {
        Some(pair) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&pair.certificate).unwrap()],
                PrivateKeyDer::from_pem_file(&pair.key).unwrap(),
            )
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
}

/// Sends one request, the last of its connection, and reads the whole answer.
async fn exchange(mut stream: Stream, request: &str) -> std::io::Result<String> {
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let head = head.replace('\n', "\r\n");
    let text = format!("{head}\r\nhost: localhost\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
