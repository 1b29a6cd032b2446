//! Validates the schema of a version: what OpenAPI may say there, defaults, and CEL rules with
//! their types and estimated costs.
//!
//! Upstream: `k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go`.

use api::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::structural::{self, combined, properties};
use crate::cel::decl::{Decl, LARGEST_REQUEST, least_bytes};
use crate::cel::{self, RULE_LIMIT, SCHEMA_LIMIT};
use crate::schema::Structural;
use crate::schema::constraints::Constraints;

/// What a schema may say at its root when there is a status subresource.
const AT_ROOT: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

/// Checks `openAPIV3Schema`; a schema that did not change is not held to limits of cost.
pub fn validate(schema: &Value, path: &Path, has_status: bool, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    if has_status {
        let members = schema.as_object().into_iter().flatten();
        if members.clone().any(|(key, value)| !value.is_null() && !AT_ROOT.contains(&key.as_str())) {
            let names: Vec<String> = AT_ROOT.iter().map(|name| go_name(name)).collect();
            let why = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                names.join(" ")
            );
            errors.push(Error::invalid(path, schema.clone(), why));
        }
    }
    if schema["nullable"] == true {
        errors.push(Error::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    let mut structural = structural::validate(schema, path);
    if structural.is_empty() {
        defaults(schema, path, &mut structural);
    }
    let rules = structural.is_empty();
    errors.extend(structural);
    let mut walk = Walk { errors, rules: ErrorList::new(), total: Vec::new(), unchanged: old == Some(schema) };
    let cardinality = rules.then_some(Some(1));
    walk.openapi(schema, path, &Place { root: true, cardinality, ..Place::default() });
    let mut errors = walk.errors;
    if errors.is_empty() {
        errors.extend(walk.rules);
        errors.extend(too_expensive(&walk.total, path));
    }
    errors
}

/// As the field is called in Go.
fn go_name(key: &str) -> String {
    let words = key.trim_start_matches("x-kubernetes-").split('-');
    let capital =
        |word: &str| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)).collect::<String>();
    let prefix = if key.starts_with("x-kubernetes-") { "X" } else { "" };
    format!("{prefix}{}", words.map(capital).collect::<String>())
}

/// Defaults have no fields that would be pruned, and are valid values.
fn defaults(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let default = &schema["default"];
    if !default.is_null() {
        let place = path.child("default");
        let mut pruned = default.clone();
        Structural::from_json(schema).prune_value(&mut pruned);
        if pruned != *default {
            errors.push(Error::invalid(&place, default.clone(), "must not have unknown fields"));
        }
        errors.extend(Constraints::new(schema).validate_at(default, None, &place));
        return;
    }
    for (key, part) in [("items", &schema["items"]), ("additionalProperties", &schema["additionalProperties"])] {
        if part.is_object() {
            defaults(part, &path.child(key), errors);
        }
    }
    for (_, schema, path) in properties(schema, path) {
        defaults(schema, &path, errors);
    }
}

/// Where in a schema a part is.
#[derive(Clone, Default)]
struct Place {
    root: bool,
    in_metadata: bool,
    /// Why defaults are forbidden here.
    no_defaults: Option<String>,
    /// The first place above whose parts cannot be told again after a change.
    uncorrelatable: Option<Path>,
    /// How often the part may be in an object; none inside: any number. None: no rules here.
    cardinality: Option<Option<u64>>,
}

struct Walk {
    errors: ErrorList,
    /// Only told when the schema itself is sound.
    rules: ErrorList,
    total: Vec<(Path, u64)>,
    unchanged: bool,
}

