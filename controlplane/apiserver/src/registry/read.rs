//! Gets and lists, from the cache's shared bytes.

use std::sync::Arc;

use api::selector::Selector;
use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde_json::{Value, json};
use store::{Range, StoreError};

use super::position::Position;
use super::{Call, cache_key};
use crate::cache::item::Item;
use crate::cache::store_error;
use crate::cache::unreadable::{self, STORE_READ_ERROR};
use crate::cache::watch::Selection;
use crate::error::{ApiError, Result};
use crate::http::negotiate::{Media, Output, View};
use crate::http::options::check_list;
use crate::http::render;
use crate::table::{self, Include};

/// A list in chunks reads no fewer objects at a time, and where few of them match so many at most: each page
/// counts what lies behind it.
const SMALLEST_PAGE: usize = 100;
const LARGEST_PAGE: usize = 10_000;
/// Pages of so many bytes grow no more.
const HEAVY_PAGE: usize = 4 << 20;

/// The version a read asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// As new as every answered write.
    Latest,
    /// Whatever the cache holds: `resourceVersion=0`.
    Any,
    NotOlderThan(u64),
    Exact(u64),
}

/// What a list gives: objects in key order.
pub struct Listing {
    pub items: Vec<Arc<Item>>,
    pub revision: u64,
    pub continue_: Option<String>,
    pub remaining: Option<u64>,
}

/// A resource version, as Go reads numbers without a sign; 400 for anything else.
pub fn parse_version(text: &str) -> Result<u64> {
    read_version(text).map_err(|why| ApiError::bad_request(why.to_string()))
}

fn read_version(text: &str) -> Result<u64, api::field::Error> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        let why = if digits { "value out of range" } else { "invalid syntax" };
        let why = format!("strconv.ParseUint: parsing {text:?}: {why}");
        api::field::Error::invalid(&api::field::Path::root("resourceVersion"), text, why)
    })
}

impl Call {
    /// Selectors of the request, checked against the resource's selectable fields.
    pub fn selection(&self) -> Result<Selection> {
        let (labels, fields) = (self.query.text("labelSelector"), self.query.text("fieldSelector"));
        let mut selection = Selection {
            namespace: self.namespace().to_owned(),
            name: String::new(),
            labels: Selector::parse_labels(labels).map_err(|error| ApiError::bad_request(error.to_string()))?,
            fields: Selector::parse_fields(fields).map_err(|error| ApiError::bad_request(error.to_string()))?,
        };
        for requirement in &mut selection.fields.requirements {
            let field = self.descriptor().field_label(&self.info.group, requirement.key());
            let field = field.map_err(ApiError::bad_request)?.to_owned();
            requirement.rename(field);
        }
        if self.info.path_has_name() {
            // One object watched by the old path.
            let selected = selection.fields.exact("metadata.name");
            if !selection.fields.is_everything() && selected != Some(&*self.info.name) {
                return Err(ApiError::bad_request("fieldSelector metadata.name doesn't match requested name"));
            }
            selection.name.clone_from(&self.info.name);
        }
        Ok(selection)
    }

    /// The version that the query asks a list for.
    fn list_version(&self, limited: bool) -> Result<Version> {
        let (version, rule) = (self.query.text("resourceVersion"), self.query.text("resourceVersionMatch"));
        let parse =
            |text| read_version(text).map_err(|why| ApiError::bad_request(format!("invalid resource version: {why}")));
        match (version, rule) {
            ("", _) => Ok(Version::Latest),
            (version, "Exact") => Ok(Version::Exact(parse(version)?)),
            ("0", _) => Ok(Version::Any),
            // A paged list at a version means exactly that version, as it did before rules existed.
            (version, "") if limited => Ok(Version::Exact(parse(version)?)),
            (version, _) => Ok(Version::NotOlderThan(parse(version)?)),
        }
    }

    /// Waits until the cache may answer for `version`.
    pub async fn await_version(&self, version: Version) -> Result<()> {
        let cache = &self.endpoint.cache;
        match version {
            Version::Latest => cache.fresh().await,
            Version::Any => cache.ready().await,
            Version::NotOlderThan(revision) | Version::Exact(revision) => cache.not_older_than(revision).await,
        }
    }

    pub async fn get_item(&self) -> Result<Arc<Item>> {
        let version = match self.query.text("resourceVersion") {
            "" => Version::Latest,
            "0" => Version::Any,
            text => Version::NotOlderThan(parse_version(text)?),
        };
        let found = match self.await_version(version).await {
            Ok(()) => self.endpoint.cache.read().get(&cache_key(self.namespace(), &self.info.name)).cloned(),
            // What keeps lists from being read does not keep the others from being.
            Err(error) if error.reason() == STORE_READ_ERROR => self.stored_item().await?,
            Err(error) => return Err(error),
        };
        found.ok_or_else(|| self.not_found())
    }

