//! The pipeline as a `tower` service: how the server's own controllers, and everything else in
//! this process, reach the API. No TCP and no TLS; authorization and admission as for everybody.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use kube::client::Body as ClientBody;

use super::body::Body;
use super::pipeline;
use crate::authn::UserInfo;
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
        "system:kube-scheduler" => "kube-scheduler/v1.37.0",
        "system:kube-controller-manager" => "kube-controller-manager/v1.37.0",
        controller if controller.starts_with("system:serviceaccount:kube-system:") => "kube-controller-manager/v1.37.0",
        _ => "kube-apiserver/v1.37.0",
    }
}

impl tower::Service<Request<ClientBody>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<ClientBody>) -> Self::Future {
        request.headers_mut().entry(header::USER_AGENT).or_insert_with(|| self.agent.clone());
        let (api, user) = (self.api.clone(), self.user.clone());
        Box::pin(async move { Ok(pipeline::handle(api, request, pipeline::Caller::Trusted(user)).await) })
    }
}
