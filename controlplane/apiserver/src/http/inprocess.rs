//! The pipeline as a `tower` service: how the server's own controllers, and everything else in
//! this process, reach the API. No TCP and no TLS; authorization and admission as for everybody.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::version::agents;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use http_body_util::BodyExt;
use kube::client::Body as ClientBody;
use serde_json::Value;

use super::body::Body;
use super::pipeline;
use crate::authn::UserInfo;
use crate::error::{ApiError, Result};
use crate::server::Api;

#[derive(Clone)]
pub struct Service {
    api: Arc<Api>,
    user: Arc<UserInfo>,
    agent: HeaderValue,
}

impl Service {
    pub fn new(api: Arc<Api>, user: UserInfo) -> Self {
        let agent = HeaderValue::from_static(agent(&user.name));
        Self { api, user: Arc::new(user), agent }
    }
}

/// What the user's component calls itself; `managedFields` name it as the writer.
fn agent(user: &str) -> &'static str {
    match user {
        "system:kube-scheduler" => agents::SCHEDULER,
        "system:kube-controller-manager" => agents::CONTROLLERS,
        controller if controller.starts_with("system:serviceaccount:kube-system:") => agents::CONTROLLERS,
        _ => agents::API_SERVER,
    }
}

impl tower::Service<Request<ClientBody>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<ClientBody>) -> Self::Future {
        request.headers_mut().entry(header::USER_AGENT).or_insert_with(|| self.agent.clone());
        let (api, user) = (self.api.clone(), self.user.clone());
        Box::pin(async move { Ok(pipeline::handle(api, request, pipeline::Caller::Trusted(user)).await) })
    }
}

/// Creates an object as the server's own client would: every step of a request, and a record of its
/// own in the audit log. `path` is that of the collection.
pub async fn create(api: Arc<Api>, path: &str, object: &Value) -> Result<Value> {
    let failed = |why: &dyn std::fmt::Display| ApiError::internal(format!("creating at {path}: {why}"));
    let request = Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(ClientBody::from(object.to_string().into_bytes()))
        .map_err(|error| failed(&error))?;
    let mut service = Service::new(api, UserInfo::server());
    let (parts, body) = match tower::Service::call(&mut service, request).await {
        Ok(response) => response.into_parts(),
        Err(never) => match never {},
    };
    let bytes = body.collect().await.map_err(|error| failed(&error))?.to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
    if parts.status.is_success() { Ok(answer) } else { Err(ApiError::from_status(answer, parts.status)) }
}
