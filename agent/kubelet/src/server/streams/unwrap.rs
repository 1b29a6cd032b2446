//! A WebSocket client whose messages are the bytes of a SPDY connection
//! (`SPDY/3.1+portforward.k8s.io`, kubectl 1.31 and newer), joined to the runtime's SPDY.

use futures::{SinkExt, StreamExt};
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::reply::Reply;
use super::tunnel::{self, Failed};
use component::Supervisor;

pub const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const RUNTIME_PROTOCOL: &str = "portforward.k8s.io";
const CHUNK: usize = 32 << 10;

pub async fn join(url: &str, mut request: Request<Incoming>, supervisor: &Supervisor) -> Result<Reply, Failed> {
    let reply = tunnel::accept_websocket(&request, PROTOCOL)?;
    let runtime = tunnel::dial_spdy(url, RUNTIME_PROTOCOL).await?;
    let client = hyper::upgrade::on(&mut request);
    supervisor.spawn("stream", async move {
        let Ok(client) = client.await else { return };
        let client = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
        let (mut to_client, mut from_client) = client.split();
        let (mut from_runtime, mut to_runtime) = tokio::io::split(runtime);
        let input = async {
            while let Some(Ok(message)) = from_client.next().await {
                if let Message::Binary(bytes) = message
                    && (to_runtime.write_all(&bytes).await.is_err() || to_runtime.flush().await.is_err())
                {
                    return;
                }
            }
        };
        let output = async {
            let mut chunk = vec![0; CHUNK];
            while let Ok(read @ 1..) = from_runtime.read(&mut chunk).await {
                if to_client.send(Message::Binary(chunk[..read].to_vec().into())).await.is_err() {
                    return;
                }
            }
            let _ = to_client.send(Message::Close(None)).await;
        };
        tokio::select! {
            () = input => {}
            () = output => {}
        }
    });
    Ok(reply)
}
