//! What a provider's settings must be (`plugin/config.go: validateCredentialProviderConfig`). Pure.

use api::field::{Error, ErrorList, Path};
use serde_json::{Value, json};

use super::protocol::{VERSION, VERSIONS};
use super::settings::{Provider, TokenAttributes};
use crate::images::place::Place;

const CACHE_TYPES: [&str; 2] = ["ServiceAccount", "Token"];

pub fn validate(providers: &[Provider]) -> ErrorList {
    let path = Path::root("providers");
    let mut errors = ErrorList::new();
    if providers.is_empty() {
        errors.push(Error::required(&path, "at least 1 item in plugins is required"));
    }
    for provider in providers {
        errors.extend(name(&provider.name, &path.child("name")));
        errors.extend(version(&provider.api_version, &path.child("apiVersion")));
        errors.extend(images(&provider.match_images, &path.child("matchImages")));
        errors.extend(duration(provider, &path.child("defaultCacheDuration")));
        if let Some(attributes) = &provider.token_attributes {
            errors.extend(token_attributes(attributes, &provider.api_version, &path.child("tokenAttributes")));
        }
    }
    errors
}

fn name(name: &str, path: &Path) -> ErrorList {
    let problems = [
        (name.contains('/'), "provider name cannot contain '/'"),
        (name.contains(' '), "provider name cannot contain spaces"),
        (name == ".", "provider name cannot be '.'"),
        (name == "..", "provider name cannot be '..'"),
    ];
    let found = problems.into_iter().filter(|(wrong, _)| *wrong);
    found.map(|(_, words)| Error::invalid(path, name, words)).collect()
}

fn version(version: &str, path: &Path) -> Option<Error> {
    match version {
        "" => Some(Error::required(path, "")),
        version if VERSIONS.contains(&version) => None,
        other => Some(Error::not_supported(path, other, &VERSIONS)),
    }
}

fn images(patterns: &[String], path: &Path) -> ErrorList {
    if patterns.is_empty() {
        return vec![Error::required(path, "at least 1 item in matchImages is required")];
    }
    let wrong = |pattern: &String| {
        let why = Place::parse(pattern).err()?;
        Some(Error::invalid(path, pattern.as_str(), format!("match image is invalid: {why}")))
    };
    patterns.iter().filter_map(wrong).collect()
}

fn duration(provider: &Provider, path: &Path) -> Option<Error> {
    match provider.default_cache_duration {
        None => Some(Error::required(path, "")),
        Some(duration) if duration.0 < 0 => {
            let shown = api::scalar::go_duration_text(duration.0);
            Some(Error::invalid(path, shown, "must be greater than or equal to 0"))
        }
        Some(_) => None,
    }
}

fn token_attributes(attributes: &TokenAttributes, api_version: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let child = |name: &str| path.child(name);
    if attributes.service_account_token_audience.is_empty() {
        errors.push(Error::required(&child("serviceAccountTokenAudience"), ""));
    }
    if attributes.require_service_account.is_none() {
        errors.push(Error::required(&child("requireServiceAccount"), ""));
    }
    if api_version != VERSION {
        errors.push(Error::forbidden(path, format!("tokenAttributes is only supported for {VERSION} API version")));
    }
    let required = &attributes.required_service_account_annotation_keys;
    if attributes.require_service_account == Some(false) && !required.is_empty() {
        let words = "requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set";
        errors.push(Error::forbidden(&child("requiredServiceAccountAnnotationKeys"), words));
    }
    errors.extend(keys(required, &child("requiredServiceAccountAnnotationKeys")));
    let optional = &attributes.optional_service_account_annotation_keys;
    errors.extend(keys(optional, &child("optionalServiceAccountAnnotationKeys")));
    errors.extend(in_both(required, optional, path));
    errors.extend(cache_type(&attributes.cache_type, &child("cacheType")));
    errors
}

/// Annotations' keys, in whatever case.
fn keys(keys: &[String], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (at, key) in keys.iter().enumerate() {
        let problems = api::names::qualified_name(&key.to_lowercase());
        errors.extend(problems.into_iter().map(|words| Error::invalid(path, key.as_str(), words)));
        if keys[..at].contains(key) {
            errors.push(Error::duplicate(path, key.as_str()));
        }
    }
    errors
}

fn in_both(required: &[String], optional: &[String], path: &Path) -> Option<Error> {
    let mut both: Vec<&String> = required.iter().filter(|key| optional.contains(key)).collect();
    both.sort();
    both.dedup();
    let shown: Value = json!(both);
    (!both.is_empty()).then(|| Error::invalid(path, shown, "annotation keys cannot be both required and optional"))
}

