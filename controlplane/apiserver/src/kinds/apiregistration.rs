//! The `apiregistration.k8s.io` group: APIService.

use api::field::{Error, ErrorList, Path};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::Node;
use super::table::{named, row, words};
use super::value::{default, has, list, name, set, text};
use crate::resource::{Column, Context, Descriptor, Hooks, NameRule, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), ApiService)]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("apiregistration.k8s.io", "v1", "APIService", "apiservices")
        .cluster_scoped()
        .categories(&["api-extensions"])
        .stored_under("apiregistration.k8s.io/apiservices")
        .names(NameRule::PathSegment)
        .with_status();
    descriptor.unconditional_update = false;
    descriptor
}

struct ApiService;

impl Hooks for ApiService {
    fn defaults(&self, service: &mut Value) {
        if has(service, "spec.service") {
            default(service, "spec.service.port", 443);
        }
    }

    fn prepare_create(&self, _ctx: &Context<'_>, service: &mut Value) {
        // What the server itself serves is available from the start.
        let local = !has(service, "spec.service");
        let status = if local {
            json!({"conditions": [{"type": "Available", "status": "True", "reason": "Local", "message": "Local APIServices are always available",
                "lastTransitionTime": service["metadata"]["creationTimestamp"]}]})
        } else {
            json!({})
        };
        set(service, "status", status);
    }

    fn validate_create(&self, _ctx: &Context<'_>, service: &Value) -> ErrorList {
        validate(service)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate(new)
    }

    fn row(&self, service: &Value, now: Timestamp) -> Vec<Value> {
        let target = if has(service, "spec.service") {
            format!("{}/{}", text(service, "spec.service.namespace"), text(service, "spec.service.name"))
        } else {
            "Local".to_owned()
        };
        let available =
            list(service, "status.conditions").iter().find(|condition| text(condition, "type") == "Available");
        let available = match available.map(|condition| (text(condition, "status"), text(condition, "reason"))) {
            None => "Unknown".to_owned(),
            Some((status, reason)) if status == "True" || reason.is_empty() => status.to_owned(),
            Some((status, reason)) => format!("{status} ({reason})"),
        };
        row(service, now, vec![target.into(), available.into()])
    }
}

fn validate(service: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(service).child("spec");
    let (group, version) = (spec.child("group"), spec.child("version"));
    let wanted = format!("{}.{}", version.text(), group.text());
    if name(service) != wanted {
        let path = Path::root("metadata").child("name");
        errors.push(Error::invalid(
            &path,
            name(service),
            format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"),
        ));
    }
    if version.required(&mut errors, "") {
        version.format(&mut errors, names::dns1035_label);
    }
    if !group.text().is_empty() {
        group.format(&mut errors, names::dns1123_subdomain);
    } else if version.text() != "v1" {
        group.missing(&mut errors, "only v1 may have an empty group and it better be legacy kube");
    }
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let priority = spec.child(field);
        if !(1..=most).contains(&priority.int()) {
            priority.invalid(
                &mut errors,
                format!("must be positive and less than {}", if most == 1000 { "1000" } else { "20000" }),
            );
        }
    }
    let target = spec.child("service");
    if target.exists() {
        for field in ["namespace", "name"] {
            target.child(field).required(&mut errors, "");
        }
        target.child("port").port_number(&mut errors);
        if spec.child("insecureSkipTLSVerify").flag() && !spec.child("caBundle").text().is_empty() {
            spec.child("insecureSkipTLSVerify").invalid(&mut errors, "may not be true if caBundle is present");
        }
    } else {
        if !spec.child("caBundle").text().is_empty() {
            errors.push(Error::invalid(&spec.child("caBundle").path, "", "local APIServices may not have a caBundle"));
        }
        if spec.child("insecureSkipTLSVerify").flag() {
            spec.child("insecureSkipTLSVerify")
                .invalid(&mut errors, "local APIServices may not have insecureSkipTLSVerify");
        }
    }
    errors
}

fn columns() -> Vec<Column> {
    named(vec![
        words("Service", "The reference to the service that hosts this API endpoint."),
        words("Available", "Whether this service is available."),
    ])
}
