//! Admission policies of the cluster's own, in CEL: `ValidatingAdmissionPolicy` and
//! `MutatingAdmissionPolicy` with their bindings.
//!
//! Two plugins: [`Validating`] among the others, [`mutating`] together with the mutating webhooks,
//! which may call for a second run. [`invocations`] finds what a request is subject to: a policy,
//! a binding, and a parameter each. [`evaluate`] runs the expressions of one; [`typecheck`] writes
//! what is wrong with them into the policies' status.
//!
//! Upstream: `k8s.io/apiserver/pkg/admission/plugin/policy`.

mod environment;
mod evaluate;
pub mod mutating;
pub mod typecheck;
mod validating;

use std::sync::Arc;

use api::selector::Selector;
use serde_json::Value;

use crate::admission::manifests::Manifests;
use crate::admit::{Attributes, Cluster};
use crate::error::Result;
use crate::resource::split_api_version;
use crate::webhook::matching::{Criteria, Version};

pub use environment::{Purpose, declarations};
pub use evaluate::{Conditions, match_conditions};
pub use validating::Validating;

const GROUP: &str = "admissionregistration.k8s.io";

/// One policy that applies to a request, by one binding, with one parameter.
struct Invocation {
    policy: Arc<Value>,
    binding: Arc<Value>,
    version: Version,
    /// Null: the policy has no parameter.
    param: Arc<Value>,
}

/// Why a policy or binding cannot be used; none of binding: the policy itself.
struct ConfigurationError {
    policy: Arc<Value>,
    binding: Option<Arc<Value>>,
    why: String,
}

/// What a request is subject to, in order of the policies' names.
async fn invocations(
    attributes: &Attributes<'_>,
    cluster: &dyn Cluster,
    (policies, manifests): (&str, &Manifests),
) -> Result<(Vec<Invocation>, Vec<ConfigurationError>)> {
    // Those from files come first, and are for policies themselves, too.
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    let fixed = manifests.of(policies);
    if !fixed.is_empty() {
        let bindings = manifests.of(&bindings_of(policies));
        (found, errors) = Box::pin(bound(fixed, bindings, attributes, cluster)).await?;
    }
    if attributes.group == GROUP {
        return Ok((found, errors));
    }
    let all = cluster.list(GROUP, policies, "").await?;
    if !all.is_empty() {
        let bindings = cluster.list(GROUP, &bindings_of(policies), "").await?;
        // Boxed: writes of clusters without policies keep no room for what policies need.
        let (more, wrong) = Box::pin(bound(all, bindings, attributes, cluster)).await?;
        found.extend(more);
        errors.extend(wrong);
    }
    Ok((found, errors))
}

fn bindings_of(policies: &str) -> String {
    policies.replace("policies", "policybindings")
}

/// What of `all` policies a request is subject to.
async fn bound(
    all: Vec<Arc<Value>>,
    bindings: Vec<Arc<Value>>,
    attributes: &Attributes<'_>,
    cluster: &dyn Cluster,
) -> Result<(Vec<Invocation>, Vec<ConfigurationError>)> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for policy in all {
        let bound: Vec<&Arc<Value>> =
            bindings.iter().filter(|binding| binding["spec"]["policyName"] == policy["metadata"]["name"]).collect();
        if bound.is_empty() {
            continue;
        }
        let constraints = Criteria::of_resources(&policy["spec"]["matchConstraints"]);
        let Some(version) = constraints.matched(attributes, cluster).await? else { continue };
        for binding in bound {
            let criteria = Criteria::of_resources(&binding["spec"]["matchResources"]);
            if !criteria.matched_or_unruled(attributes, cluster).await? {
                continue;
            }
            match params(&policy["spec"]["paramKind"], &binding["spec"]["paramRef"], attributes.namespace, cluster)
                .await?
            {
                Ok(params) => found.extend(params.into_iter().map(|param| Invocation {
                    policy: policy.clone(),
                    binding: binding.clone(),
                    version: version.clone(),
                    param,
                })),
                Err(why) => {
                    errors.push(ConfigurationError { policy: policy.clone(), binding: Some(binding.clone()), why })
                }
            }
        }
    }
    Ok((found, errors))
}

/// The parameters that a binding names. `Err` inside: upstream's words why there are none.
async fn params(
    kind: &Value,
    reference: &Value,
    namespace: &str,
    cluster: &dyn Cluster,
) -> Result<Result<Vec<Arc<Value>>, String>> {
    let none = || Arc::new(Value::Null);
    if !kind.is_object() || !reference.is_object() {
        return Ok(Ok(vec![none()]));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&kind["apiVersion"]), text(&kind["kind"]));
    let (group, version) = split_api_version(&api_version);
    let Some((plural, namespaced)) = cluster.resource_of(group, &kind) else {
        return Ok(Err(format!("paramKind kind `{api_version}, Kind={kind}` not known")));
    };
    let mut place = text(&reference["namespace"]);
    if !namespaced && !place.is_empty() {
        return Ok(Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()));
    }
    if namespaced && place.is_empty() {
        namespace.clone_into(&mut place);
        if place.is_empty() {
            return Ok(Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
            ));
        }
    }
    let found: Vec<Arc<Value>> = match reference["name"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => match cluster.get(group, &plural, &place, name).await? {
            Some(found) => vec![found],
            // It may have been made a moment ago.
            None => cluster.get_live(group, &plural, &place, name).await?.into_iter().collect(),
        },
        None => {
            let selector = match Selector::from_json(Some(&reference["selector"])) {
                Ok(selector) => selector,
                Err(error) => return Ok(Err(error.to_string())),
            };
            let all = cluster.list(group, &plural, &place).await?;
            all.into_iter().filter(|object| selector.matches_json(object["metadata"].get("labels"))).collect()
        }
    };
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Ok(Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned()));
    }
    let mut params = Vec::with_capacity(found.len());
    for object in found {
        let served = object["apiVersion"] == *api_version;
        params.push(if served {
            object
        } else {
            Arc::new(cluster.convert_kind(group, &kind, (*object).clone(), version).await?)
        });
    }
    Ok(Ok(params))
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Policies and webhook configurations are subject to none but those from files.
fn applies(attributes: &Attributes<'_>, manifests: &Manifests) -> bool {
    (manifests.is_given() || attributes.group != GROUP) && !attributes.descriptor.virtual_
}

fn ignores_failures(policy: &Value) -> bool {
    policy["spec"]["failurePolicy"] == "Ignore"
}
