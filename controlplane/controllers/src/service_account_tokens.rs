//! Token Secrets of ServiceAccounts (`kubernetes.io/service-account-token`): filled when somebody
//! makes one, deleted when the account goes.
//!
//! The token is bound to its Secret, so that deleting the Secret ends it, and lives as long as a
//! token may. Pods do not use these: theirs are projected and short-lived.

use std::sync::Arc;

use component::{Informer, Outcome, WorkQueue};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::context::{self, Context, Controller, Key, synced};
use crate::error::{During, Result};
use crate::meta;

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// The longest that the API server grants, about 136 years.
const LONGEST_SECONDS: i64 = 1 << 32;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    // as in Kubernetes, where this controller has no ServiceAccount of its own
    let controller = context.controller("");
    let secrets = context.informers.selected::<Secret>(&format!("type={TYPE}"));
    let accounts = context.informers.of::<ServiceAccount>();
    context::enqueue_changes(&secrets, &queue);
    let (changed, known) = (queue.clone(), secrets.clone());
    accounts.on_change(move |change| {
        if change.old.is_some() == change.new.is_some() {
            return;
        }
        for secret in known.list_namespace(&change.object().namespace().unwrap_or_default()) {
            changed.add(meta::key(&secret.metadata));
        }
    });
    let ready = synced!(secrets, accounts);
    let ca = context.config.ca_certificate.clone();
    let worker = Arc::new(Worker { controller: controller.clone(), secrets, accounts, ca });
    controller.run(&queue, 1, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

struct Worker {
    controller: Controller,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    ca: String,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(secret) = self.secrets.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        let Some(name) = meta::annotation(&secret.metadata, NAME) else { return Ok(Outcome::Done) };
        let lost = is_lost(&secret, &self.accounts);
        if !lost && is_filled(&secret) || meta::is_deleting(&secret.metadata) {
            return Ok(Outcome::Done);
        }
        // before anything is deleted or signed: the cache may be behind
        let accounts: Api<ServiceAccount> = self.controller.namespaced(&key.0);
        let live = accounts.get_opt(name).await.during("reading ServiceAccount", name)?;
        match live.filter(|account| is_of(&secret, account)) {
            Some(account) => self.fill(&accounts, &secret, &account).await?,
            None => self.delete(&key, &secret).await?,
        }
        Ok(Outcome::Done)
    }

    async fn fill(&self, accounts: &Api<ServiceAccount>, secret: &Secret, account: &ServiceAccount) -> Result<()> {
        if is_filled(secret) {
            return Ok(());
        }
        let (name, shown) = (account.name_any(), meta::display(&secret.metadata));
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(LONGEST_SECONDS),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Secret".to_owned()),
                    name: secret.metadata.name.clone(),
                    uid: secret.metadata.uid.clone(),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let granted: std::result::Result<TokenRequest, _> =
            accounts.create_subresource("token", &name, &PostParams::default(), &request).await;
        let token = granted.during("requesting the token of", &shown)?.status.and_then(|status| status.token);
        let mut changed = secret.clone();
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(UID.to_owned(), account.uid().unwrap_or_default());
        let namespace = secret.namespace().unwrap_or_default();
        let data = changed.data.get_or_insert_default();
        data.insert("token".to_owned(), ByteString(token.unwrap_or_default().into_bytes()));
        data.insert("ca.crt".to_owned(), ByteString(self.ca.clone().into_bytes()));
        data.insert("namespace".to_owned(), ByteString(namespace.clone().into_bytes()));
        let api: Api<Secret> = self.controller.namespaced(&namespace);
        let written = api.replace(&secret.name_any(), &PostParams::default(), &changed).await;
        written.unless_gone("filling token Secret", &shown).map(drop)
    }

    async fn delete(&self, key: &Key, secret: &Secret) -> Result<()> {
        let preconditions = Preconditions { uid: secret.uid(), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        let api: Api<Secret> = self.controller.namespaced(&key.0);
        api.delete(&key.1, &params).await.unless_gone("deleting the token of a lost account", &key.1).map(drop)
    }
}

fn is_filled(secret: &Secret) -> bool {
    let has =
        |key: &str| secret.data.as_ref().is_some_and(|data| data.get(key).is_some_and(|value| !value.0.is_empty()));
    has("token") && has("ca.crt") && has("namespace")
}

fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    let uid = meta::annotation(&secret.metadata, UID).filter(|uid| !uid.is_empty());
    uid.is_none_or(|uid| account.metadata.uid.as_deref() == Some(uid))
}

fn is_lost(secret: &Secret, accounts: &Informer<ServiceAccount>) -> bool {
    let Some(name) = meta::annotation(&secret.metadata, NAME) else { return false };
    let account: Option<Arc<ServiceAccount>> = accounts.get(&secret.namespace().unwrap_or_default(), name);
    account.is_none_or(|account| !is_of(secret, &account))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_lost_with_its_account() {
        let accounts = Informer::<ServiceAccount>::detached();
        let mut account = ServiceAccount::default();
        account.metadata.name = Some("robot".into());
        account.metadata.namespace = Some("default".into());
        account.metadata.uid = Some("u1".into());
        accounts.apply(account);
        let secret = |name: &str, uid: &str| {
            let mut secret = Secret::default();
            secret.metadata.namespace = Some("default".into());
            secret.metadata.annotations =
                Some([(NAME.to_owned(), name.to_owned()), (UID.to_owned(), uid.to_owned())].into());
            secret
        };
        assert!(!is_lost(&secret("robot", "u1"), &accounts));
        assert!(is_lost(&secret("robot", "u0"), &accounts), "an earlier account of that name");
        assert!(is_lost(&secret("other", "u1"), &accounts));
        assert!(!is_lost(&Secret::default(), &accounts));
    }
}
