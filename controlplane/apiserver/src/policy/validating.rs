//! `ValidatingAdmissionPolicy`: says no, warns, or leaves a note in the audit log.

use std::collections::BTreeMap;

use async_trait::async_trait;
use http::StatusCode;
use serde_json::{Value, json};

use super::evaluate::{Conditions, Evaluation, Scope, conditions};
use super::{Invocation, applies, ignores_failures, invocations, name};
use crate::admission::manifests::Manifests;
use crate::admit::{Admission, Attributes, Cluster};
use crate::cel::{self, authorizer};
use crate::error::{ApiError, Result};
use crate::webhook::matching::versioned;

/// Bytes of a message that an expression made, at most.
const LONGEST_MESSAGE: usize = 5 * 1024;
/// Bytes of an audit annotation, at most.
const LONGEST_ANNOTATION: usize = 10 * 1024;

pub struct Validating {
    pub manifests: Manifests,
}

/// What one validation of a policy came to; those that passed are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Denial {
    index: usize,
    message: String,
    reason: String,
}

/// What one invocation came to.
#[derive(Debug, Default)]
struct Verdict {
    denials: Vec<Denial>,
    annotations: Vec<(String, String)>,
    /// Annotations that could not be computed deny whatever the binding says.
    broken_annotations: Vec<String>,
}

#[async_trait]
impl Admission for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        applies(attributes, &self.manifests)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let policies = ("validatingadmissionpolicies", &self.manifests);
        let (invocations, errors) = invocations(attributes, cluster, policies).await?;
        let mut denied: Option<(String, String)> = None;
        for error in errors.iter().filter(|error| !ignores_failures(&error.policy)) {
            let why = if error.binding.is_some() { "binding" } else { "policy" };
            let message = format!("failed to configure {why}: {}", error.why);
            denied.get_or_insert((refusal(&error.policy, error.binding.as_deref(), &message), "Invalid".to_owned()));
        }
        let mut notes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for invocation in &invocations {
            let verdict = Box::pin(verdict(invocation, attributes, cluster)).await?;
            let (policy, binding) = (&*invocation.policy, &*invocation.binding);
            for denial in verdict.denials {
                for action in binding["spec"]["validationActions"].as_array().into_iter().flatten() {
                    match action.as_str() {
                        Some("Deny") => {
                            let message = refusal(policy, Some(binding), &denial.message);
                            denied.get_or_insert((message, denial.reason.clone()));
                        }
                        Some("Warn") => attributes.warnings.push(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                            name(policy),
                            name(binding),
                            denial.message
                        )),
                        Some("Audit") => attributes.audit.push(audit_note(policy, binding, &denial)),
                        _ => {}
                    }
                }
            }
            for why in verdict.broken_annotations {
                denied.get_or_insert((refusal(policy, Some(binding), &why), "Invalid".to_owned()));
            }
            for (key, value) in verdict.annotations {
                let values = notes.entry(format!("{}/{key}", name(policy))).or_default();
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
        attributes.audit.extend(notes.into_iter().map(|(key, values)| (key, values.join(", "))));
        match denied {
            Some((message, reason)) => Err(forbidden(attributes, &message, &reason)),
            None => Ok(()),
        }
    }
}

fn refusal(policy: &Value, binding: Option<&Value>, message: &str) -> String {
    match binding {
        Some(binding) => format!(
            "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {message}",
            name(policy),
            name(binding)
        ),
        None => format!("ValidatingAdmissionPolicy '{}' denied request: {message}", name(policy)),
    }
}

fn audit_note(policy: &Value, binding: &Value, denial: &Denial) -> (String, String) {
    let failure = json!([{
        "message": denial.message, "policy": name(policy), "binding": name(binding),
        "expressionIndex": denial.index, "validationActions": binding["spec"]["validationActions"],
    }]);
    ("validation.policy.admission.k8s.io/validation_failure".to_owned(), failure.to_string())
}

