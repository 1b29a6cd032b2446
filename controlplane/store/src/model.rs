//! The values that go in and out of a [`crate::Store`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// A revision of the whole store: 1 when empty, one more with every write. 0 stands for "none".
pub type Revision = u64;

/// A key, e.g. `/registry/pods/default/nginx`. Cheap to clone.
pub type Key = Arc<str>;

/// One version of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Key,
    /// Empty when only keys were asked for.
    pub value: Bytes,
    /// The write that made this version.
    pub mod_revision: Revision,
}

/// The answer to [`crate::Store::get`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    pub kv: Option<KeyValue>,
    /// The store's revision when it was read.
    pub revision: Revision,
}

/// What to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    pub prefix: String,
    /// The first key wanted, if not the first under the prefix. To go on after `key`, use `key` + `\0`.
    pub start: Option<String>,
    /// At most so many; 0 means all.
    pub limit: usize,
    /// As of this revision; 0 means now.
    pub revision: Revision,
    /// Leave the values out.
    pub keys_only: bool,
}

impl Range {
    /// Everything under `prefix`, now.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    pub fn starting_at(mut self, start: impl Into<String>) -> Self {
        self.start = Some(start.into());
        self
    }

    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    pub fn at(mut self, revision: Revision) -> Self {
        self.revision = revision;
        self
    }

    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// The first key of the range: `start`, but never before the prefix.
    pub(crate) fn first(&self) -> &str {
        self.start.as_deref().map_or(self.prefix.as_str(), |start| start.max(self.prefix.as_str()))
    }
}

/// The answer to [`crate::Store::range`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, those beyond the limit included.
    pub count: u64,
    /// The revision this page shows: the one asked for, or the store's own when it was read.
    pub revision: Revision,
}

impl Page {
    /// Whether the limit left keys out.
    pub fn more(&self) -> bool {
        self.count > self.kvs.len() as u64
    }
}

/// One conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn {
    pub key: Key,
    /// The `mod_revision` the key must have; 0: it must not exist.
    pub expected: Revision,
    pub write: Write,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// With `ttl` the key is deleted that long after this write (to within about a minute, never
    /// early), unless it was written again.
    Put {
        value: Bytes,
        ttl: Option<Duration>,
    },
    Delete,
}

impl Txn {
    pub fn create(key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        Self::update(key, 0, value)
    }

    pub fn update(key: impl Into<Key>, expected: Revision, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), expected, write: Write::Put { value: value.into(), ttl: None } }
    }

    pub fn delete(key: impl Into<Key>, expected: Revision) -> Self {
        Self { key: key.into(), expected, write: Write::Delete }
    }

    /// Lets a put expire.
    pub fn with_ttl(mut self, after: Duration) -> Self {
        if let Write::Put { ttl, .. } = &mut self.write {
            *ttl = Some(after);
        }
        self
    }
}

/// What became of a [`Txn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Written, durably; `revision` is the key's new `mod_revision` (for a delete: the deletion's).
    Done { revision: Revision },
    /// The key was not at the expected revision; nothing was written. `current` is what is there.
    Conflict { current: Option<KeyValue>, revision: Revision },
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub key: Key,
    pub revision: Revision,
    /// None: the key was deleted.
    pub value: Option<Bytes>,
    /// What the change replaced; none: the key did not exist.
    pub previous: Option<KeyValue>,
}

/// What a watch delivers: events in order of revision. No events: only progress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub events: Vec<Event>,
    /// Every event of this watch up to here has been delivered by this batch or one before it.
    pub revision: Revision,
}

/// The first key after all those that start with `prefix`; none when there is no such key.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_beyond_it() {
        let cases: [(&[u8], Option<&[u8]>); 4] =
            [(b"/a/", Some(b"/a0")), (b"a\xff", Some(b"b")), (b"", None), (b"\xff\xff", None)];
        for (prefix, want) in cases {
            assert_eq!(prefix_end(prefix).as_deref(), want, "{prefix:?}");
        }
    }

    #[test]
    fn a_range_never_starts_before_its_prefix() {
        assert_eq!(Range::prefix("/b/").starting_at("/a").first(), "/b/");
        assert_eq!(Range::prefix("/b/").starting_at("/b/x").first(), "/b/x");
        assert_eq!(Range::prefix("/b/").first(), "/b/");
    }
}
