//! What a store must do, as plainly as can be said: every write ever made, in a list.

use std::collections::BTreeMap;

use bytes::Bytes;
use store::{Event, KeyValue, Page, Range, Txn, TxnOutcome, Write};

/// Every write: its revision is its position plus 2, as in etcd.
#[derive(Debug, Default, Clone)]
pub struct Model {
    pub log: Vec<(String, Option<Bytes>)>,
}

const FIRST: u64 = 2;

impl Model {
    pub fn revision(&self) -> u64 {
        self.log.len() as u64 + FIRST - 1
    }

    /// All keys as of a revision.
    pub fn at(&self, revision: u64) -> BTreeMap<String, KeyValue> {
        let mut state = BTreeMap::new();
        for (n, (key, value)) in self.log.iter().enumerate() {
            let mod_revision = n as u64 + FIRST;
            if mod_revision > revision {
                break;
            }
            match value {
                Some(value) => {
                    let kv = KeyValue { key: key.as_str().into(), value: value.clone(), mod_revision };
                    state.insert(key.clone(), kv);
                }
                None => {
                    state.remove(key);
                }
            }
        }
        state
    }

    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.at(self.revision()).remove(key)
    }

    pub fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let current = self.get(&txn.key);
        if current.as_ref().map_or(0, |kv| kv.mod_revision) != txn.expected {
            return TxnOutcome::Conflict { current, revision: self.revision() };
        }
        match &txn.write {
            Write::Put { value, .. } => self.log.push((txn.key.to_string(), Some(value.clone()))),
            Write::Delete if current.is_some() => self.log.push((txn.key.to_string(), None)),
            Write::Delete => {}
        }
        TxnOutcome::Done { revision: self.revision() }
    }

    pub fn range(&self, range: &Range) -> Page {
        let revision = if range.revision == 0 { self.revision() } else { range.revision };
        let start = range.start.clone().unwrap_or_default();
        let all: Vec<KeyValue> = self
            .at(revision)
            .into_values()
            .filter(|kv| kv.key.starts_with(&range.prefix) && *kv.key >= *start)
            .map(|kv| if range.keys_only { KeyValue { value: Bytes::new(), ..kv } } else { kv })
            .collect();
        let count = all.len() as u64;
        let limit = if range.limit == 0 { all.len() } else { range.limit };
        Page { kvs: all.into_iter().take(limit).collect(), count, revision }
    }

    /// What a watch of `prefix` delivers after `after`.
    pub fn events(&self, prefix: &str, after: u64) -> Vec<Event> {
        let mut latest: BTreeMap<&str, KeyValue> = BTreeMap::new();
        let mut events = Vec::new();
        for (n, (key, value)) in self.log.iter().enumerate() {
            let revision = n as u64 + FIRST;
            let previous = latest.remove(key.as_str());
            if let Some(value) = value {
                let kv = KeyValue { key: key.as_str().into(), value: value.clone(), mod_revision: revision };
                latest.insert(key, kv);
            }
            if revision > after && key.starts_with(prefix) {
                events.push(Event { key: key.as_str().into(), revision, value: value.clone(), previous });
            }
        }
        events
    }
}
