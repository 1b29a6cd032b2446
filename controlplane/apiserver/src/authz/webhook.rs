//! A webhook that is asked whether somebody may (`SubjectAccessReview`), its answers remembered.

use std::time::Duration;

use api::selector::{Requirement, Selector};
use serde_json::{Value, json};

use super::{Opinion, Request};
use crate::authn::UserInfo;
use crate::cel::{self, Program};
use crate::error::ApiError;
use crate::remembered::Remembered;
use crate::remote::Remote;

/// How a webhook is asked, and what its silence means.
#[derive(Debug)]
pub struct Settings {
    pub timeout: Duration,
    pub authorized: Duration,
    pub unauthorized: Duration,
    /// Nobody may while the webhook does not answer.
    pub denies_on_failure: bool,
    /// Of the reviews that it is sent.
    pub version: Version,
    /// All must hold for the webhook to be asked at all; they see `request`, a review's spec.
    pub conditions: Vec<Program>,
}

/// A version of `SubjectAccessReview`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V1Beta1,
}

pub struct Webhook {
    remote: Remote,
    settings: Settings,
    known: Remembered<Value>,
}

impl Webhook {
    pub async fn new(kubeconfig: &std::path::Path, settings: Settings) -> Result<Self, ApiError> {
        Ok(Self { remote: Remote::from_kubeconfig(kubeconfig).await?, settings, known: Remembered::default() })
    }

    pub(super) async fn decide(&self, user: &UserInfo, request: &Request<'_>) -> Opinion {
        let spec = spec(user, request);
        match self.concerned(&spec) {
            Ok(true) => {}
            Ok(false) => return Opinion::None(String::new()),
            Err(why) => return self.failed(&why),
        }
        let question = spec.to_string();
        if let Some(status) = self.known.get(&question) {
            return opinion(&status);
        }
        match self.remote.post(review(spec, self.settings.version).to_string(), self.settings.timeout).await {
            Ok(review) => {
                let status = review["status"].clone();
                let time =
                    if status["allowed"] == true { self.settings.authorized } else { self.settings.unauthorized };
                self.known.put(&question, status.clone(), time);
                opinion(&status)
            }
            Err(error) => self.failed(&error.to_string()),
        }
    }

    fn failed(&self, why: &str) -> Opinion {
        tracing::warn!(why, "asking the authorization webhook");
        Opinion::Failed { why: why.to_owned(), denies: self.settings.denies_on_failure }
    }

    /// One condition that does not hold is enough; one that fails counts only if all others hold.
    fn concerned(&self, spec: &Value) -> Result<bool, String> {
        if self.settings.conditions.is_empty() {
            return Ok(true);
        }
        let variables = [("request", cel::from_json(spec))];
        let mut failure = None;
        for condition in &self.settings.conditions {
            match condition.test(&variables) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => failure = Some(error.to_string()),
            }
        }
        failure.map_or(Ok(true), Err)
    }
}

fn opinion(status: &Value) -> Opinion {
    let reason = status["reason"].as_str().unwrap_or_default();
    if status["denied"] == true && status["allowed"] == true {
        let why = "webhook subject access review returned both allow and deny response";
        Opinion::Failed { why: why.to_owned(), denies: true }
    } else if status["denied"] == true {
        Opinion::Deny(reason.to_owned())
    } else if status["allowed"] == true {
        Opinion::Allow(reason.into())
    } else {
        Opinion::None(reason.to_owned())
    }
}

/// The question as it is sent.
fn review(mut spec: Value, version: Version) -> Value {
    let version = match version {
        Version::V1 => "authorization.k8s.io/v1",
        Version::V1Beta1 => {
            // It calls the groups by another name.
            spec["group"] = spec["groups"].take();
            spec.as_object_mut().map(|spec| spec.remove("groups"));
            "authorization.k8s.io/v1beta1"
        }
    };
    json!({"kind": "SubjectAccessReview", "apiVersion": version,
        "metadata": {"creationTimestamp": null}, "spec": spec, "status": {"allowed": false}})
}