impl Walk {
    fn openapi(&mut self, schema: &Value, path: &Path, place: &Place) {
        self.keywords(schema, path, place);
        let times = |count: &Value| place.cardinality.map(|number| Some(number?.saturating_mul(count.as_u64()?)));
        let additional = &schema["additionalProperties"];
        if !additional.is_null() {
            let declares = schema["properties"].as_object().is_some_and(|fields| !fields.is_empty());
            if declares && *additional != true {
                let why = "additionalProperties and properties are mutual exclusive";
                self.errors.push(Error::forbidden(&path.child("additionalProperties"), why));
            }
            if additional.is_object() {
                let mut below = Place { root: false, cardinality: times(&schema["maxProperties"]), ..place.clone() };
                if place.in_metadata {
                    below.no_defaults = Some(" inside additionalProperties applying to object metadata".to_owned());
                }
                self.openapi(additional, &path.child("additionalProperties"), &below);
            }
        }
        for (name, part, part_path) in properties(schema, path) {
            let mut below = Place { root: false, ..place.clone() };
            let resource = place.root || schema["x-kubernetes-embedded-resource"] == true;
            if resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
                below.in_metadata = true;
                if place.root {
                    below.no_defaults = Some(format!(" in top-level {name}"));
                }
            }
            self.openapi(part, &part_path, &below);
        }
        let nested = Place { root: false, cardinality: None, ..place.clone() };
        for (_, part, path) in combined(schema, path) {
            self.openapi(part, &path, &nested);
        }
        if schema["items"].is_object() {
            let mut below = Place { root: false, cardinality: times(&schema["maxItems"]), ..place.clone() };
            if schema["x-kubernetes-list-type"] != "map" {
                below.uncorrelatable.get_or_insert_with(|| path.clone());
            }
            self.openapi(&schema["items"], &path.child("items"), &below);
        }
        self.maps_and_lists(schema, path);
        self.rules(schema, path, place);
    }

    fn forbid(&mut self, path: &Path, key: &str, why: impl Into<String>) {
        self.errors.push(Error::forbidden(&path.child(key), why));
    }

    fn keywords(&mut self, schema: &Value, path: &Path, place: &Place) {
        const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
        let kind = schema["type"].as_str().unwrap_or_default();
        if kind == "null" {
            self.forbid(path, "type", "type cannot be set to null, use nullable as an alternative");
        } else if !kind.is_empty() && !TYPES.contains(&kind) {
            self.errors.push(Error::not_supported(&path.child("type"), kind, &TYPES));
        }
        if let Some(reason) = place.no_defaults.as_ref().filter(|_| !schema["default"].is_null()) {
            self.forbid(path, "default", format!("must not be set{reason}"));
        }
        for key in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
            if !schema[key].is_null() {
                self.forbid(path, key, format!("{key} is not supported"));
            }
        }
        if schema["items"].is_array() {
            self.forbid(path, "items", "items must be a schema object and not an array");
        }
        if place.in_metadata && schema["x-kubernetes-embedded-resource"] == true {
            self.forbid(path, "x-kubernetes-embedded-resource", "must not be used inside of resource meta");
        }
        if schema["uniqueItems"] == true {
            self.forbid(
                path,
                "uniqueItems",
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
        if schema["x-kubernetes-preserve-unknown-fields"] == false {
            let place = path.child("x-kubernetes-preserve-unknown-fields");
            self.errors.push(Error::invalid(&place, false, "must be true or undefined"));
        }
    }

    /// `x-kubernetes-map-type`, `x-kubernetes-list-type` and its keys.
    fn maps_and_lists(&mut self, schema: &Value, path: &Path) {
        let kind = schema["type"].as_str().unwrap_or_default();
        for (key, wanted, known) in [
            ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
            ("x-kubernetes-list-type", "array", &["atomic", "set", "map"][..]),
        ] {
            let Some(given) = schema[key].as_str() else { continue };
            if kind != wanted {
                let why = format!("must be {wanted} if {key} is specified");
                let place = path.child("type");
                let error =
                    if kind.is_empty() { Error::required(&place, why) } else { Error::invalid(&place, kind, why) };
                self.errors.push(error);
            }
            if !known.contains(&given) {
                self.errors.push(Error::not_supported(&path.child(key), given, known));
            }
        }
        let (list, items) = (schema["x-kubernetes-list-type"].as_str(), &schema["items"]);
        let keys: Vec<&str> =
            schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !keys.is_empty() && list != Some("map") {
            let (place, why) =
                (path.child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
            self.errors.push(match list {
                None => Error::required(&place, why),
                Some(list) => Error::invalid(&place, list, why),
            });
        }
        if matches!(list, Some("set" | "map")) && items["nullable"] == true {
            let why = format!("cannot be nullable when x-kubernetes-list-type is {}", list.unwrap_or_default());
            self.forbid(&path.child("items"), "nullable", why);
        }
        match list {
            Some("set") => self.set_items(items, &path.child("items")),
            Some("map") => self.map_items(schema, &keys, path),
            _ => {}
        }
    }

    /// Items of a set are told apart as wholes.
    fn set_items(&mut self, items: &Value, path: &Path) {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let (key, granular) = match items["type"].as_str() {
            Some("array") => (
                "x-kubernetes-list-type",
                items["x-kubernetes-list-type"].as_str().is_some_and(|kind| kind != "atomic"),
            ),
            Some("object") => ("x-kubernetes-map-type", items["x-kubernetes-map-type"] != "atomic"),
            _ => return,
        };
        if granular {
            self.errors.push(Error::invalid(&path.child(key), items[key].clone(), why));
        }
    }

    fn map_items(&mut self, schema: &Value, keys: &[&str], path: &Path) {
        let (items, place) = (&schema["items"], path.child("x-kubernetes-list-map-keys"));
        if keys.is_empty() {
            self.errors.push(Error::required(&place, "must not be empty if x-kubernetes-list-type is map"));
        }
        if !items.is_object() {
            let why = "must have a schema if x-kubernetes-list-type is map";
            return self.errors.push(Error::required(&path.child("items"), why));
        }
        if items["type"] != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            return self.errors.push(Error::invalid(&path.child("items").child("type"), items["type"].clone(), why));
        }
        let required = |key: &str| items["required"].as_array().into_iter().flatten().any(|name| name == key);
        let given = schema["x-kubernetes-list-map-keys"].clone();
        for (index, key) in keys.iter().enumerate() {
            let field = &items["properties"][*key];
            let here = path.child("items").child("properties").key(key);
            if !field.is_object() {
                self.errors.push(Error::invalid(&place, given.clone(), "entries must all be names of item properties"));
                continue;
            }
            if matches!(field["type"].as_str(), Some("array" | "object")) {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.errors.push(Error::invalid(&here.child("type"), field["type"].clone(), why));
            }
            if keys[..index].contains(key) {
                self.errors.push(Error::invalid(&place, given.clone(), "must not contain duplicate entries"));
            }
            if !required(key) && field["default"].is_null() {
                self.errors.push(Error::required(&here.child("default"), "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"));
            }
            if field["nullable"] == true {
                self.forbid(
                    &here,
                    "nullable",
                    "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                );
            }
        }
    }

    fn rules(&mut self, schema: &Value, path: &Path, place: &Place) {
        let rules = schema["x-kubernetes-validations"].as_array().map_or(&[][..], Vec::as_slice);
        if rules.is_empty() {
            return;
        }
        let base = path.child("x-kubernetes-validations");
        for (index, rule) in rules.iter().enumerate() {
            self.form(rule, schema, &base.index(index));
        }
        let Some(cardinality) = place.cardinality.filter(|_| self.errors.is_empty()) else { return };
        let Some(this) = Decl::of_schema(schema, place.root) else { return };
        let times = cardinality.unwrap_or_else(|| LARGEST_REQUEST / (least_bytes(schema) + 1));
        for (index, rule) in rules.iter().enumerate() {
            self.compiled(rule, &this, times, &base.index(index), place);
        }
    }

    /// A rule's texts.
    fn form(&mut self, rule: &Value, schema: &Value, path: &Path) {
        const REASONS: [&str; 4] =
            ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
        let given = |key: &str| rule[key].as_str().unwrap_or_default();
        let lines = |text: &str| text.contains(['\n', '\r']);
        let (message, text) = (given("message").trim(), given("rule").trim());
        let invalid = |key: &str, why: &str| Error::invalid(&path.child(key), given(key), why);
        if text.is_empty() {
            self.errors.push(Error::required(&path.child("rule"), "rule is not specified"));
        } else if !given("message").is_empty() && message.is_empty() {
            self.errors.push(invalid("message", "must be non-empty if specified"));
        } else if lines(message) {
            self.errors.push(invalid("message", "must not contain line breaks"));
        } else if lines(text) && message.is_empty() {
            let why = "message must be specified if rule contains line breaks";
            self.errors.push(Error::required(&path.child("message"), why));
        }
        if !given("messageExpression").is_empty() && given("messageExpression").trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            self.errors.push(Error::required(&path.child("messageExpression"), why));
        }
        if rule["reason"].is_string() && !REASONS.contains(&given("reason")) {
            self.errors.push(Error::not_supported(&path.child("reason"), given("reason"), &REASONS));
        }
        let field = given("fieldPath");
        if !field.is_empty() && field.trim().is_empty() {
            self.errors.push(invalid("fieldPath", "must be non-empty if specified"));
        }
        if lines(field) {
            self.errors.push(invalid("fieldPath", "must not contain line breaks"));
        }
        if !field.is_empty() && field_schema(schema, field, true).is_err() {
            self.errors.push(invalid("fieldPath", "must be a valid path"));
        }
    }

    /// A rule's program: types, cost, and what it may refer to.
    fn compiled(&mut self, rule: &Value, this: &Decl, times: u64, path: &Path, place: &Place) {
        let optional = rule["optionalOldSelf"] == true;
        let old = if optional { Decl::optional(this.clone()) } else { this.clone() };
        let variables = [("self", this.clone()), ("oldSelf", old)];
        for (key, wanted, named) in [("rule", "bool", "rule"), ("messageExpression", "string", "messageExpression")] {
            let Some(text) = rule[key].as_str().map(str::trim).filter(|text| !text.is_empty()) else { continue };
            let place_of = path.child(key);
            match cel::compile_checked(text, &variables) {
                Err(error) if key == "rule" => self.rules.push(refused(&place_of, rule, error.to_string())),
                Err(error) => self.rules.push(refused(&place_of, rule, format!("messageExpression {error}"))),
                Ok((_, checked))
                    if !matches!(checked.decl.to_string().as_str(), "dyn") && checked.decl.to_string() != wanted =>
                {
                    let what = if key == "rule" { "cel expression" } else { "messageExpression" };
                    self.rules.push(refused(&place_of, rule, format!("{what} must evaluate to a {wanted}")));
                }
                Ok((program, checked)) => {
                    let cost = checked.cost.saturating_mul(if key == "rule" { times } else { 1 });
                    self.total.push((place_of.clone(), cost));
                    if cost > RULE_LIMIT && !self.unchanged {
                        self.rules.push(Error::forbidden(
                            &place_of,
                            excess(&format!("estimated {named} cost"), cost, RULE_LIMIT),
                        ));
                    }
                    if key == "rule" {
                        self.transition(rule, program.uses("oldSelf"), path, place);
                    }
                }
            }
        }
    }

    fn transition(&mut self, rule: &Value, uses_old: bool, path: &Path, place: &Place) {
        if let Some(above) = place.uncorrelatable.as_ref().filter(|_| uses_old) {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {above}");
            self.rules.push(Error::invalid(&path.child("rule"), rule["rule"].clone(), why));
        }
        if !uses_old && !rule["optionalOldSelf"].is_null() {
            let why = "may not be set if oldSelf is not used in rule";
            self.rules.push(Error::invalid(&path.child("optionalOldSelf"), rule["optionalOldSelf"].clone(), why));
        }
    }
}

