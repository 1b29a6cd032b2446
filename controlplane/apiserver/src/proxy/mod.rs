//! Streams to and from nodes, pods and Services: logs, exec, attach, port-forward, proxy.
//!
//! [`target`] finds out where a request leads; [`dial`] connects. An upgraded connection (SPDY or
//! WebSocket) is tunnelled: bytes are copied in both directions, and never looked at. Logs, which the
//! kubelet knows as plain answers ([`log_socket`]), and watches ([`watch_socket`]) are put into a
//! WebSocket here. Links of proxied pages are made to lead through the proxy ([`rewrite`]).

pub mod dial;
mod log_socket;
mod rewrite;
pub mod socket;
pub mod target;
mod trust;
pub mod watch_socket;
pub mod words;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use self::target::Target;
pub use self::target::resolve;
use crate::admit::{Attributes, Operation};
use crate::authz;
use crate::error::{ApiError, Result};
use crate::http::body::{Body, BoxError};
use crate::http::pipeline::Asked;
use crate::http::resources::add_warnings;
use crate::server::Api;

/// A kubelet's complaint is passed on up to this many bytes.
const COMPLAINT: usize = 4096;

type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Answers a request that leads to a node, a pod or a Service.
pub async fn connect<B>(asked: Asked, body: B) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    may_create(&asked).await?;
    let (wish, mut warnings) = (asked.wish(), Vec::new());
    let admitted = admit(&asked, &mut warnings).await;
    let outcome = match admitted {
        Ok(options) => opened(asked, &options, body).await,
        Err(error) => Err(error),
    };
    if warnings.is_empty() {
        return outcome;
    }
    // Warnings also go along with refusals; what was upgraded is answered by the other side alone.
    let mut response = outcome.unwrap_or_else(|error| wish.refuse(&error));
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        add_warnings(&warnings, &mut response);
    }
    Ok(response)
}

/// Answers a request that was admitted with these options.
async fn opened<B>(asked: Asked, options: &Value, body: B) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let target = target::of(&asked, options).await?;
    let upgrades = asked.parts.headers.contains_key(header::UPGRADE);
    match asked.info.subresource.as_str() {
        "log" => {
            let unreached = |why| {
                let why = format!("Get \"https://{}{}\": {why}", target.host, target.path);
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", why)
            };
            pass(asked, &target, body).await?.map_err(unreached)
        }
        "proxy" if !upgrades => {
            if asked.info.rest.is_empty() && matches!(asked.parts.method, Method::GET | Method::HEAD) {
                return Ok(to_root(&asked));
            }
            let way = way(&asked, &target);
            let answer = pass(asked, &target, body).await?.map(|answer| through(way, answer));
            answer.map_err(|why| ApiError::unavailable(format!("error trying to reach service: {why}")))
        }
        "exec" | "attach" | "portforward" if !upgrades => Err(ApiError::bad_request("Upgrade request required")),
        _ => {
            let answer = pass(asked, &target, body).await?;
            let unreached = |why| {
                let why = format!("error dialing backend: {why}");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", why)
            };
            answer.map_err(unreached)
        }
    }
}

/// Who may only read pods may not run commands in them by way of a WebSocket, which begins as a GET
/// (`AuthorizePodWebsocketUpgradeCreatePermission`).
async fn may_create(asked: &Asked) -> Result<()> {
    let runs = matches!(asked.info.subresource.as_str(), "exec" | "attach" | "portforward");
    if !runs || asked.info.verb == "create" {
        return Ok(());
    }
    let request = authz::Request { verb: "create", ..authz::Request::from(&*asked.info) };
    let decision = asked.api.authz.decide(&asked.api, &asked.user, &request).await;
    decision.map(drop).map_err(|refused| match refused.failure {
        Some(why) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", why),
        None => request.refusal(&asked.user, &refused.reason),
    })
}

