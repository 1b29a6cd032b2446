//! What is recorded of one request, from its arrival until its last byte.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;
use http::request::Parts;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::Audit;
use super::policy::{Decision, Level, Stage};
use crate::authn::UserInfo;
use crate::http::info::RequestInfo;
use crate::registry::user_object;
use crate::webhook::PATCH;

/// One audited request. Its last stage is reported when the last holder lets go: the pipeline, or
/// the stream that a watch or a tunnel is.
pub struct Record {
    audit: Arc<Audit>,
    decision: Decision,
    received: Timestamp,
    /// What does not change after the start.
    fixed: Map<String, Value>,
    known: Mutex<Known>,
    ended: AtomicBool,
}

/// What is found out on the way.
#[derive(Default)]
struct Known {
    impersonated: Option<Value>,
    constraint: Option<String>,
    annotations: BTreeMap<String, String>,
    request: Option<Value>,
    response: Option<Value>,
    status: Option<Value>,
    /// Parts of `objectRef` that are in the body only.
    about: Map<String, Value>,
}

/// The addresses a request came through, the closest last.
pub fn source_addresses(headers: &HeaderMap, peer: Option<std::net::IpAddr>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let valid = |text: &str| text.trim().parse::<std::net::IpAddr>().ok().map(|address| address.to_string());
    let mut addresses: Vec<String> = text("x-forwarded-for").split(',').filter_map(valid).collect();
    addresses.extend(valid(text("x-real-ip")).filter(|address| !addresses.contains(address)));
    addresses.extend(peer.map(|address| address.to_string()).filter(|address| addresses.last() != Some(address)));
    addresses
}

