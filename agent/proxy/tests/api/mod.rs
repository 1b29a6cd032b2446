//! A Kubernetes API of a few lines: lists what it was given and streams what is pushed. Also used by
//! the tests of `network` and `dns`.

#![allow(clippy::unwrap_used, dead_code, reason = "a test that cannot go on fails; each uses its part")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Answer = hyper::Response<BoxBody<Bytes, Infallible>>;

/// Lists what it was given and streams what is pushed, per plural.
/// Kind and objects.
type Lists = HashMap<String, (String, Vec<Value>)>;
type Watchers = HashMap<String, mpsc::UnboundedSender<Value>>;

#[derive(Clone, Default)]
pub struct Api {
    lists: Arc<Mutex<Lists>>,
    watchers: Arc<Mutex<Watchers>>,
}

impl Api {
    pub fn list(&self, plural: &str, kind: &str, items: Vec<Value>) {
        self.lists.lock().unwrap().insert(plural.into(), (kind.into(), items));
    }

    pub fn push(&self, plural: &str, kind: &str, object: &Value) {
        let event = json!({ "type": kind, "object": object });
        // The watch follows the list by itself, but a moment later.
        for _ in 0..500 {
            if let Some(watcher) = self.watchers.lock().unwrap().get(plural) {
                return watcher.send(event).unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("nobody watches {plural}");
    }

    fn answer(&self, uri: &hyper::Uri) -> Answer {
        let plural = uri.path().rsplit('/').next().unwrap().to_owned();
        if !uri.query().unwrap_or_default().contains("watch=true") {
            let (kind, items) = self
                .lists
                .lock()
                .unwrap()
                .get(&plural)
                .cloned()
                .unwrap_or_else(|| (kind_of(&plural).into(), Vec::new()));
            let version = match plural.as_str() {
                "endpointslices" => "discovery.k8s.io/v1",
                "networkpolicies" => "networking.k8s.io/v1",
                _ => "v1",
            };
            let list = json!({ "kind": format!("{kind}List"), "apiVersion": version, "metadata": { "resourceVersion": "1" }, "items": items });
            return hyper::Response::new(Full::new(Bytes::from(list.to_string())).boxed());
        }
        let (sender, receiver) = mpsc::unbounded_channel::<Value>();
        self.watchers.lock().unwrap().insert(plural, sender);
        let stream = events(receiver);
        hyper::Response::new(StreamBody::new(stream).boxed())
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
            let answer = api.answer(request.uri());
            async move { Ok::<_, Infallible>(answer) }
        });
        kube::Client::new(service, "default")
    }
}

fn events(
    receiver: mpsc::UnboundedReceiver<Value>,
) -> impl futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let event = receiver.recv().await?;
        Some((Ok(Frame::data(Bytes::from(format!("{event}\n")))), receiver))
    })
}

fn kind_of(plural: &str) -> &'static str {
    match plural {
        "services" => "Service",
        "endpointslices" => "EndpointSlice",
        "nodes" => "Node",
        "pods" => "Pod",
        "namespaces" => "Namespace",
        "events" => "Event",
        "networkpolicies" => "NetworkPolicy",
        other => panic!("the API of this test has no {other}"),
    }
}