/// An error that shows the whole rule, as Go has it.
fn refused(path: &Path, rule: &Value, why: String) -> Error {
    let text = |key: &str| Value::from(rule[key].as_str().unwrap_or_default());
    Error::invalid(path, Value::Null, why).showing(&[
        ("Rule", text("rule")),
        ("Message", text("message")),
        ("MessageExpression", text("messageExpression")),
        ("Reason", rule["reason"].clone()),
        ("FieldPath", text("fieldPath")),
        ("OptionalOldSelf", rule["optionalOldSelf"].clone()),
    ])
}

fn too_expensive(costs: &[(Path, u64)], path: &Path) -> ErrorList {
    let total = costs.iter().fold(0, |sum: u64, (_, cost)| sum.saturating_add(*cost));
    if total <= SCHEMA_LIMIT {
        return ErrorList::new();
    }
    let mut costs: Vec<&(Path, u64)> = costs.iter().collect();
    costs.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
    let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
    let mut errors: ErrorList = costs.iter().take(4).map(|(path, _)| Error::forbidden(path, why)).collect();
    let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
    errors.push(Error::forbidden(path, excess(name, total, SCHEMA_LIMIT)));
    errors
}

fn excess(name: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{name} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// The schema that a path like `.spec.name` or `.map['a.b']` leads to; `Err` says why none.
pub fn field_schema<'a>(schema: &'a Value, path: &str, brackets: bool) -> Result<&'a Value, String> {
    let (mut schema, mut rest) = (schema, path);
    while !rest.is_empty() {
        let name;
        if let Some(inner) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let quoted = inner.strip_prefix('\'').and_then(|inner| inner.split_once("']"));
            let Some((key, after)) = quoted else {
                return Err(format!("expected single quoted string but got {inner}"));
            };
            (name, rest) = (key, after);
        } else if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            if end == 0 {
                return Err("unexpected end of JSON path".to_owned());
            }
            (name, rest) = after.split_at(end);
        } else {
            return Err(format!("expected [ or . but got: {rest}"));
        }
        let found = match schema["properties"].as_object() {
            Some(fields) => fields.get(name),
            None => Some(&schema["additionalProperties"]).filter(|values| values.is_object()),
        };
        schema = found.ok_or("does not refer to a valid field")?;
    }
    Ok(schema)
}
