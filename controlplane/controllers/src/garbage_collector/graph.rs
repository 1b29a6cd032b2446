//! Pure: the graph of owners and dependents, by UID, and which nodes each change makes worth a look.
//!
//! An owner that is referred to but has not been seen is *virtual*: it is checked against the API
//! server, and either appears or is taken to be absent. Example: a pod refers to ReplicaSet `u1`.
//! If the watch of ReplicaSets has shown `u1`, the pod needs no look at all. When `u1` is deleted,
//! [`Graph::remove`] returns the pod. An owner in another namespace is none.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::meta;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

pub type Uid = String;

/// Where an object is: what a request for it needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Location {
    pub api_version: String,
    pub kind: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
}

/// What deletion an object is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deletion {
    #[default]
    None,
    /// Its dependents go before it.
    Foreground,
    /// Its dependents are to be freed before it goes.
    Orphaning,
    /// Being deleted; other finalizers hold it.
    Plain,
}

fn deletion(meta: &ObjectMeta) -> Deletion {
    if !meta::is_deleting(meta) {
        Deletion::None
    } else if meta::has_finalizer(meta, ORPHAN) {
        Deletion::Orphaning
    } else if meta::has_finalizer(meta, FOREGROUND) {
        Deletion::Foreground
    } else {
        Deletion::Plain
    }
}

#[derive(Debug, Clone, Default)]
pub struct Node {
    pub location: Location,
    pub owners: Vec<OwnerReference>,
    pub dependents: HashSet<Uid>,
    pub deletion: Deletion,
    /// Never seen, only referred to.
    pub is_virtual: bool,
}

impl Node {
    /// Whether objects of this namespace (none: cluster-scoped ones) can have it as their owner.
    pub fn can_own_in(&self, namespace: &str) -> bool {
        self.location.namespace.is_empty() || self.location.namespace == namespace
    }
}

/// Nodes worth a look.
#[derive(Debug, Default, PartialEq)]
pub struct Work {
    pub delete: Vec<Uid>,
    pub orphan: Vec<Uid>,
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    /// Owners known not to exist, and in which namespace (none: in no place); forgotten now and then.
    absent: HashSet<(Uid, String)>,
}

