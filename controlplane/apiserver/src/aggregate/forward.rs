//! Passing a request on to a remote server, with the name of who asked.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::remote::Remote;
use crate::authn::UserInfo;
use crate::error::{ApiError, Result};
use crate::http::body::{Body, BoxError};
use crate::http::pipeline::Asked;
use crate::http::render;

/// Passes a request on under its own path.
pub async fn forward<B>(asked: Asked, remote: Arc<Remote>, body: B) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let path = asked.parts.uri.path_and_query().map_or_else(|| asked.info.path.clone(), ToString::to_string);
    forward_to(asked, &remote, path, body).await
}

/// Answers for a remote group version's OpenAPI v3 document.
pub async fn forward_document(asked: Asked, group: &str, version: &str, body: Bytes) -> Result<Response<Body>> {
    let remote = asked.api.aggregator.find(group, version).filter(|remote| remote.openapi().is_some());
    let remote = remote.ok_or_else(ApiError::no_such_path)?;
    forward(asked, remote, http_body_util::Full::new(body)).await
}

async fn forward_to<B>(asked: Asked, remote: &Remote, path: String, body: B) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if !remote.is_available() {
        return Ok(unavailable("service unavailable".to_owned()));
    }
    let mut target = match remote.target(&asked.api, path).await {
        Ok(target) => target,
        Err(error) => return Ok(unavailable(error.message().to_owned())),
    };
    identify(&mut target.headers, &asked.user);
    match crate::proxy::pass(asked, &target, body).await? {
        Ok(response) => Ok(response),
        Err(why) => Ok(unavailable(format!("error trying to reach service: {why}"))),
    }
}

/// Plain text, as upstream's aggregator answers.
fn unavailable(why: String) -> Response<Body> {
    render::response(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", why + "\n")
}

/// Adds the headers that say who asks (`X-Remote-*`).
pub fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let mut add = |name: &str, text: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(text)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        for value in values {
            add(&format!("x-remote-extra-{}", escaped(key)), value);
        }
    }
}

/// A key of `extra` as part of a header's name: what may not stand there is percent-encoded.
fn escaped(key: &str) -> String {
    key.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
            b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02x}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_said_in_headers() {
        let mut user = UserInfo::new("jane", &["dev", "system:authenticated"]);
        user.uid = "7".to_owned();
        user.extra.insert("example.com/a".to_owned(), vec!["1".to_owned(), "2".to_owned()]);
        let mut headers = HeaderMap::new();
        identify(&mut headers, &user);
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-uid"), ["7"]);
        assert_eq!(all("x-remote-group"), ["dev", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2fa"), ["1", "2"]);
    }
}
