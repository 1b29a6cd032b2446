//! Paths and operations of a resource, as OpenAPI lists them.

use serde_json::{Map, Value, json};

use super::definitions::Version;
use crate::http::negotiate::{ACCEPTED, STREAMS};
use crate::resource::{Descriptor, GroupVersionKind, Served};

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";

/// One group version of a resource, with the names its schemas have.
pub struct Target<'a> {
    pub version: Version,
    pub descriptor: &'a Descriptor,
    pub served: &'a Served,
    /// Schema name of a kind, e.g. `io.k8s.api.core.v1.Pod`.
    pub schema_name: &'a dyn Fn(&GroupVersionKind) -> Option<String>,
}

/// Calls `emit` with every path of a resource and its path item.
pub fn emit(target: &Target<'_>, emit: &mut dyn FnMut(&str, Value)) {
    let descriptor = target.descriptor;
    let served = target.served;
    let base = if served.group.is_empty() {
        format!("/api/{}", served.version)
    } else {
        format!("/apis/{}/{}", served.group, served.version)
    };
    let scope = if descriptor.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", descriptor.plural);
    let item = format!("{collection}/{{name}}");
    let kind = GroupVersionKind::new(served.group.clone(), served.version.clone(), descriptor.kind.clone());

    let verbs = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().filter(|name| descriptor.verbs.iter().any(|verb| verb == **name)).copied().collect()
    };
    let whole = Place {
        path: &collection,
        named: false,
        below: false,
        subresource: "",
        kind: &kind,
        namespaced: descriptor.namespaced,
    };
    path_item(target, &whole, &verbs(&["list", "create", "deletecollection"]), emit);
    if descriptor.namespaced && descriptor.verbs.iter().any(|verb| verb == "list") {
        let everywhere = format!("{base}/{}", descriptor.plural);
        path_item(target, &Place { path: &everywhere, namespaced: false, ..whole }, &["list"], emit);
    }
    let one = Place { path: &item, named: true, ..whole };
    path_item(target, &one, &verbs(&["get", "update", "patch", "delete"]), emit);
    if descriptor.status {
        let path = format!("{item}/status");
        path_item(target, &Place { path: &path, subresource: "status", ..one }, &["get", "update", "patch"], emit);
    }
    if descriptor.scale.is_some() {
        let path = format!("{item}/scale");
        let scale = GroupVersionKind::new("autoscaling", "v1", "Scale");
        let place = Place { path: &path, subresource: "scale", kind: &scale, ..one };
        path_item(target, &place, &["get", "update", "patch"], emit);
    }
    for sub in &descriptor.subresources {
        let path = format!("{item}/{}", sub.name);
        let place = Place { path: &path, subresource: &sub.name, kind: &sub.kind, ..one };
        if sub.name == "proxy" {
            // Methods that are no verbs of the API are passed on, too.
            let verbs = [sub.verbs, &["head", "options"][..]].concat();
            path_item(target, &place, &verbs, emit);
            let path = format!("{path}/{{path}}");
            path_item(target, &Place { path: &path, below: true, ..place }, &verbs, emit);
        } else {
            path_item(target, &place, sub.verbs, emit);
        }
    }
    if !descriptor.custom && descriptor.verbs.iter().any(|verb| verb == "watch") {
        emit_watches(target, &base, whole, emit);
    }
}

/// The paths that only watch. They are older than the parameter `watch` of lists, and custom resources never had
/// them.
fn emit_watches(target: &Target<'_>, base: &str, whole: Place<'_>, emit: &mut dyn FnMut(&str, Value)) {
    let plural = &target.descriptor.plural;
    let everywhere = format!("{base}/watch/{plural}");
    let collection = format!("{base}/watch/namespaces/{{namespace}}/{plural}");
    let collection = if whole.namespaced { &collection } else { &everywhere };
    path_item(target, &Place { path: collection, ..whole }, &["watchlist"], emit);
    let item = format!("{collection}/{{name}}");
    path_item(target, &Place { path: &item, named: true, ..whole }, &["watch"], emit);
    if whole.namespaced {
        path_item(target, &Place { path: &everywhere, namespaced: false, ..whole }, &["watchlist"], emit);
    }
}

fn watches(verb: &str) -> bool {
    matches!(verb, "watch" | "watchlist")
}

