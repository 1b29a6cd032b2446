//! The ServiceAccount that a pod's pulls speak for: what a provider is told of it, and a token bound to
//! the pod (`plugin.go: serviceAccountProvider`).

use std::collections::BTreeMap;

use component::brief;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{Api, Client};

use super::settings::TokenAttributes;
use crate::images::keyring::Coordinates;
use crate::volumes::tokens::Tokens;

#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    pub coordinates: Coordinates,
    /// Those that the provider wants.
    pub annotations: BTreeMap<String, String>,
    pub token: String,
}

/// Why a provider is not asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AccountError {
    #[error("the pod {0} has no service account")]
    NoAccount(String),
    #[error("required annotation {0} not found")]
    Annotation(String),
    #[error("failed to get service account {0}: {1}")]
    Get(String, String),
    #[error("error getting service account token {0}: {1}")]
    Token(String, String),
}

impl AccountError {
    /// The workload takes no part in it, which is no failure.
    pub fn is_a_choice(&self) -> bool {
        matches!(self, Self::NoAccount(_) | Self::Annotation(_))
    }
}

pub struct Accounts {
    client: Client,
    tokens: Tokens,
}

impl Accounts {
    pub fn new(client: Client) -> Self {
        Self { tokens: Tokens::new(client.clone()), client }
    }

    pub fn forget_pod(&self, uid: &str) {
        self.tokens.release(uid);
    }

    /// None for a pod without an account, where the provider does with that.
    pub async fn of(&self, pod: &Pod, attributes: &TokenAttributes) -> Result<Option<Account>, AccountError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            let pod_name = format!("{namespace}/{}", pod.metadata.name.as_deref().unwrap_or_default());
            return if attributes.requires_account() { Err(AccountError::NoAccount(pod_name)) } else { Ok(None) };
        }
        let full = format!("{namespace}/{name}");
        let found = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace).get(name).await;
        let account = found.map_err(|error| AccountError::Get(full.clone(), brief(&error)))?;
        let annotations = annotations(&account, attributes)?;
        let uid = account.metadata.uid.unwrap_or_default();
        let token = self.tokens.of_account(pod, &uid, &attributes.service_account_token_audience).await;
        let token = token.map_err(|why| AccountError::Token(full, why))?.value;
        let coordinates = Coordinates { uid, namespace: namespace.to_owned(), name: name.to_owned() };
        Ok(Some(Account { coordinates, annotations, token }))
    }
}

fn annotations(account: &ServiceAccount, wanted: &TokenAttributes) -> Result<BTreeMap<String, String>, AccountError> {
    let held = account.metadata.annotations.as_ref();
    let value = |key: &String| held.and_then(|held| held.get(key)).map(|value| (key.clone(), value.clone()));
    let required = wanted.required_service_account_annotation_keys.iter();
    let required = required.map(|key| value(key).ok_or_else(|| AccountError::Annotation(key.clone())));
    let optional = wanted.optional_service_account_annotation_keys.iter().filter_map(value).map(Ok);
    required.chain(optional).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_chosen_by_their_keys() {
        let account: ServiceAccount =
            serde_json::from_value(serde_json::json!({"metadata": {"annotations": {"a": "1", "b": "2", "c": "3"}}}))
                .unwrap();
        let wanted = |required: &[&str], optional: &[&str]| TokenAttributes {
            required_service_account_annotation_keys: required.iter().map(|&key| key.to_owned()).collect(),
            optional_service_account_annotation_keys: optional.iter().map(|&key| key.to_owned()).collect(),
            ..TokenAttributes::default()
        };
        let chosen = annotations(&account, &wanted(&["a"], &["c", "d"])).unwrap();
        assert_eq!(
            chosen.into_iter().collect::<Vec<_>>(),
            [("a", "1"), ("c", "3")].map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
        let missing = annotations(&account, &wanted(&["a", "d"], &[])).unwrap_err();
        assert!(missing.is_a_choice());
        assert_eq!(missing.to_string(), "required annotation d not found");
    }
}
