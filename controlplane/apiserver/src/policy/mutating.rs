//! `MutatingAdmissionPolicy`: changes the object by apply configurations and JSON patches.

use serde_json::{Map, Value, json};

use super::evaluate::{Conditions, Evaluation, Scope, conditions};
use super::{Invocation, applies, ignores_failures, invocations, name};
use crate::admission::manifests::Manifests;
use crate::admit::{Attributes, Cluster};
use crate::cel::{self, authorizer};
use crate::error::{ApiError, Result};
use crate::patch::{self, JsonPatchError};
use crate::schema::{Node, Schema, Topology};
use crate::webhook::matching::{restored, versioned};

/// Runs every policy that applies, or (`again`) those that want to see what others changed after
/// them. True: the object changed.
pub async fn run(
    attributes: &mut Attributes<'_>,
    cluster: &dyn Cluster,
    (manifests, again): (&Manifests, bool),
) -> Result<bool> {
    if !applies(attributes, manifests) {
        return Ok(false);
    }
    let policies = ("mutatingadmissionpolicies", manifests);
    let (invocations, errors) = invocations(attributes, cluster, policies).await?;
    let mut refusals: Vec<String> = errors
        .iter()
        .filter(|error| !ignores_failures(&error.policy))
        .map(|error| {
            refusal(&error.policy, error.binding.as_deref(), &format!("failed to configure binding: {}", error.why))
        })
        .collect();
    let mut changed = false;
    for invocation in &invocations {
        if again && invocation.policy["spec"]["reinvocationPolicy"] != "IfNeeded" {
            continue;
        }
        match Box::pin(mutate(invocation, attributes, cluster)).await? {
            Ok(Some(object)) => {
                changed |= object != attributes.object;
                attributes.object = object;
                attributes.patched = true;
            }
            Ok(None) => {}
            Err(why) if ignores_failures(&invocation.policy) => {
                tracing::debug!(
                    policy = name(&invocation.policy),
                    why,
                    "a mutation failed; its policy is to ignore that"
                );
            }
            Err(why) => refusals.push(refusal(&invocation.policy, Some(&invocation.binding), &why)),
        }
    }
    match refusals.first() {
        Some(first) => {
            let mut error = attributes.forbid("admission request denied by policy").to_status();
            error["message"] = first.as_str().into();
            error["reason"] = "Invalid".into();
            error["details"]["causes"] = refusals.iter().map(|message| json!({"message": message})).collect();
            Err(ApiError::from_status(error, http::StatusCode::FORBIDDEN))
        }
        None => Ok(changed),
    }
}

fn refusal(policy: &Value, binding: Option<&Value>, why: &str) -> String {
    match binding {
        Some(binding) => format!("policy '{}' with binding '{}' denied request: {why}", name(policy), name(binding)),
        None => format!("policy {:?} denied request: {why}", name(policy)),
    }
}

/// The object after all mutations of one invocation; none: it is not for this request.
async fn mutate(
    invocation: &Invocation,
    attributes: &Attributes<'_>,
    cluster: &dyn Cluster,
) -> Result<Result<Option<Value>, String>> {
    if !attributes.object.is_object() {
        return Ok(Ok(None));
    }
    let versioned = versioned(attributes, cluster, invocation.version.clone()).await?;
    let kind = versioned.object["kind"].as_str().unwrap_or_default();
    let Some(schema) = cluster.schema(&versioned.version.group, &versioned.version.version, kind) else {
        return Err(ApiError::unavailable(format!(
            "Resource kind {}, Kind={kind} not found. There can be a delay between when CustomResourceDefinitions are created and when they are available.",
            crate::resource::api_version(&versioned.version.group, &versioned.version.version)
        )));
    };
    let mut scope = Scope::of(attributes, &versioned, cluster).await?;
    let params = cel::from_json(&invocation.param);
    let policy = &*invocation.policy;
    let evaluate = |authorizer| conditions(&policy["spec"], &mut Evaluation::new(&scope, &params, policy, authorizer));
    match authorizer::answered(cluster, attributes.user, evaluate).await {
        Conditions::Met => {}
        Conditions::NotMet => return Ok(Ok(None)),
        Conditions::Failed(why) => return Ok(Err(why)),
    }
    let mut object = versioned.object.into_owned();
    for mutation in policy["spec"]["mutations"].as_array().into_iter().flatten() {
        let key = if mutation["patchType"] == "JSONPatch" { "jsonPatch" } else { "applyConfiguration" };
        let expression = mutation[key]["expression"].as_str().unwrap_or_default();
        scope.set_object(&object);
        let evaluate = |authorizer| Evaluation::new(&scope, &params, policy, authorizer).value(expression);
        let value = authorizer::answered(cluster, attributes.user, evaluate).await;
        let patched = value.and_then(|value| {
            if key == "jsonPatch" { json_patched(&object, &value) } else { applied(&schema, &object, &value) }
        });
        match patched {
            Ok(next) => object = next,
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(Some(restored(attributes, cluster, object, &invocation.version).await?)))
}

fn json_patched(object: &Value, value: &cel::Value) -> Result<Value, String> {
    let Some(Value::Array(operations)) = cel::to_json(value) else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    match patch::json(object, &operations.into()) {
        Ok(patched) => Ok(patched),
        // A `test` that fails leaves the object as it is.
        Err(JsonPatchError::TestFailed(_)) => Ok(object.clone()),
        Err(error) => Err(format!("JSON Patch: {error}")),
    }
}

fn applied(schema: &Schema, object: &Value, value: &cel::Value) -> Result<Value, String> {
    let Some(mut config @ Value::Object(_)) = cel::to_json(value) else {
        return Err(format!("unsupported return type from ApplyConfiguration expression: {}", value.type_of()));
    };
    let mut atomics = Vec::new();
    find_atomics(schema.root(), &config, "", &mut atomics);
    if !atomics.is_empty() {
        let why = format!("may not mutate atomic arrays, maps or structs: {}", atomics.join(", "));
        return Err(format!("error applying patch: invalid ApplyConfiguration: {why}"));
    }
    let mut problems = Vec::new();
    patch::apply::typed::check(schema.root(), &config, "", &mut problems);
    if !problems.is_empty() {
        let why = problems.join(", ");
        return Err(format!("error applying patch: failed to convert patch object to typed object: {why}"));
    }
    for key in ["apiVersion", "kind"] {
        config[key] = object[key].clone();
    }
    Ok(patch::apply::typed::merge(schema.root(), Some(object), &config))
}

/// Where a configuration would replace a whole list or map of which it may only know a part.
fn find_atomics(node: Node<'_>, value: &Value, path: &str, found: &mut Vec<String>) {
    if !path.is_empty()
        && matches!(value, Value::Object(_) | Value::Array(_))
        && node.topology(value) == Topology::Atomic
    {
        found.push(path.to_owned());
    }
    let members = |members: &Map<String, Value>, found: &mut Vec<String>| {
        for (name, value) in members {
            if let Some(node) = node.member(name) {
                find_atomics(node, value, &format!("{path}.{name}"), found);
            }
        }
    };
    match value {
        Value::Object(map) => members(map, found),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find_atomics(node.item(), item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}
