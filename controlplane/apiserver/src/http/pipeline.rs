//! The way of a request: who, how much, may they, what; and errors as `Status`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use component::Supervisor;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::{Body, BoxError};
use super::info::RequestInfo;
use super::metrics::knows;
use super::negotiate::{Output, check_route, pretty};
use super::query::Query;
use super::tls::{Client, Shown};
use super::{paths, render, resources, socket_token};
use crate::audit::{Record, Stage};
use crate::authn::{self, UserInfo, impersonation};
use crate::authz;
use crate::error::{ApiError, Result};
use crate::flowcontrol::Ticket;
use crate::proxy::watch_socket;
use crate::resources::Endpoint;
use crate::server::Api;

/// Larger bodies are refused.
pub const MAX_BODY: usize = 3 << 20;
/// A client that sends more than it may is read to its end, up to this, so that it sees the answer
/// instead of a broken connection.
const MAX_DISCARDED: usize = 64 << 20;

static AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
static FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
static PRIORITY_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// What is known of a TLS connection.
pub struct Connection {
    /// None: it showed no certificate.
    pub client: Option<Client>,
    /// When that certificate ends, in seconds since 1970: the connection may live longer.
    pub ends: Option<i64>,
    pub peer: Option<SocketAddr>,
    /// It is to end once it has answered what was asked.
    pub ending: CancellationToken,
}

impl Connection {
    /// Who asks by this connection's certificate, if it says so.
    fn user(&self, api: &Api, headers: &HeaderMap) -> Result<Option<Arc<UserInfo>>> {
        let user = match self.client.as_ref().map_or(Shown::Nothing, Client::shown) {
            Shown::Nothing => return Ok(None),
            _ if self.has_ended(Timestamp::now()) => None,
            Shown::User(user) => return Ok(Some(user)),
            Shown::Bad => None,
            Shown::Proxy(name) => {
                let names = &api.config.requestheader;
                let user = names.user_of(headers).filter(|_| names.allows(&name));
                user.map(|user| Arc::new(authn::authenticated(user)))
            }
        };
        // The certificate is no client's: without a token it stands for nobody.
        let refused = user.is_none() && authn::token_of(headers).is_none();
        if refused { Err(ApiError::unauthorized()) } else { Ok(user) }
    }

    fn has_ended(&self, now: Timestamp) -> bool {
        self.ends.is_some_and(|ends| now.as_second() > ends)
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
    pub info: Arc<RequestInfo>,
    pub query: Arc<Query>,
    /// The resource it is about, if that is served here.
    pub endpoint: Option<Arc<Endpoint>>,
    pub parts: Parts,
    pub peer: Option<SocketAddr>,
    /// When it is given up; none for what goes on until the client leaves.
    pub deadline: Option<Instant>,
    /// Where it is noted for the audit log.
    pub record: Option<Arc<Record>>,
}

impl Asked {
    pub fn header(&self, name: header::HeaderName) -> &str {
        text(&self.parts.headers, &name)
    }

    pub fn accepts_gzip(&self) -> bool {
        // As upstream: with a weight, which may be 0, it does not count.
        self.header(header::ACCEPT_ENCODING).split(',').any(|part| part.trim() == "gzip")
    }

    /// The representation to answer in. `protobuf`: whether the resource has that one. `views`: whether
    /// the request may ask for tables and metadata.
    pub fn output(&self, protobuf: bool, views: bool) -> Result<Output> {
        let accept = self.header(header::ACCEPT);
        if self.endpoint.as_ref().is_some_and(|endpoint| !endpoint.descriptor().custom) {
            check_route(accept, matches!(self.info.verb.as_str(), "list" | "watch"))?;
        }
        Output::negotiate(accept, pretty(&self.query, self.user_agent()), protobuf, views)
    }

    /// How its errors are told.
    pub fn wish(&self) -> Wish {
        Wish::of(&self.parts.headers, &self.query, self.endpoint.as_deref())
    }

    /// The host that the client believes to talk to.
    pub fn host(&self) -> String {
        let authority = self.parts.uri.authority().map(|authority| authority.as_str());
        authority.unwrap_or_else(|| self.header(header::HOST)).to_owned()
    }

