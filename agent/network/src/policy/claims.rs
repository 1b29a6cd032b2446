//! Addresses that pods of this node have before the API shows them. Pure.
//!
//! The kubelet claims an address for a pod before the pod's first container starts, and waits until the table
//! holds what policies say about it. A claim goes when the API says the same, when the pod is over or gone,
//! and when another pod is given the address.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::view::PodView;

/// On a pod of the API: the UID of the static pod that it mirrors.
const MIRROR: &str = "kubernetes.io/config.mirror";

#[derive(Debug, Clone)]
struct Claim {
    number: u64,
    /// As the kubelet knows it: this node's informer may be behind.
    pod: Arc<Pod>,
    address: Ipv4Addr,
}

impl Claim {
    fn is_of(&self, pod: &Pod) -> bool {
        let uid = &self.pod.metadata.uid;
        let mirrored = || pod.metadata.annotations.as_ref().and_then(|all| all.get(MIRROR));
        pod.metadata.uid == *uid || uid.as_ref().is_some_and(|uid| mirrored() == Some(uid))
    }
}

/// Numbered from 1 in the order in which they came.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    made: u64,
    /// The table holds those up to this number.
    held: u64,
    open: Vec<Claim>,
}

impl Claims {
    /// Takes the place of the pod's earlier claim, and of others' to this address. Returns its number.
    pub fn make(&mut self, pod: &Arc<Pod>, address: Ipv4Addr) -> u64 {
        self.forget(pod);
        self.leave(address);
        self.made += 1;
        self.open.push(Claim { number: self.made, pod: pod.clone(), address });
        self.made
    }

    /// A pod without a claim has the address now. Whether that changes anything.
    pub fn leave(&mut self, address: Ipv4Addr) -> bool {
        self.retain(|claim| claim.address != address)
    }

    /// The pod is gone. Whether that changes anything.
    pub fn forget(&mut self, pod: &Pod) -> bool {
        self.retain(|claim| claim.pod.metadata.uid != pod.metadata.uid)
    }

    /// The number of the last one.
    pub fn made(&self) -> u64 {
        self.made
    }

    pub fn is_held(&self, number: u64) -> bool {
        self.held >= number
    }

    /// The table holds the claims up to `number`, and the API shows those of `settled`. Whether that changes
    /// anything.
    pub fn hold(&mut self, number: u64, settled: &[u64]) -> bool {
        let news = number > self.held;
        self.held = self.held.max(number);
        self.retain(|claim| !settled.contains(&claim.number)) || news
    }

    /// There is no policy: nothing has to be held of the claims up to `number`. Whether that changes anything.
    pub fn drop_until(&mut self, number: u64) -> bool {
        let dropped = self.retain(|claim| claim.number > number);
        self.hold(number, &[]) || dropped
    }

    fn retain(&mut self, keep: impl Fn(&Claim) -> bool) -> bool {
        let before = self.open.len();
        self.open.retain(keep);
        before != self.open.len()
    }

    /// The pods where they are, and the numbers of the claims that are no longer needed for that.
    pub fn views(&self, pods: &[Arc<Pod>]) -> (Vec<PodView>, Vec<u64>) {
        let claimed: HashSet<Ipv4Addr> = self.open.iter().map(|claim| claim.address).collect();
        let mut open: HashMap<(&str, &str), &Claim> = self.open.iter().map(|claim| (key(&claim.pod), claim)).collect();
        let (mut views, mut settled) = (Vec::with_capacity(pods.len()), Vec::new());
        for pod in pods {
            let shown = PodView::new(pod);
            match open.get(&key(pod)).copied().filter(|claim| claim.is_of(pod)) {
                Some(claim) => {
                    open.remove(&key(pod));
                    let view = PodView::at(pod, claim.address);
                    if view.is_none() || view == shown {
                        settled.push(claim.number);
                    }
                    views.extend(view);
                }
                // Whoever the API still shows there has lost it.
                None => views.extend(shown.filter(|view| !claimed.contains(&view.address))),
            }
        }
        views.extend(open.values().filter_map(|claim| PodView::at(&claim.pod, claim.address)));
        (views, settled)
    }
}

