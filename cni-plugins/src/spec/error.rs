//! Errors as the specification wants them: a code, a message, details.

use serde_json::{Value, json};

pub type Result<T> = std::result::Result<T, Error>;

/// Codes 1-99 are the specification's; 999 is what the reference plugins use for the rest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: u32,
    pub message: String,
    pub details: String,
}

impl Error {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    pub fn version(version: &str) -> Self {
        let mut error = Self::new(1, "incompatible CNI versions");
        error.details = format!("config is {version:?}, plugin supports {:?}", super::SUPPORTED);
        error
    }

    pub fn unsupported_field(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(4, message)
    }

    pub fn io(message: impl Into<String>) -> Self {
        Self::new(5, message)
    }

    pub fn decode(message: impl Into<String>) -> Self {
        Self::new(6, message)
    }

    pub fn config(message: impl Into<String>) -> Self {
        Self::new(7, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(50, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(999, message)
    }

    pub fn to_json(&self, version: &str) -> Value {
        let mut object = json!({ "cniVersion": version, "code": self.code, "msg": self.message });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        object
    }

    /// An error that a delegated plugin printed.
    pub fn from_json(printed: &[u8]) -> Option<Self> {
        let object: Value = serde_json::from_slice(printed).ok()?;
        Some(Self {
            code: object.get("code")?.as_u64()?.try_into().ok()?,
            message: object.get("msg")?.as_str()?.to_owned(),
            details: object.get("details").and_then(Value::as_str).unwrap_or_default().to_owned(),
        })
    }
}

impl From<netlink::Error> for Error {
    fn from(error: netlink::Error) -> Self {
        Self::internal(error.to_string())
    }
}
