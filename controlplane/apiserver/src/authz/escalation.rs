//! Nobody gives rights that he does not have: checked when roles and bindings are written, unless
//! the user may `escalate` or `bind`.

use serde_json::Value;

use super::Request;
use super::rbac::Rule;
use crate::authn::UserInfo;
use crate::error::{ApiError, Result};
use crate::server::Api;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a role or binding about to be written; other objects pass.
pub async fn check(api: &Api, user: &UserInfo, plural: &str, new: &Value, old: Option<&Value>) -> Result<()> {
    if user.in_group("system:masters") {
        return Ok(());
    }
    match plural {
        "roles" | "clusterroles" => check_role(api, user, plural, new, old).await,
        "rolebindings" | "clusterrolebindings" => check_binding(api, user, plural, new, old).await,
        _ => Ok(()),
    }
}

async fn check_role(api: &Api, user: &UserInfo, plural: &str, new: &Value, old: Option<&Value>) -> Result<()> {
    let unchanged = |old: &Value| old["rules"] == new["rules"] && old["aggregationRule"] == new["aggregationRule"];
    let (namespace, name) = place(new);
    let escalates = Request { verb: "escalate", group: GROUP, resource: plural, namespace, name, ..Request::default() };
    if old.is_some_and(unchanged) || api.authz.allowed(api, user, &escalates).await {
        return Ok(());
    }
    let held = held(api, user, namespace).await?;
    let mut asked = Rule::all_of(new);
    if !new["aggregationRule"].is_null() {
        // What others' roles will add is not known: only one who has everything may.
        let all = || vec!["*".to_owned()];
        asked.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
    }
    refuse_uncovered(user, plural, name, &asked, &held)
}

async fn check_binding(api: &Api, user: &UserInfo, plural: &str, new: &Value, old: Option<&Value>) -> Result<()> {
    let (namespace, name) = place(new);
    let role = &new["roleRef"];
    let role_name = role["name"].as_str().unwrap_or_default();
    let (resource, role_namespace) = if role["kind"] == "Role" { ("roles", namespace) } else { ("clusterroles", "") };
    let unchanged = |old: &Value| old["roleRef"] == new["roleRef"] && old["subjects"] == new["subjects"];
    let binds = Request { verb: "bind", group: GROUP, resource, namespace, name: role_name, ..Request::default() };
    if old.is_some_and(unchanged) || api.authz.allowed(api, user, &binds).await {
        return Ok(());
    }
    let index = api.authz.index(api).await.map_err(ApiError::internal)?;
    let Some(rules) = index.role(role_namespace, role_name) else {
        return Err(ApiError::not_found(GROUP, resource, role_name));
    };
    refuse_uncovered(user, plural, name, &rules, &held(api, user, namespace).await?)
}

fn place(object: &Value) -> (&str, &str) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

async fn held(api: &Api, user: &UserInfo, namespace: &str) -> Result<Vec<Rule>> {
    Ok(api.authz.index(api).await.map_err(ApiError::internal)?.rules_of(user, namespace))
}

fn refuse_uncovered(user: &UserInfo, plural: &str, name: &str, asked: &[Rule], held: &[Rule]) -> Result<()> {
    let missing: Vec<String> = asked.iter().filter(|rule| !rule.covered_by(held)).map(describe).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        missing.join("\n")
    );
    Err(ApiError::forbidden(GROUP, plural, name, why))
}

fn describe(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("NonResourceURLs", &rule.urls),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| format!("{name}:{list:?}")).collect();
    format!("{{{}}}", parts.join(", "))
}
