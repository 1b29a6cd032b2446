//! The query of a log request (`PodLogOptions`).

use jiff::{SignedDuration, Timestamp};

use super::super::route::{query_flag, query_value};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    /// Only lines written at or after this.
    pub since: Option<Timestamp>,
    /// Only this many lines from the end.
    pub tail_lines: Option<u64>,
    /// No more than this many bytes.
    pub limit_bytes: Option<u64>,
    pub stream: Stream,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stream {
    #[default]
    All,
    Stdout,
    Stderr,
}

impl LogOptions {
    /// Errors name the parameter, as the API server's validation does.
    pub fn parse(query: Option<&str>) -> Result<Self, String> {
        let since_seconds: Option<i64> = number(query, "sinceSeconds")?;
        let since_time = query_value(query, "sinceTime")
            .map(|text| {
                text.parse::<Timestamp>().map_err(|error| format!("sinceTime: Invalid value: {text:?}: {error}"))
            })
            .transpose()?;
        let since = match (since_seconds, since_time) {
            (Some(_), Some(_)) => {
                return Err("at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned());
            }
            (Some(seconds), None) if seconds < 1 => {
                return Err(format!("sinceSeconds: Invalid value: {seconds}: must be greater than 0"));
            }
            (Some(seconds), None) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
            (None, time) => time,
        };
        let tail: Option<i64> = number(query, "tailLines")?;
        let limit: Option<i64> = number(query, "limitBytes")?;
        if let Some(limit) = limit.filter(|limit| *limit < 1) {
            return Err(format!("limitBytes: Invalid value: {limit}: must be greater than 0"));
        }
        let tail_lines = match tail {
            None => None,
            Some(tail) => {
                let fine = u64::try_from(tail);
                Some(fine.map_err(|_| format!("tailLines: Invalid value: {tail}: must be greater than or equal to 0"))?)
            }
        };
        let stream = match query_value(query, "stream").as_deref() {
            None | Some("All") => Stream::All,
            Some("Stdout") => Stream::Stdout,
            Some("Stderr") => Stream::Stderr,
            Some(other) => {
                return Err(format!(
                    "stream: Unsupported value: {other:?}: supported values: \"All\", \"Stderr\", \"Stdout\""
                ));
            }
        };
        Ok(Self {
            follow: query_flag(query, &["follow"]),
            previous: query_flag(query, &["previous"]),
            timestamps: query_flag(query, &["timestamps"]),
            since,
            tail_lines,
            limit_bytes: limit.and_then(|limit| u64::try_from(limit).ok()),
            stream,
        })
    }
}

fn number(query: Option<&str>, name: &str) -> Result<Option<i64>, String> {
    let Some(text) = query_value(query, name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name}: Invalid value: {text:?}: must be an integer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_checked() {
        let options =
            LogOptions::parse(Some("follow=true&tailLines=3&timestamps=true&limitBytes=9&stream=Stderr")).unwrap();
        let expected = LogOptions {
            follow: true,
            timestamps: true,
            tail_lines: Some(3),
            limit_bytes: Some(9),
            stream: Stream::Stderr,
            ..LogOptions::default()
        };
        assert_eq!(options, expected);
        for bad in ["tailLines=-1", "limitBytes=0", "sinceSeconds=0", "sinceTime=never", "tailLines=x", "stream=Both"] {
            assert!(LogOptions::parse(Some(bad)).is_err(), "{bad}");
        }
        assert!(LogOptions::parse(Some("sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z")).is_err());
        assert!(LogOptions::parse(Some("sinceTime=2026-01-01T00:00:00Z")).unwrap().since.is_some());
    }
}
