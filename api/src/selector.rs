//! Label and field selectors.
//!
//! [`Selector`] is one list of requirements, all of which must hold. It is read from query text
//! (`app=nginx,tier in (a,b),!old`), from a `LabelSelector` (typed or JSON), or from a plain map.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
    GreaterThan(String, i64),
    LessThan(String, i64),
}

/// Requirements that must all hold. Without any it matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
    /// Matches nothing: what an absent `LabelSelector` means.
    nothing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Parse(String),
    #[error("\"{0}\" is not a valid label selector operator")]
    Operator(String),
    #[error("invalid selector: '{0}'; can't understand '{1}'")]
    Field(String, String),
}

impl Requirement {
    /// `value` is the object's value for the requirement's key, if it has one.
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Requirement::In(_, values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Requirement::NotIn(_, values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
            Requirement::Exists(_) => value.is_some(),
            Requirement::DoesNotExist(_) => value.is_none(),
            Requirement::GreaterThan(_, than) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *than),
            Requirement::LessThan(_, than) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *than),
        }
    }

    pub fn key(&self) -> &str {
        match self {
            Requirement::In(key, _)
            | Requirement::NotIn(key, _)
            | Requirement::Exists(key)
            | Requirement::DoesNotExist(key)
            | Requirement::GreaterThan(key, _)
            | Requirement::LessThan(key, _) => key,
        }
    }
}

impl Selector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Matches with values looked up by `value_of(key)`.
    pub fn matches_with<'v>(&self, value_of: impl Fn(&str) -> Option<&'v str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.holds(value_of(requirement.key())))
    }

    /// Matches the labels of a typed object.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Matches labels as they stand in JSON (`metadata.labels`, may be absent).
    pub fn matches_json(&self, labels: Option<&Value>) -> bool {
        self.matches_with(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str))
    }

    /// From a plain map, as in `Service.spec.selector`; each pair must be there.
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        let requirements = map.iter().map(|(k, v)| Requirement::In(k.clone(), vec![v.clone()])).collect();
        Self { requirements, nothing: false }
    }

    /// From a typed `LabelSelector`: absent matches nothing, empty matches everything.
    pub fn from_label_selector(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut result = Self::from_map(selector.match_labels.as_ref().unwrap_or(&BTreeMap::new()));
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            result.requirements.push(requirement(&expression.key, &expression.operator, values)?);
        }
        Ok(result)
    }

    /// From a `LabelSelector` in JSON.
    pub fn from_json(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|value| !value.is_null()) else { return Ok(Self::nothing()) };
        let mut result = Self::everything();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            result.requirements.push(Requirement::In(key.clone(), vec![value]));
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            result.requirements.push(requirement(text("key"), text("operator"), values)?);
        }
        Ok(result)
    }

    /// From query text: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`, `a>1`, `a<1`.
    pub fn parse_labels(text: &str) -> Result<Self, SelectorError> {
        let mut result = Self::everything();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    continue;
                }
                return Err(SelectorError::Parse(format!("found '{text}', expected: identifier after ','")));
            }
            result.requirements.push(parse_label_requirement(part)?);
        }
        Ok(result)
    }

    /// From field selector text: `a=b`, `a==b`, `a!=b`, joined by commas; `\` escapes.
    pub fn parse_fields(text: &str) -> Result<Self, SelectorError> {
        let mut result = Self::everything();
        for term in split_unescaped_commas(text) {
            if term.is_empty() {
                continue;
            }
            let at = term.find('=').ok_or_else(|| SelectorError::Field(text.to_owned(), term.clone()))?;
            let (key, rest) = term.split_at(at);
            let requirement = match key.strip_suffix('!') {
                Some(key) => Requirement::NotIn(key.to_owned(), vec![unescape(&rest[1..])]),
                None => {
                    let value = rest.strip_prefix("==").unwrap_or(&rest[1..]);
                    Requirement::In(key.to_owned(), vec![unescape(value)])
                }
            };
            result.requirements.push(requirement);
        }
        Ok(result)
    }

    /// The value `key` must equal, if a requirement pins it to exactly one.
    pub fn exact(&self, key: &str) -> Option<&str> {
        self.requirements.iter().find_map(|requirement| match requirement {
            Requirement::In(k, values) if k == key && values.len() == 1 => Some(values[0].as_str()),
            _ => None,
        })
    }
}

