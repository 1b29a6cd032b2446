//! Users of their own for pods with `hostUsers: false` (`pkg/kubelet/userns`): each such pod has 65536 IDs of
//! the node that no other pod has; root inside is nobody outside. The container runtime makes the namespace,
//! and maps everything that it mounts.
//!
//! - `ranges`: who has which IDs, pure; `subids`: which IDs the node has for pods;
//! - `record`: a pod's IDs in its directory, for as long as that is there.
//!
//! A pod keeps its IDs while anything of it is left: all its sandboxes and containers have the same.

mod ranges;
mod record;
mod subids;

use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use proto::runtime::v1::{IdMapping, NamespaceMode, RuntimeHandler, UserNamespace};

use crate::layout::Layout;
use ranges::{PER_POD, RangeError, Ranges};
pub use record::RecordError;
pub use subids::SubidError;

#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    #[error(transparent)]
    Subids(#[from] SubidError),
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the directories of pods cannot be listed: {0}")]
    Pods(std::io::Error),
    #[error("pod {uid}: {source}; drain the node and remove {file} before its IDs change", file = file.display())]
    Recorded { uid: String, file: std::path::PathBuf, source: RangeError },
}

/// The pods that have users of their own.
pub struct UserNamespaces {
    layout: Layout,
    ranges: Mutex<Ranges>,
    starts: Totals,
}

/// Starts of sandboxes for such pods.
#[derive(Default)]
struct Totals {
    all: AtomicU64,
    failed: AtomicU64,
}

impl UserNamespaces {
    /// With what pods had before this process. A record that cannot be read is an error: nobody may be given
    /// what that pod may still have.
    pub fn start(layout: &Layout, max_pods: u32) -> Result<Self, UserNamespaceError> {
        let (first, count) = subids::of_node()?;
        let mut ranges = Ranges::new(first, count, max_pods)?;
        for uid in layout.pod_uids().map_err(UserNamespaceError::Pods)? {
            let directory = layout.pod(&uid);
            if let Some((first, length)) = record::read(&directory)? {
                let recorded = ranges.record(&uid, first, length);
                recorded.map_err(|source| UserNamespaceError::Recorded {
                    uid,
                    file: record::file(&directory),
                    source,
                })?;
            }
        }
        Ok(Self { layout: layout.clone(), ranges: Mutex::new(ranges), starts: Totals::default() })
    }

    /// Sees to it that the pod has IDs. Its directory must be there.
    pub fn give(&self, uid: &str) -> Result<(), UserNamespaceError> {
        let (first, new) = {
            let mut ranges = self.ranges.lock();
            match ranges.of(uid) {
                Some(first) => (first, false),
                None => (ranges.take(uid, rand::random())?, true),
            }
        };
        // Not under the lock: writing waits for the disk. No two tasks give to one pod.
        if new && let Err(error) = record::write(&self.layout.pod(uid), first, PER_POD) {
            self.ranges.lock().release(uid);
            return Err(error.into());
        }
        Ok(())
    }

    /// The pod's namespace as the runtime is told of it; none if it has no IDs.
    pub fn of(&self, uid: &str) -> Option<UserNamespace> {
        let first = self.ranges.lock().of(uid)?;
        let mapping = || vec![IdMapping { host_id: first, container_id: 0, length: PER_POD }];
        Some(UserNamespace { mode: NamespaceMode::Pod as i32, uids: mapping(), gids: mapping() })
    }

    /// Counts a start of a pod, if it has users of its own.
    pub fn started(&self, pod: &Pod, succeeded: bool) {
        if wanted(pod) {
            self.starts.all.fetch_add(1, Ordering::Relaxed);
            self.starts.failed.fetch_add(u64::from(!succeeded), Ordering::Relaxed);
        }
    }

    /// As Prometheus reads it.
    pub fn metrics(&self) -> String {
        let family = |what: &str, help: &str, count: &AtomicU64| {
            let name = format!("kubelet_started_user_namespaced_pods_{what}");
            let count = count.load(Ordering::Relaxed);
            format!("# HELP {name} [ALPHA] {help}\n# TYPE {name} counter\n{name} {count}\n")
        };
        let errors = "Cumulative number of errors when starting pods with user namespaces";
        family("errors_total", errors, &self.starts.failed)
            + &family("total", "Cumulative number of pods with user namespaces started", &self.starts.all)
    }

    /// Nothing of the pod is left that has its IDs.
    pub fn release(&self, uid: &str) {
        if self.ranges.lock().of(uid).is_some() {
            // First the record: a crash in between only keeps the IDs until the next start.
            record::remove(&self.layout.pod(uid));
            self.ranges.lock().release(uid);
        }
    }
}

