//! How drivers' devices are, as far as their drivers said lately. Pure
//! (`pkg/kubelet/cm/dra/healthinfo.go`).

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceHealth;
use proto::v1::{DeviceHealth, DeviceIdentifier, HealthStatus};
use tokio::time::Instant;

use super::ledger::Device;

/// How long a word counts whose driver does not say (`DefaultHealthTimeout`)...
const LEASE: Duration = Duration::from_secs(30);
/// ... and the longest that it may say: times have an end.
const LONGEST_LEASE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Characters that a message may have.
const LONGEST_MESSAGE: usize = 1024;

#[derive(Default)]
pub struct Health {
    drivers: HashMap<String, Reports>,
    generation: u64,
}

/// What one driver said.
#[derive(Default)]
struct Reports {
    /// Of the plugin whose word counts.
    generation: u64,
    /// By pool and device. One that is not here is not known to be well or not.
    devices: HashMap<(String, String), Report>,
}

struct Report {
    said: Said,
    until: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    health: HealthStatus,
    message: String,
}

static NOTHING: Said = Said { health: HealthStatus::Unknown, message: String::new() };

impl Reports {
    fn said(&self, device: &(String, String)) -> &Said {
        self.devices.get(device).map_or(&NOTHING, |report| &report.said)
    }

    /// Forgets the words that this holds for. Returns whether any of them said something.
    fn forget(&mut self, over: impl Fn(&Report) -> bool) -> bool {
        let told = self.devices.values().any(|report| over(report) && report.said != NOTHING);
        self.devices.retain(|_, report| !over(report));
        told
    }
}

impl Health {
    /// From now on another plugin of the driver is listened to: its word counts under the number that is
    /// returned. What was said before stays until it is too old.
    pub fn begin(&mut self, driver: &str) -> u64 {
        self.generation += 1;
        self.drivers.entry(driver.to_owned()).or_default().generation = self.generation;
        self.generation
    }

    /// Nobody speaks for the driver any more, or (`generation`) not the plugin that did. Returns whether
    /// something that was known no longer is.
    pub fn end(&mut self, driver: &str, generation: Option<u64>) -> bool {
        let current =
            self.drivers.get(driver).is_some_and(|known| generation.is_none_or(|own| own == known.generation));
        let ended = if current { self.drivers.remove(driver) } else { None };
        ended.is_some_and(|mut known| known.forget(|_| true))
    }

    /// What a plugin says of some or all devices. Returns whether anything is other than it was.
    pub fn report(&mut self, driver: &str, generation: u64, devices: Vec<DeviceHealth>, now: Instant) -> bool {
        let Some(known) = self.drivers.get_mut(driver).filter(|known| known.generation == generation) else {
            return false;
        };
        let mut changed = false;
        for device in devices {
            let until = now + lease(&device);
            let said = Said { health: device.health(), message: shortened(&device.message) };
            let DeviceIdentifier { pool_name, device_name } = device.device.unwrap_or_default();
            let id = (pool_name, device_name);
            changed |= *known.said(&id) != said;
            known.devices.insert(id, Report { said, until });
        }
        changed
    }

    /// Forgets what is too old. Returns whether something that was known no longer is.
    pub fn expire(&mut self, driver: &str, now: Instant) -> bool {
        self.drivers.get_mut(driver).is_some_and(|known| known.forget(|report| report.until <= now))
    }

    /// When the next word is too old.
    pub fn next_expiry(&self, driver: &str) -> Option<Instant> {
        self.drivers.get(driver)?.devices.values().map(|report| report.until).min()
    }

    /// The device as a pod's status shows it: by the first name that the runtime has for it.
    pub fn of(&self, driver: &str, device: &Device) -> ResourceHealth {
        let id = (device.pool_name.clone(), device.device_name.clone());
        let said = self.drivers.get(driver).map_or(&NOTHING, |known| known.said(&id));
        let health = match said.health {
            HealthStatus::Healthy => "Healthy",
            HealthStatus::Unhealthy => "Unhealthy",
            HealthStatus::Unknown => "Unknown",
        };
        let own = || format!("{driver}/{}/{}", id.0, id.1);
        ResourceHealth {
            resource_id: device.cdi_device_ids.first().cloned().unwrap_or_else(own),
            health: Some(health.to_owned()),
            message: Some(said.message.clone()).filter(|message| !message.is_empty()),
        }
    }
}

