//! Keeps aggregated ClusterRoles equal to the sum of those that their selectors choose
//! (upstream's clusterrole-aggregation-controller; here because authorization depends on it).

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{RBAC, policy};
use crate::admit::Cluster;
use crate::error::Result;
use crate::server::Api;

const RETRY: Duration = Duration::from_millis(500);

pub fn start(api: &Arc<Api>) {
    let api = api.clone();
    let supervisor = api.supervisor.clone();
    supervisor.spawn("clusterrole-aggregation", async move {
        let Some(endpoint) = api.resources().by_hub(RBAC, "clusterroles").cloned() else { return };
        let mut changed = endpoint.cache.subscribe();
        let mut seen = 0;
        loop {
            let now = endpoint.cache.read().changed;
            if now != seen {
                match aggregate_all(&api).await {
                    Ok(()) => seen = now,
                    Err(error) => {
                        tracing::debug!(%error, "aggregating cluster roles; trying again");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    });
}

/// Brings every aggregated role up to date.
pub async fn aggregate_all(api: &Api) -> Result<()> {
    // A role made of aggregated roles may take several rounds; upstream's go three deep.
    for _ in 0..4 {
        let Some(endpoint) = api.resources().by_hub(RBAC, "clusterroles").cloned() else { return Ok(()) };
        endpoint.cache.fresh().await?;
        let roles = api.list(RBAC, "clusterroles", "").await?;
        let all: Vec<&Value> = roles.iter().map(|role| &**role).collect();
        let changed = |role: &Value| {
            let rules = policy::aggregated_rules(role, &all);
            (role["rules"].as_array().map_or(&[][..], Vec::as_slice) != rules).then(|| {
                let mut changed = role.clone();
                changed["rules"] = rules.into();
                changed
            })
        };
        let aggregated = all.iter().filter(|role| role["aggregationRule"].is_object());
        let writes = aggregated.filter_map(|role| changed(role));
        let writes = writes.map(|role| async { settled(api.update(RBAC, "clusterroles", "", role).await) });
        if futures::future::try_join_all(writes).await?.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Another server that starts at the same time does the same; what it left is looked at in the next round.
fn settled(outcome: Result<Arc<Value>>) -> Result<()> {
    match outcome {
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
        outcome => outcome.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ApiError;

    #[test]
    fn servers_that_start_at_once_do_not_end_at_each_others_roles() {
        assert!(settled(Err(ApiError::modified(RBAC, "clusterroles", "admin"))).is_ok());
        assert!(settled(Err(ApiError::not_found(RBAC, "clusterroles", "mine"))).is_ok());
        assert!(settled(Err(ApiError::internal("the store is gone"))).is_err());
    }
}