fn requirement(key: &str, operator: &str, values: Vec<String>) -> Result<Requirement, SelectorError> {
    let key = key.to_owned();
    Ok(match operator {
        "In" => Requirement::In(key, values),
        "NotIn" => Requirement::NotIn(key, values),
        "Exists" => Requirement::Exists(key),
        "DoesNotExist" => Requirement::DoesNotExist(key),
        other => return Err(SelectorError::Operator(other.to_owned())),
    })
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_label_requirement(part: &str) -> Result<Requirement, SelectorError> {
    let refused = |why: String| SelectorError::Parse(why);
    let checked = |key: &str| match crate::names::qualified_name(key).join("; ") {
        none if none.is_empty() => Ok(key.to_owned()),
        problems => Err(SelectorError::Parse(format!("key: Invalid value: {key:?}: {problems}"))),
    };
    let checked_value = |value: &str| match crate::names::label_value(value).join("; ") {
        none if none.is_empty() => Ok(value.to_owned()),
        problems => Err(SelectorError::Parse(format!("values[0]: Invalid value: {value:?}: {problems}"))),
    };
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement::DoesNotExist(checked(key.trim())?));
    }
    if let Some(close) = part.strip_suffix(')') {
        let (head, list) =
            close.split_once('(').ok_or_else(|| refused(format!("found ')' in {part:?}, expected '('")))?;
        let values = list.split(',').map(|value| checked_value(value.trim())).collect::<Result<Vec<_>, _>>()?;
        let (key, operator) = head.trim().rsplit_once(char::is_whitespace).unwrap_or((head.trim(), ""));
        let key = checked(key.trim())?;
        return match operator {
            "in" => Ok(Requirement::In(key, values)),
            "notin" => Ok(Requirement::NotIn(key, values)),
            other => Err(refused(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt"))),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(checked(key.trim())?, vec![checked_value(value.trim())?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(checked(key.trim())?, vec![checked_value(value.trim())?]));
    }
    for (sign, build) in [
        ('>', Requirement::GreaterThan as fn(String, i64) -> Requirement),
        ('<', Requirement::LessThan as fn(String, i64) -> Requirement),
    ] {
        if let Some((key, value)) = part.split_once(sign) {
            let number = value.trim().parse().map_err(|_| {
                refused(format!(
                    "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                    value.trim()
                ))
            })?;
            return Ok(build(checked(key.trim())?, number));
        }
    }
    Ok(Requirement::Exists(checked(part)?))
}

fn split_unescaped_commas(text: &str) -> Vec<String> {
    let (mut terms, mut current, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            ',' if !escaped => {
                terms.push(std::mem::take(&mut current));
                continue;
            }
            '\\' if !escaped => escaped = true,
            _ => escaped = false,
        }
        current.push(c);
    }
    terms.push(current);
    terms
}

fn unescape(value: &str) -> String {
    let (mut plain, mut escaped) = (String::with_capacity(value.len()), false);
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            plain.push(c);
        }
    }
    plain
}

/// Query text that reads back to the same selector.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::DoesNotExist(key) => write!(f, "!{key}")?,
                Requirement::GreaterThan(key, than) => write!(f, "{key}>{than}")?,
                Requirement::LessThan(key, than) => write!(f, "{key}<{than}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_from_text() {
        let labels = json!({"app": "nginx", "tier": "web", "n": "5"});
        for (text, matches) in [
            ("", true),
            ("app=nginx", true),
            ("app==nginx", true),
            ("app!=nginx", false),
            ("app in (a,nginx)", true),
            ("app notin (a, b)", true),
            ("missing notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("app=nginx,tier in (web)", true),
            ("n>4", true),
            ("n<4", false),
            ("missing!=x", true),
            ("app in(nginx)", true),
        ] {
            let selector = Selector::parse_labels(text);
            assert_eq!(selector.map(|s| s.matches_json(Some(&labels))), Ok(matches), "{text}");
        }
        for text in ["a,,b", "a=b=c", "in (a)", "a b", "=x", "a in b)", "n>x"] {
            assert!(Selector::parse_labels(text).is_err(), "{text}");
        }
    }

    #[test]
    fn field_selectors_from_text() {
        let selector = Selector::parse_fields("spec.nodeName=a,status.phase!=Running").unwrap();
        let value = |key: &str| if key == "spec.nodeName" { Some("a") } else { Some("Pending") };
        assert!(selector.matches_with(value));
        assert_eq!(selector.exact("spec.nodeName"), Some("a"));
        assert!(Selector::parse_fields("nonsense").is_err());
        assert_eq!(Selector::parse_fields(r"a=b\,c").unwrap().exact("a"), Some("b,c"));
    }

    #[test]
    fn absent_matches_nothing_and_empty_everything() {
        assert!(!Selector::from_json(None).unwrap().matches_json(None));
        assert!(Selector::from_json(Some(&json!({}))).unwrap().matches_json(None));
    }
}