/// Namespace and name.
fn key(pod: &Pod) -> (&str, &str) {
    (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, uid: &str, status: Value) -> Arc<Pod> {
        let pod = json!({
            "metadata": { "name": name, "namespace": "default", "uid": uid, "labels": { "uid": uid } },
            "spec": { "nodeName": "n1", "containers": [{ "name": "c" }] },
            "status": status,
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 0, last)
    }

    /// What `views` says: address and UID, by address; and what is settled.
    fn shown(claims: &Claims, pods: &[Arc<Pod>]) -> (Vec<(u8, String)>, Vec<u64>) {
        let (views, settled) = claims.views(pods);
        let mut found: Vec<(u8, String)> =
            views.iter().map(|view| (view.address.octets()[3], view.labels["uid"].clone())).collect();
        found.sort();
        (found, settled)
    }

    #[test]
    fn a_pod_is_where_the_kubelet_says_until_the_api_says_it_too() {
        let mut claims = Claims::default();
        claims.make(&pod("a", "1", json!({})), address(5));
        let at = |last: u8, uid: &str| vec![(last, uid.to_owned())];
        let ip = |last: u8| json!({ "podIP": address(last).to_string(), "phase": "Running" });
        let mut mirror = pod("a", "2", json!({}));
        let annotations = [(MIRROR.to_owned(), "1".to_owned())].into();
        Arc::make_mut(&mut mirror).metadata.annotations = Some(annotations);
        let cases = [
            ("the informer is behind", vec![], at(5, "1"), vec![]),
            ("no address yet", vec![pod("a", "1", json!({}))], at(5, "1"), vec![]),
            ("a sandbox made anew", vec![pod("a", "1", ip(4))], at(5, "1"), vec![]),
            ("the API says it too", vec![pod("a", "1", ip(5))], at(5, "1"), vec![1]),
            ("the pod is over", vec![pod("a", "1", json!({ "phase": "Failed" }))], vec![], vec![1]),
            ("one of its name before it", vec![pod("a", "0", ip(4))], [at(4, "0"), at(5, "1")].concat(), vec![]),
            ("another had the address", vec![pod("b", "3", ip(5))], at(5, "1"), vec![]),
            ("a static pod and its mirror", vec![mirror], at(5, "2"), vec![]),
        ];
        for (name, pods, expected, settled) in cases {
            assert_eq!(shown(&claims, &pods), (expected, settled), "{name}");
        }
    }

    #[test]
    fn an_address_is_the_last_ones_that_was_given_it() {
        let mut claims = Claims::default();
        let (a, b) = (pod("a", "1", json!({})), pod("b", "2", json!({})));
        claims.make(&a, address(5));
        claims.make(&b, address(5));
        assert_eq!(shown(&claims, &[]).0, [(5u8, "2".to_owned())]);
        claims.make(&b, address(6));
        assert_eq!(shown(&claims, &[]).0, [(6u8, "2".to_owned())], "a sandbox made anew");
        assert!(!claims.leave(address(5)) && claims.leave(address(6)));
        claims.make(&a, address(7));
        assert!(!claims.forget(&b) && claims.forget(&a));
        assert!(shown(&claims, &[]).0.is_empty());
    }

    #[test]
    fn what_came_after_the_look_is_not_held_by_it() {
        let mut claims = Claims::default();
        let first = claims.make(&pod("a", "1", json!({})), address(5));
        let look = claims.made();
        let second = claims.make(&pod("b", "2", json!({})), address(6));
        assert!(!claims.is_held(first));
        assert!(claims.hold(look, &[first]) && !claims.hold(look, &[]));
        assert!(claims.is_held(first) && !claims.is_held(second));
        claims.drop_until(look);
        assert_eq!(claims.open.len(), 1, "the second came after the look that found no policy");
        assert!(claims.drop_until(second) && claims.is_held(second) && claims.open.is_empty());
    }
}
