//! StorageClasses and VolumeAttributesClasses.

use std::collections::{BTreeMap, BTreeSet};

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::check::Node;
use crate::kinds::core::pod::warn::old_label;
use crate::kinds::table::{cell, named, row, words};
use crate::kinds::value::{annotation, default, flag, name, opt_text, same_at};
use crate::resource::{Column, Context, Hooks};

pub struct Class;

impl Hooks for Class {
    fn defaults(&self, class: &mut Value) {
        default(class, "reclaimPolicy", "Delete");
        default(class, "volumeBindingMode", "Immediate");
    }

    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        validate_class(class)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_class(new);
        for field in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
            Node::root(new).child(field).immutable_declared(&mut errors, &Node::root(old).child(field));
        }
        errors
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let terms = Node::root(new).items("allowedTopologies");
        let expressions = terms.iter().flat_map(|term| term.items("matchLabelExpressions"));
        let keys = expressions.map(|expression| expression.child("key"));
        keys.filter_map(|key| Some(format!("{}: {}", key.path, old_label(key.text())?))).collect()
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        let default =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
                .iter()
                .any(|key| annotation(class, key) == Some("true"));
        let mut cells = row(
            class,
            now,
            vec![
                cell(class, "provisioner"),
                opt_text(class, "reclaimPolicy").unwrap_or("Delete").into(),
                opt_text(class, "volumeBindingMode").unwrap_or("Immediate").into(),
                flag(class, "allowVolumeExpansion").into(),
            ],
        );
        if default {
            cells[0] = format!("{} (default)", name(class)).into();
        }
        cells
    }
}

fn validate_class(class: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(class);
    let provisioner = root.child("provisioner");
    provisioner_name(&provisioner, &mut errors);
    parameters(&root.child("parameters"), true, &mut errors);
    if !root.child("reclaimPolicy").text().is_empty() {
        root.child("reclaimPolicy").one_of(&mut errors, &["Delete", "Retain"]);
    }
    root.child("volumeBindingMode").optional_one_of(&mut errors, &["Immediate", "WaitForFirstConsumer"]);
    topologies(&root, &mut errors);
    // Declared rules speak last.
    provisioner.required(&mut errors, "");
    errors
}

/// The name of a provisioner, which is shown in lower case, as it is looked at.
fn provisioner_name(node: &Node<'_>, errors: &mut ErrorList) {
    let lower = node.text().to_lowercase();
    if !lower.is_empty() {
        for problem in names::qualified_name(&lower) {
            errors.push(Error::invalid(&node.path, lower.as_str(), problem));
        }
    }
}

const PARAMETERS: usize = 512;
const PARAMETER_BYTES: usize = 256 * 1024;

/// `validateParameters`: not too many, not too long, every key named.
fn parameters(parameters: &Node<'_>, may_be_empty: bool, errors: &mut ErrorList) {
    let Some(given) = parameters.value.as_object().filter(|given| !given.is_empty()) else {
        if !may_be_empty {
            parameters.missing(errors, "must contain at least one key/value pair");
        }
        return;
    };
    if given.len() > PARAMETERS {
        return errors.push(Error::too_long(&parameters.path, PARAMETERS));
    }
    if let Some(value) = given.get("") {
        let length = value.as_str().map_or(0, str::len);
        errors.push(Error::invalid(&parameters.path, length, "field must not be empty."));
    }
    let bytes: usize = given.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > PARAMETER_BYTES {
        errors.push(Error::too_long(&parameters.path, PARAMETER_BYTES));
    }
}

/// `allowedTopologies`: no term twice, no key twice in a term, no value twice for a key.
fn topologies(class: &Node<'_>, errors: &mut ErrorList) {
    let terms = class.items("allowedTopologies");
    // Upstream compares with as many empty terms too.
    let mut before: Vec<BTreeMap<&str, BTreeSet<&str>>> = vec![BTreeMap::new(); terms.len()];
    for term in terms {
        let mut keys = BTreeMap::new();
        for expression in term.items("matchLabelExpressions") {
            let (key, values) = (expression.child("key"), expression.items("values"));
            if values.is_empty() {
                expression.child("values").missing(errors, "");
            }
            let mut seen = BTreeSet::new();
            for value in &values {
                if !seen.insert(value.text()) {
                    value.duplicate(errors);
                }
            }
            key.format(errors, names::qualified_name);
            if keys.insert(key.text(), seen).is_some() {
                key.duplicate(errors);
            }
        }
        for _ in before.iter().filter(|other| **other == keys) {
            errors.push(Error::duplicate(&term.child("matchLabelExpressions").path, ""));
        }
        before.push(keys);
    }
}

pub fn columns() -> Vec<Column> {
    named(vec![
        words("Provisioner", "provisioner indicates the type of the provisioner."),
        words(
            "ReclaimPolicy",
            "reclaimPolicy controls the reclaimPolicy for dynamically provisioned PersistentVolumes of this storage class. Defaults to Delete.",
        ),
        words(
            "VolumeBindingMode",
            "volumeBindingMode indicates how PersistentVolumeClaims should be provisioned and bound.  When unset, VolumeBindingImmediate is used. This field is only honored by servers that enable the VolumeScheduling feature.",
        ),
        words("AllowVolumeExpansion", "allowVolumeExpansion shows whether the storage class allow volume expand."),
    ])
}