/// Relative links of a server's first page need the slash at the end of its path.
fn to_root(asked: &Asked) -> Response<Body> {
    let query = asked.parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = format!("{}/{query}", asked.info.path).parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// How the client reaches a proxied server.
fn way(asked: &Asked, target: &Target) -> rewrite::Way {
    let path = asked.info.path.as_str();
    rewrite::Way {
        prefix: path.strip_suffix(asked.info.rest.as_str()).unwrap_or(path).to_owned(),
        hosts: [target.host.clone(), asked.host()],
    }
}

/// A proxied server's answer, its links leading through the proxy. What it says of other origins
/// (CORS) is not for it to say here.
fn through(way: rewrite::Way, response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    for name in [
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::ACCESS_CONTROL_ALLOW_METHODS,
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ] {
        parts.headers.remove(name);
    }
    way.headers(&mut parts.headers);
    let body = match way.page(&parts.headers) {
        Some(page) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Body::stream(page.rewrite(body.into_data_stream()))
        }
        None => body,
    };
    Response::from_parts(parts, body)
}

/// Passes a request on to where `target` says; the inner error is why it could not be reached.
pub async fn pass<B>(mut asked: Asked, target: &Target, body: B) -> Result<std::result::Result<Response<Body>, String>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let log_socket =
        target.is_kubelet_call && asked.info.subresource == "log" && socket::is_asked_for(&asked.parts.headers);
    let upgrades = !log_socket && asked.parts.headers.contains_key(header::UPGRADE);
    let body: RequestBody = if target.takes_body && !upgrades {
        body.map_err(Into::into).boxed_unsync()
    } else {
        Empty::new().map_err(|never| match never {}).boxed_unsync()
    };
    let request = forwarded(&asked, target, upgrades, body)?;
    let response = match dial::send(&asked.api, target, request).await {
        Ok(response) => response,
        Err(why) => return Ok(Err(why)),
    };
    if upgrades && response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return tunnel(&mut asked, response).map(Ok);
    }
    // What a kubelet says of a stream that it does not begin reaches the client as it is.
    if target.is_kubelet_call && response.status().as_u16() >= 400 && !upgrades {
        return Err(complaint(&asked, response).await);
    }
    if log_socket && response.status().is_success() {
        return log_socket::answer(&mut asked, response).map(Ok);
    }
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers, false);
    let frames = body.into_data_stream();
    let frames = futures::TryStreamExt::map_err(frames, |error| -> BoxError { error.into() });
    // A log that is followed, a watch of another server: they end cleanly when this one stops.
    let frames = futures::StreamExt::take_until(frames, asked.api.stopping.clone().cancelled_owned());
    Ok(Ok(Response::from_parts(parts, Body::stream(frames))))
}

/// GETs a JSON document of a node's kubelet.
pub async fn ask_kubelet(api: &Api, node: &str, path: &str) -> std::result::Result<Value, String> {
    let (address, port) = target::kubelet(api, node).await.map_err(|error| error.message().to_owned())?;
    let target = Target::passing(dial::Security::Kubelet, address, port, path.to_owned());
    let (status, body) = dial::get(api, &target).await?;
    if !status.is_success() {
        return Err(format!("{path} of {} answered {status}", target.host));
    }
    serde_json::from_slice(&body).map_err(|error| format!("{path} of {} is no JSON: {error}", target.host))
}

/// Runs admission for `CONNECT`: what the connection is then opened with.
async fn admit(asked: &Asked, warnings: &mut Vec<String>) -> Result<Value> {
    let (api, info) = (&asked.api, &asked.info);
    if info.subresource == "log" {
        return Ok(Value::Null);
    }
    let resources = api.resources();
    let endpoint = resources.find("", "v1", &info.resource).ok_or_else(ApiError::no_such_path)?;
    let mut attributes = Attributes {
        user: &asked.user,
        descriptor: endpoint.descriptor(),
        group: "",
        version: "v1",
        subresource: &info.subresource,
        operation: Operation::Connect,
        namespace: if endpoint.descriptor().namespaced { &info.namespace } else { "" },
        name: &info.name,
        object: target::options(info, &asked.query)?,
        old: None,
        options: &Value::Null,
        dry_run: false,
        deadline: asked.deadline,
        patched: false,
        warnings: Vec::new(),
        audit: Vec::new(),
    };
    let outcome = admitted(api, &mut attributes).await;
    // Also what was noted of a request that is refused.
    if let Some(record) = &asked.record {
        attributes.audit.drain(..).for_each(|(key, value)| record.annotate(key, value));
    }
    warnings.append(&mut attributes.warnings);
    outcome.map(|()| attributes.object)
}

