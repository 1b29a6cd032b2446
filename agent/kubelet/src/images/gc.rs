//! Which images go when the disk fills (`pkg/kubelet/images/image_gc_manager.go`), and with them, or
//! with those that somebody else removed, what is known of whose pulls brought them. [`choose`] is pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use component::EventType;
use jiff::Timestamp;
use proto::runtime::v1 as cri;

use crate::context::NodeContext;
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

/// The images to remove to free `wanted` bytes: the least recently used first, none younger than
/// `min_age`.
pub fn choose(mut candidates: Vec<Candidate>, wanted: u64, now: Timestamp, min_age: Duration) -> Vec<Candidate> {
    candidates.sort_by_key(|image| (image.last_used, image.first_seen));
    let mut freed = 0;
    let mut chosen = Vec::new();
    for image in candidates {
        if freed >= wanted {
            break;
        }
        let age = Duration::try_from(now.duration_since(image.first_seen)).unwrap_or_default();
        if age < min_age {
            continue;
        }
        freed += image.bytes;
        chosen.push(image);
    }
    chosen
}

/// Bytes to free: down to the low mark once the high mark is passed.
pub fn wanted(fs: FileSystem, high_percent: u8, low_percent: u8) -> u64 {
    if fs.bytes == 0 {
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
    let mut records = Records::default();
    loop {
        if let Err(error) = collect(&node, &mut records, None).await {
            tracing::warn!(%error, "image garbage collection failed; trying again later");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Frees what the thresholds ask for, or `bytes`.
async fn collect(
    node: &NodeContext,
    records: &mut Records,
    bytes: Option<u64>,
) -> Result<(), crate::cri::RuntimeError> {
    let began = Timestamp::now();
    let (images, containers) = tokio::try_join!(node.runtime.list_images(), node.runtime.list_containers(None))?;
    let mut present: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
    let used: HashSet<String> = containers
        .into_iter()
        .flat_map(|container| [container.image_ref, container.image_id, container.image.unwrap_or_default().image])
        .filter(|name| !name.is_empty())
        .collect();
    let now = Timestamp::now();
    let candidates = records.candidates(&images, &used, now);
    let policy = &node.config.image_gc;
    let fs = image_file_system(node).await;
    let wanted = bytes.unwrap_or_else(|| wanted(fs, policy.high_percent, policy.low_percent));
    if wanted == 0 {
        node.images.prune(&present, began);
        return Ok(());
    }
    let mut freed = 0;
    for image in choose(candidates, wanted, now, policy.min_age) {
        tracing::info!(image = image.id, bytes = image.bytes, "removing an unused image to free disk space");
        node.runtime.remove_image(&image.id).await?;
        present.remove(image.id.as_str());
        freed += image.bytes;
    }
    node.images.prune(&present, began);
    if freed < wanted {
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

    #[test]
    fn the_least_recently_used_go_first_and_young_ones_stay() {
        let image = |id: &str, bytes, last_used, first_seen| Candidate {
            id: id.into(),
            bytes,
            last_used: at(last_used),
            first_seen: at(first_seen),
        };
        let all = vec![
            image("new", 10, 0, 990),
            image("old", 10, 5, 1),
            image("older", 10, 2, 1),
            image("recent", 10, 900, 1),
        ];
        let names = |wanted| -> Vec<String> {
            choose(all.clone(), wanted, at(1000), Duration::from_secs(120)).into_iter().map(|image| image.id).collect()
        };
        assert_eq!(names(1), ["older"]);
        assert_eq!(names(15), ["older", "old"]);
        assert_eq!(names(100), ["older", "old", "recent"]);
    }

    #[test]
    fn marks() {
        let fs = |available| FileSystem { bytes: 1000, available, ..Default::default() };
        assert_eq!((wanted(fs(200), 85, 80), wanted(fs(150), 85, 80), wanted(fs(100), 85, 80)), (0, 50, 100));
        assert_eq!(wanted(FileSystem::default(), 85, 80), 0);
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
