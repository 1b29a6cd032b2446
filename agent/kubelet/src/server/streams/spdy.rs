//! SPDY/3.1 frames, as far as a client of the runtime's stream server needs them: opening streams,
//! data both ways, and noticing the end. Pure.
//!
//! Header blocks are a zlib stream with a preset dictionary. Ours is written as stored (not
//! compressed) blocks, which every inflater reads; the headers are a few dozen bytes. The server's
//! header blocks say nothing that is needed, so they are not inflated.

/// What a zlib stream with SPDY/3's preset dictionary begins with: deflate with a 32 KiB window,
/// "a dictionary is used", and the Adler-32 checksum of that dictionary.
const ZLIB_HEADER: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
/// Bytes of data per frame; the server reads each frame into memory.
pub const LARGEST_DATA: usize = 32 << 10;

/// What the other side sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Data {
        stream: u32,
        last: bool,
        bytes: Vec<u8>,
    },
    /// The stream was accepted; `last` if nothing will come on it.
    Reply {
        stream: u32,
        last: bool,
    },
    Reset {
        stream: u32,
    },
    /// To be sent back as it is.
    Ping {
        raw: Vec<u8>,
    },
    GoAway,
    Other,
}

/// Writes a client's frames. Streams get the numbers 1, 3, 5, ... in the order they are opened.
#[derive(Debug)]
pub struct Writer {
    next: u32,
    headers_begun: bool,
}

impl Writer {
    pub fn new() -> Self {
        Self { next: 1, headers_begun: false }
    }

    /// A SYN_STREAM frame and the new stream's number.
    pub fn open(&mut self, headers: &[(&str, &str)]) -> (u32, Vec<u8>) {
        let stream = self.next;
        self.next += 2;
        let mut payload = Vec::new();
        payload.extend_from_slice(&stream.to_be_bytes());
        payload.extend_from_slice(&0u32.to_be_bytes()); // associated with no stream
        payload.extend_from_slice(&[0, 0]); // priority and slot
        payload.extend_from_slice(&self.header_block(headers));
        (stream, control(SYN_STREAM, 0, &payload))
    }

    fn header_block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(part.len() as u32).to_be_bytes());
            plain.extend_from_slice(part.as_bytes());
        }
        let mut block = Vec::new();
        if !std::mem::replace(&mut self.headers_begun, true) {
            block.extend_from_slice(&ZLIB_HEADER);
        }
        for stored in plain.chunks(usize::from(u16::MAX)) {
            let length = stored.len() as u16;
            block.push(0); // not the last block, stored, to the byte boundary
            block.extend_from_slice(&length.to_le_bytes());
            block.extend_from_slice(&(!length).to_le_bytes());
            block.extend_from_slice(stored);
        }
        // An empty block, as a flush writes it: inflaters hand out what they hold when they see one,
        // and would else wait for bytes of the next frame.
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

/// A DATA frame; `last` closes our side of the stream.
pub fn data(stream: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend_from_slice(&(stream & 0x7fff_ffff).to_be_bytes());
    frame.extend_from_slice(&flags_and_length(if last { FLAG_FIN } else { 0 }, bytes.len()));
    frame.extend_from_slice(bytes);
    frame
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + payload.len());
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&flags_and_length(flags, payload.len()));
    frame.extend_from_slice(payload);
    frame
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    ((u32::from(flags) << 24) | (length as u32 & 0x00ff_ffff)).to_be_bytes()
}

/// Takes one complete frame from the front of `buffer`, if there is one.
pub fn take(buffer: &mut Vec<u8>) -> Option<Frame> {
    let header: [u8; 8] = buffer.get(..8)?.try_into().ok()?;
    let flags = header[4];
    let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
    if buffer.len() < 8 + length {
        return None;
    }
    let raw: Vec<u8> = buffer.drain(..8 + length).collect();
    let last = flags & FLAG_FIN != 0;
    let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    if first & 0x8000_0000 == 0 {
        return Some(Frame::Data { stream: first, last, bytes: raw[8..].to_vec() });
    }
    let stream = raw.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes) & 0x7fff_ffff;
    Some(match u16::from_be_bytes([header[2], header[3]]) {
        SYN_REPLY => Frame::Reply { stream, last },
        RST_STREAM => Frame::Reset { stream },
        PING => Frame::Ping { raw },
        GOAWAY => Frame::GoAway,
        _ => Frame::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn streams_are_opened_with_lower_case_headers_in_stored_blocks() {
        let mut writer = Writer::new();
        let (first, frame) = writer.open(&[("streamtype", "error")]);
        assert_eq!(first, 1);
        assert_eq!(frame[..4], [0x80, 3, 0, 1]);
        assert_eq!(frame[18..24], ZLIB_HEADER);
        assert_eq!(frame[24..29], [0, 27, 0, !27u8, 0xff]);
        let (second, frame) = writer.open(&[("streamtype", "stdin")]);
        assert_eq!(second, 3);
        assert_eq!(frame[18], 0, "the zlib stream goes on without a second header");
    }

    #[test]
    fn frames_are_taken_whole() {
        let frame = data(5, b"hello", true);
        let mut buffer = frame[..10].to_vec();
        assert_eq!(take(&mut buffer), None);
        buffer.extend_from_slice(&frame[10..]);
        buffer.extend_from_slice(&control(PING, 0, &7u32.to_be_bytes()));
        buffer.extend_from_slice(&control(GOAWAY, 0, &[0; 8]));
        assert_eq!(take(&mut buffer), Some(Frame::Data { stream: 5, last: true, bytes: b"hello".to_vec() }));
        assert!(matches!(take(&mut buffer), Some(Frame::Ping { raw }) if raw.len() == 12));
        assert_eq!(take(&mut buffer), Some(Frame::GoAway));
        assert_eq!(take(&mut buffer), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            while take(&mut bytes).is_some() {}
        }
    }
}
