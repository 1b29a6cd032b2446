//! Pure: how large each ReplicaSet of a Deployment should be now.
//!
//! A rolling update keeps two promises: never more than `replicas + maxSurge` pods, never fewer
//! than `replicas - maxUnavailable` available. [`grow_new`] and [`shrink_old`] each take the
//! largest step these allow.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revision;
use crate::meta;

/// ReplicaSet names with their new sizes.
pub type Sizes = Vec<(String, i32)>;

pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn total<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>, of: impl Fn(&ReplicaSet) -> i32) -> i32 {
    sets.into_iter().map(of).sum()
}

pub fn is_recreate(deployment: &Deployment) -> bool {
    deployment.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// `(maxSurge, maxUnavailable)` in pods; both zero would stop every rollout, so one may be missing.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let quarter = IntOrString::String("25%".to_owned());
    let rolling = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let value = |given: Option<&IntOrString>, up| meta::scaled(given.unwrap_or(&quarter), replicas(deployment), up);
    let surge = value(rolling.and_then(|rolling| rolling.max_surge.as_ref()), true);
    let unavailable = value(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) { 0 } else { fenceposts(deployment).0 }
}

pub fn max_unavailable(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) || replicas(deployment) == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(replicas(deployment))
}

/// The size a rolling update gives the new set, now `current` large.
fn new_size(deployment: &Deployment, current: i32, old: &[ReplicaSet]) -> i32 {
    let wanted = replicas(deployment);
    if is_recreate(deployment) {
        return wanted;
    }
    let room = wanted + max_surge(deployment) - total(old, size) - current;
    if room <= 0 { current } else { current + room.min(wanted - current) }
}

/// The size a new set starts with.
pub fn first_size(deployment: &Deployment, old: &[ReplicaSet]) -> i32 {
    new_size(deployment, 0, old)
}

pub fn grow_new(deployment: &Deployment, new: &ReplicaSet, old: &[ReplicaSet]) -> Sizes {
    let wanted = replicas(deployment);
    let next = match size(new) {
        current if current == wanted => return Vec::new(),
        current if current > wanted => wanted,
        current => new_size(deployment, current, old),
    };
    vec![(new.name_any(), next)]
}

/// Old pods that never became available go first, then as many as availability allows, oldest
/// sets first.
pub fn shrink_old(deployment: &Deployment, new: &ReplicaSet, old: &[ReplicaSet]) -> Sizes {
    let pods = total(old, size);
    if pods == 0 {
        return Vec::new();
    }
    let least = replicas(deployment) - max_unavailable(deployment);
    let room = pods + size(new) - least - (size(new) - available(new));
    if room <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = old.iter().map(size).collect();
    drop_unhealthy(old, &mut sizes, room);
    let healthy = available(new) + total(old, available) - least;
    drop_available(&mut sizes, healthy);
    let changed = old.iter().zip(sizes).filter(|(set, next)| size(set) != *next);
    changed.map(|(set, next)| (set.name_any(), next)).collect()
}

fn drop_unhealthy(old: &[ReplicaSet], sizes: &mut [i32], mut room: i32) {
    for (set, current) in old.iter().zip(sizes) {
        let drop = (*current - available(set)).clamp(0, room.max(0));
        *current -= drop;
        room -= drop;
    }
}

fn drop_available(sizes: &mut [i32], mut room: i32) {
    for current in sizes {
        let drop = (*current).min(room.max(0));
        *current -= drop;
        room -= drop;
    }
}

/// Sizes after `spec.replicas` changed, or while paused.
pub fn proportional(deployment: &Deployment, new: Option<&ReplicaSet>, old: &[ReplicaSet]) -> Sizes {
    let wanted = replicas(deployment);
    if let Some(only) = active_or_latest(new, old) {
        return if size(only) == wanted { Vec::new() } else { vec![(only.name_any(), wanted)] };
    }
    if new.is_some_and(|new| is_saturated(deployment, new)) {
        return old.iter().filter(|set| size(set) > 0).map(|set| (set.name_any(), 0)).collect();
    }
    if is_recreate(deployment) {
        return Vec::new();
    }
    let mut active: Vec<&ReplicaSet> = new.into_iter().chain(old).filter(|set| size(set) > 0).collect();
    let allowed = if wanted > 0 { wanted + max_surge(deployment) } else { 0 };
    let change = allowed - active.iter().map(|set| size(set)).sum::<i32>();
    // larger sets first; of equal ones the newer when growing, the older when shrinking
    active.sort_by(|a, b| {
        let age = if change >= 0 { revision::by_age(b, a) } else { revision::by_age(a, b) };
        size(b).cmp(&size(a)).then(age)
    });
    let mut given = 0;
    let mut sizes: Sizes = Vec::new();
    for set in active {
        let part = proportion(deployment, set, change, given);
        given += part;
        sizes.push((set.name_any(), size(set) + part));
    }
    if let Some(first) = sizes.first_mut() {
        first.1 = (first.1 + change - given).max(0);
    }
    sizes
}

