//! `kubectl logs`: reading a container's CRI log file, once or as it grows.
//!
//! - `options`: the query; `choice`: which run's file; `format`: the lines of a CRI log;
//! - `follow`: reading, waiting for more, noticing rotation and the container's end.

mod choice;
mod follow;
mod format;
mod options;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::Pod;

use super::reply::{self, BoxError, Reply};
use crate::server_contract::NodePods;
pub use options::LogOptions;

/// Chunks read ahead of a slow reader.
const AHEAD: usize = 8;

/// Answers `/containerLogs/...`.
pub fn serve(
    pods: &Arc<dyn NodePods>,
    (namespace, name, container): (&str, &str, &str),
    query: Option<&str>,
    supervisor: &component::Supervisor,
) -> Reply {
    let options = match LogOptions::parse(query) {
        Ok(options) => options,
        Err(message) => return reply::error(StatusCode::BAD_REQUEST, format!("{message}\n")),
    };
    let Some(pod) = pods.pod(namespace, name) else {
        return reply::error(StatusCode::NOT_FOUND, format!("pod {name:?} does not exist\n"));
    };
    if !has_container(&pod, container) {
        return reply::error(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {name:?}\n"));
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let view = pods.runtime_view(&uid);
    let run = match choice::choose(&pod, &view, container, options.previous) {
        Ok(run) => run.clone(),
        Err(message) => return reply::error(StatusCode::BAD_REQUEST, message),
    };
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, BoxError>>(AHEAD);
    let pods = pods.clone();
    let id = run.id.clone();
    let is_running = move || pods.runtime_view(&uid).containers.iter().any(|run| run.id == id && run.running);
    supervisor.spawn("logs", follow::send(run.log_path, options, is_running, sender));
    let frames = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk.map(Frame::data), receiver))
    });
    let mut response = Response::new(StreamBody::new(frames.boxed()).boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ordinary = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    ordinary.into_iter().any(|container| container.name == name)
        || spec.ephemeral_containers.iter().flatten().any(|container| container.name == name)
}
