//! A watch as a response: initial objects where asked for, changes, bookmarks, until its time is up.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::Call;
use super::read::{Version, parse_version};
use crate::cache::item::Item;
use crate::cache::watch::{Change, Seen, Selection, Watcher};
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::negotiate::{Media, Output, STREAMS, View};
use crate::http::options::check_list;
use crate::http::render;
use crate::protobuf;

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Without `timeoutSeconds` a watch lasts between this and twice as long.
const MIN_TIMEOUT: u64 = 1800;
/// Events are sent together up to about this many bytes.
const CHUNK: usize = 64 * 1024;
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// A watch under way: what is still to be sent, and from where to go on.
struct Watching {
    call: Arc<Call>,
    output: Output,
    watcher: Watcher,
    initial: std::vec::IntoIter<Arc<Item>>,
    /// Changes that are not sent yet.
    seen: std::vec::IntoIter<Seen>,
    /// A bookmark that says where the initial objects end is still due.
    marks_end: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    ends: Instant,
    timer: Pin<Box<Sleep>>,
    stopping: CancellationToken,
    header_sent: bool,
    over: bool,
}

impl Call {
    /// Answers a watch request.
    pub async fn watch(self: Arc<Self>, output: Output) -> Result<Response<Body>> {
        let content_type = match output.media {
            Media::Json => "application/json",
            Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            Media::Yaml => {
                let served = if self.descriptor().custom { 1 } else { 2 };
                return Err(ApiError::not_acceptable(&STREAMS[..served]));
            }
        };
        check_list(&self.query, true)?;
        if self.api.stopping.is_cancelled() {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        let (selection, version) = (self.selection()?, self.watch_version()?);
        let (watcher, initial) = match self.start_watch(selection, version).await {
            Ok(started) => started,
            Err(error) if error.code() == StatusCode::TOO_MANY_REQUESTS => return Err(error),
            // What the client asked for is sound: what goes wrong from here on is told by an event.
            Err(error) => {
                let event = self.error_event(&error, output.media)?;
                return Ok(render::response(StatusCode::OK, content_type, event));
            }
        };
        let timeout = self.query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).map(i64::cast_unsigned);
        let timeout = timeout.unwrap_or_else(|| rand::rng().random_range(MIN_TIMEOUT..2 * MIN_TIMEOUT));
        let now = Instant::now();
        let bookmarks = self.query.flag("allowWatchBookmarks");
        let watching = Watching {
            bookmarks,
            watcher,
            initial: initial.into_iter(),
            seen: Vec::new().into_iter(),
            marks_end: bookmarks && self.sends_initial(version),
            next_bookmark: now + BOOKMARK_EVERY,
            ends: now + Duration::from_secs(timeout),
            timer: Box::pin(tokio::time::sleep_until(now)),
            stopping: self.api.stopping.clone(),
            header_sent: false,
            over: false,
            output,
            call: self,
        };
        let events = futures::stream::unfold(watching, |mut watching| async move {
            let bytes = watching.next().await?;
            Some((Ok(bytes), watching))
        });
        Ok(render::response(StatusCode::OK, content_type, Body::stream(events)))
    }

    fn watch_version(&self) -> Result<Version> {
        Ok(match self.query.text("resourceVersion") {
            "" => Version::Latest,
            "0" => Version::Any,
            text => Version::NotOlderThan(parse_version(text)?),
        })
    }

    /// Whether the watch begins with what there is: where it names no version, that is the default.
    fn sends_initial(&self, version: Version) -> bool {
        self.query.flag_or("sendInitialEvents", !matches!(version, Version::NotOlderThan(_)))
    }

    async fn start_watch(&self, selection: Selection, version: Version) -> Result<(Watcher, Vec<Arc<Item>>)> {
        let cache = &self.endpoint.cache;
        let sends_initial = self.sends_initial(version);
        match version {
            Version::NotOlderThan(revision) if !sends_initial => {
                cache.ready().await?;
                return Ok((Watcher::after(cache, selection, revision).await?, Vec::new()));
            }
            version => self.await_version(version).await?,
        }
        let (watcher, initial) = Watcher::from_now(cache, selection);
        // Of a cache that was stopped meanwhile nothing would be everything.
        cache.check_initialized()?;
        Ok((watcher, if sends_initial { initial } else { Vec::new() }))
    }

    fn error_event(&self, error: &ApiError, media: Media) -> Result<Bytes> {
        let mut event = BytesMut::new();
        put_event(&mut event, "ERROR", &error.to_status(), media)?;
        Ok(event.freeze())
    }
}

