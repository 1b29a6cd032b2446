//! Discovery: which groups, versions and resources there are, in the classic documents and in the
//! aggregated one (`apidiscovery.k8s.io/v2`), from the descriptors and what remote servers say.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use crate::aggregate::remote::Remote;
use crate::aggregate::{Priority, register};
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;
use crate::http::render;
use crate::resource::{Descriptor, api_version};
use crate::resources::{Endpoint, Resources};

/// A group and its served versions, the preferred first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub versions: Vec<String>,
}

/// Every group, those of remote servers too, in the order of their priorities.
pub fn groups(resources: &Resources, remotes: &[Arc<Remote>]) -> Vec<Group> {
    let mut versions: BTreeMap<(String, String), Priority> = register::served(resources)
        .into_keys()
        .filter(|(group, _)| !register::displaced(group, remotes))
        .map(|key| (register::priority(&key.0, &key.1), key))
        .map(|(p, k)| (k, p))
        .collect();
    for remote in remotes {
        versions.insert((remote.group.clone(), remote.version.clone()), remote.priority);
    }
    let mut groups: BTreeMap<String, Vec<(Priority, String)>> = BTreeMap::new();
    for ((group, version), priority) in versions {
        groups.entry(group).or_default().push((priority, version));
    }
    let mut groups: Vec<(i64, Group)> = groups.into_iter().map(|(name, versions)| ranked(name, versions)).collect();
    groups.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.name.cmp(&b.1.name)));
    groups.into_iter().map(|(_, group)| group).collect()
}

fn ranked(name: String, mut versions: Vec<(Priority, String)>) -> (i64, Group) {
    versions.sort_by_key(|(priority, version)| Reverse((priority.version, version_priority(version))));
    let group = versions.iter().map(|(priority, _)| priority.group).max().unwrap_or(0);
    (group, Group { name, versions: versions.into_iter().map(|(_, version)| version).collect() })
}

/// Kubernetes' order of versions: GA before beta before alpha, the higher first, others last.
pub fn version_priority(version: &str) -> (u8, u32, u32) {
    let parse = || -> Option<(u8, u32, u32)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        match &rest[digits..] {
            "" => Some((3, major, 0)),
            stage => match (stage.strip_prefix("beta"), stage.strip_prefix("alpha")) {
                (Some(minor), _) => Some((2, major, minor.parse().ok()?)),
                (_, Some(minor)) => Some((1, major, minor.parse().ok()?)),
                _ => None,
            },
        }
    };
    parse().unwrap_or((0, 0, 0))
}

/// `/api` (`legacy`: the core group) and `/apis`.
pub fn root(asked: &Asked, named: bool) -> Result<Response<Body>> {
    let resources = asked.api.resources();
    let accept = asked.header(header::ACCEPT);
    if prefers_aggregated(accept) {
        return Ok(aggregated(asked, &resources, named));
    }
    let groups = groups(&resources, &asked.api.aggregator.remotes());
    if named {
        let groups: Vec<Value> =
            groups.iter().filter(|group| !group.name.is_empty()).map(|group| api_group(group, false)).collect();
        return answer(asked, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}));
    }
    let versions: Vec<&String> =
        groups.iter().filter(|group| group.name.is_empty()).flat_map(|group| &group.versions).collect();
    let address = format!("{}:{}", asked.api.config.advertise_address, asked.api.config.port);
    answer(
        asked,
        &json!({
            "kind": "APIVersions", "versions": versions,
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
        }),
    )
}

/// `/apis/<group>`.
pub fn group(asked: &Asked, name: &str) -> Result<Response<Body>> {
    let groups = groups(&asked.api.resources(), &asked.api.aggregator.remotes());
    match groups.iter().find(|group| group.name == name && !name.is_empty()) {
        Some(group) => answer(asked, &api_group(group, true)),
        None => Err(ApiError::page_not_found()),
    }
}