fn object_reference(info: &RequestInfo) -> Value {
    let mut reference = Map::new();
    for (key, value) in [
        ("resource", &info.resource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("subresource", &info.subresource),
    ] {
        if !value.is_empty() {
            reference.insert(key.to_owned(), value.as_str().into());
        }
    }
    reference.into()
}

impl Record {
    pub(super) fn new(
        audit: Arc<Audit>,
        decision: Decision,
        id: &str,
        user: &UserInfo,
        (parts, info): (&Parts, &RequestInfo),
        peer: Option<std::net::IpAddr>,
    ) -> Self {
        let mut fixed = Map::new();
        fixed.insert("kind".into(), "Event".into());
        fixed.insert("apiVersion".into(), "audit.k8s.io/v1".into());
        fixed.insert("level".into(), decision.level.name().into());
        fixed.insert("auditID".into(), id.into());
        fixed.insert("requestURI".into(), parts.uri.path_and_query().map_or("/", |path| path.as_str()).into());
        fixed.insert("verb".into(), info.verb.as_str().into());
        fixed.insert("user".into(), user_object(user));
        let addresses = source_addresses(&parts.headers, peer);
        if !addresses.is_empty() {
            fixed.insert("sourceIPs".into(), addresses.into());
        }
        if let Some(agent) = parts.headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok()) {
            fixed.insert("userAgent".into(), agent.chars().take(1024).collect::<String>().into());
        }
        if info.is_resource {
            fixed.insert("objectRef".into(), object_reference(info));
        }
        Self {
            audit,
            decision,
            received: Timestamp::now(),
            fixed,
            known: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    pub fn wants_request(&self) -> bool {
        self.decision.level >= Level::Request
    }

    pub fn wants_response(&self) -> bool {
        self.decision.level >= Level::RequestResponse
    }

    /// Patches are parts of the request's object: they are told where that is.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        let key = key.into();
        if key.starts_with(PATCH) && !self.wants_request() {
            return;
        }
        self.known.lock().annotations.entry(key).or_insert_with(|| value.into());
    }

    pub fn impersonated(&self, user: &UserInfo, constraint: Option<&str>) {
        let mut known = self.known.lock();
        known.impersonated = Some(user_object(user));
        known.constraint = constraint.map(str::to_owned);
    }

    /// The object in the body of a create or an update: its URL may not name it.
    pub fn about(&self, object: &Value) {
        let part = |key: &str| {
            let text = object["metadata"][key].as_str().filter(|text| !text.is_empty())?;
            Some((key.to_owned(), text.into()))
        };
        self.known.lock().about =
            ["name", "namespace", "uid", "resourceVersion"].into_iter().filter_map(part).collect();
    }

    pub fn request_object(&self, object: Value) {
        self.known.lock().request = Some(self.trimmed(object));
    }

    pub fn response_object(&self, object: Value) {
        self.known.lock().response = Some(self.trimmed(object));
    }

    /// How the request was answered; `status`: the `Status` object, where one was sent.
    pub fn answered(&self, code: u16, mut status: Option<Value>) {
        let mut shown = json!({"metadata": {}, "code": code});
        for key in ["status", "message", "reason", "details"] {
            if let Some(value) = status.as_mut().and_then(|status| status.get_mut(key)) {
                shown[key] = value.take();
            }
        }
        self.known.lock().status = Some(shown);
    }

    fn trimmed(&self, mut object: Value) -> Value {
        if self.decision.omit_managed_fields {
            let items = match object.get_mut("items") {
                Some(Value::Array(items)) => items.iter_mut().collect(),
                _ => vec![&mut object],
            };
            for metadata in items.into_iter().filter_map(|item| item.get_mut("metadata")?.as_object_mut()) {
                metadata.remove("managedFields");
            }
        }
        object
    }

    /// Reports the request at a stage that is not its last.
    pub fn stage(&self, stage: Stage) {
        if let Some(event) = self.event(stage) {
            self.audit.offer(event);
        }
    }

    /// Reports the end: waits while the queue is full.
    pub async fn end(&self, stage: Stage) {
        if !self.ended.swap(true, Ordering::AcqRel)
            && let Some(event) = self.event(stage)
        {
            self.audit.hand_over(event).await;
        }
    }

    fn event(&self, stage: Stage) -> Option<Value> {
        if self.decision.omit_stages.contains(&stage) {
            return None;
        }
        let time = |time: Timestamp| Value::from(format!("{time:.6}"));
        let at = if stage == Stage::RequestReceived { self.received } else { Timestamp::now() };
        let mut event = self.fixed.clone();
        event.insert("stage".into(), stage.name().into());
        event.insert("requestReceivedTimestamp".into(), time(self.received));
        event.insert("stageTimestamp".into(), time(at));
        let known = self.known.lock();
        if let Some(Value::Object(reference)) = event.get_mut("objectRef") {
            for (key, value) in &known.about {
                reference.entry(key).or_insert_with(|| value.clone());
            }
        }
        let optional = [
            ("impersonatedUser", known.impersonated.clone()),
            ("authenticationMetadata", known.constraint.as_ref().map(|verb| json!({"impersonationConstraint": verb}))),
            ("requestObject", known.request.clone()),
            ("responseObject", known.response.clone()),
            ("responseStatus", known.status.clone()),
            ("annotations", (!known.annotations.is_empty()).then(|| json!(known.annotations))),
        ];
        event.extend(optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Some(event.into())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !*self.ended.get_mut() {
            if self.known.get_mut().status.is_none() {
                let early = json!({"status": "Success", "message": "Connection closed early"});
                self.answered(200, Some(early));
            }
            self.stage(Stage::ResponseComplete);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::audit::Policy;

    /// A record, and what becomes of it.
    fn record(level: Level) -> (Record, tokio::sync::mpsc::Receiver<Value>) {
        let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}";
        let policy = Policy::parse(text).unwrap();
        let (queue, events) = tokio::sync::mpsc::channel(10);
        let audit = Audit { policy, queue, events: AtomicU64::new(0), lost: AtomicU64::new(0) };
        let decision = Decision { level, omit_stages: Vec::new(), omit_managed_fields: false };
        let (parts, ()) = http::Request::post("/api/v1/pods").body(()).unwrap().into_parts();
        let (user, info) = (UserInfo::new("jane", &[]), RequestInfo { is_resource: true, ..RequestInfo::default() });
        (Record::new(Arc::new(audit), decision, "id", &user, (&parts, &info), None), events)
    }

    #[test]
    fn bodies_are_asked_for_where_they_are_recorded() {
        for (level, request, response) in
            [(Level::Metadata, false, false), (Level::Request, true, false), (Level::RequestResponse, true, true)]
        {
            let (record, _events) = record(level);
            assert_eq!((record.wants_request(), record.wants_response()), (request, response), "{level:?}");
        }
    }

    #[test]
    fn patches_of_webhooks_are_told_where_the_object_is() {
        for (level, told) in [(Level::Metadata, false), (Level::Request, true)] {
            let (record, mut events) = record(level);
            record.annotate(format!("{PATCH}round_0_index_0"), "{}");
            record.annotate("other", "x");
            drop(record);
            let event = events.try_recv().unwrap();
            assert_eq!(event["annotations"][format!("{PATCH}round_0_index_0")].is_string(), told, "{level:?}");
            assert_eq!(event["annotations"]["other"], "x");
        }
    }

    #[test]
    fn what_is_known_without_a_body_is_told() {
        let (record, mut events) = record(Level::Metadata);
        record.about(&json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "", "uid": "u"}, "spec": {}}));
        let sent = json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "metadata": {"x": 1}});
        record.answered(409, Some(sent));
        drop(record);
        let event = events.try_recv().unwrap();
        assert_eq!(event["objectRef"], json!({"name": "a", "uid": "u"}));
        let status = json!({"metadata": {}, "code": 409, "status": "Failure", "reason": "Conflict"});
        assert_eq!(event["responseStatus"], status);
        assert_eq!(event["stage"], "ResponseComplete");
    }
}
