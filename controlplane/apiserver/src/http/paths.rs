//! Requests that are not about a resource: discovery, health, version, OpenAPI, metrics.

use api::version;
use bytes::Bytes;
use component::zpages::Page;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;

use super::body::Body;
use super::pipeline::Asked;
use super::{health, render, stored, zpages};
use crate::discovery;
use crate::error::{ApiError, Result};

pub async fn handle(asked: Asked, body: Bytes) -> Result<Response<Body>> {
    let path = asked.info.path.trim_end_matches('/').to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    if !matches!(asked.parts.method, Method::GET | Method::HEAD) {
        let known = path.is_empty() || listed(&asked).contains(&path);
        return Err(if known { ApiError::method_not_allowed() } else { ApiError::page_not_found() });
    }
    match parts.as_slice() {
        ["api"] | ["apis"] => discovery::root(&asked, parts[0] == "apis"),
        ["api", version] => discovery::resources(&asked, "", version),
        ["apis", group] => discovery::group(&asked, group),
        ["apis", group, version] => discovery::resources(&asked, group, version),
        ["openapi", "v3", "apis", group, version] if asked.api.aggregator.find(group, version).is_some() => {
            crate::aggregate::forward_document(asked, group, version, body).await
        }
        ["openapi", rest @ ..] => crate::openapi::serve::handle(&asked, rest),
        ["metrics"] => Ok(metrics_page(super::metrics::page(&asked.api))),
        ["metrics", "slis"] => Ok(metrics_page(asked.api.metrics.health.page())),
        ["debug", "api_priority_and_fairness", which] => {
            let details = !asked.query.text("includeRequestDetails").is_empty();
            let dump = asked.api.flow.dump(which, details).ok_or_else(ApiError::page_not_found)?;
            Ok(render::response(StatusCode::OK, "text/plain; charset=utf-8", dump))
        }
        ["version"] => Ok(render::raw_json(StatusCode::OK, &version::Info::new())),
        ["healthz" | "livez" | "readyz", ..] => health::handle(&asked, &parts).await,
        ["statusz"] => zpages::handle(&asked, Page::Statusz),
        ["flagz"] => zpages::handle(&asked, Page::Flagz),
        ["openid", "v1", "jwks"] => {
            let keys = asked.api.authn.keys.key_set().to_string();
            Ok(public(render::response(StatusCode::OK, "application/jwk-set+json", keys)))
        }
        [".well-known", "openid-configuration"] => {
            Ok(public(render::json(StatusCode::OK, &openid_configuration(&asked))))
        }
        ["skiff", "v1", "store", what] => stored::handle(&asked, what).await,
        [] | ["index.html"] => Ok(render::raw_json(StatusCode::OK, &json!({"paths": listed(&asked)}))),
        _ => Err(ApiError::page_not_found()),
    }
}

fn metrics_page(text: String) -> Response<Body> {
    render::response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// An answer that anybody may keep for an hour.
fn public(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

fn openid_configuration(asked: &Asked) -> serde_json::Value {
    let config = &asked.api.config;
    json!({
        "issuer": config.issuer,
        "jwks_uri": format!("https://{}/openid/v1/jwks", std::net::SocketAddr::new(config.advertise_address, config.port)),
        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": asked.api.authn.keys.algorithms(),
    })
}

const PATHS: &[&str] = &[
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/flagz",
    "/metrics",
    "/metrics/slis",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/skiff/v1/store/keys",
    "/skiff/v1/store/snapshot",
    "/statusz",
    "/version",
];

/// What the root lists, in alphabetical order.
pub fn listed(asked: &Asked) -> Vec<String> {
    let groups = discovery::groups(&asked.api.resources(), &asked.api.aggregator.remotes());
    let mut paths: Vec<String> = PATHS.iter().map(|path| (*path).to_owned()).chain(health::paths(&asked.api)).collect();
    for group in groups.iter().filter(|group| !group.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|version| format!("/apis/{}/{version}", group.name)));
    }
    paths.sort_unstable();
    paths
}
