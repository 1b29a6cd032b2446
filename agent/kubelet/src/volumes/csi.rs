//! Volumes of CSI drivers: no driver registers with this node, so they are refused, in the words of a
//! kubelet whose driver is missing (`pkg/volume/csi/csi_plugin.go: supportsVolumeLifecycleMode`).

use k8s_openapi::api::storage::v1::CSIDriver;
use kube::{Api, Client};

use crate::volume_contract::VolumeError;

pub fn no_driver(driver: &str) -> String {
    format!(
        "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name {driver} not found in the list of registered CSI drivers"
    )
}

/// Why a pod does not get a volume that `driver` would make for it alone.
pub async fn refuse(client: &Client, volume: &str, driver: &str) -> VolumeError {
    let found = Api::<CSIDriver>::all(client.clone()).get_opt(driver).await;
    match found.map_err(|error| error.to_string()).and_then(|found| unsupported(driver, found.as_ref())) {
        Ok(()) => VolumeError::set_up(volume, no_driver(driver)),
        Err(message) => VolumeError { step: "NewMounter initialization", volume: volume.to_owned(), message },
    }
}

/// Whether the driver makes volumes for single pods.
fn unsupported(driver: &str, object: Option<&CSIDriver>) -> Result<(), String> {
    let refused = |why: &str| Err(format!("volume mode \"Ephemeral\" not supported by driver {driver} ({why})"));
    let Some(object) = object else { return refused("no CSIDriver object") };
    let modes = object.spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
    if modes.iter().any(|mode| mode == "Ephemeral") {
        return Ok(());
    }
    let modes: Vec<String> = modes.iter().map(|mode| format!("{mode:?}")).collect();
    refused(&format!("only supports [{}]", modes.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_said_of_drivers() {
        let refused = |why: &str| Err(format!("volume mode \"Ephemeral\" not supported by driver d.example ({why})"));
        for (modes, expected) in [
            (json!(["Persistent"]), refused("only supports [\"Persistent\"]")),
            (json!([]), refused("only supports []")),
            (json!(["Persistent", "Ephemeral"]), Ok(())),
        ] {
            let driver = json!({"metadata": {"name": "d.example"}, "spec": {"volumeLifecycleModes": modes}});
            let driver: CSIDriver = serde_json::from_value(driver).unwrap();
            assert_eq!(unsupported("d.example", Some(&driver)), expected, "{modes}");
        }
        assert_eq!(unsupported("d.example", None), refused("no CSIDriver object"));
    }
}
