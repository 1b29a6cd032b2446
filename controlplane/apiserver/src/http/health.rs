//! `/healthz`, `/livez`, `/readyz`, each with its individual checks
//! (`k8s.io/apiserver/pkg/server/healthz`).

use std::collections::BTreeMap;
use std::fmt::Write;

use http::{Response, StatusCode};
use parking_lot::Mutex;

use super::body::Body;
use super::pipeline::Asked;
use super::{metrics, render};
use crate::error::{ApiError, Result};
use crate::server::Api;

/// In the order of their report. The hooks are what a server has done before it listens.
const CHECKS: &[&str] = &[
    "ping",
    "log",
    "etcd",
    "etcd-readiness",
    PLUGINS,
    "informer-sync",
    "poststarthook/start-apiserver-admission-initializer",
    RELOAD,
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/priority-and-fairness-config-consumer",
    "poststarthook/priority-and-fairness-filter",
    "poststarthook/storage-object-count-tracker-hook",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/start-kube-apiserver-identity-lease-controller",
    "poststarthook/start-kube-apiserver-identity-lease-garbage-collector",
    "poststarthook/start-legacy-token-tracking-controller",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kubernetes-service-cidr-controller",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-discovery-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
    "poststarthook/apiservice-openapiv3-controller",
    "shutdown",
];
/// Whether to send traffic here, and nothing about being alive.
const READINESS: &[&str] = &["etcd-readiness", "informer-sync", "shutdown"];
/// All KMS plugins together, where encryption at rest may use some: nothing that a restart would mend.
const PLUGINS: &str = "kms-providers";
const RELOAD: &str = "poststarthook/start-encryption-provider-config-automatic-reload";

/// How checks went when they were asked for as a whole: `/metrics/slis`.
#[derive(Default)]
pub struct Results(Mutex<BTreeMap<(&'static str, String), Outcomes>>);

#[derive(Default)]
struct Outcomes {
    /// The last one was good.
    well: bool,
    good: u64,
    bad: u64,
}

impl Results {
    fn note(&self, check: &'static str, endpoint: &str, well: bool) {
        let mut results = self.0.lock();
        let outcomes = results.entry((check, endpoint.to_owned())).or_default();
        outcomes.well = well;
        *(if well { &mut outcomes.good } else { &mut outcomes.bad }) += 1;
    }

    pub fn page(&self) -> String {
        let results = self.0.lock();
        let (mut last, mut totals) = (String::new(), String::new());
        let name = "kubernetes_healthcheck";
        metrics::head(&mut last, name, "STABLE", "gauge", "This metric records the result of a single healthcheck.");
        let total = "kubernetes_healthchecks_total";
        metrics::head(&mut totals, total, "STABLE", "counter", "This metric records the results of all healthcheck.");
        // Writing to text cannot fail.
        for ((check, endpoint), outcomes) in &*results {
            let labels = |status: &str| format!("{{name=\"{check}\",{status}type=\"{endpoint}\"}}");
            let _ = writeln!(last, "{name}{} {}", labels(""), u8::from(outcomes.well));
            for (status, count) in [("error", outcomes.bad), ("success", outcomes.good)].iter().filter(|one| one.1 > 0)
            {
                let _ = writeln!(totals, "{total}{} {count}", labels(&format!("status=\"{status}\",")));
            }
        }
        last + &totals
    }
}

/// Why a check fails. `etcd` is the store, whichever it is: scripts know it by that name.
async fn check(api: &Api, name: &str) -> std::result::Result<(), String> {
    match name {
        "etcd" | "etcd-readiness" => {
            api.store.healthy().await.map_err(|error| format!("error getting data from etcd: {error}"))
        }
        PLUGINS => api.sealed.health().await,
        "shutdown" if api.ending.begun.is_cancelled() => Err("process is shutting down".to_owned()),
        _ => Ok(()),
    }
}

/// Checks of an endpoint: `healthz`, `livez` or `readyz`.
fn checks<'a>(api: &'a Api, endpoint: &str) -> impl Iterator<Item = &'static str> + use<'a> {
    let (ready, live) = (endpoint == "readyz", endpoint == "livez");
    CHECKS.iter().copied().filter(move |check| match *check {
        PLUGINS => !live && api.sealed.has_plugins(),
        RELOAD => api.sealed.reloads(),
        check => ready || !READINESS.contains(&check),
    })
}

/// All paths of checks.
pub fn paths(api: &Api) -> impl Iterator<Item = String> {
    ["healthz", "livez", "readyz"].into_iter().flat_map(move |endpoint| {
        std::iter::once(format!("/{endpoint}"))
            .chain(checks(api, endpoint).map(move |check| format!("/{endpoint}/{check}")))
    })
}

/// Names of the checks that fail.
pub async fn failing(api: &Api) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for name in checks(api, "readyz") {
        if check(api, name).await.is_err() {
            failed.push(name);
        }
    }
    failed
}

pub async fn handle(asked: &Asked, parts: &[&str]) -> Result<Response<Body>> {
    let endpoint = parts[0];
    if parts.len() > 1 {
        let wanted = parts[1..].join("/");
        let Some(name) = checks(&asked.api, endpoint).find(|check| *check == wanted) else {
            return Err(ApiError::page_not_found());
        };
        return Ok(match check(&asked.api, name).await {
            Ok(()) => render::page(StatusCode::OK, "ok"),
            Err(why) => render::page(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
        });
    }
    let (mut report, mut failed) = (String::new(), false);
    let mut unknown: Vec<&str> = asked.query.all("exclude").collect();
    let excluded = unknown.clone();
    for name in checks(&asked.api, endpoint) {
        unknown.retain(|other| *other != name);
        if excluded.contains(&name) {
            report += &format!("[+]{name} excluded: ok\n");
            continue;
        }
        let well = check(&asked.api, name).await.is_ok();
        asked.api.metrics.health.note(name, endpoint, well);
        if well {
            report += &format!("[+]{name} ok\n");
        } else {
            failed = true;
            // Anybody may ask; the check's own path says more to those who may.
            report += &format!("[-]{name} failed: reason withheld\n");
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        unknown.dedup();
        let names: Vec<String> = unknown.iter().map(|name| format!("{name:?}")).collect();
        report += &format!("warn: some health checks cannot be excluded: no matches for {}\n", names.join(","));
    }
    if failed {
        return Ok(render::page(StatusCode::INTERNAL_SERVER_ERROR, format!("{report}{endpoint} check failed\n")));
    }
    let verbose = asked.query.get("verbose").is_some();
    let text = if verbose { format!("{report}{endpoint} check passed\n") } else { "ok".to_owned() };
    Ok(render::page(StatusCode::OK, text))
}
