//! Kubernetes' scheduling framework: extension points, plugins, and what they say to each other.
//!
//! A [`Plugin`] implements the points it names in [`Plugin::points`]; the others keep their default.
//! Up to Reserve a plugin decides synchronously on a [`Snapshot`]; from Permit on ([`Effects`])
//! it may wait and talk to the API. Order within a point is the order of registration.
//!
//! ```text
//! PreEnqueue → QueueSort → PreFilter → Filter → (PostFilter) → PreScore → Score → NormalizeScore
//!   → Reserve → Permit → PreBind → Bind → PostBind
//! ```

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// The best score a plugin can give a node.
pub const MAX_SCORE: i64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    PreEnqueue,
    QueueSort,
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
}

/// Why a pod does not go on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Whether taking pods off the node could help.
    pub resolvable: bool,
    pub reasons: Vec<Cow<'static, str>>,
    /// Something failed that says nothing about nodes: no other is looked at.
    pub failed: bool,
}

impl Rejection {
    /// Preemption may help.
    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { resolvable: true, reasons: vec![reason.into()], failed: false }
    }

    /// Nothing that happens to pods helps.
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { resolvable: false, reasons: vec![reason.into()], failed: false }
    }

    /// The plugin cannot tell, and will not be able to for any node.
    pub fn failure(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { resolvable: false, reasons: vec![reason.into()], failed: true }
    }
}

/// What a PreFilter says of all nodes at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreFilter {
    /// Filter the nodes.
    Go,
    /// This plugin has nothing to say about this pod: leave its Filter out.
    Skip,
    /// Only these nodes can fit.
    Only(Vec<String>),
    /// None can.
    Reject(Rejection),
}

/// What a PostFilter could do for a pod that fits nowhere.
#[derive(Debug, Clone, PartialEq)]
pub enum PostFilter {
    /// Room can be made on a node, by deleting these pods.
    Nominate { node: String, victims: Vec<Arc<PodInfo>> },
    /// No: the text goes into the pod's condition.
    Nothing(String),
    /// An earlier nomination stands; wait for its victims to go.
    Wait(String),
}

/// What plugins leave for their own later points in one cycle, by type.
#[derive(Default)]
pub struct CycleState {
    values: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    skip_filter: PluginSet,
    skip_score: PluginSet,
}

impl CycleState {
    pub fn put<T: Send + Sync + 'static>(&mut self, value: T) {
        self.values.insert(TypeId::of::<T>(), Box::new(value));
    }

    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.values.get(&TypeId::of::<T>()).and_then(|value| value.downcast_ref())
    }

    pub fn skip_filter(&mut self, plugin: usize) {
        self.skip_filter.insert(plugin);
    }

    pub fn filters(&self, plugin: usize) -> bool {
        !self.skip_filter.contains(plugin)
    }

    pub fn skip_score(&mut self, plugin: usize) {
        self.skip_score.insert(plugin);
    }

    pub fn scores(&self, plugin: usize) -> bool {
        !self.skip_score.contains(plugin)
    }
}

/// Plugins by their position in the framework.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PluginSet(u64);

impl PluginSet {
    pub fn insert(&mut self, plugin: usize) {
        self.0 |= 1 << plugin;
    }

    pub fn contains(self, plugin: usize) -> bool {
        self.0 & (1 << plugin) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..64).filter(move |plugin| self.contains(*plugin))
    }
}

/// One scheduling plugin.
pub trait Plugin: Send + Sync {
    /// Kubernetes' name for it.
    fn name(&self) -> &'static str;

    fn points(&self) -> &'static [Point];

    /// Its weight among the scores.
    fn weight(&self) -> i64 {
        1
    }

    /// Whether the pod may be considered at all; an error says what it waits for.
    fn pre_enqueue(&self, _pod: &PodInfo) -> Result<(), String> {
        Ok(())
    }

    /// Which of two pods goes first, if this plugin can tell.
    fn compare(&self, _a: &PodInfo, _b: &PodInfo) -> Ordering {
        Ordering::Equal
    }

    fn pre_filter(&self, _state: &mut CycleState, _pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        PreFilter::Go
    }

    fn filter(&self, _state: &CycleState, _pod: &PodInfo, _node: &NodeInfo) -> Result<(), Rejection> {
        Ok(())
    }

    fn post_filter(&self, _cycle: &crate::cycle::Failed<'_>) -> PostFilter {
        PostFilter::Nothing(String::new())
    }

    /// `nodes` are the positions of those that fit. False: this plugin scores all alike.
    fn pre_score(&self, _state: &mut CycleState, _pod: &PodInfo, _snapshot: &Snapshot, _nodes: &[usize]) -> bool {
        true
    }

    /// More is better; raw, see [`Plugin::normalize`].
    fn score(&self, _state: &CycleState, _pod: &PodInfo, _node: &NodeInfo) -> i64 {
        0
    }

    /// Brings raw scores to 0 to [`MAX_SCORE`].
    fn normalize(&self, _state: &CycleState, _pod: &PodInfo, _scores: &mut [i64]) {}

    /// Claims what the pod will need on the node; an error sends the pod back to the queue.
    fn reserve(&self, _pod: &PodInfo, _node: &str) -> Result<(), String> {
        Ok(())
    }

    /// Gives back what [`Plugin::reserve`] claimed. Must not fail, also without a claim.
    fn unreserve(&self, _pod: &PodInfo, _node: &str) {}

    /// Whether `event` could make a pod that this plugin rejected schedulable.
    fn helps(&self, _pod: &PodInfo, _event: &ClusterEvent) -> bool {
        false
    }

