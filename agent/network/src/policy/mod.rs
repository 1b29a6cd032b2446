//! NetworkPolicy enforcement: one nf_tables table, `skiff_policy`, in the forward hook.
//!
//! - [`view`]: what matters of Pods, Namespaces and policies.
//! - [`claims`]: where pods are that the API does not show yet.
//! - [`rules`]: (policies, pods, namespaces, this node) → the table's content, pure.
//!
//! Only pods of this node are looked at, each in its own two chains. Pods of the whole cluster are
//! watched only once there is a policy. Packets between a pod and its own node do not pass the
//! forward hook: probes always arrive, and the cluster DNS, which the node answers itself, can
//! always be asked.
//!
//! A pod is isolated before its first container starts: whoever starts it waits for [`Policies::hold`]. All that
//! wait at a time are served by one write.

mod claims;
mod rules;
mod view;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::{Audits, Informer, Informers, Supervisor};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use netlink::nft::{Family, Nft, Ruleset, Table};
use tokio::sync::{Notify, watch};

use claims::Claims;
use view::PodView;

/// What others may have changed is looked at again this often.
const AUDIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

pub fn table() -> Table {
    Table::new(Family::Ipv4, "skiff_policy")
}

/// The policies of a node that keeps them. Cloning shares them.
#[derive(Clone)]
pub struct Policies {
    policies: Informer<NetworkPolicy>,
    claims: Arc<watch::Sender<Claims>>,
    changed: Arc<Notify>,
}

impl Policies {
    fn new(policies: Informer<NetworkPolicy>) -> Self {
        Self { policies, claims: Arc::default(), changed: Arc::default() }
    }

    /// Returns once the table holds what policies say about a pod of this node at `address`; at once when none
    /// selects it. The address counts until the API shows it, also when the caller does not wait for the end.
    pub async fn hold(&self, pod: &Arc<Pod>, address: Ipv4Addr) {
        self.policies.synced().await;
        let policies = self.policies.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        let selected = PodView::at(pod, address).is_some_and(|pod| rules::any_applies(&policies, &pod));
        if !selected {
            // Rules for the pod that had the address before are not this one's.
            if self.claims.send_if_modified(|claims| claims.leave(address)) {
                self.changed.notify_one();
            }
            return;
        }
        let mut number = 0;
        self.claims.send_modify(|claims| number = claims.make(pod, address));
        self.changed.notify_one();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.claims.subscribe().wait_for(|claims| claims.is_held(number)).await;
    }
}

pub fn start(node_name: &str, informers: &Informers, supervisor: &Supervisor) -> Policies {
    let kept = Policies::new(informers.of());
    let wake = kept.changed.clone();
    kept.policies.on_change(move |_| wake.notify_one());
    supervisor.spawn("policies", enforce(node_name.to_owned(), informers.clone(), kept.clone()));
    kept
}

/// The caches that a selector needs.
struct Selected {
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
}

impl Selected {
    async fn watch(informers: &Informers, kept: &Policies) -> Self {
        let selected = Self { pods: informers.of(), namespaces: informers.of() };
        let (wake, claims) = (kept.changed.clone(), kept.claims.clone());
        selected.pods.on_change(move |change| {
            let view = |pod: Option<&Arc<Pod>>| pod.and_then(|pod| PodView::new(pod));
            let gone = change.old.filter(|old| change.new.is_none_or(|new| new.metadata.uid != old.metadata.uid));
            let forgotten = gone.is_some_and(|pod| claims.send_if_modified(|claims| claims.forget(pod)));
            if forgotten || view(change.old) != view(change.new) {
                wake.notify_one();
            }
        });
        let wake = kept.changed.clone();
        selected.namespaces.on_change(move |change| {
            let labels =
                |namespace: Option<&Arc<Namespace>>| namespace.map(|namespace| namespace.metadata.labels.clone());
            if labels(change.old) != labels(change.new) {
                wake.notify_one();
            }
        });
        selected.pods.synced().await;
        selected.namespaces.synced().await;
        selected
    }
}

