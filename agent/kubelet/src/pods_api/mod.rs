//! The node's pods, for programs on this node that would else ask the API server (KEP-4188,
//! `pkg/kubelet/apis/pods`): gRPC on `<root>/pods-api/pods-api.sock`.
//!
//! Layer: beside [`crate::pod_resources`]. The manager and the pods' workers tell the [`Feed`] what they
//! know; a pod is sent as Kubernetes' clients read it ([`encode`]). It answers also while the API server
//! does not, but not before every source of pods was read once.

mod encode;
mod feed;
mod totals;

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::Pod;
use proto::v1alpha1::pods_server::{Pods, PodsServer};
use proto::v1alpha1::{
    EventType, GetPodRequest, GetPodResponse, ListPodsRequest, ListPodsResponse, WatchPodsEvent, WatchPodsRequest,
};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Code, Request, Response, Status};

use crate::context::NodeContext;
use crate::unix_server::{self, Limiter};
use encode::Encoder;
pub use feed::Feed;
use feed::{Event, Initializing};
use totals::Call;
pub use totals::Totals;

/// Serves for as long as the task lives.
pub async fn serve(node: Arc<NodeContext>) {
    let encoder = match Encoder::new() {
        Ok(encoder) => Arc::new(encoder),
        Err(error) => return tracing::error!(%error, "the table of a pod's fields is broken; pods cannot be asked for"),
    };
    let socket = node.config.layout.pods_api().join("pods-api.sock");
    let server =
        Server { feed: node.feed.clone(), totals: node.feed_totals.clone(), encoder, limiter: Limiter::default() };
    unix_server::serve(&socket, "the node's pods", PodsServer::new(server)).await;
}

struct Server {
    feed: Arc<Feed>,
    totals: Arc<Totals>,
    encoder: Arc<Encoder>,
    limiter: Limiter,
}

impl From<Initializing> for Status {
    fn from(initializing: Initializing) -> Self {
        Status::failed_precondition(initializing.to_string())
    }
}

fn marshal(encoder: &Encoder, pod: &Pod) -> Result<Vec<u8>, Status> {
    encoder.pod(pod).map_err(|error| Status::internal(format!("failed to marshal pod: {error}")))
}

impl Server {
    fn counted<T>(&self, call: Call, answer: Result<T, Status>) -> Result<Response<T>, Status> {
        self.totals.note(call, answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
        answer.map(Response::new)
    }

    fn list(&self) -> Result<ListPodsResponse, Status> {
        let pods = self.feed.list()?.iter().map(|pod| marshal(&self.encoder, pod)).collect::<Result<_, _>>()?;
        Ok(ListPodsResponse { pods })
    }

    fn get(&self, uid: &str) -> Result<GetPodResponse, Status> {
        let pod = self.feed.get(uid)?;
        let pod = pod.ok_or_else(|| Status::not_found(format!("pod with UID {uid} not found")))?;
        Ok(GetPodResponse { pod: marshal(&self.encoder, &pod)? })
    }
}

#[async_trait]
impl Pods for Server {
    type WatchPodsStream = BoxStream<'static, Result<WatchPodsEvent, Status>>;

    async fn list_pods(&self, _: Request<ListPodsRequest>) -> Result<Response<ListPodsResponse>, Status> {
        self.limiter.admit()?;
        self.counted(Call::List, self.list())
    }

    async fn get_pod(&self, request: Request<GetPodRequest>) -> Result<Response<GetPodResponse>, Status> {
        self.limiter.admit()?;
        self.counted(Call::Get, self.get(&request.into_inner().pod_uid))
    }

