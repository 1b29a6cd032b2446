//! How one certificate of a pod comes and is renewed: the state machine, pure
//! (`pkg/kubelet/podcertificate`).
//!
//! ```text
//!            asked              issued              it is time to renew
//! Idle(none) ─────► Asked(none) ──────► Idle(held) ─────────────────────► Asked(held) ─► Idle(held)
//!     ▲                │ │                  ▲                                 │ │
//!     └─── it went ────┘ │                  └──────────── it went ────────────┘ │
//!                        └────────── denied, failed: Refused, for good ◄────────┘
//! ```

use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::bundle::{self, Credential};
use crate::downward::quote;

/// A request that is not seen so long after it was made was deleted; earlier, the watch may be late.
const LOST_AFTER: Duration = Duration::from_secs(10 * 60);
/// A certificate is overdue so long after it was to be renewed.
const OVERDUE_AFTER: Duration = Duration::from_secs(10 * 60);

/// A certificate that the pod has.
pub struct Held {
    credential: Arc<Credential>,
    renew_at: Timestamp,
    expires: Timestamp,
    overdue_told: bool,
    expiry_told: bool,
}

/// A request that was made, and the key that waits for its certificate.
pub struct Asked {
    key: String,
    request: String,
    lost_at: Timestamp,
}

/// The signer's last word.
pub struct Refusal {
    /// `denied` or `failed`.
    how: &'static str,
    reason: String,
    message: String,
}

/// Where a certificate is.
pub enum State {
    /// Nothing is asked for: there is no certificate yet, or one that is good for a while.
    Idle(Option<Held>),
    /// The signer has not answered.
    Asked(Asked, Option<Held>),
    /// No other request will be made. The pod keeps what it has.
    Refused(Refusal, Option<Held>),
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A key, and a request for it.
    Ask,
    /// Nothing until the request changes, or until this moment.
    Wait(Option<Timestamp>),
}

/// What the pod's events tell.
#[derive(Debug, PartialEq, Eq)]
pub struct Notice {
    pub reason: &'static str,
    pub message: String,
}

pub struct Step {
    pub state: State,
    pub next: Next,
    pub notices: Vec<Notice>,
}

/// What there is for the pod's files.
#[derive(PartialEq, Eq)]
pub enum Answer {
    NotYet,
    Issued(Arc<Credential>),
    /// Why there is none and will be none.
    Never(String),
}

impl Default for State {
    fn default() -> Self {
        Self::Idle(None)
    }
}

impl State {
    /// `seen`: the request that was asked with, as it is now. `jitter` keeps certificates that were issued
    /// together from being renewed together.
    pub fn step(self, seen: Option<&PodCertificateRequest>, now: Timestamp, jitter: Duration) -> Step {
        match self {
            State::Idle(None) => Step::quiet(self, Next::Ask),
            State::Idle(Some(held)) if now < held.renew_at => held.rest(),
            State::Idle(Some(mut held)) => {
                let notices = held.late(now);
                Step { notices, ..Step::quiet(State::Idle(Some(held)), Next::Ask) }
            }
            State::Asked(asked, held) => match seen {
                Some(request) => asked.look_at(request, held, now, jitter),
                None if now < asked.lost_at => {
                    let until = asked.lost_at;
                    asked.wait(held, now, Some(until))
                }
                None => Step::quiet(State::Idle(held), Next::Ask),
            },
            State::Refused(..) => Step::quiet(self, Next::Wait(None)),
        }
    }

    /// After [`Next::Ask`]: a request was made. What there is stays until it is answered.
    pub fn asked(self, asked: Asked) -> Self {
        match self {
            State::Idle(held) | State::Asked(_, held) => State::Asked(asked, held),
            refused @ State::Refused(..) => refused,
        }
    }

    /// The name of the request that waits for its answer.
    pub fn request(&self) -> Option<&str> {
        match self {
            State::Asked(asked, _) => Some(&asked.request),
            State::Idle(_) | State::Refused(..) => None,
        }
    }

    /// A pod keeps what it has also when it is refused another.
    pub fn answer(&self) -> Answer {
        match self {
            State::Idle(Some(held)) | State::Asked(_, Some(held)) | State::Refused(_, Some(held)) => {
                Answer::Issued(held.credential.clone())
            }
            State::Refused(refusal, None) => Answer::Never(refusal.to_string()),
            State::Idle(None) | State::Asked(_, None) => Answer::NotYet,
        }
    }

    /// As the metric `kubelet_podcertificate_states` names it.
    pub fn name(&self, now: Timestamp) -> &'static str {
        match self {
            State::Refused(refusal, _) => refusal.how,
            State::Idle(None) | State::Asked(_, None) => "not_yet_issued",
            State::Idle(Some(held)) | State::Asked(_, Some(held)) if now > held.expires => "expired",
            State::Idle(Some(held)) | State::Asked(_, Some(held)) if now > held.overdue_at() => "overdue_for_refresh",
            State::Idle(Some(_)) | State::Asked(_, Some(_)) => "fresh",
        }
    }
}

impl Step {
    fn quiet(state: State, next: Next) -> Self {
        Self { state, next, notices: Vec::new() }
    }
}