async fn enforce(node_name: String, informers: Informers, kept: Policies) {
    kept.policies.synced().await;
    let mut selected: Option<Selected> = None;
    let mut written: Option<Ruleset> = None;
    // An earlier process may have left a table.
    let mut is_there = true;
    let mut audits = Audits::new(AUDIT, Instant::now());
    let mut said: Option<String> = None;
    loop {
        // Claims that come after this look are for the next round.
        let claims = kept.claims.borrow().clone();
        let found = kept.policies.list();
        let pause = if found.is_empty() {
            written = None;
            kept.claims.send_if_modified(|now| now.drop_until(claims.made()));
            // A table must not outlive the policies that it was made for, also where the last writes failed.
            is_there = is_there && !remove_table().await;
            if is_there { RETRY } else { Duration::MAX }
        } else {
            is_there = true;
            let selected = match &mut selected {
                Some(selected) => selected,
                none => none.insert(Selected::watch(&informers, &kept).await),
            };
            let namespaces = selected.namespaces.list();
            let (pods, settled) = claims.views(&selected.pods.list());
            let node = node_name.clone();
            let render = move || rules::render(&found, pods, &namespaces, &node);
            match write(render, written.take()).await {
                Ok(now) => {
                    said = None;
                    written = Some(now);
                    kept.claims.send_if_modified(|now| now.hold(claims.made(), &settled));
                    audits.pause(Instant::now())
                }
                Err(error) => {
                    let message = error.to_string();
                    if said.as_ref() != Some(&message) {
                        tracing::error!(%error, "network policies could not be written; retrying");
                    }
                    said = Some(message);
                    if error.is_unsupported() {
                        // No later write will do better: nobody waits for it.
                        kept.claims.send_if_modified(|now| now.hold(claims.made(), &settled));
                    }
                    RETRY
                }
            }
        };
        // Either way there is another round.
        let _ = tokio::time::timeout(pause, kept.changed.notified()).await;
        if audits.is_due(Instant::now()) {
            // The next write looks at what is there.
            written = None;
        }
    }
}

/// Whether there is no table any more.
async fn remove_table() -> bool {
    match tokio::task::spawn_blocking(|| Nft::open()?.delete_table(&table())).await {
        Ok(Ok(())) => true,
        // A kernel without nf_tables has no table.
        Ok(Err(error)) if error.is_unsupported() => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the rules of network policies that are gone could not be removed; retrying");
            false
        }
        Err(_) => false,
    }
}

/// Sends what differs from `written`, or everything when that is not known. Large clusters take `render` long:
/// it is not for a thread on which others wait.
async fn write(
    render: impl FnOnce() -> Ruleset + Send + 'static,
    written: Option<Ruleset>,
) -> Result<Ruleset, netlink::Error> {
    let work = move || {
        let wanted = render();
        let mut nft = Nft::open()?;
        if let Some(written) = written
            && nft.commit(wanted.changes(&written)).is_ok()
        {
            return Ok(wanted);
        }
        wanted.apply_over_unknown(&mut nft)?;
        Ok(wanted)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(panic) => {
            Err(netlink::Error::Thread { operation: "write network policies".to_owned(), what: panic.to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 9);
    const SOON: Duration = Duration::from_secs(10);

    fn pod() -> Arc<Pod> {
        let pod = json!({
            "metadata": { "name": "a", "namespace": "default", "uid": "1", "labels": { "app": "web" } },
            "spec": { "nodeName": "n1", "containers": [{ "name": "c" }] },
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn policy(namespace: &str, app: &str) -> NetworkPolicy {
        let spec = json!({ "podSelector": { "matchLabels": { "app": app } }, "policyTypes": ["Egress"] });
        let metadata = json!({ "name": format!("{namespace}-{app}"), "namespace": namespace });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    #[tokio::test]
    async fn a_pod_that_no_policy_selects_waits_for_nothing() {
        let kept = Policies::new(Informer::detached());
        kept.policies.apply(policy("other", "web"));
        kept.policies.apply(policy("default", "client"));
        kept.policies.mark_synced();
        tokio::time::timeout(SOON, kept.hold(&pod(), ADDRESS)).await.unwrap();
        assert_eq!(kept.claims.borrow().made(), 0);
    }

    #[tokio::test]
    async fn a_selected_pod_waits_for_the_first_list_and_the_table() {
        let kept = Policies::new(Informer::detached());
        let waiting = tokio::spawn({
            let kept = kept.clone();
            async move { kept.hold(&pod(), ADDRESS).await }
        });
        kept.policies.apply(policy("default", "web"));
        kept.policies.mark_synced();
        tokio::time::timeout(SOON, kept.changed.notified()).await.expect("the table's writer is woken");
        let look = kept.claims.borrow().clone();
        assert_eq!(look.made(), 1);
        assert_eq!(look.views(&[]).0[0].address, ADDRESS);
        assert!(!waiting.is_finished());
        kept.claims.send_if_modified(|claims| claims.hold(look.made(), &[]));
        tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    }
}
