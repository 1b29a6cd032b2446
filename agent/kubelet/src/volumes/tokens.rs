//! ServiceAccount tokens for projected volumes and for drivers and providers that want them: asked for
//! with TokenRequest, kept in memory, renewed when 80 % of their life is over or after a day
//! (`pkg/kubelet/token`).

use std::collections::HashMap;
use std::time::Duration;

use component::brief;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

/// What `expirationSeconds` is when the pod does not say.
const DEFAULT_LIFE: i64 = 3600;
/// Tokens older than this are renewed, however long they live.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// A token that could not be renewed is asked for again after this.
const RETRY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    pod_uid: String,
    /// Empty for whichever account has the name.
    account_uid: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone)]
struct Token {
    value: String,
    issued: Timestamp,
    expires: Timestamp,
}

impl Token {
    fn renewal(&self) -> Timestamp {
        let life = self.expires.duration_since(self.issued).unsigned_abs();
        let wait = (life - life / 5).min(OLDEST);
        self.issued.checked_add(wait).unwrap_or(self.expires)
    }
}

/// The tokens of this node's pods.
pub struct Tokens {
    client: Client,
    held: Mutex<HashMap<Key, Token>>,
}

/// A token and how long it may be used before the next is asked for.
pub struct Lent {
    pub value: String,
    pub expires: Timestamp,
    pub renew_after: Duration,
}

impl Tokens {
    pub fn new(client: Client) -> Self {
        Self { client, held: Mutex::default() }
    }

    /// A token of the pod's service account, bound to the pod. While the server cannot be reached,
    /// one that is due for renewal but still valid is lent on.
    pub async fn get(&self, pod: &Pod, audience: Option<&str>, seconds: Option<i64>) -> Result<Lent, String> {
        self.lend(pod, key(pod, "", audience.unwrap_or_default(), seconds)).await
    }

    /// The same of the account with this UID, and of none that took its name since.
    pub async fn of_account(&self, pod: &Pod, account_uid: &str, audience: &str) -> Result<Lent, String> {
        self.lend(pod, key(pod, account_uid, audience, None)).await
    }

    async fn lend(&self, pod: &Pod, key: Key) -> Result<Lent, String> {
        let now = Timestamp::now();
        let held = self.held.lock().get(&key).cloned();
        if let Some(token) = held.as_ref().filter(|token| now < token.renewal()) {
            return Ok(lend(token, now));
        }
        match (self.request(pod, &key).await, held) {
            (Ok(token), _) => {
                let lent = lend(&token, now);
                self.held.lock().insert(key, token);
                Ok(lent)
            }
            (Err(error), Some(old)) if now < old.expires => {
                tracing::warn!(error, "a service account token could not be renewed; the old one is valid still");
                Ok(Lent { value: old.value, expires: old.expires, renew_after: RETRY })
            }
            (Err(error), _) => Err(error),
        }
    }

    pub fn release(&self, pod_uid: &str) {
        self.held.lock().retain(|key, _| key.pod_uid != pod_uid);
    }

    async fn request(&self, pod: &Pod, key: &Key) -> Result<Token, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
        let uid = (!key.account_uid.is_empty()).then(|| key.account_uid.clone());
        let request = TokenRequest {
            metadata: ObjectMeta { uid, ..Default::default() },
            spec: Some(TokenRequestSpec {
                audiences: Some((!key.audience.is_empty()).then(|| key.audience.clone()).into_iter().collect()),
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let issued = Timestamp::now();
        let answer: Result<TokenRequest, kube::Error> =
            api.create_subresource("token", account, &PostParams::default(), &request).await;
        let answer = answer.map_err(|error| format!("failed to fetch token: {}", brief(&error)))?;
        let status = answer.status.unwrap_or_default();
        let value =
            status.token.filter(|token| !token.is_empty()).ok_or("failed to fetch token: the answer holds none")?;
        let expires = status.expiration_timestamp.map_or(issued, |time| time.0);
        Ok(Token { value, issued, expires })
    }
}

fn key(pod: &Pod, account_uid: &str, audience: &str, seconds: Option<i64>) -> Key {
    Key {
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        account_uid: account_uid.to_owned(),
        audience: audience.to_owned(),
        seconds: seconds.unwrap_or(DEFAULT_LIFE),
    }
}

fn lend(token: &Token, now: Timestamp) -> Lent {
    let wait = Duration::try_from(token.renewal().duration_since(now)).unwrap_or(Duration::ZERO);
    // some jitter, so that the tokens of pods that started together are not all renewed at once
    let renew_after = wait + Duration::from_millis(rand::random_range(0..10_000));
    Lent { value: token.value.clone(), expires: token.expires, renew_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_80_percent_or_after_a_day() {
        let issued = Timestamp::UNIX_EPOCH;
        for (life, wait) in [(3600, 2880), (600, 480), (10 * 24 * 3600, 24 * 3600)] {
            let expires = issued + Duration::from_secs(life);
            let token = Token { value: String::new(), issued, expires };
            assert_eq!(token.renewal(), issued + Duration::from_secs(wait), "{life}");
        }
    }
}
