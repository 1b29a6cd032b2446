//! The part of JSONPath that printer columns use: `.a.b`, `['a.b']`, `[0]`, `[*]`, and
//! `[?(@.type=="Ready")]`. Pure.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    Index(i64),
    All,
    /// Elements whose member (a dotted path) equals a text.
    Where(String, String),
}

/// The first value that `path` finds in `object`.
pub fn find<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let steps = parse(path)?;
    let mut found = vec![object];
    for step in &steps {
        found = found.into_iter().flat_map(|value| apply(step, value)).collect();
    }
    found.into_iter().find(|value| !value.is_null())
}

fn apply<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match step {
        Step::Member(name) => value.get(name).into_iter().collect(),
        Step::Index(at) => {
            let Some(list) = value.as_array() else { return Vec::new() };
            let at = if *at < 0 { list.len() as i64 + at } else { *at };
            usize::try_from(at).ok().and_then(|at| list.get(at)).into_iter().collect()
        }
        Step::All => match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Where(path, wanted) => {
            let holds = |element: &&Value| {
                let found = path.split('.').filter(|part| !part.is_empty()).fold(*element, |value, key| &value[key]);
                match found {
                    Value::String(text) => text == wanted,
                    other => other.to_string().as_str() == wanted.as_str(),
                }
            };
            value.as_array().into_iter().flatten().filter(holds).collect()
        }
    }
}

fn parse(path: &str) -> Option<Vec<Step>> {
    let path = path.trim();
    let path = path.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(path);
    let mut rest = path.strip_prefix('$').unwrap_or(path);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            steps.push(bracket(&after[..end])?);
            rest = &after[end + 1..];
            continue;
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
        let (name, after) = member(rest);
        if !name.is_empty() {
            steps.push(if name == "*" { Step::All } else { Step::Member(name) });
        } else if after.len() == rest.len() && !rest.starts_with('[') {
            return None;
        }
        rest = after;
    }
    Some(steps)
}

/// A name up to the next `.` or `[`; a backslash takes what follows as it is.
fn member(text: &str) -> (String, &str) {
    let (mut name, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, ']') => return Some(at),
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|text| text.strip_suffix(')')) {
        let (path, wanted) = filter.split_once("==")?;
        let path = path.trim().strip_prefix('@')?;
        return Some(Step::Where(path.to_owned(), unquoted(wanted.trim()).to_owned()));
    }
    if let Ok(at) = text.parse() {
        return Some(Step::Index(at));
    }
    let name = unquoted(text);
    (name.len() < text.len()).then(|| Step::Member(name.to_owned()))
}

fn unquoted(text: &str) -> &str {
    let strip = |quote: char| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    strip('\'').or_else(|| strip('"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_of_printer_columns() {
        let object = json!({"spec": {"replicas": 3, "hosts": ["a", "b"]}, "metadata": {"labels": {"a.b/c": "x"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, found) in [
            (".spec.replicas", json!(3)),
            (".spec.hosts[1]", json!("b")),
            (".spec.hosts[-1]", json!("b")),
            ("{.spec.hosts[*]}", json!("a")),
            (".status.conditions[?(@.type==\"Other\")].status", json!("False")),
            (".status.conditions[?(@.type=='Ready')].status", json!("True")),
            (".metadata.labels.a\\.b/c", json!("x")),
            (".metadata.labels['a.b/c']", json!("x")),
        ] {
            assert_eq!(find(&object, path), Some(&found), "{path}");
        }
        for path in [".none.more", ".spec.hosts[9]", "[", "..", ".status.conditions[?(@.x)]"] {
            assert_eq!(find(&object, path), None, "{path}");
        }
    }
}
