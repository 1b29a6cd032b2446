//! Requests on resources: finds the endpoint, reads the body, calls the registry, renders.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::body::Body;
use super::info::RequestInfo;
use super::negotiate::{Media, Output, View};
use super::options::{WriteKind, WriteOptions, check_list};
use super::pipeline::Asked;
use super::render;
use crate::error::{ApiError, Result};
use crate::registry::delete::DeleteOptions;
use crate::registry::patch::{Patch, PatchType};
use crate::registry::write::{Replace, Written};
use crate::registry::{Call, subresource};
use crate::resources::Endpoint;
use crate::schema::{self, ContentType};

/// Warnings sent at most, and their total length.
const MOST_WARNINGS: usize = 50;

/// Subresources that take over the connection or stream to and from a node.
pub fn takes_connection(asked: &Asked) -> bool {
    connects(&asked.info)
}

fn connects(info: &RequestInfo) -> bool {
    // The old paths of watching lead to nothing of the kind: the right to watch would do for a POST.
    let by_old_path = matches!(info.verb.as_str(), "watch" | "proxy");
    info.is_resource
        && !by_old_path
        && info.group.is_empty()
        && match info.resource.as_str() {
            "pods" => matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "log" | "proxy"),
            "services" | "nodes" => info.subresource == "proxy",
            _ => false,
        }
}

/// Answers a request on a resource that the server itself holds.
pub async fn handle(asked: &Asked, body: Bytes) -> Result<Response<Body>> {
    let Some(endpoint) = &asked.endpoint else { return Err(asked.api.resources().nothing_in(&asked.info.group)) };
    check_path(asked, endpoint)?;
    let call = call(asked, endpoint.clone())?;
    let served = call.descriptor().find_served(&call.info.group, &call.info.version);
    if let Some(warning) = served.and_then(|served| served.deprecation.as_deref()) {
        call.warn(warning);
    }
    let call = Arc::new(call);
    // Warnings also go along with refusals.
    let mut response = route(asked, call.clone(), body).await.unwrap_or_else(|error| asked.wish().refuse(&error));
    add_warnings(&call.warnings.lock(), &mut response);
    Ok(response)
}

fn check_path(asked: &Asked, endpoint: &Endpoint) -> Result<()> {
    let (info, descriptor) = (&asked.info, endpoint.descriptor());
    let nothing = || if descriptor.custom { ApiError::page_not_found() } else { ApiError::no_such_path() };
    let in_namespace = !info.namespace.is_empty() && info.resource != "namespaces";
    if in_namespace && !descriptor.namespaced {
        return Err(nothing());
    }
    if descriptor.namespaced && info.namespace.is_empty() {
        if info.path_has_name() {
            return Err(nothing());
        }
        if !matches!(info.verb.as_str(), "list" | "watch") {
            return Err(if descriptor.custom { nothing() } else { ApiError::method_not_allowed() });
        }
    }
    if info.verb.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    Ok(())
}

fn call(asked: &Asked, endpoint: Arc<Endpoint>) -> Result<Call> {
    let write = match asked.info.verb.as_str() {
        "create" => Some(WriteKind::Create),
        "update" => Some(WriteKind::Update),
        "patch" if is_apply(asked) => Some(WriteKind::Apply),
        // Of another media type than a patch's, which is refused first.
        "patch" => PatchType::parse(media_type(asked)).map(|_| WriteKind::Patch),
        _ => None,
    };
    let options = write.map(|kind| WriteOptions::parse(&asked.query, kind)).transpose()?.unwrap_or_default();
    let manager = if asked.info.is_read_only() {
        String::new()
    } else if options.field_manager.is_empty() {
        let agent = asked.user_agent().split('/').next().filter(|agent| !agent.is_empty()).unwrap_or("unknown");
        agent.char_indices().nth(128).map_or(agent, |(end, _)| &agent[..end]).to_owned()
    } else {
        options.field_manager.clone()
    };
    Ok(Call {
        api: asked.api.clone(),
        endpoint,
        user: asked.user.clone(),
        info: asked.info.clone(),
        query: asked.query.clone(),
        options,
        manager,
        applies: is_apply(asked),
        now: Timestamp::now(),
        deadline: asked.deadline,
        warnings: Mutex::default(),
        record: asked.record.clone(),
    })
}

fn is_apply(asked: &Asked) -> bool {
    asked.info.verb == "patch" && media_type(asked) == "application/apply-patch+yaml"
}

