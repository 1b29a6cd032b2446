//! Kubernetes' protobuf form of objects.

use serde_json::Value;

use crate::error::ApiError;

fn unsupported() -> ApiError {
    ApiError::not_acceptable(&["application/json", "application/yaml"])
}

/// Decodes an object.
pub fn decode(_bytes: &[u8]) -> Result<Value, ApiError> {
    Err(unsupported())
}

/// Encodes an object.
pub fn encode(_value: &Value) -> Result<Vec<u8>, ApiError> {
    Err(unsupported())
}

/// Encodes a watch event with its length in front.
pub fn encode_watch_event(_kind: &str, _object: &Value) -> Result<Vec<u8>, ApiError> {
    Err(unsupported())
}
