//! Which images go when the disk fills (`pkg/kubelet/images/image_gc_manager.go`), and with them, or
//! with those that somebody else removed, what is known of whose pulls brought them. [`in_order`] is pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use component::EventType;
use jiff::Timestamp;
use proto::runtime::v1 as cri;

use crate::context::NodeContext;
use crate::cri::RuntimeError;
use crate::node::heartbeat::node_event_of;
use crate::node::machine::{FileSystem, file_system};

/// How often the disk is looked at.
const PERIOD: Duration = Duration::from_secs(300);

/// An image and when it was last used or first seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: String,
    pub bytes: u64,
    pub last_used: Timestamp,
    pub first_seen: Timestamp,
}

/// The images that may go, the least recently used first, none younger than `min_age`.
pub fn in_order(mut candidates: Vec<Candidate>, now: Timestamp, min_age: Duration) -> Vec<Candidate> {
    candidates.sort_by_key(|image| (image.last_used, image.first_seen));
    let age = |image: &Candidate| Duration::try_from(now.duration_since(image.first_seen)).unwrap_or_default();
    candidates.retain(|image| age(image) >= min_age);
    candidates
}

/// Removes images, one after the other, until `wanted` bytes are free; returns those that are gone. One that
/// cannot be removed keeps none of the others.
async fn free<F>(images: Vec<Candidate>, wanted: u64, remove: impl Fn(String) -> F) -> Vec<Candidate>
where
    F: Future<Output = Result<(), RuntimeError>>,
{
    let (mut freed, mut gone) = (0_u64, Vec::new());
    for image in images {
        if freed >= wanted {
            break;
        }
        tracing::info!(image = image.id, bytes = image.bytes, "removing an unused image to free disk space");
        match remove(image.id.clone()).await {
            Ok(()) => {
                freed = freed.saturating_add(image.bytes);
                gone.push(image);
            }
            Err(error) => tracing::warn!(%error, image = image.id, "an unused image could not be removed"),
        }
    }
    gone
}

/// Bytes to free: down to the low mark once the high mark is passed.
pub fn wanted(fs: FileSystem, high_percent: u8, low_percent: u8) -> u64 {
    // Kubernetes' way to switch it off.
    if fs.bytes == 0 || high_percent >= 100 {
        return 0;
    }
    let used = 100 - fs.available * 100 / fs.bytes;
    if used < u64::from(high_percent) {
        return 0;
    }
    (fs.bytes * (100 - u64::from(low_percent)) / 100).saturating_sub(fs.available)
}

/// Remembers when each image was used, across collections.
#[derive(Default)]
pub struct Records {
    seen: HashMap<String, (Timestamp, Timestamp)>,
}

impl Records {
    /// Takes in what there is now; returns what may be removed.
    fn candidates(&mut self, images: &[cri::Image], used: &HashSet<String>, now: Timestamp) -> Vec<Candidate> {
        let present: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.seen.retain(|id, _| present.contains(id.as_str()));
        let mut free = Vec::new();
        for image in images {
            let in_use = std::iter::once(&image.id)
                .chain(&image.repo_tags)
                .chain(&image.repo_digests)
                .any(|name| used.contains(name));
            let (first_seen, last_used) = self.seen.entry(image.id.clone()).or_insert((now, Timestamp::UNIX_EPOCH));
            if in_use {
                *last_used = now;
            } else if !image.pinned {
                free.push(Candidate {
                    id: image.id.clone(),
                    bytes: image.size,
                    last_used: *last_used,
                    first_seen: *first_seen,
                });
            }
        }
        free
    }
}

