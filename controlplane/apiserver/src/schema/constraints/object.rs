//! How whole objects are checked: first their values, then the rules, if the values are such that
//! rules can count on them (`customresource/strategy.go` of apiextensions-apiserver).

use api::field::{Error, ErrorList, ErrorType, Path};
use serde_json::Value;

use super::{Constraints, Found};

impl Constraints {
    /// What is wrong with an object; `old` is what it was before an update. What was wrong before
    /// and did not change is let pass (`CRDValidationRatcheting`).
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> ErrorList {
        self.validate_at(new, old, &Path::empty())
    }

    /// The same for a value that is at `path`.
    pub fn validate_at(&self, new: &Value, old: Option<&Value>, path: &Path) -> ErrorList {
        let mut errors = ErrorList::new();
        self.check(new, old, path, &mut errors);
        errors.append(&mut self.duplicates(new, old, path));
        self.then_rules(new, old, path, &mut errors);
        errors
    }

    /// What sets have twice, or map-like lists under one key. An object that had some before may keep
    /// them, or have others: upstream compares no more than that.
    pub fn duplicates(&self, new: &Value, old: Option<&Value>, path: &Path) -> ErrorList {
        let found_in = |value: &Value| {
            let mut errors = ErrorList::new();
            self.check_unique(value, path, &mut errors);
            errors
        };
        let found = found_in(new);
        let had_some = || old.is_some_and(|old| !found_in(old).is_empty());
        if !found.is_empty() && had_some() { ErrorList::new() } else { found }
    }

    /// What the schema says of an object, its rules and what is there twice left out.
    pub fn values(&self, new: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        self.check(new, old, &Path::empty(), &mut errors);
        errors
    }

    /// The same of a write to its status, which is not held to what the rest of the schema says.
    pub fn status_values(&self, new: &Value, old: &Value) -> ErrorList {
        let (Some(schema), Some(status)) = (self.property("status"), new.get("status")) else {
            return ErrorList::new();
        };
        let mut errors = ErrorList::new();
        schema.check(status, old.get("status"), &Path::empty(), &mut errors);
        // Messages are about places in the status: upstream checks it by itself.
        let status = Path::root("status");
        for error in &mut errors {
            let within = error.field.to_string();
            error.field = if within == "<nil>" { status.clone() } else { status.child(&within) };
        }
        errors
    }

    /// Adds what the rules say, unless an error says that values are not what rules may expect. Returns
    /// what is wrong with values that did not change: their writer is told, and not refused.
    pub fn then_rules(&self, new: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) -> ErrorList {
        if self.ruled && errors.iter().any(blocks_rules) {
            let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(Error::invalid(&Path::empty(), Value::Null, why));
            return ErrorList::new();
        }
        let mut found = Found::default();
        self.check_rules(new, old, path, &mut found);
        errors.append(&mut found.errors);
        found.let_pass
    }
}

fn blocks_rules(error: &Error) -> bool {
    use ErrorType::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
    matches!(error.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
}