    pub fn user_agent(&self) -> &str {
        self.header(header::USER_AGENT)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What was found out about a request on its way, and is still needed when it has been answered.
#[derive(Default)]
struct Journey {
    record: Option<Arc<Record>>,
    ticket: Option<Ticket>,
    /// When the request is given up, if ever.
    deadline: Option<Instant>,
    /// UIDs of the flow schema and of the priority level.
    classified: Option<(HeaderValue, HeaderValue)>,
}

/// What a request is about.
struct Subject {
    info: RequestInfo,
    query: Query,
    endpoint: Option<Arc<Endpoint>>,
}

impl Subject {
    fn of(api: &Api, parts: &Parts) -> Self {
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let mut info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
        if info.is_resource && matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            let fields = api::selector::Selector::parse_fields(query.text("fieldSelector")).unwrap_or_default();
            info.take_name_from(fields.exact("metadata.name"));
        }
        let find = || api.resources().find(&info.group, &info.version, &info.resource).cloned();
        let endpoint = info.is_resource.then(find).flatten();
        Self { info, query, endpoint }
    }
}

/// The `Audit-Id` of a request: the client's, or a new one.
fn audit_id(parts: &Parts) -> Option<HeaderValue> {
    let sent = parts.headers.get(&AUDIT_ID).filter(|id| !id.is_empty()).cloned();
    let fresh = || {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        HeaderValue::from_str(uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text)).ok()
    };
    sent.or_else(fresh)
}

/// Answers one request. Never fails: what goes wrong becomes a `Status`.
pub async fn handle<B>(api: Arc<Api>, request: Request<B>, caller: Caller) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let id = audit_id(&parts);
    let head = parts.method == http::Method::HEAD;
    let subject = Subject::of(&api, &parts);
    let (info, query) = (&subject.info, &subject.query);
    let long = info.is_long_running();
    let applies = text(&parts.headers, &header::CONTENT_TYPE).starts_with("application/apply-patch");
    let served = subject.endpoint.as_ref().is_some_and(|found| knows(found.descriptor(), &info.subresource));
    let mut underway = api.metrics.begin(info, served, query.text("dryRun") == "All", applies);
    let mut journey = Journey::default();
    let audit_id = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
    let wish = Wish::of(&parts.headers, query, subject.endpoint.as_deref());
    let outcome = {
        // Pinned where it is: a future is copied whenever it is moved.
        let answer = std::pin::pin!(answer(api.clone(), parts, body, caller, subject, (audit_id, &mut journey)));
        std::panic::AssertUnwindSafe(answer).catch_unwind().await
    };
    let (mut response, stage) = match outcome {
        Ok(answer) => (answer.unwrap_or_else(|error| wish.refuse(&error)), Stage::ResponseComplete),
        Err(_) => {
            let why = "This request caused apiserver to panic. Look in the logs for details";
            (wish.refuse(&ApiError::internal(why)), Stage::Panic)
        }
    };
    if let Some(record) = journey.record.take() {
        response = Box::pin(audited(record, response, stage, long)).await;
    }
    if let Some(id) = id {
        response.headers_mut().insert(&AUDIT_ID, id);
    }
    if let Some((schema, level)) = journey.classified.take() {
        response.headers_mut().insert(&FLOW_SCHEMA, schema);
        response.headers_mut().insert(&PRIORITY_LEVEL, level);
    }
    underway.answered(response.status().as_u16());
    if long {
        drop(journey);
        return response.map(|body| body.holding(underway));
    }
    if head {
        return response.map(|_| Body::empty());
    }
    let streams = matches!(response.body(), Body::Stream(_));
    if let Some(deadline) = journey.deadline.filter(|_| streams) {
        response = seated(&api.supervisor, response, (journey.ticket.take(), deadline));
    }
    let held = (underway, journey);
    response.map(|body| body.holding(held))
}

