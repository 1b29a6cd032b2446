//! Programs on the node that give logins for registries (`pkg/credentialprovider/plugin`).
//!
//! Layer: a part of [`super`], which asks them after the pod's own Secrets. [`settings`] says which
//! programs there are and for which images, read by [`reading`] and checked by `validate`; a program is
//! asked ([`protocol`], `exec`) with a token of the pod's ServiceAccount if it wants one ([`account`]), and its answer kept
//! for as long as it says ([`cache`]). One that fails gives nothing: the pull goes on without it.

pub mod account;
mod cache;
mod exec;
pub mod protocol;
pub mod reading;
pub mod settings;
mod validate;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use parking_lot::Mutex;

pub use reading::SettingsError;
pub use settings::Settings;

use super::docker_config::{Logins, hex};
use super::keyring::{Keyring, Source};
use super::place::covers;
use super::totals::Totals;
use crate::locks::Locks;
use account::{Account, AccountError, Accounts};
use cache::{Beneficiary, Cache};
use exec::ExecError;
use protocol::Response;
use settings::{Provider, TokenAttributes};

/// Why a provider gave nothing.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error("failed getting credential from external registry credential provider: {0}")]
    Exec(#[from] ExecError),
    #[error(
        "credential provider plugin returned the service account token as the password for image {0:?}, which is not allowed when service account cache type is not set to 'Token'"
    )]
    Echo(String),
}

/// The node's providers, in their order.
pub struct Providers {
    plugins: Vec<Plugin>,
    accounts: Accounts,
    totals: Arc<Totals>,
}

impl Providers {
    pub fn new(settings: &Settings, client: Client, totals: Arc<Totals>) -> Self {
        let plugin = |provider: &Provider| Plugin {
            executable: settings.directory.join(&provider.name),
            provider: provider.clone(),
            cache: Mutex::default(),
            asking: Locks::default(),
        };
        Self { plugins: settings.providers.iter().map(plugin).collect(), accounts: Accounts::new(client), totals }
    }

    pub fn forget_pod(&self, uid: &str) {
        self.accounts.forget_pod(uid);
    }

    /// What they give for an image, named in full and without its tag, to a pod.
    pub async fn keyring(&self, image: &str, pod: &Pod) -> Keyring {
        let mut keyring = Keyring::default();
        for plugin in self.plugins.iter().filter(|plugin| plugin.is_for(image)) {
            let name = &plugin.provider.name;
            match self.ask(plugin, image, pod).await {
                Ok((source, logins)) => keyring.add(&source, logins),
                Err(AskError::Account(error)) if error.is_a_choice() => {
                    tracing::debug!(%error, provider = name, image, "a credential provider is not for this pod");
                }
                Err(error) => tracing::error!(%error, provider = name, image, "a credential provider gave nothing"),
            }
        }
        keyring
    }

    async fn ask(&self, plugin: &Plugin, image: &str, pod: &Pod) -> Result<(Source, Logins), AskError> {
        let account = match &plugin.provider.token_attributes {
            Some(attributes) => self.accounts.of(pod, attributes).await?,
            None => None,
        };
        let source =
            account.as_ref().map_or(Source::Node, |account| Source::ServiceAccount(account.coordinates.clone()));
        Ok((source, plugin.logins(image, account.as_ref(), &self.totals).await?))
    }
}

struct Plugin {
    provider: Provider,
    executable: PathBuf,
    cache: Mutex<Cache>,
    /// By question: pods that ask the same at once wait for one answer.
    asking: Locks,
}

impl Plugin {
    fn is_for(&self, image: &str) -> bool {
        self.provider.match_images.iter().any(|pattern| covers(pattern, image))
    }

    async fn logins(&self, image: &str, account: Option<&Account>, totals: &Totals) -> Result<Logins, AskError> {
        let by_token = self.provider.token_attributes.as_ref().is_some_and(TokenAttributes::is_by_token);
        let whom = account.map(|account| Beneficiary::of(account, by_token));
        let kept = || self.cache.lock().get(image, whom.as_ref(), Instant::now());
        if let Some(logins) = kept() {
            return Ok(logins);
        }
        let _turn = self.asking.hold(&question(image, account)).await;
        if let Some(logins) = kept() {
            return Ok(logins);
        }
        let request = protocol::request(&self.provider.api_version, image, account);
        let response = exec::run(&self.executable, &self.provider, image, &request, totals).await?;
        if let Some(account) = account
            && !by_token
            && response.logins.values().any(|login| login.password == account.token)
        {
            return Err(AskError::Echo(image.to_owned()));
        }
        self.keep(image, whom.clone(), &response);
        Ok(response.logins)
    }

    fn keep(&self, image: &str, whom: Option<Beneficiary>, response: &Response) {
        let duration = response.cache_duration.or(self.provider.default_cache_duration);
        let duration = duration.and_then(settings::GoDuration::duration).unwrap_or_default();
        let now = Instant::now();
        if let Some(until) = now.checked_add(duration).filter(|_| duration > Duration::ZERO) {
            let logins = response.logins.clone();
            self.cache.lock().put(response.cache_key_type, image, whom, logins, (now, until));
        }
    }
}

/// What makes one question another one than the next.
fn question(image: &str, account: Option<&Account>) -> String {
    use sha2::{Digest, Sha256};
    match account {
        None => image.to_owned(),
        Some(account) => format!("{image} {} {:?}", hex(&Sha256::digest(&account.token)), account.annotations),
    }
}

#[cfg(test)]
mod tests;
