//! What a proxied server says of its own places, as the client finds them: below the path of the proxy
//! (`k8s.io/apimachinery/pkg/util/proxy`).

use std::io::Read;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};

use super::html;
use super::target::Target;
use crate::error::{ApiError, Result};
use crate::http::body::{Body, BoxError};
use crate::http::pipeline::Asked;

/// Of a page whose links are rewritten, in bytes; longer ones are not passed on.
const MAX_PAGE: usize = 64 << 20;

/// A plain request, below the path of the proxy.
pub async fn pass<B>(mut asked: Asked, target: &Target, body: B) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if asked.info.rest.is_empty() && matches!(asked.parts.method, Method::GET | Method::HEAD) {
        return Ok(redirect(&asked.parts.uri));
    }
    let uri = asked.parts.uri.path();
    let places = Places {
        prefix: uri.strip_suffix(&*asked.info.rest).unwrap_or(uri).to_owned(),
        target: target.host.clone(),
        client: asked.host(),
    };
    if let Ok(uri) = HeaderValue::from_str(uri) {
        asked.parts.headers.insert("x-forwarded-uri", uri);
    }
    let answer = super::pass(asked, target, body).await?;
    let mut answer = answer.map_err(|why| ApiError::unavailable(format!("error trying to reach service: {why}")))?;
    places.rewrite(answer.headers_mut());
    if is_page(answer.headers()) { places.rewrite_page(answer).await } else { Ok(answer) }
}

/// HTML in a form that can be read, and that is no redirect.
fn is_page(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
    kind == "text/html"
        && matches!(text(header::CONTENT_ENCODING), "" | "gzip")
        && !headers.contains_key(header::LOCATION)
}

/// Relative links of the page at `proxy/` would be wrong at `proxy`.
fn redirect(uri: &Uri) -> Response<Body> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Where the proxied server is, and where it seems to be.
struct Places {
    /// The path of the proxy: `/api/v1/namespaces/default/services/web/proxy`.
    prefix: String,
    /// Hosts that mean the server itself: its own address, and the host that the client sees.
    target: String,
    client: String,
}

impl Places {
    fn rewrite(&self, headers: &mut HeaderMap) {
        // Who may read across origins is this server's decision.
        for name in [
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            header::ACCESS_CONTROL_ALLOW_METHODS,
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
        ] {
            headers.remove(name);
        }
        let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
        let seen = location.map(|location| self.seen(location));
        if let Some(Ok(seen)) = seen.map(|seen| HeaderValue::from_str(&seen)) {
            headers.insert(header::LOCATION, seen);
        }
    }

    /// The page with its links; what is no text is passed on as it is.
    async fn rewrite_page(&self, answer: Response<Body>) -> Result<Response<Body>> {
        let (mut parts, body) = answer.into_parts();
        let failed =
            |why: &dyn std::fmt::Display| ApiError::unavailable(format!("error trying to reach service: {why}"));
        let bytes = Limited::new(body, MAX_PAGE).collect().await.map_err(|error| failed(&error))?.to_bytes();
        let mut page = String::new();
        let read = match parts.headers.contains_key(header::CONTENT_ENCODING) {
            true => GzDecoder::new(&bytes[..]).take(MAX_PAGE as u64).read_to_string(&mut page),
            false => (&bytes[..]).read_to_string(&mut page),
        };
        if !read.is_ok_and(|length| length < MAX_PAGE) {
            return Ok(Response::from_parts(parts, bytes.into()));
        }
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::CONTENT_ENCODING);
        Ok(Response::from_parts(parts, html::rewrite_links(&page, |url| self.seen(url)).into()))
    }

    /// A URL that the server names, as it leads there from outside.
    fn seen(&self, url: &str) -> String {
        let absolute = url.split_once("://").map(|(_, rest)| rest).or_else(|| url.strip_prefix("//"));
        let (host, path) = absolute.map_or(("", url), |rest| rest.split_at(rest.find('/').unwrap_or(rest.len())));
        let own = host.is_empty() || host == self.target || host == self.client;
        if !own || !path.starts_with('/') {
            return url.to_owned();
        }
        let path = if path.starts_with(&self.prefix) { path.to_owned() } else { format!("{}{path}", self.prefix) };
        match url.find(host).filter(|_| !host.is_empty() && host == self.client) {
            Some(at) => format!("{}{path}", &url[..at + host.len()]),
            None => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_places_lead_through_the_proxy() {
        let places = Places {
            prefix: "/api/v1/namespaces/a/services/web/proxy".to_owned(),
            target: "10.42.0.7:80".to_owned(),
            client: "localhost:8001".to_owned(),
        };
        for (named, seen) in [
            ("/login?to=/", "/api/v1/namespaces/a/services/web/proxy/login?to=/"),
            ("http://10.42.0.7:80/x/", "/api/v1/namespaces/a/services/web/proxy/x/"),
            ("http://localhost:8001/x", "http://localhost:8001/api/v1/namespaces/a/services/web/proxy/x"),
            ("/api/v1/namespaces/a/services/web/proxy/x", "/api/v1/namespaces/a/services/web/proxy/x"),
            ("https://example.com/x", "https://example.com/x"),
            ("//example.com/x", "//example.com/x"),
            ("x/y", "x/y"),
        ] {
            assert_eq!(places.seen(named), seen, "{named}");
        }
    }

    #[test]
    fn the_root_ends_with_a_slash() {
        let moved = redirect(&Uri::from_static("/api/v1/nodes/n/proxy?a=b"));
        assert_eq!(moved.status(), StatusCode::MOVED_PERMANENTLY);
        assert_eq!(moved.headers()["location"], "/api/v1/nodes/n/proxy/?a=b");
    }
}
