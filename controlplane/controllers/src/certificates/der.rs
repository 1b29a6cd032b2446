//! The little of DER that a certificate takes (X.690, RFC 5280).

use jiff::Timestamp;

pub const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const BOOLEAN: u8 = 0x01;

/// Tag, length, content.
pub fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    out.extend_from_slice(content);
    out
}

pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tagged(SEQUENCE, &parts.concat())
}

/// A context-specific constructed tag.
pub fn explicit(number: u8, content: &[u8]) -> Vec<u8> {
    tagged(0xa0 | number, content)
}

/// A positive number from big-endian bytes.
pub fn integer(bytes: &[u8]) -> Vec<u8> {
    let mut content: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    if content.first().is_none_or(|first| first & 0x80 != 0) {
        content.insert(0, 0);
    }
    tagged(INTEGER, &content)
}

pub fn bit_string(unused: u8, bytes: &[u8]) -> Vec<u8> {
    tagged(BIT_STRING, &[&[unused], bytes].concat())
}

pub fn octets(bytes: &[u8]) -> Vec<u8> {
    tagged(OCTET_STRING, bytes)
}

/// An object identifier from its encoded content.
pub fn oid(content: &[u8]) -> Vec<u8> {
    tagged(0x06, content)
}

/// UTCTime before 2050, GeneralizedTime from then on.
pub fn time(moment: Timestamp) -> Vec<u8> {
    let year = moment.to_zoned(jiff::tz::TimeZone::UTC).year();
    if year < 2050 {
        tagged(0x17, moment.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tagged(0x18, moment.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

pub fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let mut parts = vec![oid(id)];
    if critical {
        parts.push(tagged(BOOLEAN, &[0xff]));
    }
    parts.push(octets(value));
    sequence(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_integers_and_times() {
        assert_eq!(tagged(0x04, &[0; 200])[..3], [0x04, 0x81, 200]);
        assert_eq!(tagged(0x04, &[0; 300])[..4], [0x04, 0x82, 1, 44]);
        assert_eq!(integer(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[0, 0]), [2, 1, 0]);
        let moment: Timestamp = "2049-12-31T23:59:59Z".parse().expect("a valid time");
        assert_eq!(time(moment)[2..], *b"491231235959Z");
        assert_eq!(time("2050-01-01T00:00:00Z".parse().expect("a valid time"))[0], 0x18);
    }
}