/// A refusal with the reason that the policy gives.
pub(super) fn forbidden(attributes: &Attributes<'_>, message: &str, reason: &str) -> ApiError {
    let code = match reason {
        "Unauthorized" => StatusCode::UNAUTHORIZED,
        "Forbidden" => StatusCode::FORBIDDEN,
        "RequestEntityTooLarge" => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let mut status = attributes.forbid(message).to_status();
    status["reason"] = reason.into();
    status["code"] = code.as_u16().into();
    let causes = status["details"]["causes"].as_array().cloned().unwrap_or_default();
    status["details"]["causes"] = causes.into_iter().chain([json!({"message": message})]).collect();
    ApiError::from_status(status, code)
}

async fn verdict(invocation: &Invocation, attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Result<Verdict> {
    let versioned = versioned(attributes, cluster, invocation.version.clone()).await?;
    let scope = Scope::of(attributes, &versioned, cluster).await?;
    let params = cel::from_json(&invocation.param);
    let policy = &*invocation.policy;
    let evaluate = |authorizer| judge(policy, &mut Evaluation::new(&scope, &params, policy, authorizer));
    Ok(authorizer::answered(cluster, attributes.user, evaluate).await)
}

/// Evaluates a policy.
fn judge(policy: &Value, run: &mut Evaluation<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    let ignores = ignores_failures(policy);
    let failed = |index: usize, message: String| Denial { index, message, reason: "Invalid".to_owned() };
    match conditions(&policy["spec"], run) {
        Conditions::Met => {}
        Conditions::NotMet => return verdict,
        Conditions::Failed(why) => {
            verdict.denials.extend((!ignores).then(|| failed(0, why)));
            return verdict;
        }
    }
    let validations = policy["spec"]["validations"].as_array().map_or(&[][..], Vec::as_slice);
    let mut values = Vec::with_capacity(validations.len());
    for validation in validations {
        let value = run.value(validation["expression"].as_str().unwrap_or_default());
        if run.is_spent() {
            // Nothing of it counts, and no more is looked at.
            verdict.denials.extend(value.err().filter(|_| !ignores).map(|why| failed(0, why)));
            return verdict;
        }
        values.push(value);
    }
    let messages = messages(validations, run);
    for (index, (validation, value)) in validations.iter().zip(values).enumerate() {
        match (value, &messages) {
            (Err(why), _) => verdict.denials.extend((!ignores).then(|| failed(index, why))),
            // Upstream denies then also what passed.
            (Ok(_), Err(why)) => {
                let why = format!("failed messageExpression: {why}");
                verdict.denials.extend((!ignores).then(|| failed(index, why)));
            }
            (Ok(cel::Value::Bool(true)), Ok(_)) => {}
            (Ok(_), Ok(messages)) => verdict.denials.push(Denial {
                index,
                message: message(validation, messages[index].as_deref()),
                reason: validation["reason"].as_str().unwrap_or("Invalid").to_owned(),
            }),
        }
    }
    run.renew();
    for annotation in policy["spec"]["auditAnnotations"].as_array().into_iter().flatten() {
        let key = annotation["key"].as_str().unwrap_or_default().to_owned();
        let value = run.value(annotation["valueExpression"].as_str().unwrap_or_default());
        if run.is_spent() {
            let denials = value.err().filter(|_| !ignores).map(|why| failed(0, why)).into_iter().collect();
            return Verdict { denials, ..Verdict::default() };
        }
        match value {
            Ok(cel::Value::String(text)) if !text.trim().is_empty() => {
                verdict.annotations.push((key, shortened(text.trim(), LONGEST_ANNOTATION).to_owned()));
            }
            Ok(cel::Value::String(_) | cel::Value::Null) => {}
            Ok(other) => verdict.broken_annotations.push(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation["valueExpression"].as_str().unwrap_or_default(),
                other.type_of()
            )),
            Err(why) => verdict.broken_annotations.extend((!ignores).then_some(why)),
        }
    }
    verdict
}

fn shortened(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What the message expressions come to, where they do; the error is that they spent the budget.
fn messages(validations: &[Value], run: &mut Evaluation<'_>) -> Result<Vec<Option<String>>, String> {
    let mut messages = Vec::with_capacity(validations.len());
    for validation in validations {
        let expression = validation["messageExpression"].as_str().filter(|expression| !expression.is_empty());
        let value = expression.map(|expression| run.value(expression));
        messages.push(match value {
            Some(Err(why)) if run.is_spent() => return Err(why),
            Some(Ok(cel::Value::String(text))) => Some(text.trim().to_owned()),
            _ => None,
        });
    }
    Ok(messages)
}

fn message(validation: &Value, computed: Option<&str>) -> String {
    let given = validation["message"].as_str().unwrap_or_default().trim();
    match computed.filter(|text| !text.is_empty() && !text.contains('\n') && text.len() <= LONGEST_MESSAGE) {
        Some(text) => text.to_owned(),
        None if !given.is_empty() => given.to_owned(),
        None => format!("failed expression: {}", validation["expression"].as_str().unwrap_or_default().trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;
    use crate::admit::Operation;
    use crate::authn::UserInfo;
    use crate::resource::Descriptor;
    use crate::webhook::matching::Version;

    #[tokio::test]
    async fn messages_that_spend_the_budget_fail_the_whole_policy() {
        let descriptor = Descriptor::new("", "v1", "Namespace", "namespaces");
        let (user, options, cluster) = (UserInfo::admin(), json!({}), Fixed::default());
        let attributes = Attributes {
            user: &user,
            descriptor: &descriptor,
            group: "",
            version: "v1",
            subresource: "",
            operation: Operation::Create,
            namespace: "",
            name: "x",
            object: json!({"kind": "Namespace", "metadata": {"name": "x"}}),
            old: None,
            options: &options,
            dry_run: false,
            deadline: None,
            patched: false,
            warnings: Vec::new(),
            audit: Vec::new(),
        };
        let version = Version { group: String::new(), version: "v1".to_owned() };
        let versioned = versioned(&attributes, &cluster, version).await.unwrap();
        let scope = Scope::of(&attributes, &versioned, &cluster).await.unwrap();
        let long = "[1, 2, 3].all(x, [1, 2, 3].all(y, [1, 2, 3].all(z, x + y + z > 0))) ? 'long' : 'never'";
        let mut policy = json!({"spec": {"failurePolicy": "Fail", "validations": [
            {"expression": "true"}, {"expression": "false", "messageExpression": long}, {"expression": "false"}]}});
        let params = cel::Value::Null;
        let judged = |policy: &Value, budget: u64| -> Vec<(usize, String)> {
            let mut run = Evaluation::new(&scope, &params, policy, cel::Value::Null);
            run.budget = budget;
            judge(policy, &mut run).denials.into_iter().map(|denial| (denial.index, denial.message)).collect()
        };
        let said = |index: usize, message: &str| (index, message.to_owned());
        assert_eq!(judged(&policy, cel::BUDGET), [said(1, "long"), said(2, "failed expression: false")]);
        let spent = "validation failed due to running out of cost budget, no further validation rules will be run";
        let failed = format!("failed messageExpression: {spent}");
        assert_eq!(judged(&policy, 50), [said(0, &failed), said(1, &failed), said(2, &failed)]);
        assert_eq!(judged(&policy, 0), [said(0, spent)], "the first expression spends it");
        policy["spec"]["failurePolicy"] = "Ignore".into();
        assert!(judged(&policy, 50).is_empty());
    }
}
