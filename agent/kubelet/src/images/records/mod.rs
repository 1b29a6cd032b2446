//! Which pods' pulls brought an image to the node (`pkg/kubelet/images/pullmanager`).
//!
//! An image that one pod pulled with its Secret is there for the next pod too, which may have no right
//! to it. So a pull is noted before it begins ([`Pull`]), and after it whose credentials it was done
//! with; who wants to use what is there is measured by that ([`access`], pure).
//!
//! These files are what no one else could say again: neither the runtime nor the registry knows for
//! whom an image was pulled. They bend the rule that a node keeps no database of its own as far as
//! Kubernetes bends it, and lie where its kubelet keeps them ([`files`]), in its form ([`form`]). Without
//! them, images count as brought by the machine's owner: every pod may use them.
//!
//! Neighbours: [`super`] asks and notes; [`super::gc`] has records of images that are gone removed.

mod access;
mod files;
mod form;
mod merge;
mod policy;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use jiff::Timestamp;
use parking_lot::Mutex;
use proto::runtime::v1::Image;

pub use access::{Access, Comparison, compare};
pub use files::RecordError;
pub use form::{PullCredentials, PullSecret};
pub use policy::{Allowlist, NAMES as POLICIES, Policy, PolicyError};

use super::keyring::Credential;
use super::names;
use access::{Known, decide};
use files::Files;
use form::PulledRecord;

pub struct Records {
    files: Files,
    policy: Policy,
    /// How many pulls of an image, as pods write it, are under way. Held while files are read and
    /// written, so that a decision sees all of a change or nothing of it; never while something is
    /// waited for.
    under_way: Mutex<HashMap<String, usize>>,
}

impl Records {
    pub fn open(directory: &Path, policy: Policy) -> io::Result<Self> {
        Ok(Self { files: Files::open(directory)?, policy, under_way: Mutex::default() })
    }

    /// Whether a pod may use the image with this id, which it calls `image`.
    pub fn access(&self, image: &str, image_ref: &str) -> Access {
        let known = self.known(&self.under_way.lock(), image, image_ref);
        match known {
            Ok(known) => decide(&self.policy, &names::repository(image), known),
            Err(error) => {
                tracing::error!(%error, image, "unable to access records about image pulls");
                Access::Unknown
            }
        }
    }

    fn known(&self, under_way: &HashMap<String, usize>, image: &str, image_ref: &str) -> Result<Known, RecordError> {
        if let Some(record) = self.files.record(image_ref)? {
            return Ok(Known::Pulled(record));
        }
        // One of an earlier process is known from its file alone.
        let being_pulled = under_way.contains_key(image) || self.files.has_intent(image)?;
        Ok(if being_pulled { Known::BeingPulled } else { Known::Nothing })
    }

    /// A pull begins: whatever becomes of it, the image will not count as brought by the machine's owner.
    pub fn begin(&self, image: &str) -> Result<Pull<'_>, RecordError> {
        let mut under_way = self.under_way.lock();
        self.files.write_intent(image)?;
        *under_way.entry(image.to_owned()).or_default() += 1;
        Ok(Pull { records: self, image: image.to_owned(), ended: false })
    }

    /// A Secret that was found to fit fits from now on.
    pub fn note(&self, image: &str, image_ref: &str, secret: PullSecret) {
        let credentials = PullCredentials { kubernetes_secrets: vec![secret], ..PullCredentials::default() };
        let _held = self.under_way.lock();
        if let Err(error) = self.add(image, image_ref, &credentials) {
            tracing::error!(%error, image, image_ref, "a fitting pull secret could not be noted");
        }
    }

    /// With the lock held. A record that cannot be read is written anew.
    fn add(&self, image: &str, image_ref: &str, credentials: &PullCredentials) -> Result<(), RecordError> {
        let (repository, now) = (names::repository(image), Timestamp::now());
        let known = self.files.record(image_ref).unwrap_or_else(|error| {
            tracing::warn!(%error, image, "the record of a pulled image is written anew");
            None
        });
        let changed = match known {
            Some(record) => merge::merge(&record, &repository, credentials, now),
            None => {
                let record = PulledRecord::new(image_ref, now);
                Some(merge::merge(&record, &repository, credentials, now).unwrap_or(record))
            }
        };
        changed.map_or(Ok(()), |record| self.files.write_record(&record))
    }

    /// Pulls that an earlier process did not see the end of: what is there of them was pulled, nobody
    /// knows for whom.
    pub fn adopt(&self, images: &[Image]) {
        let _held = self.under_way.lock();
        for intent in self.files.intents() {
            let name = names::normalized(&intent.image);
            let listed = |image: &&Image| image.repo_tags.contains(&name) || image.repo_digests.contains(&name);
            let Some(found) = images.iter().find(listed) else { continue };
            let noted = self.add(&intent.image, &found.id, &PullCredentials::default());
            if let Err(error) = noted.and_then(|()| self.files.remove_intent(&intent.image)) {
                tracing::error!(%error, image = intent.image, "an image whose pull was interrupted could not be noted");
            }
        }
    }

    /// Whether there is anything to [`Self::adopt`].
    pub fn has_intents(&self) -> bool {
        self.files.counts().0 > 0
    }

    /// Drops the records of images that are not among `present`, the ids that the runtime had after
    /// `asked`.
    pub fn prune(&self, present: &HashSet<&str>, asked: Timestamp) {
        let _held = self.under_way.lock();
        for record in self.files.records() {
            // Times in records are to the second.
            if record.updated() >= asked.as_second() || present.contains(record.image_ref.as_str()) {
                continue;
            }
            if let Err(error) = self.files.remove_record(&record.image_ref) {
                tracing::error!(%error, image_ref = record.image_ref, "the record of an image that is gone could not be removed");
            }
        }
    }

    /// How many pulls and how many images are noted on disk.
    pub fn counts(&self) -> (usize, usize) {
        self.files.counts()
    }

    /// One pull less is under way. Returns whether it was the last of its image.
    fn count_down(under_way: &mut HashMap<String, usize>, image: &str) -> bool {
        match under_way.get_mut(image) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                under_way.remove(image);
                true
            }
        }
    }

    fn end(&self, under_way: &mut HashMap<String, usize>, image: &str) {
        if Self::count_down(under_way, image)
            && let Err(error) = self.files.remove_intent(image)
        {
            tracing::error!(%error, image, "that an image was being pulled could not be forgotten");
        }
    }
}

/// A pull under way. One that is dropped has an unknown end, as when the process ends: that it began
/// stays on disk.
#[must_use]
pub struct Pull<'a> {
    records: &'a Records,
    image: String,
    ended: bool,
}

impl Pull<'_> {
    /// The image is there, pulled with this credential or with none.
    pub fn succeeded(mut self, image_ref: &str, used: Option<&Credential>) {
        let credentials = PullCredentials::of(used);
        let mut under_way = self.records.under_way.lock();
        self.ended = true;
        match self.records.add(&self.image, image_ref, &credentials) {
            Ok(()) => self.records.end(&mut under_way, &self.image),
            // What was pulled must not count as brought by the machine's owner: the note of the pull stays.
            Err(error) => tracing::error!(%error, image = self.image, "whose pull succeeded could not be noted"),
        }
    }

    pub fn failed(mut self) {
        self.ended = true;
        let mut under_way = self.records.under_way.lock();
        self.records.end(&mut under_way, &self.image);
    }
}

impl Drop for Pull<'_> {
    fn drop(&mut self) {
        if !self.ended {
            Records::count_down(&mut self.records.under_way.lock(), &self.image);
        }
    }
}

#[cfg(test)]
mod tests;
