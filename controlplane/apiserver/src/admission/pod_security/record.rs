//! How pods were judged, for `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write;

use api::version;
use parking_lot::Mutex;

use super::checks::Level;
use super::policy::Policy;
use crate::admit::{Attributes, Operation};
use crate::http::metrics::head;

/// One for the process, as upstream's: plugins have no place of their own to be asked.
static COUNTS: Mutex<BTreeMap<(Counter, String), u64>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Counter {
    Errors,
    Evaluations,
    Exemptions,
}

#[derive(Debug, Clone, Copy)]
pub enum Mode {
    Enforce,
    Audit,
    Warn,
}

/// Labels of a request.
pub struct Of(String);

impl Of {
    /// `what`: `pod` or `controller`.
    pub fn new(attributes: &Attributes<'_>, what: &str) -> Self {
        let operation = if attributes.operation == Operation::Create { "create" } else { "update" };
        let subresource = attributes.subresource;
        Self(format!("request_operation=\"{operation}\",resource=\"{what}\",subresource=\"{subresource}\""))
    }
}

fn count(counter: Counter, labels: String) {
    *COUNTS.lock().entry((counter, labels)).or_default() += 1;
}

pub fn evaluation(allowed: bool, policy: &Policy, mode: Mode, of: &Of) {
    let decision = if allowed { "allow" } else { "deny" };
    let version = match policy.minor() {
        _ if policy.level == Level::Privileged || policy.version == "latest" => "latest",
        minor if minor <= version::MINOR => &policy.version,
        // Standards that are not known yet.
        _ => "future",
    };
    let mode = match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
        Mode::Warn => "warn",
    };
    let (level, of) = (policy.level.name(), &of.0);
    count(
        Counter::Evaluations,
        format!("decision=\"{decision}\",mode=\"{mode}\",policy_level=\"{level}\",policy_version=\"{version}\",{of}"),
    );
}

pub fn exemption(of: &Of) {
    count(Counter::Exemptions, of.0.clone());
}

pub fn error(fatal: bool, of: &Of) {
    count(Counter::Errors, format!("fatal=\"{fatal}\",{}", of.0));
}

/// The part of `/metrics`.
pub fn metrics(out: &mut String) {
    let counts = COUNTS.lock();
    for (counter, name, help) in [
        (
            Counter::Errors,
            "pod_security_errors_total",
            "Number of errors preventing normal evaluation. Non-fatal errors may result in the latest restricted profile being used for evaluation.",
        ),
        (
            Counter::Evaluations,
            "pod_security_evaluations_total",
            "Number of policy evaluations that occurred, not counting ignored or exempt requests.",
        ),
        (
            Counter::Exemptions,
            "pod_security_exemptions_total",
            "Number of exempt requests, not counting ignored or out of scope requests.",
        ),
    ] {
        head(out, name, "ALPHA", "counter", help);
        for ((_, labels), count) in counts.iter().filter(|((own, _), _)| *own == counter) {
            // Writing to text cannot fail.
            let _ = writeln!(out, "{name}{{{labels}}} {count}");
        }
    }
}