/// Whether the pod is to have users of its own.
pub fn wanted(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false)
}

/// Whether the runtime can do it, by the RuntimeClass's handler; empty is the default one.
pub fn supported(handlers: &[RuntimeHandler], name: &str) -> Result<(), String> {
    let handler = handlers.iter().find(|handler| handler.name == name);
    match handler {
        Some(handler) if handler.features.as_ref().is_some_and(|features| features.user_namespaces) => Ok(()),
        Some(_) => Err(refusal(name)),
        None => Err(format!("{}: the handler {name:?} is not known", refusal(name))),
    }
}

/// In Kubernetes' words.
pub fn refusal(handler: &str) -> String {
    match handler {
        "" => "can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned(),
        name => {
            format!("can't set `spec.hostUsers: false`, RuntimeClass handler {name:?} does not support user namespaces")
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::runtime::v1::RuntimeHandlerFeatures;

    use super::*;

    fn started(root: &std::path::Path) -> UserNamespaces {
        // Not of the machine that the test runs on.
        let layout = Layout::new(root, "/logs");
        let mut ranges = Ranges::new(PER_POD, u64::from(PER_POD) * 4, 4).unwrap();
        for uid in layout.pod_uids().unwrap() {
            if let Some((first, length)) = record::read(&layout.pod(&uid)).unwrap() {
                ranges.record(&uid, first, length).unwrap();
            }
        }
        UserNamespaces { layout, ranges: Mutex::new(ranges), starts: Totals::default() }
    }

    #[test]
    fn a_pod_has_the_same_users_after_a_restart_of_the_agent() {
        let root = tempfile::tempdir().unwrap();
        for uid in ["a", "b"] {
            std::fs::create_dir_all(root.path().join("pods").join(uid)).unwrap();
        }
        let namespaces = started(root.path());
        namespaces.give("a").unwrap();
        let given = namespaces.of("a").unwrap();
        namespaces.give("a").unwrap();
        assert_eq!(namespaces.of("a"), Some(given.clone()), "given once");
        assert_eq!((given.uids.len(), given.uids[0].container_id, given.uids[0].length), (1, 0, 65536));
        assert!(given.uids == given.gids && given.uids[0].host_id >= 65536);

        let again = started(root.path());
        again.give("b").unwrap();
        assert_eq!(again.of("a"), Some(given.clone()));
        assert_ne!(again.of("b").unwrap().uids, given.uids);
        again.release("a");
        assert_eq!((again.of("a"), started(root.path()).of("a")), (None, None));
    }

    #[test]
    fn starts_are_counted() {
        let root = tempfile::tempdir().unwrap();
        let namespaces = started(root.path());
        let pod = |host_users: Option<bool>| Pod {
            spec: Some(k8s_openapi::api::core::v1::PodSpec { host_users, ..Default::default() }),
            ..Default::default()
        };
        for (host_users, succeeded) in [(Some(false), true), (Some(false), false), (Some(true), false), (None, true)] {
            namespaces.started(&pod(host_users), succeeded);
        }
        let metrics = namespaces.metrics();
        let counts: Vec<&str> = metrics.lines().filter(|line| !line.starts_with('#')).collect();
        let name = "kubelet_started_user_namespaced_pods";
        assert_eq!(counts, [format!("{name}_errors_total 1"), format!("{name}_total 2")]);
    }

    #[test]
    fn without_its_directory_a_pod_has_no_users() {
        let root = tempfile::tempdir().unwrap();
        let namespaces = started(root.path());
        assert!(namespaces.give("gone").is_err());
        assert_eq!(namespaces.of("gone"), None);
    }

    #[test]
    fn the_handler_has_to_support_it() {
        let handler = |name: &str, can| RuntimeHandler {
            name: name.to_owned(),
            features: Some(RuntimeHandlerFeatures { user_namespaces: can, ..Default::default() }),
        };
        let handlers = [handler("", true), handler("old", false)];
        let none = "can't set `spec.hostUsers: false`, runtime does not support user namespaces: the handler \"\" is not known";
        let old = "can't set `spec.hostUsers: false`, RuntimeClass handler \"old\" does not support user namespaces";
        assert_eq!(supported(&handlers, ""), Ok(()));
        assert_eq!(supported(&[], ""), Err(none.to_owned()), "containerd 1.6 names no handlers");
        assert_eq!(supported(&handlers, "old"), Err(old.to_owned()));
        assert_eq!(supported(&handlers, "x").unwrap_err().split(": ").last(), Some("the handler \"x\" is not known"));
    }
}
