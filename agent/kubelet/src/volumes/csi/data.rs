//! What is on disk of CSI volumes, where Kubernetes' kubelet has it, so that what is mounted is found
//! again after a restart and drivers find their paths.
//!
//! ```text
//! <root>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/vol_data.json          a pod's volume...
//! <root>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount                  ... and where it is published
//! <root>/plugins/kubernetes.io/csi/<driver>/<sha256 of handle>/vol_data.json  a staged volume...
//! <root>/plugins/kubernetes.io/csi/<driver>/<sha256 of handle>/globalmount    ... and where
//! <root>/plugins/kubernetes.io/csi/volumeDevices/<volume>/data/vol_data.json  a block volume,
//! <root>/plugins/kubernetes.io/csi/volumeDevices/staging/<volume>             where it is staged,
//! <root>/plugins/kubernetes.io/csi/volumeDevices/publish/<volume>/<uid>       its device for a pod,
//! <root>/pods/<uid>/volumeDevices/kubernetes.io~csi/<volume>                  and a link to that
//! ```

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::volume::{self, Lifecycle, Volume};
use crate::files::{self, gone};
use crate::layout::{self, Layout};
use crate::volumes::mounts;

pub const PLUGIN: &str = "kubernetes.io/csi";
const FILE: &str = "vol_data.json";

/// The content of `vol_data.json`: texts, as Kubernetes writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    #[serde(rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub volume: String,
    #[serde(rename = "volumeHandle")]
    pub handle: String,
    #[serde(rename = "driverName")]
    pub driver: String,
    #[serde(rename = "nodeName", skip_serializing_if = "String::is_empty")]
    pub node: String,
    #[serde(rename = "attachmentID", skip_serializing_if = "String::is_empty")]
    pub attachment: String,
    #[serde(rename = "volumeLifecycleMode", skip_serializing_if = "String::is_empty")]
    pub lifecycle: String,
    /// Ours: `true` if the volume was attached to the node.
    #[serde(rename = "attachRequired", skip_serializing_if = "String::is_empty")]
    pub attached: String,
}

impl Record {
    pub fn of(volume: &Volume, node: &str, attached: bool) -> Self {
        Self {
            volume: volume.name.clone(),
            handle: volume.handle.clone(),
            driver: volume.driver.clone(),
            node: node.to_owned(),
            attachment: volume::attachment_name(&volume.driver, &volume.handle, node),
            lifecycle: volume.lifecycle.name().to_owned(),
            attached: if attached { "true".to_owned() } else { String::new() },
        }
    }

    pub fn unique_name(&self) -> String {
        volume::unique_name(&self.driver, &self.handle)
    }

    pub fn is_ephemeral(&self) -> bool {
        self.lifecycle == Lifecycle::Ephemeral.name()
    }

    pub fn read(directory: &Path) -> io::Result<Self> {
        let text = std::fs::read(directory.join(FILE))?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    }

    /// In one step, so that a crash leaves none or all of it.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        make_directory(directory)?;
        files::replace_json(&directory.join(FILE), self)
    }
}

/// A volume of a pod on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub block: bool,
    /// Holds the record.
    pub data: PathBuf,
    /// Where it is published.
    pub target: PathBuf,
    /// Where it is staged, if it is.
    pub staging: PathBuf,
    /// What shows that the pod has it: the directory with the record, or the link to the device.
    pub mark: PathBuf,
}

impl Place {
    pub fn of(layout: &Layout, uid: &str, name: &str, driver: &str, handle: &str, block: bool) -> Self {
        let plugin = layout.plugin(PLUGIN);
        if block {
            let devices = plugin.join("volumeDevices");
            return Self {
                block,
                data: devices.join(name).join("data"),
                target: devices.join("publish").join(name).join(uid),
                staging: devices.join("staging").join(name),
                mark: layout.volume_device(uid, PLUGIN, name),
            };
        }
        let data = layout.volume(uid, PLUGIN, name);
        Self {
            block,
            target: data.join("mount"),
            staging: plugin.join(driver).join(volume::hex(handle)).join("globalmount"),
            mark: data.clone(),
            data,
        }
    }
}

/// A volume that is there, but not its record: nobody can say which one it is.
#[derive(Debug, thiserror::Error)]
#[error("failed to load volume data file [{}]: {error}", .directory.display())]
pub struct Unread {
    /// The volume's name, where that is known.
    pub name: Option<String>,
    pub directory: PathBuf,
    pub error: io::Error,
}

pub type Found = Result<(Place, Record), Unread>;

/// A pod's CSI volumes by what is on disk.
pub fn of_pod(layout: &Layout, uid: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for (directory, block) in [(layout.volume(uid, PLUGIN, ""), false), (layout.volume_device(uid, PLUGIN, ""), true)] {
        match layout::names(&directory) {
            Ok(names) => found.extend(names.iter().filter_map(|name| read(layout, uid, name, block))),
            Err(error) => found.push(Err(Unread { name: None, directory, error })),
        }
    }
    found
}