impl Asked {
    /// `created`: when the API server took the request.
    pub fn new(key: String, request: String, created: Timestamp, jitter: Duration) -> Self {
        Self { key, request, lost_at: after(after(created, LOST_AFTER), jitter) }
    }

    fn look_at(self, request: &PodCertificateRequest, held: Option<Held>, now: Timestamp, jitter: Duration) -> Step {
        let Some((status, end)) = end_of(request) else { return self.wait(held, now, None) };
        let how = match end.type_.as_str() {
            "Denied" => "denied",
            "Failed" => "failed",
            _ => return Held::new(self.key, status, jitter).rest(),
        };
        let refusal = Refusal { how, reason: end.reason.clone(), message: end.message.clone() };
        let notices = vec![refusal.notice(request)];
        Step { notices, ..Step::quiet(State::Refused(refusal, held), Next::Wait(None)) }
    }

    fn wait(self, mut held: Option<Held>, now: Timestamp, until: Option<Timestamp>) -> Step {
        let notices = held.as_mut().map(|held| held.late(now)).unwrap_or_default();
        let next = until.into_iter().chain(held.as_ref().and_then(Held::next_notice)).min();
        Step { notices, ..Step::quiet(State::Asked(self, held), Next::Wait(next)) }
    }
}

impl Held {
    fn new(key: String, status: &PodCertificateRequestStatus, jitter: Duration) -> Self {
        // The API server takes no certificate without its times.
        let time = |time: &Option<Time>| time.as_ref().map_or(Timestamp::MAX, |time| time.0);
        let chain = bundle::clean(status.certificate_chain.as_deref().unwrap_or_default());
        Self {
            credential: Arc::new(Credential { key, chain }),
            renew_at: after(time(&status.begin_refresh_at), jitter),
            expires: time(&status.not_after),
            overdue_told: false,
            expiry_told: false,
        }
    }

    fn rest(self) -> Step {
        let renewal = self.renew_at;
        Step::quiet(State::Idle(Some(self)), Next::Wait(Some(renewal)))
    }

    fn overdue_at(&self) -> Timestamp {
        after(self.renew_at, OVERDUE_AFTER)
    }

    /// What is to be told now, each once in a certificate's life.
    fn late(&mut self, now: Timestamp) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut tell = |told: &mut bool, due: Timestamp, reason, message: &str| {
            if !*told && now >= due {
                *told = true;
                notices.push(Notice { reason, message: message.to_owned() });
            }
        };
        let (overdue_at, expires) = (self.overdue_at(), self.expires);
        tell(&mut self.overdue_told, overdue_at, "CertificateOverdueForRefresh", "PodCertificate refresh overdue");
        tell(&mut self.expiry_told, expires, "CertificateExpired", "PodCertificate expired");
        notices
    }

    fn next_notice(&self) -> Option<Timestamp> {
        let overdue = (!self.overdue_told).then(|| self.overdue_at());
        let expiry = (!self.expiry_told).then_some(self.expires);
        overdue.into_iter().chain(expiry).min()
    }
}

impl Refusal {
    fn notice(&self, request: &PodCertificateRequest) -> Notice {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let name = format!("{}/{}", text(&request.metadata.namespace), text(&request.metadata.name));
        let (reason, what) = if self.how == "denied" { ("Denied", "was denied") } else { ("Failed", "failed") };
        let (why, said) = (quote(&self.reason), quote(&self.message));
        Notice { reason, message: format!("PodCertificateRequest {name} {what}, reason={why}, message={said}") }
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reason, message) = (quote(&self.reason), quote(&self.message));
        write!(f, "PodCertificateRequest was permanently {}: reason={reason} message={message}", self.how)
    }
}

/// The condition that ends a request.
fn end_of(request: &PodCertificateRequest) -> Option<(&PodCertificateRequestStatus, &Condition)> {
    let status = request.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let end = conditions.find(|condition| matches!(condition.type_.as_str(), "Issued" | "Denied" | "Failed"))?;
    Some((status, end))
}

