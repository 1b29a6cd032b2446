//! Stopping a container: event, preStop hook, its turn among the pod's, SIGTERM, SIGKILL after what is
//! left of the grace period.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::EventType;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use tokio::sync::watch;

use super::actions::pod_id;
use super::observed::Run;
use super::{hooks, observe};
use crate::context::NodeContext;
use crate::cri::RuntimeError;

/// A container gets at least this long to end by itself, seconds.
const LEAST_GRACE: i64 = 2;

pub struct Order {
    pub pod: Arc<Pod>,
    /// None if the pod no longer names the container.
    pub container: Option<Container>,
    pub run: Run,
    pub pod_ip: Option<String>,
    /// For the event `Killing`.
    pub message: String,
    /// Seconds in all, the preStop hook and the wait for its turn included. Zero kills at once.
    pub grace: i64,
    pub turn: Turn,
}

/// The runs that end before this one.
pub struct Turn {
    pub first: Vec<String>,
    /// What runs of the pod, by id.
    pub running: watch::Receiver<HashSet<String>>,
}

impl Turn {
    async fn wait(mut self) {
        // An error means that the worker is gone, and this stop with it.
        let _ = self.running.wait_for(|running| !self.first.iter().any(|id| running.contains(id))).await;
    }
}

/// Stops the container; returns its run as it ended.
pub async fn stop(node: &NodeContext, order: Order) -> Result<Run, RuntimeError> {
    node.container_event(&order.pod, &order.run.name, EventType::Normal, "Killing", order.message.clone());
    let began = Instant::now();
    if order.grace > 0
        && let Some(hook) = pre_stop(&order)
    {
        run_pre_stop(node, &order, &hook).await;
    }
    end(node, &order.run, order.turn, order.grace, began).await
}

/// The last of it, within what is left of the grace period that `began`.
pub async fn end(node: &NodeContext, run: &Run, turn: Turn, grace: i64, began: Instant) -> Result<Run, RuntimeError> {
    let left = || grace - i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
    let patience = Duration::from_secs(left().max(0).unsigned_abs());
    // Whoever is before it and does not end leaves it only the least.
    let _ = tokio::time::timeout(patience, turn.wait()).await;
    let left = if grace > 0 { left().max(LEAST_GRACE) } else { 0 };
    node.runtime.stop_container(&run.id, left).await?;
    observe::run(&node.runtime, &run.id, &run.sandbox_id).await
}

/// The pod's own hook, or what the container's annotations remember of it.
fn pre_stop(order: &Order) -> Option<LifecycleHandler> {
    match &order.container {
        Some(container) => container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone()),
        None => order.run.pre_stop.as_deref().and_then(|text| serde_json::from_str(text).ok()),
    }
}

async fn run_pre_stop(node: &NodeContext, order: &Order, hook: &LifecycleHandler) {
    let fallback;
    let container = match &order.container {
        Some(container) => container,
        None => {
            fallback = Container { name: order.run.name.clone(), ..Default::default() };
            &fallback
        }
    };
    let limit = Duration::from_secs(order.grace.max(0).unsigned_abs());
    let hook_run = hooks::run(node, &order.pod, container, &order.run.id, order.pod_ip.as_deref(), hook);
    match tokio::time::timeout(limit, hook_run).await {
        Ok(Ok(())) => {}
        Ok(Err(message)) => {
            // What a hook says may be secret: events are for others to read.
            tracing::warn!(pod = pod_id(&order.pod), container = order.run.name, message, "a preStop hook failed");
            let event = "PreStopHook failed";
            node.container_event(&order.pod, &order.run.name, EventType::Warning, "FailedPreStopHook", event);
        }
        Err(_) => tracing::debug!(container = order.run.name, "the preStop hook did not end within the grace period"),
    }
}