/// `/api/<version>`, `/apis/<group>/<version>`.
pub fn resources(asked: &Asked, group: &str, version: &str) -> Result<Response<Body>> {
    let resources = asked.api.resources();
    if register::displaced(group, &asked.api.aggregator.remotes()) {
        return Err(ApiError::page_not_found());
    }
    if !resources.has_group_version(group, version) {
        return Err(resources.nothing_in(group));
    }
    let mut list = Vec::new();
    for endpoint in resources.all() {
        let descriptor = endpoint.descriptor();
        if descriptor.find_served(group, version).is_some_and(|served| served.served) {
            api_resources(endpoint, group, version, &mut list);
        }
    }
    let mut document =
        json!({"kind": "APIResourceList", "groupVersion": api_version(group, version), "resources": list});
    // The core group's lists are as old as lists without a version.
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    answer(asked, &document)
}

fn answer(asked: &Asked, value: &Value) -> Result<Response<Body>> {
    let output = asked.output(true, false)?;
    let bytes = render::encode(value, &output)?;
    Ok(render::compressed(
        render::response(StatusCode::OK, output.media.name(), Body::empty()),
        bytes,
        asked.accepts_gzip(),
    ))
}

fn api_group(group: &Group, typed: bool) -> Value {
    let version = |version: &String| json!({"groupVersion": api_version(&group.name, version), "version": version});
    let mut object = json!({
        "name": group.name,
        "versions": group.versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": group.versions.first().map(version),
    });
    if typed {
        object["kind"] = "APIGroup".into();
        object["apiVersion"] = "v1".into();
    }
    object
}

/// What can be done: while its definition is being deleted, a resource only shrinks.
fn verbs(endpoint: &Endpoint) -> Value {
    if endpoint.terminating.load(Ordering::Relaxed) {
        return json!(["delete", "deletecollection", "get", "list", "watch"]);
    }
    json!(endpoint.descriptor().verbs)
}

/// A resource and its subresources as `APIResource`s.
fn api_resources(endpoint: &Endpoint, group: &str, version: &str, list: &mut Vec<Value>) {
    let descriptor = endpoint.descriptor();
    let mut main = json!({
        "name": descriptor.plural, "singularName": descriptor.singular, "namespaced": descriptor.namespaced,
        "kind": descriptor.kind, "verbs": verbs(endpoint),
    });
    if !descriptor.short_names.is_empty() {
        main["shortNames"] = json!(descriptor.short_names);
    }
    if !descriptor.categories.is_empty() {
        main["categories"] = json!(descriptor.categories);
    }
    if !descriptor.virtual_ {
        main["storageVersionHash"] = version_hash(descriptor).into();
    }
    list.push(main);
    for (name, kind, verbs) in subresources(descriptor) {
        let mut entry = json!({
            "name": format!("{}/{name}", descriptor.plural), "singularName": "", "namespaced": descriptor.namespaced,
            "kind": kind.2, "verbs": verbs,
        });
        if (kind.0.as_str(), kind.1.as_str()) != (group, version) && !kind.1.is_empty() {
            entry["group"] = kind.0.into();
            entry["version"] = kind.1.into();
        }
        list.push(entry);
    }
}

type Kind = (String, String, String);

