//! Unmounting: a pod's volumes, and what was staged for them
//! (`csi_mounter.go: TearDownAt`, `csi_attacher.go: UnmountDevice`).

use std::io;
use std::path::Path;

use super::data::{self, Place, Record};
use super::driver::Driver;
use super::{Csi, Names};
use crate::files::gone;
use crate::volume_contract::VolumeError;
use crate::volumes::{blocking, mounts};

impl Csi {
    /// Unpublishes everything of the pod, and unstages what no other pod uses. Goes on after errors and
    /// returns the first.
    pub async fn tear_down(&self, uid: &str) -> Result<(), VolumeError> {
        let mut first = None;
        let mut still = Names::new();
        let mut all_known = true;
        for found in data::of_pod(&self.layout, uid) {
            let outcome = match found {
                Ok((place, record)) => self.give_back(&place, &record).await.inspect_err(|_| {
                    still.insert(record.unique_name());
                }),
                Err(unread) => {
                    all_known = false;
                    let volume = unread.name.clone().unwrap_or_else(|| "*".to_owned());
                    let message = format!("kubernetes.io/csi: unmounter {unread}");
                    Err(VolumeError { step: "UnmountVolume.NewUnmounter", volume, message })
                }
            };
            if let Err(error) = outcome {
                first.get_or_insert(error);
            }
        }
        self.mounted.lock().retain(|(known, _), _| known != uid);
        self.tokens.release(uid);
        // What cannot be named may be any of those that the pod uses.
        if all_known {
            self.attached.release(uid, &still);
        }
        first.map_or(Ok(()), Err)
    }

    async fn give_back(&self, place: &Place, record: &Record) -> Result<(), VolumeError> {
        let failed = |step, message| VolumeError { step, volume: record.volume.clone(), message };
        let step = if place.block { "UnmapVolume.UnmapPodDevice" } else { "UnmountVolume.TearDown" };
        let _unmounting = self.locks.hold(&record.unique_name()).await;
        let driver = self.drivers.get(&record.driver).map_err(|error| {
            failed(step, format!("kubernetes.io/csi: Unmounter.TearDownAt failed to get CSI client: {error}"))
        })?;
        driver
            .unpublish(&record.handle, &place.target)
            .await
            .map_err(|error| failed(step, format!("kubernetes.io/csi: Unmounter.TearDownAt failed: {error}")))?;
        let unclean = |error: String| {
            let target = place.target.display();
            failed(
                step,
                format!("kubernetes.io/csi: Unmounter.TearDownAt failed to clean mount dir [{target}]: {error}"),
            )
        };
        if mounts::is_mounted(&place.target) {
            return Err(unclean(format!("{} is still mounted", place.target.display())));
        }
        // The marks say that there is something to unstage: they go when nothing is left of it.
        if !record.is_ephemeral() && !self.is_used(record, Some(place)) {
            let step = if place.block { "UnmapDevice" } else { "UnmountDevice" };
            self.unstage(&driver, &record.handle, &place.staging).await.map_err(|error| failed(step, error))?;
        }
        let marks = place.clone();
        blocking(move || remove_marks(&marks).map_err(|error| error.to_string())).await.map_err(unclean)
    }

    /// Whether some pod here has the volume, but for the one whose place `own` is. A record that cannot
    /// be read may be the volume's.
    pub(super) fn is_used(&self, record: &Record, own: Option<&Place>) -> bool {
        let is_other = |place: &Place| own.is_none_or(|own| own.mark != place.mark);
        data::of_all(&self.layout).iter().any(|(_, found)| match found {
            Ok((place, other)) => is_other(place) && other.driver == record.driver && other.handle == record.handle,
            // What is staged is noted without the volume's name.
            Err(unread) => record.volume.is_empty() || unread.name.as_ref().is_none_or(|name| *name == record.volume),
        })
    }

    async fn unstage(&self, driver: &Driver, handle: &str, staging: &Path) -> Result<(), String> {
        let at = staging.to_owned();
        if !blocking(move || Ok(mounts::is_there(&at))).await? {
            return Ok(());
        }
        if driver.abilities().await.map_err(|error| error.to_string())?.stage {
            driver.unstage(handle, staging).await.map_err(|error| error.to_string())?;
        }
        let staging = staging.to_owned();
        blocking(move || {
            if mounts::is_mounted(&staging) {
                return Err(format!("{} is still mounted", staging.display()));
            }
            remove_staging(&staging)
                .map_err(|error| format!("failed to clean up global mount {}: {error}", staging.display()))
        })
        .await
    }

    /// Unstages what is left of a crash between a pod's last unmount and the node's.
    pub(super) async fn unstage_forgotten(&self, driver: &Driver) {
        for (staging, record) in data::staged(&self.layout, &driver.name) {
            let _unmounting = self.locks.hold(&record.unique_name()).await;
            if self.is_used(&record, None) {
                continue;
            }
            if let Err(error) = self.unstage(driver, &record.handle, &staging).await {
                tracing::warn!(
                    volume = record.handle,
                    driver = driver.name,
                    error,
                    "a volume that no pod uses could not be unstaged"
                );
            }
        }
    }
}

/// Removes where a volume was staged, and what says so.
pub(super) fn remove_staging(staging: &Path) -> io::Result<()> {
    gone(std::fs::remove_dir(staging))?;
    match staging.parent() {
        Some(parent) if staging.ends_with("globalmount") => data::forget(parent),
        _ => Ok(()),
    }
}

/// Removes a target that nothing is mounted on, and what says that the pod has the volume.
pub(super) fn remove_marks(place: &Place) -> io::Result<()> {
    if !place.block {
        gone(std::fs::remove_dir(&place.target))?;
        return data::forget(&place.data);
    }
    gone(std::fs::remove_file(&place.target))?;
    gone(std::fs::remove_file(&place.mark))?;
    // The record is for all pods: it goes with the last.
    let publish = place.target.parent().unwrap_or(Path::new("/"));
    if std::fs::remove_dir(publish).is_ok() {
        data::forget(&place.data)?;
        gone(std::fs::remove_dir(place.data.parent().unwrap_or(Path::new("/"))))?;
    }
    Ok(())
}
