//! Canonical forms of the scalar types that have a text form of their own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

use api::quantity::Quantity;

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
    decoded.map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(length) => length.saturating_sub(length % 4),
            base64::DecodeError::InvalidPadding => text.len().saturating_sub(1),
        };
        format!("illegal base64 data at input byte {at}")
    })
}

pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
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
    fn base64_is_strict_as_in_go() {
        assert_eq!(base64("aGVs\nbG8=").unwrap(), b"hello");
        assert_eq!(base64("a$Vs").unwrap_err(), "illegal base64 data at input byte 1");
    }
}
