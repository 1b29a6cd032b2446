//! The pipeline as a `tower` service: how the server's own controllers, and everything else in
//! this process, reach the API. No TCP and no TLS; authorization and admission as for everybody.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::Body as ClientBody;

use super::body::Body;
use super::pipeline;
use crate::authn::UserInfo;
use crate::server::Api;

#[derive(Clone)]
pub struct Service {
    api: Arc<Api>,
    user: Arc<UserInfo>,
}

impl Service {
    pub fn new(api: Arc<Api>, user: UserInfo) -> Self {
        Self { api, user: Arc::new(user) }
    }
}

impl tower::Service<Request<ClientBody>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ClientBody>) -> Self::Future {
        let (api, user) = (self.api.clone(), self.user.clone());
        Box::pin(async move { Ok(pipeline::handle(api, request, pipeline::Caller::Trusted(user)).await) })
    }
}
