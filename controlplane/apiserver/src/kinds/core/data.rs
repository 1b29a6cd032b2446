//! ConfigMaps and Secrets: maps of keys to contents, of one megabyte at most.

use api::field::{Error, ErrorList, Path};
use api::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::check::Node;
use crate::kinds::table::{cell, named, row, size, words};
use crate::kinds::value::{
    annotation, at, default_text, ensure_map, entries, has, map, opt_flag, remove, same_at, text,
};
use crate::resource::{Column, Context, Hooks};

const MAX_BYTES: usize = 1 << 20;
const FROZEN: &str = "field is immutable when `immutable` is set";

pub struct ConfigMap;

impl Hooks for ConfigMap {
    fn validate_create(&self, _ctx: &Context<'_>, object: &Value) -> ErrorList {
        validate_config_map(object)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = frozen(new, old, &["data", "binaryData"]);
        errors.extend(validate_config_map(new));
        errors
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        row(object, now, vec![(size(object, "data") + size(object, "binaryData")).into()])
    }
}

pub fn config_map_columns() -> Vec<Column> {
    named(vec![words(
        "Data",
        "Data contains the configuration data. Each key must consist of alphanumeric characters, '-', '_' or '.'. Values with non-UTF-8 byte sequences must use the BinaryData field. The keys stored in Data must not overlap with the keys in the BinaryData field, this is enforced during validation process.",
    )])
}

fn validate_config_map(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(object);
    let mut total = 0;
    for (key, item) in root.entries("data") {
        key_format(key, &item, &mut errors);
        if map(object, "binaryData").is_some_and(|binary| binary.contains_key(key)) {
            errors.push(Error::invalid(&item.path, key, "duplicate of key present in binaryData"));
        }
        total += item.text().len();
    }
    for (key, item) in root.entries("binaryData") {
        key_format(key, &item, &mut errors);
        total += decoded_length(item.text());
    }
    if total > MAX_BYTES {
        errors.push(Error::too_long(&Path::unnamed(), MAX_BYTES));
    }
    errors
}

fn key_format(key: &str, item: &Node<'_>, errors: &mut ErrorList) {
    for problem in names::config_map_key(key) {
        errors.push(Error::invalid(&item.path, key, problem));
    }
}

fn decoded_length(base64: &str) -> usize {
    base64.trim_end_matches('=').len() * 3 / 4
}

/// Once `immutable` is true it stays so, and the contents with it.
fn frozen(new: &Value, old: &Value, fields: &[&str]) -> ErrorList {
    let mut errors = ErrorList::new();
    if opt_flag(old, "immutable") != Some(true) {
        return errors;
    }
    if opt_flag(new, "immutable") != Some(true) {
        errors.push(Error::forbidden(&Path::root("immutable"), FROZEN));
    }
    for field in fields {
        if !same_at(new, old, field) {
            errors.push(Error::forbidden(&Path::root(field), FROZEN));
        }
    }
    errors
}

pub struct Secret;

