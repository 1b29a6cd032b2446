//! Long-lived tokens that nobody uses: those that Kubernetes once made for every ServiceAccount are
//! marked invalid after a year without use, and deleted after another one.
//!
//! The API server notes the day of each use, and since when it does, in labels and a ConfigMap; the
//! mark makes it refuse the token, and removing the mark takes it back. Secrets that a person made
//! are not listed in their account, and stay.

use std::sync::Arc;
use std::time::Duration;

use component::{Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use jiff::civil::Date;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::{Context, Controller, Pods, synced};
use crate::error::{During, Result};
use crate::meta;

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const DAY: i64 = 24 * 3600;
/// How long a token may rest.
const PERIOD: i64 = 365 * DAY;

pub fn start(context: &Context) {
    let queue = WorkQueue::<()>::new();
    let controller = context.controller("legacy-service-account-token-cleaner");
    let secrets = context.informers.selected::<Secret>(&format!("type={TYPE}"));
    let accounts = context.informers.of::<ServiceAccount>();
    controller.every(&queue, Duration::from_secs(DAY.unsigned_abs()), ());
    let ready = synced!(secrets, accounts, context.pods.informer);
    let worker = Worker { controller: controller.clone(), secrets, accounts, pods: context.pods.clone() };
    let worker = Arc::new(worker);
    controller.run(&queue, 1, ready, move |()| {
        let worker = worker.clone();
        async move { worker.look(meta::now()).await }
    });
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Keep,
    Mark,
    Delete,
}

/// As the labels write days, so that they compare as text.
fn day(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%d").to_string()
}

fn is_day(text: &str) -> bool {
    text.len() == 10 && text.parse::<Date>().is_ok()
}

/// Uses were noted for so long that a token without a note rests for longer than it may. The day
/// itself counts as not noted, as nobody knows its hour.
fn known_long_enough(since: Option<&str>, now: Timestamp) -> bool {
    let since = since.filter(|since| is_day(since)).map(str::to_owned);
    since.is_some_and(|since| since <= day(meta::after(now, -PERIOD - DAY)))
}

/// `mounted` looks at every pod of the namespace: it is asked last.
fn verdict(
    secret: &Secret,
    account: Option<&ServiceAccount>,
    mounted: impl FnOnce() -> bool,
    now: Timestamp,
) -> Verdict {
    let oldest = day(meta::after(now, -PERIOD));
    let label = |name: &str| meta::labels(&secret.metadata).get(name).map(String::as_str);
    let rests = meta::created(&secret.metadata) < meta::after(now, -PERIOD)
        && label(LAST_USED).is_none_or(|used| is_day(used) && used < oldest.as_str());
    let uid = meta::annotation(&secret.metadata, UID);
    let listed = account.is_some_and(|account| {
        uid.is_none_or(|uid| uid == meta::uid(&account.metadata))
            && account.secrets.iter().flatten().any(|listed| listed.name == secret.metadata.name)
    });
    if !rests || !listed || meta::is_deleting(&secret.metadata) || mounted() {
        return Verdict::Keep;
    }
    match label(INVALID_SINCE).filter(|since| is_day(since)) {
        None => Verdict::Mark,
        Some(since) if since < oldest.as_str() => Verdict::Delete,
        Some(_) => Verdict::Keep,
    }
}

/// Names of the Secrets that a pod's volumes, environment and image pulls refer to.
fn secrets_of(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let of_container = |container: &Container| -> Vec<String> {
        let sources = container.env_from.iter().flatten().filter_map(|from| from.secret_ref.as_ref());
        let keys = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()?.secret_key_ref.as_ref());
        sources.map(|source| source.name.clone()).chain(keys.map(|key| key.name.clone())).collect()
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut names: Vec<String> = containers.flat_map(of_container).collect();
    for volume in spec.volumes.iter().flatten() {
        names.extend(volume.secret.as_ref().and_then(|secret| secret.secret_name.clone()));
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        names.extend(sources.filter_map(|source| source.secret.as_ref()).map(|secret| secret.name.clone()));
    }
    names.extend(spec.image_pull_secrets.into_iter().flatten().map(|secret| secret.name));
    names
}

struct Worker {
    controller: Controller,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    pods: Pods,
}

impl Worker {
    async fn look(&self, now: Timestamp) -> Result<Outcome> {
        let maps: Api<ConfigMap> = self.controller.namespaced("kube-system");
        let tracking =
            maps.get(TRACKING).await.unless_gone("reading since when the use of tokens is noted in", TRACKING)?;
        let since = tracking.and_then(|map| map.data?.remove("since"));
        if !known_long_enough(since.as_deref(), now) {
            return Ok(Outcome::Done);
        }
        for secret in self.secrets.list() {
            let namespace = secret.namespace().unwrap_or_default();
            let account = meta::annotation(&secret.metadata, NAME).and_then(|name| self.accounts.get(&namespace, name));
            let mounted = || {
                let (pods, name) = (self.pods.by_namespace.get(&namespace), secret.name_any());
                pods.iter().any(|pod| secrets_of(pod).contains(&name))
            };
            match verdict(&secret, account.as_deref(), mounted, now) {
                Verdict::Keep => {}
                Verdict::Mark => self.mark(&namespace, &secret, now).await?,
                Verdict::Delete => self.delete(&namespace, &secret).await?,
            }
        }
        Ok(Outcome::Done)
    }

    async fn mark(&self, namespace: &str, secret: &Secret, now: Timestamp) -> Result<()> {
        let patch = json!({"metadata": {"uid": secret.metadata.uid, "labels": {INVALID_SINCE: day(now)}}});
        let api: Api<Secret> = self.controller.namespaced(namespace);
        let patched = api.patch(&secret.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone("marking the unused token", &meta::display(&secret.metadata)).map(drop)
    }

    async fn delete(&self, namespace: &str, secret: &Secret) -> Result<()> {
        let resource_version = secret.metadata.resource_version.clone();
        let only = DeleteParams {
            preconditions: Some(Preconditions { uid: None, resource_version }),
            ..DeleteParams::default()
        };
        let api: Api<Secret> = self.controller.namespaced(namespace);
        let deleted = api.delete(&secret.name_any(), &only).await;
        deleted.unless_gone("deleting the unused token", &meta::display(&secret.metadata)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn moment(day: &str) -> Timestamp {
        format!("{day}T12:00:00Z").parse().expect("the tests write whole days")
    }

    fn secret(created: &str, used: Option<&str>, invalid: Option<&str>) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.name = Some("default-token-x".into());
        secret.metadata.creation_timestamp = Some(Time(moment(created)));
        let labels = [(LAST_USED, used), (INVALID_SINCE, invalid)];
        let labels = labels.into_iter().filter_map(|(name, day)| Some((name.to_owned(), day?.to_owned())));
        secret.metadata.labels = Some(labels.collect());
        secret
    }

    fn account(lists: &str) -> ServiceAccount {
        let listed = ObjectReference { name: Some(lists.into()), ..Default::default() };
        ServiceAccount { secrets: Some(vec![listed]), ..Default::default() }
    }

    #[test]
    fn a_token_without_use_is_marked_then_deleted() {
        let owner = account("default-token-x");
        let (old, now) = ("2024-01-01", moment("2026-06-01"));
        for (secret, expected) in [
            (secret("2026-01-01", None, None), Verdict::Keep),
            (secret(old, Some("2025-06-01"), None), Verdict::Keep),
            (secret(old, Some("nonsense"), None), Verdict::Keep),
            (secret(old, None, None), Verdict::Mark),
            (secret(old, Some("2025-05-31"), None), Verdict::Mark),
            (secret(old, None, Some("yesterday")), Verdict::Mark),
            (secret(old, None, Some("2025-06-01")), Verdict::Keep),
            (secret(old, None, Some("2025-05-31")), Verdict::Delete),
        ] {
            assert_eq!(verdict(&secret, Some(&owner), || false, now), expected, "{:?}", secret.metadata);
        }
        let made_by_hand = secret(old, None, None);
        assert_eq!(verdict(&made_by_hand, Some(&account("other")), || false, now), Verdict::Keep);
        assert_eq!(verdict(&made_by_hand, None, || false, now), Verdict::Keep);
        assert_eq!(verdict(&made_by_hand, Some(&owner), || true, now), Verdict::Keep, "a pod has it");
    }

    #[test]
    fn nothing_is_unused_before_its_use_was_noted_for_a_year() {
        let now = moment("2026-06-02");
        assert!(known_long_enough(Some("2025-06-01"), now));
        for since in [None, Some(""), Some("2025-06-02"), Some("soon")] {
            assert!(!known_long_enough(since, now), "{since:?}");
        }
    }

    #[test]
    fn secrets_of_a_pod_are_found_wherever_it_names_them() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "a"}}],
                "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "b", "key": "k"}}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "c"}},
                {"name": "w", "projected": {"sources": [{"secret": {"name": "d"}}]}}],
            "imagePullSecrets": [{"name": "e"}]}}))
        .expect("the pod is written out above");
        assert_eq!(secrets_of(&pod), ["a", "b", "c", "d", "e"]);
    }
}