pub async fn run(node: Arc<NodeContext>) {
    loop {
        if let Err(error) = collect(&node, None).await {
            tracing::warn!(%error, "image garbage collection failed; trying again later");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Removes every image that no container uses, but for young ones: the disk is too full.
pub async fn remove_unused(node: &NodeContext) {
    if let Err(error) = collect(node, Some(u64::MAX)).await {
        tracing::warn!(%error, "unused images could not be looked for");
    }
}

/// Frees what the thresholds ask for, or `bytes`.
async fn collect(node: &NodeContext, bytes: Option<u64>) -> Result<(), RuntimeError> {
    let began = Timestamp::now();
    let (images, containers) = tokio::try_join!(node.runtime.list_images(), node.runtime.list_containers(None))?;
    let mut present: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
    let used: HashSet<String> = containers
        .into_iter()
        .flat_map(|container| [container.image_ref, container.image_id, container.image.unwrap_or_default().image])
        .filter(|name| !name.is_empty())
        .collect();
    let now = Timestamp::now();
    let candidates = node.images.usage.lock().candidates(&images, &used, now);
    let policy = &node.config.image_gc;
    let fs = image_file_system(node).await;
    let wanted = bytes.unwrap_or_else(|| wanted(fs, policy.high_percent, policy.low_percent));
    if wanted == 0 {
        node.images.prune(&present, began);
        return Ok(());
    }
    let remove = |id: String| async move { node.runtime.remove_image(&id).await };
    let gone = free(in_order(candidates, now, policy.min_age), wanted, remove).await;
    for image in &gone {
        present.remove(image.id.as_str());
    }
    node.images.prune(&present, began);
    let freed: u64 = gone.iter().map(|image| image.bytes).sum();
    if bytes.is_none() && freed < wanted {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
        );
        node_event_of(node, EventType::Warning, "FreeDiskSpaceFailed", &message);
    }
    Ok(())
}

/// Where the runtime keeps images, or the kubelet's own file system if it does not say.
pub async fn image_file_system(node: &NodeContext) -> FileSystem {
    let told = node.runtime.image_fs_info().await.ok();
    let mountpoint = told
        .and_then(|told| told.image_filesystems.into_iter().next())
        .and_then(|fs| fs.fs_id)
        .map(|id| std::path::PathBuf::from(id.mountpoint));
    mountpoint.and_then(|path| file_system(&path)).or_else(|| file_system(&node.config.layout.root)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn image(id: &str, last_used: i64, first_seen: i64) -> Candidate {
        Candidate { id: id.into(), bytes: 10, last_used: at(last_used), first_seen: at(first_seen) }
    }

    fn ids(images: &[Candidate]) -> Vec<&str> {
        images.iter().map(|image| image.id.as_str()).collect()
    }

    #[test]
    fn the_least_recently_used_go_first_and_young_ones_stay() {
        let all = vec![image("new", 0, 990), image("old", 5, 1), image("older", 2, 1), image("recent", 900, 1)];
        assert_eq!(ids(&in_order(all, at(1000), Duration::from_secs(120))), ["older", "old", "recent"]);
    }

    #[tokio::test]
    async fn an_image_that_cannot_be_removed_keeps_no_others() {
        let remove = |id: String| async move {
            match id.as_str() {
                "stuck" => Err(RuntimeError::Incomplete { call: "RemoveImage", missing: "image" }),
                _ => Ok(()),
            }
        };
        for (wanted, gone) in [(1, &["a"][..]), (10, &["a"]), (11, &["a", "b"]), (u64::MAX, &["a", "b"])] {
            let images = vec![image("stuck", 1, 1), image("a", 2, 1), image("b", 3, 1)];
            assert_eq!(ids(&free(images, wanted, remove).await), gone, "{wanted}");
        }
    }

    #[test]
    fn marks() {
        let fs = |available| FileSystem { bytes: 1000, available, ..Default::default() };
        assert_eq!((wanted(fs(200), 85, 80), wanted(fs(150), 85, 80), wanted(fs(100), 85, 80)), (0, 50, 100));
        assert_eq!(wanted(FileSystem::default(), 85, 80), 0);
        assert_eq!(wanted(fs(0), 100, 80), 0, "a full disk does not switch it on again");
    }

    #[test]
    fn images_in_use_and_pinned_ones_are_no_candidates() {
        let images = ["a", "b", "c"].map(|id| cri::Image { id: id.into(), pinned: id == "c", ..Default::default() });
        let used = HashSet::from(["b".to_owned()]);
        let mut records = Records::default();
        let free = records.candidates(&images, &used, at(7));
        assert_eq!(free.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