/// The one set that gets every pod: the only active one, or the newest when none is.
fn active_or_latest<'a>(new: Option<&'a ReplicaSet>, old: &'a [ReplicaSet]) -> Option<&'a ReplicaSet> {
    let mut active = new.into_iter().chain(old).filter(|set| size(set) > 0);
    match (active.next(), active.next()) {
        (None, _) => new.or_else(|| old.iter().max_by(|a, b| revision::by_age(a, b))),
        (only, None) => only,
        _ => None,
    }
}

fn is_saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    let wanted = replicas(deployment);
    revision::desired_replicas(new) == Some(wanted) && size(new) == wanted && available(new) == wanted
}

/// This set's part of `change`, never more than what is left of it.
fn proportion(deployment: &Deployment, set: &ReplicaSet, change: i32, given: i32) -> i32 {
    if change == 0 || change == given {
        return 0;
    }
    let part = if replicas(deployment) == 0 {
        -size(set)
    } else {
        let reported = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        let before = revision::max_replicas(set).filter(|max| *max != 0).unwrap_or(reported);
        let now = f64::from(replicas(deployment) + max_surge(deployment));
        let exact = if before == 0 { f64::from(size(set)) } else { f64::from(size(set)) * now / f64::from(before) };
        exact.round() as i32 - size(set)
    };
    let left = change - given;
    if change > 0 { part.min(left) } else { part.max(left) }
}

#[cfg(test)]
mod tests {
    use super::revision::testing::{deployment, set};
    use super::*;

    fn named(sizes: Sizes) -> Vec<(String, i32)> {
        sizes
    }

    #[test]
    fn growth_is_bounded_by_surge() {
        for (replicas, surge, new, old, expected) in [
            (10, 2, 0, 10, Some(2)),
            (10, 2, 2, 10, Some(2)),
            (10, 2, 2, 8, Some(4)),
            (10, 0, 0, 10, Some(0)),
            (10, 5, 8, 3, Some(10)),
            (10, 2, 12, 0, Some(10)),
            (10, 2, 10, 0, None),
        ] {
            let sizes = grow_new(&deployment(replicas, surge, 1), &set("new", 2, new, new), &[set("old", 1, old, old)]);
            assert_eq!(sizes.first().map(|size| size.1), expected, "{replicas}+{surge}, {new} new, {old} old");
        }
    }

    #[test]
    fn shrinking_keeps_enough_available() {
        // replicas, unavailable, (new size, new available), (old size, old available), old after
        for (replicas, unavailable, new, old, expected) in [
            (10, 2, (0, 0), (10, 10), Some(8)),
            (10, 0, (2, 0), (10, 10), None),
            (10, 0, (2, 2), (10, 10), Some(8)),
            (10, 2, (2, 0), (10, 8), Some(8)),
            (10, 2, (4, 4), (8, 0), Some(4)),
            (10, 2, (10, 10), (2, 2), Some(0)),
            (10, 2, (10, 10), (0, 0), None),
        ] {
            let sizes = shrink_old(
                &deployment(replicas, 2, unavailable),
                &set("new", 2, new.0, new.1),
                &[set("old", 1, old.0, old.1)],
            );
            assert_eq!(
                sizes.first().map(|size| size.1),
                expected,
                "{replicas}-{unavailable}, new {new:?}, old {old:?}"
            );
        }
    }

    #[test]
    fn without_surge_or_unavailability_one_may_be_missing() {
        assert_eq!(fenceposts(&deployment(3, 0, 0)), (0, 1));
        assert_eq!(max_unavailable(&deployment(2, 0, 5)), 2);
    }

    #[test]
    fn a_scale_in_the_middle_of_a_rollout_is_shared_in_proportion() {
        let sized = |name, age, size, desired: i32| {
            let mut set = set(name, age, size, size);
            super::revision::annotate_sizes(&mut set, &deployment(desired, 3, 2));
            set
        };
        // 10 replicas with surge 3 run as 8 old and 5 new; scaled to 15
        let (new, old) = (sized("new", 2, 5, 10), sized("old", 1, 8, 10));
        let sizes = named(proportional(&deployment(15, 3, 2), Some(&new), &[old]));
        assert_eq!(sizes, [("old".to_owned(), 11), ("new".to_owned(), 7)]);
        assert_eq!(sizes.iter().map(|(_, size)| size).sum::<i32>(), 18);
    }

    #[test]
    fn one_active_set_takes_the_whole_change() {
        let sizes = proportional(&deployment(5, 1, 1), Some(&set("new", 2, 3, 3)), &[set("old", 1, 0, 0)]);
        assert_eq!(sizes, [("new".to_owned(), 5)]);
        let none_active = proportional(&deployment(2, 1, 1), None, &[set("a", 1, 0, 0), set("b", 2, 0, 0)]);
        assert_eq!(none_active, [("b".to_owned(), 2)]);
    }
}