fn cache_type(kind: &str, path: &Path) -> Option<Error> {
    if kind.is_empty() {
        let words = "cacheType is required to be set when tokenAttributes is specified. Supported values are: ";
        return Some(Error::required(path, format!("{words}{}", CACHE_TYPES.join(", "))));
    }
    (!CACHE_TYPES.contains(&kind)).then(|| Error::not_supported(path, kind, &CACHE_TYPES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(provider: Value) -> Vec<String> {
        let mut good =
            json!({"name": "p", "matchImages": ["r.io"], "defaultCacheDuration": "1m", "apiVersion": VERSION});
        let given = provider.as_object().unwrap().clone();
        good.as_object_mut().unwrap().extend(given);
        let provider: Provider = serde_json::from_value(good).unwrap();
        validate(&[provider]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn settings_are_checked_in_kubernetes_words() {
        let unsupported = "providers.apiVersion: Unsupported value: \"v9\": supported values: \"credentialprovider.kubelet.k8s.io/v1\", \"credentialprovider.kubelet.k8s.io/v1alpha1\", \"credentialprovider.kubelet.k8s.io/v1beta1\"";
        for (provider, expected) in [
            (json!({}), &[""; 0][..]),
            (json!({"name": ".."}), &["providers.name: Invalid value: \"..\": provider name cannot be '..'"]),
            (json!({"name": "a/b"}), &["providers.name: Invalid value: \"a/b\": provider name cannot contain '/'"]),
            (json!({"apiVersion": "v9"}), &[unsupported]),
            (json!({"apiVersion": ""}), &["providers.apiVersion: Required value"]),
            (
                json!({"matchImages": []}),
                &["providers.matchImages: Required value: at least 1 item in matchImages is required"],
            ),
            (
                json!({"matchImages": ["r.io:x"]}),
                &[
                    "providers.matchImages: Invalid value: \"r.io:x\": match image is invalid: parse \"https://r.io:x\": invalid port \":x\" after host",
                ],
            ),
            (json!({"defaultCacheDuration": null}), &["providers.defaultCacheDuration: Required value"]),
            (
                json!({"defaultCacheDuration": "-1s"}),
                &["providers.defaultCacheDuration: Invalid value: \"-1s\": must be greater than or equal to 0"],
            ),
        ] {
            assert_eq!(said(provider.clone()), expected, "{provider}");
        }
        assert_eq!(validate(&[])[0].to_string(), "providers: Required value: at least 1 item in plugins is required");
    }

    #[test]
    fn token_attributes_are_checked_too() {
        let at = "providers.tokenAttributes";
        let good = json!({"serviceAccountTokenAudience": "a", "cacheType": "Token", "requireServiceAccount": true});
        for (change, expected) in [
            (json!({}), vec![]),
            (
                json!({"serviceAccountTokenAudience": ""}),
                vec![format!("{at}.serviceAccountTokenAudience: Required value")],
            ),
            (json!({"requireServiceAccount": null}), vec![format!("{at}.requireServiceAccount: Required value")]),
            (
                json!({"cacheType": ""}),
                vec![format!(
                    "{at}.cacheType: Required value: cacheType is required to be set when tokenAttributes is specified. Supported values are: ServiceAccount, Token"
                )],
            ),
            (
                json!({"cacheType": "Pod"}),
                vec![format!(
                    "{at}.cacheType: Unsupported value: \"Pod\": supported values: \"ServiceAccount\", \"Token\""
                )],
            ),
            (
                json!({"requireServiceAccount": false, "requiredServiceAccountAnnotationKeys": ["a"]}),
                vec![format!(
                    "{at}.requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set"
                )],
            ),
            (
                json!({"optionalServiceAccountAnnotationKeys": ["a", "a"]}),
                vec![format!("{at}.optionalServiceAccountAnnotationKeys: Duplicate value: \"a\"")],
            ),
            (
                json!({"optionalServiceAccountAnnotationKeys": ["A"], "requiredServiceAccountAnnotationKeys": ["A"]}),
                vec![format!("{at}: Invalid value: [\"A\"]: annotation keys cannot be both required and optional")],
            ),
        ] {
            let mut attributes = good.clone();
            attributes.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            assert_eq!(said(json!({"tokenAttributes": attributes})), expected, "{change}");
        }
        let old = json!({"tokenAttributes": good, "apiVersion": "credentialprovider.kubelet.k8s.io/v1beta1"});
        assert_eq!(
            said(old),
            [format!("{at}: Forbidden: tokenAttributes is only supported for {VERSION} API version")]
        );
    }
}
