//! What a volume of files holds: pure functions from objects and the pod's wishes to paths and bytes.

use std::collections::BTreeMap;

use api::resources::Amounts;
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use crate::downward;

/// Kubernetes' default for files of configMap, secret, downwardAPI and projected volumes.
pub const DEFAULT_MODE: i32 = 0o644;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    /// Permission bits, e.g. `0o644`.
    pub mode: u32,
    /// The owner; root if none.
    pub user: Option<u32>,
}

/// Files by their path relative to the volume.
pub type Payload = BTreeMap<String, File>;

/// How the keys of an object become files.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// All keys, each under its own name, if empty.
    pub items: &'a [KeyToPath],
    pub default_mode: i32,
    pub default_user: Option<i64>,
    pub optional: bool,
}

/// The files of a ConfigMap, or nothing if it is absent and optional.
pub fn of_config_map(name: &str, object: Option<&ConfigMap>, selection: Selection<'_>) -> Result<Payload, String> {
    let Some(object) = object else {
        return absent(selection.optional, format!("configmap {name:?} not found"));
    };
    let text = object.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    select(text.chain(binary).collect(), selection, "configmap references non-existent config key")
}

/// The files of a Secret, or nothing if it is absent and optional.
pub fn of_secret(name: &str, object: Option<&Secret>, selection: Selection<'_>) -> Result<Payload, String> {
    let Some(object) = object else {
        return absent(selection.optional, format!("secret {name:?} not found"));
    };
    let data = object.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    select(data.collect(), selection, "references non-existent secret key")
}

fn absent(optional: bool, message: String) -> Result<Payload, String> {
    if optional { Ok(Payload::new()) } else { Err(message) }
}

fn select(data: BTreeMap<&str, &[u8]>, selection: Selection<'_>, missing: &str) -> Result<Payload, String> {
    let default_user = selection.default_user.and_then(user_id);
    let file = |bytes: &[u8], mode: Option<i32>, user: Option<i64>| File {
        data: bytes.to_vec(),
        mode: mode_bits(mode.unwrap_or(selection.default_mode)),
        user: user.and_then(user_id).or(default_user),
    };
    if selection.items.is_empty() {
        return Ok(data.into_iter().map(|(key, bytes)| (key.to_owned(), file(bytes, None, None))).collect());
    }
    let mut payload = Payload::new();
    for item in selection.items {
        match data.get(item.key.as_str()) {
            Some(bytes) => {
                payload.insert(clean(&item.path), file(bytes, item.mode, item.user));
            }
            None if selection.optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(payload)
}

/// The files of a downwardAPI volume or projection.
pub fn of_downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    default_user: Option<i64>,
    allocatable: &Amounts,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(pod, &field.field_path),
            (None, Some(resource)) => downward::resource(pod, resource, None, allocatable),
            (None, None) => continue,
        };
        let data = value.map_err(|error| error.to_string())?.into_bytes();
        let mode = mode_bits(item.mode.unwrap_or(default_mode));
        payload.insert(clean(&item.path), File { data, mode, user: item.user.or(default_user).and_then(user_id) });
    }
    Ok(payload)
}

pub fn mode_bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or_default() & 0o7777
}

pub fn user_id(user: i64) -> Option<u32> {
    u32::try_from(user).ok()
}

/// `a//b/./c` → `a/b/c`, as Go's `filepath.Clean`; `..` is refused when the payload is written.
pub fn clean(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config_map() -> ConfigMap {
        serde_json::from_value(json!({ "data": { "a": "1", "b": "2" }, "binaryData": { "c": "/w==" } })).unwrap()
    }

    fn selection(items: &[KeyToPath], optional: bool) -> Selection<'_> {
        Selection { items, default_mode: 0o640, default_user: None, optional }
    }

    #[test]
    fn all_keys_become_files() {
        let payload = of_config_map("m", Some(&config_map()), selection(&[], false)).unwrap();
        assert_eq!(payload.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(payload["c"], File { data: vec![0xff], mode: 0o640, user: None });
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let items: Vec<KeyToPath> = serde_json::from_value(
            json!([{ "key": "a", "path": "dir//x", "mode": 256 }, { "key": "none", "path": "y" }]),
        )
        .unwrap();
        let error = of_config_map("m", Some(&config_map()), selection(&items, false)).unwrap_err();
        assert_eq!(error, "configmap references non-existent config key: none");
        let payload = of_config_map("m", Some(&config_map()), selection(&items, true)).unwrap();
        assert_eq!(payload.keys().collect::<Vec<_>>(), ["dir/x"]);
        assert_eq!(payload["dir/x"].mode, 0o400);
    }

    #[test]
    fn an_absent_object_is_an_error_unless_optional() {
        assert_eq!(of_secret("s", None, selection(&[], false)).unwrap_err(), "secret \"s\" not found");
        assert_eq!(of_config_map("m", None, selection(&[], false)).unwrap_err(), "configmap \"m\" not found");
        assert!(of_secret("s", None, selection(&[], true)).unwrap().is_empty());
    }

    #[test]
    fn downward_files_show_the_pod() {
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "p", "labels": { "app": "x" } } })).unwrap();
        let items: Vec<DownwardAPIVolumeFile> = serde_json::from_value(json!([
            { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
            { "path": "name", "mode": 384, "fieldRef": { "fieldPath": "metadata.name" } },
        ]))
        .unwrap();
        let payload = of_downward(&pod, &items, DEFAULT_MODE, None, &Amounts::new()).unwrap();
        assert_eq!(payload["labels"].data, b"app=\"x\"");
        assert_eq!(payload["name"].mode, 0o600);
    }
}
