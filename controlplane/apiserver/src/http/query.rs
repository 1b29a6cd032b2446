//! Query strings.

use crate::error::{ApiError, Result};

/// Decoded pairs, in order. Empty pairs (`?&limit=5`) are skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, true), percent_decode(value, true))
        });
        Self { pairs: pairs.collect() }
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(held, _)| held == key).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(held, _)| held == key).map(|(_, value)| value.as_str())
    }

    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// `?watch`, `?watch=true`, `?watch=1` count; `false` and `0` do not.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    pub fn flag_or(&self, key: &str, absent: bool) -> bool {
        if self.get(key).is_some() { self.flag(key) } else { absent }
    }

    /// A number, or `400` in the words of Go's parser.
    pub fn number(&self, key: &str) -> Result<Option<i64>> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: {}",
                    if is_range(text) { "value out of range" } else { "invalid syntax" }
                ))
            }),
        }
    }
}

fn is_range(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// `plus`: `+` stands for a space, as in queries.
pub fn percent_decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| *byte == b'%' || (plus && *byte == b'+')) {
        return text.to_owned();
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => match bytes
                .get(at + 1..at + 3)
                .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok())
            {
                Some(byte) => {
                    out.push(byte);
                    at += 2;
                }
                None => out.push(b'%'),
            },
            b'+' if plus => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("&limit=500&labelSelector=a%3Db%2Cc&watch&x=1+2");
        assert_eq!(query.get("limit"), Some("500"));
        assert_eq!(query.text("labelSelector"), "a=b,c");
        assert!(query.flag("watch"));
        assert!(!query.flag("absent"));
        assert_eq!(query.text("x"), "1 2");
        assert_eq!(query.number("limit").unwrap(), Some(500));
        assert!(Query::parse("limit=x").number("limit").is_err());
        assert_eq!(percent_decode("100%", false), "100%");
    }
}
