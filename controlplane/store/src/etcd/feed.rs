//! One watch of everything, handed out to all watchers.
//!
//! etcd numbers every write, so a watch of the whole key space that has delivered revision R has
//! delivered all before it. That is what lets any watcher be told how far it has come, on every
//! version of etcd: its own progress notifications were unreliable before 3.4.25 and 3.5.8. A
//! watcher that starts in the past gets a stream of its own up to where the feed is.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse, watch_request};
use proto::mvccpb;
use tokio::sync::{mpsc, watch};
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

use super::convert::{event, lacks_previous, reached, revision_of};
use super::endpoints::Endpoints;
use crate::hub::{Hub, Queue};
use crate::{Batch, Event, Revision, StoreError};

const RETRY: Duration = Duration::from_millis(250);

/// What feed, watchers and calls share.
pub struct Shared {
    pub endpoints: Endpoints,
    pub hub: Arc<Hub>,
    /// What the hub has published, for those who wait for a revision.
    pub published: watch::Sender<Revision>,
    /// Watchers that want to know how far they have come: each is in it at most once
    /// ([`Queue::ask`]), so it needs no bound.
    pub asked: mpsc::UnboundedSender<Arc<Queue>>,
}

/// Follows etcd for good.
pub async fn run(shared: Arc<Shared>) {
    loop {
        if let Err(error) = follow(&shared).await {
            tracing::warn!(%error, "the watch of etcd broke; it goes on at another member");
            shared.endpoints.rotate();
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn follow(shared: &Shared) -> Result<(), StoreError> {
    let next = shared.hub.published() + 1;
    let mut stream = open(&shared.endpoints, next).await?;
    while let Some(response) = stream.next().await {
        let response = response.map_err(|status| shared.endpoints.error("watching", &status))?;
        if response.compact_revision != 0 {
            return lost(shared, &response);
        }
        if response.canceled {
            return Err(shared.endpoints.error("watching", &Status::unavailable(response.cancel_reason)));
        }
        publish(shared, response.events)?;
    }
    Err(shared.endpoints.error("watching", &Status::unavailable("the stream ended")))
}

fn publish(shared: &Shared, events: Vec<mvccpb::Event>) -> Result<(), StoreError> {
    let last = reached(&events);
    if last > 0 {
        let events: Vec<Event> = events.into_iter().filter_map(event).collect();
        shared.hub.publish(&events, last);
        shared.published.send_replace(last);
    }
    Ok(())
}

/// What came while the feed was away has been compacted: the watchers must list again.
fn lost(shared: &Shared, response: &WatchResponse) -> Result<(), StoreError> {
    let compacted = u64::try_from(response.compact_revision).unwrap_or(0);
    let error = StoreError::Compacted { requested: shared.hub.published(), compacted };
    let now = revision_of(response.header.as_ref()).max(compacted);
    shared.hub.reset(&error, now);
    shared.published.send_replace(now);
    Ok(())
}

/// Every event from revision `from` on, of all keys.
async fn open(endpoints: &Endpoints, from: Revision) -> Result<Streaming<WatchResponse>, StoreError> {
    let create = WatchCreateRequest {
        // A zero byte as key and as end: everything.
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: i64::try_from(from).unwrap_or(i64::MAX),
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    let request_union = Some(watch_request::RequestUnion::CreateRequest(create));
    // The request stream stays open as long as the watch is wanted.
    let requests = stream::iter([WatchRequest { request_union }]).chain(stream::pending());
    let mut request = Request::new(requests);
    // A member cut off from its cluster ends the stream instead of falling silent.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    let mut client = WatchClient::new(endpoints.channel()).max_decoding_message_size(usize::MAX);
    let opened = tokio::time::timeout(Duration::from_secs(10), client.watch(request)).await;
    let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in 10 s")));
    opened.map(tonic::Response::into_inner).map_err(|status| endpoints.error("watching", &status))
}

/// Tells watchers how far they have come, once the feed has reached what etcd is at now.
pub async fn answer_progress(shared: Arc<Shared>, mut asked: mpsc::UnboundedReceiver<Arc<Queue>>) {
    let mut published = shared.published.subscribe();
    while let Some(first) = asked.recv().await {
        let mut queues = vec![first];
        while let Ok(more) = asked.try_recv() {
            queues.push(more);
        }
        queues.iter().for_each(|queue| queue.take_question());
        let now = loop {
            match super::current_revision(&shared.endpoints).await {
                Ok(now) => break now,
                // The feed reports what is wrong with etcd.
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        if published.wait_for(|published| *published >= now).await.is_err() {
            return;
        }
        queues.iter().for_each(|queue| shared.hub.progress(queue));
    }
}

/// Events under `prefix` from revision `from` to `to`, which must have been published.
pub fn replay(
    shared: Arc<Shared>,
    prefix: String,
    from: Revision,
    to: Revision,
) -> BoxStream<'static, Result<Batch, StoreError>> {
    let opening = async move {
        match open(&shared.endpoints, from).await {
            Ok(stream) => cut(stream, shared, prefix, from, to),
            Err(error) => stream::once(std::future::ready(Err(error))).boxed(),
        }
    };
    stream::once(opening).flatten().boxed()
}

/// The part of a stream up to `to`, with only the events under `prefix`.
fn cut(
    stream: impl Stream<Item = Result<WatchResponse, Status>> + Unpin + Send + 'static,
    shared: Arc<Shared>,
    prefix: String,
    from: Revision,
    to: Revision,
) -> BoxStream<'static, Result<Batch, StoreError>> {
    let batches = stream::unfold(Some(stream), move |stream| {
        let (shared, prefix) = (shared.clone(), prefix.clone());
        async move {
            let mut stream = stream?;
            // What follows on the end of a replay is what the feed brings: events in between would be lost.
            let ended = || Err(Status::unavailable("the stream ended"));
            let response = match stream.next().await.unwrap_or_else(ended) {
                Ok(response) => response,
                Err(status) => return Some((Err(shared.endpoints.error("watching", &status)), None)),
            };
            if response.compact_revision != 0 {
                let compacted = u64::try_from(response.compact_revision).unwrap_or(0);
                return Some((Err(StoreError::Compacted { requested: from - 1, compacted }), None));
            }
            if response.canceled {
                let status = Status::unavailable(response.cancel_reason);
                return Some((Err(shared.endpoints.error("watching", &status)), None));
            }
            let last = reached(&response.events);
            let wanted = |event: &Event| event.revision <= to && event.key.starts_with(&prefix);
            let mut events = Vec::new();
            for told in response.events {
                let lacks = lacks_previous(&told);
                let Some(event) = event(told).filter(wanted) else { continue };
                if lacks {
                    return Some((Err(StoreError::Compacted { requested: from - 1, compacted: 0 }), None));
                }
                events.push(event);
            }
            let rest = (last < to).then_some(stream);
            Some((Ok(Batch { events, revision: last.min(to) }), rest))
        }
    });
    batches.filter(|batch| std::future::ready(batch.as_ref().map_or(true, |batch| batch.revision > 0))).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::QueueLimits;

    /// As a proxy between ends it; the watch would go on behind what was still to come.
    #[tokio::test]
    async fn a_replay_whose_stream_ends_early_fails() {
        let (asked, _asking) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            endpoints: Endpoints::new(&["http://127.0.0.1:1".to_owned()], None).unwrap(),
            hub: Arc::new(Hub::new(9, QueueLimits { events: 10, bytes: 1000 })),
            published: watch::Sender::new(9),
            asked,
        });
        let created = mvccpb::KeyValue { create_revision: 7, mod_revision: 7, ..mvccpb::KeyValue::default() };
        let kv = mvccpb::KeyValue { key: "/a".into(), ..created };
        let told = mvccpb::Event { kv: Some(kv), ..mvccpb::Event::default() };
        let response = WatchResponse { events: vec![told], ..WatchResponse::default() };
        let mut batches = cut(stream::iter([Ok(response)]), shared, "/".to_owned(), 7, 9);
        assert!(matches!(batches.next().await, Some(Ok(Batch { revision: 7, .. }))));
        assert!(matches!(batches.next().await, Some(Err(StoreError::Unavailable { .. }))));
    }
}