/// None for a directory that a crash left before its record was in it: nothing was mounted then.
fn read(layout: &Layout, uid: &str, name: &str, block: bool) -> Option<Found> {
    let place = Place::of(layout, uid, name, "", "", block);
    match Record::read(&place.data) {
        Ok(record) => Some(Ok((Place::of(layout, uid, name, &record.driver, &record.handle, block), record))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !mounts::is_mounted(&place.target) => None,
        Err(error) => Some(Err(Unread { name: Some(name.to_owned()), directory: place.data, error })),
    }
}

/// Every pod's.
pub fn of_all(layout: &Layout) -> Vec<(String, Found)> {
    match layout.pod_uids() {
        Ok(uids) => {
            let of_one = |uid: String| of_pod(layout, &uid).into_iter().map(move |found| (uid.clone(), found));
            uids.into_iter().flat_map(of_one).collect()
        }
        Err(error) => vec![(String::new(), Err(Unread { name: None, directory: layout.pods(), error }))],
    }
}

/// What is staged for a driver: where, and the handle.
pub fn staged(layout: &Layout, driver: &str) -> Vec<(PathBuf, Record)> {
    let entries = std::fs::read_dir(layout.plugin(PLUGIN).join(driver)).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let record = Record::read(&entry.path()).ok().filter(|record| record.driver == driver)?;
        Some((entry.path().join("globalmount"), record))
    });
    found.collect()
}

/// Makes a directory that only root looks into.
pub fn make_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

/// Removes a record and the empty directories that hold it.
pub fn forget(data: &Path) -> io::Result<()> {
    gone(std::fs::remove_file(data.join(FILE)))?;
    gone(std::fs::remove_file(files::draft(&data.join(FILE))))?;
    gone(std::fs::remove_dir(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(layout: &Layout, uid: &str) -> Vec<(Place, Record)> {
        of_pod(layout, uid).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn what_was_written_is_found_again() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "/logs");
        let volume = Volume::of("pv", "d.example", "h", Lifecycle::Persistent);
        let place = Place::of(&layout, "u1", "pv", "d.example", "h", false);
        let record = Record::of(&volume, "n", true);
        record.write(&place.data).unwrap();
        assert_eq!(read_all(&layout, "u1"), [(place.clone(), record.clone())]);
        assert_eq!(of_all(&layout).len(), 1);
        assert!(place.target.ends_with("pods/u1/volumes/kubernetes.io~csi/pv/mount"));
        assert!(place.staging.ends_with("globalmount"));
        let text = std::fs::read_to_string(place.data.join(FILE)).unwrap();
        assert!(
            text.contains(r#""specVolID":"pv","volumeHandle":"h","driverName":"d.example","nodeName":"n""#),
            "{text}"
        );

        let device = Record { handle: "h".to_owned(), driver: "d.example".to_owned(), ..Default::default() };
        device.write(place.staging.parent().unwrap()).unwrap();
        assert_eq!(staged(&layout, "d.example"), [(place.staging.clone(), device)]);
        forget(&place.data).unwrap();
        forget(&place.data).unwrap();
        assert!(of_pod(&layout, "u1").is_empty());
    }

    #[test]
    fn a_block_volume_is_found_by_its_link() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "/logs");
        let volume = Volume { block: true, ..Volume::of("pv", "d", "h", Lifecycle::Persistent) };
        let place = Place::of(&layout, "u1", "pv", "d", "h", true);
        Record::of(&volume, "n", false).write(&place.data).unwrap();
        assert!(of_pod(&layout, "u1").is_empty());
        std::fs::create_dir_all(place.mark.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&place.target, &place.mark).unwrap();
        let found = read_all(&layout, "u1");
        assert_eq!(found[0].0, place);
        assert_eq!(found[0].1.attached, "");
    }

    #[test]
    fn a_record_that_cannot_be_read_is_no_missing_volume() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), "/logs");
        let data = layout.volume("u1", PLUGIN, "pv");
        make_directory(&data).unwrap();
        assert!(of_pod(&layout, "u1").is_empty(), "a crash came before the record, and before any mount");
        std::fs::write(data.join(FILE), "").unwrap();
        let found = of_pod(&layout, "u1").remove(0).unwrap_err();
        assert_eq!(found.name.as_deref(), Some("pv"));
        let message = found.to_string();
        assert!(message.contains("/pods/u1/volumes/kubernetes.io~csi/pv]: EOF while parsing"), "{message}");

        std::fs::remove_dir_all(layout.pods()).unwrap();
        std::fs::write(layout.pods(), "no directory").unwrap();
        assert!(matches!(&of_all(&layout)[..], [(_, Err(Unread { name: None, .. }))]));
    }
}
