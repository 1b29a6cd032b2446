//! What every cluster has from its first second: namespaces, roles and bindings, priority classes,
//! the `kubernetes` Service, the CA for extension servers, the Lease of this server. Made at start where
//! missing, and roles kept complete; what upstream's server makes again while it runs, [`keeping`] does.

mod aggregation;
pub mod flowcontrol;
pub mod identity;
mod keeping;
mod policy;
mod servers;
mod service;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::admit::Cluster;
use crate::error::Result;
use crate::server::Api;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
const RBAC: &str = "rbac.authorization.k8s.io";
const AUTHORITIES: &str = "extension-apiserver-authentication";

/// Makes what is missing, and starts what keeps it.
pub async fn start(api: &Arc<Api>) -> Result<()> {
    let namespaces = NAMESPACES.iter().map(|name| ensure(api, "", "namespaces", namespace(name)));
    futures::future::try_join_all(namespaces).await?;
    let classes = [
        priority_class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        priority_class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ];
    let classes = classes.map(|class| ensure(api, "scheduling.k8s.io", "priorityclasses", class));
    let classes = futures::future::try_join_all(classes);
    // Independent of each other: a commit of the store takes what is there of all of them.
    tokio::try_join!(
        policies(api),
        classes,
        extension_authentication(api),
        ensure(api, "", "configmaps", token_tracking()),
        service::ensure(api),
        crate::flowcontrol::controller::start(api),
        identity::start(api),
    )?;
    aggregation::start(api);
    keeping::start(api);
    Ok(())
}

async fn policies(api: &Api) -> Result<()> {
    let rules = policy::objects();
    let rules = rules.into_iter().map(|(plural, object)| ensure_policy(api, plural, object));
    futures::future::try_join_all(rules).await?;
    aggregation::aggregate_all(api).await
}

/// What the role `system:node` grants.
pub fn node_rules() -> Vec<crate::authz::rbac::Rule> {
    let roles = policy::objects();
    let role =
        roles.iter().find(|(plural, role)| *plural == "clusterroles" && role["metadata"]["name"] == "system:node");
    role.map(|(_, role)| crate::authz::rbac::Rule::all_of(role)).unwrap_or_default()
}

/// As a create by way of the API would leave it.
pub fn namespace(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    })
}

fn priority_class(name: &str, value: i64, description: &str) -> Value {
    json!({"metadata": {"name": name}, "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"})
}

/// Creates an object unless it exists.
pub async fn ensure(api: &Api, group: &str, plural: &str, object: Value) -> Result<()> {
    match api.create(group, plural, object).await {
        Err(error) if error.is_already_exists() => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}

async fn ensure_policy(api: &Api, plural: &'static str, object: Value) -> Result<()> {
    match api.create(RBAC, plural, object.clone()).await {
        Err(error) if error.is_already_exists() => {}
        outcome => return outcome.map(|_| ()),
    }
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    let Some(held) = api.get_live(RBAC, plural, text("namespace"), text("name")).await? else { return Ok(()) };
    match policy::reconciled(&held, &object) {
        Some(merged) => match api.update(RBAC, plural, "", merged).await {
            // Another server did the same at the same time.
            Err(error) if error.is_conflict() => Ok(()),
            outcome => outcome.map(|_| ()),
        },
        None => Ok(()),
    }
}

/// Since when the use of long-lived tokens is noted on their Secrets.
fn token_tracking() -> Value {
    let since = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let metadata = json!({"name": "kube-apiserver-legacy-service-account-token-tracking", "namespace": "kube-system"});
    json!({"metadata": metadata, "data": {"since": since}})
}

/// `kube-system/extension-apiserver-authentication`: how aggregated servers know this one.
fn authorities(api: &Api) -> Value {
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    let mut data = json!({"client-ca-file": read(&api.config.client_ca)});
    if let Some(ca) = api.config.requestheader_ca() {
        let names = &api.config.requestheader;
        data["requestheader-client-ca-file"] = read(ca).into();
        for (key, names) in [
            ("requestheader-allowed-names", &names.allowed),
            ("requestheader-extra-headers-prefix", &names.extra_prefix),
            ("requestheader-group-headers", &names.group),
            ("requestheader-username-headers", &names.user),
            ("requestheader-uid-headers", &names.uid),
        ] {
            data[key] = json!(names).to_string().into();
        }
    }
    json!({"metadata": {"name": AUTHORITIES, "namespace": "kube-system"}, "data": data})
}

/// Says what the authorities are now.
pub async fn extension_authentication(api: &Api) -> Result<()> {
    let wanted = authorities(api);
    ensure(api, "", "configmaps", wanted.clone()).await?;
    loop {
        let Some(held) = api.get_live("", "configmaps", "kube-system", AUTHORITIES).await? else { return Ok(()) };
        if held["data"] == wanted["data"] {
            return Ok(());
        }
        let mut changed = (*held).clone();
        changed["data"] = wanted["data"].clone();
        match api.update("", "configmaps", "", changed).await {
            // Another server says so at the same time, or something else.
            Err(error) if error.is_conflict() => {}
            outcome => return outcome.map(drop),
        }
    }
}
