//! Who ended: a stream of container exits from whichever source the runtime has.
//!
//! CRI's GetContainerEvents (containerd 1.7+, CRI-O) is preferred; containerd 1.6 answers it with
//! UNIMPLEMENTED, so its own events service on the same socket is next. With neither, the periodic
//! audit alone finds exits. A broken stream is opened again and followed by an audit, because what
//! happened in between is unknown.

use std::time::Duration;

use futures::{Stream, StreamExt};
use prost::Message;
use proto::containerd::events::{TaskExit, TaskOom};
use proto::containerd::services::events::v1::SubscribeRequest;
use proto::containerd::services::events::v1::events_client::EventsClient;
use proto::runtime::v1 as cri;
use tonic::Code;

use super::Runtime;

/// Something that the pods' workers should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container or a sandbox changed; the id is either's.
    Changed { id: String },
    /// Its process ended. CRI's own answer may be a moment behind: it learns from the same event.
    Ended { id: String },
    /// Events may have been missed: compare everything.
    Resync,
}

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Calls `announce` for every event until the task is dropped.
pub async fn follow(runtime: Runtime, announce: impl Fn(RuntimeEvent) + Send + Sync) {
    let mut delay = FIRST_RETRY;
    loop {
        match follow_once(&runtime, &announce).await {
            Ok(()) => delay = FIRST_RETRY,
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::info!("the container runtime has no event stream; exits are found by the periodic audit");
                return;
            }
            Err(status) => {
                tracing::debug!(%status, "the container runtime's event stream broke; opening it again");
                delay = (delay * 2).min(LONGEST_RETRY);
            }
        }
        tokio::time::sleep(delay).await;
    }
}

async fn follow_once(runtime: &Runtime, announce: &impl Fn(RuntimeEvent)) -> Result<(), tonic::Status> {
    match cri_stream(runtime).await {
        Ok(stream) => drain(stream, announce).await,
        Err(status) if status.code() == Code::Unimplemented => drain(containerd_stream(runtime).await?, announce).await,
        Err(status) => Err(status),
    }
}

async fn drain(
    stream: impl Stream<Item = Result<Option<RuntimeEvent>, tonic::Status>>,
    announce: &impl Fn(RuntimeEvent),
) -> Result<(), tonic::Status> {
    announce(RuntimeEvent::Resync);
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        if let Some(event) = event? {
            announce(event);
        }
    }
    Ok(())
}

type EventStream = futures::stream::BoxStream<'static, Result<Option<RuntimeEvent>, tonic::Status>>;

async fn cri_stream(runtime: &Runtime) -> Result<EventStream, tonic::Status> {
    let mut stream = runtime.service().get_container_events(cri::GetEventsRequest {}).await?.into_inner();
    // A server without the call may fail only with the first message.
    let first = tokio::time::timeout(Duration::from_millis(20), stream.next()).await;
    let first = match first {
        Ok(Some(Err(status))) => return Err(status),
        Ok(Some(Ok(event))) => Some(Ok(event)),
        Ok(None) => return Err(tonic::Status::unimplemented("the event stream ended at once")),
        Err(_) => None,
    };
    let events = futures::stream::iter(first).chain(stream);
    Ok(events.map(|event| event.map(|event| Some(RuntimeEvent::Changed { id: event.container_id }))).boxed())
}

async fn containerd_stream(runtime: &Runtime) -> Result<EventStream, tonic::Status> {
    let filters = ["/tasks/exit", "/tasks/oom"].map(|topic| format!("namespace==k8s.io,topic==\"{topic}\"")).to_vec();
    let mut client = EventsClient::new(runtime.channel());
    let stream = client.subscribe(SubscribeRequest { filters }).await?.into_inner();
    Ok(stream.map(|envelope| envelope.map(|envelope| read_envelope(&envelope.topic, envelope.event.as_ref()))).boxed())
}

/// The container that an event is about. Exits of exec'd processes (`id` differs) are not of interest.
fn read_envelope(topic: &str, event: Option<&prost_types::Any>) -> Option<RuntimeEvent> {
    let bytes = event?.value.as_slice();
    match topic {
        "/tasks/exit" => {
            let exit = TaskExit::decode(bytes).ok()?;
            (exit.id == exit.container_id || exit.id.is_empty())
                .then_some(RuntimeEvent::Ended { id: exit.container_id })
        }
        "/tasks/oom" => {
            let oom = TaskOom::decode(bytes).ok()?;
            Some(RuntimeEvent::Changed { id: oom.container_id })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(message: &impl Message) -> prost_types::Any {
        prost_types::Any { type_url: String::new(), value: message.encode_to_vec() }
    }

    #[test]
    fn only_a_containers_own_end_counts() {
        let main = TaskExit { container_id: "c".into(), id: "c".into(), pid: 7, ..Default::default() };
        let exec = TaskExit { container_id: "c".into(), id: "exec-1".into(), pid: 8, ..Default::default() };
        let changed = Some(RuntimeEvent::Changed { id: "c".into() });
        assert_eq!(read_envelope("/tasks/exit", Some(&any(&main))), Some(RuntimeEvent::Ended { id: "c".into() }));
        assert_eq!(read_envelope("/tasks/exit", Some(&any(&exec))), None);
        assert_eq!(read_envelope("/tasks/oom", Some(&any(&TaskOom { container_id: "c".into() }))), changed);
        assert_eq!(read_envelope("/images/create", Some(&any(&main))), None);
    }
}
