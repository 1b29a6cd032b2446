//! OpenAPI: version 3 (an index and one document per group version) and version 2 (one document, as
//! JSON and as protobuf), made from descriptors and the schema table.
//!
//! Layer: above `schema` and `resource`, below HTTP. Documents are made when first asked for, piece
//! by piece into a compressor, and kept compressed; [`OpenApi::set_sources`] drops those whose
//! resources changed. [`definitions`] renders schemas, [`paths`] operations, [`pages`] what belongs to no
//! resource, [`gnostic`] the protobuf form.

mod custom;
pub mod definitions;
mod gnostic;
mod pages;
mod paths;
pub mod serve;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::resource::{Descriptor, GroupVersionKind};
use crate::resources::Resources;
use crate::schema::table::{Descriptions, TypeId};
use crate::schema::{self, group_of, type_of};
use definitions::{Definitions, META, Reference, Version};

/// What answers are marked with: `@`, as clients ask for it, is not allowed in a media type.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A resource to describe.
#[derive(Clone)]
pub struct Source {
    pub descriptor: Arc<Descriptor>,
    /// For custom resources: version → `openAPIV3Schema`.
    pub schemas: Vec<(String, Arc<schema::source::Source>)>,
}

/// A document, kept gzipped.
#[derive(Clone, Debug)]
pub struct Document {
    pub gzip: Bytes,
    /// Quoted, for the `ETag` header.
    pub etag: String,
    pub content_type: &'static str,
}

