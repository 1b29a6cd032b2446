//! Server-side apply.

use jiff::Timestamp;
use serde_json::Value;

use crate::error::ApiError;
use crate::schema::Schema;

/// Applies a configuration.
pub fn apply(
    _schema: &Schema,
    _live: Option<&Value>,
    _config: &Value,
    _manager: &str,
    _subresource: &str,
    _force: bool,
    _now: Timestamp,
) -> Result<Value, ApiError> {
    Err(ApiError::unsupported_media_type(&[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ]))
}

/// Notes which fields a plain write owns.
pub fn track_update(
    _schema: &Schema,
    _live: Option<&Value>,
    _new: &mut Value,
    _manager: &str,
    _subresource: &str,
    _now: Timestamp,
) -> Result<(), ApiError> {
    Ok(())
}
