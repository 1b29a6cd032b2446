//! Canonical forms of the scalar types that have a text form of their own.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

use crate::quantity::Quantity;

/// Parses RFC 3339 as Go's `time.Parse(time.RFC3339, …)` does; the error has Go's wording.
pub fn timestamp(text: &str) -> Result<Timestamp, String> {
    let fail = || format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\"");
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|b| b.iter().all(u8::is_ascii_digit));
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let well_formed = text.is_ascii()
        && bytes.len() >= 20
        && marks.iter().all(|(at, mark)| bytes[*at] == *mark)
        && [0..4, 5..7, 8..10, 11..13, 14..16, 17..19].into_iter().all(digits)
        && zone_is_well_formed(&text[19..]);
    if !well_formed {
        return Err(fail());
    }
    text.parse().map_err(|_| format!("parsing time {text:?}: day out of range"))
}

/// `[.fraction](Z|±hh:mm)`
fn zone_is_well_formed(rest: &str) -> bool {
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let bytes = zone.as_bytes();
    zone == "Z"
        || (bytes.len() == 6
            && matches!(bytes[0], b'+' | b'-')
            && bytes[3] == b':'
            && [1, 2, 4, 5].iter().all(|at| bytes[*at].is_ascii_digit()))
}

/// `metav1.Time`: whole seconds, UTC.
pub fn time(timestamp: Timestamp) -> String {
    let printer = DateTimePrinter::new().precision(Some(0));
    printer.timestamp_to_string(&timestamp)
}

/// `metav1.MicroTime`: microseconds, UTC.
pub fn micro_time(timestamp: Timestamp) -> String {
    let printer = DateTimePrinter::new().precision(Some(6));
    printer.timestamp_to_string(&timestamp)
}

pub fn quantity(text: &str) -> Result<String, String> {
    text.trim().parse::<Quantity>().map(|quantity| quantity.to_string()).map_err(|error| error.to_string())
}

/// Checks base64 as Go decodes `[]byte`: the standard alphabet, padded, newlines allowed.
pub fn base64(text: &str) -> Result<Vec<u8>, String> {
    let decoded = if text.contains(['\r', '\n']) {
        STANDARD.decode(text.replace(['\r', '\n'], ""))
    } else {
        STANDARD.decode(text)
    };
    decoded.map_err(|error| illegal_base64(text, &error))
}

/// The bytes of base64 as it stands in URLs, without padding.
pub fn base64_url(text: &str) -> Result<Vec<u8>, String> {
    URL_SAFE_NO_PAD.decode(text).map_err(|error| illegal_base64(text, &error))
}

fn illegal_base64(text: &str, error: &base64::DecodeError) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        base64::DecodeError::InvalidLength(length) => length.saturating_sub(length % 4),
        base64::DecodeError::InvalidPadding => text.len().saturating_sub(1),
    };
    format!("illegal base64 data at input byte {at}")
}

pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of base64 that was checked before.
pub fn base64_bytes(text: &str) -> Vec<u8> {
    base64(text).unwrap_or_default()
}

const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Nanoseconds of Go's duration text: `1h30m`, `1.5s`, `0`.
pub fn go_duration(text: &str) -> Result<i64, String> {
    let fail = || format!("time: invalid duration {text:?}");
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(fail());
    }
    let mut nanos = 0_i128;
    while !rest.is_empty() {
        let numeric = |c: char| c.is_ascii_digit() || c == '.';
        let number = rest.find(|c| !numeric(c)).unwrap_or(rest.len());
        let unit = rest[number..].find(numeric).map_or(rest.len(), |at| number + at);
        let (_, worth) = UNITS.iter().find(|(name, _)| *name == &rest[number..unit]).ok_or_else(fail)?;
        let (whole, fraction) = rest[..number].split_once('.').unwrap_or((&rest[..number], ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') || number > 30 {
            return Err(fail());
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| fail())? };
        let part: f64 = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse().map_err(|_| fail())? };
        // Units are whole nanoseconds, and fractions of them are cut, as in Go.
        nanos = whole.checked_mul(*worth as i128).and_then(|n| nanos.checked_add(n)).ok_or_else(fail)?;
        nanos += (part * worth) as i128;
        rest = &rest[unit..];
    }
    i64::try_from(if negative { -nanos } else { nanos }).map_err(|_| fail())
}

/// Nanoseconds of a duration that was checked before.
pub fn go_duration_nanos(text: &str) -> i64 {
    go_duration(text).unwrap_or_default()
}

/// Go's form: `1h30m0s`, `1.5s`, `250ms`, `0s`.
pub fn go_duration_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let decimal = |value: u64, unit: u64, name: &str| {
        let fraction = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() || unit == 1 { String::new() } else { format!(".{fraction}") };
        format!("{}{dot}{name}", value / unit)
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{total}ns"),
        1_000..1_000_000 => format!("{sign}{}", decimal(total, 1_000, "µs")),
        1_000_000..1_000_000_000 => format!("{sign}{}", decimal(total, 1_000_000, "ms")),
        _ => {
            let minutes = total / 60_000_000_000;
            let seconds = decimal(total % 60_000_000_000, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_as_go_does() {
        for (text, seconds, micros) in [
            ("2024-02-29T12:30:45Z", "2024-02-29T12:30:45Z", "2024-02-29T12:30:45.000000Z"),
            ("2024-01-01T01:00:00.123456789+02:00", "2023-12-31T23:00:00Z", "2023-12-31T23:00:00.123456Z"),
        ] {
            let parsed = timestamp(text).unwrap();
            assert_eq!(time(parsed), seconds);
            assert_eq!(micro_time(parsed), micros);
        }
        for text in [
            "",
            "abc",
            "2024-01-01",
            "2024-01-01 00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00+0200",
        ] {
            assert!(timestamp(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, canonical) in [
            ("90m", "1h30m0s"),
            ("1.5s", "1.5s"),
            ("0", "0s"),
            ("250ms", "250ms"),
            ("1500us", "1.5ms"),
            ("-2m", "-2m0s"),
            ("1h0.5m", "1h0m30s"),
            ("7ns", "7ns"),
        ] {
            assert_eq!(go_duration_text(go_duration(text).unwrap()), canonical, "{text}");
        }
        for text in ["", "1", "s", "1.2.3s", "1d", "-", "1h x", "99999999999999h"] {
            assert!(go_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn base64_is_strict_as_in_go() {
        assert_eq!(base64("aGVs\nbG8=").unwrap(), b"hello");
        assert_eq!(base64("a$Vs").unwrap_err(), "illegal base64 data at input byte 1");
    }
}
