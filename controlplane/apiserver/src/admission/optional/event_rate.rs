//! `EventRateLimit`: token buckets for events, of the whole server, of each namespace, of each user,
//! or of each source and object.
//!
//! Upstream: `plugin/pkg/admission/eventratelimit`. As there only core/v1 events count.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use api::field::{Error, Path};
use async_trait::async_trait;
use http::StatusCode;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use super::super::config::Configuration;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::value::text;

const GROUP: &str = "eventratelimit.admission.k8s.io";
/// Buckets that are kept, if the configuration does not say how many.
const KEPT: usize = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(default)]
    limits: Vec<Limit>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Limit {
    #[serde(rename = "type", default)]
    kind: String,
    /// Events a second.
    #[serde(default)]
    qps: i32,
    /// Events at once.
    #[serde(default)]
    burst: i32,
    #[serde(default)]
    cache_size: i32,
}

pub struct EventRateLimit {
    limits: Vec<(Limit, Mutex<Buckets>)>,
}

impl EventRateLimit {
    /// # Errors
    ///
    /// No configuration, or what is wrong with it.
    pub fn new(given: Option<&Configuration>) -> std::result::Result<Self, String> {
        let given =
            given.ok_or("EventRateLimit: it needs a configuration; name it with --admission-control-config-file")?;
        let Limits { limits } = given.typed(GROUP, &["v1alpha1"], "Configuration")?;
        let errors = mistakes(&limits);
        if !errors.is_empty() {
            return Err(given.wrong(api::field::join(&errors)));
        }
        Ok(Self { limits: limits.into_iter().map(|limit| (limit, Mutex::default())).collect() })
    }

    /// Every limit takes its token; the last that has none refuses.
    fn accept(&self, attributes: &Attributes<'_>, now: Instant) -> Result<()> {
        let mut outcome = Ok(());
        for (limit, buckets) in &self.limits {
            let key = key(&limit.kind, attributes);
            if !buckets.lock().take(&key, limit, now) {
                let message = format!("Too many requests: limit reached on type {} for key {key}", limit.kind);
                outcome = Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message));
            }
        }
        outcome
    }
}

fn mistakes(limits: &[Limit]) -> Vec<Error> {
    let path = Path::root("limits");
    let mut errors = Vec::new();
    if limits.is_empty() {
        errors.push(Error::invalid(&path, Value::Null, "must not be empty"));
    }
    for (at, limit) in limits.iter().enumerate() {
        let path = path.index(at);
        let kinds = ["Namespace", "Server", "SourceAndObject", "User"];
        if !kinds.contains(&limit.kind.as_str()) {
            errors.push(Error::not_supported(&path.child("type"), limit.kind.as_str(), &kinds));
        }
        for (field, value) in [("burst", limit.burst), ("qps", limit.qps)] {
            if value <= 0 {
                errors.push(Error::invalid(&path.child(field), value, "must be positive"));
            }
        }
        if limit.kind != "Server" && limit.cache_size < 0 {
            errors.push(Error::invalid(&path.child("cacheSize"), limit.cache_size, "must not be negative"));
        }
    }
    errors
}

/// What has a bucket of its own.
fn key(kind: &str, attributes: &Attributes<'_>) -> String {
    const OF_EVENT: [&str; 7] = [
        "source.component",
        "source.host",
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
    ];
    match kind {
        "Namespace" => attributes.namespace.to_owned(),
        "User" => attributes.user.name.clone(),
        "SourceAndObject" => OF_EVENT.iter().map(|field| text(&attributes.object, field)).collect(),
        _ => String::new(),
    }
}

/// Buckets by key; when there are too many the one goes that was not asked for longest.
#[derive(Default)]
struct Buckets {
    held: HashMap<Arc<str>, Bucket>,
    /// Their keys by `used`: the first is the one to go.
    order: BTreeMap<u64, Arc<str>>,
    asked: u64,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
    /// The number of the question that it last answered.
    used: u64,
}

impl Buckets {
    fn take(&mut self, key: &str, limit: &Limit, now: Instant) -> bool {
        self.asked += 1;
        let burst = f64::from(limit.burst);
        let most = usize::try_from(limit.cache_size).ok().filter(|most| *most > 0).unwrap_or(KEPT);
        let known = self.held.get(key).and_then(|bucket| self.order.remove(&bucket.used));
        let key = known.unwrap_or_else(|| {
            if self.held.len() >= most
                && let Some((_, oldest)) = self.order.pop_first()
            {
                self.held.remove(&oldest);
            }
            key.into()
        });
        self.order.insert(self.asked, key.clone());
        let bucket = self.held.entry(key).or_insert(Bucket { tokens: burst, filled: now, used: 0 });
        bucket.used = self.asked;
        let since = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + since * f64::from(limit.qps)).min(burst);
        bucket.filled = now;
        let there = bucket.tokens >= 1.0;
        if there {
            bucket.tokens -= 1.0;
        }
        there
    }
}

