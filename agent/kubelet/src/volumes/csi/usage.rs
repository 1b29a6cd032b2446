//! How full the pods' volumes are, by their drivers' words (`csi_metrics.go`).

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use proto::csi::v1::volume_usage::Unit;
use proto::csi::v1::{NodeGetVolumeStatsResponse, VolumeUsage as Answer};
use tokio::time::Instant;

use super::{Csi, Published};
use crate::volume_contract::{Amount, VolumeUsage};
use crate::volumes::uid_of;

/// How long an answer is good (`volumeStatsAggPeriod`).
const GOOD_FOR: Duration = Duration::from_secs(60);

impl Csi {
    /// Of those that this process mounted and whose drivers can tell; asked once a minute at most.
    pub async fn usage(&self, pod: &Pod) -> Vec<VolumeUsage> {
        let uid = uid_of(pod);
        let all: Vec<(String, Published)> = {
            let mounted = self.mounted.lock();
            let own = mounted.iter().filter(|((known, _), published)| known == uid && !published.volume.block);
            own.map(|((_, name), published)| (name.clone(), published.clone())).collect()
        };
        let mut found = Vec::new();
        for (name, published) in all {
            let Ok(driver) = self.drivers.get(&published.volume.driver) else { continue };
            if !driver.abilities().await.is_ok_and(|abilities| abilities.usage) {
                continue;
            }
            let recent = published.usage.lock().clone().filter(|(at, _)| at.elapsed() < GOOD_FOR);
            if let Some((_, usage)) = recent {
                found.push(usage);
                continue;
            }
            match driver.usage(&published.volume.handle, &published.mounted.host_path).await {
                Ok(answer) => {
                    let usage = VolumeUsage { name, claim: published.claim, ..read(&answer) };
                    *published.usage.lock() = Some((Instant::now(), usage.clone()));
                    found.push(usage);
                }
                Err(error) => {
                    tracing::debug!(volume = published.volume.name, %error, "a driver does not say how full a volume is")
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }
}

fn read(answer: &NodeGetVolumeStatsResponse) -> VolumeUsage {
    let of = |unit: Unit| {
        let amount = |value: i64| u64::try_from(value).unwrap_or(0);
        let usage = answer.usage.iter().find(|usage: &&Answer| usage.unit == unit as i32)?;
        Some(Amount { total: amount(usage.total), available: amount(usage.available), used: amount(usage.used) })
    };
    VolumeUsage {
        bytes: of(Unit::Bytes),
        inodes: of(Unit::Inodes),
        abnormal: answer.volume_condition.as_ref().map(|condition| condition.abnormal),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_inodes() {
        let usage = |unit: Unit, total| Answer { available: 1, total, used: 2, unit: unit as i32 };
        let answer = NodeGetVolumeStatsResponse {
            usage: vec![usage(Unit::Inodes, 30), usage(Unit::Bytes, 3)],
            ..Default::default()
        };
        let found = read(&answer);
        assert_eq!(found.bytes, Some(Amount { total: 3, available: 1, used: 2 }));
        assert_eq!((found.inodes.unwrap().total, found.abnormal), (30, None));
    }
}
