//! Follows the stored FlowSchemas and PriorityLevelConfigurations: keeps the standard ones, says of
//! each schema whether its level exists, and moves seats to where they are wanted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::admit::Cluster;
use crate::bootstrap::flowcontrol as standard;
use crate::error::Result;
use crate::server::Api;

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
/// How often seats are lent and borrowed.
const ADJUST: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// Makes the standard objects and takes over what is configured; goes on doing so.
pub async fn start(api: &Arc<Api>) -> Result<()> {
    let (Some(schemas), Some(levels)) =
        (api.resources().by_hub(GROUP, SCHEMAS).cloned(), api.resources().by_hub(GROUP, LEVELS).cloned())
    else {
        return Ok(());
    };
    let mut changed = (schemas.cache.subscribe(), levels.cache.subscribe());
    // A kill in between leaves some of them unmade: they are there after the next start.
    round(api).await?;
    let adjusting = api.clone();
    api.supervisor.spawn("flowcontrol-borrowing", async move {
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(ADJUST).await;
            adjusting.flow.adjust(last.elapsed());
            last = Instant::now();
        }
    });
    let api = api.clone();
    api.supervisor.clone().spawn("flowcontrol", async move {
        let versions = || (schemas.cache.read().changed, levels.cache.read().changed);
        let mut seen = (0, 0);
        loop {
            let now = versions();
            if now != seen {
                match round(&api).await {
                    Ok(()) => seen = now,
                    Err(error) => {
                        tracing::debug!(%error, "following flow schemas; trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
                continue;
            }
            let outcome = tokio::select! {
                outcome = changed.0.changed() => outcome,
                outcome = changed.1.changed() => outcome,
            };
            if outcome.is_err() {
                return;
            }
        }
    });
    Ok(())
}

async fn round(api: &Arc<Api>) -> Result<()> {
    for plural in [LEVELS, SCHEMAS] {
        if let Some(endpoint) = api.resources().by_hub(GROUP, plural) {
            endpoint.cache.fresh().await?;
        }
        let held = api.list(GROUP, plural, "").await?;
        let wanted = standard::objects(plural);
        futures::future::try_join_all(wanted.iter().map(|wanted| keep(api, plural, &held, wanted))).await?;
        if let Some(endpoint) = api.resources().by_hub(GROUP, plural) {
            endpoint.cache.fresh().await?;
        }
    }
    let (schemas, levels) = (api.list(GROUP, SCHEMAS, "").await?, api.list(GROUP, LEVELS, "").await?);
    api.flow.configure(&schemas, &levels);
    let changed = schemas.iter().filter_map(|schema| with_condition(schema, &levels, Timestamp::now()));
    let writes = changed.map(|changed| async { settled(api.update(GROUP, SCHEMAS, "status", changed).await) });
    futures::future::try_join_all(writes).await.map(drop)
}

/// Another server's doing the same at the same time is as good.
fn settled(outcome: Result<Arc<Value>>) -> Result<()> {
    match outcome {
        Err(error) if error.is_conflict() || error.is_already_exists() || error.is_not_found() => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}

async fn keep(api: &Api, plural: &str, held: &[Arc<Value>], wanted: &Value) -> Result<()> {
    match held.iter().find(|held| held["metadata"]["name"] == wanted["metadata"]["name"]) {
        None => settled(api.create(GROUP, plural, wanted.clone()).await),
        Some(held) => match standard::maintained(held, wanted) {
            Some(changed) => settled(api.update(GROUP, plural, "", changed).await),
            None => Ok(()),
        },
    }
}

/// A schema with its `Dangling` condition set right; none when it is.
fn with_condition(schema: &Value, levels: &[Arc<Value>], now: Timestamp) -> Option<Value> {
    let name = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
    let found = levels.iter().any(|level| level["metadata"]["name"] == name);
    let (status, reason, but) =
        if found { ("False", "Found", "and it exists") } else { ("True", "NotFound", "but there is no such object") };
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {name:?} {but}");
    let conditions = schema["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let is_dangling = |condition: &&Value| condition["type"] == "Dangling";
    if let Some(held) = conditions.iter().find(is_dangling)
        && held["status"] == status
        && held["reason"] == reason
        && held["message"] == *message
    {
        return None;
    }
    let mut conditions: Vec<Value> = conditions.iter().filter(|held| !is_dangling(held)).cloned().collect();
    conditions.push(json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": api::scalar::time(now),
    }));
    let mut changed = schema.clone();
    changed["status"]["conditions"] = conditions.into();
    Some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_without_a_level_dangle() {
        let schema = json!({"metadata": {"name": "s"}, "spec": {"priorityLevelConfiguration": {"name": "l"}}});
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let dangling = with_condition(&schema, &[], now).unwrap();
        let condition = &dangling["status"]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("NotFound")));
        assert!(with_condition(&dangling, &[], now).is_none());
        let levels = [Arc::new(json!({"metadata": {"name": "l"}}))];
        let found = with_condition(&dangling, &levels, now).unwrap();
        assert_eq!(
            found["status"]["conditions"][0]["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"l\" and it exists"
        );
        assert_eq!(found["status"]["conditions"].as_array().unwrap().len(), 1);
    }
}
