//! `authorizer` in policies and match conditions: questions of an expression to the authorizer
//! (`k8s.io/apiserver/pkg/cel/library/authz.go`).
//!
//! Expressions are evaluated at one go, the authorizer may have to wait. So an evaluation that asks
//! something new ends with an error and is begun again when the answer is known: [`answered`].

use std::collections::HashMap;
use std::sync::Arc;

use cel::objects::Opaque;
use cel::{ExecutionError, Value};
use parking_lot::Mutex;

use super::meter;
use crate::admit::{Access, Cluster};
use crate::authn::UserInfo;

/// What one question costs.
const COST: u64 = 350_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Question {
    account: Option<(String, String)>,
    verb: String,
    path: String,
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Debug, Default)]
struct Questions {
    answers: Mutex<HashMap<Question, bool>>,
    asked: Mutex<Vec<Question>>,
}

/// Evaluates until all that was asked is answered.
pub async fn answered<T>(cluster: &dyn Cluster, user: &UserInfo, mut evaluate: impl FnMut(Value) -> T) -> T {
    let questions = Arc::new(Questions::default());
    loop {
        let authorizer = Authorizer { questions: questions.clone(), question: Question::default() };
        let outcome = evaluate(Value::Opaque(Arc::new(authorizer)));
        let asked = std::mem::take(&mut *questions.asked.lock());
        if asked.is_empty() {
            return outcome;
        }
        drop(outcome);
        for question in asked {
            let account = question.account.as_ref().map(|(namespace, name)| UserInfo::service_account(namespace, name));
            let access = Access {
                verb: &question.verb,
                group: &question.group,
                resource: &question.resource,
                subresource: &question.subresource,
                namespace: &question.namespace,
                name: &question.name,
                path: &question.path,
            };
            let allowed = cluster.allowed(account.as_ref().unwrap_or(user), access).await;
            questions.answers.lock().insert(question, allowed);
        }
    }
}

/// An authorizer, with as much of a question as was said so far.
#[derive(Debug, Clone)]
pub struct Authorizer {
    questions: Arc<Questions>,
    question: Question,
}

impl PartialEq for Authorizer {
    fn eq(&self, other: &Self) -> bool {
        self.question == other.question
    }
}

impl Eq for Authorizer {}

impl Opaque for Authorizer {
    fn runtime_type_name(&self) -> &str {
        match (self.question.resource.as_str(), self.question.path.as_str()) {
            ("", "") => "kubernetes.authorization.Authorizer",
            ("", _) => "kubernetes.authorization.PathCheck",
            _ => "kubernetes.authorization.ResourceCheck",
        }
    }
}

impl Authorizer {
    /// The same question with one more part: what a method of that name does.
    pub fn with(&self, part: &str, value: &str) -> Authorizer {
        let mut next = self.clone();
        let place = match part {
            "path" => &mut next.question.path,
            "group" => &mut next.question.group,
            "resource" => &mut next.question.resource,
            "subresource" => &mut next.question.subresource,
            "namespace" => &mut next.question.namespace,
            "name" => &mut next.question.name,
            // Selectors narrow a request; a rule that allows all of it allows what is left.
            _ => return next,
        };
        value.clone_into(place);
        next
    }

    pub fn service_account(&self, namespace: &str, name: &str) -> Authorizer {
        let mut next = self.clone();
        next.question.account = Some((namespace.to_owned(), name.to_owned()));
        next
    }

    pub fn check(&self, verb: &str) -> Result<Decision, ExecutionError> {
        meter::spend(COST)?;
        let question = Question { verb: verb.to_owned(), ..self.question.clone() };
        if let Some(allowed) = self.questions.answers.lock().get(&question) {
            return Ok(Decision { allowed: *allowed });
        }
        self.questions.asked.lock().push(question);
        Err(ExecutionError::function_error("check", "the authorizer is being asked"))
    }
}

/// `kubernetes.authorization.Decision`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
}

impl Opaque for Decision {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}