const ABSENT_REMEMBERED: usize = 5000;

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Whether dependents of this namespace are known to have no such owner.
    pub fn is_absent(&self, uid: &str, namespace: &str) -> bool {
        ["", namespace].iter().any(|place| self.absent.contains(&(uid.to_owned(), (*place).to_owned())))
    }

    pub fn note_absent(&mut self, uid: &str, namespace: &str) {
        if self.absent.len() >= ABSENT_REMEMBERED {
            self.absent.clear();
        }
        self.absent.insert((uid.to_owned(), namespace.to_owned()));
    }

    /// An object was added or changed.
    pub fn apply(&mut self, location: Location, metadata: &ObjectMeta) -> Work {
        let uid = meta::uid(metadata).to_owned();
        let owners: Vec<OwnerReference> = metadata.owner_references.clone().unwrap_or_default();
        let mut work = Work::default();
        let before = self.nodes.get(&uid).map(|node| (node.owners.clone(), node.deletion)).unwrap_or_default();
        let node = self.nodes.entry(uid.clone()).or_default();
        let appeared = std::mem::take(&mut node.is_virtual);
        node.location = location.clone();
        (node.owners, node.deletion) = (owners.clone(), deletion(metadata));
        let (now, dependents) = (node.deletion, node.dependents.clone());
        if appeared && !location.namespace.is_empty() {
            let strangers = dependents.iter().filter(|dependent| self.namespace_of(dependent) != location.namespace);
            work.delete.extend(strangers.cloned());
        }
        self.unlink(&uid, &before.0, &owners, &mut work);
        self.link(&uid, &location.namespace, &owners, &mut work);
        if now != before.1 {
            match now {
                Deletion::Orphaning => work.orphan.push(uid),
                Deletion::Foreground => {
                    work.delete.extend(dependents);
                    work.delete.push(uid);
                }
                _ => {}
            }
        }
        work
    }

    fn namespace_of(&self, uid: &str) -> &str {
        self.nodes.get(uid).map(|node| node.location.namespace.as_str()).unwrap_or_default()
    }

    /// Takes the node out of owners it no longer refers to; one that waits for it may go on.
    fn unlink(&mut self, uid: &str, before: &[OwnerReference], after: &[OwnerReference], work: &mut Work) {
        for reference in before {
            let kept = after.iter().find(|other| other.uid == reference.uid);
            let unblocked = reference.block_owner_deletion == Some(true)
                && kept.is_none_or(|kept| kept.block_owner_deletion != Some(true));
            let Some(owner) = self.nodes.get_mut(&reference.uid) else { continue };
            if kept.is_none() {
                owner.dependents.remove(uid);
            }
            if unblocked && owner.deletion == Deletion::Foreground {
                work.delete.push(reference.uid.clone());
            }
        }
    }

    fn link(&mut self, uid: &str, namespace: &str, owners: &[OwnerReference], work: &mut Work) {
        for reference in owners {
            let owner = self.nodes.entry(reference.uid.clone()).or_insert_with(|| Node {
                location: Location {
                    api_version: reference.api_version.clone(),
                    kind: reference.kind.clone(),
                    namespace: namespace.to_owned(),
                    name: reference.name.clone(),
                },
                is_virtual: true,
                ..Node::default()
            });
            if !owner.dependents.insert(uid.to_owned()) {
                continue;
            }
            match (owner.is_virtual, owner.deletion) {
                // to be looked for
                (true, _) => work.delete.push(reference.uid.clone()),
                // it lost what it never had
                _ if !owner.can_own_in(namespace) => work.delete.push(uid.to_owned()),
                // it came while its owner waits for dependents to go
                (false, Deletion::Foreground) => work.delete.push(uid.to_owned()),
                _ => {}
            }
        }
    }

    /// The API server has no such object. A virtual owner of a kind with namespaces was looked for in one of
    /// them, and may be where others of its dependents are.
    pub fn lost(&mut self, uid: &str, namespaced: bool) -> Work {
        let Some(node) = self.nodes.get(uid).filter(|node| node.is_virtual) else { return self.remove(uid) };
        if !namespaced {
            self.note_absent(uid, "");
            return self.remove(uid);
        }
        let place = node.location.namespace.clone();
        let (here, elsewhere): (HashSet<Uid>, HashSet<Uid>) =
            node.dependents.iter().cloned().partition(|dependent| self.namespace_of(dependent) == place);
        let next = elsewhere.iter().map(|dependent| self.namespace_of(dependent)).filter(|place| !place.is_empty());
        let Some(next) = next.min().map(str::to_owned) else { return self.remove(uid) };
        if !place.is_empty() {
            self.note_absent(uid, &place);
        }
        if let Some(node) = self.nodes.get_mut(uid) {
            (node.location.namespace, node.dependents) = (next, elsewhere);
        }
        Work { delete: here.into_iter().chain([uid.to_owned()]).collect(), orphan: Vec::new() }
    }

    /// An object is gone, or a virtual owner does not exist.
    pub fn remove(&mut self, uid: &str) -> Work {
        let mut work = Work::default();
        let Some(node) = self.nodes.remove(uid) else { return work };
        // where a virtual one without a namespace was looked for says nothing of the others
        let says_nothing = node.is_virtual && node.location.namespace.is_empty();
        if !node.dependents.is_empty() && !says_nothing {
            self.note_absent(uid, &node.location.namespace);
        }
        work.delete.extend(node.dependents);
        for reference in &node.owners {
            let Some(owner) = self.nodes.get_mut(&reference.uid) else { continue };
            owner.dependents.remove(uid);
            if owner.is_virtual && owner.dependents.is_empty() {
                self.nodes.remove(&reference.uid);
            } else if owner.deletion == Deletion::Foreground {
                work.delete.push(reference.uid.clone());
            }
        }
        work
    }

    /// Whether a dependent is itself waiting for dependents, perhaps for this one.
    pub fn may_be_in_circle(&self, uid: &str) -> bool {
        let waits = |uid: &Uid| self.nodes.get(uid).is_some_and(|node| node.deletion == Deletion::Foreground);
        self.nodes.get(uid).is_some_and(|node| node.dependents.iter().any(waits))
    }

    /// Dependents that a foreground deletion of `uid` waits for.
    pub fn blocking(&self, uid: &str) -> Vec<Uid> {
        let Some(node) = self.nodes.get(uid) else { return Vec::new() };
        let blocks = |dependent: &&Uid| {
            let owners = self.nodes.get(*dependent).map(|node| node.owners.as_slice()).unwrap_or_default();
            owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        node.dependents.iter().filter(blocks).cloned().collect()
    }
}

