//! Which claims are prepared, with which devices, for which pods. Pure, but for the file that keeps
//! it: after a restart nobody else could say what a claim's CDI devices are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use k8s_openapi::api::resource::v1::ResourceClaim;
use serde::{Deserialize, Serialize};

use super::driver::Claim;
use crate::files;
use crate::layout::CLAIMS;

/// What a driver prepared of a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Device {
    pub pool_name: String,
    pub device_name: String,
    /// Empty for all of the claim's requests.
    pub request_names: Vec<String>,
    #[serde(rename = "CDIDeviceIDs")]
    pub cdi_device_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Entry {
    #[serde(flatten)]
    pub claim: Claim,
    #[serde(rename = "PodUIDs")]
    pub pods: BTreeSet<String>,
    #[serde(rename = "DriverState")]
    pub drivers: BTreeMap<String, Vec<Device>>,
    /// Every driver has done its part, in this process.
    #[serde(skip)]
    prepared: bool,
}

impl Entry {
    /// A claim with the drivers that its allocation names.
    pub fn of(claim: &ResourceClaim) -> Result<Self, &'static str> {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let meta = &claim.metadata;
        let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref()).ok_or("not allocated")?;
        let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
        Ok(Self {
            claim: Claim { namespace: text(&meta.namespace), name: text(&meta.name), uid: text(&meta.uid) },
            drivers: results.map(|result| (result.driver.clone(), Vec::new())).collect(),
            ..Default::default()
        })
    }

    /// The devices of a request with their drivers; of all if it is empty. A subrequest is its request's.
    pub fn devices_of(&self, request: &str) -> impl Iterator<Item = (&String, &Device)> {
        let base = request.split('/').next().unwrap_or_default().to_owned();
        let all = self.drivers.iter().flat_map(|(driver, devices)| devices.iter().map(move |device| (driver, device)));
        all.filter(move |(_, device)| {
            base.is_empty() || device.request_names.is_empty() || device.request_names.contains(&base)
        })
    }

    /// The same as the runtime knows them.
    pub fn cdi_devices(&self, request: &str) -> Vec<String> {
        self.devices_of(request).flat_map(|(_, device)| device.cdi_device_ids.clone()).collect()
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ledger {
    entries: Vec<Entry>,
}

impl Ledger {
    /// A file that is missing or cannot be read gives an empty ledger.
    pub fn read(directory: &Path) -> Self {
        match std::fs::read(directory.join(CLAIMS)) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(%error, "which resource claims are prepared cannot be understood");
                Self::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::error!(%error, "which resource claims are prepared cannot be read");
                Self::default()
            }
        }
    }

    /// In one step, so that a crash leaves the file of before or this one.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        files::replace_json(&directory.join(CLAIMS), self)
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.claim.namespace == namespace && entry.claim.name == name)
    }

    fn find(&mut self, claim: &Claim) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.claim == *claim)
    }

    /// The pod uses the claim from now on. Returns whether it is prepared already.
    pub fn reserve(&mut self, entry: Entry, uid: &str) -> Result<bool, String> {
        if let Some(known) = self.get(&entry.claim.namespace, &entry.claim.name)
            && known.claim.uid != entry.claim.uid
        {
            return Err(format!(
                "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                known.claim.name, known.claim.uid
            ));
        }
        let claim = entry.claim.clone();
        if self.find(&claim).is_none() {
            self.entries.push(entry);
        }
        let known = self.find(&claim).ok_or("the claim was not noted")?;
        known.pods.insert(uid.to_owned());
        Ok(known.prepared)
    }

    pub fn devices(&mut self, claim: &Claim, driver: &str, devices: Vec<Device>) {
        if let Some(entry) = self.find(claim) {
            entry.drivers.insert(driver.to_owned(), devices);
        }
    }

    pub fn prepared(&mut self, claim: &Claim) {
        if let Some(entry) = self.find(claim) {
            entry.prepared = true;
        }
    }

    pub fn used_by(&self, uid: &str) -> Vec<Claim> {
        let used = self.entries.iter().filter(|entry| entry.pods.contains(uid));
        used.map(|entry| entry.claim.clone()).collect()
    }

    /// The claims that the pod alone uses, for their drivers to take back. They are not prepared from then
    /// on: one driver may take its part back where another fails.
    pub fn withdraw(&mut self, uid: &str) -> Vec<Entry> {
        let only = self.entries.iter_mut().filter(|entry| entry.pods.len() == 1 && entry.pods.contains(uid));
        let withdrawn = only.map(|entry| {
            entry.prepared = false;
            entry.clone()
        });
        withdrawn.collect()
    }

    /// The pod uses its claims no longer, but for `kept`.
    pub fn release(&mut self, uid: &str, kept: &[Claim]) {
        for entry in self.entries.iter_mut().filter(|entry| !kept.contains(&entry.claim)) {
            entry.pods.remove(uid);
        }
        self.entries.retain(|entry| !entry.pods.is_empty());
    }

    pub fn pods(&self) -> impl Iterator<Item = String> {
        let all: BTreeSet<String> = self.entries.iter().flat_map(|entry| entry.pods.clone()).collect();
        all.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(uid: &str) -> ResourceClaim {
        let result = |driver: &str| json!({"request": "r", "driver": driver, "pool": "p", "device": "d"});
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "ns", "uid": uid}, "spec": {},
            "status": {"allocation": {"devices": {"results": [result("a.example"), result("b.example"), result("a.example")]}}}}))
        .unwrap()
    }

    fn device(requests: &[&str], cdi: &str) -> Device {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Device { request_names: texts(requests), cdi_device_ids: texts(&[cdi]), ..Default::default() }
    }

    #[test]
    fn a_claim_lives_as_long_as_a_pod_uses_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::read(directory.path());
        let entry = Entry::of(&claim("1")).unwrap();
        let claim_1 = entry.claim.clone();
        assert_eq!(entry.drivers.keys().collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert_eq!(ledger.reserve(entry.clone(), "p"), Ok(false));
        ledger.devices(&claim_1, "a.example", vec![device(&["r"], "v/x=1"), device(&[], "v/x=2")]);
        ledger.prepared(&claim_1);
        assert_eq!(ledger.reserve(entry.clone(), "q"), Ok(true), "prepared for the first");
        let other = ledger.reserve(Entry::of(&claim("2")).unwrap(), "q").unwrap_err();
        assert!(other.starts_with("old ResourceClaim with same name c and different UID 1 still exists"), "{other}");

        ledger.write(directory.path()).unwrap();
        let mut again = Ledger::read(directory.path());
        let known = again.get("ns", "c").unwrap();
        assert_eq!(known.cdi_devices(""), ["v/x=1", "v/x=2"]);
        assert_eq!(known.cdi_devices("r/sub"), ["v/x=1", "v/x=2"]);
        assert_eq!(known.cdi_devices("s"), ["v/x=2"]);
        assert!(again.withdraw("p").is_empty());
        again.release("p", std::slice::from_ref(&claim_1));
        assert!(again.used_by("p").len() == 1, "a driver did not give it back");
        again.release("p", &[]);
        assert_eq!(again.withdraw("q").len(), 1);
        assert_eq!(again.reserve(entry, "r"), Ok(false), "drivers are asked again after a restart");
        again.release("q", &[]);
        again.prepared(&claim_1);
        assert_eq!(again.withdraw("r").len(), 1);
        again.release("r", std::slice::from_ref(&claim_1));
        let entry = Entry::of(&claim("1")).unwrap();
        assert_eq!(again.reserve(entry, "s"), Ok(false), "one of its drivers may have taken its part back");
        again.release("r", &[]);
        again.release("s", &[]);
        assert!(again.get("ns", "c").is_none());
        assert_eq!(Entry::of(&ResourceClaim::default()), Err("not allocated"));
    }
}
