//! A WebSocket client with `v5.channel.k8s.io`, joined to SPDY streams.
//!
//! Each WebSocket message begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize;
//! 255 says that the channel in its second byte is closed (the client's stdin ended). Each channel
//! is one SPDY stream with `v4.channel.k8s.io`; the error stream ends with a `Status` as JSON in
//! both, so exit codes arrive as they are. Text messages count as binary ones: the Python client
//! sends a person's words so.

use futures::{Sink, SinkExt, Stream, StreamExt};
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::super::reply::Reply;
use super::Wanted;
use super::spdy::{self, Frame, LARGEST_DATA};
use super::tunnel::{self, Failed};
use component::Supervisor;

pub const PROTOCOL: &str = "v5.channel.k8s.io";
const RUNTIME_PROTOCOL: &str = "v4.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Which SPDY stream each channel is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Streams {
    by_channel: Vec<(u8, u32)>,
}

impl Streams {
    fn stream(&self, channel: u8) -> Option<u32> {
        self.by_channel.iter().find(|(known, _)| *known == channel).map(|(_, stream)| *stream)
    }

    fn channel(&self, stream: u32) -> Option<u8> {
        self.by_channel.iter().find(|(_, known)| *known == stream).map(|(channel, _)| *channel)
    }
}

/// Accepts the client and joins it to the runtime.
pub async fn join(
    url: &str,
    mut request: Request<Incoming>,
    wanted: Wanted,
    supervisor: &Supervisor,
) -> Result<Reply, Failed> {
    let reply = tunnel::accept_websocket(&request, PROTOCOL)?;
    let runtime = tunnel::dial_spdy(url, RUNTIME_PROTOCOL).await?;
    let client = hyper::upgrade::on(&mut request);
    supervisor.spawn("stream", async move {
        let Ok(client) = client.await else { return };
        let client = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
        let (to_client, from_client) = client.split();
        let (from_runtime, to_runtime) = tokio::io::split(runtime);
        translate(to_client, from_client, from_runtime, to_runtime, wanted).await;
    });
    Ok(reply)
}

/// Runs until the runtime has sent everything, whether the client is still there or not: a client may close its
/// connection right after its input, which the command then gets all the same, and its end after it.
async fn translate(
    mut to_client: impl Sink<Message, Error = Error> + Unpin,
    mut from_client: impl Stream<Item = Result<Message, Error>> + Unpin,
    from_runtime: impl AsyncRead + Unpin,
    mut to_runtime: impl AsyncWrite + Unpin,
    wanted: Wanted,
) {
    let (streams, opening) = open_streams(wanted);
    if to_runtime.write_all(&opening).await.is_err() {
        return;
    }
    let (frames, mut waiting) = mpsc::channel::<Vec<u8>>(16);
    let write = async {
        while let Some(frame) = waiting.recv().await {
            if to_runtime.write_all(&frame).await.is_err() || to_runtime.flush().await.is_err() {
                return;
            }
        }
    };
    let input = async {
        while let Some(Ok(message)) = from_client.next().await {
            if !(message.is_binary() || message.is_text()) {
                continue;
            }
            for frame in input_frames(&streams, &message.into_data()) {
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        }
        if let Some(stream) = streams.stream(STDIN) {
            let _ = frames.send(spdy::data(stream, &[], true)).await;
        }
    };
    let mut client_left = false;
    {
        let output = copy_output(&streams, from_runtime, &mut to_client, &frames);
        tokio::pin!(input, output, write);
        loop {
            tokio::select! {
                () = &mut output => break,
                // the runtime stopped reading
                () = &mut write => break,
                () = &mut input, if !client_left => client_left = true,
            }
        }
    }
    if client_left {
        return;
    }
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = to_client.send(Message::Close(Some(close))).await;
    // The client answers the close; until then its connection must stay open for it to read all.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), async {
        while let Some(Ok(_)) = from_client.next().await {}
    })
    .await;
}

/// The streams that the runtime expects, the error stream first, and the frames that open them.
fn open_streams(wanted: Wanted) -> (Streams, Vec<u8>) {
    let channels = [
        (ERROR, "error", true),
        (STDIN, "stdin", wanted.stdin),
        (STDOUT, "stdout", wanted.stdout),
        (STDERR, "stderr", wanted.stderr),
        (RESIZE, "resize", wanted.tty),
    ];
    let mut writer = spdy::Writer::new();
    let (mut streams, mut opening) = (Streams::default(), Vec::new());
    for (channel, kind, _) in channels.into_iter().filter(|(_, _, wanted)| *wanted) {
        let (stream, frame) = writer.open(&[("streamtype", kind)]);
        streams.by_channel.push((channel, stream));
        opening.extend(frame);
    }
    (streams, opening)
}