    /// The object named by the request as the store has it.
    pub async fn stored_item(&self) -> Result<Option<Arc<Item>>> {
        let key = self.descriptor().key(self.namespace(), &self.info.name);
        Ok(self.endpoint.cache.stored(&key).await?.map(Arc::new))
    }

    pub async fn list(&self) -> Result<Listing> {
        check_list(&self.query, false)?;
        let selection = self.selection()?;
        let version = self.query.text("resourceVersion");
        let limit = usize::try_from(self.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
        // Whatever is held at once is given at once, also the rest of a list in chunks.
        let limit = if version == "0" { 0 } else { limit };
        let token = self.query.text("continue");
        if !token.is_empty() {
            let position = Position::decode(token)?;
            if !matches!(version, "" | "0") {
                return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
            }
            return Box::pin(self.list_at(&selection, position.revision, Some(position.start), limit)).await;
        }
        match self.list_version(limit > 0)? {
            version @ Version::Exact(revision) => {
                self.await_version(version).await?;
                Box::pin(self.list_at(&selection, revision, None, limit)).await
            }
            version => match self.await_version(version).await {
                Ok(()) => {
                    let listing = self.list_cached(&selection, limit);
                    // Of a cache that was stopped meanwhile nothing would be everything.
                    self.endpoint.cache.check_initialized().map(|()| listing)
                }
                // Another namespace may be whole.
                Err(error) if error.reason() == STORE_READ_ERROR => {
                    Box::pin(self.list_at(&selection, 0, None, limit)).await
                }
                Err(error) => Err(error),
            },
        }
    }

    fn list_cached(&self, selection: &Selection, limit: usize) -> Listing {
        let cache = &self.endpoint.cache;
        let state = cache.read();
        let mut held = state.scan(&selection.namespace);
        if limit == 0 {
            let items = held.filter(|item| selection.matches(cache, item)).cloned().collect();
            return Listing { items, revision: state.revision, continue_: None, remaining: None };
        }
        let items: Vec<_> = held.by_ref().filter(|item| selection.matches(cache, item)).take(limit).cloned().collect();
        // As upstream: there is more to come if there is anything more, whether it matches or not.
        let more = items.len() == limit && held.next().is_some();
        let continue_ = items.last().filter(|_| more).map(|last| Position::after(&last.key, state.revision).encode());
        let remaining = (more && selection.is_everything()).then(|| held.count() as u64 + 1);
        Listing { items, revision: state.revision, continue_, remaining }
    }

    /// Lists at one revision (0: now), from the store.
    async fn list_at(
        &self,
        selection: &Selection,
        revision: u64,
        start: Option<String>,
        limit: usize,
    ) -> Result<Listing> {
        let (descriptor, cache) = (self.descriptor(), &self.endpoint.cache);
        let root = descriptor.registry_root();
        let prefix =
            if selection.namespace.is_empty() { root.clone() } else { format!("{root}{}/", selection.namespace) };
        let page = if limit == 0 { 2000 } else { limit.max(SMALLEST_PAGE) };
        let mut range = Range::prefix(prefix).at(revision).limit(page);
        if let Some(start) = start {
            range = range.starting_at(format!("{root}{start}"));
        }
        let mut items: Vec<Arc<Item>> = Vec::new();
        loop {
            let page = self.api.store.range(range.clone()).await.map_err(|error| match error {
                StoreError::Unreadable(all) => cache.untransformable(all),
                error => continue_error(error, &range, &root),
            })?;
            range.revision = page.revision;
            let more = page.more();
            let total = page.kvs.len();
            let values = cache.decoded(page.kvs.iter().map(|kv| kv.value.clone()).collect()).await?;
            for (at, (kv, value)) in page.kvs.iter().zip(&values).enumerate() {
                let decoded = cache.decode(kv, value).map_err(|one| unreadable::listed(descriptor, &[one]))?;
                let Some(item) = decoded else { continue };
                if !selection.matches(cache, &item) {
                    continue;
                }
                items.push(Arc::new(item));
                if limit > 0 && items.len() == limit {
                    let left = page.count - (at as u64 + 1);
                    let unfinished = at + 1 < total || more;
                    let key = kv.key.strip_prefix(&root).unwrap_or_default();
                    let continue_ = unfinished.then(|| Position::after(key, page.revision).encode());
                    let remaining = (unfinished && selection.is_everything()).then_some(left);
                    return Ok(Listing { items, revision: page.revision, continue_, remaining });
                }
            }
            match page.kvs.last() {
                Some(last) if more => range.start = Some(format!("{}\0", last.key)),
                _ => return Ok(Listing { items, revision: page.revision, continue_: None, remaining: None }),
            }
            range.limit = next_limit(range.limit, page.kvs.iter().map(|kv| kv.value.len()).sum());
        }
    }

    /// One stored object in the request's version and the view asked for.
    pub fn show(&self, item: &Item, output: &Output) -> Result<Bytes> {
        if output.view == View::Object && output.media == Media::Json && !self.converts() && !output.pretty {
            return Ok(render::line(&item.bytes));
        }
        if let (View::Metadata { version, .. }, Media::Json, false) = (output.view, output.media, output.pretty) {
            return Ok(render::line(&partial_bytes(item, version)));
        }
        self.render(item.decode(), output)
    }

    /// The same for an object at hand, in the hub version.
    pub fn render(&self, object: Value, output: &Output) -> Result<Bytes> {
        let value = match output.view {
            View::Object => self.served(object)?,
            View::Metadata { version, .. } => table::partial(object, version),
            View::Table { version } => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let row = self.row(object, version, self.now)?;
                self.table(vec![row], &metadata, version)
            }
        };
        render::encode(&value, output)
    }

