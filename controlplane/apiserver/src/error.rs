//! What a request that cannot be served gets: an [`ApiError`], rendered as a `Status` object.
//!
//! Constructors follow `k8s.io/apimachinery/pkg/api/errors`: the same code, reason, message and
//! details for the same cause. Every layer of the pipeline returns this type; HTTP renders it.

use api::field;
use http::StatusCode;
use serde_json::{Value, json};

/// A failure as the client sees it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Boxed so that `Result<_, ApiError>` stays small on the paths that succeed.
    inner: Box<Inner>,
    message: String,
}

#[derive(Debug, Clone, PartialEq)]
struct Inner {
    code: StatusCode,
    reason: &'static str,
    details: Option<Value>,
    /// `metadata.continue` of the status: how to go on with a list.
    continue_: Option<String>,
    /// A `Status` object that another server made, passed on as it is.
    foreign: Option<Value>,
    /// Answered as the plain page of a path that nobody serves.
    page: bool,
}

pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// `group` and plural name of a resource, as in `deployments.apps`.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl ApiError {
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner { code, reason, details: None, continue_: None, foreign: None, page: false }),
            message: message.into(),
        }
    }

    /// Passes on a `Status` that a webhook or an aggregated server answered.
    pub fn from_status(status: Value, fallback: StatusCode) -> Self {
        let code =
            status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).and_then(|c| StatusCode::from_u16(c).ok());
        let message = status["message"].as_str().unwrap_or_default().to_owned();
        let code = code.filter(|c| c.as_u16() >= 400).unwrap_or(fallback);
        Self {
            inner: Box::new(Inner {
                code,
                reason: "",
                details: None,
                continue_: None,
                foreign: Some(status),
                page: false,
            }),
            message,
        }
    }

    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.inner.details = Some(details);
        self
    }

    /// Adds a `StatusCause` to the details.
    #[must_use]
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let details = self.inner.details.get_or_insert_with(|| json!({}));
        let mut cause = json!({"reason": reason, "message": message});
        if !field.is_empty() {
            cause["field"] = field.into();
        }
        match details["causes"].as_array_mut() {
            Some(causes) => causes.push(cause),
            None => details["causes"] = json!([cause]),
        }
        self
    }

    /// The same with something said before its message.
    #[must_use]
    pub fn prefixed(mut self, beginning: &str) -> Self {
        self.message.insert_str(0, beginning);
        self
    }

    /// Tells a client whose paged list expired how it may go on.
    #[must_use]
    pub fn with_list_continue(mut self, token: String) -> Self {
        self.inner.continue_ = Some(token);
        self
    }

    pub fn code(&self) -> StatusCode {
        self.inner.code
    }

    pub fn reason(&self) -> &str {
        match &self.inner.foreign {
            Some(status) => status["reason"].as_str().unwrap_or_default(),
            None => self.inner.reason,
        }
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn is_not_found(&self) -> bool {
        self.inner.code == StatusCode::NOT_FOUND
    }

    pub fn is_conflict(&self) -> bool {
        self.reason() == "Conflict"
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    /// Seconds of `Retry-After`, when the client is asked to come back.
    pub fn retry_after(&self) -> Option<u64> {
        self.inner.details.as_ref()?["retryAfterSeconds"].as_u64()
    }

    /// The `Status` object of `v1`.
    pub fn to_status(&self) -> Value {
        if let Some(status) = &self.inner.foreign {
            let mut status = status.clone();
            status["kind"] = "Status".into();
            status["apiVersion"] = "v1".into();
            status["status"] = "Failure".into();
            status["code"] = self.inner.code.as_u16().into();
            if !status["metadata"].is_object() {
                status["metadata"] = json!({});
            }
            return status;
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.inner.code.as_u16(),
        });
        if let Some(token) = &self.inner.continue_ {
            status["metadata"]["continue"] = token.as_str().into();
        }
        if !self.inner.reason.is_empty() {
            status["reason"] = self.inner.reason.into();
        }
        if let Some(details) = &self.inner.details {
            status["details"] = details.clone();
        }
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(group, resource));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).with_details(details(group, resource, name))
    }

    /// A path of no API at all, and what is not served of groups that definitions made.
    pub fn page_not_found() -> Self {
        let mut error = Self::new(StatusCode::NOT_FOUND, "NotFound", "404 page not found");
        error.inner.page = true;
        error
    }

    /// What went wrong before anything could be said about the request itself: a plain page, too.
    pub fn internal_page(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message);
        error.inner.page = true;
        error
    }

    /// What to answer as plain text, instead of a `Status`.
    pub fn page(&self) -> Option<String> {
        self.inner.page.then(|| format!("{}\n", self.message))
    }

    /// No such path in a group that the server itself has.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
            .with_details(json!({}))
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, resource));
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).with_details(details(group, resource, name))
    }

    /// `generateName` ran into taken names.
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} \"{name}\" already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource)
        );
        let mut details = details(group, resource, name);
        details["retryAfterSeconds"] = 1.into();
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).with_details(details)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, resource));
        Self::new(StatusCode::CONFLICT, "Conflict", message).with_details(details(group, resource, name))
    }

    /// The object changed since the caller read it.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// `why` is what an admission plugin or a rule says.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let message = if resource.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!("{} \"{name}\" is forbidden: {why}", qualified(group, resource))
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).with_details(details(group, resource, name))
    }

    /// `kind` is the object's kind; `errors` must not be empty.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[field::Error]) -> Self {
        let texts: Vec<String> = dedup(errors.iter().map(ToString::to_string));
        let joined = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} \"{name}\" is invalid: {joined}", qualified(group, kind));
        if kind.is_empty() {
            return Self::without_kind(message, errors);
        }
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| {
                let text = error.to_string();
                let field = error.field.to_string();
                let body = text.strip_prefix(&format!("{field}: ")).unwrap_or(&text).to_owned();
                json!({"reason": error.kind.reason(), "message": body, "field": field})
            })
            .collect();
        let mut details = details(group, kind, name);
        details["causes"] = causes.into();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).with_details(details)
    }

    /// What is said of a patch, whose object is not known yet.
    fn without_kind(message: String, errors: &[field::Error]) -> Self {
        let error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        errors.iter().fold(error, |all, one| all.with_cause(one.kind.reason(), &one.body(), &one.field.to_string()))
    }

    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// A well-formed request whose content cannot be applied (e.g. a JSON patch test that fails): upstream
    /// does not say why.
    pub fn rejected() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self::unprocessable(message).with_details(json!({}))
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).with_details(json!({}))
    }

    pub fn method_not_supported(group: &str, resource: &str, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind \"{}\"", qualified(group, resource));
        let mut details = details(group, resource, "");
        details.as_object_mut().map(|map| map.remove("name"));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).with_details(details)
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
            .with_details(json!({"retryAfterSeconds": retry_after}))
    }

    /// The resource version asked for is no longer held.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub fn internal(why: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {why}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
            .with_details(json!({"causes": [{"message": why.to_string()}]}))
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", format!("Timeout: {}", message.into()))
            .with_details(json!({}))
    }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut details = json!({"kind": kind});
    if !name.is_empty() {
        details["name"] = name.into();
    }
    if !group.is_empty() {
        details["group"] = group.into();
    }
    details
}

fn dedup(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for text in texts {
        if !kept.contains(&text) {
            kept.push(text);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::{Error, Path};

    #[test]
    fn statuses_read_as_upstream() {
        let port = Path::root("spec").child("ports").index(0).child("port");
        let error = Error::invalid(&port, 70000, "must be between 1 and 65535, inclusive");
        let status = ApiError::invalid("", "Service", "web", &[error]).to_status();
        assert_eq!(
            status["message"],
            "Service \"web\" is invalid: spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"
        );
        assert_eq!(status["details"]["causes"][0]["field"], "spec.ports[0].port");
        assert_eq!(
            status["details"]["causes"][0]["message"],
            "Invalid value: 70000: must be between 1 and 65535, inclusive"
        );
        assert_eq!(status["code"], 422);

        let status = ApiError::not_found("apps", "deployments", "web").to_status();
        assert_eq!(status["message"], "deployments.apps \"web\" not found");
        assert_eq!(status["details"], json!({"name": "web", "group": "apps", "kind": "deployments"}));
    }
}