    /// The part that waits and acts, for plugins with points from Permit on.
    fn effects(&self) -> Option<&dyn Effects> {
        None
    }
}

/// The asynchronous points. Each runs in the pod's own binding task; an error undoes the placement.
pub trait Effects: Send + Sync {
    /// Ready when the pod may be bound. May wait.
    fn permit<'a>(&'a self, _pod: &'a PodInfo, _node: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn pre_bind<'a>(&'a self, _pod: &'a PodInfo, _node: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether [`Effects::pre_bind`] has something to do for the pod: that can take its time, and
    /// others are told before where the pod will go.
    fn will_act(&self, _pod: &PodInfo) -> bool {
        false
    }

    /// Takes back what [`Effects::pre_bind`] wrote for a pod that is not bound after all. Must not
    /// fail, also if nothing was written.
    fn take_back<'a>(&'a self, _pod: &'a PodInfo, _node: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// None: another plugin binds this pod.
    fn bind<'a>(&'a self, _pod: &'a PodInfo, _node: &'a str) -> BoxFuture<'a, Option<Result<(), String>>> {
        Box::pin(std::future::ready(None))
    }

    fn post_bind<'a>(&'a self, _pod: &'a PodInfo, _node: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// The plugins in their order, and those of each point.
pub struct Framework {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Framework {
    /// At most 64 plugins.
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        assert!(plugins.len() <= 64, "a PluginSet holds 64 plugins");
        Self { plugins }
    }

    /// The plugins of one point, with their positions.
    pub fn at(&self, point: Point) -> impl Iterator<Item = (usize, &dyn Plugin)> {
        let all = self.plugins.iter().enumerate();
        all.filter(move |(_, plugin)| plugin.points().contains(&point)).map(|(at, plugin)| (at, plugin.as_ref()))
    }

    pub fn plugin(&self, at: usize) -> Option<&dyn Plugin> {
        self.plugins.get(at).map(|plugin| plugin.as_ref())
    }

    /// Whether the pod may be considered; if not, by whom and why not.
    pub fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), (usize, String)> {
        self.at(Point::PreEnqueue).try_for_each(|(at, plugin)| plugin.pre_enqueue(pod).map_err(|why| (at, why)))
    }

    /// QueueSort.
    pub fn compare(&self, a: &PodInfo, b: &PodInfo) -> Ordering {
        self.at(Point::QueueSort)
            .map(|(_, plugin)| plugin.compare(a, b))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }

    /// Whether `event` could help a pod rejected by `plugins`.
    pub fn helps(&self, pod: &PodInfo, plugins: PluginSet, event: &ClusterEvent) -> bool {
        if plugins.is_empty() {
            // There was no node that a plugin could have rejected.
            return matches!(event, ClusterEvent::NodeAdded(_));
        }
        plugins.iter().filter_map(|at| self.plugin(at)).any(|plugin| plugin.helps(pod, event))
    }

    /// Reserve at every plugin, or at none.
    pub fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let outcome = self.at(Point::Reserve).try_for_each(|(_, plugin)| plugin.reserve(pod, node));
        outcome.inspect_err(|_| self.unreserve(pod, node))
    }

    pub fn unreserve(&self, pod: &PodInfo, node: &str) {
        let mut reserved: Vec<_> = self.at(Point::Reserve).collect();
        reserved.reverse();
        reserved.iter().for_each(|(_, plugin)| plugin.unreserve(pod, node));
    }

    /// Whether something has to be done before a placed pod can be bound.
    pub fn will_act(&self, pod: &PodInfo) -> bool {
        self.effects(Point::PreBind).iter().any(|(effects, _)| effects.will_act(pod))
    }

    /// Permit, PreBind, Bind and PostBind, in this order.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        for (effects, name) in self.effects(Point::Permit) {
            effects.permit(pod, node).await.map_err(|why| format!("plugin {name} did not permit the pod: {why}"))?;
        }
        for (effects, name) in self.effects(Point::PreBind) {
            effects.pre_bind(pod, node).await.map_err(|why| format!("running PreBind plugin \"{name}\": {why}"))?;
        }
        let mut bound = None;
        for (effects, _) in self.effects(Point::Bind) {
            bound = effects.bind(pod, node).await;
            if bound.is_some() {
                break;
            }
        }
        bound.unwrap_or_else(|| Err("no plugin binds it".to_owned()))?;
        for (effects, _) in self.effects(Point::PostBind) {
            effects.post_bind(pod, node).await;
        }
        Ok(())
    }

    /// Undoes a failed [`Framework::bind`]: what was written first, so that nobody finds free what is
    /// still held, then what was reserved.
    pub async fn unbind(&self, pod: &PodInfo, node: &str) {
        let mut wrote = self.effects(Point::PreBind);
        wrote.reverse();
        for (effects, _) in wrote {
            effects.take_back(pod, node).await;
        }
        self.unreserve(pod, node);
    }

    fn effects(&self, point: Point) -> Vec<(&dyn Effects, &'static str)> {
        self.at(point).filter_map(|(_, plugin)| Some((plugin.effects()?, plugin.name()))).collect()
    }
}

/// Scales raw scores so that the highest becomes [`MAX_SCORE`]; `reverse`: so that less is better.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if highest == 0 { 0 } else { *score * MAX_SCORE / highest };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_scaled_to_the_highest() {
        for (mut raw, reverse, want) in [
            ([0, 5, 10], false, [0, 50, 100]),
            ([0, 5, 10], true, [100, 50, 0]),
            ([0, 0, 0], false, [0, 0, 0]),
            ([0, 0, 0], true, [100, 100, 100]),
        ] {
            normalize(&mut raw, reverse);
            assert_eq!(raw, want);
        }
    }
}
