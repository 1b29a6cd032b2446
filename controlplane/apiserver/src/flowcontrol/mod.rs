//! API priority and fairness: FlowSchemas say which priority level a request belongs to, a level's
//! seats how many of its requests run at once, and its queues who of those that wait is next.
//!
//! [`FlowControl::enter`] is what the pipeline calls. [`queues`], [`shares`] and [`schema`] are pure;
//! [`level`] holds the seats; [`controller`] follows the stored objects.

pub mod controller;
mod level;
mod queues;
mod schema;
mod seen;
mod shares;
mod show;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::HeaderValue;
use parking_lot::RwLock;
use serde_json::Value;

pub use self::level::Ticket;
use self::level::{Kind, Level};
use self::queues::Queuing;
use self::schema::Schema;
use self::seen::{Register, Seen};
use self::shares::Claim;
use crate::authn::UserInfo;
use crate::http::info::RequestInfo;
use crate::http::query::Query;
use crate::server::Api;

/// Bytes of a list that one seat stands for, and the most that a list from the cache counts for.
const BYTES_PER_SEAT: usize = 100_000;
const MOST_BYTES: usize = 1_000_000;
/// Seats of the widest request, where its level does not say less.
const WIDEST: u32 = 100;

/// Schemas in the order in which they are tried, and the levels they name.
#[derive(Default)]
struct Configuration {
    schemas: Vec<Arc<Schema>>,
    levels: BTreeMap<String, Arc<Level>>,
}

pub struct FlowControl {
    /// Seats of the whole server.
    total: u32,
    patience: Duration,
    configuration: RwLock<Configuration>,
    /// 429s lately: who is turned away comes back the later the more there are.
    refusals: AtomicU32,
    seen: Register,
}

/// A request for which there was no seat.
pub struct Rejection {
    /// UIDs of the flow schema and of the priority level.
    pub classified: (HeaderValue, HeaderValue),
    pub retry_after: u64,
}

impl FlowControl {
    /// `in_flight`: requests that may be under way, reading and writing. `limit`: of one request.
    pub fn new(in_flight: (usize, usize), limit: Duration) -> Self {
        let total = u32::try_from(in_flight.0 + in_flight.1).unwrap_or(u32::MAX).max(1);
        Self {
            total,
            patience: limit / 4,
            configuration: RwLock::default(),
            refusals: AtomicU32::new(0),
            seen: Register::default(),
        }
    }

    /// Takes over FlowSchemas and PriorityLevelConfigurations as they are now.
    pub fn configure(&self, schemas: &[Arc<Value>], levels: &[Arc<Value>]) {
        let mut configuration = self.configuration.write();
        let (kinds, claims): (Vec<Kind>, Vec<Claim>) = levels.iter().map(|level| spec(level)).unzip();
        let bounds = shares::divide(self.total, &claims);
        let text = |value: &Value, key: &str| value["metadata"][key].as_str().unwrap_or_default().to_owned();
        let old = std::mem::take(&mut *configuration);
        for ((object, kind), bounds) in levels.iter().zip(kinds).zip(bounds) {
            let (name, uid) = (text(object, "name"), text(object, "uid"));
            let before = old.levels.get(&name);
            let level = match before {
                // A share that changes anywhere moves the bounds of all levels: their requests go on to count.
                Some(level) if level.kind == kind && level.uid == uid => {
                    level.set_bounds(bounds);
                    level.clone()
                }
                _ => Arc::new(Level::new(&name, &uid, kind, bounds, before.map(|level| &**level))),
            };
            configuration.levels.insert(name, level);
        }
        let mut fresh: Vec<Schema> = schemas.iter().map(|schema| Schema::from_json(schema)).collect();
        fresh.retain(|schema| configuration.levels.contains_key(&schema.level));
        fresh.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        for mut schema in fresh {
            if let Some(before) = old.schemas.iter().find(|before| before.uid == schema.uid) {
                schema.counters = before.counters.clone();
            }
            configuration.schemas.push(Arc::new(schema));
        }
    }

    /// Lets a request in: `Ok(None)` when no schema catches it (before the first configuration).
    pub async fn enter(
        &self,
        api: &Api,
        user: &Arc<UserInfo>,
        info: &Arc<RequestInfo>,
        query: &Query,
    ) -> Result<Option<Ticket>, Rejection> {
        let (schema, level) = {
            let configuration = self.configuration.read();
            let Some(schema) = configuration.schemas.iter().find(|schema| schema.matches(user, info)) else {
                return Ok(None);
            };
            let Some(level) = configuration.levels.get(&schema.level) else { return Ok(None) };
            (schema.clone(), level.clone())
        };
        let seats = width(api, &level, info, query);
        let entry = self.seen.add(Seen::new(&schema, user, info, seats));
        match level.enter(&schema, schema.flow(user, info), seats, self.patience, Some(&entry.seen)).await {
            Ok(ticket) => {
                entry.seen.starts();
                Ok(Some(ticket.of(entry)))
            }
            Err(_) => {
                let refusals = self.refusals.fetch_add(1, Ordering::Relaxed);
                let retry_after = u64::from((refusals / self.total).clamp(1, 32));
                Err(Rejection { classified: (schema.shown.clone(), level.shown.clone()), retry_after })
            }
        }
    }

