//! The `apiregistration.k8s.io` group: APIService.

use api::field::{Error, ErrorList, Path};
use api::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::Node;
use super::table::{named, row, words};
use super::value::{default, has, list, name, set, text};
use crate::resource::{ALL_BUT_STATUS, Column, Context, Descriptor, Hooks, NameRule, Paths, Resource};

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

    fn prepare_create(&self, ctx: &Context<'_>, service: &mut Value) {
        // What the server itself serves is available from the start.
        let status = if has(service, "spec.service") {
            json!({})
        } else {
            json!({"conditions": [{"type": "Available", "status": "True", "reason": "Local",
                "message": "Local APIServices are always available", "lastTransitionTime": api::scalar::time(ctx.now)}]})
        };
        set(service, "status", status);
    }

    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        for condition in Node::root(new).items("status.conditions") {
            condition.child("status").one_of(&mut errors, &["True", "False", "Unknown"]);
        }
        errors
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
    if name(service) != wanted && names::path_segment(name(service)).is_empty() {
        let path = Path::root("metadata").child("name");
        let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(Error::invalid(&path, name(service), detail));
    }
    if !group.text().is_empty() {
        group.format(&mut errors, names::dns1123_subdomain);
    } else if version.text() != "v1" {
        group.missing(&mut errors, "only v1 may have an empty group and it better be legacy kube");
    }
    version.format(&mut errors, names::dns1035_label);
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let priority = spec.child(field);
        if !(1..=most).contains(&priority.int()) {
            priority.invalid_int(&mut errors, format!("must be positive and less than {most}"));
        }
    }
    let (bundle, insecure, target) =
        (spec.child("caBundle"), spec.child("insecureSkipTLSVerify"), spec.child("service"));
    if !target.exists() {
        if !bundle.text().is_empty() {
            let length = STANDARD.decode(bundle.text()).map_or(0, |bytes| bytes.len());
            let detail = "local APIServices may not have a caBundle";
            errors.push(Error::invalid(&bundle.path, format!("{length} bytes"), detail));
        }
        if insecure.flag() {
            insecure.invalid(&mut errors, "local APIServices may not have insecureSkipTLSVerify");
        }
        return errors;
    }
    for field in ["namespace", "name"] {
        target.child(field).required(&mut errors, "");
    }
    if let Some(problem) = names::port_number(target.child("port").int()) {
        target.child("port").invalid_int(&mut errors, format!("port is not valid: {problem}"));
    }
    if insecure.flag() && !bundle.text().is_empty() {
        insecure.invalid(&mut errors, "may not be true if caBundle is present");
    }
    errors
}

fn columns() -> Vec<Column> {
    named(vec![
        words("Service", "The reference to the service that hosts this API endpoint."),
        words("Available", "Whether this service is available."),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated, updated_sub, with};

    fn service(extra: Value) -> Value {
        let mut service = json!({"metadata": {"name": "v1.example.com"}, "spec": {"group": "example.com", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}});
        for (path, value) in extra.as_object().expect("the test's own fields") {
            set(&mut service, path, value.clone());
        }
        service
    }

    #[test]
    fn services_refused() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (json!({"spec.service": {"namespace": "n", "name": "s"}, "spec.caBundle": "eHk="}), "[]"),
            (
                json!({"spec.version": "v2"}),
                "metadata.name: Invalid value: \"v1.example.com\": must be `spec.version+\".\"+spec.group`: \"v2.example.com\"",
            ),
            (
                json!({"metadata.name": "v2.", "spec.group": "", "spec.version": "v2"}),
                "spec.group: Required value: only v1 may have an empty group and it better be legacy kube",
            ),
            (json!({"metadata.name": "v1.", "spec.group": ""}), "[]"),
            (
                json!({"spec.groupPriorityMinimum": 20001, "spec.versionPriority": Value::Null}),
                "[spec.groupPriorityMinimum: Invalid value: 20001: must be positive and less than 20000, \
                 spec.versionPriority: Invalid value: 0: must be positive and less than 1000]",
            ),
            (
                json!({"spec.caBundle": "eHk=", "spec.insecureSkipTLSVerify": true}),
                "[spec.caBundle: Invalid value: \"2 bytes\": local APIServices may not have a caBundle, \
                 spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify]",
            ),
            (
                json!({"spec.service": {"port": 70000}, "spec.caBundle": "eHk=", "spec.insecureSkipTLSVerify": true}),
                "[spec.service.namespace: Required value, spec.service.name: Required value, \
                 spec.service.port: Invalid value: 70000: port is not valid: must be between 1 and 65535, inclusive, \
                 spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present]",
            ),
        ] {
            assert_eq!(created(&ApiService, &service(extra.clone())), expected, "{extra}");
            assert_eq!(updated(&ApiService, &service(json!({})), &service(extra.clone())), expected, "{extra}");
        }
    }

    #[test]
    fn statuses() {
        let status = json!({"status": {"conditions": [{"type": "Available", "status": "Maybe"}]}});
        assert_eq!(
            updated_sub(&ApiService, "status", &json!({}), &status),
            "status.conditions[0].status: Unsupported value: \"Maybe\": supported values: \"True\", \"False\", \"Unknown\""
        );
        let mut local = service(json!({"status": {"x": 1}}));
        with(&json!({}), "", |ctx| ApiService.prepare_create(ctx, &mut local));
        assert_eq!(local["status"]["conditions"][0]["reason"], "Local");
        assert_eq!(local["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }
}
