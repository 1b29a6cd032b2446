//! What is left of pods that nobody knows: of a crash, or of pods whose objects went while this node was
//! away. It is removed however often that takes, unless the pod comes back.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Manager, State};
use crate::retry::Failures;
use crate::volumes::mounts;

/// How soon giving something back is tried again, doubling...
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// ... up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(120);

impl State {
    fn knows(&self, uid: &str) -> bool {
        self.pods.contains_key(uid) || self.inherited.contains_key(uid)
    }
}

impl Manager {
    /// Once every source has been read.
    pub(super) fn remove_strays(self: &Arc<Self>) {
        self.remove_cgroups();
        self.remove_directories();
        self.release_resources();
    }

    fn remove_cgroups(self: &Arc<Self>) {
        for (class, uid) in self.node.cgroups.pods() {
            let node = self.node.clone();
            let group = self.node.cgroups.pod(class, &uid);
            self.remove(uid, "cgroup", "the cgroup of a pod that is gone", move || {
                let (node, group) = (node.clone(), group.clone());
                async move { node.cgroups.remove(&group).await.map_err(|error| error.to_string()) }
            });
        }
    }

    fn remove_directories(self: &Arc<Self>) {
        let uids = self.node.config.layout.pod_uids().unwrap_or_else(|error| {
            let directory = self.node.config.layout.pods();
            tracing::error!(%error, directory = %directory.display(), "the directories of pods that are gone cannot be looked for");
            Vec::new()
        });
        for uid in uids {
            let (node, pod) = (self.node.clone(), uid.clone());
            self.remove(uid, "directory", "the directory of a pod that is gone", move || {
                let (node, uid) = (node.clone(), pod.clone());
                async move {
                    let directory = node.config.layout.pod(&uid);
                    crate::pod::sub_path::release_all(&directory.join("volume-subpaths"));
                    node.volumes.tear_down(&uid).await.map_err(|error| error.to_string())?;
                    mounts::remove_tree(&directory).map_err(|error| error.to_string())?;
                    node.user_namespaces.release(&uid);
                    Ok(())
                }
            });
        }
    }

    /// Devices and claimed resources.
    fn release_resources(self: &Arc<Self>) {
        let known: HashSet<String> = {
            let state = self.state.lock();
            state.pods.keys().chain(state.inherited.keys()).cloned().collect()
        };
        self.node.devices.retain(|uid| known.contains(uid));
        for uid in self.node.dra.strangers(&known) {
            let (node, pod) = (self.node.clone(), uid.clone());
            self.remove(uid, "claims", "resources that were prepared for a pod that is gone", move || {
                let (node, uid) = (node.clone(), pod.clone());
                async move { node.dra.unprepare(&uid).await }
            });
        }
    }

    /// Gives something of a pod back that is not known, in a task of its own.
    fn remove<F: Future<Output = Result<(), String>> + Send>(
        self: &Arc<Self>,
        uid: String,
        kind: &str,
        what: &'static str,
        give_back: impl FnMut() -> F + Send + 'static,
    ) {
        if self.state.lock().knows(&uid) {
            return;
        }
        let manager = self.clone();
        self.supervisor.spawn(format!("{kind}/{uid}"), async move {
            until_done(what, give_back, || manager.stays_away(&uid)).await;
        });
    }

    /// A permit to remove something of the pod; none if the pod is there by now.
    async fn stays_away(&self, uid: &str) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let removing = self.removing.hold(uid).await;
        (!self.state.lock().knows(uid)).then_some(removing)
    }
}

/// Gives something back, however often it takes: the driver that has to may not be there yet. Ends early
/// when there is no permit any more.
async fn until_done<F: Future<Output = Result<(), String>>, P: Future<Output = Option<T>>, T>(
    what: &str,
    mut give_back: impl FnMut() -> F,
    permit: impl Fn() -> P,
) {
    let mut failures = Failures::new(FIRST_RETRY, LONGEST_RETRY);
    while let Some(permit) = permit().await {
        let Err(error) = give_back().await else { return };
        drop(permit);
        let (new, delay) = failures.take([error]);
        for error in new {
            tracing::warn!(error, "{what} cannot be given back; trying again");
        }
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_of_a_pod_that_came_back_is_removed() {
        let tries = AtomicU32::new(0);
        let give_back = || async {
            tries.fetch_add(1, Ordering::Relaxed);
            Err("its driver is not there".to_owned())
        };
        until_done("a volume", give_back, || async { (tries.load(Ordering::Relaxed) < 3).then_some(()) }).await;
        assert_eq!(tries.load(Ordering::Relaxed), 3, "then the pod was there again");

        let done = || async {
            tries.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        until_done("a volume", done, || async { Some(()) }).await;
        assert_eq!(tries.load(Ordering::Relaxed), 4);
    }
}
