//! What can go wrong while a controller acts, and which of it is ordinary.
//!
//! A conflict, an object that is already gone or a namespace that is going are part of normal
//! life: the work queue tries again, and nobody needs to read about it.

use kube::Error as Kube;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {object}: the API server answered: {source}; it will be retried")]
    Api { doing: &'static str, object: String, source: Box<Kube> },
    #[error("{object}: {problem}")]
    Object { object: String, problem: String },
}

impl Error {
    /// Whether a retry alone mends it: nothing to tell anybody.
    pub fn is_ordinary(&self) -> bool {
        match self {
            Error::Api { source, .. } => {
                is_conflict(source) || is_not_found(source) || is_namespace_terminating(source)
            }
            Error::Object { .. } => false,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was being done, and to what, to an answer of the API server.
pub trait During<T> {
    fn during(self, doing: &'static str, object: &str) -> Result<T>;
    /// As `during`; an object that does not exist (any more) is no error.
    fn unless_gone(self, doing: &'static str, object: &str) -> Result<Option<T>>;
}

impl<T> During<T> for std::result::Result<T, Kube> {
    fn during(self, doing: &'static str, object: &str) -> Result<T> {
        self.map_err(|source| Error::Api { doing, object: object.to_owned(), source: Box::new(source) })
    }

    fn unless_gone(self, doing: &'static str, object: &str) -> Result<Option<T>> {
        match self {
            Err(error) if is_not_found(&error) => Ok(None),
            other => other.during(doing, object).map(Some),
        }
    }
}

fn reason(error: &Kube) -> (u16, &str) {
    match error {
        Kube::Api(status) => (status.code, &status.reason),
        _ => (0, ""),
    }
}

pub fn is_not_found(error: &Kube) -> bool {
    reason(error).0 == 404
}

/// The object changed since it was read, or another has its name.
pub fn is_conflict(error: &Kube) -> bool {
    reason(error).0 == 409
}

pub fn is_already_exists(error: &Kube) -> bool {
    reason(error).1 == "AlreadyExists"
}

pub fn is_invalid(error: &Kube) -> bool {
    reason(error).0 == 422
}

/// A create was refused because its namespace is being deleted.
pub fn is_namespace_terminating(error: &Kube) -> bool {
    let Kube::Api(status) = error else { return false };
    let cause = status.details.iter().flat_map(|d| &d.causes).any(|cause| cause.reason == "NamespaceTerminating");
    cause || (status.code == 403 && status.message.contains("because it is being terminated"))
}

/// The API server's own words, as events quote them.
pub fn message(error: &Kube) -> String {
    match error {
        Kube::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