/// Calls `emit` with the path that lists what a group version has.
pub fn emit_discovery(version: Version, served: &Served, emit: &mut dyn FnMut(&str, Value)) {
    let list = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList";
    let mut operation = json!({
        "description": "get available resources",
        "operationId": format!("get{}APIResources", group_word(served)),
        "tags": [tag(served)],
        "responses": {"200": response(version, "OK", Some(list), ACCEPTED), "401": {"description": "Unauthorized"}},
    });
    if version == Version::V2 {
        operation["schemes"] = json!(["https"]);
        operation["consumes"] = json!(ACCEPTED);
        operation["produces"] = json!(ACCEPTED);
    }
    let root = if served.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", served.group) };
    emit(&format!("{root}/{}/", served.version), json!({"get": operation}));
}

#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a str,
    /// Whether the path names one object.
    named: bool,
    /// Whether it goes on below the subresource.
    below: bool,
    subresource: &'a str,
    kind: &'a GroupVersionKind,
    namespaced: bool,
}

/// Streams and proxies: nothing of them is an API object.
fn connects(place: &Place<'_>) -> bool {
    place.kind.kind.ends_with("Options")
}

/// What answers come in: a custom resource has no protobuf, and lists are watched as well.
fn media(target: &Target<'_>, place: &Place<'_>, verb: &str) -> Vec<&'static str> {
    if connects(place) {
        return vec!["*/*"];
    }
    let mut media = match (place.subresource, target.descriptor.custom) {
        ("log", _) => [&["text/plain"], ACCEPTED].concat(),
        (_, true) => ACCEPTED[..2].to_vec(),
        _ => ACCEPTED.to_vec(),
    };
    if (verb == "list" || watches(verb)) && !target.descriptor.custom {
        media.extend(STREAMS);
    }
    media
}