    /// Moves seats between levels by what was wanted in the last `period`.
    fn adjust(&self, period: Duration) {
        self.refusals.store(0, Ordering::Relaxed);
        let configuration = self.configuration.read();
        let (mut limited, mut inputs, mut exempt, mut total) = (Vec::new(), Vec::new(), 0, 0);
        for level in configuration.levels.values() {
            let (peak, average) = level.take_demand(period);
            let demand = level.demand.lock().after(peak, average);
            *level.demand.lock() = demand;
            let bounds = level.bounds();
            total += bounds.nominal;
            if level.kind == Kind::Exempt {
                exempt += bounds.least.max(peak);
            } else {
                limited.push(level);
                inputs.push((bounds, demand));
            }
        }
        for (level, limit) in limited.iter().zip(shares::borrow(&inputs, total, exempt)) {
            level.set_limit(limit);
        }
    }
}

/// A UID as answers carry it.
fn header(uid: &str) -> HeaderValue {
    HeaderValue::from_str(uid).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A `PriorityLevelConfiguration`'s specification. A level that is not limited is exempt.
fn spec(level: &Value) -> (Kind, Claim) {
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let exempt = level["spec"]["type"] == "Exempt";
    let part = if exempt { &level["spec"]["exempt"] } else { &level["spec"]["limited"] };
    let queuing = &part["limitResponse"]["queuing"];
    let size = |key: &str| number(&queuing[key]).unwrap_or(1) as usize;
    let kind = if exempt {
        Kind::Exempt
    } else if queuing.is_object() {
        Kind::Queue(Queuing {
            queues: size("queues"),
            hand_size: size("handSize"),
            length_limit: size("queueLengthLimit"),
        })
    } else {
        Kind::Reject
    };
    let claim = Claim {
        shares: number(&part["nominalConcurrencyShares"]).unwrap_or(if exempt { 0 } else { 30 }),
        lendable_percent: number(&part["lendablePercent"]).unwrap_or(0),
        borrowing_percent: number(&part["borrowingLimitPercent"]),
    };
    (kind, claim)
}

/// How many seats a request takes: lists and watches that begin with one by what they read.
fn width(api: &Api, level: &Level, info: &RequestInfo, query: &Query) -> u32 {
    let lists = match info.verb.as_str() {
        "list" => true,
        "watch" => query.flag("sendInitialEvents") || matches!(query.text("resourceVersion"), "" | "0"),
        _ => false,
    };
    if !lists || level.kind == Kind::Exempt || !info.name.is_empty() {
        return 1;
    }
    let resources = api.resources();
    let Some(endpoint) = resources.find(&info.group, &info.version, &info.resource) else { return 1 };
    let state = endpoint.cache.read();
    let average = state.scan("").next().map_or(0, |item| item.bytes.len());
    let limit = query.text("limit").parse::<usize>().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let bytes = state.len().min(limit).saturating_mul(average).min(MOST_BYTES);
    let widest = match level.kind {
        Kind::Queue(queuing) => level.bounds().widest(queuing.hand_size).min(WIDEST),
        _ => WIDEST,
    };
    u32::try_from(bytes.div_ceil(BYTES_PER_SEAT)).unwrap_or(u32::MAX).clamp(1, widest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn requests_go_on_to_count_when_another_level_gets_other_shares() {
        let flow = FlowControl::new((4, 2), Duration::from_secs(60));
        let level = |name: &str, shares: u32| {
            Arc::new(json!({"metadata": {"name": name, "uid": name}, "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": shares, "limitResponse": {"type": "Reject"}}}}))
        };
        let low = || flow.configuration.read().levels["low"].clone();
        flow.configure(&[], &[level("low", 1), level("high", 1)]);
        let schema = Arc::new(Schema::from_json(&json!({"metadata": {"name": "s"}, "spec": {}})));
        let ticket = low().enter(&schema, "", 3, Duration::ZERO, None).await.ok().unwrap();
        flow.configure(&[], &[level("low", 1), level("high", 5)]);
        assert_eq!((low().in_use(), low().bounds().nominal), (3, 1));
        assert!(low().enter(&schema, "", 1, Duration::ZERO, None).await.is_err(), "there is no seat left");
        drop(ticket);
        assert_eq!(low().in_use(), 0);
    }
}