/// Lets a request keep its seats until its answer has been sent, but not after its deadline: a client that
/// reads no more would keep them for ever.
fn seated(
    supervisor: &Supervisor,
    response: Response<Body>,
    (seats, deadline): (impl Send + 'static, Instant),
) -> Response<Body> {
    let sent = CancellationToken::new();
    let sending = sent.clone().drop_guard();
    supervisor.spawn("seats of an answer", async move {
        let _ = tokio::time::timeout_at(deadline, sent.cancelled()).await;
        drop(seats);
    });
    response.map(|body| body.holding(sending))
}

/// Notes how a request was answered; it is over when its answer has been sent.
async fn audited(record: Arc<Record>, mut response: Response<Body>, stage: Stage, long: bool) -> Response<Body> {
    let code = response.status().as_u16();
    if record.wants_response() && !long {
        let (parts, body) = response.into_parts();
        let body = match body.collect().await {
            Ok(whole) => {
                let bytes = whole.to_bytes();
                if let Some(object) = render::decode(&parts.headers, &bytes) {
                    record.response_object(object);
                }
                Body::from(bytes)
            }
            // Half an answer is not to pass for a whole one.
            Err(error) => Body::stream(futures::stream::once(std::future::ready(Err(error)))),
        };
        response = Response::from_parts(parts, body);
    }
    let told = response.extensions_mut().remove::<render::Told>();
    record.answered(code, told.map(|told| told.0));
    if long {
        record.stage(Stage::ResponseStarted);
    }
    match response.body() {
        Body::Stream(_) => response.map(|body| body.holding(record)),
        Body::Full(_) if response.status() == StatusCode::SWITCHING_PROTOCOLS => response,
        Body::Full(_) => {
            record.end(stage).await;
            response
        }
    }
}

/// How a client wants to be told of an error.
pub struct Wish {
    accept: Option<HeaderValue>,
    pretty: bool,
    protobuf: bool,
}

impl Wish {
    pub fn of(headers: &HeaderMap, query: &Query, endpoint: Option<&Endpoint>) -> Self {
        Self {
            accept: headers.get(header::ACCEPT).cloned(),
            pretty: pretty(query, text(headers, &header::USER_AGENT)),
            protobuf: endpoint.is_none_or(|endpoint| !endpoint.descriptor().custom),
        }
    }

    /// An error as the client gets it: in its own representation, or in indented JSON if it takes none.
    pub fn refuse(&self, error: &ApiError) -> Response<Body> {
        let mut response = match error.page() {
            Some(page) => render::page(error.code(), page),
            None => self.status(error),
        };
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

    fn status(&self, error: &ApiError) -> Response<Body> {
        let accept = self.accept.as_ref().and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let output = Output::negotiate(accept, self.pretty, self.protobuf, false);
        let output = output.unwrap_or(Output { pretty: true, ..Output::plain() });
        let status = error.to_status();
        let response = match render::encode(&status, &output) {
            Ok(bytes) => render::response(error.code(), output.media.name(), bytes),
            Err(_) => render::json(error.code(), &status),
        };
        render::telling(response, status)
    }
}

async fn answer<B>(
    api: Arc<Api>,
    mut parts: Parts,
    body: B,
    caller: Caller,
    Subject { info, query, endpoint }: Subject,
    (audit_id, journey): (&str, &mut Journey),
) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let peer = match &caller {
        Caller::Trusted(_) => None,
        Caller::Remote(connection) => connection.peer,
    };
    socket_token::unwrap(&mut parts.headers)?;
    let begin =
        |user: &UserInfo| api.audit.as_ref()?.begin(audit_id, user, (&parts, &info), peer.map(|peer| peer.ip()));
    let user = match caller {
        Caller::Trusted(user) => user,
        Caller::Remote(connection) => {
            let certified = connection.user(&api, &parts.headers);
            let found = match certified {
                Ok(certified) => api.authn.identify(&api, &parts.headers, certified, &info.path).await,
                Err(error) => Err(error),
            };
            // HTTP/2 lets a client ask for much at little cost: who has not said who they are gets one
            // connection for one request.
            let known = found.as_ref().is_ok_and(|user| !user.is_anonymous());
            if parts.version == http::Version::HTTP_2 && !known {
                connection.ending.cancel();
            }
            match found {
                Ok(user) => user,
                Err(error) => {
                    journey.record = begin(&UserInfo::default());
                    return Err(error);
                }
            }
        }
    };
    journey.record = begin(&user);
    if let Some(record) = &journey.record {
        record.stage(Stage::RequestReceived);
    }
    let user = impersonation::apply(&api, user, &parts.headers, (&info, journey.record.as_deref())).await?;
    let long = info.is_long_running();
    let limit = if long { Duration::MAX } else { time_limit(&query, api.config.options.request_timeout)? };
    let info = Arc::new(info);
    enter(&api, &user, &info, &query, journey).await?;
    let uri = parts.uri.path_and_query().map_or("/", |uri| uri.as_str());
    authorize(&api, &user, &info, (&query, uri), journey.record.as_deref()).await?;
    let record = journey.record.clone();
    let query = Arc::new(query);
    // No deadline: none, and one that is further than the clock goes.
    let deadline = if long { None } else { Instant::now().checked_add(limit) };
    journey.deadline = deadline;
    let asked = Asked { api, user, info, query, endpoint, parts, peer, deadline, record };
    let Some(deadline) = deadline else { return dispatch(asked, body).await };
    let answer = std::pin::pin!(dispatch(asked, body));
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ApiError::timeout("request did not complete within the allotted timeout")),
    }
}