/// What one message of the client becomes.
fn input_frames(streams: &Streams, message: &[u8]) -> Vec<Vec<u8>> {
    let Some((channel, content)) = message.split_first() else { return Vec::new() };
    match *channel {
        STDIN | RESIZE => match streams.stream(*channel) {
            Some(stream) => content.chunks(LARGEST_DATA).map(|chunk| spdy::data(stream, chunk, false)).collect(),
            None => Vec::new(),
        },
        CLOSE => {
            let closed = content.first().filter(|closed| **closed == STDIN).and_then(|closed| streams.stream(*closed));
            closed.map(|stream| spdy::data(stream, &[], true)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// Sends the runtime's data to the client until every output stream has ended. What a client that is gone would
/// have got is read and dropped, or the command would stand still.
async fn copy_output(
    streams: &Streams,
    mut from_runtime: impl AsyncRead + Unpin,
    to_client: &mut (impl Sink<Message, Error = Error> + Unpin),
    frames: &mpsc::Sender<Vec<u8>>,
) {
    let mut open: Vec<u8> = streams
        .by_channel
        .iter()
        .map(|(channel, _)| *channel)
        .filter(|channel| [STDOUT, STDERR, ERROR].contains(channel))
        .collect();
    let mut buffer = Vec::new();
    let mut chunk = vec![0; LARGEST_DATA];
    // The outcome is sent as a whole, in the words of this protocol.
    let mut outcome = Vec::new();
    let mut gone = false;
    while !open.is_empty() {
        let Ok(read @ 1..) = from_runtime.read(&mut chunk).await else { break };
        buffer.extend_from_slice(&chunk[..read]);
        while let Some(frame) = spdy::take(&mut buffer) {
            let (stream, last, bytes) = match frame {
                Frame::Data { stream, last, bytes } => (stream, last, bytes),
                Frame::Reply { stream, last } => (stream, last, Vec::new()),
                Frame::Reset { stream } => (stream, true, Vec::new()),
                Frame::Ping { raw } => {
                    let _ = frames.send(raw).await;
                    continue;
                }
                // All data came before it; the runtime now waits for us to go.
                Frame::GoAway => {
                    open.clear();
                    break;
                }
                Frame::Other => continue,
            };
            let Some(channel) = streams.channel(stream) else { continue };
            if channel == ERROR {
                outcome.extend_from_slice(&bytes);
                if !last && !is_whole(&outcome) {
                    continue;
                }
            }
            let bytes = if channel == ERROR { told_by_translator(std::mem::take(&mut outcome)) } else { bytes };
            if !bytes.is_empty() && !gone {
                gone = send(to_client, channel, &bytes).await.is_err();
            }
            if last {
                open.retain(|known| *known != channel);
            }
        }
    }
    if !outcome.is_empty() && !gone {
        let _ = send(to_client, ERROR, &outcome).await;
    }
}

async fn send(
    to_client: &mut (impl Sink<Message, Error = Error> + Unpin),
    channel: u8,
    bytes: &[u8],
) -> Result<(), Error> {
    let mut message = Vec::with_capacity(1 + bytes.len());
    message.push(channel);
    message.extend_from_slice(bytes);
    to_client.send(Message::Binary(message.into())).await
}

fn is_whole(outcome: &[u8]) -> bool {
    serde_json::from_slice::<Value>(outcome).is_ok()
}

/// A failure that is no exit code is an internal error to Kubernetes' translator, which puts its own words
/// around it (`apimachinery/.../streamtranslator`: `NewInternalError`). Clients know the result by heart.
fn told_by_translator(outcome: Vec<u8>) -> Vec<u8> {
    let Ok(status) = serde_json::from_slice::<Value>(&outcome) else { return outcome };
    if status["status"] != "Failure" || status["reason"] == "NonZeroExitCode" {
        return outcome;
    }
    let message = status["message"].as_str().unwrap_or_default();
    let wrapped = json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    });
    wrapped.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };

    #[test]
    fn a_terminal_has_a_resize_stream() {
        let terminal = Wanted { stderr: false, tty: true, ..ALL };
        let (streams, opening) = open_streams(terminal);
        assert_eq!(streams.by_channel, [(ERROR, 1), (STDIN, 3), (STDOUT, 5), (RESIZE, 7)]);
        assert_eq!(opening[..4], [0x80, 3, 0, 1]);
    }

    #[test]
    fn input_goes_to_its_stream_and_a_close_ends_it() {
        let (streams, _) = open_streams(ALL);
        assert_eq!(input_frames(&streams, &[STDIN, b'a', b'b']), [spdy::data(3, b"ab", false)]);
        assert_eq!(input_frames(&streams, &[CLOSE, STDIN]), [spdy::data(3, b"", true)]);
        for ignored in [&[][..], &[STDOUT, 1], &[RESIZE, 1], &[CLOSE], &[CLOSE, STDOUT], &[STDIN]] {
            assert!(input_frames(&streams, ignored).is_empty(), "{ignored:?}");
        }
        assert_eq!(input_frames(&streams, &[vec![STDIN], vec![7; LARGEST_DATA + 1]].concat()).len(), 2);
    }

    #[tokio::test]
    async fn text_messages_are_input_as_binary_ones() {
        let input =
            [Message::Text("\0ls\n".into()), Message::Ping(vec![0].into()), Message::Binary(vec![255, 0].into())];
        let input = futures::stream::iter(input.map(Ok)).chain(futures::stream::pending());
        let (runtime, mut written) = tokio::io::duplex(1 << 16);
        let (mut from_runtime, to_runtime) = tokio::io::split(runtime);
        let sink = futures::sink::drain().sink_map_err(|never| match never {});
        let (_, opening) = open_streams(ALL);
        let wanted = [opening, spdy::data(3, b"ls\n", false), spdy::data(3, b"", true)].concat();
        let mut got = vec![0; wanted.len()];
        tokio::select! {
            () = translate(sink, input, &mut from_runtime, to_runtime, ALL) => {}
            read = written.read_exact(&mut got) => { read.unwrap(); }
        }
        assert_eq!(got, wanted);
    }

    #[tokio::test]
    async fn what_a_client_sent_before_it_went_arrives_and_the_command_goes_on() {
        let input = futures::stream::iter([Ok(Message::Binary(vec![STDIN, b'a'].into()))]);
        let closed = |(), _: Message| async { Err::<(), Error>(Error::ConnectionClosed) };
        let sink = Box::pin(futures::sink::unfold((), closed));
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (from_runtime, to_runtime) = tokio::io::split(ours);
        let (_, opening) = open_streams(ALL);
        let wanted = [opening, spdy::data(3, b"a", false), spdy::data(3, b"", true)].concat();
        let runtime = async {
            let mut got = vec![0; wanted.len()];
            theirs.read_exact(&mut got).await.unwrap();
            for output in [spdy::data(5, b"out", false), spdy::data(5, b"more", true)] {
                theirs.write_all(&output).await.unwrap();
                tokio::task::yield_now().await;
            }
            let ends = [spdy::data(7, b"", true), spdy::data(1, b"{}", true)].concat();
            theirs.write_all(&ends).await.unwrap();
            got
        };
        let ((), got) = tokio::join!(translate(sink, input, from_runtime, to_runtime, ALL), runtime);
        assert_eq!(got, wanted);
    }

    /// What reaches a client of the output of a runtime that sends `bytes`.
    async fn copied(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (streams, _) = open_streams(ALL);
        let (sink, messages) = futures::channel::mpsc::unbounded();
        let mut sink = sink.sink_map_err(|_| Error::ConnectionClosed);
        let (frames, _waiting) = mpsc::channel(1);
        copy_output(&streams, bytes, &mut sink, &frames).await;
        drop(sink);
        messages.map(|message| message.into_data().to_vec()).collect().await
    }

    #[tokio::test]
    async fn output_arrives_on_its_channel_until_all_streams_end() {
        let bytes = [
            spdy::data(5, b"out", false),
            spdy::data(7, b"err", true),
            spdy::data(5, b"", true),
            spdy::data(1, b"{}", true),
            spdy::data(5, b"never", false),
        ]
        .concat();
        let messages = copied(&bytes).await;
        assert_eq!(messages[..3], [b"\x01out".to_vec(), b"\x02err".to_vec(), b"\x03{}".to_vec()]);
    }

    #[tokio::test]
    async fn a_failure_that_is_no_exit_code_is_an_internal_error() {
        let failed = json!({"status": "Failure", "reason": "InternalError", "message": "Internal error occurred: no such file", "code": 500});
        let exited = json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
        let message = "Internal error occurred: Internal error occurred: no such file";
        for (runtime, message) in [(failed, Some(message)), (exited, None), (json!({"status": "Success"}), None)] {
            let text = runtime.to_string();
            let (first, rest) = text.as_bytes().split_at(7);
            let mut bytes =
                [spdy::data(1, first, false), spdy::data(1, rest, false), spdy::data(1, b"", true)].concat();
            bytes.extend([spdy::data(5, b"", true), spdy::data(7, b"", true)].concat());
            let messages = copied(&bytes).await;
            assert_eq!(messages.len(), 1);
            let told: Value = serde_json::from_slice(&messages[0][1..]).unwrap();
            match message {
                Some(message) => {
                    assert_eq!((&told["message"], &told["reason"]), (&json!(message), &json!("InternalError")));
                    assert_eq!(told["details"]["causes"][0]["message"], runtime["message"]);
                }
                None => assert_eq!(told, runtime),
            }
        }
    }
}