fn lease(device: &DeviceHealth) -> Duration {
    match u64::try_from(device.health_check_timeout_seconds) {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).min(LONGEST_LEASE),
        _ => LEASE,
    }
}

fn shortened(message: &str) -> String {
    if message.chars().count() <= LONGEST_MESSAGE {
        return message.to_owned();
    }
    message.chars().take(LONGEST_MESSAGE - 3).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: &str = "d.example";

    fn said(device: &str, health: HealthStatus, seconds: i64) -> DeviceHealth {
        DeviceHealth {
            device: Some(DeviceIdentifier { pool_name: "p".to_owned(), device_name: device.to_owned() }),
            health: health.into(),
            health_check_timeout_seconds: seconds,
            ..Default::default()
        }
    }

    fn device(name: &str) -> Device {
        Device { pool_name: "p".to_owned(), device_name: name.to_owned(), ..Default::default() }
    }

    fn shown(health: &Health, name: &str) -> String {
        health.of(DRIVER, &device(name)).health.unwrap_or_default()
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_counts_until_it_is_too_old() {
        use HealthStatus::{Healthy, Unhealthy};
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut health = Health::default();
        assert_eq!((shown(&health, "a").as_str(), health.next_expiry(DRIVER)), ("Unknown", None));
        let generation = health.begin(DRIVER);
        assert!(health.report(DRIVER, generation, vec![said("a", Healthy, 0), said("b", Unhealthy, 100)], at(0)));
        assert_eq!((shown(&health, "a"), shown(&health, "b")), ("Healthy".to_owned(), "Unhealthy".to_owned()));
        assert!(!health.report(DRIVER, generation, vec![said("a", Healthy, -1)], at(10)), "nothing new");
        assert_eq!(health.next_expiry(DRIVER), Some(at(40)));
        assert!(!health.expire(DRIVER, at(39)) && health.expire(DRIVER, at(40)));
        assert_eq!((shown(&health, "a"), shown(&health, "b")), ("Unknown".to_owned(), "Unhealthy".to_owned()));
        assert_eq!(health.next_expiry(DRIVER), Some(at(100)));
        assert!(health.report(DRIVER, generation, vec![said("c", Healthy, i64::MAX)], at(50)));
        assert!(health.next_expiry(DRIVER).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_plugin_that_came_last_is_believed() {
        use HealthStatus::{Healthy, Unhealthy};
        let now = Instant::now();
        let mut health = Health::default();
        let old = health.begin(DRIVER);
        health.report(DRIVER, old, vec![said("a", Healthy, 0)], now);
        let new = health.begin(DRIVER);
        assert_eq!(shown(&health, "a"), "Healthy", "until the new one says otherwise, or nothing for long");
        assert!(!health.report(DRIVER, old, vec![said("a", Unhealthy, 0)], now));
        assert!(!health.end(DRIVER, Some(old)));
        assert!(health.end(DRIVER, Some(new)));
        assert_eq!(shown(&health, "a"), "Unknown");
        assert!(!health.report(DRIVER, new, vec![said("a", Healthy, 0)], now), "it has ended");
        let again = health.begin(DRIVER);
        health.report(DRIVER, again, vec![said("a", Healthy, 0)], now);
        assert!(health.end(DRIVER, None) && !health.end(DRIVER, None));
    }

    #[tokio::test(start_paused = true)]
    async fn devices_are_shown_by_the_runtimes_name_and_with_what_is_wrong() {
        let now = Instant::now();
        let mut health = Health::default();
        let generation = health.begin(DRIVER);
        let hot = DeviceHealth { message: "hot".to_owned(), ..said("a", HealthStatus::Unhealthy, 0) };
        assert!(health.report(DRIVER, generation, vec![hot.clone()], now));
        let burning = DeviceHealth { message: "é".repeat(2000), ..hot };
        assert_eq!(health.of(DRIVER, &device("a")).message.as_deref(), Some("hot"));
        assert!(health.report(DRIVER, generation, vec![burning], now), "another message is news too");
        let shown = health.of(DRIVER, &Device { cdi_device_ids: vec!["v/x=1".to_owned()], ..device("a") });
        assert_eq!(shown.resource_id, "v/x=1");
        let message = shown.message.unwrap();
        assert_eq!((message.chars().count(), message.ends_with("é...")), (1024, true));
        let unknown = health.of(DRIVER, &device("b"));
        assert_eq!((unknown.resource_id.as_str(), unknown.message), ("d.example/p/b", None));
    }
}
