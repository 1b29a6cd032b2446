//! What a provider is asked and answers: `CredentialProviderRequest` on its standard input,
//! `CredentialProviderResponse` on its standard output (`credentialprovider.kubelet.k8s.io`). Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::account::Account;
use super::settings::GoDuration;
use crate::images::docker_config::{Login, Logins};

/// The version that knows ServiceAccounts.
pub const VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
pub const VERSIONS: [&str; 3] =
    [VERSION, "credentialprovider.kubelet.k8s.io/v1alpha1", "credentialprovider.kubelet.k8s.io/v1beta1"];

const REQUEST: &str = "CredentialProviderRequest";
const RESPONSE: &str = "CredentialProviderResponse";

/// The question about an image, named in full and without its tag.
pub fn request(version: &str, image: &str, account: Option<&Account>) -> Value {
    let mut request = json!({"kind": REQUEST, "apiVersion": version, "image": image});
    if let Some(account) = account.filter(|_| version == VERSION) {
        request["serviceAccountToken"] = json!(account.token);
        if !account.annotations.is_empty() {
            request["serviceAccountAnnotations"] = json!(account.annotations);
        }
    }
    request
}

/// Which images an answer is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKeyType {
    /// The one that was asked about.
    Image,
    /// All of its registry.
    Registry,
    /// All that the provider is asked about.
    Global,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub logins: Logins,
    pub cache_key_type: CacheKeyType,
    /// None if the provider's settings decide.
    pub cache_duration: Option<GoDuration>,
}

/// Why an answer is of no use. What is in it is not told: it may be credentials.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ResponseError {
    #[error("error reading GVK from response: it is no JSON object")]
    NoObject,
    #[error(
        "apiVersion from credential plugin response did not match expected apiVersion:{expected}, actual apiVersion:{actual}"
    )]
    Version { expected: String, actual: String },
    #[error("error decoding credential provider plugin response from stdout")]
    Form,
    #[error("credential provider plugin did not return a valid cacheKeyType: {0:?}")]
    CacheKeyType(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Form {
    kind: String,
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<GoDuration>,
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Auth {
    username: String,
    password: String,
}

pub fn response(version: &str, output: &[u8]) -> Result<Response, ResponseError> {
    let document: Value = serde_json::from_slice(output).map_err(|_| ResponseError::NoObject)?;
    let actual = document.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if !document.is_object() {
        return Err(ResponseError::NoObject);
    }
    if actual != version {
        return Err(ResponseError::Version { expected: version.to_owned(), actual: actual.to_owned() });
    }
    let form: Form = serde_json::from_value(document).map_err(|_| ResponseError::Form)?;
    if form.kind != RESPONSE {
        return Err(ResponseError::Form);
    }
    let cache_key_type = match form.cache_key_type.as_str() {
        "Image" => CacheKeyType::Image,
        "Registry" => CacheKeyType::Registry,
        "Global" => CacheKeyType::Global,
        other => return Err(ResponseError::CacheKeyType(other.to_owned())),
    };
    let login = |Auth { username, password }| Login { username, password, ..Login::default() };
    let logins = form.auth.unwrap_or_default().into_iter().map(|(place, auth)| (place, login(auth))).collect();
    Ok(Response { logins, cache_key_type, cache_duration: form.cache_duration })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::keyring::Coordinates;

    const BETA: &str = "credentialprovider.kubelet.k8s.io/v1beta1";

    #[test]
    fn requests_tell_of_accounts_where_the_version_can() {
        let account = Account {
            coordinates: Coordinates::default(),
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            token: "t".to_owned(),
        };
        let plain = |version: &str| json!({"kind": REQUEST, "apiVersion": version, "image": "r.io/a"});
        let mut full = plain(VERSION);
        full["serviceAccountToken"] = json!("t");
        full["serviceAccountAnnotations"] = json!({"a": "b"});
        for (version, account, expected) in
            [(VERSION, None, plain(VERSION)), (VERSION, Some(&account), full), (BETA, Some(&account), plain(BETA))]
        {
            assert_eq!(request(version, "r.io/a", account), expected);
        }
    }

    #[test]
    fn responses_are_read_strictly() {
        let with = |rest: &str| format!(r#"{{"kind": "{RESPONSE}", "apiVersion": "{VERSION}"{rest}}}"#);
        let good = with(
            r#", "cacheKeyType": "Registry", "cacheDuration": "10m", "auth": {"*.r.io": {"username": "u", "password": "p"}}"#,
        );
        let read = response(VERSION, good.as_bytes()).unwrap();
        assert_eq!(
            (read.cache_key_type, read.cache_duration),
            (CacheKeyType::Registry, Some(GoDuration(600_000_000_000)))
        );
        assert_eq!(read.logins["*.r.io"].password, "p");
        let none = response(VERSION, with(r#", "cacheKeyType": "Global", "auth": null"#).as_bytes()).unwrap();
        assert!(none.logins.is_empty() && none.cache_duration.is_none());
        for (text, expected) in [
            ("nothing".to_owned(), ResponseError::NoObject),
            ("[]".to_owned(), ResponseError::NoObject),
            (with(r#", "cacheKeyType": "Image", "more": 1"#), ResponseError::Form),
            (good.replace(RESPONSE, REQUEST), ResponseError::Form),
            (with(""), ResponseError::CacheKeyType(String::new())),
            (with(r#", "cacheKeyType": "Pod""#), ResponseError::CacheKeyType("Pod".to_owned())),
        ] {
            assert_eq!(response(VERSION, text.as_bytes()).unwrap_err(), expected, "{text}");
        }
        let other = response(BETA, good.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            other,
            format!(
                "apiVersion from credential plugin response did not match expected apiVersion:{BETA}, actual apiVersion:{VERSION}"
            )
        );
    }
}
