//! What a sealed segment's footer says of each of its records, so that opening need not read the
//! records themselves. Pure.
//!
//! [`Builder`] grows beside the segment being written; [`Entries`] reads it back, at opening and
//! when the segment is cleaned. An entry is a handful of bytes: keys share their beginning with the
//! key before, numbers are differences as variable-length integers.

use super::record::Head;
use crate::Revision;

/// One record, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub key: &'a str,
    pub revision: Revision,
    pub deleted: bool,
    pub previous: Head,
    /// Second since 1970; 0: never.
    pub expires: u64,
    /// Where in the segment the record lies.
    pub offset: u32,
    pub length: u32,
}

const DELETED: u8 = 1;
const AFTER_TOMBSTONE: u8 = 2;
const EXPIRES: u8 = 4;

/// What an entry is told relative to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Before {
    key: Vec<u8>,
    revision: Revision,
    /// Where the record before ended.
    end: u32,
}

/// The entries of a segment, so far.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    bytes: Vec<u8>,
    count: u32,
    before: Before,
}

impl Builder {
    /// Goes on behind entries that were read.
    pub fn after(entries: Entries, count: u32) -> Self {
        let Entries { bytes, before, .. } = entries;
        Self { bytes, count, before }
    }

    pub fn push(&mut self, entry: &Entry<'_>) {
        let key = entry.key.as_bytes();
        let shared = self.before.key.iter().zip(key).take_while(|(a, b)| a == b).count();
        let mut flags = 0;
        flags |= if entry.deleted { DELETED } else { 0 };
        flags |= if entry.previous.deleted { AFTER_TOMBSTONE } else { 0 };
        flags |= if entry.expires != 0 { EXPIRES } else { 0 };
        let out = &mut self.bytes;
        out.push(flags);
        put(out, shared as u64);
        put(out, (key.len() - shared) as u64);
        out.extend_from_slice(&key[shared..]);
        put(out, zigzag(entry.revision.wrapping_sub(self.before.revision)));
        put(out, if entry.previous.revision == 0 { 0 } else { entry.revision - entry.previous.revision });
        put(out, u64::from(entry.offset - self.before.end));
        put(out, u64::from(entry.length));
        if entry.expires != 0 {
            put(out, entry.expires);
        }
        self.count += 1;
        self.before.key.truncate(shared);
        self.before.key.extend_from_slice(&key[shared..]);
        self.before.revision = entry.revision;
        self.before.end = entry.offset + entry.length;
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads entries one after another.
#[derive(Debug)]
pub struct Entries {
    bytes: Vec<u8>,
    at: usize,
    before: Before,
}

impl Entries {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0, before: Before::default() }
    }

    /// The next entry; none behind the last. An error: the bytes are no entries.
    pub fn next(&mut self) -> Result<Option<Entry<'_>>, &'static str> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        self.read().map(Some).ok_or("its footer cannot be understood")
    }

    fn read(&mut self) -> Option<Entry<'_>> {
        let flags = *self.bytes.get(self.at)?;
        self.at += 1;
        let shared = usize::try_from(self.number()?).ok()?;
        let rest = usize::try_from(self.number()?).ok()?;
        let key = self.bytes.get(self.at..self.at.checked_add(rest)?)?;
        if shared > self.before.key.len() {
            return None;
        }
        self.before.key.truncate(shared);
        self.before.key.extend_from_slice(key);
        self.at += rest;
        let revision = self.before.revision.wrapping_add(unzigzag(self.number()?));
        let back = self.number()?;
        let offset = self.before.end.checked_add(u32::try_from(self.number()?).ok()?)?;
        let length = u32::try_from(self.number()?).ok()?;
        let expires = if flags & EXPIRES != 0 { self.number()? } else { 0 };
        self.before.revision = revision;
        self.before.end = offset.checked_add(length)?;
        Some(Entry {
            key: std::str::from_utf8(&self.before.key).ok()?,
            revision,
            deleted: flags & DELETED != 0,
            previous: Head {
                revision: if back == 0 { 0 } else { revision.checked_sub(back)? },
                deleted: flags & AFTER_TOMBSTONE != 0,
            },
            expires,
            offset,
            length,
        })
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Small differences of either sign as small numbers.
fn zigzag(difference: u64) -> u64 {
    let signed = difference as i64;
    ((signed << 1) ^ (signed >> 63)) as u64
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry<'static>> {
        let put = Entry {
            key: "/registry/pods/a",
            revision: 1_000_000,
            deleted: false,
            previous: Head::NONE,
            expires: 0,
            offset: 132,
            length: 1100,
        };
        vec![
            put,
            Entry { key: "/registry/pods/b", revision: 1_000_001, offset: 1300, expires: 1 << 40, ..put },
            // A copy of something old.
            Entry { key: "", revision: 3, previous: Head { revision: 2, deleted: true }, offset: 2500, ..put },
            Entry { key: "/registry/pods/b", revision: u64::MAX >> 1, deleted: true, offset: 3700, length: 80, ..put },
        ]
    }

    #[test]
    fn entries_come_back_as_written() {
        let mut builder = Builder::default();
        entries().iter().for_each(|entry| builder.push(entry));
        let mut read = Entries::new(builder.into_bytes());
        for entry in entries() {
            assert_eq!(read.next(), Ok(Some(entry)));
        }
        assert_eq!(read.next(), Ok(None));
    }

    #[test]
    fn a_builder_goes_on_behind_what_was_read() {
        let all = entries();
        let (mut whole, mut first) = (Builder::default(), Builder::default());
        all.iter().for_each(|entry| whole.push(entry));
        all[..2].iter().for_each(|entry| first.push(entry));
        let count = first.count();
        let mut read = Entries::new(first.into_bytes());
        while read.next().unwrap().is_some() {}
        let mut second = Builder::after(read, count);
        all[2..].iter().for_each(|entry| second.push(entry));
        assert_eq!(second.count(), 4);
        assert_eq!(second.into_bytes(), whole.into_bytes());
    }

    #[test]
    fn rubbish_is_refused() {
        let mut builder = Builder::default();
        entries().iter().for_each(|entry| builder.push(entry));
        let mut cut = builder.into_bytes();
        cut.pop();
        let mut read = Entries::new(cut);
        assert!((0..4).any(|_| read.next().is_err()));
        assert!(Entries::new(vec![0xff; 30]).next().is_err());
    }
}
