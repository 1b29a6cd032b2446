//! NetworkPolicy enforcement: one nf_tables table, `skiff_policy`, in the forward hook.
//!
//! - [`view`]: what matters of Pods, Namespaces and policies.
//! - [`rules`]: (policies, pods, namespaces, this node) → the table's content, pure.
//!
//! Only pods of this node are looked at, each in its own two chains. Pods of the whole cluster are
//! watched only once there is a policy. Packets between a pod and its own node do not pass the
//! forward hook: probes always arrive, and the cluster DNS, which the node answers itself, can
//! always be asked.

mod rules;
mod view;

use std::sync::Arc;
use std::time::Duration;

use component::{Informer, Informers, Supervisor};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use netlink::nft::{Family, Nft, Ruleset, Table};
use tokio::sync::Notify;

use view::PodView;

/// What others may have changed is looked at again this often.
const AUDIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

pub fn table() -> Table {
    Table::new(Family::Ipv4, "skiff_policy")
}

pub fn start(node_name: &str, informers: &Informers, supervisor: &Supervisor) {
    let policies = informers.of::<NetworkPolicy>();
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    policies.on_change(move |_| wake.notify_one());
    let node_name = node_name.to_owned();
    supervisor.spawn("policies", enforce(node_name, informers.clone(), policies, changed));
}

/// The caches that a selector needs.
struct Selected {
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
}

impl Selected {
    async fn watch(informers: &Informers, changed: &Arc<Notify>) -> Self {
        let selected = Self { pods: informers.of(), namespaces: informers.of() };
        let wake = changed.clone();
        selected.pods.on_change(move |change| {
            let view = |pod: Option<&Arc<Pod>>| pod.and_then(|pod| PodView::new(pod));
            if view(change.old) != view(change.new) {
                wake.notify_one();
            }
        });
        let wake = changed.clone();
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

async fn enforce(node_name: String, informers: Informers, policies: Informer<NetworkPolicy>, changed: Arc<Notify>) {
    policies.synced().await;
    let mut selected: Option<Selected> = None;
    let mut written: Option<Ruleset> = None;
    // An earlier process may have left a table.
    let mut is_there = true;
    loop {
        let found = policies.list();
        let pause = if found.is_empty() {
            written = None;
            // A table must not outlive the policies that it was made for, also where the last writes failed.
            is_there = is_there && !remove_table().await;
            if is_there { RETRY } else { Duration::MAX }
        } else {
            is_there = true;
            let selected = match &mut selected {
                Some(selected) => selected,
                none => none.insert(Selected::watch(&informers, &changed).await),
            };
            let namespaces = selected.namespaces.list();
            let wanted = rules::render(&found, &selected.pods.list(), &namespaces, &node_name);
            match write(wanted, written.take()).await {
                Ok(now) => {
                    written = Some(now);
                    AUDIT
                }
                Err(error) => {
                    tracing::error!(%error, "network policies could not be written; retrying");
                    RETRY
                }
            }
        };
        let woken = tokio::time::timeout(pause, changed.notified()).await.is_ok();
        if !woken && pause == AUDIT {
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

/// Sends what differs from `written`, or everything when that is not known.
async fn write(wanted: Ruleset, written: Option<Ruleset>) -> Result<Ruleset, netlink::Error> {
    let work = move || {
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
