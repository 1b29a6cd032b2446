//! `/healthz`, `/livez`, `/readyz`, each with its individual checks.

use http::{Response, StatusCode};

use super::body::Body;
use super::pipeline::Asked;
use super::render;
use crate::error::{ApiError, Result};
use crate::server::Api;

const CHECKS: &[&str] = &["ping", "log", "etcd", "informer-sync", "poststarthook/rbac/bootstrap-roles", "shutdown"];

/// Whether one check holds. `etcd` is the store, whichever it is: scripts know it by that name.
async fn holds(api: &Api, check: &str) -> bool {
    match check {
        "etcd" => api.store.revision().await.is_ok(),
        "shutdown" => !api.ending.begun.is_cancelled(),
        _ => true,
    }
}

/// Names of the checks that fail.
pub async fn failing(api: &Api) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for check in CHECKS {
        if !holds(api, check).await {
            failed.push(*check);
        }
    }
    failed
}

pub async fn handle(asked: &Asked, parts: &[&str]) -> Result<Response<Body>> {
    let endpoint = parts[0];
    let checks = || CHECKS.iter().copied().filter(|check| endpoint == "readyz" || *check != "shutdown");
    if parts.len() > 1 {
        let wanted = parts[1..].join("/");
        let Some(check) = checks().find(|check| *check == wanted) else { return Err(ApiError::no_such_path()) };
        return Ok(if holds(&asked.api, check).await {
            plain(StatusCode::OK, "ok".into())
        } else {
            plain(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {check} failed\n"))
        });
    }
    let excluded: Vec<&str> = asked.query.all("exclude").collect();
    let (mut report, mut failed) = (String::new(), false);
    for check in checks() {
        if excluded.contains(&check) {
            report += &format!("[+]{check} excluded: ok\n");
        } else if holds(&asked.api, check).await {
            report += &format!("[+]{check} ok\n");
        } else {
            failed = true;
            report += &format!("[-]{check} failed: reason withheld\n");
        }
    }
    if failed {
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{report}{endpoint} check failed\n")));
    }
    let verbose = asked.query.get("verbose").is_some();
    Ok(plain(StatusCode::OK, if verbose { format!("{report}{endpoint} check passed\n") } else { "ok".into() }))
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    render::response(status, "text/plain; charset=utf-8", text)
}
