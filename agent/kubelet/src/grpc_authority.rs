//! What programs on this node call the kubelet when they ask it by gRPC.
//!
//! Clients in Go that dial a socket by themselves, as most device plugins do, take the socket's path for the
//! server's name: `:authority` is `/var/lib/kubelet/device-plugins/kubelet.sock`, with percent signs for the
//! slashes in newer ones. That names no host, so the HTTP/2 below tonic refuses the request. Nothing here
//! looks at the name: [`Unnamed`] writes letters over it, as many bytes as it had.
//!
//! Layer: around the connections of [`crate::unix_server`] and of `devices`. [`Frames`] follows the frames
//! (RFC 9113, 4.1), [`Fields`] the header fields in them (RFC 7541, 6); neither keeps any bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

/// A connection whose requests name no server.
pub struct Unnamed {
    stream: UnixStream,
    frames: Frames,
}

impl Unnamed {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, frames: Frames::default() }
    }
}

impl Connected for Unnamed {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Unnamed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(cx, buf);
        buf.filled_mut()[before..].iter_mut().for_each(|byte| *byte = this.frames.step(*byte));
        outcome
    }
}

impl AsyncWrite for Unnamed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// `PRI * HTTP/2.0`, two empty lines and `SM` between them: what a client begins with.
const PREFACE: usize = 24;
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Where in a client's bytes the next one is.
#[derive(Default)]
struct Frames {
    begun: usize,
    head: [u8; HEAD],
    /// Bytes of the head that have come; all of them, while the frame's content comes.
    known: usize,
    left: u32,
    content: Content,
    fields: Fields,
}

#[derive(Default, Clone, Copy)]
enum Content {
    #[default]
    Other,
    /// The next byte says how many bytes of padding end the frame.
    Padded { skip: u32 },
    /// Header fields, after `skip` bytes and before `padding` bytes.
    Fields { skip: u32, padding: u32 },
}

impl Frames {
    /// What is to stand in the place of the next byte.
    fn step(&mut self, byte: u8) -> u8 {
        if self.begun < PREFACE {
            self.begun += 1;
            return byte;
        }
        if self.known < HEAD {
            self.head[self.known] = byte;
            self.known += 1;
            if self.known == HEAD {
                self.begin_content();
            }
            return byte;
        }
        let replaced = self.inside(byte);
        self.left -= 1;
        self.end_if_empty();
        replaced
    }

    fn begin_content(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.left = u32::from_be_bytes([0, a, b, c]);
        let skip = if flags & PRIORITY == 0 { 0 } else { 5 };
        self.content = match kind {
            HEADERS if flags & PADDED != 0 => Content::Padded { skip },
            HEADERS => Content::Fields { skip, padding: 0 },
            CONTINUATION => Content::Fields { skip: 0, padding: 0 },
            _ => Content::Other,
        };
        self.end_if_empty();
    }

    fn inside(&mut self, byte: u8) -> u8 {
        match self.content {
            Content::Padded { skip } => self.content = Content::Fields { skip, padding: byte.into() },
            Content::Fields { skip, padding } if skip > 0 => {
                self.content = Content::Fields { skip: skip - 1, padding };
            }
            Content::Fields { padding, .. } if self.left > padding => return self.fields.step(byte),
            Content::Fields { .. } | Content::Other => {}
        }
        byte
    }

    fn end_if_empty(&mut self) {
        if self.left == 0 {
            self.known = 0;
        }
    }
}

/// `:authority` in the static table.
const AUTHORITY: u8 = 1;

/// A text of a field, and with it what follows.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Name,
    Value,
    /// The value that is written over.
    Authority,
}

/// Where in the header fields the next byte is.
#[derive(Default, Clone, Copy)]
enum Fields {
    #[default]
    Start,
    /// Within a number that does not matter; a text follows, or another field.
    Number(Option<Part>),
    /// At the first byte of a text's length.
    Text(Part),
    Length {
        part: Part,
        packed: bool,
        length: usize,
        shift: u32,
    },
    Inside {
        part: Part,
        packed: bool,
        length: usize,
        at: usize,
    },
}

impl Fields {
    fn step(&mut self, byte: u8) -> u8 {
        let (mut replaced, more) = (byte, byte & 0x80 != 0);
        *self = match *self {
            Self::Start => Self::begin(byte),
            Self::Number(_) if more => return byte,
            Self::Number(then) => then.map_or(Self::Start, Self::Text),
            Self::Text(part) if byte & 0x7f == 0x7f => Self::Length { part, packed: more, length: 0x7f, shift: 0 },
            Self::Text(part) => Self::enter(part, more, usize::from(byte & 0x7f)),
            Self::Length { part, packed, length, shift } => {
                // More than a frame can hold is refused by who decodes it.
                let length = length.saturating_add(usize::from(byte & 0x7f) << shift.min(28));
                if more {
                    Self::Length { part, packed, length, shift: shift.saturating_add(7) }
                } else {
                    Self::enter(part, packed, length)
                }
            }
            Self::Inside { part, packed, length, at } => {
                if part == Part::Authority {
                    replaced = letter(packed, length, at);
                }
                if at + 1 == length { Self::after(part) } else { Self::Inside { part, packed, length, at: at + 1 } }
            }
        };
        replaced
    }

    /// The first byte of a field tells its sort and has the first bits of a number: an entry of the tables,
    /// the entry that has the name, or a size.
    fn begin(byte: u8) -> Self {
        let (bits, has_value) = match byte {
            0x80.. => (0x7f, false),
            0x40..0x80 => (0x3f, true),
            0x20..0x40 => (0x1f, false),
            0x00..0x20 => (0x0f, true),
        };
        match (byte & bits, has_value) {
            (number, _) if number == bits => Self::Number(has_value.then_some(Part::Value)),
            (_, false) => Self::Start,
            (0, true) => Self::Text(Part::Name),
            (AUTHORITY, true) => Self::Text(Part::Authority),
            (_, true) => Self::Text(Part::Value),
        }
    }

    fn enter(part: Part, packed: bool, length: usize) -> Self {
        if length == 0 { Self::after(part) } else { Self::Inside { part, packed, length, at: 0 } }
    }

    fn after(part: Part) -> Self {
        if part == Part::Name { Self::Text(Part::Value) } else { Self::Start }
    }
}

/// Byte `at` of a text of so many bytes that says only `a`. Packed, `a` is `00011`, and ones fill the last
/// byte: a few letters more than there were, which the decoder's table of at least 4 KiB has room for.
fn letter(packed: bool, length: usize, at: usize) -> u8 {
    if !packed {
        return b'a';
    }
    let letters = length * 8 / 5;
    (at * 8..at * 8 + 8).fold(0, |byte, bit| (byte << 1) | u8::from(bit >= letters * 5 || bit % 5 >= 3))
}

#[cfg(test)]
#[path = "grpc_authority_tests.rs"]
mod tests;
