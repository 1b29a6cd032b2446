//! The way of a request: who, how much, may they, what; and errors as `Status`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;

use super::body::{Body, BoxError};
use super::info::RequestInfo;
use super::limits::is_long_running;
use super::query::Query;
use super::tls::Shown;
use super::{paths, render, resources};
use crate::authn::{UserInfo, impersonation};
use crate::authz;
use crate::error::{ApiError, Result};
use crate::server::Api;

/// Larger bodies are refused.
pub const MAX_BODY: usize = 3 << 20;
/// A client that sends more than it may is read to its end, up to this, so that it sees the answer
/// instead of a broken connection.
const MAX_DISCARDED: usize = 64 << 20;

/// What is known of a TLS connection.
pub struct Connection {
    /// Whom its client certificate stands for.
    pub shown: Shown,
    pub peer: Option<SocketAddr>,
}

impl Connection {
    /// Who asks by this connection's certificate, if it says so.
    fn user(&self, api: &Api, headers: &HeaderMap) -> Result<Option<UserInfo>> {
        match &self.shown {
            Shown::Nothing => Ok(None),
            Shown::User(user) => Ok(Some(user.clone())),
            Shown::Proxy(name) => {
                let names = &api.config.requestheader;
                let user = names.user_of(headers).filter(|_| names.allows(name));
                // The certificate is no client's: without a token it stands for nobody.
                let refused = user.is_none() && !headers.contains_key(header::AUTHORIZATION);
                if refused { Err(ApiError::unauthorized()) } else { Ok(user) }
            }
        }
    }
}

/// Where a request comes from.
pub enum Caller {
    /// A part of this process, as this user.
    Trusted(Arc<UserInfo>),
    Remote(Arc<Connection>),
}

/// A request whose body has not been read, with what was found out about it.
pub struct Asked {
    pub api: Arc<Api>,
    pub user: Arc<UserInfo>,
    pub info: RequestInfo,
    pub query: Query,
    pub parts: Parts,
    pub peer: Option<SocketAddr>,
}

impl Asked {
    pub fn header(&self, name: header::HeaderName) -> &str {
        text(&self.parts.headers, &name)
    }

    pub fn accepts_gzip(&self) -> bool {
        self.header(header::ACCEPT_ENCODING).split(',').any(|part| part.trim().starts_with("gzip"))
    }

    pub fn user_agent(&self) -> &str {
        self.header(header::USER_AGENT)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Answers one request. Never fails: what goes wrong becomes a `Status`.
pub async fn handle<B>(api: Arc<Api>, request: Request<B>, caller: Caller) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let audit = parts.headers.get("audit-id").cloned();
    let head = parts.method == http::Method::HEAD;
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
    let started = Instant::now();
    let counted = RequestInfo { name: String::new(), namespace: String::new(), ..info.clone() };
    let mut response = match answer(api.clone(), parts, body, caller, (info, query)).await {
        Ok(response) => response,
        Err(error) => refuse(&error),
    };
    api.metrics.record(&counted, response.status().as_u16(), started.elapsed());
    let audit = audit.or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
    if let Some(audit) = audit {
        response.headers_mut().insert("audit-id", audit);
    }
    if head { response.map(|_| Body::empty()) } else { response }
}

/// An error as the client gets it.
pub fn refuse(error: &ApiError) -> Response<Body> {
    let mut response = render::json(error.code(), &error.to_status());
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if error.code() == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kubernetes\""));
    }
    response
}

async fn answer<B>(
    api: Arc<Api>,
    parts: Parts,
    body: B,
    caller: Caller,
    (mut info, query): (RequestInfo, Query),
) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if info.is_resource && matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
        let fields = api::selector::Selector::parse_fields(query.text("fieldSelector")).unwrap_or_default();
        info.take_name_from(fields.exact("metadata.name"));
    }
    let (user, peer) = match caller {
        Caller::Trusted(user) => (user, None),
        Caller::Remote(connection) => {
            let certified = connection.user(&api, &parts.headers)?;
            let user = api.authn.identify(&api, &parts.headers, certified.as_ref()).await?;
            (Arc::new(user), connection.peer)
        }
    };
    let user = impersonation::apply(&api, user, &parts.headers).await?;
    let _place = if user.in_group("system:masters") { None } else { api.limits.admit(&info)? };
    authorize(&api, &user, &info).await?;
    let limit = api.config.request_timeout;
    let long = is_long_running(&info);
    let asked = Asked { api, user, info, query, parts, peer };
    if long {
        return dispatch(asked, body).await;
    }
    match tokio::time::timeout(limit, dispatch(asked, body)).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(ApiError::timeout(format!("request did not complete within the allowed {} seconds", limit.as_secs())))
        }
    }
}

async fn authorize(api: &Api, user: &UserInfo, info: &RequestInfo) -> Result<()> {
    let request = authz::Request::from(info);
    api.authz.decide(api, user, &request).await.map_err(|reason| request.refusal(user, &reason))
}

async fn dispatch<B>(asked: Asked, body: B) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if let Some(remote) = crate::aggregate::route(&asked) {
        return crate::aggregate::forward(asked, remote, body).await;
    }
    if resources::takes_connection(&asked) {
        return crate::proxy::connect(asked, body).await;
    }
    let body = collect(&asked.parts, body).await?;
    if asked.info.is_resource { resources::handle(asked, body).await } else { paths::handle(asked, body).await }
}

async fn collect<B>(parts: &Parts, body: B) -> Result<Bytes>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let announced = text(&parts.headers, &header::CONTENT_LENGTH).parse::<usize>().unwrap_or(0);
    let mut body = std::pin::pin!(body);
    let mut kept = BytesMut::with_capacity(announced.min(MAX_BODY));
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::bad_request(format!("reading the request body: {}", error.into())))?;
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        if seen <= MAX_BODY {
            kept.extend_from_slice(data);
        } else if seen > MAX_DISCARDED {
            break;
        }
    }
    if seen > MAX_BODY {
        return Err(ApiError::too_large(format!("Request entity too large: limit is {MAX_BODY}")));
    }
    Ok(kept.freeze())
}