    async fn watch_pods(&self, _: Request<WatchPodsRequest>) -> Result<Response<Self::WatchPodsStream>, Status> {
        let (pods, events) = match self.feed.watch() {
            Ok(watched) => watched,
            Err(initializing) => return self.counted(Call::Watch, Err(initializing.into())),
        };
        let watch = Watch { events, encoder: self.encoder.clone(), totals: self.totals.clone(), code: Code::Cancelled };
        let added: Vec<_> = pods.into_iter().map(|pod| watch.event(&Event { kind: EventType::Added, pod })).collect();
        let all = WatchPodsEvent { r#type: EventType::InitialSyncComplete.into(), pod: Vec::new() };
        let first = stream::iter(added.into_iter().chain([Ok(all)]));
        Ok(Response::new(first.chain(stream::unfold(watch, Watch::next)).boxed()))
    }
}

/// One watcher, counted when it ends.
struct Watch {
    events: Receiver<Event>,
    encoder: Arc<Encoder>,
    totals: Arc<Totals>,
    /// How it ends: it is the client that goes, most often.
    code: Code,
}

impl Watch {
    fn event(&self, event: &Event) -> Result<WatchPodsEvent, Status> {
        Ok(WatchPodsEvent { r#type: event.kind.into(), pod: marshal(&self.encoder, &event.pod)? })
    }

    async fn next(mut self) -> Option<(Result<WatchPodsEvent, Status>, Self)> {
        let event = match self.events.recv().await {
            Ok(event) => self.event(&event),
            Err(RecvError::Lagged(_)) => {
                self.totals.dropped();
                Err(Status::resource_exhausted("watch client channel closed"))
            }
            Err(RecvError::Closed) => return None,
        };
        if let Err(status) = &event {
            self.code = status.code();
        }
        Some((event, self))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.totals.note(Call::Watch, self.code);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn server() -> Server {
        Server {
            feed: Arc::default(),
            totals: Arc::default(),
            encoder: Arc::new(Encoder::new().unwrap()),
            limiter: Limiter::default(),
        }
    }

    fn pod(uid: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": uid}})).unwrap()
    }

    async fn get(server: &Server, uid: &str) -> Result<Vec<u8>, Status> {
        let answer = server.get_pod(Request::new(GetPodRequest { pod_uid: uid.to_owned() })).await;
        answer.map(|answer| answer.into_inner().pod)
    }

    #[tokio::test(start_paused = true)]
    async fn pods_are_told_once_all_are_known() {
        let server = server();
        let early = get(&server, "u").await.unwrap_err();
        assert_eq!((early.code(), early.message()), (Code::FailedPrecondition, "Kubelet is initializing"));
        assert!(server.watch_pods(Request::new(WatchPodsRequest {})).await.is_err());
        server.feed.add(&pod("u"));
        server.feed.complete();
        assert!(!get(&server, "u").await.unwrap().is_empty());
        assert_eq!(get(&server, "v").await.unwrap_err().message(), "pod with UID v not found");
        let listed = server.list_pods(Request::new(ListPodsRequest {})).await.unwrap().into_inner();
        assert_eq!(listed.pods, [get(&server, "u").await.unwrap()]);
        for _ in 0..10 {
            let _ = get(&server, "u").await;
        }
        assert_eq!(get(&server, "u").await.unwrap_err().code(), Code::ResourceExhausted);
        let page = server.totals.page();
        for part in
            ["get_total{server_api_version=\"v1alpha1\",status_code=\"FailedPrecondition\"} 1", "\"NotFound\"} 1"]
        {
            assert!(page.contains(part), "{page}");
        }
    }

    #[tokio::test]
    async fn a_watcher_is_given_all_pods_and_then_what_changes() {
        let server = server();
        server.feed.add(&pod("u"));
        server.feed.complete();
        let mut events = server.watch_pods(Request::new(WatchPodsRequest {})).await.unwrap().into_inner();
        let mut kinds = Vec::new();
        for _ in 0..2 {
            kinds.push(events.next().await.unwrap().unwrap().r#type());
        }
        server.feed.add(&pod("v"));
        server.feed.remove("u");
        for _ in 0..2 {
            kinds.push(events.next().await.unwrap().unwrap().r#type());
        }
        use EventType::{Added, Deleted, InitialSyncComplete};
        assert_eq!(kinds, [Added, InitialSyncComplete, Added, Deleted]);
        for turn in 0..1000 {
            server.feed.add(&pod(&turn.to_string()));
        }
        assert_eq!(events.next().await.unwrap().unwrap_err().code(), Code::ResourceExhausted);
        drop(events);
        let page = server.totals.page();
        assert!(
            page.contains("watch_total{server_api_version=\"v1alpha1\",status_code=\"ResourceExhausted\"} 1"),
            "{page}"
        );
        assert!(page.contains("dropped_total 1"), "{page}");
    }
}
