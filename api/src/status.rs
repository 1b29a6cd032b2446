//! The `Status` object that answers a rejected request (`k8s.io/apimachinery/pkg/api/errors`).

use serde_json::{Map, Value, json};

use crate::field;

/// A rejected request: HTTP code, machine-readable reason, message, details.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// `metav1.StatusReason`, e.g. `NotFound`.
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Details>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The resource (plural), or the kind for `Invalid`, as Kubernetes has it.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// `deployments.apps`, or `pods` for the core group.
pub fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn about(group: &str, kind: &str, name: &str) -> Option<Details> {
    Some(Details { name: name.to_owned(), group: group.to_owned(), kind: kind.to_owned(), ..Details::default() })
}

impl Status {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(resource, group));
        Self { details: about(group, resource, name), ..Self::new(404, "NotFound", message) }
    }

    /// For a path that names no resource.
    pub fn no_such_path() -> Self {
        let details = Some(Details::default());
        Self { details, ..Self::new(404, "NotFound", "the server could not find the requested resource") }
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(resource, group));
        Self { details: about(group, resource, name), ..Self::new(409, "AlreadyExists", message) }
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(resource, group));
        Self { details: about(group, resource, name), ..Self::new(409, "Conflict", message) }
    }

    /// Someone else wrote the object in between.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// Failed validation; `kind` is the object's kind, e.g. `Service`.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[field::Error]) -> Self {
        let message = format!("{} \"{name}\" is invalid: {}", qualified(kind, group), field::join(errors));
        let causes = errors
            .iter()
            .map(|error| Cause {
                reason: error.kind.reason().to_owned(),
                message: error.body(),
                field: error.field.to_string(),
            })
            .collect();
        let details = about(group, kind, name).map(|details| Details { causes, ..details });
        Self { details, ..Self::new(422, "Invalid", message) }
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(resource, group))
        } else {
            format!("{} \"{name}\" is forbidden: {why}", qualified(resource, group))
        };
        Self { details: about(group, resource, name), ..Self::new(403, "Forbidden", message) }
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn method_not_allowed() -> Self {
        Self {
            details: Some(Details::default()),
            ..Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        }
    }

    pub fn unsupported_media_type(supported: &[&str]) -> Self {
        let message = format!("the body of the request was in an unknown format - accepted media types include: {}", supported.join(", "));
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub fn not_acceptable(supported: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", supported.join(", "));
        Self::new(406, "NotAcceptable", message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// A resourceVersion or continue token from before the oldest kept revision.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Some(Details { retry_after_seconds, ..Details::default() });
        Self { details, ..Self::new(429, "TooManyRequests", message) }
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self { details: Some(Details::default()), ..Self::new(504, "Timeout", message) }
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        let cause = Cause { reason: String::new(), message: message.to_string(), field: String::new() };
        let details = Some(Details { causes: vec![cause], ..Details::default() });
        Self { details, ..Self::new(500, "InternalError", format!("Internal error occurred: {message}")) }
    }

    /// As it goes over the wire: `{"kind":"Status","apiVersion":"v1",…}`.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            object["details"] = details.to_json();
        }
        object
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), Value::String(text.clone()));
            }
        }
        if !self.causes.is_empty() {
            map.insert("causes".to_owned(), self.causes.iter().map(Cause::to_json).collect());
        }
        if self.retry_after_seconds > 0 {
            map.insert("retryAfterSeconds".to_owned(), self.retry_after_seconds.into());
        }
        Value::Object(map)
    }
}

impl Cause {
    fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), Value::String(text.clone()));
            }
        }
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording() {
        assert_eq!(Status::not_found("apps", "deployments", "x").message, "deployments.apps \"x\" not found");
        assert_eq!(
            Status::modified("", "pods", "x").message,
            "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes to the latest version and try again"
        );
        let error = field::Error::required(&field::Path::root("spec"), "needed");
        let status = Status::invalid("", "Service", "x", &[error]).to_json();
        assert_eq!(status["message"], "Service \"x\" is invalid: spec: Required value: needed");
        assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueRequired");
    }
}
