//! What a node tells of its pods, on a socket of its own.

use integration::Lab;
use proto::v1alpha1::pods_client::PodsClient;
use proto::v1alpha1::{EventType, ListPodsRequest, WatchPodsEvent, WatchPodsRequest};
use tonic::Streaming;

use crate::{SOON, delete, pod, root};

/// Whether these bytes speak of the name.
fn names(pod: &[u8], name: &str) -> bool {
    String::from_utf8_lossy(pod).contains(name)
}

async fn told(events: &mut Streaming<WatchPodsEvent>, kind: EventType, name: &str) {
    let wanted = async {
        while let Some(event) = events.message().await.unwrap() {
            if event.r#type() == kind && names(&event.pod, name) {
                return true;
            }
        }
        false
    };
    let came = tokio::time::timeout(SOON, wanted).await;
    assert_eq!(came, Ok(true), "{kind:?} {name}");
}

#[test]
fn a_node_tells_of_its_pods() {
    let lab = Lab::up("pods-api", &[]);
    let socket = root(&lab).join("pods-api/pods-api.sock");
    lab.apply(&pod("told-one", "sleep 3600", "", ""));
    lab.wait("pod/told-one", "condition=Ready", 60);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = PodsClient::new(proto::unix_channel(&socket).await.unwrap());
        let listed = client.list_pods(ListPodsRequest {}).await.unwrap().into_inner().pods;
        assert_eq!(listed.iter().filter(|pod| names(pod, "told-one")).count(), 1);

        let mut events = client.watch_pods(WatchPodsRequest {}).await.unwrap().into_inner();
        told(&mut events, EventType::Added, "told-one").await;
        told(&mut events, EventType::InitialSyncComplete, "").await;
        lab.apply(&pod("told-two", "sleep 3600", "", ""));
        told(&mut events, EventType::Added, "told-two").await;
        told(&mut events, EventType::Modified, "told-two").await;
        delete(&lab, "told-two");
        told(&mut events, EventType::Deleted, "told-two").await;
    });
}
