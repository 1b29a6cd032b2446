//! PodCertificateRequests go a while after they were made, whatever became of them: nodes keep what was
//! issued, and ask again for what was not.

use component::{Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};

use crate::context::{self, Context, Controller, Key, synced};
use crate::error::{During, Result};
use crate::meta;

/// In seconds. Every request is answered earlier than this, or never.
const LIFE: i64 = 15 * 60;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("podcertificaterequestcleaner");
    let requests = context.informers.of::<PodCertificateRequest>();
    let changed = queue.clone();
    requests.on_change(move |change| {
        if let Some(request) = change.new {
            changed.add(meta::key(&request.metadata));
        }
    });
    let (cached, writer) = (requests.clone(), controller.clone());
    controller.run(&queue, 1, synced!(requests), move |key: Key| {
        let (cached, writer) = (cached.clone(), writer.clone());
        async move {
            let Some(request) = cached.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
            let now = Timestamp::now();
            match end_of_life(&request) {
                moment if moment > now => Ok(context::at(moment, now)),
                _ => delete(&writer, &request).await,
            }
        }
    });
}

fn end_of_life(request: &PodCertificateRequest) -> Timestamp {
    meta::after(meta::created(&request.metadata), LIFE)
}

async fn delete(writer: &Controller, request: &PodCertificateRequest) -> Result<Outcome> {
    let name = meta::display(&request.metadata);
    let only = DeleteParams {
        preconditions: Some(Preconditions { uid: request.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    let api = writer.namespaced::<PodCertificateRequest>(&request.namespace().unwrap_or_default());
    let deleted = api.delete(&request.name_any(), &only).await;
    deleted.unless_gone("deleting the old PodCertificateRequest", &name)?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;

    #[test]
    fn requests_live_for_a_quarter_of_an_hour() {
        let mut request = PodCertificateRequest::default();
        request.metadata.creation_timestamp = Some(at(100).into());
        assert_eq!(end_of_life(&request), at(100 + 900));
    }
}
