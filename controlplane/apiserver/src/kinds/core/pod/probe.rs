//! Validation of probes and lifecycle hooks.

use api::field::ErrorList;

use crate::kinds::check::Node;

/// The three probes of a container.
pub fn validate_all(container: &Node<'_>, errors: &mut ErrorList) {
    for (field, success_is_one) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
        let probe = container.child(field);
        if !probe.exists() {
            continue;
        }
        validate(&probe, errors);
        let threshold = probe.child("successThreshold");
        if success_is_one && threshold.int() != 1 {
            threshold.invalid(errors, "must be 1");
        }
        if field == "readinessProbe" && probe.has("terminationGracePeriodSeconds") {
            probe.child("terminationGracePeriodSeconds").invalid(errors, "must not be set for readinessProbes");
        }
    }
}

fn validate(probe: &Node<'_>, errors: &mut ErrorList) {
    handler(probe, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        probe.child(field).non_negative(errors);
    }
    let grace = probe.child("terminationGracePeriodSeconds");
    if grace.exists() && grace.int() <= 0 {
        grace.invalid(errors, "must be greater than 0");
    }
}

/// Hooks after start and before stop. `grace_period` in seconds bounds a sleep.
pub fn lifecycle(lifecycle: &Node<'_>, grace_period: i64, errors: &mut ErrorList) {
    for field in ["postStart", "preStop"] {
        let hook = lifecycle.child(field);
        if !hook.exists() {
            continue;
        }
        handler(&hook, errors);
        let seconds = hook.child("sleep.seconds");
        if hook.has("sleep") && !(0..=grace_period).contains(&seconds.int()) {
            seconds.invalid(
                errors,
                format!("must be non-negative and less than terminationGracePeriodSeconds ({grace_period})"),
            );
        }
    }
}

/// Exactly one of the handlers.
fn handler(owner: &Node<'_>, errors: &mut ErrorList) {
    let mut handlers = 0;
    for field in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let found = owner.child(field);
        if !found.exists() {
            continue;
        }
        if handlers > 0 {
            found.forbidden(errors, "may not specify more than 1 handler type");
            continue;
        }
        handlers += 1;
        match field {
            "exec" => {
                found.child("command").required(errors, "");
            }
            "httpGet" => http_get(&found, errors),
            "tcpSocket" => found.child("port").port_or_name(errors),
            "grpc" => found.child("port").port_number(errors),
            _ => {}
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
        let name = header.child("name");
        let valid = !name.text().is_empty() && name.text().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !valid {
            name.invalid(errors, "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')");
        }
    }
}
