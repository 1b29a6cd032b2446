//! ServiceAccount tokens: what is in them, and whether it still holds.
//!
//! A token is bound to its ServiceAccount and, where it says so, to a Pod, Secret or Node: it is
//! good only as long as those live, with the same UIDs.

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::UserInfo;
use crate::admit::Cluster;
use crate::server::Api;

/// Objects deleted less than this many seconds ago still stand for their tokens.
const DELETION_LEEWAY: i64 = 60;
/// Clocks may differ by this many seconds.
const CLOCK_LEEWAY: i64 = 10;
/// What kubelets ask for when they project a token for the API server: an old client that never
/// reads the file again gets a year, and is noticed by `warnafter`.
const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// An object that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// `pod`, `secret` or `node`: the claim's name.
    pub claim: &'static str,
    pub name: String,
    pub uid: String,
}

/// What a token is to say.
pub struct Grant<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub audiences: &'a [String],
    pub seconds: i64,
    pub bound: Vec<Bound>,
}

/// The claims, and when the holder is told that the token ends.
pub fn claims(grant: &Grant<'_>, issuer: &str, now: Timestamp) -> (Value, Timestamp) {
    let now = now.as_second();
    let for_this_server = grant.audiences.iter().any(|audience| audience == issuer);
    let to_pod = grant.bound.iter().any(|bound| bound.claim == "pod");
    let extends = for_this_server && to_pod && grant.seconds == WARN_ONLY_SECONDS;
    let lifetime = if extends { EXTENDED_SECONDS } else { grant.seconds };
    let mut kubernetes = json!({
        "namespace": grant.namespace,
        "serviceaccount": {"name": grant.account, "uid": grant.account_uid},
    });
    for bound in &grant.bound {
        kubernetes[bound.claim] = json!({"name": bound.name, "uid": bound.uid});
    }
    if extends {
        kubernetes["warnafter"] = (now + grant.seconds).into();
    }
    let claims = json!({
        "aud": grant.audiences, "exp": now + lifetime, "iat": now, "nbf": now, "iss": issuer,
        "jti": uuid::Uuid::new_v4().to_string(),
        "sub": format!("system:serviceaccount:{}:{}", grant.namespace, grant.account),
        "kubernetes.io": kubernetes,
    });
    let told = Timestamp::from_second(now + grant.seconds).unwrap_or(Timestamp::MAX);
    (claims, told)
}

/// Issuer of tokens kept in Secrets that another cluster's controllers signed: they have no end and
/// no audience. Those of this one are bound to their Secret instead.
const LEGACY: &str = "kubernetes/serviceaccount";

/// Whom of `audiences` the token is for, if its time and issuer fit.
pub fn in_force(claims: &Value, issuer: &str, audiences: &[String], now: Timestamp) -> Vec<String> {
    let now = now.as_second();
    let number = |key: &str| claims[key].as_i64();
    let named: Vec<&str> = match &claims["aud"] {
        Value::String(one) => vec![one],
        many => many.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
    };
    if claims["iss"] == LEGACY {
        // They are for this server, which is the issuer of the others.
        return audiences.iter().filter(|audience| *audience == issuer).cloned().collect();
    }
    let good = claims["iss"] == issuer
        && number("exp").is_some_and(|exp| now < exp + CLOCK_LEEWAY)
        && number("nbf").is_none_or(|nbf| nbf <= now + CLOCK_LEEWAY);
    if !good {
        return Vec::new();
    }
    audiences.iter().filter(|audience| named.contains(&audience.as_str())).cloned().collect()
}

/// The user of a token that is kept in a Secret: good while the Secret holds this very token.
async fn legacy_user_of(api: &Api, claims: &Value, token: &str) -> Option<UserInfo> {
    let claim = |name: &str| claims[format!("kubernetes.io/serviceaccount/{name}")].as_str();
    let (namespace, name, uid) = (claim("namespace")?, claim("service-account.name")?, claim("service-account.uid")?);
    let secret = api.get("", "secrets", namespace, claim("secret.name")?).await.ok()??;
    let now = Timestamp::now();
    let held = base64::prelude::BASE64_STANDARD.decode(secret["data"]["token"].as_str()?).ok()?;
    if long_deleted(&secret, now) || !super::same(std::str::from_utf8(&held).ok()?, token) {
        return None;
    }
    let account = api.get("", "serviceaccounts", namespace, name).await.ok()??;
    if account["metadata"]["uid"] != uid || long_deleted(&account, now) {
        return None;
    }
    let mut user = UserInfo::service_account(namespace, name);
    user.uid = uid.to_owned();
    Some(user)
}

