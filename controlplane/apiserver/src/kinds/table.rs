//! Cells and columns of `kubectl get` (`pkg/printers/internalversion`).

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::value::{at, list, map, name, text, texts};
use crate::resource::{Column, age, since};

pub const NONE: &str = "<none>";
pub const UNSET: &str = "<unset>";

/// A text column.
pub fn words(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "string", description)
}

/// A whole-number column.
pub fn number(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "integer", description)
}

pub fn boolean(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "boolean", description)
}

/// Name, the given columns, Age.
pub fn named(middle: Vec<Column>) -> Vec<Column> {
    let mut columns = vec![Column::name()];
    columns.extend(middle);
    columns.push(Column::age());
    columns
}

/// Name, the given columns, Age, then columns of `-o wide`.
pub fn named_wide(middle: Vec<Column>, wide: Vec<Column>) -> Vec<Column> {
    let mut columns = named(middle);
    columns.extend(wide.into_iter().map(Column::wide));
    columns
}

/// The wide columns of everything with a pod template; `selector` says what it selects, if anything.
pub fn template_columns(selector: &'static str) -> Vec<Column> {
    let mut columns = vec![
        words("Containers", "Names of each container in the template."),
        words("Images", "Images referenced by each container in the template."),
    ];
    if !selector.is_empty() {
        columns.push(words("Selector", selector));
    }
    columns
}

/// Cells of one row: name, the given cells, age.
pub fn row(object: &Value, now: Timestamp, middle: Vec<Value>) -> Vec<Value> {
    row_wide(object, now, middle, Vec::new())
}

pub fn row_wide(object: &Value, now: Timestamp, middle: Vec<Value>, wide: Vec<Value>) -> Vec<Value> {
    let mut cells = vec![Value::from(name(object))];
    cells.extend(middle);
    cells.push(age(object, now));
    cells.extend(wide);
    cells
}

/// `text`, or `<none>` when it is empty.
pub fn or_none(text: &str) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(labels: Option<&Map<String, Value>>) -> String {
    let parts: Vec<String> =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect();
    if parts.is_empty() { NONE.to_owned() } else { parts.join(",") }
}

/// A label selector as `kubectl get -l` would take it, or `<none>`; `<error>` when it is malformed.
pub fn selector(selector: &Value) -> String {
    selector_or(selector, NONE, "<error>")
}

/// The same with words for one that selects nothing or everything, and for a malformed one.
pub fn selector_or(selector: &Value, none: &str, malformed: &str) -> String {
    match api::selector::Selector::from_json(Some(selector)) {
        Ok(parsed) if parsed.requirements.is_empty() => none.to_owned(),
        Ok(parsed) => parsed.to_string(),
        Err(_) => malformed.to_owned(),
    }
}

/// A label selector as Go's generated `String` writes it.
pub fn go_selector(selector: &Value) -> String {
    let labels: String = map(selector, "matchLabels")
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}: {},", value.as_str().unwrap_or_default()))
        .collect();
    let expressions: String = list(selector, "matchExpressions")
        .iter()
        .map(|expression| {
            let [key, operator] = ["key", "operator"].map(|field| text(expression, field));
            let values = texts(expression, "values").join(" ");
            format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},\
         MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

/// Names and images of a pod spec's containers.
pub fn containers(spec: &Value) -> [Value; 2] {
    ["name", "image"].map(|field| {
        let parts: Vec<&str> = list(spec, "containers").iter().map(|container| text(container, field)).collect();
        parts.join(",").into()
    })
}

/// How long ago, or `<none>` when it never was.
pub fn ago_or_none(timestamp: &Value, now: Timestamp) -> Value {
    if timestamp.is_null() { NONE.into() } else { since(timestamp, now) }
}

/// An int-or-string as text.
pub fn int_or_string(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The number at `path` (0 when missing).
pub fn count(object: &Value, path: &str) -> Value {
    super::value::int(object, path).into()
}

/// The text at `path`.
pub fn cell(object: &Value, path: &str) -> Value {
    text(object, path).into()
}

/// The number of entries of the map or items of the list at `path`.
pub fn size(object: &Value, path: &str) -> i64 {
    match at(object, path) {
        Value::Object(map) => map.len() as i64,
        Value::Array(items) => items.len() as i64,
        _ => 0,
    }
}

/// `first, second + 3 more...`.
pub fn some_of(items: &[String], shown: usize) -> String {
    let head = items.iter().take(shown).cloned().collect::<Vec<_>>().join(",");
    if items.len() > shown { format!("{head} + {} more...", items.len() - shown) } else { head }
}

/// `RWO,ROX`.
pub fn access_modes(modes: &[Value]) -> String {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => Some("RWO"),
        Some("ReadOnlyMany") => Some("ROX"),
        Some("ReadWriteMany") => Some("RWX"),
        Some("ReadWriteOncePod") => Some("RWOP"),
        _ => None,
    };
    let mut parts: Vec<&str> = Vec::new();
    for mode in ["RWO", "ROX", "RWX", "RWOP"] {
        if modes.iter().any(|given| short(given) == Some(mode)) {
            parts.push(mode);
        }
    }
    parts.join(",")
}

/// Name and `Created At`: kinds without a table of their own.
pub fn created_at_columns() -> Vec<Column> {
    let mut created = Column::age();
    created.name = "Created At".into();
    created.type_ = "date".into();
    vec![Column::name(), created]
}

pub fn created_at_row(object: &Value) -> Vec<Value> {
    vec![name(object).into(), at(object, "metadata.creationTimestamp").clone()]
}
