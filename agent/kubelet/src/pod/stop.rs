//! Stopping a container: event, preStop hook, SIGTERM, SIGKILL after what is left of the grace period.

use std::sync::Arc;
use std::time::{Duration, Instant};

use component::EventType;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use super::observed::Run;
use super::{hooks, observe};
use crate::context::NodeContext;
use crate::cri::RuntimeError;

/// A container gets at least this long after its preStop hook, seconds.
const LEAST_GRACE: i64 = 2;

pub struct Order {
    pub pod: Arc<Pod>,
    /// None if the pod no longer names the container.
    pub container: Option<Container>,
    pub run: Run,
    pub pod_ip: Option<String>,
    /// For the event `Killing`.
    pub message: String,
    /// Seconds in all, the preStop hook included.
    pub grace: i64,
}

/// Stops the container; returns its run as it ended.
pub async fn stop(node: &NodeContext, order: &Order) -> Result<Run, RuntimeError> {
    node.container_event(&order.pod, &order.run.name, EventType::Normal, "Killing", order.message.clone());
    let began = Instant::now();
    if order.grace > 0
        && let Some(hook) = pre_stop(order)
    {
        run_pre_stop(node, order, &hook).await;
    }
    let spent = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
    let left = if order.grace > 0 { (order.grace - spent).max(LEAST_GRACE.min(order.grace)) } else { 0 };
    node.runtime.stop_container(&order.run.id, left).await?;
    observe::run(&node.runtime, &order.run.id, &order.run.sandbox_id).await
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
            let message = format!("PreStopHook failed: {message}");
            node.container_event(&order.pod, &order.run.name, EventType::Warning, "FailedPreStopHook", message);
        }
        Err(_) => tracing::debug!(container = order.run.name, "the preStop hook did not end within the grace period"),
    }
}
