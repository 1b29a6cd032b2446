//! Label and field selectors.
//!
//! [`Selector`] is one list of requirements, all of which must hold. It is read from query text
//! (`app=nginx,tier in (a,b),!old`), from a `LabelSelector` (typed or JSON), or from a plain map.

mod fields;
mod labels;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    Equals(String, String),
    NotEquals(String, String),
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
    #[error("{0}")]
    Labels(String),
    #[error("\"{0}\" is not a valid label selector operator")]
    Operator(String),
    #[error("invalid selector: '{0}'; can't understand '{1}'")]
    Field(String, String),
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// Upstream shows the character as a number.
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(u32),
}

impl Requirement {
    /// `value` is the object's value for the requirement's key, if it has one.
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Requirement::Equals(_, wanted) => value == Some(wanted),
            Requirement::NotEquals(_, unwanted) => value != Some(unwanted),
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
            Requirement::Equals(key, _)
            | Requirement::NotEquals(key, _)
            | Requirement::In(key, _)
            | Requirement::NotIn(key, _)
            | Requirement::Exists(key)
            | Requirement::DoesNotExist(key)
            | Requirement::GreaterThan(key, _)
            | Requirement::LessThan(key, _) => key,
        }
    }

    /// The same about another key.
    pub fn rename(&mut self, to: String) {
        match self {
            Requirement::Equals(key, _)
            | Requirement::NotEquals(key, _)
            | Requirement::In(key, _)
            | Requirement::NotIn(key, _)
            | Requirement::Exists(key)
            | Requirement::DoesNotExist(key)
            | Requirement::GreaterThan(key, _)
            | Requirement::LessThan(key, _) => *key = to,
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
        let requirements = map.iter().map(|(k, v)| Requirement::Equals(k.clone(), v.clone())).collect();
        Self { requirements, nothing: false }
    }

    /// From a typed `LabelSelector`: absent matches nothing, empty matches everything.
    pub fn from_label_selector(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(labels::checked(key, "=", vec![value.clone()])?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(requirement(&expression.key, &expression.operator, values)?);
        }
        Ok(Self::sorted(requirements))
    }

    /// From a `LabelSelector` in JSON.
    pub fn from_json(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|value| !value.is_null()) else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            requirements.push(labels::checked(key, "=", vec![value.as_str().unwrap_or_default().to_owned()])?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(requirement(text("key"), text("operator"), values)?);
        }
        Ok(Self::sorted(requirements))
    }

    fn sorted(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|one, other| one.key().cmp(other.key()));
        Self { requirements, nothing: false }
    }

    /// From query text: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`, `a>1`, `a<1`.
    pub fn parse_labels(text: &str) -> Result<Self, SelectorError> {
        Ok(Self { requirements: labels::parse(text)?, nothing: false })
    }

    /// From field selector text: `a=b`, `a==b`, `a!=b`, joined by commas; `\` escapes.
    pub fn parse_fields(text: &str) -> Result<Self, SelectorError> {
        Ok(Self { requirements: fields::parse(text)?, nothing: false })
    }

    /// The value `key` must equal, if a requirement pins it to exactly one.
    pub fn exact(&self, key: &str) -> Option<&str> {
        self.requirements.iter().find_map(|requirement| match requirement {
            Requirement::Equals(k, value) if k == key => Some(value.as_str()),
            Requirement::In(k, values) if k == key && values.len() == 1 => Some(values[0].as_str()),
            _ => None,
        })
    }
}

fn requirement(key: &str, operator: &str, values: Vec<String>) -> Result<Requirement, SelectorError> {
    let sign = match operator {
        "In" => "in",
        "NotIn" => "notin",
        "Exists" => "exists",
        "DoesNotExist" => "!",
        other => return Err(SelectorError::Operator(other.to_owned())),
    };
    labels::checked(key, sign, values)
}

/// Query text that reads back to the same selector.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let sorted = |values: &[String]| {
                let mut values = values.to_vec();
                values.sort_unstable();
                values.join(",")
            };
            match requirement {
                Requirement::Equals(key, value) => write!(f, "{key}={value}")?,
                Requirement::NotEquals(key, value) => write!(f, "{key}!={value}")?,
                Requirement::In(key, values) => write!(f, "{key} in ({})", sorted(values))?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", sorted(values))?,
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
    }

    #[test]
    fn absent_matches_nothing_and_empty_everything() {
        assert!(!Selector::from_json(None).unwrap().matches_json(None));
        assert!(Selector::from_json(Some(&json!({}))).unwrap().matches_json(None));
    }

    #[test]
    fn of_objects() {
        let with = |key: &str, operator: &str, values: &[&str]| json!({"matchLabels": {"z": "1"}, "matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (selector, expected) in [
            (with("a", "In", &["y", "x"]), Ok("a in (x,y),z=1")),
            (with("a", "NotIn", &["x"]), Ok("a notin (x),z=1")),
            (with("a", "Exists", &[]), Ok("a,z=1")),
            (with("zz", "DoesNotExist", &[]), Ok("z=1,!zz")),
            (with("a", "Gt", &["1"]), Err("\"Gt\" is not a valid label selector operator")),
            (
                with("a", "In", &[]),
                Err("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"),
            ),
            (
                with("a", "Exists", &["x"]),
                Err("values: Invalid value: [\"x\"]: values set must be empty for exists and does not exist"),
            ),
            (with("/a", "Exists", &[]), Err("key: Invalid value: \"/a\": prefix part must be non-empty")),
        ] {
            let typed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            for parsed in [Selector::from_json(Some(&selector)), Selector::from_label_selector(Some(&typed))] {
                let found = parsed.map(|selector| selector.to_string()).map_err(|error| error.to_string());
                assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned), "{selector}");
            }
        }
    }
}