async fn admitted(api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
    for plugin in &api.admission {
        if plugin.handles(attributes) {
            plugin.mutate(attributes, api).await?;
        }
    }
    for plugin in &api.admission {
        if plugin.handles(attributes) {
            plugin.validate(attributes, api).await?;
        }
    }
    Ok(())
}

/// The request as the target gets it: without the client's credentials.
fn forwarded(asked: &Asked, target: &Target, upgrades: bool, body: RequestBody) -> Result<Request<RequestBody>> {
    let mut headers = asked.parts.headers.clone();
    strip_hop_by_hop(&mut headers, upgrades);
    if !upgrades {
        log_socket::strip(&mut headers);
    }
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::HOST);
    // The kubelet answers plain text to a client that takes anything.
    let impersonation: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("impersonate-") || name.as_str().starts_with("x-remote-"))
        .cloned()
        .collect();
    for name in impersonation {
        headers.remove(name);
    }
    if !target.takes_body {
        headers.remove(header::CONTENT_LENGTH);
    }
    if let Some(peer) = asked.peer
        && let Ok(value) = peer.ip().to_string().parse()
    {
        headers.append("x-forwarded-for", value);
    }
    let host = if target.keeps_host { asked.host() } else { target.host.clone() };
    if let Ok(host) = host.parse() {
        headers.insert(header::HOST, host);
    }
    headers.extend(target.headers.clone());
    let mut request = Request::new(body);
    *request.method_mut() = asked.parts.method.clone();
    *request.uri_mut() = target
        .path
        .parse()
        .map_err(|error| ApiError::bad_request(format!("the path {:?} is no URL: {error}", target.path)))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Headers that are about one connection only.
fn strip_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    for name in [
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    if !keep_upgrade {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
}

/// Answers 101 and copies bytes between the two upgraded connections until one ends.
fn tunnel(asked: &mut Asked, response: Response<hyper::body::Incoming>) -> Result<Response<Body>> {
    let client = asked.parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let client = client.ok_or_else(|| ApiError::bad_request("this connection cannot be upgraded; use HTTP/1.1"))?;
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = response.headers().clone();
    let backend = hyper::upgrade::on(response);
    let path = asked.info.path.clone();
    let stopping = asked.api.supervisor.token().clone();
    // The request is over for the audit log when the tunnel is.
    let record = asked.record.take();
    asked.api.supervisor.spawn("tunnel", async move {
        let _record = record;
        let (client, backend) = match tokio::try_join!(client, backend) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(path, %error, "an upgraded connection was not taken over");
                return;
            }
        };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        tokio::select! {
            () = stopping.cancelled() => {}
            copied = tokio::io::copy_bidirectional(&mut client, &mut backend) => {
                if let Err(error) = copied {
                    tracing::debug!(path, %error, "a tunnel ended");
                }
            }
        }
    });
    Ok(answer)
}

/// What a kubelet says went wrong, as a `Status`.
async fn complaint(asked: &Asked, response: Response<hyper::body::Incoming>) -> ApiError {
    let code = response.status();
    let text = http_body_util::Limited::new(response.into_body(), COMPLAINT).collect().await;
    let text = text.map(|text| String::from_utf8_lossy(&text.to_bytes()).trim().to_owned()).unwrap_or_default();
    if let Ok(status) = serde_json::from_str::<Value>(&text)
        && status["kind"] == "Status"
    {
        return ApiError::from_status(status, code);
    }
    match code {
        StatusCode::NOT_FOUND => {
            let message = if text.is_empty() {
                format!("the server could not find the requested resource ( pods/log {})", asked.info.name)
            } else {
                text
            };
            ApiError::new(code, "NotFound", message)
        }
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::FORBIDDEN => ApiError::new(code, "Forbidden", text),
        code if code.is_server_error() => {
            ApiError::internal(if text.is_empty() { format!("the node answered {code}") } else { text })
        }
        code => ApiError::new(code, "", text),
    }
}