/// How long a request may take: what its `timeout` says, but not longer than `most`.
fn time_limit(query: &Query, most: Duration) -> Result<Duration> {
    let asked = query.text("timeout");
    if asked.is_empty() {
        return Ok(most);
    }
    let nanos = crate::schema::go_duration(asked)
        .map_err(|why| ApiError::bad_request(format!("invalid timeout specified in the request URL - {why}")))?;
    // 0 and less: no wish at all.
    let asked = u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    Ok(asked.map_or(most, |asked| asked.min(most)))
}

/// Takes the request's seats; of the long-running ones only watches, while they begin, need any.
async fn enter(
    api: &Api,
    user: &Arc<UserInfo>,
    info: &Arc<RequestInfo>,
    query: &Query,
    journey: &mut Journey,
) -> Result<()> {
    if info.is_long_running() && info.verb != "watch" {
        return Ok(());
    }
    match api.flow.enter(api, user, info, query).await {
        Ok(ticket) => {
            let classified = |ticket: &Ticket| (ticket.schema().shown.clone(), ticket.level().shown.clone());
            journey.classified = ticket.as_ref().map(classified);
            journey.ticket = ticket;
            Ok(())
        }
        Err(rejection) => {
            journey.classified = Some(rejection.classified);
            let why = "Too many requests, please try again later.";
            Err(ApiError::too_many_requests(why, rejection.retry_after))
        }
    }
}

async fn authorize(
    api: &Api,
    user: &UserInfo,
    info: &RequestInfo,
    (query, uri): (&Query, &str),
    record: Option<&Record>,
) -> Result<()> {
    let mut request = authz::Request::from(info);
    if info.is_resource && matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
        request.field_selector = query.text("fieldSelector");
        request.label_selector = query.text("labelSelector");
    }
    let decision = api.authz.decide(api, user, &request).await;
    if let Some(record) = record {
        let (decision, reason) = match &decision {
            Ok(reason) => (Some("allow"), &**reason),
            Err(refused) if refused.failure.is_some() => (None, "internal error"),
            Err(refused) => (Some("forbid"), refused.reason.as_str()),
        };
        if let Some(decision) = decision {
            record.annotate("authorization.k8s.io/decision", decision);
        }
        record.annotate("authorization.k8s.io/reason", reason);
    }
    decision.map(|_| ()).map_err(|refused| match refused.failure {
        Some(why) => ApiError::internal_page(harmless(&format!("Internal Server Error: {uri:?}: {why}"))),
        None => request.refusal(user, &refused.reason),
    })
}

/// Text that no browser takes for a page of its own.
fn harmless(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

async fn dispatch<B>(mut asked: Asked, body: B) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if let Some(remote) = crate::aggregate::route(&asked) {
        return Box::pin(crate::aggregate::forward(asked, remote, body)).await;
    }
    if resources::takes_connection(&asked) {
        return Box::pin(crate::proxy::connect(asked, body)).await;
    }
    // A watch has no body: one that is announced and does not come would keep its seats.
    let body = if asked.info.verb == "watch" { Bytes::new() } else { collect(&asked.parts, body).await? };
    if let Some(record) = &asked.record
        && asked.info.is_resource
        && record.wants_request()
        && let Some(object) = resources::parse_any(&asked, &body)
    {
        record.request_object(object);
    }
    if asked.info.is_resource {
        let answer = resources::handle(&asked, body).await?;
        if watch_socket::is_asked_for(&asked) { watch_socket::answer(&mut asked, answer) } else { Ok(answer) }
    } else {
        Box::pin(paths::handle(asked, body)).await
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_does_not_outlive_its_certificate() {
        let connection = |ends| Connection { client: None, ends, peer: None, ending: CancellationToken::new() };
        let now = Timestamp::from_second(1000).unwrap();
        for (ends, ended) in [(None, false), (Some(1000), false), (Some(999), true)] {
            assert_eq!(connection(ends).has_ended(now), ended, "{ends:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_no_more_does_not_keep_its_seats() {
        let (supervisor, seat) = (Supervisor::new("test"), Arc::new(()));
        let answer = || Response::new(Body::stream(futures::stream::pending()));
        let given_back = async || {
            while Arc::strong_count(&seat) > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let soon = Instant::now() + Duration::from_millis(20);
        let unread = seated(&supervisor, answer(), (seat.clone(), soon));
        given_back().await;
        drop(unread);
        // What has been sent gives them back at once.
        let late = Instant::now() + Duration::from_secs(3600);
        let read = seated(&supervisor, answer(), (seat.clone(), late));
        assert_eq!(Arc::strong_count(&seat), 2);
        drop(read);
        given_back().await;
    }
}
