//! The drivers that are registered with this node.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::driver::{Driver, Version};
use crate::plugins::Plugin;

#[derive(Default)]
pub struct Drivers {
    known: RwLock<HashMap<String, Arc<Driver>>>,
}

impl Drivers {
    /// Messages are Kubernetes'.
    pub fn get(&self, name: &str) -> Result<Arc<Driver>, String> {
        let found = self.known.read().get(name).cloned();
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    pub fn put(&self, driver: Arc<Driver>) {
        self.known.write().insert(driver.name.clone(), driver);
    }

    /// Takes out what was registered from this endpoint.
    pub fn remove(&self, plugin: &Plugin) -> bool {
        let mut known = self.known.write();
        let same = known.get(&plugin.name).is_some_and(|driver| driver.endpoint == plugin.endpoint);
        if same {
            known.remove(&plugin.name);
        }
        same
    }

    /// The version to speak with a plugin that wants to register.
    pub fn validate(&self, plugin: &Plugin) -> Result<Version, String> {
        let Plugin { name, versions, .. } = plugin;
        let failed =
            |why: String| Err(format!("kubernetes.io/csi: ValidatePlugin for CSI driver {name:?} failed. {why}"));
        if versions.is_empty() {
            return failed("Plugin returned an empty list for supported versions".to_owned());
        }
        let version = match Version::highest(versions) {
            Ok(version) => version,
            Err(error) => {
                let listed: Vec<String> = versions.iter().map(|version| format!("{version:?}")).collect();
                return failed(format!(
                    "None of the versions specified [{}] are supported. err={error}",
                    listed.join(" ")
                ));
            }
        };
        match self.known.read().get(name).map(|driver| driver.version) {
            Some(known) if known >= version => failed(format!(
                "Another driver with the same name is already registered with a higher supported version: \"{known}\""
            )),
            _ => Ok(version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    fn plugin(versions: &[&str]) -> Plugin {
        Plugin {
            name: "d.example".to_owned(),
            endpoint: "/csi.sock".into(),
            socket: "/csi.sock".into(),
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        }
    }

    #[tokio::test]
    async fn one_driver_of_a_name() {
        let drivers = Drivers::default();
        let failed =
            |why: &str| Err(format!("kubernetes.io/csi: ValidatePlugin for CSI driver \"d.example\" failed. {why}"));
        assert_eq!(drivers.validate(&plugin(&[])), failed("Plugin returned an empty list for supported versions"));
        assert_eq!(
            drivers.validate(&plugin(&["0.3.0"])),
            failed(
                "None of the versions specified [\"0.3.0\"] are supported. err=highest supported version reported by driver is 0.3.0, must be v1.x"
            )
        );
        let version = drivers.validate(&plugin(&["1.0.0"])).unwrap();
        let layout = Layout::new("/k", "/l");
        drivers.put(Arc::new(Driver::new("d.example", "/csi.sock".as_ref(), "/csi.sock".as_ref(), version, &layout)));
        assert_eq!(
            drivers.validate(&plugin(&["1.0.0"])),
            failed(
                "Another driver with the same name is already registered with a higher supported version: \"1.0.0\""
            )
        );
        assert!(drivers.validate(&plugin(&["1.1.0"])).is_ok());
        let other = Plugin { endpoint: "/other.sock".into(), ..plugin(&[]) };
        assert!(!drivers.remove(&other) && drivers.get("d.example").is_ok());
        assert!(drivers.remove(&plugin(&[])));
        assert_eq!(
            drivers.get("d.example").err(),
            Some("driver name d.example not found in the list of registered CSI drivers".to_owned())
        );
    }
}