impl Document {
    /// The document for clients that do not take gzip.
    pub fn plain(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        // Our own compressor wrote it: a read cannot fail.
        let _ = flate2::read::GzDecoder::new(&self.gzip[..]).read_to_end(&mut plain);
        plain
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V2Format {
    Json,
    Protobuf,
}

/// The server's OpenAPI documents.
#[derive(Default)]
pub struct OpenApi {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `api/v1`, `apis/apps/v1` → its resources.
    groups: BTreeMap<String, Group>,
    v2: HashMap<&'static str, Document>,
    /// How often what version 2 is made of has changed.
    changes: u64,
    /// Paths and definitions of other servers, for version 2.
    foreign: Arc<[Arc<Value>]>,
    /// The index of resources that was looked at last; weak, so as to keep no caches alive.
    seen: Weak<Resources>,
}

#[derive(Clone)]
struct Group {
    sources: Arc<Vec<Source>>,
    hash: String,
    document: Option<Document>,
}

impl State {
    fn drop_v2(&mut self) {
        self.v2.clear();
        self.changes += 1;
    }

    fn pages(&self) -> Vec<pages::Page> {
        pages::pages(&pages::groups(self.groups.values().flat_map(|group| group.sources.iter())))
    }
}

/// A page changes with the program only.
fn page_hash(document: &str) -> String {
    hex(&Sha512::digest(format!("{} {document}", env!("CARGO_PKG_VERSION"))))
}

fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

impl OpenApi {
    pub fn new(sources: Vec<Source>) -> Self {
        let openapi = Self::default();
        openapi.set_sources(sources);
        openapi
    }

    /// Replaces what is described; documents of groups that stay as they were are kept.
    pub fn set_sources(&self, sources: Vec<Source>) {
        self.describe(sources, Weak::new());
    }

    /// What is described and where it is from change as one: of two requests that follow at the same time, the
    /// one that began with the older index may come last, and the next one sees that.
    fn describe(&self, sources: Vec<Source>, seen: Weak<Resources>) {
        let mut groups: BTreeMap<String, Vec<Source>> = BTreeMap::new();
        for source in sources {
            for served in source.descriptor.served.iter().filter(|served| served.served) {
                groups.entry(group_path(&served.group, &served.version)).or_default().push(source.clone());
            }
        }
        let mut state = self.state.lock();
        let mut changed = groups.len() != state.groups.len();
        let mut next = BTreeMap::new();
        for (path, sources) in groups {
            let hash = hash_of(&sources);
            let kept = state.groups.remove(&path).filter(|known| known.hash == hash);
            changed |= kept.is_none();
            next.insert(path, kept.unwrap_or(Group { sources: Arc::new(sources), hash, document: None }));
        }
        state.groups = next;
        state.seen = seen;
        if changed {
            state.drop_v2();
        }
    }

    /// Looks at the served resources again if they were swapped.
    pub fn follow(&self, resources: &Arc<Resources>) {
        let seen = self.state.lock().seen.as_ptr();
        if seen != Arc::as_ptr(resources) {
            self.describe(serve::sources(resources), Arc::downgrade(resources));
        }
    }

    /// Replaces what other servers add to the document of version 2: objects with `paths` and
    /// `definitions`.
    pub fn set_foreign(&self, foreign: Vec<Arc<Value>>) {
        let mut state = self.state.lock();
        let same = foreign.len() == state.foreign.len()
            && foreign.iter().zip(state.foreign.iter()).all(|(new, held)| Arc::ptr_eq(new, held));
        if !same {
            state.foreign = foreign.into();
            state.drop_v2();
        }
    }

    /// `/openapi/v3`: where the documents are, each with its hash.
    pub fn v3_index(&self) -> Document {
        let state = self.state.lock();
        let mut paths = Map::new();
        for (path, group) in &state.groups {
            let url = format!("/openapi/v3/{path}?hash={}", group.hash);
            paths.insert(path.clone(), json!({"serverRelativeURL": url}));
        }
        for page in state.pages() {
            let url = format!("/openapi/v3/{}?hash={}", page.document, page_hash(&page.document));
            paths.insert(page.document, json!({"serverRelativeURL": url}));
        }
        small_document(&json!({"paths": paths}))
    }

    /// `/openapi/v3/<path>`, e.g. `apis/apps/v1` or `version`; `None` when there is no such document.
    pub fn v3(&self, path: &str) -> Option<Document> {
        if let Some(page) = self.page(path) {
            let document = page.document().to_string();
            return Some(finish(page_hash(path), "application/json", |out| out.write_all(document.as_bytes())));
        }
        let (sources, hash) = {
            let state = self.state.lock();
            let group = state.groups.get(path)?;
            if let Some(document) = &group.document {
                return Some(document.clone());
            }
            (group.sources.clone(), group.hash.clone())
        };
        let document = finish(hash.clone(), "application/json", |out| {
            Writer { version: Version::V3, out }.document(&sources, &[], Some(path))
        });
        if let Some(group) = self.state.lock().groups.get_mut(path).filter(|group| group.hash == hash) {
            group.document = Some(document.clone());
        }
        Some(document)
    }

    /// The hash in a document's URL.
    pub fn v3_hash(&self, path: &str) -> Option<String> {
        let known = self.state.lock().groups.get(path).map(|group| group.hash.clone());
        known.or_else(|| self.page(path).map(|_| page_hash(path)))
    }

    fn page(&self, document: &str) -> Option<pages::Page> {
        self.state.lock().pages().into_iter().find(|page| page.document == document)
    }

    /// `/openapi/v2`.
    pub fn v2(&self, format: V2Format) -> Document {
        let content_type = match format {
            V2Format::Json => "application/json",
            V2Format::Protobuf => V2_PROTOBUF,
        };
        let (sources, foreign, hash, changes) = {
            let state = self.state.lock();
            if let Some(document) = state.v2.get(content_type) {
                return document.clone();
            }
            let mut seen = BTreeSet::new();
            let mut sources = Vec::new();
            let mut digest = Sha512::new();
            for group in state.groups.values() {
                digest.update(&group.hash);
                for source in group.sources.iter() {
                    if seen.insert(Arc::as_ptr(&source.descriptor)) {
                        sources.push(source.clone());
                    }
                }
            }
            for other in state.foreign.iter() {
                digest.update(other.to_string());
            }
            (sources, state.foreign.clone(), hex(&digest.finalize()), state.changes)
        };
        let document = finish(hash, content_type, |out| match format {
            V2Format::Json => Writer { version: Version::V2, out }.document(&sources, &foreign, None),
            V2Format::Protobuf => {
                let mut encoder = gnostic::Encoder::default();
                encode_v2(&sources, &foreign, &mut encoder);
                out.write_all(&encoder.finish(&info()))
            }
        });
        self.keep_v2(changes, &document);
        document
    }

    /// Keeps a document of version 2, unless what it is made of has changed while it was made.
    fn keep_v2(&self, changes: u64, document: &Document) {
        let mut state = self.state.lock();
        if state.changes == changes {
            state.v2.insert(document.content_type, document.clone());
        }
    }
}

fn small_document(content: &Value) -> Document {
    let body = content.to_string();
    let hash = hex(&Sha512::digest(body.as_bytes()));
    finish(hash, "application/json", |out| out.write_all(body.as_bytes()))
}

fn hash_of(sources: &[Source]) -> String {
    let mut digest = Sha512::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    for source in sources {
        digest.update(format!("{:?}", source.descriptor));
        for (version, schema) in &source.schemas {
            digest.update(version);
            digest.update(schema.digest());
        }
    }
    hex(&digest.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

type Out = GzEncoder<Vec<u8>>;

fn finish(hash: String, content_type: &'static str, write: impl FnOnce(&mut Out) -> std::io::Result<()>) -> Document {
    let mut out = GzEncoder::new(Vec::new(), Compression::new(6));
    // Writing to memory cannot fail.
    let _ = write(&mut out);
    let gzip = out.finish().unwrap_or_default().into();
    Document { gzip, etag: format!("\"{hash}\""), content_type }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": api::version::KUBERNETES})
}

/// How clients may show who they are.
fn security() -> Value {
    json!({"BearerToken": {"description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header"}})
}

/// The schema names of kinds, built-in or custom.
fn schema_name(sources: &[Source], gvk: &GroupVersionKind) -> Option<String> {
    if let Some(id) = type_of(&gvk.group, &gvk.version, &gvk.kind) {
        return Some(id.name().to_owned());
    }
    let custom = sources.iter().any(|source| {
        source.descriptor.custom
            && (source.descriptor.kind == gvk.kind || source.descriptor.list_kind == gvk.kind)
            && source.descriptor.served.iter().any(|s| s.group == gvk.group && s.version == gvk.version)
    });
    custom.then(|| custom::name(gvk))
}

/// Calls `emit` with every path.
fn each_path(version: Version, sources: &[Source], only: Option<&str>, emit: &mut dyn FnMut(&str, Value)) {
    let name = |gvk: &GroupVersionKind| schema_name(sources, gvk);
    let mut groups = BTreeSet::new();
    for source in sources {
        for served in source.descriptor.served.iter().filter(|served| served.served) {
            let path = group_path(&served.group, &served.version);
            if only.is_none_or(|only| only == path) {
                if !source.descriptor.custom && groups.insert(path) {
                    paths::emit_discovery(version, served, emit);
                }
                let target = paths::Target { version, descriptor: &source.descriptor, served, schema_name: &name };
                paths::emit(&target, emit);
            }
        }
    }
    if only.is_none() {
        for page in pages::pages(&pages::groups(sources.iter())) {
            emit(&page.path, page.item(version));
        }
    }
}

/// Calls `emit` with every schema: the kinds of the sources and all they refer to.
fn each_schema(version: Version, sources: &[Source], only: Option<&str>, emit: &mut dyn FnMut(&str, Value)) {
    let texts = Descriptions::unpack();
    let mut definitions = Definitions::new(version, &texts);
    let mut roots: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut root = |definitions: &mut Definitions<'_>, gvk: &GroupVersionKind| {
        let Some(id) = type_of(&gvk.group, &gvk.version, &gvk.kind) else { return };
        definitions.refer(Reference::Type(id));
        let (group, version) = group_of(id).unwrap_or_default();
        let group = if group == "meta.k8s.io" { "" } else { group };
        let entry = json!({"group": group, "kind": gvk.kind, "version": version});
        let kinds = roots.entry(id.name().to_owned()).or_default();
        if !kinds.contains(&entry) {
            kinds.push(entry);
        }
    };
    let mut custom = Vec::new();
    for source in sources {
        let descriptor = &source.descriptor;
        for served in descriptor.served.iter().filter(|served| served.served) {
            if only.is_some_and(|only| only != group_path(&served.group, &served.version)) {
                continue;
            }
            let kind =
                |kind: &str| GroupVersionKind::new(served.group.clone(), served.version.clone(), kind.to_owned());
            if descriptor.custom {
                custom.push((source, kind(&descriptor.kind), kind(&descriptor.list_kind)));
            }
            root(&mut definitions, &kind(&descriptor.kind));
            root(&mut definitions, &kind(&descriptor.list_kind));
            if descriptor.scale.is_some() {
                root(&mut definitions, &GroupVersionKind::new("autoscaling", "v1", "Scale"));
            }
            for sub in descriptor.subresources.iter().filter(|sub| !sub.kind.kind.ends_with("Options")) {
                root(&mut definitions, &sub.kind);
            }
        }
    }
    for kind in ["DeleteOptions", "Status", "APIResourceList"] {
        root(&mut definitions, &GroupVersionKind::new("", "v1", kind));
    }
    if sources.iter().any(|source| !source.descriptor.custom) {
        root(&mut definitions, &GroupVersionKind::new("", "v1", "WatchEvent"));
    }
    if only.is_none() {
        for kind in pages::KINDS {
            root(&mut definitions, &GroupVersionKind::new("", "v1", kind));
        }
        emit(pages::VERSION_INFO, pages::version_info());
    }
    for name in ["ObjectMeta", "ListMeta"] {
        if let Some(id) = TypeId::named(&format!("{META}{name}")) {
            definitions.refer(Reference::Type(id));
        }
    }
    for (source, kind, list) in custom {
        let schema = source.schemas.iter().find(|(version, _)| *version == kind.version).map(|(_, schema)| schema);
        let schema = schema.and_then(|source| source.value());
        emit(&custom::name(&kind), custom::schema(version, schema.as_ref(), &kind, &source.descriptor.selectable));
        emit(&custom::name(&list), custom::list(version, &kind, &list));
    }
    let mut next = 0;
    while let Some(target) = definitions.needed.get(next).copied() {
        let name = target.name();
        let schema = definitions.render(target, roots.get(&name).map_or(&[], Vec::as_slice));
        emit(&name, schema);
        next += 1;
    }
    let text = "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.";
    emit(&format!("{META}Patch"), json!({"description": text, "type": "object"}));
}

fn encode_v2(sources: &[Source], foreign: &[Arc<Value>], encoder: &mut gnostic::Encoder) {
    each_path(Version::V2, sources, None, &mut |path, item| encoder.path(path, &item));
    each_foreign(foreign, "paths", &mut |path, item| encoder.path(path, &item));
    with_foreign(foreign, |emit| each_schema(Version::V2, sources, None, emit), &mut |name, schema| {
        encoder.definition(name, &schema);
    });
}

/// Calls `emit` with every member that other servers add under `key`.
fn each_foreign(foreign: &[Arc<Value>], key: &str, emit: &mut dyn FnMut(&str, Value)) {
    for (name, value) in foreign.iter().filter_map(|other| other[key].as_object()).flatten() {
        emit(name, value.clone());
    }
}

/// Calls `emit` with our own definitions and then with those of others that have another name.
fn with_foreign(
    foreign: &[Arc<Value>],
    own: impl FnOnce(&mut dyn FnMut(&str, Value)),
    emit: &mut dyn FnMut(&str, Value),
) {
    let mut seen = BTreeSet::new();
    own(&mut |name, schema| {
        seen.insert(name.to_owned());
        emit(name, schema);
    });
    each_foreign(foreign, "definitions", &mut |name, schema| {
        if seen.insert(name.to_owned()) {
            emit(name, schema);
        }
    });
}

/// Writes a JSON document piece by piece.
struct Writer<'a> {
    version: Version,
    out: &'a mut Out,
}

impl Writer<'_> {
    fn document(&mut self, sources: &[Source], foreign: &[Arc<Value>], only: Option<&str>) -> std::io::Result<()> {
        let head = match self.version {
            Version::V2 => "{\"swagger\":\"2.0\",\"info\":",
            Version::V3 => "{\"openapi\":\"3.0.0\",\"info\":",
        };
        write!(self.out, "{head}{},\"paths\":{{", info())?;
        let mut members = Members { out: self.out, first: true, outcome: Ok(()) };
        each_path(self.version, sources, only, &mut |name, value| members.put(name, &value));
        each_foreign(foreign, "paths", &mut |name, value| members.put(name, &value));
        members.outcome?;
        let between = match self.version {
            Version::V2 => "},\"definitions\":{",
            Version::V3 => "},\"components\":{\"schemas\":{",
        };
        self.out.write_all(between.as_bytes())?;
        let version = self.version;
        let mut members = Members { out: self.out, first: true, outcome: Ok(()) };
        let own = |emit: &mut dyn FnMut(&str, Value)| each_schema(version, sources, only, emit);
        with_foreign(foreign, own, &mut |name, value| members.put(name, &value));
        members.outcome?;
        let security = security();
        match self.version {
            Version::V2 => {
                write!(self.out, "}},\"securityDefinitions\":{security},\"security\":[{{\"BearerToken\":[]}}]}}")
            }
            Version::V3 => write!(self.out, "}},\"securitySchemes\":{security}}}}}"),
        }
    }
}

struct Members<'a> {
    out: &'a mut Out,
    first: bool,
    outcome: std::io::Result<()>,
}

impl Members<'_> {
    fn put(&mut self, name: &str, value: &Value) {
        if self.outcome.is_err() {
            return;
        }
        let comma = if self.first { "" } else { "," };
        self.first = false;
        self.outcome = write!(self.out, "{comma}{}:{value}", Value::from(name));
    }
}

#[cfg(test)]
mod tests;
