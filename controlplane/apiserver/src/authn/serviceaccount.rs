//! ServiceAccount tokens: what is in them, and whether it still holds.
//!
//! A token is bound to its ServiceAccount and, where it says so, to a Pod, Secret or Node: it is
//! good only as long as those live, with the same UIDs.

use std::sync::Arc;

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{UserInfo, legacy};
use crate::admit::Cluster;
use crate::error::ApiError;
use crate::server::Api;

/// Objects deleted less than this many seconds ago still stand for their tokens.
const DELETION_LEEWAY: i64 = 60;
/// Clocks may differ by this many seconds.
const CLOCK_LEEWAY: i64 = 60;
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
    /// Empty for the node of a pod when there is no such node.
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
        kubernetes[bound.claim] = json!({"name": bound.name});
        if !bound.uid.is_empty() {
            kubernetes[bound.claim]["uid"] = bound.uid.as_str().into();
        }
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
pub const LEGACY: &str = "kubernetes/serviceaccount";

/// Whom of `audiences` a token of this server is for; the error says whom it is for instead.
pub fn audiences_of(claims: &Value, own: &str, audiences: &[String]) -> Result<Vec<String>, String> {
    let mut named: Vec<&str> = match &claims["aud"] {
        Value::String(one) => vec![one],
        many => many.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
    };
    if named.is_empty() {
        // The old kind: for this server, which is the issuer of the others.
        named.push(own);
    }
    let fit: Vec<String> = audiences.iter().filter(|one| named.contains(&one.as_str())).cloned().collect();
    if fit.is_empty() {
        let list =
            |items: &mut dyn Iterator<Item = &str>| items.map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" ");
        let (named, asked) = (list(&mut named.into_iter()), list(&mut audiences.iter().map(String::as_str)));
        return Err(format!("token audiences [{named}] is invalid for the target audiences [{asked}]"));
    }
    Ok(fit)
}

/// Whether the token's time is now.
fn in_force(claims: &Value, now: Timestamp) -> Result<(), &'static str> {
    let now = now.as_second();
    let number = |key: &str| claims[key].as_i64();
    if number("nbf").is_some_and(|nbf| nbf > now + CLOCK_LEEWAY) {
        Err("service account token is not valid yet")
    } else if number("exp").is_none_or(|exp| exp < now - CLOCK_LEEWAY) {
        Err("service account token has expired")
    } else if number("iat").is_some_and(|iat| iat > now + CLOCK_LEEWAY) {
        Err("service account token is issued in the future")
    } else {
        Ok(())
    }
}

const INVALIDATED: &str = "service account token has been invalidated";

/// An object as it is now; the error is what a read of it would say.
async fn existing(api: &Api, plural: &str, namespace: &str, name: &str) -> Result<Arc<Value>, String> {
    let found = api.get("", plural, namespace, name).await.map_err(|error| error.message().to_owned())?;
    found.ok_or_else(|| ApiError::not_found("", plural, name).message().to_owned())
}

/// The user of a token that is kept in a Secret: good while the Secret holds this very token.
async fn legacy_user_of(api: &Api, claims: &Value, token: &str) -> Result<UserInfo, String> {
    let claim = |name: &str| claims[format!("kubernetes.io/serviceaccount/{name}")].as_str().unwrap_or_default();
    let (namespace, name, uid) = (claim("namespace"), claim("service-account.name"), claim("service-account.uid"));
    let invalidated = || "Token has been invalidated".to_owned();
    let now = Timestamp::now();
    let secret = existing(api, "secrets", namespace, claim("secret.name")).await.map_err(|_| invalidated())?;
    if long_deleted(&secret, now) {
        return Err(invalidated());
    }
    let held = base64::prelude::BASE64_STANDARD.decode(secret["data"]["token"].as_str().unwrap_or_default());
    if !held.is_ok_and(|held| std::str::from_utf8(&held).is_ok_and(|held| super::same(held, token))) {
        return Err("Token does not match server's copy".to_owned());
    }
    let account = existing(api, "serviceaccounts", namespace, name).await?;
    if long_deleted(&account, now) {
        return Err(format!("ServiceAccount {namespace}/{name} has been deleted"));
    }
    if account["metadata"]["uid"] != uid {
        let held = account["metadata"]["uid"].as_str().unwrap_or_default();
        return Err(format!("ServiceAccount UID ({held}) does not match claim ({uid})"));
    }
    legacy::used(api, &secret, namespace, name, now).await?;
    let mut user = UserInfo::service_account(namespace, name);
    user.uid = uid.to_owned();
    Ok(user)
}