/// How an owner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Solid,
    Dangling,
    /// It is being deleted in the foreground.
    Waiting,
}

/// What to do with an object, from how its owners stand.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Keep,
    /// Drop the references to these owners; another one keeps it.
    Release(Vec<Uid>),
    /// `foreground`: its own dependents first.
    Delete {
        foreground: bool,
    },
}

pub fn judge(owners: &[(Uid, Standing)], has_dependents: bool) -> Verdict {
    if owners.is_empty() {
        return Verdict::Keep;
    }
    let solid = owners.iter().any(|(_, standing)| *standing == Standing::Solid);
    let lost: Vec<Uid> =
        owners.iter().filter(|(_, standing)| *standing != Standing::Solid).map(|(uid, _)| uid.clone()).collect();
    match (solid, lost.is_empty()) {
        (true, true) => Verdict::Keep,
        (true, false) => Verdict::Release(lost),
        (false, _) => {
            let waiting = owners.iter().any(|(_, standing)| *standing == Standing::Waiting);
            Verdict::Delete { foreground: waiting && has_dependents }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn object(uid: &str, owners: &[(&str, bool)]) -> ObjectMeta {
        let owners = owners.iter().map(|(uid, block)| OwnerReference {
            uid: (*uid).to_owned(),
            block_owner_deletion: Some(*block),
            ..Default::default()
        });
        ObjectMeta { uid: Some(uid.into()), owner_references: Some(owners.collect()), ..Default::default() }
    }

    fn deleting(mut meta: ObjectMeta, finalizer: &str) -> ObjectMeta {
        meta.deletion_timestamp = Some(Time(at(1)));
        meta.finalizers = Some(vec![finalizer.to_owned()]);
        meta
    }

    fn apply(graph: &mut Graph, meta: &ObjectMeta) -> Work {
        graph.apply(Location::default(), meta)
    }

    fn sorted(mut work: Work) -> (Vec<Uid>, Vec<Uid>) {
        work.delete.sort();
        (work.delete, work.orphan)
    }

    #[test]
    fn a_known_owner_needs_no_look_and_its_end_wakes_its_dependents() {
        let mut graph = Graph::default();
        assert_eq!(apply(&mut graph, &object("set", &[])), Work::default());
        assert_eq!(apply(&mut graph, &object("pod", &[("set", true)])), Work::default());
        assert_eq!(sorted(graph.remove("set")).0, ["pod"]);
        assert!(graph.is_absent("set", "anywhere"), "it was in no namespace");
    }

    #[test]
    fn an_unknown_owner_is_looked_for_once() {
        let mut graph = Graph::default();
        assert_eq!(sorted(apply(&mut graph, &object("pod", &[("set", true)]))).0, ["set"]);
        assert!(graph.get("set").is_some_and(|node| node.is_virtual));
        assert_eq!(apply(&mut graph, &object("set", &[])), Work::default(), "it appeared");
        assert_eq!(graph.get("set").map(|node| (node.is_virtual, node.dependents.len())), Some((false, 1)));
    }

    fn apply_in(graph: &mut Graph, namespace: &str, meta: &ObjectMeta) -> Vec<Uid> {
        let location = Location { namespace: namespace.to_owned(), ..Location::default() };
        sorted(graph.apply(location, meta)).0
    }

    #[test]
    fn an_owner_in_another_namespace_is_none() {
        let mut graph = Graph::default();
        apply_in(&mut graph, "here", &object("set", &[]));
        assert!(apply_in(&mut graph, "here", &object("own", &[("set", true)])).is_empty());
        assert_eq!(apply_in(&mut graph, "there", &object("stranger", &[("set", true)])), ["stranger"]);
        apply_in(&mut graph, "", &object("node", &[]));
        assert!(apply_in(&mut graph, "there", &object("mirror", &[("node", true)])).is_empty(), "it is in none");
    }

    #[test]
    fn an_unknown_owner_is_looked_for_wherever_it_is_referred_to() {
        let mut graph = Graph::default();
        apply_in(&mut graph, "there", &object("stranger", &[("set", true)]));
        apply_in(&mut graph, "here", &object("own", &[("set", true)]));
        assert_eq!(sorted(graph.lost("set", true)).0, ["set", "stranger"]);
        assert!(graph.is_absent("set", "there") && !graph.is_absent("set", "here"));
        let known = graph.get("set").map(|node| (node.location.namespace.clone(), node.dependents.len()));
        assert_eq!(known, Some(("here".to_owned(), 1)));
        assert!(apply_in(&mut graph, "here", &object("set", &[])).is_empty(), "it appeared with its own");
        assert_eq!(sorted(graph.remove("set")).0, ["own"]);

        apply_in(&mut graph, "there", &object("other", &[("late", true)]));
        assert_eq!(apply_in(&mut graph, "here", &object("late", &[])), ["other"], "it appeared elsewhere");
        apply_in(&mut graph, "a", &object("x", &[("node", true)]));
        apply_in(&mut graph, "b", &object("y", &[("node", true)]));
        assert_eq!(sorted(graph.lost("node", false)).0, ["x", "y"]);
        assert!(graph.is_absent("node", "a") && graph.is_absent("node", "b"));
    }

    #[test]
    fn foreground_waits_for_blocking_dependents() {
        let mut graph = Graph::default();
        apply(&mut graph, &object("set", &[]));
        apply(&mut graph, &object("blocking", &[("set", true)]));
        apply(&mut graph, &object("other", &[("set", false)]));
        let work = apply(&mut graph, &deleting(object("set", &[]), FOREGROUND));
        assert_eq!(sorted(work).0, ["blocking", "other", "set"]);
        assert_eq!(graph.blocking("set"), ["blocking"]);
        assert_eq!(sorted(graph.remove("blocking")).0, ["set"]);
        assert!(graph.blocking("set").is_empty());
    }

    #[test]
    fn a_circle_is_noticed_where_it_closes() {
        let mut graph = Graph::default();
        for (uid, owner) in [("a", "c"), ("b", "a"), ("c", "b")] {
            apply(&mut graph, &object(uid, &[(owner, true)]));
        }
        apply(&mut graph, &deleting(object("a", &[("c", true)]), FOREGROUND));
        assert!(!graph.may_be_in_circle("b"), "its dependent stays as yet");
        assert!(graph.may_be_in_circle("c"), "what depends on it waits for dependents");
    }

    #[test]
    fn orphaning_and_released_references() {
        let mut graph = Graph::default();
        apply(&mut graph, &object("set", &[]));
        apply(&mut graph, &object("pod", &[("set", true)]));
        assert_eq!(sorted(apply(&mut graph, &deleting(object("set", &[]), ORPHAN))).1, ["set"]);
        apply(&mut graph, &object("pod", &[]));
        assert!(graph.get("set").is_some_and(|node| node.dependents.is_empty()));
    }

    #[test]
    fn verdicts() {
        use Standing::*;
        let owners = |list: &[Standing]| -> Vec<(Uid, Standing)> {
            list.iter().enumerate().map(|(index, standing)| (index.to_string(), *standing)).collect()
        };
        for (list, dependents, expected) in [
            (vec![], true, Verdict::Keep),
            (vec![Solid], true, Verdict::Keep),
            (vec![Solid, Dangling], true, Verdict::Release(vec!["1".into()])),
            (vec![Waiting, Solid], true, Verdict::Release(vec!["0".into()])),
            (vec![Dangling], true, Verdict::Delete { foreground: false }),
            (vec![Waiting], true, Verdict::Delete { foreground: true }),
            (vec![Waiting], false, Verdict::Delete { foreground: false }),
        ] {
            assert_eq!(judge(&owners(&list), dependents), expected, "{list:?}");
        }
    }
}
