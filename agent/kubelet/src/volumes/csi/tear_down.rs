//! Unmounting: a pod's volumes, and what was staged for them
//! (`csi_mounter.go: TearDownAt`, `csi_attacher.go: UnmountDevice`).

use std::io;
use std::path::Path;

use super::data::{self, Place, Record};
use super::driver::Driver;
use super::{Csi, Names};
use crate::volume_contract::VolumeError;
use crate::volumes::{blocking, mounts};

impl Csi {
    /// Unpublishes everything of the pod, and unstages what no other pod uses. Goes on after errors and
    /// returns the first.
    pub async fn tear_down(&self, uid: &str) -> Result<(), VolumeError> {
        let mut first = None;
        let mut still = Names::new();
        for (place, record) in data::of_pod(&self.layout, uid) {
            if let Err(error) = self.give_back(&place, &record).await {
                still.insert(record.unique_name());
                first.get_or_insert(error);
            }
        }
        self.mounted.lock().retain(|(known, _), _| known != uid);
        self.tokens.release(uid);
        self.attached.release(uid, &still);
        first.map_or(Ok(()), Err)
    }

    async fn give_back(&self, place: &Place, record: &Record) -> Result<(), VolumeError> {
        let failed = |step, message| VolumeError { step, volume: record.volume.clone(), message };
        let step = if place.block { "UnmapVolume.UnmapPodDevice" } else { "UnmountVolume.TearDown" };
        let lock = self.lock(&record.unique_name());
        let _unmounting = lock.lock().await;
        let driver = self.drivers.get(&record.driver).map_err(|error| {
            failed(step, format!("kubernetes.io/csi: Unmounter.TearDownAt failed to get CSI client: {error}"))
        })?;
        driver
            .unpublish(&record.handle, &place.target)
            .await
            .map_err(|error| failed(step, format!("kubernetes.io/csi: Unmounter.TearDownAt failed: {error}")))?;
        let marks = place.clone();
        blocking(move || {
            if mounts::is_mounted(&marks.target) {
                return Err(format!("{} is still mounted", marks.target.display()));
            }
            remove_marks(&marks).map_err(|error| error.to_string())
        })
        .await
        .map_err(|error| {
            let target = place.target.display();
            failed(
                step,
                format!("kubernetes.io/csi: Unmounter.TearDownAt failed to clean mount dir [{target}]: {error}"),
            )
        })?;
        if record.is_ephemeral() || self.is_used(record) {
            return Ok(());
        }
        let step = if place.block { "UnmapDevice" } else { "UnmountDevice" };
        self.unstage(&driver, &record.handle, &place.staging).await.map_err(|error| failed(step, error))
    }

    /// Whether some pod here has the volume.
    pub(super) fn is_used(&self, record: &Record) -> bool {
        let all = data::of_all(&self.layout);
        all.iter().any(|(_, _, other)| other.driver == record.driver && other.handle == record.handle)
    }

    async fn unstage(&self, driver: &Driver, handle: &str, staging: &Path) -> Result<(), String> {
        if !staging.exists() {
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
            let lock = self.lock(&record.unique_name());
            let _unmounting = lock.lock().await;
            if self.is_used(&record) {
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

fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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