/// The user that verified claims stand for, if their time is now and everything they are bound to
/// lives; the error says why not, in upstream's words.
pub async fn user_of(api: &Api, claims: &Value, token: &str) -> Result<UserInfo, String> {
    if claims["iss"] == LEGACY {
        return legacy_user_of(api, claims, token).await;
    }
    let now = Timestamp::now();
    in_force(claims, now)?;
    let kubernetes = &claims["kubernetes.io"];
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&kubernetes["namespace"]);
    let (name, uid) = (text(&kubernetes["serviceaccount"]["name"]), text(&kubernetes["serviceaccount"]["uid"]));
    let account = existing(api, "serviceaccounts", &namespace, &name).await?;
    if account["metadata"]["uid"] != *uid {
        let held = text(&account["metadata"]["uid"]);
        return Err(format!("service account UID ({held}) does not match claim ({uid})"));
    }
    if long_deleted(&account, now) {
        return Err(format!("service account {namespace}/{name} has been deleted"));
    }
    // Beside a pod the node is only information.
    let node = if kubernetes["pod"].is_null() { &kubernetes["node"] } else { &Value::Null };
    let bound = [
        ("secrets", namespace.as_str(), &kubernetes["secret"], "secret UID", "secret ref"),
        ("pods", namespace.as_str(), &kubernetes["pod"], "pod UID", "pod ref"),
        ("nodes", "", node, "node UID", "node ref"),
    ];
    for (plural, namespace, claim, what, reference) in bound {
        if claim.is_null() {
            continue;
        }
        let object = existing(api, plural, namespace, &text(&claim["name"])).await.map_err(|_| INVALIDATED)?;
        if object["metadata"]["uid"] != claim["uid"] {
            let (held, claimed) = (text(&object["metadata"]["uid"]), text(&claim["uid"]));
            return Err(format!("{what} ({held}) does not match service account {reference} claim ({claimed})"));
        }
        if long_deleted(&object, now) {
            return Err(INVALIDATED.to_owned());
        }
        if plural == "secrets" {
            legacy::used(api, &object, namespace, &name, now).await?;
        }
    }
    let mut user = UserInfo::service_account(&namespace, &name);
    user.uid = uid;
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
    Ok(user)
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
        for (seconds, expected) in [
            (599, Ok(())),
            (659, Ok(())),
            (661, Err("service account token has expired")),
            (-100, Err("service account token is not valid yet")),
        ] {
            assert_eq!(in_force(&claims, later(seconds)), expected, "{seconds}");
        }
        let there = ["https://there".to_owned(), "x".to_owned()];
        assert_eq!(audiences_of(&claims, "https://here", &audiences), Ok(audiences.to_vec()));
        assert_eq!(
            audiences_of(&claims, "https://here", &there).unwrap_err(),
            "token audiences [\"https://here\"] is invalid for the target audiences [\"https://there\" \"x\"]"
        );
        assert_eq!(audiences_of(&json!({}), "https://here", &audiences), Ok(audiences.to_vec()));
    }

    #[test]
    fn a_node_that_is_gone_is_named_without_uid() {
        let bound = [("pod", "p", "x"), ("node", "n", "")].map(|(claim, name, uid)| Bound {
            claim,
            name: name.into(),
            uid: uid.into(),
        });
        let (claims, _) = claims(&grant(600, &[], bound.to_vec()), "https://here", Timestamp::UNIX_EPOCH);
        assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": "p", "uid": "x"}));
        assert_eq!(claims["kubernetes.io"]["node"], json!({"name": "n"}));
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