fn after(moment: Timestamp, delay: Duration) -> Timestamp {
    moment.checked_add(delay).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const JITTER: Duration = Duration::from_secs(60);

    /// Minutes since the beginning.
    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    fn request(end: Option<&str>) -> PodCertificateRequest {
        let times = json!({"notBefore": at(0).to_string(), "beginRefreshAt": at(30).to_string(), "notAfter": at(60).to_string()});
        let condition = |end: &str| json!({"type": end, "status": "True", "reason": "R", "message": "a \"b\"", "lastTransitionTime": at(0).to_string()});
        let mut object = json!({"metadata": {"namespace": "ns", "name": "req-1"}, "spec": {}, "status": {}});
        if end == Some("Issued") {
            object["status"] = times;
        }
        object["status"]["conditions"] = end.map(|end| vec![condition(end)]).unwrap_or_default().into();
        serde_json::from_value(object).unwrap()
    }

    fn asked() -> Asked {
        Asked::new("key".to_owned(), "req-1".to_owned(), at(0), JITTER)
    }

    fn step(state: State, seen: Option<&PodCertificateRequest>, minutes: i64) -> (State, Next, String) {
        let Step { state, next, notices } = state.step(seen, at(minutes), JITTER);
        let notices: Vec<String> = notices.into_iter().map(|notice| notice.reason.to_owned()).collect();
        (state, next, notices.join(","))
    }

    fn kind(state: &State) -> &'static str {
        match state {
            State::Idle(None) => "idle",
            State::Idle(Some(_)) => "held",
            State::Asked(_, None) => "asked",
            State::Asked(_, Some(_)) => "renewing",
            State::Refused(..) => "refused",
        }
    }

    /// To be renewed at minute 31, overdue from 41, expired from 60.
    fn held() -> Held {
        Held::new("key".to_owned(), request(Some("Issued")).status.as_ref().unwrap(), JITTER)
    }

    #[test]
    fn certificates_come_and_are_renewed() {
        let wait = |minutes: i64| Next::Wait(Some(at(minutes)));
        let (pending, issued) = (request(None), request(Some("Issued")));
        let (denied, failed) = (request(Some("Denied")), request(Some("Failed")));
        for (state, seen, minutes, expected) in [
            (State::Idle(None), None, 0, ("idle", Next::Ask, "")),
            // the watch may be late, or somebody deleted it
            (State::Asked(asked(), None), None, 10, ("asked", wait(11), "")),
            (State::Asked(asked(), None), None, 11, ("idle", Next::Ask, "")),
            (State::Asked(asked(), Some(held())), None, 11, ("held", Next::Ask, "")),
            (State::Asked(asked(), None), Some(&pending), 90, ("asked", Next::Wait(None), "")),
            (State::Asked(asked(), None), Some(&issued), 1, ("held", wait(31), "")),
            (State::Asked(asked(), Some(held())), Some(&issued), 32, ("held", wait(31), "")),
            (State::Asked(asked(), None), Some(&denied), 1, ("refused", Next::Wait(None), "Denied")),
            (State::Asked(asked(), Some(held())), Some(&failed), 32, ("refused", Next::Wait(None), "Failed")),
            (State::Idle(Some(held())), None, 30, ("held", wait(31), "")),
            (State::Idle(Some(held())), None, 31, ("held", Next::Ask, "")),
            (State::Idle(Some(held())), None, 41, ("held", Next::Ask, "CertificateOverdueForRefresh")),
            // what is late while its renewal is not answered
            (State::Asked(asked(), Some(held())), Some(&pending), 32, ("renewing", wait(41), "")),
            (
                State::Asked(asked(), Some(held())),
                Some(&pending),
                41,
                ("renewing", wait(60), "CertificateOverdueForRefresh"),
            ),
            (
                State::Asked(asked(), Some(held())),
                Some(&pending),
                60,
                ("renewing", Next::Wait(None), "CertificateOverdueForRefresh,CertificateExpired"),
            ),
        ] {
            let before = kind(&state);
            let (state, next, notices) = step(state, seen, minutes);
            assert_eq!((kind(&state), next, notices.as_str()), expected, "{before} at minute {minutes}");
        }
    }

    #[test]
    fn what_is_late_is_told_once() {
        let pending = request(None);
        let (state, _, first) = step(State::Asked(asked(), Some(held())), Some(&pending), 42);
        let (state, _, second) = step(state, Some(&pending), 43);
        let (_, _, third) = step(state, Some(&pending), 61);
        assert_eq!(
            [first.as_str(), second.as_str(), third.as_str()],
            ["CertificateOverdueForRefresh", "", "CertificateExpired"]
        );
    }

    #[test]
    fn refusals_are_final_and_leave_what_there_is() {
        for (end, how) in [("Denied", "denied"), ("Failed", "failed")] {
            let refused = request(Some(end));
            let Step { state, notices, .. } = State::Asked(asked(), None).step(Some(&refused), at(1), JITTER);
            let what = if how == "denied" { "was denied" } else { "failed" };
            let told = format!("PodCertificateRequest ns/req-1 {what}, reason=\"R\", message=\"a \\\"b\\\"\"");
            assert_eq!(notices, [Notice { reason: end, message: told }]);
            let why = format!("PodCertificateRequest was permanently {how}: reason=\"R\" message=\"a \\\"b\\\"\"");
            assert!(state.answer() == Answer::Never(why));
            let state = state.asked(asked());
            assert_eq!((kind(&state), state.name(at(1))), ("refused", how));
            let (state, ..) = step(State::Asked(asked(), Some(held())), Some(&refused), 32);
            assert!(state.answer() == State::Idle(Some(held())).answer());
        }
    }

    #[test]
    fn states_have_the_names_of_the_metric() {
        for (state, minutes, name) in [
            (State::Idle(None), 0, "not_yet_issued"),
            (State::Asked(asked(), None), 0, "not_yet_issued"),
            (State::Idle(Some(held())), 40, "fresh"),
            (State::Asked(asked(), Some(held())), 42, "overdue_for_refresh"),
            (State::Asked(asked(), Some(held())), 61, "expired"),
        ] {
            assert_eq!(state.name(at(minutes)), name, "{minutes}");
        }
    }
}
