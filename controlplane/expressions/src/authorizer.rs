//! `authorizer` in policies and match conditions: questions of an expression to the authorizer
//! (`k8s.io/apiserver/pkg/cel/library/authz.go`).
//!
//! Expressions are evaluated at one go, the authorizer may have to wait. So an evaluation that asks
//! something new ends with an error and is begun again when the answer is known ([`Questions`]).

use std::collections::HashMap;
use std::sync::Arc;

use cel::objects::Opaque;
use cel::{ExecutionError, Value};
use parking_lot::Mutex;

use crate::meter;

/// What one question costs.
const COST: u64 = 350_000;

/// May someone do something? Parts that were not said are empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Question {
    /// Namespace and name of the service account that is asked about; none: who made the request.
    pub account: Option<(String, String)>,
    pub verb: String,
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

/// What was asked in the evaluations of one expression, and the answers.
#[derive(Debug, Default)]
pub struct Questions {
    answers: Mutex<HashMap<Question, bool>>,
    asked: Mutex<Vec<Question>>,
}

impl Questions {
    /// The value of `authorizer` in an evaluation.
    pub fn authorizer(self: &Arc<Self>) -> Value {
        Value::Opaque(Arc::new(Authorizer { questions: self.clone(), question: Question::default() }))
    }

    /// What the last evaluation asked and was not answered; none: its outcome stands.
    pub fn take_asked(&self) -> Vec<Question> {
        std::mem::take(&mut *self.asked.lock())
    }

    pub fn answer(&self, question: Question, allowed: bool) {
        self.answers.lock().insert(question, allowed);
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
