//! Pods.

pub mod defaults;

use api::quantity::Quantity;
use serde_json::Value;

/// A quantity as stored: text, or a number from clients that write one.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}
