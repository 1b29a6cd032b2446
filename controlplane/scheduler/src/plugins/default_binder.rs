//! DefaultBinder: binds through the API's `pods/binding`.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use crate::framework::{Effects, Plugin, Point};
use crate::pod::PodInfo;

pub struct DefaultBinder {
    client: Client,
}

impl DefaultBinder {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn post(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.clone()),
                // A pod that was deleted and made anew is not bound by mistake.
                uid: Some(pod.uid.to_string()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let answer: Result<serde_json::Value, kube::Error> =
            pods.create_subresource("binding", &pod.name, &PostParams::default(), &binding).await;
        answer.map(drop).map_err(|error| format!("binding it to {node}: {error}"))
    }
}

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Bind]
    }

    fn effects(&self) -> Option<&dyn Effects> {
        Some(self)
    }
}

impl Effects for DefaultBinder {
    fn bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Option<Result<(), String>>> {
        Box::pin(async move { Some(self.post(pod, node).await) })
    }
}
