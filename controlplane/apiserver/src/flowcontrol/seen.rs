//! The requests that wait for seats or hold some, for the dump of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::schema::Schema;
use crate::authn::UserInfo;
use crate::http::info::RequestInfo;

/// In [`Seen::queue`]: none.
const NO_QUEUE: usize = usize::MAX;
/// What Go shows of a time that has not come.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A request from when it is classified until it gives its seats back.
pub struct Seen {
    schema: Arc<Schema>,
    user: Arc<UserInfo>,
    info: Arc<RequestInfo>,
    seats: u32,
    arrived: Timestamp,
    queue: AtomicUsize,
    started: OnceLock<Timestamp>,
}

impl Seen {
    pub fn new(schema: &Arc<Schema>, user: &Arc<UserInfo>, info: &Arc<RequestInfo>, seats: u32) -> Self {
        Self {
            schema: schema.clone(),
            user: user.clone(),
            info: info.clone(),
            seats,
            arrived: Timestamp::now(),
            queue: AtomicUsize::new(NO_QUEUE),
            started: OnceLock::new(),
        }
    }

    pub fn joined(&self, queue: usize) {
        self.queue.store(queue, Ordering::Relaxed);
    }

    pub fn starts(&self) {
        let _ = self.started.set(Timestamp::now());
    }

    fn queue(&self) -> Option<usize> {
        Some(self.queue.load(Ordering::Relaxed)).filter(|queue| *queue != NO_QUEUE)
    }

    /// Columns of the dump; `place`: among those that wait in the same queue.
    fn row(&self, place: Option<usize>, details: bool) -> Vec<String> {
        let number = |number: Option<usize>| number.map_or("-1".to_owned(), |number| number.to_string());
        let mut row = vec![
            self.schema.level.clone(),
            self.schema.name.clone(),
            number(self.queue()),
            number(place),
            self.schema.flow(&self.user, &self.info).to_owned(),
            self.arrived.to_string(),
            self.seats.to_string(),
            "0".to_owned(),
            "0s".to_owned(),
            self.started.get().map_or(NEVER.to_owned(), Timestamp::to_string),
        ];
        if details {
            let info = &self.info;
            let version = crate::resource::api_version(&info.group, &info.version);
            let parts =
                [&self.user.name, &info.verb, &info.path, &info.namespace, &info.name, &version, &info.resource];
            row.extend(parts.into_iter().cloned());
            row.push(info.subresource.clone());
        }
        row
    }
}

/// Everyone seen, in order of arrival.
#[derive(Default)]
pub struct Register(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    next: u64,
    seen: BTreeMap<u64, Arc<Seen>>,
}

/// An entry of the register, until this is dropped.
pub struct Entry {
    register: Arc<Mutex<Entries>>,
    id: u64,
    pub seen: Arc<Seen>,
}

impl Register {
    pub fn add(&self, seen: Seen) -> Entry {
        let seen = Arc::new(seen);
        let mut entries = self.0.lock();
        let id = entries.next;
        entries.next += 1;
        entries.seen.insert(id, seen.clone());
        Entry { register: self.0.clone(), id, seen }
    }

    /// A row each, by level; those that wait in a queue before those that it runs.
    pub fn rows(&self, details: bool) -> Vec<Vec<String>> {
        let mut all: Vec<Arc<Seen>> = self.0.lock().seen.values().cloned().collect();
        let started = |seen: &Seen| seen.started.get().is_some();
        all.sort_by_cached_key(|seen| (seen.schema.level.clone(), seen.queue().is_none(), seen.queue(), started(seen)));
        let mut waiting: BTreeMap<(&str, Option<usize>), usize> = BTreeMap::new();
        let rows = all.iter().map(|seen| {
            let place = (!started(seen)).then(|| {
                let before = waiting.entry((&seen.schema.level, seen.queue())).or_default();
                *before += 1;
                *before - 1
            });
            seen.row(place, details)
        });
        rows.collect()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.register.lock().seen.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_shown_until_they_end() {
        let register = Register::default();
        let schema = Arc::new(Schema::from_json(&json!({"metadata": {"name": "s"}, "spec": {
            "priorityLevelConfiguration": {"name": "l"}, "distinguisherMethod": {"type": "ByUser"}}})));
        let user = Arc::new(UserInfo::new("jane", &[]));
        let query = crate::http::query::Query::parse("");
        let path = "/apis/apps/v1/namespaces/ns/deployments/d/scale";
        let info = Arc::new(RequestInfo::parse(&http::Method::GET, path, &query));
        let add = || register.add(Seen::new(&schema, &user, &info, 2));
        let (running, first, second) = (add(), add(), add());
        running.seen.starts();
        first.seen.joined(3);
        second.seen.joined(3);
        let shown = |details| -> Vec<String> {
            let rows = register.rows(details);
            rows.into_iter().map(|row| [&row[..5], &row[6..9], &row[10..]].concat().join(",")).collect()
        };
        assert_eq!(shown(false), ["l,s,3,0,jane,2,0,0s", "l,s,3,1,jane,2,0,0s", "l,s,-1,-1,jane,2,0,0s"]);
        assert_eq!(register.rows(false)[0][9], NEVER);
        drop(first);
        second.seen.starts();
        let details = "jane,get,/apis/apps/v1/namespaces/ns/deployments/d/scale,ns,d,apps/v1,deployments,scale";
        assert_eq!(shown(true)[0], format!("l,s,3,-1,jane,2,0,0s,{details}"));
        drop((running, second));
        assert!(register.rows(false).is_empty());
    }
}
