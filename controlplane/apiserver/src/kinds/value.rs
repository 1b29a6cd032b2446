//! Reading and defaulting `serde_json::Value` objects by dotted paths.
//!
//! Layer: the bottom of `kinds`; everything above reads objects through these. Missing fields read
//! as the zero value (`""`, `0`, `false`, `[]`, `{}`), as Go's typed structs would. Paths are fixed
//! literals of the API's own field names, which never contain a dot; keys which may (labels) are
//! looked up on the map itself.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// The value at `path`, `None` when it or any parent is missing or null.
pub fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let (mut at, mut rest) = (value, path);
    loop {
        // Paths are short: quicker than the search of `split`.
        let dot = rest.bytes().position(|byte| byte == b'.');
        let part = dot.map_or(rest, |dot| &rest[..dot]);
        at = at.as_object()?.get(part)?;
        match dot {
            Some(dot) => rest = &rest[dot + 1..],
            None => return if at.is_null() { None } else { Some(at) },
        }
    }
}

/// The value at `path`, or null.
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    get(value, path).unwrap_or(&NULL)
}

/// Whether `path` holds something other than null.
pub fn has(value: &Value, path: &str) -> bool {
    get(value, path).is_some()
}

pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    get(value, path).and_then(Value::as_str).unwrap_or("")
}

pub fn opt_text<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    get(value, path).and_then(Value::as_str)
}

pub fn int(value: &Value, path: &str) -> i64 {
    opt_int(value, path).unwrap_or(0)
}

pub fn opt_int(value: &Value, path: &str) -> Option<i64> {
    get(value, path).and_then(Value::as_i64)
}

pub fn flag(value: &Value, path: &str) -> bool {
    opt_flag(value, path).unwrap_or(false)
}

pub fn opt_flag(value: &Value, path: &str) -> Option<bool> {
    get(value, path).and_then(Value::as_bool)
}

pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    get(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The strings of a list of strings.
pub fn texts<'a>(value: &'a Value, path: &str) -> Vec<&'a str> {
    list(value, path).iter().filter_map(Value::as_str).collect()
}

pub fn map<'a>(value: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    get(value, path).and_then(Value::as_object)
}

/// Entries of a map of anything; nothing when it is missing.
pub fn entries<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    map(value, path).into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

pub fn name(object: &Value) -> &str {
    text(object, "metadata.name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "metadata.namespace")
}

/// A label's value.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    map(object, "metadata.labels")?.get(key)?.as_str()
}

/// An annotation's value.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    map(object, "metadata.annotations")?.get(key)?.as_str()
}

/// The value at `path` for writing; `None` when it or a parent is missing.
pub fn get_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut at = value;
    for part in path.split('.') {
        at = at.as_object_mut()?.get_mut(part)?;
    }
    if at.is_null() { None } else { Some(at) }
}

/// The items of a list for writing.
pub fn list_mut<'a>(value: &'a mut Value, path: &str) -> impl Iterator<Item = &'a mut Value> {
    get_mut(value, path).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The map at `path`, made (with its parents) when missing.
pub fn ensure_map<'a>(value: &'a mut Value, path: &str) -> &'a mut Map<String, Value> {
    let mut at = object_of(value);
    if path.is_empty() {
        return at;
    }
    for part in path.split('.') {
        at = object_of(at.entry(part).or_insert(Value::Null));
    }
    at
}

/// The list at `path`, made (with its parents) when missing.
pub fn ensure_list<'a>(value: &'a mut Value, path: &str) -> &'a mut Vec<Value> {
    let (parent, last) = split(path);
    let slot = ensure_map(value, parent).entry(last).or_insert(Value::Null);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    match slot {
        Value::Array(items) => items,
        _ => unreachable!("the line above made it an array"),
    }
}

fn object_of(slot: &mut Value) -> &mut Map<String, Value> {
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("the line above made it an object"),
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// Sets `path`, making its parents.
pub fn set(value: &mut Value, path: &str, new: impl Into<Value>) {
    let (parent, last) = split(path);
    ensure_map(value, parent).insert(last.to_owned(), new.into());
}

/// Sets `path` when it is missing or null, making its parents.
pub fn default(value: &mut Value, path: &str, new: impl Into<Value>) {
    if !has(value, path) {
        set(value, path, new);
    }
}

/// As [`default`], also when it holds `""`: fields whose Go type is a plain string.
pub fn default_text(value: &mut Value, path: &str, new: &str) {
    if text(value, path).is_empty() && get(value, path).is_none_or(Value::is_string) {
        set(value, path, new);
    }
}

/// As [`default`], also when it holds `0`: fields whose Go type is a plain integer.
pub fn default_int(value: &mut Value, path: &str, new: i64) {
    if int(value, path) == 0 && get(value, path).is_none_or(Value::is_number) {
        set(value, path, new);
    }
}

/// Takes `path` away and returns what it held.
pub fn remove(value: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = split(path);
    let holder = if parent.is_empty() { Some(value) } else { get_mut(value, parent) };
    holder.and_then(Value::as_object_mut).and_then(|map| map.remove(last))
}

/// Makes `new`'s `path` what `old` has there, or takes it away when `old` has nothing.
pub fn copy(old: &Value, new: &mut Value, path: &str) {
    match get(old, path) {
        Some(value) => set(new, path, value.clone()),
        None => {
            remove(new, path);
        }
    }
}

/// Equality as Go's `apiequality.Semantic.DeepEqual` sees it: missing, null, `""`-free empty lists
/// and maps are the same.
pub fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(key, value)| same(value, b.get(key).unwrap_or(&NULL)))
                && b.iter().all(|(key, value)| a.contains_key(key) || same(&NULL, value))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Null, other) | (other, Value::Null) => is_empty(other),
        (a, b) => a == b,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Whether both have the same at `path`.
pub fn same_at(left: &Value, right: &Value, path: &str) -> bool {
    same(at(left, path), at(right, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_missing_as_zero() {
        let object = json!({"a": {"b": "x", "n": null, "l": ["p", "q"]}});
        assert_eq!(text(&object, "a.b"), "x");
        assert_eq!(text(&object, "a.c.d"), "");
        assert_eq!(int(&object, "a.n"), 0);
        assert!(!has(&object, "a.n"));
        assert_eq!(texts(&object, "a.l"), ["p", "q"]);
    }

    #[test]
    fn defaults_keep_what_is_there() {
        let mut object = json!({"spec": {"replicas": 0, "type": ""}});
        default(&mut object, "spec.replicas", 1);
        default_text(&mut object, "spec.type", "ClusterIP");
        default(&mut object, "spec.strategy.type", "RollingUpdate");
        assert_eq!(
            object,
            json!({"spec": {"replicas": 0, "type": "ClusterIP", "strategy": {"type": "RollingUpdate"}}})
        );
        assert_eq!(remove(&mut object, "spec.strategy.type"), Some(json!("RollingUpdate")));
        assert_eq!(remove(&mut object, "x.y"), None);
    }

    #[test]
    fn emptiness_is_equal() {
        for (left, right, equal) in [
            (json!({}), json!({"a": null}), true),
            (json!({"a": {}}), json!({}), true),
            (json!({"a": []}), json!({"a": null}), true),
            (json!({"a": 0}), json!({}), false),
            (json!([1]), json!([1, 2]), false),
        ] {
            assert_eq!(same(&left, &right), equal, "{left} {right}");
        }
    }
}