    pub fn served(&self, mut object: Value) -> Result<Value> {
        if self.converts() {
            self.to_served(&mut object)?;
        }
        Ok(object)
    }

    pub fn include(&self) -> Result<Include> {
        let text = self.query.text("includeObject");
        Include::parse(text).ok_or_else(|| {
            ApiError::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {text:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))
        })
    }

    /// One row of a table, ages as of `now`.
    pub fn row(&self, object: Value, version: &str, now: Timestamp) -> Result<Value> {
        let include = self.include()?;
        if self.descriptor().custom {
            let shown = self.served(object)?;
            let columns = table::columns(self.descriptor(), &self.info.group, &self.info.version);
            let cells = crate::crd::resource::cells(columns, &shown, now);
            return Ok(table::row_of(cells, shown, include, version));
        }
        // Mostly no more than the metadata goes along with a row.
        let shown = match include {
            Include::Object => self.served(object.clone())?,
            _ if self.converts() => self.served(object.clone())?,
            _ => json!({"metadata": object["metadata"]}),
        };
        Ok(table::row(self.endpoint.hooks(), &object, shown, include, now, version))
    }

    pub fn table(&self, rows: Vec<Value>, metadata: &Value, version: &str) -> Value {
        let columns = table::columns(self.descriptor(), &self.info.group, &self.info.version);
        table::table(columns, rows, metadata, version)
    }
}

/// `PartialObjectMetadata` of a stored object.
pub fn partial_bytes(item: &Item, version: &str) -> Bytes {
    let metadata = item.metadata();
    let mut bytes = BytesMut::with_capacity(metadata.len() + 90);
    bytes.put_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
    bytes.put_slice(version.as_bytes());
    bytes.put_slice(b"\",\"metadata\":");
    bytes.put_slice(metadata);
    bytes.put_u8(b'}');
    bytes.freeze()
}

impl Listing {
    /// `ListMeta`.
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.continue_ {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }

    /// Bytes of all objects.
    pub fn size(&self) -> usize {
        self.items.iter().map(|item| item.bytes.len()).sum()
    }
}

/// How many objects the page after one of so many, and so many bytes, has.
fn next_limit(limit: usize, bytes: usize) -> usize {
    if bytes > HEAVY_PAGE || limit > LARGEST_PAGE { limit } else { (limit * 2).min(LARGEST_PAGE) }
}

/// A paged list whose revision is gone says how to go on.
fn continue_error(error: StoreError, range: &Range, root: &str) -> ApiError {
    let StoreError::Compacted { .. } = error else { return store_error(error) };
    let Some(start) = range.start.as_deref().and_then(|start| start.strip_prefix(root)) else {
        return ApiError::expired("The resourceVersion for the provided list is too old.");
    };
    let token = Position { revision: 0, start: start.to_owned() }.encode();
    ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    )
    .with_list_continue(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of a hundred pages would count what lies behind it, of a hundred thousand objects.
    #[test]
    fn a_selection_of_few_is_found_in_few_pages() {
        const OBJECTS: usize = 150_000;
        let (mut limit, mut read, mut pages) = (SMALLEST_PAGE, 0, 0);
        while read < OBJECTS {
            (read, pages) = (read + limit, pages + 1);
            limit = next_limit(limit, limit * 300);
        }
        assert!(pages < 25, "{pages}");
        assert_eq!(next_limit(SMALLEST_PAGE, HEAVY_PAGE + 1), SMALLEST_PAGE, "of large objects few are held at once");
        assert_eq!(next_limit(50_000, 0), 50_000, "as many as the client wants");
    }
}