/// What bodies may come in.
fn body_media(target: &Target<'_>, verb: &str) -> Vec<&'static str> {
    match (verb, target.descriptor.custom) {
        ("patch", _) => patch_media(target),
        (_, true) => ACCEPTED[..2].to_vec(),
        _ => vec!["*/*"],
    }
}

fn path_item(target: &Target<'_>, place: &Place<'_>, verbs: &[&str], emit: &mut dyn FnMut(&str, Value)) {
    if verbs.is_empty() {
        return;
    }
    let mut item = Map::new();
    for verb in verbs {
        item.insert(method(verb).to_owned(), operation(target, place, verb));
    }
    let mut shared = Vec::new();
    if place.named {
        shared.push(path_parameter(target.version, "name", &format!("name of the {}", target.descriptor.kind)));
    }
    if place.namespaced {
        shared.push(path_parameter(
            target.version,
            "namespace",
            "object name and auth scope, such as for teams and projects",
        ));
    }
    if place.below {
        shared.push(path_parameter(target.version, "path", "path to the resource"));
    }
    shared.push(query(target.version, "pretty", "string", "If 'true', then the output is pretty printed."));
    if verbs.iter().any(|verb| watches(verb)) {
        shared.extend(query_parameters(target.version, "list"));
    }
    item.insert("parameters".to_owned(), shared.into());
    emit(place.path, item.into());
}

fn operation(target: &Target<'_>, place: &Place<'_>, verb: &str) -> Value {
    let version = target.version;
    let name = (target.schema_name)(place.kind).filter(|_| !connects(place));
    let list = GroupVersionKind { kind: target.descriptor.list_kind.clone(), ..place.kind.clone() };
    let result = match verb {
        "list" => (target.schema_name)(&list),
        _ if watches(verb) => Some(WATCH_EVENT.to_owned()),
        _ if connects(place) || place.subresource == "log" => None,
        "delete" if target.descriptor.returns_deleted => name.clone(),
        "delete" | "deletecollection" => Some(STATUS.to_owned()),
        _ => name.clone(),
    };
    let body = match verb {
        "create" | "update" => name,
        _ if connects(place) => None,
        "patch" => Some(PATCH.to_owned()),
        "delete" | "deletecollection" => Some(DELETE_OPTIONS.to_owned()),
        _ => None,
    };
    let mut parameters = if connects(place) { Vec::new() } else { query_parameters(version, verb) };
    let mut operation = json!({
        "description": describe(place, verb),
        "operationId": operation_id(target, place, verb),
        "tags": [tag(target.served)],
        "x-kubernetes-action": if connects(place) { "connect" } else { action(verb) },
        "x-kubernetes-group-version-kind": {
            "group": place.kind.group, "kind": place.kind.kind, "version": place.kind.version,
        },
    });
    let mut responses = Map::new();
    let codes: &[(&str, &str)] = match verb {
        "create" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
        "update" | "patch" => &[("200", "OK"), ("201", "Created")],
        "delete" => &[("200", "OK"), ("202", "Accepted")],
        _ => &[("200", "OK")],
    };
    for (code, text) in codes {
        let media = media(target, place, verb);
        responses.insert((*code).to_owned(), response(version, text, result.as_deref(), &media));
    }
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    operation["responses"] = responses.into();
    match version {
        Version::V3 => {
            if let Some(body) = &body {
                let media = body_media(target, verb);
                operation["requestBody"] =
                    json!({"required": !verb.starts_with("delete"), "content": content(version, &media, body)});
            }
        }
        Version::V2 => {
            operation["schemes"] = json!(["https"]);
            operation["consumes"] = json!(body_media(target, verb));
            operation["produces"] = json!(media(target, place, verb));
            if let Some(body) = &body {
                parameters.insert(
                    0,
                    json!({"name": "body", "in": "body", "required": !verb.starts_with("delete"),
                        "schema": {"$ref": version.reference(body)}}),
                );
            }
        }
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    operation
}

fn patch_media(target: &Target<'_>) -> Vec<&'static str> {
    let mut media = vec!["application/json-patch+json", "application/merge-patch+json"];
    if !target.descriptor.custom {
        media.push("application/strategic-merge-patch+json");
    }
    media.push("application/apply-patch+yaml");
    media
}

fn content(version: Version, media: &[&str], schema: &str) -> Value {
    let schema = json!({"schema": {"$ref": version.reference(schema)}});
    Value::Object(media.iter().map(|media| ((*media).to_owned(), schema.clone())).collect())
}

pub fn response(version: Version, text: &str, schema: Option<&str>, media: &[&str]) -> Value {
    match (version, schema) {
        (Version::V2, Some(schema)) => json!({"description": text, "schema": {"$ref": version.reference(schema)}}),
        (Version::V3, Some(schema)) => json!({"description": text, "content": content(version, media, schema)}),
        // Text of any kind.
        (Version::V2, None) => json!({"description": text, "schema": {"type": "string"}}),
        (Version::V3, None) => {
            let schema = json!({"schema": {"type": "string"}});
            let content: Map<String, Value> = media.iter().map(|media| ((*media).to_owned(), schema.clone())).collect();
            json!({"description": text, "content": content})
        }
    }
}

fn path_parameter(version: Version, name: &str, text: &str) -> Value {
    let mut parameter = json!({"name": name, "in": "path", "required": true, "uniqueItems": true, "description": text});
    put_type(version, &mut parameter, "string");
    parameter
}

fn query(version: Version, name: &str, kind: &str, text: &str) -> Value {
    let mut parameter = json!({"name": name, "in": "query", "uniqueItems": true, "description": text});
    put_type(version, &mut parameter, kind);
    parameter
}

fn put_type(version: Version, parameter: &mut Value, kind: &str) {
    match version {
        Version::V2 => parameter["type"] = kind.into(),
        Version::V3 => {
            parameter["schema"] = json!({"type": kind});
            parameter["schema"]["uniqueItems"] = true.into();
            if let Some(map) = parameter.as_object_mut() {
                map.remove("uniqueItems");
            }
        }
    }
}

fn query_parameters(version: Version, verb: &str) -> Vec<Value> {
    const DRY_RUN: (&str, &str, &str) = (
        "dryRun",
        "string",
        "When present, indicates that modifications should not be persisted. Valid values are: All",
    );
    const MANAGER: (&str, &str, &str) = (
        "fieldManager",
        "string",
        "The name of the actor or entity that is making these changes, at most 128 characters.",
    );
    const VALIDATION: (&str, &str, &str) = (
        "fieldValidation",
        "string",
        "What to do with unknown or duplicate fields of the request: Ignore, Warn (the default) or Strict.",
    );
    const LIST: [(&str, &str, &str); 10] = [
        ("allowWatchBookmarks", "boolean", "Requests watch events with type \"BOOKMARK\"."),
        ("continue", "string", "The continue token of the page before."),
        ("fieldSelector", "string", "Restricts the list of returned objects by their fields. Defaults to everything."),
        ("labelSelector", "string", "Restricts the list of returned objects by their labels. Defaults to everything."),
        ("limit", "integer", "The maximum number of objects in a response; the rest follows with a continue token."),
        ("resourceVersion", "string", "A constraint on what resource versions a request may be served from."),
        ("resourceVersionMatch", "string", "How resourceVersion is applied to list calls."),
        (
            "sendInitialEvents",
            "boolean",
            "Whether a watch begins with the state of the collection, ended by a bookmark.",
        ),
        ("timeoutSeconds", "integer", "Timeout for the call, whatever the activity."),
        (
            "watch",
            "boolean",
            "Watch for changes to the described resources, which come as a stream of add, update and remove notifications.",
        ),
    ];
    const DELETE: [(&str, &str, &str); 4] = [
        DRY_RUN,
        ("gracePeriodSeconds", "integer", "Seconds before the object is deleted; zero deletes at once."),
        ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
        ("propagationPolicy", "string", "How dependents are deleted: Orphan, Background or Foreground."),
    ];
    let mut parameters: Vec<(&str, &str, &str)> = Vec::new();
    match verb {
        "list" => parameters.extend(LIST),
        "create" | "update" => parameters.extend([DRY_RUN, MANAGER, VALIDATION]),
        "patch" => {
            parameters.extend([DRY_RUN, MANAGER, VALIDATION]);
            parameters.push(("force", "boolean", "Force acquires fields that others own. Only for apply patches."));
        }
        "delete" => parameters.extend(DELETE),
        "deletecollection" => {
            parameters.extend(LIST.iter().filter(|p| !matches!(p.0, "allowWatchBookmarks" | "watch")));
            parameters.extend(DELETE);
        }
        _ => {}
    }
    parameters.into_iter().map(|(name, kind, text)| query(version, name, kind, text)).collect()
}

fn describe(place: &Place<'_>, verb: &str) -> String {
    let what = if place.subresource.is_empty() { String::new() } else { format!("{} of ", place.subresource) };
    let kind = &place.kind.kind;
    match verb {
        _ if connects(place) => format!("connect {} requests to {}", method(verb).to_uppercase(), place.subresource),
        "get" => format!("read {what}the specified {kind}"),
        "list" => format!("list or watch objects of kind {kind}"),
        "watch" => format!("watch changes to one {kind}; deprecated: list with the parameters watch and fieldSelector"),
        "watchlist" => format!("watch changes to a list of {kind}; deprecated: list with the parameter watch"),
        "create" => format!("create {what}a {kind}"),
        "update" => format!("replace {what}the specified {kind}"),
        "patch" => format!("partially update {what}the specified {kind}"),
        "deletecollection" => format!("delete collection of {kind}"),
        _ => format!("delete {what}a {kind}"),
    }
}

/// `createAppsV1NamespacedDeployment`, `connectCoreV1GetNamespacedPodExec`
fn operation_id(target: &Target<'_>, place: &Place<'_>, verb: &str) -> String {
    let (word, what) = match verb {
        _ if connects(place) => ("connect", capitalised(method(verb))),
        "get" => ("read", String::new()),
        "update" => ("replace", String::new()),
        "deletecollection" => ("delete", "Collection".to_owned()),
        "watchlist" => ("watch", String::new()),
        other => (other, String::new()),
    };
    let group = group_word(target.served);
    let everywhere = target.descriptor.namespaced && !place.namespaced;
    let scope = if place.namespaced { "Namespaced" } else { "" };
    let sub = capitalised(place.subresource);
    let list = if verb == "watchlist" { "List" } else { "" };
    let suffix = match place.below {
        true => "WithPath",
        false if everywhere => "ForAllNamespaces",
        false => "",
    };
    format!("{word}{group}{what}{scope}{}{sub}{list}{suffix}", target.descriptor.kind)
}

/// `AppsV1`, as operations are named.
fn group_word(served: &Served) -> String {
    tag(served).split('_').map(capitalised).collect()
}

/// `apps_v1`, `core_v1`, `rbacAuthorization_v1`
fn tag(served: &Served) -> String {
    format!("{}_{}", group_tag(&served.group), served.version)
}

/// `apps`, `core`, `rbacAuthorization`
pub fn group_tag(group: &str) -> String {
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    let mut parts = group.split('.').filter(|part| !part.is_empty());
    let first = parts.next().unwrap_or("core").to_owned();
    let rest: String = parts.map(capitalised).collect();
    format!("{first}{rest}")
}

pub fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn method(verb: &str) -> &'static str {
    match verb {
        "list" | "get" | "watch" | "watchlist" => "get",
        "create" => "post",
        "update" => "put",
        "patch" => "patch",
        "head" => "head",
        "options" => "options",
        _ => "delete",
    }
}

fn action(verb: &str) -> &str {
    match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    }
}
