//! The JSON text of values, byte for byte as `serde_json` writes it. Strings, which most of an object is,
//! are looked through many bytes at a time.

use serde_json::Value;

/// Bytes looked at together.
const AT_ONCE: usize = 32;
const HEX: &[u8; 16] = b"0123456789abcdef";

pub fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        // Writing into memory cannot fail.
        Value::Number(number) => drop(serde_json::to_writer(out, number)),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(out, item);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            out.push(b'{');
            for (index, (key, member)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(out, key);
                out.push(b':');
                write(out, member);
            }
            out.push(b'}');
        }
    }
}

pub fn write_string(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    out.reserve(rest.len() + 2);
    out.push(b'"');
    loop {
        let plain = plain_length(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some(byte) = rest.get(plain) else { break };
        write_escaped(out, *byte);
        rest = &rest[plain + 1..];
    }
    out.push(b'"');
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// How many bytes from the beginning stand for themselves.
fn plain_length(text: &[u8]) -> usize {
    let (chunks, _) = text.as_chunks::<AT_ONCE>();
    // Without a way out of the inner loop, so that the compiler makes a few instructions of it.
    let plain = chunks.iter().take_while(|chunk| !chunk.iter().fold(false, |any, byte| any | is_escaped(*byte)));
    let start = plain.count() * AT_ONCE;
    text[start..].iter().position(|byte| is_escaped(*byte)).map_or(text.len(), |at| start + at)
}

fn write_escaped(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn written(value: &Value) -> String {
        let mut out = Vec::new();
        write(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_is_written_as_serde_json_does() {
        for at in [0, 5, 31, 32, 33, 64] {
            for character in (0..0x100).filter_map(char::from_u32).chain(['ß', '€', '𝄞', '\u{2028}']) {
                let value = Value::String(format!("{}{character}{}", "x".repeat(at), "y".repeat(40)));
                assert_eq!(written(&value), value.to_string());
            }
        }
        let value =
            json!({"a": [1, -2, 1.5, 1e300, u64::MAX, null, true, false, {}, [], ""], "\"": {"b": {"c\n": 0.1}}});
        assert_eq!(written(&value), value.to_string());
    }

    proptest! {
        #[test]
        fn any_text_is_written_as_serde_json_does(text in ".*") {
            let value = Value::String(text);
            prop_assert_eq!(written(&value), value.to_string());
        }
    }
}
