//! ConfigMaps and Secrets: maps of keys to contents, of one megabyte at most.

use api::field::{Error, ErrorList, Path};
use api::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::key_pair;
use crate::kinds::check::Node;
use crate::kinds::table::{cell, named, row, size, words};
use crate::kinds::value::{
    annotation, at, default_text, ensure_map, entries, has, map, opt_flag, remove, same_at, text,
};
use crate::resource::{Column, Context, Hooks};

const MAX_BYTES: usize = 1 << 20;
const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
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

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        if text(new, "type") != "kubernetes.io/tls" {
            return Vec::new();
        }
        let part = |key: &str| contents(new, key).unwrap_or_default();
        key_pair::problem(&part("tls.crt"), &part("tls.key")).into_iter().collect()
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
        // Of these keys alone, something must be in it.
        "kubernetes.io/ssh-auth" if contents(secret, "ssh-privatekey").is_none_or(|key| key.is_empty()) => {
            errors.push(Error::required(&data.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"], &mut errors),
        _ => {}
    }
    errors
}

/// What is under `key` of a Secret's data.
fn contents(secret: &Value, key: &str) -> Option<Vec<u8>> {
    let encoded = map(secret, "data")?.get(key)?.as_str()?;
    Some(STANDARD.decode(encoded).unwrap_or_default())
}

fn registry_json(secret: &Value, key: &str, errors: &mut ErrorList) {
    let path = Path::root("data").key(key);
    match contents(secret, key) {
        None => errors.push(Error::required(&path, "")),
        Some(content) => {
            if let Some(problem) = not_a_map(&content) {
                errors.push(Error::invalid(&path, "<secret contents redacted>", problem));
            }
        }
    }
}

/// Why Go would not read a JSON map here, in its words where they depend on little.
fn not_a_map(json: &[u8]) -> Option<String> {
    let kind = match serde_json::from_slice::<Value>(json) {
        Ok(Value::Object(_) | Value::Null) => return None,
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Number(_)) => "number",
        Ok(Value::Bool(_)) => "bool",
        Err(error) if error.is_eof() => return Some("unexpected end of JSON input".to_owned()),
        Err(error) => {
            let start = json.iter().find(|byte| !byte.is_ascii_whitespace()).copied().unwrap_or_default();
            let begins = start.is_ascii_digit() || b"{[\"-tfn".contains(&start);
            return Some(if begins {
                error.to_string()
            } else {
                format!("invalid character {:?} looking for beginning of value", char::from(start))
            });
        }
    };
    Some(format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"))
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

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let has = |account: &Value| annotation(account, MOUNTABLE).is_some();
        // Said once, when it is set.
        if !has(new) || old.is_some_and(has) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )]
    }
}

/// Of a secret reference only its name counts.
fn unnamed_secrets_go(account: &mut Value) {
    if has(account, "secrets") {
        for secret in crate::kinds::value::list_mut(account, "secrets") {
            *secret = match at(secret, "name") {
                Value::Null => serde_json::json!({}),
                name => serde_json::json!({ "name": name }),
            };
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
            ("kubernetes.io/ssh-auth", json!({"ssh-privatekey": ""}), "data[ssh-privatekey]: Required value"),
            ("kubernetes.io/ssh-auth", json!({"ssh-privatekey": "eA=="}), "[]"),
            (
                "kubernetes.io/dockercfg",
                json!({".dockercfg": ""}),
                "data[.dockercfg]: Invalid value: \"<secret contents redacted>\": unexpected end of JSON input",
            ),
            (
                "kubernetes.io/dockercfg",
                json!({".dockercfg": "W10="}),
                "data[.dockercfg]: Invalid value: \"<secret contents redacted>\": json: cannot unmarshal array into Go value of type map[string]interface {}",
            ),
            (
                "kubernetes.io/dockercfg",
                json!({".dockercfg": "eA=="}),
                "data[.dockercfg]: Invalid value: \"<secret contents redacted>\": invalid character 'x' looking for beginning of value",
            ),
            (
                "kubernetes.io/service-account-token",
                json!({}),
                "metadata.annotations[kubernetes.io/service-account.name]: Required value",
            ),
        ] {
            assert_eq!(join(&validate_secret(&json!({"type": type_, "data": data}))), expected, "{type_}");
        }
    }

    #[test]
    fn warned_of() {
        let secret = |type_: &str| json!({"type": type_, "data": {"tls.crt": "eA==", "tls.key": ""}});
        assert_eq!(
            Secret.warnings(&secret("kubernetes.io/tls"), None),
            ["tls: failed to find any PEM data in certificate input"]
        );
        assert_eq!(Secret.warnings(&secret("Opaque"), None), Vec::<String>::new());
        let mut account = json!({"secrets": [{"name": "a", "uid": "u"}, {"kind": "Secret"}]});
        unnamed_secrets_go(&mut account);
        assert_eq!(account["secrets"], json!([{"name": "a"}, {}]));
        let (plain, marked) = (json!({}), json!({"metadata": {"annotations": {MOUNTABLE: "true"}}}));
        let said = "metadata.annotations[kubernetes.io/enforce-mountable-secrets]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
        for (new, old, expected) in [
            (&marked, None, &[said][..]),
            (&marked, Some(&plain), &[said]),
            (&marked, Some(&marked), &[]),
            (&plain, None, &[]),
        ] {
            assert_eq!(ServiceAccount.warnings(new, old), expected, "{new} {old:?}");
        }
    }
}