impl Watching {
    /// The next bytes to send; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut chunk = BytesMut::new();
        let outcome = self.fill(&mut chunk).await;
        if let Err(error) = outcome {
            self.over = true;
            let _ = put_event(&mut chunk, "ERROR", &error.to_status(), self.output.media);
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    /// Puts at least one event into `chunk`, or nothing at the end of the watch.
    async fn fill(&mut self, chunk: &mut BytesMut) -> Result<()> {
        while chunk.len() < CHUNK
            && let Some(item) = self.initial.next()
        {
            let bytes = item.bytes.clone();
            self.put(chunk, Change::Added, &item, &bytes)?;
        }
        if self.initial.len() > 0 {
            return Ok(());
        }
        if std::mem::take(&mut self.marks_end) {
            return self.bookmark(chunk, true);
        }
        self.put_seen(chunk)?;
        if !chunk.is_empty() {
            return Ok(());
        }
        let wake = if self.bookmarks { self.next_bookmark.min(self.ends) } else { self.ends };
        self.timer.as_mut().reset(wake);
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => {
                self.over = true;
                Ok(())
            }
            seen = self.watcher.next() => {
                let Some(seen) = seen else {
                    self.over = true;
                    return Ok(());
                };
                self.seen = seen.into_iter();
                self.put_seen(chunk)
            }
            () = self.timer.as_mut() => {
                self.seen = self.watcher.move_on().into_iter();
                self.put_seen(chunk)?;
                if self.seen.len() > 0 {
                    return Ok(());
                }
                let now = Instant::now();
                if now < self.ends {
                    self.next_bookmark = now + BOOKMARK_EVERY;
                    // Where nothing is written for hours, the next one is to lead past what is compacted.
                    self.watcher.cache().ask_for_progress();
                    return self.bookmark(chunk, false);
                }
                self.over = true;
                // A last bookmark lets the client go on from here.
                if self.bookmarks { self.bookmark(chunk, false) } else { Ok(()) }
            }
        }
    }

    /// Puts changes into `chunk` until it is full: who reads slowly is to hold no more than that in copies.
    fn put_seen(&mut self, chunk: &mut BytesMut) -> Result<()> {
        while chunk.len() < CHUNK
            && let Some(seen) = self.seen.next()
        {
            self.put(chunk, seen.change, &seen.item, &seen.bytes)?;
        }
        Ok(())
    }

    fn put(&mut self, chunk: &mut BytesMut, change: Change, item: &Item, bytes: &Bytes) -> Result<()> {
        self.call.endpoint.watched.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let plain = self.output.media == Media::Json && !self.output.pretty;
        match self.output.view {
            View::Object if plain && !self.call.converts() => {
                chunk.reserve(bytes.len() + 40);
                put_head(chunk, change.name());
                chunk.put_slice(bytes);
                chunk.put_slice(b"}\n");
                Ok(())
            }
            View::Metadata { version, .. } if plain && std::ptr::eq(bytes.as_ptr(), item.bytes.as_ptr()) => {
                put_head(chunk, change.name());
                chunk.put_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
                chunk.put_slice(version.as_bytes());
                chunk.put_slice(b"\",\"metadata\":");
                chunk.put_slice(item.metadata());
                chunk.put_slice(b"}}\n");
                Ok(())
            }
            _ => {
                let object: Value = serde_json::from_slice(bytes).map_err(ApiError::internal)?;
                let shown = self.shown(object)?;
                put_event(chunk, change.name(), &shown, self.output.media)
            }
        }
    }

    fn shown(&mut self, object: Value) -> Result<Value> {
        Ok(match self.output.view {
            View::Object => self.call.served(object)?,
            View::Metadata { version, .. } => crate::table::partial(object, version),
            View::Table { version } => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                // Ages are those of the moment: a watch may last for hours.
                let row = self.call.row(object, version, Timestamp::now())?;
                let mut table = self.call.table(vec![row], &metadata, version);
                // The columns come with the first event only.
                if std::mem::replace(&mut self.header_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        })
    }

    fn bookmark(&mut self, chunk: &mut BytesMut, initial_end: bool) -> Result<()> {
        let mut metadata = json!({"resourceVersion": self.watcher.position().to_string()});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_END: "true"});
        }
        let kind = self.call.kind();
        let object = match self.output.view {
            View::Object => json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata}),
            View::Metadata { version, .. } => crate::table::partial(json!({"metadata": metadata}), version),
            View::Table { .. } => {
                self.shown(json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata}))?
            }
        };
        put_event(chunk, "BOOKMARK", &object, self.output.media)
    }
}

fn put_head(chunk: &mut BytesMut, name: &str) {
    chunk.put_slice(b"{\"type\":\"");
    chunk.put_slice(name.as_bytes());
    chunk.put_slice(b"\",\"object\":");
}

fn put_event(chunk: &mut BytesMut, name: &str, object: &Value, media: Media) -> Result<()> {
    if media == Media::Protobuf {
        chunk.put_slice(&protobuf::encode_watch_event(name, object)?);
        return Ok(());
    }
    put_head(chunk, name);
    chunk.put_slice(&crate::cache::item::encode(object));
    chunk.put_slice(b"}\n");
    Ok(())
}
