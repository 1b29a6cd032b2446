//! Which container has which device, on disk as Kubernetes' kubelet lays it out
//! (`pkg/kubelet/cm/devicemanager/checkpoint`), but for the checksum, which only Go can compute: files
//! are replaced in one step instead.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::Given;
use super::ledger::Ledger;
use crate::files;

pub const FILE: &str = "kubelet_internal_checkpoint";

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct File {
    data: Data,
    checksum: u64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Data {
    pod_device_entries: Vec<Entry>,
    registered_devices: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    /// By NUMA node; -1 for none.
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<String, Vec<String>>,
    /// A ContainerAllocateResponse: protobuf in base64.
    alloc_resp: String,
}

/// A file that is missing or cannot be read gives an empty ledger.
pub fn read(directory: &Path) -> Ledger {
    let mut ledger = Ledger::default();
    let text = match std::fs::read(directory.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return ledger,
        Err(error) => {
            tracing::error!(%error, directory = %directory.display(), "which container has which device cannot be read");
            return ledger;
        }
    };
    let file: File = match serde_json::from_slice(&text) {
        Ok(file) => file,
        Err(error) => {
            tracing::error!(%error, directory = %directory.display(), "which container has which device cannot be understood");
            return ledger;
        }
    };
    for resource in file.data.registered_devices.keys() {
        ledger.expect(resource);
    }
    for entry in file.data.pod_device_entries {
        let given = STANDARD.decode(&entry.alloc_resp).ok().and_then(|bytes| Given::decode(bytes.as_slice()).ok());
        let devices = entry.device_ids.into_values().flatten().collect();
        ledger.restore((entry.pod_uid, entry.container_name, entry.resource_name), devices, given.unwrap_or_default());
    }
    ledger
}

/// The file's content.
pub fn content(ledger: &Ledger) -> io::Result<Vec<u8>> {
    let entries = ledger.grants().map(|((uid, container, resource), grant)| Entry {
        pod_uid: uid.clone(),
        container_name: container.clone(),
        resource_name: resource.clone(),
        device_ids: BTreeMap::from([("-1".to_owned(), grant.devices.iter().cloned().collect())]),
        alloc_resp: STANDARD.encode(grant.given.encode_to_vec()),
    });
    let registered = ledger.resources().map(|(name, healthy)| (name.clone(), healthy.iter().cloned().collect()));
    let data = Data { pod_device_entries: entries.collect(), registered_devices: registered.collect() };
    Ok(serde_json::to_vec(&File { data, checksum: 0 })?)
}

pub fn write(directory: &Path, content: &[u8]) -> io::Result<()> {
    files::replace(&directory.join(FILE), content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_known_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::default();
        ledger.expect("example.com/gpu");
        let given = Given { envs: [("GPU".to_owned(), "a".to_owned())].into(), ..Default::default() };
        let key = ("u".to_owned(), "c".to_owned(), "example.com/gpu".to_owned());
        ledger.restore(key, ["a".to_owned()].into(), given.clone());
        write(directory.path(), &content(&ledger).unwrap()).unwrap();
        let again = read(directory.path());
        assert_eq!(again.held("u", "c"), [("example.com/gpu".to_owned(), ["a".to_owned()].into(), given)]);
        assert_eq!(again.counts()[0].healthy, 0, "nothing is there until its plugin is");
        std::fs::write(directory.path().join(FILE), "x").unwrap();
        assert!(read(directory.path()).is_empty());
    }
}
