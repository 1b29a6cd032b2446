//! `x-kubernetes-validations`: CEL rules of a schema
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel`).

use api::field::{Error, ErrorType, Path};
use serde_json::Value;

use super::Constraints;
use crate::cel::{self, CelError, Program};
use crate::schema::{base64_bytes, go_duration_nanos, parse_timestamp};

/// Names that CEL keeps for itself: fields that are called so are written `__name__`.
const RESERVED: [&str; 22] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "self",
];

#[derive(Debug)]
pub struct Rule {
    program: Result<Program, CelError>,
    text: String,
    message: String,
    message_expression: Option<Program>,
    reason: String,
    /// Below the place of the rule: `.spec.name`.
    field_path: String,
    optional_old_self: bool,
}

impl Rule {
    pub fn compile(rule: &Value) -> Rule {
        let text = |key: &str| rule[key].as_str().unwrap_or_default().trim().to_owned();
        Rule {
            program: cel::compile(&text("rule")),
            text: text("rule"),
            message: text("message"),
            message_expression: rule["messageExpression"].as_str().and_then(|text| cel::compile(text).ok()),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: rule["optionalOldSelf"].as_bool().unwrap_or_default(),
        }
    }

    pub fn broken(&self) -> Option<String> {
        self.program.as_ref().err().map(ToString::to_string)
    }

    /// Checks a value; rules about the change only run when there was something before.
    pub fn check(&self, this: &cel::Value, before: Option<&cel::Value>, kind: &str, path: &Path) -> Option<Error> {
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => return Some(Error::invalid(path, kind, error.to_string())),
        };
        let mut variables = vec![("self", this.clone())];
        if program.uses("oldSelf") {
            match (self.optional_old_self, before) {
                (true, before) => variables.push(("oldSelf", cel::optional(before.cloned()))),
                (false, Some(before)) => variables.push(("oldSelf", before.clone())),
                (false, None) => return None,
            }
        }
        match program.test(&variables) {
            Ok(true) => None,
            Ok(false) => Some(self.failed(&variables, kind, path)),
            Err(error) => {
                let detail =
                    format!("rule evaluation error: {error} evaluating rule: {}", self.text_of_message(&variables));
                Some(Error::invalid(path, kind, detail))
            }
        }
    }

    fn text_of_message(&self, variables: &[(&str, cel::Value)]) -> String {
        let computed = self.message_expression.as_ref().and_then(|program| program.text_of(variables).ok());
        match computed.filter(|text| !text.trim().is_empty() && !text.contains('\n')) {
            Some(text) => text,
            None if !self.message.is_empty() => self.message.clone(),
            None => format!("failed rule: {}", self.text),
        }
    }

    fn failed(&self, variables: &[(&str, cel::Value)], kind: &str, path: &Path) -> Error {
        let names = self.field_path.split('.').filter(|name| !name.is_empty());
        let path = &names.fold(path.clone(), |path, name| path.child(name));
        let detail = self.text_of_message(variables);
        match self.reason.as_str() {
            "FieldValueForbidden" => Error::forbidden(path, detail),
            "FieldValueRequired" => Error::required(path, detail),
            "FieldValueDuplicate" => {
                Error { kind: ErrorType::Duplicate, field: path.clone(), value: kind.into(), detail: String::new() }
            }
            _ => Error::invalid(path, kind, detail),
        }
    }
}

/// A value as rules see it: the schema says what is a timestamp, a duration, bytes, or a double.
pub fn to_cel(schema: &Constraints, value: &Value) -> cel::Value {
    match value {
        Value::String(text) => text_to_cel(&schema.format, text),
        Value::Number(number) if schema.kind == "number" => cel::Value::Float(number.as_f64().unwrap_or_default()),
        Value::Array(items) => cel::list(items.iter().map(|item| match &schema.items {
            Some(schema) => to_cel(schema, item),
            None => cel::from_json(item),
        })),
        Value::Object(members) => cel::map(members.iter().map(|(name, value)| match schema.properties.get(name) {
            Some(schema) => (escaped(name), to_cel(schema, value)),
            None => match &schema.additional {
                Some(schema) => (name.clone(), to_cel(schema, value)),
                None => (escaped(name), cel::from_json(value)),
            },
        })),
        other => cel::from_json(other),
    }
}

fn text_to_cel(format: &str, text: &str) -> cel::Value {
    let known = match format {
        "date-time" => parse_timestamp(text).ok().and_then(|time| cel::timestamp(&time)),
        "duration" => Some(cel::duration(go_duration_nanos(text))),
        "byte" => Some(base64_bytes(text).into()),
        _ => None,
    };
    known.unwrap_or_else(|| text.into())
}

/// A field's name as an identifier.
fn escaped(name: &str) -> String {
    if RESERVED.contains(&name) && name != "self" {
        return format!("__{name}__");
    }
    if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.contains("__") {
        return name.to_owned();
    }
    name.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}
