//! `continue`: where a paged list goes on, as clients carry it (`k8s.io/apiserver/pkg/storage/continue.go`).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::error::{ApiError, Result};
use crate::schema;

/// A position in a paged list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// 0: the newest (a list made consistent no longer).
    pub revision: u64,
    /// Cache key of the first object wanted.
    pub start: String,
}

impl Position {
    /// Behind the object of this key.
    pub fn after(key: &str, revision: u64) -> Self {
        Self { revision, start: format!("{key}\0") }
    }

    pub fn encode(&self) -> String {
        let revision: i64 = if self.revision == 0 { -1 } else { self.revision.cast_signed() };
        let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": self.start});
        BASE64_URL_SAFE_NO_PAD.encode(token.to_string())
    }

    /// 400 for what is no token of this server's.
    pub fn decode(text: &str) -> Result<Self> {
        read(text)
            .map_err(|why| ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}")))
    }
}

fn read(text: &str) -> Result<Position, String> {
    let bytes = schema::base64_url(text)?;
    let token: Value = serde_json::from_slice(&bytes)
        .map_err(|error| schema::document::syntax_error(&bytes).unwrap_or_else(|| error.to_string()))?;
    let version = token["v"].as_str().unwrap_or_default();
    if version != "meta.k8s.io/v1" {
        return Err(format!("server does not recognize this encoded version {version}"));
    }
    let revision = token["rv"].as_i64().unwrap_or_default();
    if revision == 0 {
        return Err("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".to_owned());
    }
    let start = token["start"].as_str().unwrap_or_default();
    if start.is_empty() {
        return Err("encoded start key empty (version meta.k8s.io/v1)".to_owned());
    }
    if !is_clean(start) {
        return Err(start.to_owned());
    }
    Ok(Position { revision: u64::try_from(revision).unwrap_or(0), start: start.to_owned() })
}

/// Whether a key stays where it is when it is read as a path: it cannot lead out of its resource.
fn is_clean(key: &str) -> bool {
    key.strip_prefix('/').unwrap_or(key).split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_back() {
        for revision in [0, 7] {
            let position = Position::after("default/a", revision);
            assert_eq!(Position::decode(&position.encode()).unwrap(), position);
        }
    }

    #[test]
    fn what_is_no_position_is_refused_in_upstreams_words() {
        let encoded = |json: &str| BASE64_URL_SAFE_NO_PAD.encode(json);
        for (token, why) in [
            ("a!".to_owned(), "illegal base64 data at input byte 1"),
            ("e30=".to_owned(), "illegal base64 data at input byte 3"),
            ("abcde".to_owned(), "illegal base64 data at input byte 4"),
            (encoded("x"), "invalid character 'x' looking for beginning of value"),
            (encoded("{}"), "server does not recognize this encoded version "),
            (encoded(r#"{"v":"v2","rv":1,"start":"a"}"#), "server does not recognize this encoded version v2"),
            (
                encoded(r#"{"v":"meta.k8s.io/v1","start":"a"}"#),
                "incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            ),
            (encoded(r#"{"v":"meta.k8s.io/v1","rv":1}"#), "encoded start key empty (version meta.k8s.io/v1)"),
            (encoded(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../a"}"#), "../a"),
            (encoded(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"a//b"}"#), "a//b"),
        ] {
            let error = Position::decode(&token).unwrap_err();
            let wanted = format!("invalid continue token: continue key is not valid: {why}");
            assert_eq!((error.code().as_u16(), error.message()), (400, &*wanted), "{token}");
        }
    }
}
