//! What is kept of the use of long-lived tokens, those of Secrets: the day of their last use, and
//! whether they were marked invalid (upstream's `legacytokentracking`).

use jiff::Timestamp;
use serde_json::Value;

use crate::admit::Cluster;
use crate::kinds::value::{label, name, set, text};
use crate::server::Api;

const TYPE: &str = "kubernetes.io/service-account-token";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// A token of this Secret is used; where it is one of the long-lived: refused if it was marked invalid, else the day is noted.
pub async fn used(api: &Api, secret: &Value, namespace: &str, account: &str, now: Timestamp) -> Result<(), String> {
    if text(secret, "type") != TYPE {
        return Ok(());
    }
    let secret_name = name(secret);
    if label(secret, INVALID_SINCE).is_some_and(|since| !since.is_empty()) {
        return Err(format!(
            "the token in secret {namespace}/{secret_name} for service account {namespace}/{account} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
        ));
    }
    if let Some(marked) = marked(secret, now)
        && let Err(error) = api.update("", "secrets", "", marked).await
    {
        // Another request noted it, or will.
        tracing::debug!(%error, secret = secret_name, "noting the use of a token");
    }
    Ok(())
}

/// The Secret with today's label, unless it has it. Pure.
fn marked(secret: &Value, now: Timestamp) -> Option<Value> {
    let today = now.strftime("%Y-%m-%d").to_string();
    if label(secret, LAST_USED) == Some(&today) {
        return None;
    }
    let mut marked = secret.clone();
    if !marked["metadata"]["labels"].is_object() {
        set(&mut marked, "metadata.labels", serde_json::json!({}));
    }
    marked["metadata"]["labels"][LAST_USED] = today.into();
    Some(marked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_day_is_noted_once() {
        let now: Timestamp = "2026-01-02T23:59:59Z".parse().unwrap();
        let first = marked(&json!({"metadata": {"name": "s"}}), now).unwrap();
        assert_eq!(first["metadata"]["labels"], json!({LAST_USED: "2026-01-02"}));
        assert_eq!(marked(&first, now), None);
    }
}
