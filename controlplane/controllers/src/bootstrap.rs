//! Joining: the public `kube-public/cluster-info`, signed for each bootstrap token, and tokens that
//! end.
//!
//! `cluster-info` holds a kubeconfig with the server's address and CA. Whoever has a token checks
//! it by the `jws-kubeconfig-<id>` entry: a detached JWS (HS256) keyed with the whole token.
//! Identities as in Kubernetes: bootstrap-signer and token-cleaner.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use component::{Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::context::{self, Context, Controller, synced};
use crate::error::{During, Result, is_already_exists, is_not_found};

const PUBLIC: &str = "kube-public";
const INFO: &str = "cluster-info";
const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
const SIGNATURE: &str = "jws-kubeconfig-";

pub fn start(context: &Context) {
    let secrets = context.informers.selected::<Secret>(&format!("type={TOKEN_TYPE}"));
    start_signer(context, &secrets);
    start_cleaner(context, &secrets);
}

fn start_signer(context: &Context, secrets: &Informer<Secret>) {
    let queue = WorkQueue::<()>::new();
    let controller = context.controller("bootstrap-signer");
    // Kubernetes leaves the ConfigMap's creation to the installer; of the controllers, this one
    // may create ConfigMaps
    let creator = context.controller("root-ca-cert-publisher");
    let infos = context.informers.selected::<ConfigMap>(&format!("metadata.name={INFO}"));
    let changed = queue.clone();
    secrets.on_change(move |_| changed.add(()));
    let changed = queue.clone();
    infos.on_change(move |_| changed.add(()));
    queue.add(());
    let kubeconfig = kubeconfig(&context.config.server, &context.config.ca_certificate);
    let signer =
        Arc::new(Signer { controller: controller.clone(), creator, secrets: secrets.clone(), infos, kubeconfig });
    controller.run(&queue, 1, synced!(secrets, signer.infos), move |()| {
        let signer = signer.clone();
        async move { signer.reconcile().await }
    });
}

struct Signer {
    controller: Controller,
    creator: Controller,
    secrets: Informer<Secret>,
    infos: Informer<ConfigMap>,
    kubeconfig: String,
}

impl Signer {
    async fn reconcile(&self) -> Result<Outcome> {
        let existing = self.infos.get(PUBLIC, INFO);
        let tokens = tokens(&self.secrets, Timestamp::now());
        let Some(wanted) = info(existing.as_deref(), &self.kubeconfig, &tokens) else { return Ok(Outcome::Done) };
        let written = match existing {
            Some(_) => {
                self.controller.namespaced::<ConfigMap>(PUBLIC).replace(INFO, &PostParams::default(), &wanted).await
            }
            None => self.creator.namespaced::<ConfigMap>(PUBLIC).create(&PostParams::default(), &wanted).await,
        };
        match written {
            Err(error) if existing.is_none() && (is_already_exists(&error) || is_not_found(&error)) => {
                Ok(Outcome::Retry)
            }
            other => other.during("publishing", "kube-public/cluster-info").map(|_| Outcome::Done),
        }
    }
}

fn kubeconfig(server: &str, ca: &str) -> String {
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: {server}\n  name: \"\"\n\
         contexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n",
        STANDARD.encode(ca)
    )
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    String::from_utf8(bytes.clone()).ok()
}

/// The token's end; none when it has none. A time that cannot be read has passed.
fn ends(secret: &Secret) -> Option<Timestamp> {
    let expiration = text(secret, "expiration").filter(|text| !text.is_empty())?;
    Some(expiration.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Token id → secret, of those that may sign.
fn tokens(secrets: &Informer<Secret>, now: Timestamp) -> BTreeMap<String, String> {
    let usable = |secret: &Arc<Secret>| {
        secret.namespace().as_deref() == Some("kube-system")
            && text(secret, "usage-bootstrap-signing").as_deref() == Some("true")
            && ends(secret).is_none_or(|ends| ends > now)
    };
    let listed = secrets.list().into_iter().filter(usable);
    listed.filter_map(|secret| Some((text(&secret, "token-id")?, text(&secret, "token-secret")?))).collect()
}

/// The ConfigMap as it should be, unless it is. A kubeconfig that somebody else put there stays.
fn info(existing: Option<&ConfigMap>, kubeconfig: &str, tokens: &BTreeMap<String, String>) -> Option<ConfigMap> {
    let mut wanted = existing.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta { name: Some(INFO.to_owned()), namespace: Some(PUBLIC.to_owned()), ..Default::default() },
        ..Default::default()
    });
    let data = wanted.data.get_or_insert_default();
    let content = data.entry("kubeconfig".to_owned()).or_insert_with(|| kubeconfig.to_owned()).clone();
    data.retain(|key, _| !key.starts_with(SIGNATURE));
    for (id, secret) in tokens {
        data.insert(format!("{SIGNATURE}{id}"), detached_jws(&content, id, secret));
    }
    (existing != Some(&wanted)).then_some(wanted)
}

/// RFC 7515 appendix F: header and signature, the payload left out.
fn detached_jws(payload: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let key = hmac::Key::new(hmac::HMAC_SHA256, format!("{id}.{secret}").as_bytes());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// Deletes tokens when they end.
fn start_cleaner(context: &Context, secrets: &Informer<Secret>) {
    let queue = WorkQueue::<context::Key>::new();
    let controller = context.controller("token-cleaner");
    context::enqueue_changes(secrets, &queue);
    let (secrets, writer) = (secrets.clone(), controller.clone());
    controller.run(&queue, 1, synced!(secrets), move |key: context::Key| {
        let (secrets, writer) = (secrets.clone(), writer.clone());
        async move {
            let Some(secret) = secrets.get(&key.0, &key.1).filter(|_| key.0 == "kube-system") else {
                return Ok(Outcome::Done);
            };
            let now = Timestamp::now();
            match ends(&secret) {
                None => Ok(Outcome::Done),
                Some(moment) if moment > now => Ok(context::at(moment, now)),
                Some(_) => {
                    let api: Api<Secret> = writer.namespaced(&key.0);
                    let preconditions = Preconditions { uid: secret.uid(), resource_version: None };
                    let params = DeleteParams::default().preconditions(preconditions);
                    api.delete(&key.1, &params).await.unless_gone("deleting expired token", &key.1)?;
                    Ok(Outcome::Done)
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn signatures_come_and_go_with_their_tokens() {
        let token = BTreeMap::from([("abcdef".to_owned(), "0123456789abcdef".to_owned())]);
        let made = info(None, "config", &token).expect("it is missing");
        let signature = made.data.as_ref().and_then(|data| data.get("jws-kubeconfig-abcdef")).expect("signed");
        assert!(signature.starts_with("eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9.."), "{signature}");
        assert_eq!(info(Some(&made), "config", &token), None);
        let without = info(Some(&made), "config", &BTreeMap::new()).expect("the token is gone");
        assert_eq!(without.data.map(|data| data.into_keys().collect::<Vec<_>>()), Some(vec!["kubeconfig".to_owned()]));
    }

    #[test]
    fn expired_and_unreadable_tokens_have_ended() {
        let secret = |expiration: &str| {
            let data = BTreeMap::from([("expiration".to_owned(), ByteString(expiration.as_bytes().to_vec()))]);
            Secret { data: Some(data), ..Default::default() }
        };
        assert_eq!(ends(&Secret::default()), None);
        assert_eq!(ends(&secret("nonsense")), Some(Timestamp::UNIX_EPOCH));
        assert_eq!(ends(&secret("2030-01-01T00:00:00Z")), "2030-01-01T00:00:00Z".parse().ok());
    }
}
