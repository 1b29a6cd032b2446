//! Writes what the checker finds wrong with a policy's expressions, for the kinds that it matches,
//! into `status.typeChecking` (upstream's controller `validatingadmissionpolicy-status`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::environment::{Purpose, declarations};
use super::{GROUP, name};
use crate::admit::Cluster;
use crate::cel::decl::Decl;
use crate::cel::{self, CelError};
use crate::error::Result;
use crate::resource::split_api_version;
use crate::schema::Schema;
use crate::schema::table::Element;
use crate::server::Api;

const PLURAL: &str = "validatingadmissionpolicies";
const RETRY: Duration = Duration::from_millis(500);
/// Kinds that one policy is checked against, at most.
const MOST_KINDS: usize = 10;

/// Follows the policies.
pub fn start(api: &Arc<Api>) {
    let follower = api.clone();
    api.supervisor.spawn("policy-types", async move { follow(&follower).await });
}

async fn follow(api: &Api) {
    let Some(endpoint) = api.resources().by_hub(GROUP, PLURAL).cloned() else { return };
    let mut changed = endpoint.cache.subscribe();
    loop {
        if let Err(error) = check_all(api).await {
            tracing::debug!(%error, "checking the types of policies; trying again");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

async fn check_all(api: &Api) -> Result<()> {
    for policy in api.list(GROUP, PLURAL, "").await? {
        if policy["status"]["observedGeneration"] == policy["metadata"]["generation"] {
            continue;
        }
        let warnings = warnings(&policy, &kinds(&policy, api), api);
        let mut new = (*policy).clone();
        new["status"]["observedGeneration"] = policy["metadata"]["generation"].clone();
        new["status"]["typeChecking"] =
            if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
        match api.update(GROUP, PLURAL, "status", new).await {
            // Someone wrote it in between: it comes again.
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            outcome => drop(outcome?),
        }
        tracing::debug!(policy = name(&policy), "types checked");
    }
    Ok(())
}

/// Group, version and kind.
type Named = (String, String, String);

/// The kinds that a policy names without wildcards, in order.
fn kinds(policy: &Value, api: &Api) -> BTreeSet<Named> {
    let mut kinds = BTreeSet::new();
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let resources = api.resources();
    for rule in policy["spec"]["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let (groups, versions) = (list(&rule["apiGroups"]), list(&rule["apiVersions"]));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        for group in &groups {
            for version in &versions {
                for plural in list(&rule["resources"]) {
                    let Some(endpoint) = resources.find(group, version, &plural) else { continue };
                    if kinds.len() < MOST_KINDS {
                        kinds.insert((group.clone(), version.clone(), endpoint.descriptor().kind.to_string()));
                    }
                }
            }
        }
    }
    kinds
}

fn typed(api: &dyn Cluster, group: &str, version: &str, kind: &str) -> Option<Decl> {
    match api.schema(group, version, kind)? {
        Schema::Builtin(id) => Some(crate::cel::native(Element::of_type(id))),
        Schema::Custom(schema) => Decl::of_schema(&schema.source.as_ref()?.value()?, true),
    }
}

/// In order of the expressions. Kinds of which nothing is known are left out, and parameters of such a kind are
/// none; of variables it is only told what comes of them.
fn warnings(policy: &Value, kinds: &BTreeSet<Named>, api: &dyn Cluster) -> Vec<Value> {
    let spec = &policy["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&spec["paramKind"]["apiVersion"]), text(&spec["paramKind"]["kind"]));
    let (group, version) = split_api_version(&version);
    let params = if kind.is_empty() { None } else { typed(api, group, version, &kind) };
    let purpose = if params.is_some() { Purpose::WithParams } else { Purpose::Plain };
    let mut found: BTreeMap<(usize, &str), String> = BTreeMap::new();
    for (group, version, kind) in kinds {
        let Some(object) = typed(api, group, version, kind) else { continue };
        let object = Some(object);
        let mut note = |place: (usize, &'static str), error: &CelError| {
            let why = error.to_string();
            let why = why.trim_start_matches("compilation failed: ");
            let lines = found.entry(place).or_default();
            if !lines.is_empty() {
                lines.push('\n');
            }
            lines.push_str(&format!("{group}/{version}, Kind={kind}: {why}\n"));
        };
        let mut variables: Vec<(String, Decl)> = Vec::new();
        for variable in spec["variables"].as_array().into_iter().flatten() {
            let known = declarations(purpose, object.clone(), params.clone(), Some(&variables));
            let checked = cel::compile_checked(&text(&variable["expression"]), &known);
            let decl = checked.map_or_else(|_| Decl::dynamic(), |(_, checked)| checked.decl);
            variables.push((text(&variable["name"]), decl));
        }
        let known = declarations(purpose, object, params.clone(), Some(&variables));
        for (index, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
            for key in ["expression", "messageExpression"] {
                let Some(expression) = validation[key].as_str().filter(|text| !text.is_empty()) else { continue };
                if let Err(error) = cel::compile_checked(expression, &known) {
                    note((index, key), &error);
                }
            }
        }
    }
    let place = |(index, key): (usize, &str)| format!("spec.validations[{index}].{key}");
    found.into_iter().map(|(at, warning)| json!({"fieldRef": place(at), "warning": warning})).collect()
}
