//! Which servers there are: each holds a Lease in `kube-system` (APIServerIdentity), and what nobody
//! holds any more goes.
//!
//! Upstream: `pkg/controlplane/apiserver/server.go`, `pkg/controlplane/controller/apiserverleasegc`.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::admit::Cluster;
use crate::error::{ApiError, Result};
use crate::server::Api;

const GROUP: &str = "coordination.k8s.io";
const NAMESPACE: &str = "kube-system";
const COMPONENT: &str = "kube-apiserver";
const LABEL: &str = "apiserver.kubernetes.io/identity";
const LASTS: i64 = 3600;
const RENEW: Duration = Duration::from_secs(10);
const COLLECT: Duration = Duration::from_secs(3600);

/// This server among others.
struct Identity {
    hostname: String,
    lease: String,
    /// Another one after each start.
    holder: String,
}

impl Identity {
    fn of(hostname: &str) -> Self {
        let lease = lease_name(hostname);
        let holder = format!("{lease}_{}", uuid::Uuid::new_v4());
        Self { hostname: hostname.to_owned(), lease, holder }
    }

    /// The Lease as it is from `now` on; `held` is what there is.
    fn lease(&self, held: Option<&Value>, now: Timestamp) -> Value {
        let now = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let mut lease =
            held.cloned().unwrap_or_else(|| json!({"metadata": {"name": self.lease, "namespace": NAMESPACE}}));
        lease["metadata"]["labels"][LABEL] = COMPONENT.into();
        lease["metadata"]["labels"]["kubernetes.io/hostname"] = self.hostname.as_str().into();
        let spec = &mut lease["spec"];
        if held.is_none() {
            spec["acquireTime"] = now.as_str().into();
        }
        spec["holderIdentity"] = self.holder.as_str().into();
        spec["leaseDurationSeconds"] = LASTS.into();
        spec["renewTime"] = now.into();
        lease
    }
}

/// `apiserver-` and a hash of the host's name, which is never said twice the same way.
fn lease_name(hostname: &str) -> String {
    let mut hash = Sha256::new();
    for part in [hostname, COMPONENT] {
        // Names of hosts are shorter than that.
        hash.update(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        hash.update(part);
    }
    format!("apiserver-{}", base32(&hash.finalize()[..16]))
}

/// In lower case, without padding.
fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let letter = |at: usize| (at..at + 5).fold(0, |value, at| value << 1 | usize::from(bit(at)));
    (0..bytes.len() * 8).step_by(5).map(|at| char::from(LETTERS[letter(at)])).collect()
}

/// What this server is called among others.
pub fn server_id() -> Result<String> {
    hostname().map(|hostname| lease_name(&hostname))
}

fn hostname() -> Result<String> {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = read.map_err(|error| ApiError::internal(format!("reading this host's name: {error}")))?;
    Ok(name.trim().to_owned())
}

/// Makes this server's Lease, and starts what keeps it and what removes others'.
pub async fn start(api: &Arc<Api>) -> Result<()> {
    let identity = Identity::of(&hostname()?);
    renew(api, &identity).await?;
    let keeping = api.clone();
    api.supervisor.spawn("identity lease", async move {
        loop {
            tokio::time::sleep(RENEW).await;
            if let Err(error) = renew(&keeping, &identity).await {
                tracing::warn!(lease = identity.lease, %error, "this server's lease was not renewed; trying again");
            }
        }
    });
    let collecting = api.clone();
    api.supervisor.spawn("identity lease collector", async move {
        loop {
            if let Err(error) = collect(&collecting).await {
                tracing::warn!(%error, "leases of servers that are gone were not removed; trying again in an hour");
            }
            tokio::time::sleep(COLLECT).await;
        }
    });
    Ok(())
}

async fn renew(api: &Api, identity: &Identity) -> Result<()> {
    let now = Timestamp::now();
    let Some(held) = api.get_live(GROUP, "leases", NAMESPACE, &identity.lease).await? else {
        return match api.create(GROUP, "leases", identity.lease(None, now)).await {
            // Another server of this host began at the same time.
            Err(error) if error.is_already_exists() => Ok(()),
            outcome => outcome.map(drop),
        };
    };
    match api.update(GROUP, "leases", "", identity.lease(Some(&held), now)).await {
        // That one's renewal, or somebody's label; the next renewal finds it.
        Err(error) if error.is_conflict() => Ok(()),
        outcome => outcome.map(drop),
    }
}

async fn collect(api: &Api) -> Result<()> {
    let now = Timestamp::now();
    for lease in api.list(GROUP, "leases", NAMESPACE).await? {
        if !is_left(&lease, now) {
            continue;
        }
        match api.delete(GROUP, "leases", &lease).await {
            // Gone, or held again.
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Whether a Lease is of a server that does not renew it any more.
fn is_left(lease: &Value, now: Timestamp) -> bool {
    if lease["metadata"]["labels"][LABEL] != COMPONENT {
        return false;
    }
    let renewed = lease["spec"]["renewTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let (Some(renewed), Some(lasts)) = (renewed, lease["spec"]["leaseDurationSeconds"].as_i64()) else { return true };
    now.duration_since(renewed) > SignedDuration::from_secs(lasts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_named_after_the_host() {
        for (bytes, text) in [(&b"f"[..], "my"), (b"fooba", "mzxw6ytb"), (b"foobar", "mzxw6ytboi")] {
            assert_eq!(base32(bytes), text);
        }
        let name = lease_name("host");
        assert_eq!((name.len(), name == lease_name("hostk")), ("apiserver-".len() + 26, false));
        let hashed = Sha256::digest(b"\x00\x04host\x00\x0ekube-apiserver");
        assert_eq!(name, format!("apiserver-{}", base32(&hashed[..16])));
    }

    #[test]
    fn leases_say_who_holds_them_and_until_when() {
        let now: Timestamp = "2026-01-02T03:04:05.5Z".parse().unwrap();
        let identity = Identity::of("h");
        let lease = identity.lease(None, now);
        assert_eq!(lease["metadata"]["labels"], json!({LABEL: COMPONENT, "kubernetes.io/hostname": "h"}));
        assert_eq!(lease["spec"]["renewTime"], "2026-01-02T03:04:05.500000Z");
        assert!(lease["spec"]["holderIdentity"].as_str().unwrap().starts_with(&format!("{}_", identity.lease)));
        let later = identity.lease(Some(&lease), now + SignedDuration::from_secs(10));
        assert_eq!(later["spec"]["acquireTime"], lease["spec"]["acquireTime"]);
        assert_eq!(later["spec"]["renewTime"], "2026-01-02T03:04:15.500000Z");

        let mut other = lease.clone();
        other["metadata"]["labels"][LABEL] = "other".into();
        for (lease, after, left) in [(&lease, 3600, false), (&lease, 3601, true), (&other, 9999, false)] {
            assert_eq!(is_left(lease, now + SignedDuration::from_secs(after)), left, "{after}");
        }
        assert!(is_left(&json!({"metadata": {"labels": {LABEL: COMPONENT}}, "spec": {}}), now));
    }
}