/// `SubjectAccessReviewSpec` of v1. Pure.
fn spec(user: &UserInfo, request: &Request<'_>) -> Value {
    let mut spec = json!({"user": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    if !request.is_resource() {
        spec["nonResourceAttributes"] = json!({"path": request.path, "verb": request.verb});
        return spec;
    }
    let mut attributes = json!({"verb": request.verb});
    for (key, value) in [
        ("namespace", request.namespace),
        ("group", request.group),
        ("version", request.version),
        ("resource", request.resource),
        ("subresource", request.subresource),
        ("name", request.name),
    ] {
        if !value.is_empty() {
            attributes[key] = value.into();
        }
    }
    let selectors = [
        ("fieldSelector", Selector::parse_fields(request.field_selector)),
        ("labelSelector", Selector::parse_labels(request.label_selector)),
    ];
    for (key, selector) in selectors {
        let requirements: Vec<Value> =
            selector.iter().flat_map(|selector| &selector.requirements).filter_map(shown).collect();
        if !requirements.is_empty() {
            attributes[key] = json!({"requirements": requirements});
        }
    }
    spec["resourceAttributes"] = attributes;
    spec
}

fn shown(requirement: &Requirement) -> Option<Value> {
    let (operator, values) = match requirement {
        Requirement::Equals(_, value) => ("In", Some(std::slice::from_ref(value))),
        Requirement::NotEquals(_, value) => ("NotIn", Some(std::slice::from_ref(value))),
        Requirement::In(_, values) => ("In", Some(values.as_slice())),
        Requirement::NotIn(_, values) => ("NotIn", Some(values.as_slice())),
        Requirement::Exists(_) => ("Exists", None),
        Requirement::DoesNotExist(_) => ("DoesNotExist", None),
        // Not to be said in a review; without it the question is only a wider one.
        _ => return None,
    };
    let mut shown = json!({"key": requirement.key(), "operator": operator});
    if let Some(values) = values {
        shown["values"] = json!(values);
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_say_all_that_is_asked() {
        let user = UserInfo::new("jane", &["dev"]);
        let request = Request {
            verb: "list",
            version: "v1",
            resource: "pods",
            namespace: "a",
            field_selector: "spec.nodeName=n",
            label_selector: "app in (x),!old",
            ..Request::default()
        };
        assert_eq!(
            spec(&user, &request),
            json!({"user": "jane", "groups": ["dev"], "resourceAttributes": {
                "verb": "list", "version": "v1", "resource": "pods", "namespace": "a",
                "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]},
                "labelSelector": {"requirements": [
                    {"key": "app", "operator": "In", "values": ["x"]}, {"key": "old", "operator": "DoesNotExist"}]},
            }})
        );
        let path = Request { verb: "get", path: "/x", ..Request::default() };
        assert_eq!(spec(&user, &path)["nonResourceAttributes"], json!({"path": "/x", "verb": "get"}));
    }

    #[test]
    fn a_webhook_is_asked_in_the_version_that_its_configuration_names() {
        let user = UserInfo::new("jane", &["dev"]);
        let asked =
            |version: Version| review(spec(&user, &Request { verb: "get", path: "/x", ..Request::default() }), version);
        let new = asked(Version::V1);
        assert_eq!((&new["apiVersion"], &new["spec"]["groups"]), (&json!("authorization.k8s.io/v1"), &json!(["dev"])));
        let old = asked(Version::V1Beta1);
        assert_eq!(old["apiVersion"], "authorization.k8s.io/v1beta1");
        assert_eq!((&old["spec"]["group"], old["spec"].get("groups")), (&json!(["dev"]), None));
    }

    #[test]
    fn a_webhook_that_says_yes_and_no_has_failed() {
        let both = opinion(&json!({"allowed": true, "denied": true}));
        assert!(matches!(both, Opinion::Failed { denies: true, .. }));
        assert!(matches!(opinion(&json!({"allowed": false, "denied": true})), Opinion::Deny(_)));
    }
}
