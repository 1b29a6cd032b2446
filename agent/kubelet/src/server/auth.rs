//! Who asks, and may they: both delegated to the API server.
//!
//! A client certificate of the cluster's CA names its user by CN and O; a bearer token is shown to
//! TokenReview. Permission is asked of SubjectAccessReview. Answers are kept as long as the kubelet
//! keeps them: tokens 2 minutes, permissions 5 minutes, refusals 30 seconds.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::route::Attributes;

const TOKEN_KEPT: Duration = Duration::from_secs(120);
const ALLOWED_KEPT: Duration = Duration::from_secs(300);
const DENIED_KEPT: Duration = Duration::from_secs(30);
/// More remembered answers than this are forgotten all at once.
const REMEMBERED: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why a request goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Unauthorized,
    Forbidden(String),
    /// The API server did not answer.
    Unavailable(String),
}

type Remembered<K, V> = Mutex<HashMap<K, (Instant, V)>>;

pub struct Gate {
    client: Client,
    node: String,
    tokens: Remembered<[u8; 32], Option<User>>,
    permissions: Remembered<(User, Vec<Attributes>), bool>,
}

impl Gate {
    pub fn new(client: Client, node: String) -> Self {
        Self { client, node, tokens: Mutex::default(), permissions: Mutex::default() }
    }

    /// The user of a connection's certificate, else of the request's token.
    pub async fn authenticate(&self, certificate: Option<&User>, headers: &http::HeaderMap) -> Result<User, Refusal> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let header = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let token = header.strip_prefix("Bearer ").map(str::trim).filter(|token| !token.is_empty());
        self.user_of_token(token.ok_or(Refusal::Unauthorized)?).await?.ok_or(Refusal::Unauthorized)
    }

    async fn user_of_token(&self, token: &str) -> Result<Option<User>, Refusal> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(user) = recall(&self.tokens, &key) {
            return Ok(user);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..Default::default() },
            ..Default::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| Refusal::Unavailable(error.to_string()))?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        remember(&self.tokens, key, user.clone(), TOKEN_KEPT);
        Ok(user)
    }

    /// Whether the user may do one of what `wanted` lists.
    pub async fn authorize(&self, user: &User, wanted: &[Attributes]) -> Result<(), Refusal> {
        let key = (user.clone(), wanted.to_vec());
        let allowed = match recall(&self.permissions, &key) {
            Some(allowed) => allowed,
            None => {
                let allowed = self.ask(user, wanted).await?;
                remember(&self.permissions, key, allowed, if allowed { ALLOWED_KEPT } else { DENIED_KEPT });
                allowed
            }
        };
        if allowed { Ok(()) } else { Err(Refusal::Forbidden(forbidden(user, wanted))) }
    }

    async fn ask(&self, user: &User, wanted: &[Attributes]) -> Result<bool, Refusal> {
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        for attributes in wanted {
            let review = SubjectAccessReview { spec: self.review(user, attributes), ..Default::default() };
            let answer = api.create(&PostParams::default(), &review).await;
            let answer = answer.map_err(|error| Refusal::Unavailable(error.to_string()))?;
            if answer.status.is_some_and(|status| status.allowed) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn review(&self, user: &User, attributes: &Attributes) -> SubjectAccessReviewSpec {
        SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(attributes.verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(attributes.subresource.to_owned()),
                name: Some(self.node.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

fn forbidden(user: &User, wanted: &[Attributes]) -> String {
    let verb = wanted.first().map(|attributes| attributes.verb).unwrap_or_default();
    let subresources: Vec<&str> = wanted.iter().map(|attributes| attributes.subresource).collect();
    format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
        user.name,
        subresources.join(" ")
    )
}

fn recall<K: std::hash::Hash + Eq, V: Clone>(memory: &Remembered<K, V>, key: &K) -> Option<V> {
    memory.lock().get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, value)| value.clone())
}

fn remember<K: std::hash::Hash + Eq, V>(memory: &Remembered<K, V>, key: K, value: V, kept: Duration) {
    let mut memory = memory.lock();
    if memory.len() >= REMEMBERED {
        memory.clear();
    }
    memory.insert(key, (Instant::now() + kept, value));
}

/// The user that a client certificate names: CN, and each O a group.
pub fn user_of_certificate(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|entry| entry.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    Some(User { name, groups, ..User::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_was_asked() {
        let user = User { name: "eve".into(), ..User::default() };
        let wanted = super::super::route::attributes(&http::Method::GET, "/pods");
        assert_eq!(
            forbidden(&user, &wanted),
            "Forbidden (user=eve, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten_in_time() {
        let memory: Remembered<u8, bool> = Mutex::default();
        remember(&memory, 1, true, Duration::from_secs(10));
        assert_eq!(recall(&memory, &1), Some(true));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(recall(&memory, &1), None);
    }
}
