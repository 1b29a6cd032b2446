//! `x-kubernetes-validations`: CEL rules of a schema
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel`).

use std::sync::{Arc, OnceLock};

use api::field::{Error, Path};
use serde_json::Value;

use super::Constraints;
use crate::cel::decl::identifiers;
use crate::cel::lists::Shape;
use crate::cel::{self, CelError, Program};
use crate::schema::{base64_bytes, go_duration_nanos, parse_timestamp};

/// The longest message that an expression may make.
const LONGEST_MESSAGE: usize = 5 * 1024;

/// A rule of a schema. Its program is made when the first value is checked: a cluster's definitions hold
/// thousands of rules, most of which are never asked, and each program takes kilobytes.
#[derive(Debug)]
pub struct Rule {
    program: OnceLock<Result<Program, CelError>>,
    /// Of the value that the rule is about.
    shape: Option<Arc<Shape>>,
    text: String,
    message: String,
    message_expression: String,
    /// Made for the first value that breaks the rule; none inside: it is no expression.
    message_program: OnceLock<Option<Box<Program>>>,
    reason: String,
    /// Below the place of the rule: `.spec.name`.
    field_path: String,
    optional_old_self: bool,
}

/// A value that rules are asked about.
pub struct Checked<'a> {
    pub value: &'a Value,
    /// The value as rules see it.
    pub this: cel::Value,
    /// What it was before.
    pub before: Option<cel::Value>,
    /// Its type in the schema.
    pub kind: &'static str,
    pub path: &'a Path,
}

/// What a rule says of a value.
pub enum Verdict {
    Holds,
    Broken(Error),
    /// It could not be evaluated.
    Failed(Error),
}

/// What the rules of one object may cost together.
#[derive(Debug)]
pub struct Budget {
    left: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: cel::BUDGET }
    }
}

impl Budget {
    /// No further rules are run.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    fn run(&mut self, program: &Program, variables: &[(&str, cel::Value)]) -> Result<cel::Value, CelError> {
        let (outcome, spent) = program.evaluate_within(variables, cel::PER_CALL_LIMIT);
        self.left = self.left.saturating_sub(spent);
        outcome
    }
}

impl Rule {
    /// `shape`: of the value that the rule is about.
    pub fn new(rule: &Value, shape: Option<&Arc<Shape>>) -> Rule {
        let text = |key: &str| rule[key].as_str().unwrap_or_default().trim().to_owned();
        Rule {
            program: OnceLock::new(),
            shape: shape.cloned(),
            text: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            message_program: OnceLock::new(),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: rule["optionalOldSelf"].as_bool().unwrap_or_default(),
        }
    }

    fn program(&self) -> Result<&Program, &CelError> {
        self.program.get_or_init(|| cel::compile_shaped(&self.text, self.shape.as_ref())).as_ref()
    }

    /// Whether it is about the change of a value.
    pub fn is_transition(&self) -> bool {
        self.program().is_ok_and(|program| program.uses("oldSelf"))
    }

    /// Checks a value; rules about the change only run when there was something before.
    pub fn check(&self, checked: &Checked<'_>, budget: &mut Budget) -> Verdict {
        let invalid = |why: String| Verdict::Failed(Error::invalid(checked.path, checked.kind, why));
        let program = match self.program() {
            Ok(program) => program,
            Err(error) => return invalid(format!("rule compile error: {error}")),
        };
        let mut variables = vec![("self", checked.this.clone())];
        if program.uses("oldSelf") {
            match (self.optional_old_self, &checked.before) {
                (true, before) => variables.push(("oldSelf", cel::optional(before.clone()))),
                (false, Some(before)) => variables.push(("oldSelf", before.clone())),
                (false, None) => return Verdict::Holds,
            }
        }
        let outcome = budget.run(program, &variables);
        if budget.is_spent() {
            let why = "validation failed due to running out of cost budget, no further validation rules will be run";
            return invalid(why.to_owned());
        }
        match outcome.and_then(cel::truth) {
            Ok(true) => Verdict::Holds,
            Ok(false) => Verdict::Broken(self.broken(&variables, checked, budget)),
            Err(error) => invalid(self.why_not_evaluated(&error.to_string(), budget)),
        }
    }

    fn why_not_evaluated(&self, error: &str, budget: &mut Budget) -> String {
        let rule = self.shown();
        if error == cel::EXCEEDED {
            budget.left = 0;
            return format!(
                "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {rule}"
            );
        }
        if error.starts_with("no such overload") {
            return format!(
                "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
            );
        }
        format!("{error} evaluating rule: {rule}")
    }

    /// What the rule is called in messages about itself.
    fn shown(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }

    /// What `messageExpression` makes, if there is one that makes anything.
    fn computed_message(&self, variables: &[(&str, cel::Value)], budget: &mut Budget) -> Option<String> {
        if self.message_expression.is_empty() {
            return None;
        }
        let compile = || cel::compile_shaped(&self.message_expression, self.shape.as_ref()).ok().map(Box::new);
        let program = self.message_program.get_or_init(compile).as_ref()?;
        match budget.run(program, variables) {
            Ok(cel::Value::String(text)) => Some(text.trim().to_owned()),
            _ => None,
        }
    }

    fn detail(&self, variables: &[(&str, cel::Value)], budget: &mut Budget) -> String {
        let computed = self.computed_message(variables, budget);
        match computed.filter(|text| !text.is_empty() && !text.contains('\n') && text.len() <= LONGEST_MESSAGE) {
            Some(text) => text,
            None if !self.message.is_empty() => self.message.clone(),
            None => format!("failed rule: {}", self.text),
        }
    }

    fn broken(&self, variables: &[(&str, cel::Value)], checked: &Checked<'_>, budget: &mut Budget) -> Error {
        let path = &field_path(checked.path, &self.field_path);
        let detail = self.detail(variables, budget);
        // Objects and lists are not shown.
        let whole = matches!(checked.kind, "object" | "array");
        match self.reason.as_str() {
            "FieldValueForbidden" => Error::forbidden(path, detail),
            "FieldValueRequired" => Error::required(path, detail),
            "FieldValueDuplicate" if whole => Error::duplicate(path, Value::Object(Default::default())),
            "FieldValueDuplicate" => Error::duplicate(path, checked.value.clone()),
            _ if whole => Error::invalid_unshown(path, detail),
            _ => Error::invalid(path, checked.value.clone(), detail),
        }
    }
}

/// A value as rules see it: the schema says what is a timestamp, a duration, bytes, or a double.
pub fn to_cel(schema: &Constraints, value: &Value) -> cel::Value {
    match value {
        Value::String(text) => text_to_cel(schema.limits.as_ref().map_or("", |limits| &*limits.format), text),
        Value::Number(number) if schema.kind == "number" => cel::Value::Float(number.as_f64().unwrap_or_default()),
        Value::Array(items) => cel::list(items.iter().map(|item| match &schema.items {
            Some(schema) => to_cel(schema, item),
            None => cel::from_json(item),
        })),
        Value::Object(members) => cel::map(members.iter().flat_map(|(name, value)| {
            let (names, value) = match (schema.property(name), &schema.additional) {
                // A field that is null is as good as absent.
                (Some(_), _) if value.is_null() => (Vec::new(), cel::Value::Null),
                (Some(schema), _) => (field_names(name), to_cel(schema, value)),
                (None, Some(schema)) => (vec![name.clone()], to_cel(schema, value)),
                (None, None) => (field_names(name), cel::from_json(value)),
            };
            names.into_iter().map(move |name| (name, value.clone()))
        })),
        other => cel::from_json(other),
    }
}

/// As expressions write it; fields whose names no identifier can stand for keep them.
fn field_names(name: &str) -> Vec<String> {
    let names: Vec<String> = identifiers(name).collect();
    if names.is_empty() { vec![name.to_owned()] } else { names }
}

fn text_to_cel(format: &str, text: &str) -> cel::Value {
    let known = match format {
        "date-time" => parse_timestamp(text).ok().and_then(|time| cel::timestamp(&time)),
        "date" => parse_timestamp(&format!("{text}T00:00:00Z")).ok().and_then(|time| cel::timestamp(&time)),
        "duration" => Some(cel::duration(go_duration_nanos(text))),
        "byte" => Some(base64_bytes(text).into()),
        _ => None,
    };
    known.unwrap_or_else(|| text.into())
}

/// Below `path`, where `.spec.name` or `.map['a.b']` leads.
fn field_path(path: &Path, below: &str) -> Path {
    let mut path = path.clone();
    let mut rest = below;
    while !rest.is_empty() {
        if let Some((key, after)) = rest.strip_prefix("['").and_then(|rest| rest.split_once("']")) {
            path = path.key(key);
            rest = after;
            continue;
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            break;
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len()).max(1);
        path = path.child(&rest[..end]);
        rest = &rest[end..];
    }
    path
}