/// The user that verified claims stand for, if everything they are bound to lives.
pub async fn user_of(api: &Api, claims: &Value, token: &str) -> Option<UserInfo> {
    if claims["iss"] == LEGACY {
        return legacy_user_of(api, claims, token).await;
    }
    let kubernetes = &claims["kubernetes.io"];
    let namespace = kubernetes["namespace"].as_str()?;
    let account = &kubernetes["serviceaccount"];
    let name = account["name"].as_str()?;
    let now = Timestamp::now();
    let alive = async |plural: &str, namespace: &str, bound: &Value| -> bool {
        let Some(name) = bound["name"].as_str() else { return false };
        let object = api.get("", plural, namespace, name).await.ok().flatten();
        object.is_some_and(|object| object["metadata"]["uid"] == bound["uid"] && !long_deleted(&object, now))
    };
    if !alive("serviceaccounts", namespace, account).await {
        return None;
    }
    for (claim, plural) in [("pod", "pods"), ("secret", "secrets")] {
        if !kubernetes[claim].is_null() && !alive(plural, namespace, &kubernetes[claim]).await {
            return None;
        }
    }
    // Beside a pod the node is only information.
    if kubernetes["pod"].is_null() && !kubernetes["node"].is_null() && !alive("nodes", "", &kubernetes["node"]).await {
        return None;
    }
    let mut user = UserInfo::service_account(namespace, name);
    user.uid = account["uid"].as_str().unwrap_or_default().to_owned();
    let mut extra = |key: &str, value: &Value| {
        if let Some(text) = value.as_str() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![text.to_owned()]);
        }
    };
    extra("pod-name", &kubernetes["pod"]["name"]);
    extra("pod-uid", &kubernetes["pod"]["uid"]);
    extra("node-name", &kubernetes["node"]["name"]);
    extra("node-uid", &kubernetes["node"]["uid"]);
    if let Some(id) = claims["jti"].as_str() {
        extra("credential-id", &format!("JTI={id}").into());
    }
    Some(user)
}

fn long_deleted(object: &Value, now: Timestamp) -> bool {
    let deleted = object["metadata"]["deletionTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    deleted.is_some_and(|deleted| now.as_second() - deleted.as_second() > DELETION_LEEWAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(seconds: i64, audiences: &[String], bound: Vec<Bound>) -> Grant<'_> {
        Grant { namespace: "a", account: "bot", account_uid: "u", audiences, seconds, bound }
    }

    #[test]
    fn tokens_hold_for_their_time_and_audience() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let audiences = ["https://here".to_owned()];
        let (claims, told) = claims(&grant(600, &audiences, Vec::new()), "https://here", now);
        assert_eq!(claims["sub"], "system:serviceaccount:a:bot");
        assert_eq!(told.as_second() - now.as_second(), 600);
        let later = |seconds| Timestamp::from_second(now.as_second() + seconds).unwrap();
        assert_eq!(in_force(&claims, "https://here", &audiences, later(599)), audiences);
        assert!(in_force(&claims, "https://here", &audiences, later(700)).is_empty());
        assert!(in_force(&claims, "https://here", &["https://there".to_owned()], later(1)).is_empty());
        assert!(in_force(&claims, "https://other", &audiences, later(1)).is_empty());
        assert!(in_force(&claims, "https://here", &audiences, later(-100)).is_empty());
    }

    #[test]
    fn projected_tokens_outlive_what_kubelets_are_told() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let audiences = ["https://here".to_owned()];
        let bound = vec![Bound { claim: "pod", name: "p".into(), uid: "x".into() }];
        let (claims, told) = claims(&grant(3607, &audiences, bound), "https://here", now);
        assert_eq!(claims["exp"].as_i64().unwrap() - now.as_second(), EXTENDED_SECONDS);
        assert_eq!(claims["kubernetes.io"]["warnafter"].as_i64().unwrap() - now.as_second(), 3607);
        assert_eq!(told.as_second() - now.as_second(), 3607);
    }
}
