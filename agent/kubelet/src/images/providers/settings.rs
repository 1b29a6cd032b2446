//! What a node is told of its providers: `CredentialProviderConfig` of `kubelet.config.k8s.io`.
//!
//! [`super::reading`] makes it from files.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// The providers of a node; none unless it was told of some.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    pub providers: Vec<Provider>,
    /// Where their executables lie.
    pub directory: PathBuf,
    /// Of the files that were read, `sha256:…`; for a metric.
    pub hash: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Provider {
    /// The executable's name.
    pub name: String,
    pub match_images: Vec<String>,
    /// For answers that do not say how long they are good for.
    pub default_cache_duration: Option<GoDuration>,
    /// Of what it is asked and answers.
    pub api_version: String,
    pub args: Vec<String>,
    pub env: Vec<Variable>,
    pub token_attributes: Option<TokenAttributes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    pub name: String,
    #[serde(default)]
    pub value: String,
}

/// It is given a token of the pod's ServiceAccount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TokenAttributes {
    pub service_account_token_audience: String,
    /// `Token` or `ServiceAccount`: what an answer is kept for.
    pub cache_type: String,
    /// Pods without an account are not asked for.
    pub require_service_account: Option<bool>,
    pub required_service_account_annotation_keys: Vec<String>,
    pub optional_service_account_annotation_keys: Vec<String>,
}

impl TokenAttributes {
    pub fn requires_account(&self) -> bool {
        self.require_service_account.unwrap_or_default()
    }

    /// An answer is kept for the very token that it was given for.
    pub fn is_by_token(&self) -> bool {
        self.cache_type == "Token"
    }
}

/// Nanoseconds, in text as Go writes durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct GoDuration(pub i64);

impl TryFrom<String> for GoDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        api::scalar::go_duration(&text).map(Self)
    }
}

impl GoDuration {
    /// None if it is negative.
    pub fn duration(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}
