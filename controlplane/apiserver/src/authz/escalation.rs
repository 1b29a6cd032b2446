//! Nobody gives rights that he does not have: checked when roles and bindings are written, unless
//! the user may `escalate` or `bind`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Request;
use super::rbac::Rule;
use crate::authn::UserInfo;
use crate::error::{ApiError, Result};
use crate::kinds::value::{remove, same};
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
    let (namespace, name) = place(new);
    let escalates = Request { verb: "escalate", group: GROUP, resource: plural, namespace, name, ..Request::default() };
    if old.is_some_and(|old| is_collecting(old, new)) || api.authz.allowed(api, user, &escalates).await {
        return Ok(());
    }
    let held = held(api, user, namespace).await?;
    if !new["aggregationRule"].is_null() || old.is_some_and(|old| !old["aggregationRule"].is_null()) {
        // What others' roles will add is not known: only one who has everything may.
        let all = || vec!["*".to_owned()];
        let resources = Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() };
        let urls = Rule { verbs: all(), urls: all(), ..Rule::default() };
        if [resources, urls].iter().any(|rule| !rule.covered_by(&held)) {
            let why = "must have cluster-admin privileges to use an aggregationRule";
            return Err(ApiError::forbidden(GROUP, plural, name, why));
        }
    }
    refuse_uncovered(user, plural, name, &Rule::all_of(new), &held)
}

async fn check_binding(api: &Api, user: &UserInfo, plural: &str, new: &Value, old: Option<&Value>) -> Result<()> {
    let (namespace, name) = place(new);
    let role = &new["roleRef"];
    let role_name = role["name"].as_str().unwrap_or_default();
    let (resource, role_namespace) = if role["kind"] == "Role" { ("roles", namespace) } else { ("clusterroles", "") };
    let binds = Request { verb: "bind", group: GROUP, resource, namespace, name: role_name, ..Request::default() };
    if old.is_some_and(|old| is_collecting(old, new)) || api.authz.allowed(api, user, &binds).await {
        return Ok(());
    }
    let index = api.authz.index(api).await.map_err(ApiError::internal)?;
    let Some(rules) = index.role(role_namespace, role_name) else {
        return Err(ApiError::not_found(GROUP, resource, role_name));
    };
    refuse_uncovered(user, plural, name, &rules, &held(api, user, namespace).await?)
}

/// Whether nothing changes but what the garbage collector writes. Everything else is checked: a label alone
/// can add a role to those that others are aggregated from. Pure.
fn is_collecting(old: &Value, new: &Value) -> bool {
    let compared = |object: &Value| {
        let mut object = object.clone();
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            remove(&mut object, &format!("metadata.{field}"));
        }
        object
    };
    same(&compared(old), &compared(new))
}

fn place(object: &Value) -> (&str, &str) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

async fn held(api: &Api, user: &UserInfo, namespace: &str) -> Result<Vec<Rule>> {
    Ok(api.authz.index(api).await.map_err(ApiError::internal)?.rules_of(user, namespace))
}

fn refuse_uncovered(user: &UserInfo, plural: &str, name: &str, asked: &[Rule], held: &[Rule]) -> Result<()> {
    let missing = described(asked.iter().flat_map(|rule| rule.missing(held)));
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        missing.into_iter().collect::<Vec<_>>().join("\n")
    );
    Err(ApiError::forbidden(GROUP, plural, name, why))
}

/// Single rights, those on the same resource together.
fn described(singles: impl Iterator<Item = Rule>) -> BTreeSet<String> {
    let mut compact: Vec<Rule> = Vec::new();
    for single in singles {
        let same = |rule: &&mut Rule| {
            single.urls.is_empty()
                && (&rule.groups, &rule.resources, &rule.names) == (&single.groups, &single.resources, &single.names)
        };
        match compact.iter_mut().find(same) {
            Some(rule) => rule
                .verbs
                .extend(single.verbs.into_iter().filter(|verb| !rule.verbs.contains(verb)).collect::<Vec<_>>()),
            None => compact.push(single),
        }
    }
    compact.iter().map(describe).collect()
}

/// As Go's `%q` shows a list.
fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" "))
}

fn describe(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.urls),
        ("ResourceNames", &rule.names),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted(list)))
        .collect();
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_shown_by_resource() {
        let rules = |rules: Value| Rule::all_of(&json!({"rules": rules}));
        let held = rules(json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]));
        let asked = rules(json!([
            {"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["secrets", "pods"]},
            {"verbs": ["delete"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]},
            {"verbs": ["get"], "nonResourceURLs": ["/metrics"]},
        ]));
        let jane = UserInfo::new("jane", &["dev", "system:authenticated"]);
        let refused = refuse_uncovered(&jane, "roles", "r", &asked, &held).unwrap_err();
        assert_eq!(
            refused.message(),
            [
                "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"jane\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:",
                "{APIGroups:[\"\"], Resources:[\"pods\"], ResourceNames:[\"a\"], Verbs:[\"delete\"]}",
                "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\" \"watch\"]}",
                "{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\" \"watch\"]}",
                "{NonResourceURLs:[\"/metrics\"], Verbs:[\"get\"]}",
            ]
            .join("\n")
        );
        assert!(refuse_uncovered(&jane, "roles", "r", &held, &held).is_ok());
    }

    #[test]
    fn a_label_that_lets_a_role_be_aggregated_is_no_small_change() {
        let role = json!({
            "metadata": {"name": "all", "resourceVersion": "1", "finalizers": ["a"], "managedFields": [{"manager": "a"}]},
            "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
        });
        let changed = |part: &str, value: Value| {
            let mut changed = role.clone();
            changed["metadata"][part] = value;
            is_collecting(&role, &changed)
        };
        assert!(!changed("labels", json!({"rbac.authorization.k8s.io/aggregate-to-edit": "true"})));
        assert!(!changed("annotations", json!({"a": "b"})));
        assert!(changed("finalizers", json!([])) && changed("managedFields", json!([])));
        assert!(changed("ownerReferences", json!([{"kind": "Node", "name": "n", "uid": "u"}])));
        let mut more = role.clone();
        more["rules"] = json!([]);
        assert!(!is_collecting(&role, &more));
    }
}
