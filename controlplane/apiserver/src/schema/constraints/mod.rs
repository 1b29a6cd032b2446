//! What the schema of a custom resource demands of values: types, bounds, patterns, formats,
//! combinations, unique lists and validation rules. Messages are those of upstream's validator.
//!
//! [`Constraints::new`] reads an `openAPIV3Schema` once; [`Constraints::validate`] checks an
//! object, and its change. [`object`] says in which order, [`pattern`] holds the
//! regular expressions, [`rules`] are the CEL rules, [`api::formats`] the formats that are checked.

mod object;
mod pattern;
mod rules;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use api::field::{Error, ErrorList, Path};
use api::formats;
use serde_json::Value;

use crate::cel::lists::Shape;
use pattern::Pattern;
use rules::{Budget, Checked, Rule, Verdict};

/// A compiled schema. A cluster holds some hundred thousand of these, most of which only name a type:
/// what few of them have is in boxes of its own.
#[derive(Debug, Default)]
pub struct Constraints {
    nullable: bool,
    int_or_string: bool,
    /// There are CEL rules, here or below.
    ruled: bool,
    /// There are sets or map-like lists, here or below.
    keyed: bool,
    /// One of [`TYPES`], or empty.
    kind: &'static str,
    required: Box<[Box<str>]>,
    limits: Option<Box<Limits>>,
    combinations: Option<Box<Combinations>>,
    /// By name, ascending.
    properties: Box<[(Box<str>, Constraints)]>,
    additional: Option<Box<Constraints>>,
    items: Option<Box<Constraints>>,
    unique: Unique,
    rules: Box<[Rule]>,
}

const TYPES: [&str; 6] = ["object", "array", "string", "integer", "number", "boolean"];

/// What single values and counts are held to.
#[derive(Debug, Default)]
struct Limits {
    format: Box<str>,
    allowed: Box<[Value]>,
    pattern: Option<Pattern>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    /// Characters, items or properties: least and most.
    length: (Option<usize>, Option<usize>),
    items_count: (Option<usize>, Option<usize>),
    properties_count: (Option<usize>, Option<usize>),
}

#[derive(Debug, Default)]
struct Combinations {
    all_of: Box<[Constraints]>,
    any_of: Box<[Constraints]>,
    one_of: Box<[Constraints]>,
    not: Option<Constraints>,
}

/// What makes items of a list the same.
#[derive(Debug, Default, PartialEq)]
enum Unique {
    #[default]
    No,
    Values,
    Keys(Box<[Box<str>]>),
}

/// What rules found.
#[derive(Debug, Default)]
struct Found {
    errors: ErrorList,
    /// Of values that were as wrong before and did not change.
    let_pass: ErrorList,
    budget: Budget,
}

fn rules_of(schema: &Value) -> Box<[Rule]> {
    let Some(rules) = schema["x-kubernetes-validations"].as_array() else { return Box::default() };
    let shape = Shape::of(schema);
    rules.iter().map(|rule| Rule::new(rule, shape.as_ref())).collect()
}

