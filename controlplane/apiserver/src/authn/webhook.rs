//! Tokens that a webhook knows (`TokenReview`), its answers remembered for a while.

use std::time::Duration;

use serde_json::{Value, json};

use super::UserInfo;
use crate::remembered::Remembered;
use crate::remote::Remote;

const TIMEOUT: Duration = Duration::from_secs(30);

pub struct TokenWebhook {
    remote: Remote,
    known: Remembered<Option<(UserInfo, Vec<String>)>>,
    time: Duration,
    /// The audience that this server is itself.
    own: String,
}

impl TokenWebhook {
    pub fn new(remote: Remote, time: Duration, own: String) -> Self {
        Self { remote, known: Remembered::default(), time, own }
    }

    /// The user, and the audiences that the webhook says the token is for, of those asked for.
    pub async fn user_of(&self, token: &str, audiences: &[String]) -> Option<(UserInfo, Vec<String>)> {
        let key = format!("{token}\n{}", audiences.join("\n"));
        if let Some(answer) = self.known.get(&key) {
            return answer;
        }
        let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"creationTimestamp": null}, "spec": {"token": token, "audiences": audiences}, "status": {"user": {}}});
        match self.remote.post(review.to_string(), TIMEOUT).await {
            Ok(review) => {
                let answer = judged(&review["status"], audiences, &self.own);
                self.known.put(&key, answer.clone(), self.time);
                answer
            }
            Err(error) => {
                tracing::warn!(%error, "asking the webhook about a token");
                None
            }
        }
    }
}

/// Pure.
fn judged(status: &Value, asked: &[String], own: &str) -> Option<(UserInfo, Vec<String>)> {
    if status["authenticated"] != true {
        return None;
    }
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let user = &status["user"];
    let extra = user["extra"].as_object().into_iter().flatten().map(|(key, values)| (key.clone(), texts(values)));
    let found = UserInfo {
        name: user["username"].as_str().unwrap_or_default().to_owned(),
        uid: user["uid"].as_str().unwrap_or_default().to_owned(),
        groups: texts(&user["groups"]),
        extra: extra.collect(),
    };
    // One that knows nothing of audiences answers for this server, and for nobody else who asks about a token.
    let mut named = texts(&status["audiences"]);
    if named.is_empty() {
        named.push(own.to_owned());
    }
    let fit: Vec<String> = asked.iter().filter(|one| named.contains(one)).cloned().collect();
    (!found.name.is_empty() && !fit.is_empty()).then_some((found, fit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_authenticated_users_for_our_audience_count() {
        let own = "https://own";
        let asked = [own.to_owned()];
        let user = json!({"username": "jane", "groups": ["dev"], "extra": {"a": ["b"]}});
        let found = judged(&json!({"authenticated": true, "user": user}), &asked, own).unwrap();
        assert_eq!((found.0.name.as_str(), found.1.as_slice()), ("jane", &asked[..]));
        assert!(judged(&json!({"authenticated": true, "user": user, "audiences": ["other"]}), &asked, own).is_none());
        assert!(judged(&json!({"authenticated": false, "user": user}), &asked, own).is_none());
        assert!(judged(&json!({"authenticated": true, "user": {}}), &asked, own).is_none());
    }

    #[test]
    fn a_webhook_that_names_no_audience_vouches_for_this_server_alone() {
        let status = json!({"authenticated": true, "user": {"username": "jane"}});
        let asked = ["vault".to_owned(), "https://own".to_owned()];
        assert!(judged(&status, &asked[..1], "https://own").is_none());
        assert_eq!(judged(&status, &asked, "https://own").unwrap().1, ["https://own"]);
        let named = json!({"authenticated": true, "user": {"username": "jane"}, "audiences": ["vault"]});
        assert_eq!(judged(&named, &asked, "https://own").unwrap().1, ["vault"]);
    }
}