#[async_trait]
impl Admission for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        matches!(attributes.operation, Operation::Create | Operation::Update)
            && attributes.group.is_empty()
            && attributes.is("", "events")
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        self.accept(attributes, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::config::given;
    use super::super::super::fake::Request;
    use super::*;
    use crate::authn::UserInfo;
    use serde_json::json;

    fn plugin(limits: Value) -> std::result::Result<EventRateLimit, String> {
        EventRateLimit::new(Some(&given(
            json!({"apiVersion": "eventratelimit.admission.k8s.io/v1alpha1", "kind": "Configuration", "limits": limits}),
        )))
    }

    /// Asks for each letter's namespace, user and component in turn; `.` waits a second. Small
    /// letters are to be refused.
    fn run(limits: Value, requests: &str) {
        let plugin = plugin(limits.clone()).unwrap();
        let mut now = Instant::now();
        for (at, letter) in requests.chars().enumerate() {
            if letter == '.' {
                now += Duration::from_secs(1);
                continue;
            }
            let name = letter.to_ascii_uppercase().to_string();
            let mut request =
                Request::create("", "events", json!({"metadata": {"namespace": name}, "source": {"component": name}}));
            request.user = UserInfo::new(&name, &[]);
            let outcome = request.with_attributes(|attributes| plugin.accept(attributes, now));
            assert_eq!(outcome.is_ok(), letter.is_ascii_uppercase(), "{limits}: {requests} at {at}: {outcome:?}");
            if let Err(error) = outcome {
                assert_eq!(error.code(), StatusCode::TOO_MANY_REQUESTS);
            }
        }
    }

    /// Upstream's rows (`TestEventRateLimiting`).
    #[test]
    fn events_are_limited() {
        let server = |burst: i32| json!({"type": "Server", "qps": 1, "burst": burst});
        for (limits, requests) in
            [(json!([server(3)]), "A"), (json!([server(3)]), "AAAa"), (json!([server(3)]), "AAAa.A")]
        {
            run(limits, requests);
        }
        for kind in ["Namespace", "User", "SourceAndObject"] {
            for (kept, requests) in
                [(10, "AAAa"), (10, "AAAB"), (10, "AABA"), (10, "AAAa.A"), (10, "AAABa"), (2, "AABBBAbaCaB")]
            {
                let own = json!({"type": kind, "qps": 1, "burst": 3, "cacheSize": kept});
                run(json!([server(100), own]), requests);
            }
        }
    }

    #[test]
    fn no_more_buckets_are_kept_than_said_and_the_coldest_goes() {
        let limit: Limit =
            serde_json::from_value(json!({"type": "User", "qps": 1, "burst": 1, "cacheSize": 3})).unwrap();
        let (mut buckets, now) = (Buckets::default(), Instant::now());
        for key in ["a", "b", "c", "a", "d", "e", "d"] {
            buckets.take(key, &limit, now);
            assert_eq!(buckets.held.len(), buckets.order.len());
        }
        let order: Vec<&str> = buckets.order.values().map(|key| &**key).collect();
        assert_eq!(order, ["a", "e", "d"], "from the coldest");
        assert!(order.iter().all(|key| buckets.held.contains_key(*key)));
    }

    #[test]
    fn every_part_of_source_and_object_tells_events_apart() {
        for (object, field) in [
            ("source", "host"),
            ("involvedObject", "kind"),
            ("involvedObject", "namespace"),
            ("involvedObject", "name"),
            ("involvedObject", "uid"),
            ("involvedObject", "apiVersion"),
        ] {
            let plugin = plugin(json!([{"type": "SourceAndObject", "qps": 1, "burst": 1}])).unwrap();
            let now = Instant::now();
            let ask = |label: &str| {
                let request = Request::create("", "events", json!({object: {field: label}}));
                request.with_attributes(|attributes| plugin.accept(attributes, now)).is_ok()
            };
            assert_eq!([ask("A"), ask("A"), ask("B")], [true, false, true], "{object}.{field}");
        }
    }

    #[test]
    fn mistakes_are_named_by_their_field() {
        for (limits, expected) in [
            (json!([]), "plugin: file: limits: Invalid value: null: must not be empty"),
            (
                json!([{"type": "Other", "qps": 1, "burst": 1}]),
                "limits[0].type: Unsupported value: \"Other\": supported values: \"Namespace\", \"Server\", \"SourceAndObject\", \"User\"",
            ),
            (json!([{"type": "Server", "qps": 1}]), "limits[0].burst: Invalid value: 0: must be positive"),
            (json!([{"type": "Server", "burst": 1, "qps": -1}]), "limits[0].qps: Invalid value: -1: must be positive"),
            (
                json!([{"type": "User", "burst": 1, "qps": 1, "cacheSize": -1}]),
                "limits[0].cacheSize: Invalid value: -1: must not be negative",
            ),
            (json!([{"type": "Server", "rate": 1}]), "unknown field `rate`"),
        ] {
            let error = plugin(limits).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
        assert!(EventRateLimit::new(None).err().unwrap().contains("--admission-control-config-file"));
    }
}
