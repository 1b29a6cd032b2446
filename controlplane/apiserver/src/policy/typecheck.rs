//! Writes what the checker finds wrong with a policy's expressions, for the kinds that it matches,
//! into `status.typeChecking` (upstream's controller `validatingadmissionpolicy-status`).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::environment::{Purpose, declarations};
use super::{GROUP, name};
use crate::admit::Cluster;
use crate::cel::decl::Decl;
use crate::cel::{self, CelError};
use crate::error::Result;
use crate::resource::{api_version, split_api_version};
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

/// The kinds that a policy names without wildcards, as `(apiVersion, kind)`.
fn kinds(policy: &Value, api: &Api) -> Vec<(String, String)> {
    let mut kinds = Vec::new();
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let resources = api.resources();
    for rule in policy["spec"]["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        for group in list(&rule["apiGroups"]) {
            for version in list(&rule["apiVersions"]) {
                for plural in list(&rule["resources"]) {
                    let Some(endpoint) = resources.find(&group, &version, &plural) else { continue };
                    let kind = (api_version(&group, &version), endpoint.descriptor().kind.to_string());
                    if kinds.len() < MOST_KINDS && !kinds.contains(&kind) {
                        kinds.push(kind);
                    }
                }
            }
        }
    }
    kinds
}

fn typed(api: &dyn Cluster, api_version: &str, kind: &str) -> Option<Decl> {
    let (group, version) = split_api_version(api_version);
    match api.schema(group, version, kind)? {
        Schema::Builtin(id) => Some(crate::cel::native(Element::of_type(id))),
        Schema::Custom(schema) => Decl::of_schema(&schema.source.as_ref()?.value()?, true),
    }
}

fn warnings(policy: &Value, kinds: &[(String, String)], api: &dyn Cluster) -> Vec<Value> {
    let spec = &policy["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (purpose, params) = if spec["paramKind"].is_object() {
        let (version, kind) = (text(&spec["paramKind"]["apiVersion"]), text(&spec["paramKind"]["kind"]));
        (Purpose::WithParams, typed(api, &version, &kind))
    } else {
        (Purpose::Plain, None)
    };
    let mut found: Vec<(String, String)> = Vec::new();
    for (api_version, kind) in kinds {
        let object = typed(api, api_version, kind);
        let mut note = |place: String, error: &CelError| {
            let why = error.to_string();
            let line = format!("{api_version}, Kind={kind}: {}\n", why.trim_start_matches("compilation failed: "));
            match found.iter_mut().find(|(known, _)| *known == place) {
                Some((_, lines)) => lines.push_str(&line),
                None => found.push((place, line)),
            }
        };
        let mut variables: Vec<(String, Decl)> = Vec::new();
        for (index, variable) in spec["variables"].as_array().into_iter().flatten().enumerate() {
            let known = declarations(purpose, object.clone(), params.clone(), Some(&variables));
            let decl = match cel::compile_checked(&text(&variable["expression"]), &known) {
                Ok((_, checked)) => checked.decl,
                Err(error) => {
                    note(format!("spec.variables[{index}].expression"), &error);
                    Decl::dynamic()
                }
            };
            variables.push((text(&variable["name"]), decl));
        }
        let known = declarations(purpose, object, params.clone(), Some(&variables));
        for (index, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
            for key in ["expression", "messageExpression"] {
                let Some(expression) = validation[key].as_str().filter(|text| !text.is_empty()) else { continue };
                if let Err(error) = cel::compile_checked(expression, &known) {
                    note(format!("spec.validations[{index}].{key}"), &error);
                }
            }
        }
    }
    found.into_iter().map(|(place, warning)| json!({"fieldRef": place, "warning": warning})).collect()
}