impl Constraints {
    /// Compiles the schema of an object, or of a part of one.
    pub fn new(schema: &Value) -> Self {
        let flag = |key: &str| schema[key].as_bool().unwrap_or_default();
        let one = |key: &str| schema[key].is_object().then(|| Box::new(Self::new(&schema[key])));
        let properties = schema["properties"].as_object().into_iter().flatten();
        let mut properties: Box<[_]> =
            properties.map(|(name, schema)| (name.as_str().into(), Self::new(schema))).collect();
        properties.sort_unstable_by(|(a, _): &(Box<str>, Self), (b, _)| a.cmp(b));
        let (additional, items, rules) = (one("additionalProperties"), one("items"), rules_of(schema));
        let ruled = |schema: &Option<Box<Self>>| schema.as_ref().is_some_and(|schema| schema.ruled);
        let keyed = |schema: &Option<Box<Self>>| schema.as_ref().is_some_and(|schema| schema.keyed);
        let unique = match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => Unique::Values,
            Some("map") => Unique::Keys(texts(schema, "x-kubernetes-list-map-keys")),
            _ => Unique::No,
        };
        Self {
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            ruled: !rules.is_empty()
                || ruled(&additional)
                || ruled(&items)
                || properties.iter().any(|(_, schema)| schema.ruled),
            keyed: unique != Unique::No
                || keyed(&additional)
                || keyed(&items)
                || properties.iter().any(|(_, schema)| schema.keyed),
            kind: TYPES.into_iter().find(|kind| schema["type"] == *kind).unwrap_or_default(),
            required: texts(schema, "required"),
            limits: Limits::compile(schema),
            combinations: Combinations::compile(schema),
            properties,
            additional,
            items,
            unique,
            rules,
        }
    }

    /// The schema of a declared property.
    fn property(&self, name: &str) -> Option<&Constraints> {
        let at = self.properties.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        self.properties.get(at).map(|(_, schema)| schema)
    }

    fn check(&self, value: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
        if old == Some(value) || (value.is_null() && self.nullable) {
            return;
        }
        match value {
            // Of the wrong type: only what holds of every type is looked at.
            _ if !self.check_type(value, path, errors) => {}
            Value::String(text) => self.check_text(text, path, errors),
            Value::Number(_) => self.check_number(value, path, errors),
            Value::Array(items) => self.check_list(items, old, path, errors),
            Value::Object(members) => self.check_object(members, old, path, errors),
            _ => {}
        }
        if let Some(limits) = self.limits.as_ref().filter(|limits| !limits.allowed.is_empty())
            && !limits.allowed.contains(value)
        {
            errors.push(not_supported(path, value, &limits.allowed));
        }
        self.check_combinations(value, path, errors);
    }

    /// False when the type is wrong.
    fn check_type(&self, value: &Value, path: &Path, errors: &mut ErrorList) -> bool {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.as_f64().is_some_and(|n| n.fract() == 0.0) => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let wanted = if self.int_or_string { "integer,string" } else { self.kind };
        let fits =
            wanted.is_empty() || wanted.split(',').any(|kind| kind == found || (kind, found) == ("number", "integer"));
        if !fits {
            let detail = format!("{} in body must be of type {wanted}: {found:?}", shown(path));
            errors.push(Error::type_invalid(path, found, detail));
            if self.kind == "integer" && value.is_number() {
                errors.push(self.out_of_format(path));
            }
        }
        fits
    }

    fn check_text(&self, text: &str, path: &Path, errors: &mut ErrorList) {
        let Some(limits) = &self.limits else { return };
        let length = text.chars().count();
        if let Some(least) = limits.length.0.filter(|least| length < *least) {
            errors.push(Error::invalid(
                path,
                text,
                format!("{} in body should be at least {least} chars long", shown(path)),
            ));
        }
        if let Some(most) = limits.length.1.filter(|most| length > *most) {
            errors.push(Error::too_long(path, most));
        }
        if let Some(pattern) = limits.pattern.as_ref().filter(|pattern| !pattern.fits(text)) {
            let detail = format!("{} in body should match '{}'", shown(path), pattern.text());
            errors.push(Error::invalid(path, text, detail));
        }
        if !formats::fits(&limits.format, text) {
            let detail = format!("{} in body must be of type {}: {text:?}", shown(path), limits.format);
            errors.push(Error::invalid(path, text, detail));
        }
    }

    /// A number that is none of the type in its format. Upstream loses the field and the value of this one.
    fn out_of_format(&self, path: &Path) -> Error {
        let format = match self.limits.as_ref().map_or("", |limits| &*limits.format) {
            "" => "(default format)".to_owned(),
            format => format!("with format {format}"),
        };
        let detail = format!("Checked value must be of type {} {format} in {}", self.kind, shown(path));
        Error::invalid(&Path::root("<nil>"), "", detail)
    }

    fn check_number(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        let Some(limits) = &self.limits else { return };
        let number = value.as_f64().unwrap_or_default();
        if !formats::holds(&limits.format, number) {
            errors.push(self.out_of_format(path));
        }
        let mut fail = |what: String| {
            errors.push(Error::invalid(path, value.clone(), format!("{} in body should be {what}", shown(path))))
        };
        match limits.minimum {
            Some((limit, true)) if number <= limit => fail(format!("greater than {limit}")),
            Some((limit, false)) if number < limit => fail(format!("greater than or equal to {limit}")),
            _ => {}
        }
        match limits.maximum {
            Some((limit, true)) if number >= limit => fail(format!("less than {limit}")),
            Some((limit, false)) if number > limit => fail(format!("less than or equal to {limit}")),
            _ => {}
        }
        if let Some(step) =
            limits.multiple_of.filter(|step| *step > 0.0 && (number / step).fract().abs() > f64::EPSILON)
        {
            fail(format!("a multiple of {step}"));
        }
    }

    fn check_list(&self, items: &[Value], old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
        let (least, most) = self.limits.as_ref().map(|limits| limits.items_count).unwrap_or_default();
        if let Some(least) = least.filter(|least| items.len() < *least) {
            errors.push(Error::invalid(
                path,
                items.len(),
                format!("{} in body should have at least {least} items", shown(path)),
            ));
        }
        if let Some(most) = most.filter(|most| items.len() > *most) {
            errors.push(Error::too_many(path, items.len(), most));
        }
        if let Some(schema) = &self.items {
            let known = self.by_key(old);
            for (index, item) in items.iter().enumerate() {
                schema.check(item, self.before(item, &known), &path.index(index), errors);
            }
        }
    }

    /// Finds items that sets and map-like lists have twice.
    fn check_unique(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        if !self.keyed {
            return;
        }
        match value {
            Value::Array(items) => {
                let mut seen = HashSet::new();
                for (index, item) in items.iter().enumerate() {
                    let Some(key) = self.item_key(item) else { continue };
                    if !seen.insert(key.to_string()) {
                        errors.push(Error::duplicate(&path.index(index), key));
                    }
                }
                let Some(schema) = &self.items else { return };
                for (index, item) in items.iter().enumerate() {
                    schema.check_unique(item, &path.index(index), errors);
                }
            }
            Value::Object(members) => {
                for (name, value) in members {
                    let Some(schema) = self.member(name) else { continue };
                    let path = if self.property(name).is_some() { path.child(name) } else { path.key(name) };
                    schema.check_unique(value, &path, errors);
                }
            }
            _ => {}
        }
    }

    /// What an item is known by in a set or map-like list.
    fn item_key(&self, item: &Value) -> Option<Value> {
        match &self.unique {
            Unique::No => None,
            Unique::Values => Some(item.clone()),
            Unique::Keys(names) => {
                let member = |name: &str| Some((name.to_owned(), item.get(name)?.clone()));
                Some(Value::Object(names.iter().filter_map(|name| member(name)).collect()))
            }
        }
    }

    fn check_object(
        &self,
        members: &serde_json::Map<String, Value>,
        old: Option<&Value>,
        path: &Path,
        errors: &mut ErrorList,
    ) {
        for name in self.required.iter().filter(|name| !members.contains_key(&***name)) {
            errors.push(Error::required(&path.child(name), ""));
        }
        let (least, most) = self.limits.as_ref().map(|limits| limits.properties_count).unwrap_or_default();
        if let Some(least) = least.filter(|least| members.len() < *least) {
            let detail = format!("{} in body should have at least {least} properties", shown(path));
            errors.push(Error::invalid(path, members.len(), detail));
        }
        if let Some(most) = most.filter(|most| members.len() > *most) {
            errors.push(Error::too_many(path, members.len(), most));
        }
        for (name, value) in members {
            if let Some(schema) = self.member(name) {
                schema.check(value, old.and_then(|old| old.get(name)), &path.child(name), errors);
            }
        }
    }

    /// The schema of a member: of a field, or of all keys.
    fn member(&self, name: &str) -> Option<&Constraints> {
        self.property(name).or(self.additional.as_deref())
    }

    fn check_combinations(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        let Some(combinations) = &self.combinations else { return };
        let problems = |schema: &Constraints| {
            let mut errors = ErrorList::new();
            schema.check(value, None, path, &mut errors);
            errors
        };
        // Upstream loses the field and the value of these.
        let failed = |what: &str| {
            let place = if *path == Path::empty() { String::new() } else { path.to_string() };
            Error::invalid(&Path::root("<nil>"), "", format!("{place:?} must {what}"))
        };
        let any: Vec<ErrorList> = combinations.any_of.iter().map(problems).collect();
        if !any.is_empty() && !any.iter().any(Vec::is_empty) {
            errors.push(failed("validate at least one schema (anyOf)"));
            errors.extend(any.into_iter().next().unwrap_or_default());
        }
        let one: Vec<ErrorList> = combinations.one_of.iter().map(problems).collect();
        match one.iter().filter(|problems| problems.is_empty()).count() {
            0 if !one.is_empty() => {
                errors.push(failed("validate one and only one schema (oneOf). Found none valid"));
                errors.extend(one.into_iter().next().unwrap_or_default());
            }
            0 | 1 => {}
            count => {
                let what = format!("validate one and only one schema (oneOf). Found {count} valid alternatives");
                errors.push(failed(&what));
            }
        }
        let all: Vec<ErrorList> = combinations.all_of.iter().map(problems).collect();
        let valid = all.iter().filter(|problems| problems.is_empty()).count();
        let wanted = all.len();
        errors.extend(all.into_iter().flatten());
        if valid < wanted {
            let none = if valid == 0 { ". None validated" } else { "" };
            errors.push(failed(&format!("validate all the schemas (allOf){none}")));
        }
        if combinations.not.as_ref().is_some_and(|schema| problems(schema).is_empty()) {
            errors.push(failed("not validate the schema (not)"));
        }
    }

    fn check_rules(&self, new: &Value, old: Option<&Value>, path: &Path, found: &mut Found) {
        if !self.ruled || new.is_null() || found.budget.is_spent() {
            return;
        }
        let unchanged = old == Some(new);
        if !self.rules.is_empty() {
            self.check_own_rules(new, old, path, found);
        }
        match new {
            Value::Object(members) => {
                for (name, value) in members {
                    let Some(schema) = self.member(name) else { continue };
                    let before = if unchanged { Some(value) } else { old.and_then(|old| old.get(name)) };
                    let path = if self.property(name).is_some() { path.child(name) } else { path.key(name) };
                    schema.check_rules(value, before, &path, found);
                }
            }
            Value::Array(items) => {
                let Some(schema) = self.items.as_ref().filter(|schema| schema.ruled) else { return };
                let known = if unchanged { HashMap::new() } else { self.by_key(old) };
                for (index, item) in items.iter().enumerate() {
                    // No part of what did not change has changed, whether it can be told from others or not.
                    let before = if unchanged { Some(item) } else { self.before(item, &known) };
                    schema.check_rules(item, before, &path.index(index), found);
                }
            }
            _ => {}
        }
    }

    fn check_own_rules(&self, new: &Value, old: Option<&Value>, path: &Path, found: &mut Found) {
        let checked = Checked {
            value: new,
            this: rules::to_cel(self, new),
            before: old.map(|old| rules::to_cel(self, old)),
            kind: self.kind,
            path,
        };
        for rule in self.rules.iter() {
            if found.budget.is_spent() {
                return;
            }
            match rule.check(&checked, &mut found.budget) {
                Verdict::Holds => {}
                Verdict::Broken(error) if old == Some(new) && !rule.is_transition() => found.let_pass.push(error),
                Verdict::Broken(error) | Verdict::Failed(error) => found.errors.push(error),
            }
        }
    }

    /// The items of the old list by what they are known by: those of map-like lists only, others cannot be told.
    fn by_key<'a>(&self, old: Option<&'a Value>) -> HashMap<String, &'a Value> {
        let mut known = HashMap::new();
        if let (Unique::Keys(_), Some(Value::Array(items))) = (&self.unique, old) {
            for item in items {
                if let Some(key) = self.item_key(item) {
                    known.entry(key.to_string()).or_insert(item);
                }
            }
        }
        known
    }

    /// The old item that an item of a list was.
    fn before<'a>(&self, item: &Value, known: &HashMap<String, &'a Value>) -> Option<&'a Value> {
        if known.is_empty() {
            return None;
        }
        known.get(&self.item_key(item)?.to_string()).copied()
    }
}

