//! Token Secrets of ServiceAccounts (`kubernetes.io/service-account-token`) go when their account
//! does. Pods use bound tokens, which the API server checks against the account itself.

use std::sync::Arc;

use component::{Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::context::{self, Context, Key, synced};
use crate::error::During;
use crate::meta;

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    // as in Kubernetes, where this controller has no ServiceAccount of its own
    let controller = context.controller("");
    let secrets = context.informers.selected::<Secret>(&format!("type={TYPE}"));
    let accounts = context.informers.of::<ServiceAccount>();
    context::enqueue_changes(&secrets, &queue);
    let (changed, known) = (queue.clone(), secrets.clone());
    accounts.on_change(move |change| {
        let gone = change.old.filter(|_| change.new.is_none());
        let Some(namespace) = gone.and_then(|account| account.namespace()) else { return };
        for secret in known.list_namespace(&namespace) {
            changed.add(meta::key(&secret.metadata));
        }
    });
    let (cached, writer) = (secrets.clone(), controller.clone());
    let owners = accounts.clone();
    controller.run(&queue, 1, synced!(secrets, accounts), move |key: Key| {
        let (cached, writer, owners) = (cached.clone(), writer.clone(), owners.clone());
        async move {
            let Some(secret) = cached.get(&key.0, &key.1).filter(|secret| is_lost(secret, &owners)) else {
                return Ok(Outcome::Done);
            };
            let api: Api<Secret> = writer.namespaced(&key.0);
            // the cache may not have seen the account yet
            let accounts: Api<ServiceAccount> = writer.namespaced(&key.0);
            let name = meta::annotation(&secret.metadata, NAME).unwrap_or_default();
            let live = accounts.get_opt(name).await.during("reading ServiceAccount", name)?;
            if live.is_none_or(|account| !is_of(&secret, &account)) {
                let preconditions = Preconditions { uid: secret.uid(), resource_version: None };
                let params = DeleteParams::default().preconditions(preconditions);
                api.delete(&key.1, &params).await.unless_gone("deleting the token of a lost account", &key.1)?;
            }
            Ok(Outcome::Done)
        }
    });
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
