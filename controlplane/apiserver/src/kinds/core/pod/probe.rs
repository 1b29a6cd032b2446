//! Validation of probes and lifecycle hooks.

use api::field::{Error, ErrorList};

use super::container::PodFacts;
use crate::kinds::check::Node;

const HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";

/// The three probes of a container.
pub fn validate_all(container: &Node<'_>, errors: &mut ErrorList) {
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.child(field);
        if !probe.exists() {
            continue;
        }
        validate(&probe, errors);
        if field == "readinessProbe" {
            if probe.has("terminationGracePeriodSeconds") {
                probe.child("terminationGracePeriodSeconds").invalid(errors, "must not be set for readinessProbes");
            }
        } else if probe.child("successThreshold").int() != 1 {
            let threshold = probe.child("successThreshold");
            errors.push(Error::invalid(&threshold.path, threshold.int(), "must be 1"));
        }
    }
}

fn validate(probe: &Node<'_>, errors: &mut ErrorList) {
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], i64::MAX, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        probe.child(field).non_negative(errors);
    }
    let grace = probe.child("terminationGracePeriodSeconds");
    if grace.exists() {
        grace.positive(errors);
    }
}

/// Hooks after start and before stop. A sleep ends within the grace period.
pub fn lifecycle(lifecycle: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    for field in ["postStart", "preStop"] {
        let hook = lifecycle.child(field);
        if hook.exists() {
            handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], facts.grace_period, errors);
        }
    }
    let signal = lifecycle.child("stopSignal");
    if !signal.exists() {
        return;
    }
    match facts.os {
        "" => signal.forbidden(errors, "may not be set for containers with empty `spec.os.name`"),
        "windows" => {
            signal.one_of(errors, &["SIGKILL", "SIGTERM"]);
        }
        "linux" => {
            let known = linux_signals();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            signal.one_of(errors, &known);
        }
        _ => {}
    }
}

/// `SIGABRT` … `SIGXFSZ`, `SIGRTMIN` to `SIGRTMIN+15`, `SIGRTMAX-14` to `SIGRTMAX`: sorted, as messages
/// list them.
fn linux_signals() -> Vec<String> {
    const NAMED: &str = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT \
                         STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX";
    let named = NAMED.split_whitespace().map(|name| format!("SIG{name}"));
    let low = (1..=15).map(|offset| format!("SIGRTMIN+{offset}"));
    let high = (1..=14).map(|offset| format!("SIGRTMAX-{offset}"));
    let mut signals: Vec<String> = named.chain(low).chain(high).collect();
    signals.sort_unstable();
    signals
}

/// Exactly one of the handlers. `grace_period` in seconds bounds a sleep.
fn handler(owner: &Node<'_>, kinds: &[&str], grace_period: i64, errors: &mut ErrorList) {
    let mut handlers = 0;
    for field in kinds {
        let found = owner.child(field);
        if !found.exists() {
            continue;
        }
        if handlers > 0 {
            found.forbidden(errors, "may not specify more than 1 handler type");
            continue;
        }
        handlers += 1;
        match *field {
            "exec" => {
                found.child("command").required(errors, "");
            }
            "httpGet" => http_get(&found, errors),
            "tcpSocket" => found.child("port").port_or_name(errors),
            "grpc" => found.child("port").port_number(errors),
            _ => {
                let seconds = found.child("seconds").int();
                if !(0..=grace_period).contains(&seconds) {
                    let detail =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace_period})");
                    errors.push(Error::invalid(&found.path, seconds, detail));
                }
            }
        }
    }
    if handlers == 0 {
        owner.missing(errors, "must specify a handler type");
    }
}

fn http_get(get: &Node<'_>, errors: &mut ErrorList) {
    get.child("path").required(errors, "");
    get.child("port").port_or_name(errors);
    get.child("scheme").one_of(errors, &["HTTP", "HTTPS"]);
    for header in get.items("httpHeaders") {
        let name = header.child("name").text();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            errors.push(Error::invalid(&get.child("httpHeaders").path, name, HEADER));
        }
    }
}