fn media_type(asked: &Asked) -> &str {
    asked.header(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim()
}

/// Adds the `Warning` headers of an answer.
pub fn add_warnings(warnings: &[String], response: &mut Response<Body>) {
    for warning in warnings.iter().take(MOST_WARNINGS) {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

async fn route(asked: &Asked, call: Arc<Call>, body: Bytes) -> Result<Response<Body>> {
    let verb = call.info.verb.as_str();
    if call.descriptor().virtual_ || subresource::is_special(&call) {
        return Box::pin(subresource::handle(asked, call, body)).await;
    }
    if call.info.subresource.is_empty() && !call.descriptor().allows(verb) {
        return Err(ApiError::method_not_allowed());
    }
    if !call.info.subresource.is_empty() {
        subresource::check(&call)?;
    } else if matches!((verb, call.info.named), ("update" | "patch", false) | ("create", true)) {
        // Collections are posted to, single objects are put and patched.
        return Err(ApiError::method_not_allowed());
    }
    let protobuf = !call.descriptor().custom;
    let output = asked.output(protobuf, true)?;
    check_view(&call, &output)?;
    match verb {
        "get" => {
            let item = call.get_item().await?;
            let bytes = call.show(&item, &output)?;
            Ok(ok(StatusCode::OK, &output, bytes, asked))
        }
        "list" => {
            let listing = call.list().await?;
            render::list(call, listing, output, asked.accepts_gzip())
        }
        "watch" => Box::pin(call.watch(output)).await,
        "create" => {
            let object = decode(asked, &call, &body)?;
            let written = Box::pin(call.create(object)).await?;
            written_response(asked, &call, written, &output)
        }
        "update" => {
            let object = decode(asked, &call, &body)?;
            let written = Box::pin(call.update(&Replace { object })).await?;
            written_response(asked, &call, written, &output)
        }
        "patch" => {
            let patch = decode_patch(asked, &call, &body)?;
            let written = Box::pin(call.update(&patch)).await?;
            written_response(asked, &call, written, &output)
        }
        "delete" => {
            let options = delete_options(asked, &body)?;
            if options.unreadable {
                Box::pin(call.delete_unreadable(&options)).await?;
                let details = json!({"name": call.info.name, "kind": call.descriptor().kind});
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details, "code": 200});
                return status_response(asked, StatusCode::OK, status, &output);
            }
            let written = Box::pin(call.delete(&options)).await?;
            let waits = !written.deleted && options.accepts_waiting();
            let mut response = deleted_response(asked, &call, written, &output)?;
            if waits {
                *response.status_mut() = StatusCode::ACCEPTED;
            }
            Ok(response)
        }
        "deletecollection" => {
            check_list(&asked.query, false)?;
            let options = delete_options(asked, &body)?;
            options.check_collection()?;
            let listing = call.list().await?;
            Box::pin(call.delete_collection(&listing.items, &options)).await?;
            render::list(call, listing, output, asked.accepts_gzip())
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// Metadata of a list is not metadata of an object.
fn check_view(call: &Call, output: &Output) -> Result<()> {
    if let View::Table { .. } = output.view {
        call.include()?;
    }
    let View::Metadata { list, .. } = output.view else { return Ok(()) };
    let verb = call.info.verb.as_str();
    let why = match (verb, list) {
        ("list", false) => "PartialObjectMetadata, but the requested object is a list",
        ("get" | "create" | "update" | "patch", true) => {
            "PartialObjectMetadataList, but the requested object is not a list"
        }
        _ => return Ok(()),
    };
    let suffix = if verb == "list" { "List" } else { "" };
    let descriptor = call.descriptor();
    let package = match descriptor.hub_group().split('.').next() {
        None | Some("") => "core",
        Some("internal") => "apiserverinternal",
        Some("events") => "core",
        Some(first) => first,
    };
    let found = match descriptor.custom {
        true => format!("*unstructured.Unstructured{suffix}"),
        false => format!("*{package}.{}{suffix}", call.kind().kind),
    };
    Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", format!("you requested {why} ({found})")))
}

pub fn ok(status: StatusCode, output: &Output, bytes: Bytes, asked: &Asked) -> Response<Body> {
    let empty = render::response(status, output.media.name(), Body::empty());
    render::compressed(empty, bytes, asked.accepts_gzip())
}

pub fn written_response(asked: &Asked, call: &Call, written: Written, output: &Output) -> Result<Response<Body>> {
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let plain = output.media == Media::Json && !output.pretty && output.view == View::Object;
    let bytes =
        if plain && !call.converts() { render::line(&written.bytes) } else { call.render(written.value, output)? };
    Ok(ok(status, output, bytes, asked))
}

/// An object that is gone is answered with a `Status` that names it, one that still has to be
/// waited for with the object.
fn deleted_response(asked: &Asked, call: &Call, written: Written, output: &Output) -> Result<Response<Body>> {
    if !written.deleted || call.descriptor().returns_deleted {
        return written_response(asked, call, written, output);
    }
    let metadata = &written.value["metadata"];
    let mut details = json!({"name": metadata["name"], "kind": call.descriptor().plural, "uid": metadata["uid"]});
    if !call.info.group.is_empty() {
        details["group"] = call.info.group.as_str().into();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    status_response(asked, StatusCode::OK, status, output)
}

/// A `Status` as an answer, in the representation asked for whatever the view.
pub fn status_response(asked: &Asked, code: StatusCode, status: Value, output: &Output) -> Result<Response<Body>> {
    let output = Output { view: View::Object, ..*output };
    let response = ok(code, &output, render::encode(&status, &output)?, asked);
    Ok(render::telling(response, status))
}

const BODY_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// The request's body as a value, and its duplicate fields. What is made or changed is noted for the audit
/// log here, which has no other look at the body unless it is to hold it.
pub fn parse_body(asked: &Asked, body: &Bytes) -> Result<(Value, Vec<String>)> {
    let (object, duplicates) = parse(asked, body)?;
    if let Some(record) = &asked.record
        && matches!(asked.info.verb.as_str(), "create" | "update")
    {
        record.about(&object);
    }
    Ok((object, duplicates))
}

fn parse(asked: &Asked, body: &Bytes) -> Result<(Value, Vec<String>)> {
    let content = match media_type(asked).to_ascii_lowercase().as_str() {
        "" | "application/json" => ContentType::Json,
        "application/yaml" => ContentType::Yaml,
        "application/vnd.kubernetes.protobuf" => return Ok((crate::protobuf::decode(body)?, Vec::new())),
        _ => return Err(ApiError::unsupported_media_type(BODY_TYPES)),
    };
    let parsed = schema::parse(body, content)?;
    Ok((parsed.value, parsed.duplicates))
}

/// What a body that is no object at all is answered, with its beginning.
fn unrecognized(kind: &str, error: &ApiError, body: &Bytes) -> ApiError {
    const SHOWN: usize = 30;
    let start = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    let summary = match start.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(start)),
        Some(_) => start.iter().map(|byte| format!("{byte:02x}")).chain([more.to_owned()]).collect(),
    };
    ApiError::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {error} ({summary})"))
}

/// Whatever a body holds, also a patch: for an audit log that is to hold it.
pub fn parse_any(asked: &Asked, body: &Bytes) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    if let Ok((object, _)) = parse(asked, body) {
        return Some(object);
    }
    let kind = PatchType::parse(media_type(asked))?;
    let content = if kind == PatchType::Apply { ContentType::Yaml } else { ContentType::Json };
    schema::parse(body, content).ok().map(|parsed| parsed.value)
}

/// The object in the body, normalised by the resource's schema.
pub fn decode(asked: &Asked, call: &Call, body: &Bytes) -> Result<Value> {
    if call.descriptor().custom && media_type(asked) == "application/vnd.kubernetes.protobuf" {
        return Err(ApiError::unsupported_media_type(&BODY_TYPES[..2]));
    }
    let kind = call.kind();
    let (mut object, duplicates) = parse_body(asked, body).map_err(|error| match error.code() {
        StatusCode::BAD_REQUEST => unrecognized(&kind.kind, &error, body),
        _ => error,
    })?;
    if object.is_null() {
        // Go decodes it into an object of which nothing is said.
        object = json!({});
    }
    if !object.is_object() {
        let found = schema::normalize::json_type(&object);
        let why = format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        );
        return Err(unrecognized(&kind.kind, &ApiError::bad_request(why), body));
    }
    let mut problems = call.field_problems(&mut object, &duplicates)?;
    if !problems.is_empty() && !call.descriptor().custom {
        problems = schema::document::in_order(body, problems);
    }
    call.report_fields(&kind, &problems)?;
    Ok(object)
}

pub fn decode_patch(asked: &Asked, call: &Call, body: &Bytes) -> Result<Patch> {
    let Some(kind) = PatchType::parse(media_type(asked)) else {
        return Err(if call.descriptor().custom {
            ApiError::unsupported_media_type(PatchType::OF_CUSTOM)
        } else {
            // What routes of built-in resources say.
            let (code, why) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "415: Unsupported Media Type");
            ApiError::new(code, "UnsupportedMediaType", why).with_details(json!({}))
        });
    };
    let parsed = match kind {
        PatchType::Apply => schema::parse(body, ContentType::Yaml).map_err(|error| {
            let why = error.message().trim_start_matches("error converting YAML to JSON: ");
            ApiError::bad_request(format!("error encoding patch: {why}"))
        }),
        _ if schema::document::syntax_error(body).is_some() => Err(ApiError::bad_request("invalid JSON patch")),
        _ => schema::parse(body, ContentType::Json),
    }?;
    Ok(Patch { kind, document: parsed.value, duplicates: parsed.duplicates })
}

pub fn delete_options(asked: &Asked, body: &Bytes) -> Result<DeleteOptions> {
    if body.is_empty() {
        return DeleteOptions::from_query(&asked.query);
    }
    let (value, _) = parse_body(asked, body)?;
    DeleteOptions::parse(&value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::query::Query;

    #[test]
    fn the_right_to_watch_does_not_do_for_a_proxied_post() {
        for (path, connected) in [
            ("/api/v1/namespaces/a/services/s/proxy/x", true),
            ("/api/v1/namespaces/a/pods/p/exec", true),
            ("/api/v1/watch/namespaces/a/services/s/proxy/x", false),
            ("/api/v1/watch/nodes/n/proxy/run", false),
            ("/api/v1/proxy/namespaces/a/pods/p/log", false),
            ("/apis/apps/v1/namespaces/a/pods/p/exec", false),
        ] {
            let info = RequestInfo::parse(&http::Method::POST, path, &Query::parse(""));
            assert_eq!(connects(&info), connected, "{path}: {}", info.verb);
        }
    }
}
