//! How full the pods' volumes are, by their drivers' words (`csi_metrics.go`).

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use proto::csi::v1::volume_usage::Unit;
use proto::csi::v1::{NodeGetVolumeStatsResponse, VolumeUsage as Answer};
use tokio::time::Instant;

use super::driver::Driver;
use super::{Csi, Published};
use crate::plugins::rpc::RpcError;
use crate::volume_contract::{Amount, VolumeUsage};
use crate::volumes::uid_of;

/// How long an answer is good (`volumeStatsAggPeriod`).
const GOOD_FOR: Duration = Duration::from_secs(60);

/// How full a volume was when its driver was last asked; none if it did not say.
#[derive(Clone)]
pub(super) struct Known {
    at: Instant,
    usage: Option<VolumeUsage>,
}

impl Csi {
    /// Of those that this process mounted and whose drivers can tell; asked all at once, and each once a
    /// minute at most, whatever it answered.
    pub async fn usage(&self, pod: &Pod) -> Vec<VolumeUsage> {
        let uid = uid_of(pod);
        let all: Vec<(String, Published)> = {
            let mounted = self.mounted.lock();
            let own = mounted.iter().filter(|((known, _), published)| known == uid && !published.volume.block);
            own.map(|((_, name), published)| (name.clone(), published.clone())).collect()
        };
        let asked = all.into_iter().map(|(name, published)| self.usage_of(name, published));
        let mut found: Vec<VolumeUsage> = join_all(asked).await.into_iter().flatten().collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    async fn usage_of(&self, name: String, published: Published) -> Option<VolumeUsage> {
        let driver = self.drivers.get(&published.volume.driver).ok()?;
        let recent = published.usage.lock().clone().filter(|known| known.at.elapsed() < GOOD_FOR);
        if let Some(known) = recent {
            return known.usage;
        }
        let usage = match ask(&driver, &published).await {
            Ok(answer) => answer.map(|answer| VolumeUsage { name, claim: published.claim, ..read(&answer) }),
            Err(error) => {
                tracing::debug!(volume = published.volume.name, %error, "a driver does not say how full a volume is");
                None
            }
        };
        *published.usage.lock() = Some(Known { at: Instant::now(), usage: usage.clone() });
        usage
    }
}

/// None if the driver cannot tell.
async fn ask(driver: &Driver, published: &Published) -> Result<Option<NodeGetVolumeStatsResponse>, RpcError> {
    if !driver.abilities().await?.usage {
        return Ok(None);
    }
    driver.usage(&published.volume.handle, &published.mounted.host_path).await.map(Some)
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