pub struct Attributes;

impl Hooks for Attributes {
    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validate_attributes(class, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        for field in ["driverName", "parameters"] {
            if !same_at(new, old, field) {
                Node::root(new).child(field).forbidden(&mut errors, format!("updates to {field} are forbidden."));
            }
        }
        validate_attributes(new, &mut errors);
        errors
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        row(class, now, vec![cell(class, "driverName")])
    }
}

fn validate_attributes(class: &Value, errors: &mut ErrorList) {
    let driver = Node::root(class).child("driverName");
    driver.required(errors, "");
    provisioner_name(&driver, errors);
    parameters(&Node::root(class).child("parameters"), false, errors);
}

pub fn attributes_columns() -> Vec<Column> {
    named(vec![words("DriverName", "driverName is the name of the CSI driver This field is immutable.")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, updated};
    use serde_json::json;

    fn class(extra: Value) -> Value {
        let mut class = json!({"metadata": {"name": "c"}, "provisioner": "example.com/p"});
        for (key, value) in extra.as_object().unwrap() {
            class[key] = value.clone();
        }
        class
    }

    #[test]
    fn rows() {
        let mut class = class(json!({}));
        class["metadata"]["annotations"] = json!({"storageclass.kubernetes.io/is-default-class": "true"});
        Class.defaults(&mut class);
        assert_eq!(
            cells(&Class, &class, "2026-01-01T00:00:00Z"),
            "c (default)|example.com/p|Delete|Immediate|false|<unknown>"
        );
    }

    #[test]
    fn classes_refused() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (json!({"provisioner": "Example.com/P"}), "[]"),
            (json!({"provisioner": ""}), "provisioner: Required value"),
            (
                json!({"reclaimPolicy": "Recycle", "volumeBindingMode": "Never"}),
                "[reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\", \
                 volumeBindingMode: Unsupported value: \"Never\": supported values: \"Immediate\", \"WaitForFirstConsumer\"]",
            ),
            (
                json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": []}, {"key": "zone", "values": ["a", "a"]}]}]}),
                "[allowedTopologies[0].matchLabelExpressions[0].values: Required value, \
                 allowedTopologies[0].matchLabelExpressions[1].values[1]: Duplicate value: \"a\", \
                 allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"zone\"]",
            ),
            (
                json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["a", "b"]}]}, {"matchLabelExpressions": [{"key": "zone", "values": ["b", "a"]}]}]}),
                "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
            ),
            (json!({"allowedTopologies": [{}]}), "allowedTopologies[0].matchLabelExpressions: Duplicate value: \"\""),
        ] {
            assert_eq!(created(&Class, &class(extra.clone())), expected, "{extra}");
        }
        assert!(
            created(&Class, &class(json!({"provisioner": "A b"})))
                .starts_with("provisioner: Invalid value: \"a b\": name part")
        );
    }

    #[test]
    fn node_labels_of_before_are_warned_of() {
        let zone = json!({"key": "failure-domain.beta.kubernetes.io/zone", "values": ["a"]});
        let topology = json!({"matchLabelExpressions": [{"key": "a", "values": ["b"]}, zone]});
        assert_eq!(
            Class.warnings(&class(json!({"allowedTopologies": [topology]})), None),
            [
                "allowedTopologies[0].matchLabelExpressions[1].key: deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
            ]
        );
        assert!(Class.warnings(&class(json!({})), None).is_empty());
    }

    #[test]
    fn classes_stay() {
        for (extra, expected) in [
            (json!({"allowVolumeExpansion": true}), "[]"),
            (json!({"provisioner": "q"}), "provisioner: Invalid value: null: field is immutable"),
            (json!({"parameters": {"a": "b"}}), "parameters: Invalid value: null: field is immutable"),
            (json!({"reclaimPolicy": "Retain"}), "reclaimPolicy: Invalid value: null: field is immutable"),
            (
                json!({"volumeBindingMode": "WaitForFirstConsumer"}),
                "volumeBindingMode: Invalid value: null: field is immutable",
            ),
        ] {
            assert_eq!(updated(&Class, &class(json!({})), &class(extra.clone())), expected, "{extra}");
        }
    }

    #[test]
    fn attributes() {
        let class = |driver: &str, parameters: Value| json!({"metadata": {"name": "v"}, "driverName": driver, "parameters": parameters});
        let (gold, iron) = (class("d", json!({"a": "1"})), class("e", json!({"a": "2"})));
        assert_eq!(created(&Attributes, &gold), "[]");
        assert_eq!(
            created(&Attributes, &class("", json!({}))),
            "[driverName: Required value, parameters: Required value: must contain at least one key/value pair]"
        );
        assert_eq!(
            updated(&Attributes, &gold, &iron),
            "[driverName: Forbidden: updates to driverName are forbidden., parameters: Forbidden: updates to parameters are forbidden.]"
        );
    }
}
