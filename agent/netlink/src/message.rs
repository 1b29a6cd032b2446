//! Netlink's wire format: a header, a fixed body, then nested type-length-value attributes, all
//! padded to four bytes. Integers are in host order except where nf_tables and conntrack use
//! network order (the `_be` writers).

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;

const NESTED: u16 = 0x8000;
/// Masks away the "nested" and "network byte order" bits of an attribute's type.
const KIND_MASK: u16 = 0x3fff;

pub(crate) const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

/// One request under construction. Length, flags and sequence number are filled in by the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `flags` are those beyond `NLM_F_REQUEST`, e.g. `NLM_F_CREATE | NLM_F_EXCL`.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(body);
        bytes.resize(aligned(bytes.len()), 0);
        Self { bytes }
    }

    pub fn attribute(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        // Attribute payloads are names, addresses and small structures; 64 KiB is the format's limit.
        let length = (4 + payload.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.attribute(kind, &[value])
    }

    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    pub fn u16_be(&mut self, kind: u16, value: u16) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    pub fn u32_be(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    pub fn u64_be(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// A NUL-terminated string.
    pub fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut payload = Vec::with_capacity(value.len() + 1);
        payload.extend_from_slice(value.as_bytes());
        payload.push(0);
        self.attribute(kind, &payload)
    }

    /// An attribute holding attributes, written by `inner`.
    pub fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        self.enclosed(kind | NESTED, inner)
    }

    /// Like [`Message::nested`] without the "nested" bit, for the older attributes whose parsers
    /// expect the bare type, and for those with a fixed structure before the attributes.
    pub fn enclosed(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        inner(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Bytes without an attribute around them, padded.
    pub fn raw(&mut self, payload: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    pub(crate) fn add_flags(&mut self, flags: u16) {
        let now = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&now.to_ne_bytes());
    }

    /// The finished message.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Flags of `struct nlmsghdr`.
pub mod flag {
    pub const REQUEST: u16 = 0x1;
    pub const MULTI: u16 = 0x2;
    pub const ACK: u16 = 0x4;
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    pub const DUMP: u16 = 0x300;
    pub const REPLACE: u16 = 0x100;
    pub const EXCLUSIVE: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
    pub const CAPPED: u16 = 0x100;
    pub const ACK_TLVS: u16 = 0x200;
}

/// One message from the kernel, header taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Fixed body and attributes.
    pub payload: Vec<u8>,
}

impl Reply {
    /// The attributes after a fixed body of `body` bytes.
    pub fn attributes(&self, body: usize) -> Attributes<'_> {
        Attributes(self.payload.get(aligned(body)..).unwrap_or_default())
    }
}

/// Takes the messages of one datagram apart; stops at the first impossible length.
pub(crate) fn replies(mut datagram: &[u8]) -> Vec<Reply> {
    let mut found = Vec::new();
    while let Some(header) = datagram.get(..HEADER) {
        let length = u32_at(header, 0) as usize;
        let Some(payload) = datagram.get(HEADER..length) else { break };
        found.push(Reply {
            kind: u16_at(header, 4),
            flags: u16_at(header, 6),
            sequence: u32_at(header, 8),
            payload: payload.to_vec(),
        });
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
    }
    found
}

/// Attributes laid end to end.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    pub fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or_default())
    }

    pub fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    pub fn u16_be(self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(kind)?.get(..2)?.try_into().ok()?))
    }

    pub fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.get(kind)?.get(..4)?.try_into().ok()?))
    }

    pub fn u32_be(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.get(..4)?.try_into().ok()?))
    }

    pub fn u64_be(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.get(..8)?.try_into().ok()?))
    }

    pub fn string(self, kind: u16) -> Option<String> {
        let payload = self.get(kind)?;
        let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
        Some(String::from_utf8_lossy(&payload[..end]).into_owned())
    }
}

impl<'a> IntoIterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    type IntoIter = AttributeIter<'a>;

    fn into_iter(self) -> AttributeIter<'a> {
        AttributeIter(self.0)
    }
}

pub struct AttributeIter<'a>(&'a [u8]);

impl<'a> Iterator for AttributeIter<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..4)?;
        let length = usize::from(u16_at(header, 0));
        let payload = self.0.get(4..length)?;
        let kind = u16_at(header, 2) & KIND_MASK;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// Panics when `bytes` is shorter than `at + 2`: callers slice first.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// Panics when `bytes` is shorter than `at + 4`: callers slice first.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(16, 0, &[1, 2, 3]);
        message.string(3, "skiff0").nested(18, |inner| {
            inner.u32(1, 7).u16_be(2, 0x1234);
        });
        let bytes = message.finish(9);
        let replies = replies(&bytes);
        assert_eq!(replies.len(), 1);
        assert_eq!((replies[0].kind, replies[0].sequence), (16, 9));
        let attributes = replies[0].attributes(3);
        assert_eq!(attributes.string(3).as_deref(), Some("skiff0"));
        assert_eq!(attributes.nested(18).u32(1), Some(7));
        assert_eq!(attributes.nested(18).u16_be(2), Some(0x1234));
    }

    #[test]
    fn cut_off_input_ends_the_iteration() {
        for cut in 0..24 {
            let mut message = Message::new(1, 0, &[]);
            message.u32(1, 1);
            let bytes = message.finish(1);
            let _ = replies(&bytes[..cut.min(bytes.len())]);
            let _ = Attributes(&bytes[..cut.min(bytes.len())]).into_iter().count();
        }
        assert_eq!(Attributes(&[3, 0, 1, 0]).into_iter().count(), 0, "a length below the header's");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parsers_fail(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..512)) {
            for reply in replies(&bytes) {
                let attributes = reply.attributes(16);
                let _ = (attributes.string(3), attributes.nested(18).u32(1), attributes.u64_be(1));
                let _ = crate::socket::error_of("test", &reply);
            }
            let _ = Attributes(&bytes).into_iter().count();
        }
    }
}
