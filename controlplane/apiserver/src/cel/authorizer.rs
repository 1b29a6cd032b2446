//! Answers `authorizer` questions of expressions by this server's own authorizers.

use std::sync::Arc;

pub use expressions::authorizer::Authorizer;
use expressions::authorizer::Questions;

use super::Value;
use crate::admit::{Access, Cluster};
use crate::authn::UserInfo;

/// Evaluates until all that was asked is answered; `user` asks unless an account is named.
pub async fn answered<T>(cluster: &dyn Cluster, user: &UserInfo, mut evaluate: impl FnMut(Value) -> T) -> T {
    let questions = Arc::new(Questions::default());
    loop {
        let outcome = evaluate(questions.authorizer());
        let asked = questions.take_asked();
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
            questions.answer(question, allowed);
        }
    }
}
