//! Bootstrap tokens: `<id>.<secret>`, kept in Secrets `kube-system/bootstrap-token-<id>`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::{UserInfo, same};
use crate::admit::Cluster;
use crate::server::Api;

const GROUP: &str = "system:bootstrappers";

pub fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fits = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    (fits(id, 6) && fits(secret, 16)).then_some((id, secret))
}

pub async fn user_of(api: &Api, token: &str) -> Option<UserInfo> {
    let (id, secret) = split(token)?;
    let held = api.get("", "secrets", "kube-system", &format!("bootstrap-token-{id}")).await.ok()??;
    user_from(&held, id, secret, Timestamp::now())
}

fn user_from(held: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let data = |key: &str| {
        let bytes = BASE64_STANDARD.decode(held["data"][key].as_str().unwrap_or_default()).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    let expired = match data("expiration").as_str() {
        "" => false,
        text => text.parse::<Timestamp>().map_or(true, |expiration| expiration <= now),
    };
    let good = held["type"] == "bootstrap.kubernetes.io/token"
        && held["metadata"]["deletionTimestamp"].is_null()
        && same(&data("token-secret"), secret)
        && data("token-id") == id
        && !expired
        && data("usage-bootstrap-authentication") == "true";
    if !good {
        return None;
    }
    let mut user = UserInfo::new(&format!("system:bootstrap:{id}"), &[GROUP]);
    let extra = data("auth-extra-groups");
    let prefix = format!("{GROUP}:");
    user.groups.extend(extra.split(',').filter(|group| group.starts_with(&prefix)).map(str::to_owned));
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_stand_for_their_tokens_until_they_expire() {
        let encode = |text: &str| BASE64_STANDARD.encode(text);
        let held = json!({"type": "bootstrap.kubernetes.io/token", "data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"), "expiration": encode("2026-01-02T00:00:00Z"),
            "auth-extra-groups": encode("system:bootstrappers:nodes,system:masters"),
        }});
        let now = |text: &str| text.parse::<Timestamp>().unwrap();
        let user = user_from(&held, "abcdef", "0123456789abcdef", now("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:nodes"]);
        assert!(user_from(&held, "abcdef", "0123456789abcdeX", now("2026-01-01T00:00:00Z")).is_none());
        assert!(user_from(&held, "abcdef", "0123456789abcdef", now("2026-01-03T00:00:00Z")).is_none());
        assert!(split("ABCDEF.0123456789abcdef").is_none() && split("abcdef.0123456789abcde").is_none());
    }
}
