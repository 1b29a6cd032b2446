//! `/openapi/v2` and `/openapi/v3`: which document, in which form, and what of it is cached where.

use http::{HeaderValue, Response, StatusCode, header};

use super::{Document, Source, V2_PROTOBUF, V2Format};
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;
use crate::http::render;
use crate::resources::Resources;
use crate::schema::Schema;

/// Answers a GET below `/openapi`; `parts` are the path's segments after it.
pub fn handle(asked: &Asked, parts: &[&str]) -> Result<Response<Body>> {
    let openapi = &asked.api.openapi;
    openapi.follow(&asked.api.resources());
    match parts {
        ["v2"] => {
            let remotes = asked.api.aggregator.remotes();
            openapi.set_foreign(remotes.iter().filter_map(|remote| remote.openapi_v2()).collect());
            answer(asked, &openapi.v2(v2_format(asked.header(header::ACCEPT))?), false)
        }
        ["v3"] => {
            accepts_json(asked)?;
            answer(asked, &with_remotes(asked, openapi.v3_index()), false)
        }
        ["v3", rest @ ..] => {
            accepts_json(asked)?;
            let path = rest.join("/");
            let current = openapi.v3_hash(&path).ok_or_else(ApiError::page_not_found)?;
            let wanted = asked.query.get("hash").unwrap_or_default();
            if !wanted.is_empty() && wanted != current {
                return Ok(redirect(&path, &current));
            }
            let document = openapi.v3(&path).ok_or_else(ApiError::page_not_found)?;
            answer(asked, &document, !wanted.is_empty())
        }
        _ => Err(ApiError::page_not_found()),
    }
}

/// The index with the documents of other servers.
fn with_remotes(asked: &Asked, own: Document) -> Document {
    let remotes = asked.api.aggregator.remotes();
    let found = remotes.iter().filter_map(|remote| {
        let path = format!("apis/{}/{}", remote.group, remote.version);
        let url = match remote.openapi()? {
            query if query.is_empty() => format!("/openapi/v3/{path}"),
            query => format!("/openapi/v3/{path}?{query}"),
        };
        Some((path, serde_json::json!({"serverRelativeURL": url})))
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        return own;
    }
    let mut index: serde_json::Value = serde_json::from_slice(&own.plain()).unwrap_or_default();
    for (path, entry) in found {
        index["paths"][path] = entry;
    }
    super::small_document(&index)
}

/// The first form that the client takes and we have.
fn v2_format(accept: &str) -> Result<V2Format> {
    for clause in accept.split(',').map(|clause| clause.split(';').next().unwrap_or_default().trim()) {
        match clause {
            V2_PROTOBUF | "application/com.github.proto-openapi.spec.v2@v1.0+protobuf" => {
                return Ok(V2Format::Protobuf);
            }
            "application/json" | "*/*" | "application/*" | "" => return Ok(V2Format::Json),
            _ => {}
        }
    }
    Err(ApiError::not_acceptable(&["application/json", V2_PROTOBUF]))
}

fn accepts_json(asked: &Asked) -> Result<()> {
    let accept = asked.header(header::ACCEPT);
    let mut clauses = accept.split(',').map(|clause| clause.split(';').next().unwrap_or_default().trim());
    if clauses.any(|clause| matches!(clause, "" | "*/*" | "application/*" | "application/json")) {
        return Ok(());
    }
    Err(ApiError::not_acceptable(&["application/json"]))
}

/// A hash that is no longer right leads to the one that is.
fn redirect(path: &str, hash: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("/openapi/v3/{path}?hash={hash}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn answer(asked: &Asked, document: &Document, immutable: bool) -> Result<Response<Body>> {
    let same = asked.header(header::IF_NONE_MATCH).split(',').any(|tag| tag.trim() == document.etag);
    let mut response = if same {
        let mut response = render::response(StatusCode::NOT_MODIFIED, document.content_type, Body::empty());
        response.headers_mut().remove(header::CONTENT_TYPE);
        response
    } else if asked.accepts_gzip() {
        let mut response = render::response(StatusCode::OK, document.content_type, document.gzip.clone());
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        render::response(StatusCode::OK, document.content_type, document.plain())
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if let Ok(etag) = HeaderValue::from_str(&document.etag) {
        headers.insert(header::ETAG, etag);
    }
    if immutable {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        // Without it kubectl's cache would ask again each time.
        let in_a_year = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
        if let Ok(date) = in_a_year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string().parse() {
            headers.insert(header::EXPIRES, date);
        }
    }
    Ok(response)
}

/// What the served resources have to say of themselves.
pub fn sources(resources: &Resources) -> Vec<Source> {
    resources
        .all()
        .iter()
        // metrics.k8s.io has no schemas, as metrics-server has none.
        .filter(|endpoint| endpoint.descriptor().custom || endpoint.hub_schema().is_some())
        .map(|endpoint| {
            let descriptor = endpoint.resource.descriptor.clone();
            let schemas = descriptor.served.iter().filter(|_| descriptor.custom).filter_map(|served| {
                match endpoint.schema(&served.group, &served.version) {
                    Some(Schema::Custom(schema)) => Some((served.version.to_string(), schema.source.clone()?)),
                    _ => None,
                }
            });
            Source { schemas: schemas.collect(), descriptor: descriptor.clone() }
        })
        .collect()
}