fn texts(schema: &Value, key: &str) -> Box<[Box<str>]> {
    schema[key].as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.into())).collect()
}

impl Limits {
    /// None: the schema has none.
    fn compile(schema: &Value) -> Option<Box<Self>> {
        const KEYS: [&str; 12] = [
            "format",
            "enum",
            "pattern",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
        ];
        if KEYS.iter().all(|key| schema[*key].is_null()) {
            return None;
        }
        let count = |key: &str| schema[key].as_u64().and_then(|n| usize::try_from(n).ok());
        let bound = |key: &str, exclusive: &str| schema[key].as_f64().map(|limit| (limit, schema[exclusive] == true));
        Some(Box::new(Self {
            format: schema["format"].as_str().unwrap_or_default().into(),
            allowed: schema["enum"].as_array().map(|allowed| allowed.as_slice().into()).unwrap_or_default(),
            pattern: schema["pattern"].as_str().map(Pattern::new),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: schema["multipleOf"].as_f64(),
            length: (count("minLength"), count("maxLength")),
            items_count: (count("minItems"), count("maxItems")),
            properties_count: (count("minProperties"), count("maxProperties")),
        }))
    }
}

impl Combinations {
    fn compile(schema: &Value) -> Option<Box<Self>> {
        if ["allOf", "anyOf", "oneOf", "not"].iter().all(|key| schema[*key].is_null()) {
            return None;
        }
        let many = |key: &str| schema[key].as_array().into_iter().flatten().map(Constraints::new).collect();
        let not = &schema["not"];
        Some(Box::new(Self {
            all_of: many("allOf"),
            any_of: many("anyOf"),
            one_of: many("oneOf"),
            not: not.is_object().then(|| Constraints::new(not)),
        }))
    }
}

/// The path as the middle of messages has it: empty for the object itself.
fn shown(path: &Path) -> String {
    if *path == Path::empty() { "\"\"".to_owned() } else { path.to_string() }
}

fn not_supported(path: &Path, value: &Value, allowed: &[Value]) -> Error {
    let texts: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
    if texts.len() == allowed.len() {
        return Error::not_supported(path, value.clone(), &texts);
    }
    let list: Vec<String> = allowed.iter().map(|value| format!("\"{value}\"")).collect();
    let mut error = Error::not_supported(path, value.clone(), &[]);
    error.detail = format!("supported values: {}", list.join(", "));
    error
}
