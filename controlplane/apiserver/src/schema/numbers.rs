//! Numbers that no type says anything of, as Go writes them after reading them: `1.0` and `1e3` are
//! whole, and come as `1` and `1000`. Rust's clients send such for every float; Go's would take them
//! for something else than the integer they read from Kubernetes.

use serde_json::{Number, Value};

/// Integers of 64 bits end before these.
const TOP_OF_U64: f64 = 18_446_744_073_709_551_616.0;
const BOTTOM_OF_I64: f64 = -9_223_372_036_854_775_808.0;

pub fn canonical(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(integer) = whole(number) {
                *number = integer;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(canonical),
        Value::Object(members) => members.values_mut().for_each(canonical),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// A float that is whole, as the integer it is. Larger ones keep their exponent.
fn whole(number: &Number) -> Option<Number> {
    let float = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0)?;
    if (0.0..TOP_OF_U64).contains(&float) {
        Some(Number::from(float as u64))
    } else if (BOTTOM_OF_I64..0.0).contains(&float) {
        Some(Number::from(float as i64))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_floats_are_integers() {
        let text = r#"{"a":[1.0,-2.0,1e3,0.0,-0.0,1.5,1e-7,7],"b":{"c":1e18,"d":1e30,"e":9007199254740993,"f":"1.0"}}"#;
        let mut value: Value = serde_json::from_str(text).unwrap();
        canonical(&mut value);
        let expected = r#"{"a":[1,-2,1000,0,0,1.5,1e-7,7],"b":{"c":1000000000000000000,"d":1e+30,"e":9007199254740993,"f":"1.0"}}"#;
        assert_eq!(value.to_string(), expected);
        assert_eq!(value["a"][0], json!(1));
    }
}
