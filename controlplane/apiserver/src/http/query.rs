//! Query strings, and the options of requests that travel in them.

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

    /// A number, or `400` naming the parameter.
    pub fn number(&self, key: &str) -> Result<Option<i64>> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax (query parameter {key})"
                ))
            }),
        }
    }
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

/// `fieldValidation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// What writes may say in the query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: bool,
}

impl WriteOptions {
    pub fn parse(query: &Query, kind: &str) -> Result<Self> {
        let mut options = Self { field_manager: query.text("fieldManager").to_owned(), ..Self::default() };
        for value in query.all("dryRun") {
            options.dry_run |= dry_run(value, kind)?;
        }
        if options.field_manager.len() > 128 || options.field_manager.chars().any(|c| c.is_control()) {
            return Err(ApiError::bad_request(
                "fieldManager: Invalid value: must be printable and at most 128 characters",
            ));
        }
        options.field_validation = match query.text("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let message = format!(
                    "{kind}.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
                );
                return Err(ApiError::unprocessable(message));
            }
        };
        options.force = query.flag("force");
        Ok(options)
    }
}

/// Whether a `dryRun` value asks for one.
pub fn dry_run(value: &str, kind: &str) -> Result<bool> {
    match value {
        "All" => Ok(true),
        "" => Ok(false),
        other => Err(ApiError::unprocessable(format!(
            "{kind}.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"{other}\": supported values: \"All\""
        ))),
    }
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

    #[test]
    fn write_options_are_checked() {
        assert!(WriteOptions::parse(&Query::parse("dryRun=All"), "CreateOptions").unwrap().dry_run);
        assert_eq!(WriteOptions::parse(&Query::parse("dryRun=Some"), "CreateOptions").unwrap_err().code(), 422);
        assert!(WriteOptions::parse(&Query::parse("fieldValidation=Loose"), "CreateOptions").is_err());
    }
}