/// Name, kind and verbs of every subresource, by name.
fn subresources(descriptor: &Descriptor) -> Vec<(String, Kind, Vec<&'static str>)> {
    let own = (String::new(), String::new(), descriptor.kind.to_string());
    let mut all = Vec::new();
    if descriptor.status {
        all.push(("status".to_owned(), own, vec!["get", "patch", "update"]));
    }
    if descriptor.scale.is_some() {
        let kind = ("autoscaling".to_owned(), "v1".to_owned(), "Scale".to_owned());
        all.push(("scale".to_owned(), kind, vec!["get", "patch", "update"]));
    }
    for subresource in descriptor.subresources.iter().filter(|sub| !matches!(&*sub.name, "status" | "scale")) {
        let kind = &subresource.kind;
        let kind = (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string());
        all.push((subresource.name.to_string(), kind, subresource.verbs.to_vec()));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Eight bytes that change when objects are stored differently.
fn version_hash(descriptor: &Descriptor) -> String {
    use base64::Engine;
    let text = format!("{}/{}/{}", descriptor.hub_group(), descriptor.storage_version(), descriptor.kind);
    base64::prelude::BASE64_STANDARD.encode(&Sha256::digest(text)[..8])
}

/// Whether the client prefers aggregated discovery to the classic documents.
fn prefers_aggregated(accept: &str) -> bool {
    accept.split(',').map(str::trim).any(|clause| {
        let has = |wanted: &str| clause.split(';').any(|part| part.trim() == wanted);
        clause.starts_with("application/json")
            && ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"].into_iter().all(has)
    })
}

fn aggregated(asked: &Asked, resources: &Resources, named: bool) -> Response<Body> {
    let document = aggregated_document(resources, &asked.api.aggregator.remotes(), named);
    let bytes = serde_json::to_vec(&document).unwrap_or_default();
    let digest: String = Sha512::digest(&bytes).iter().map(|byte| format!("{byte:02X}")).collect();
    let etag = format!("\"{digest}\"");
    let unchanged = asked.header(header::IF_NONE_MATCH) == etag;
    let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let status = if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut empty = render::response(status, content_type, Body::empty());
    if let Ok(value) = HeaderValue::from_str(&etag) {
        empty.headers_mut().insert(header::ETAG, value);
    }
    empty.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    empty.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if unchanged { empty } else { render::compressed(empty, bytes.into(), asked.accepts_gzip()) }
}

fn aggregated_document(resources: &Resources, remotes: &[Arc<Remote>], named: bool) -> Value {
    let entry = |group: &str, version: &String| {
        let remote = remotes.iter().find(|remote| remote.group == group && remote.version == *version);
        let (found, stale) = match remote {
            Some(remote) => (remote.resources().to_vec(), !remote.is_available()),
            None => (discovered(resources, group, version), false),
        };
        json!({"version": version, "freshness": if stale { "Stale" } else { "Current" }, "resources": found})
    };
    let groups = groups(resources, remotes).into_iter().filter(|group| named != group.name.is_empty());
    let items: Vec<Value> = groups
        .map(|group| {
            let versions: Vec<Value> = group.versions.iter().map(|version| entry(&group.name, version)).collect();
            json!({"metadata": {"name": group.name}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items,
    })
}

fn discovered(resources: &Resources, group: &str, version: &str) -> Vec<Value> {
    let serves = |endpoint: &&Arc<Endpoint>| {
        endpoint.descriptor().find_served(group, version).is_some_and(|served| served.served)
    };
    let endpoints = resources.all().iter().filter(serves);
    endpoints.map(|endpoint| discovered_resource(endpoint, group, version)).collect()
}

fn discovered_resource(endpoint: &Endpoint, group: &str, version: &str) -> Value {
    let descriptor = endpoint.descriptor();
    // Built-in resources do not say the group and version of their own kind.
    let own = if descriptor.custom { (group, version) } else { ("", "") };
    let kind = |(kind_group, kind_version, name): &Kind| {
        let named = (kind_group.as_str(), kind_version.as_str());
        let (kind_group, kind_version) = if kind_version.is_empty() || named == (group, version) { own } else { named };
        json!({"group": kind_group, "version": kind_version, "kind": name})
    };
    let own = (String::new(), String::new(), descriptor.kind.to_string());
    let mut resource = json!({
        "resource": descriptor.plural, "responseKind": kind(&own),
        "scope": if descriptor.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": descriptor.singular, "verbs": verbs(endpoint),
    });
    if !descriptor.short_names.is_empty() {
        resource["shortNames"] = json!(descriptor.short_names);
    }
    if !descriptor.categories.is_empty() {
        resource["categories"] = json!(descriptor.categories);
    }
    let subresources: Vec<Value> = subresources(descriptor)
        .iter()
        .map(|(name, of, verbs)| json!({"subresource": name, "responseKind": kind(of), "verbs": verbs}))
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked() {
        let mut versions = ["v1alpha1", "v2", "v1", "foo", "v1beta2", "v1beta1", "v10"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn clients_say_which_discovery_they_want() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert!(prefers_aggregated(kubectl));
        // The beta is gone.
        assert!(!prefers_aggregated("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"));
        assert!(!prefers_aggregated("application/json"));
    }
}