impl Hooks for Secret {
    fn defaults(&self, secret: &mut Value) {
        default_text(secret, "type", "Opaque");
        // `stringData` is for writing only: it overrides `data`.
        if let Some(Value::Object(plain)) = remove(secret, "stringData") {
            let data = ensure_map(secret, "data");
            for (key, content) in plain {
                data.insert(key, STANDARD.encode(content.as_str().unwrap_or("")).into());
            }
        }
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if text(new, "type").is_empty() {
            crate::kinds::value::copy(old, new, "type");
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, secret: &Value) -> ErrorList {
        validate_secret(secret)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("type").immutable(&mut errors, &Node::root(old).child("type"));
        errors.extend(frozen(new, old, &["data"]));
        errors.extend(validate_secret(new));
        errors
    }

    fn row(&self, secret: &Value, now: Timestamp) -> Vec<Value> {
        row(secret, now, vec![cell(secret, "type"), size(secret, "data").into()])
    }
}

pub fn secret_columns() -> Vec<Column> {
    named(vec![
        words(
            "Type",
            "Used to facilitate programmatic handling of secret data. More info: https://kubernetes.io/docs/concepts/configuration/secret/#secret-types",
        ),
        words(
            "Data",
            "Data contains the secret data. Each key must consist of alphanumeric characters, '-', '_' or '.'. The serialized form of the secret data is a base64 encoded string, representing the arbitrary (possibly non-string) data value here. Described in https://tools.ietf.org/html/rfc4648#section-4",
        ),
    ])
}

fn validate_secret(secret: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut total = 0;
    for (key, item) in Node::root(secret).entries("data") {
        key_format(key, &item, &mut errors);
        total += decoded_length(item.text());
    }
    if total > MAX_BYTES {
        errors.push(Error::too_long(&Path::root("data"), MAX_BYTES));
    }
    let data = Path::root("data");
    let require = |keys: &[&str], errors: &mut ErrorList| {
        for key in keys {
            if !map(secret, "data").is_some_and(|data| data.contains_key(*key)) {
                errors.push(Error::required(&data.key(key), ""));
            }
        }
    };
    match text(secret, "type") {
        "kubernetes.io/service-account-token"
            if annotation(secret, "kubernetes.io/service-account.name").unwrap_or("").is_empty() =>
        {
            let path = Path::root("metadata").child("annotations").key("kubernetes.io/service-account.name");
            errors.push(Error::required(&path, ""));
        }
        "kubernetes.io/dockercfg" => registry_json(secret, ".dockercfg", &mut errors),
        "kubernetes.io/dockerconfigjson" => registry_json(secret, ".dockerconfigjson", &mut errors),
        "kubernetes.io/basic-auth" => {
            let either = entries(secret, "data").any(|(key, _)| key == "username" || key == "password");
            if !either {
                errors.push(Error::required(&data.key("username"), ""));
                errors.push(Error::required(&data.key("password"), ""));
            }
        }
        "kubernetes.io/ssh-auth" => require(&["ssh-privatekey"], &mut errors),
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"], &mut errors),
        _ => {}
    }
    errors
}

fn registry_json(secret: &Value, key: &str, errors: &mut ErrorList) {
    let path = Path::root("data").key(key);
    let Some(content) = map(secret, "data").and_then(|data| data.get(key)).and_then(Value::as_str) else {
        errors.push(Error::required(&path, ""));
        return;
    };
    let parsed = STANDARD.decode(content).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    if !parsed.is_some_and(|json| json.is_object()) {
        errors.push(Error::invalid(
            &path,
            "<secret contents redacted>",
            "invalid character in registry credentials: must be a JSON object",
        ));
    }
}

/// ServiceAccounts.
pub struct ServiceAccount;

impl Hooks for ServiceAccount {
    fn prepare_create(&self, _ctx: &Context<'_>, account: &mut Value) {
        unnamed_secrets_go(account);
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, _old: &Value) {
        unnamed_secrets_go(new);
    }
}

/// Of a secret reference only its name counts.
fn unnamed_secrets_go(account: &mut Value) {
    if has(account, "secrets") {
        for secret in crate::kinds::value::list_mut(account, "secrets") {
            let name = at(secret, "name").clone();
            *secret = serde_json::json!({ "name": name });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn config_maps() {
        for (object, expected) in [
            (json!({"data": {"a.b": "x"}}), "[]"),
            (
                json!({"data": {"a/b": "x"}}),
                "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters",
            ),
            (
                json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}}),
                "data[a]: Invalid value: \"a\": duplicate of key present in binaryData",
            ),
            (json!({"data": {"a": "x".repeat(MAX_BYTES + 1)}}), "Too long: may not be more than 1048576 bytes"),
        ] {
            let found = join(&validate_config_map(&object));
            assert!(found.contains(expected), "{found}");
        }
        let old = json!({"immutable": true, "data": {"a": "1"}});
        assert_eq!(
            join(&frozen(&json!({"data": {"a": "2"}}), &old, &["data"])),
            "[immutable: Forbidden: field is immutable when `immutable` is set, data: Forbidden: field is immutable when `immutable` is set]"
        );
    }

    #[test]
    fn secrets() {
        let mut secret = json!({"stringData": {"a": "x", "b": "y"}, "data": {"a": "b2xk"}});
        Secret.defaults(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "eA==", "b": "eQ=="}}));
        for (type_, data, expected) in [
            ("kubernetes.io/tls", json!({}), "[data[tls.crt]: Required value, data[tls.key]: Required value]"),
            ("kubernetes.io/basic-auth", json!({"username": ""}), "[]"),
            ("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "e30="}), "[]"),
            ("kubernetes.io/dockercfg", json!({}), "data[.dockercfg]: Required value"),
            (
                "kubernetes.io/service-account-token",
                json!({}),
                "metadata.annotations[kubernetes.io/service-account.name]: Required value",
            ),
        ] {
            assert_eq!(join(&validate_secret(&json!({"type": type_, "data": data}))), expected, "{type_}");
        }
    }
}
