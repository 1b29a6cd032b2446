//! `text.format(list)`: clauses (`%s`, `%.2f`) replaced by the values of a list. As the version of
//! cel-go's string library that Kubernetes uses (2) has it: fixed-point and scientific numbers for
//! people of `en_US`, other values as expressions are written (`cel-go/ext/formatting.go`).

use std::fmt::Write;
use std::sync::Arc;

use cel::Value;
use cel::extractors::This;
use cel::objects::Key;
use chrono::{DateTime, FixedOffset, Utc};

use crate::library::{Outcome, failed};
use crate::meter;

const DEFAULT_PRECISION: usize = 6;
/// Digits or spaces that a clause writes, at most.
const MOST_PRECISION: usize = 255;

type Text = Result<String, String>;

pub(crate) fn format(This(this): This<Arc<String>>, list: Arc<Vec<Value>>) -> Outcome<Value> {
    filled(&this, &list).map(Value::from).map_err(|why| failed("format", why))
}

fn filled(text: &str, values: &[Value]) -> Text {
    let (mut filled, mut rest, mut values) = (String::with_capacity(text.len()), text, values.iter().enumerate());
    let count = values.len();
    while let Some(at) = rest.find('%') {
        filled.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            filled.push('%');
            rest = after;
            continue;
        }
        let (_, value) = values.next().ok_or_else(|| format!("index {count} out of range"))?;
        if rest.is_empty() {
            return Err("unexpected end of string".to_owned());
        }
        let (precision, after) = precision(rest).map_err(|why| format!("could not parse formatting clause: {why}"))?;
        let clause = after.chars().next().ok_or("could not parse formatting clause: unexpected end of string")?;
        let piece = written(clause, precision, value)?;
        meter::spend(piece.len() as u64 / 10 + 1).map_err(|error| error.to_string())?;
        filled.push_str(&piece);
        rest = &after[clause.len_utf8()..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The precision that a clause begins with, and what comes after it.
fn precision(clause: &str) -> Result<(usize, &str), String> {
    let Some(rest) = clause.strip_prefix('.') else { return Ok((DEFAULT_PRECISION, clause)) };
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let end = end.ok_or("error while parsing precision: could not find end of precision specifier")?;
    let number = rest[..end].parse::<usize>();
    let number = number
        .map_err(|why| format!("error while parsing precision: error while converting precision to integer: {why}"))?;
    Ok((number.min(MOST_PRECISION), &rest[end..]))
}

fn written(clause: char, precision: usize, value: &Value) -> Text {
    let text = match (clause, value) {
        ('s', _) => text(value),
        ('d', Value::Int(_) | Value::UInt(_)) => text(value),
        ('d', _) => Err("decimal clause can only be used on integers"),
        ('f', _) => {
            double(value).map(|number| fixed(number, precision)).ok_or("fixed-point clause can only be used on doubles")
        }
        ('e', _) => double(value)
            .map(|number| scientific(number, precision))
            .ok_or("scientific clause can only be used on doubles"),
        ('b', Value::Int(number)) => Ok(format!("{}{:b}", sign(*number), number.unsigned_abs())),
        ('b', Value::UInt(number)) => Ok(format!("{number:b}")),
        ('b', Value::Bool(truth)) => Ok(u8::from(*truth).to_string()),
        ('b', _) => Err("only integers and bools can be formatted as binary"),
        ('o', Value::Int(number)) => Ok(format!("{}{:o}", sign(*number), number.unsigned_abs())),
        ('o', Value::UInt(number)) => Ok(format!("{number:o}")),
        ('o', _) => Err("octal clause can only be used on integers"),
        ('x' | 'X', _) => hex(value).ok_or("only integers, byte buffers, and strings can be formatted as hex"),
        (other, _) => {
            return Err(format!("could not parse formatting clause: unrecognized formatting clause \"{other}\""));
        }
    };
    let text = text.map_err(|why| format!("error during formatting: {why}, was given {}", type_name(value)))?;
    Ok(if clause == 'X' { text.to_uppercase() } else { text })
}

fn type_name(value: &Value) -> String {
    match value {
        Value::Float(_) => "double".to_owned(),
        Value::Null => "null_type".to_owned(),
        Value::Duration(_) => "google.protobuf.Duration".to_owned(),
        Value::Timestamp(_) => "google.protobuf.Timestamp".to_owned(),
        Value::Opaque(opaque) => opaque.runtime_type_name().to_owned(),
        other => other.type_of().to_string(),
    }
}

/// `%s`
fn text(value: &Value) -> Result<String, &'static str> {
    Ok(match value {
        Value::String(text) => text.to_string(),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::UInt(number) => number.to_string(),
        Value::Float(number) => plain(*number),
        Value::Null => "null".to_owned(),
        Value::Duration(duration) => seconds(duration),
        Value::Timestamp(time) => rfc3339(time),
        Value::List(items) => {
            let items: Result<Vec<String>, _> = items.iter().map(literal).collect();
            format!("[{}]", items?.join(", "))
        }
        Value::Map(map) => {
            let entry = |(key, value): (&Key, &Value)| Ok((key_literal(key), literal(value)?));
            let mut entries = map.map.iter().map(entry).collect::<Result<Vec<_>, &'static str>>()?;
            entries.sort();
            let entries: Vec<String> = entries.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Function(..) | Value::Opaque(_) | Value::Struct(_) => {
            return Err("string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
                        durations, and timestamps");
        }
    })
}

/// A value within a list or a map, as an expression has it.
fn literal(value: &Value) -> Result<String, &'static str> {
    Ok(match value {
        Value::String(text) => quoted(text),
        Value::Bytes(bytes) => format!("b{}", quoted(&String::from_utf8_lossy(bytes))),
        Value::Float(number) if number.is_finite() => format!("{number:.DEFAULT_PRECISION$}"),
        Value::Float(number) => quoted(if number.is_nan() {
            "NaN"
        } else if *number > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        }),
        Value::Duration(_) => format!("duration({})", quoted(&text(value)?)),
        Value::Timestamp(_) => format!("timestamp({})", quoted(&text(value)?)),
        other => text(other)?,
    })
}

fn key_literal(key: &Key) -> String {
    match key {
        Key::Int(number) => number.to_string(),
        Key::Uint(number) => number.to_string(),
        Key::Bool(truth) => truth.to_string(),
        Key::String(text) => quoted(text),
    }
}

/// As Go quotes: `"a\n"`.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            // Writing to a string cannot fail.
            c if c.is_ascii_control() => drop(write!(quoted, "\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// In the fewest digits that read back as it.
fn plain(number: f64) -> String {
    match number {
        number if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        number => number.to_string(),
    }
}

fn not_finite(number: f64) -> Option<String> {
    (!number.is_finite()).then(|| {
        let text = if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "∞"
        } else {
            "-∞"
        };
        text.to_owned()
    })
}

/// `1,234.50`
fn fixed(number: f64, precision: usize) -> String {
    if let Some(text) = not_finite(number) {
        return text;
    }
    let text = format!("{:.precision$}", number.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = if number.is_sign_negative() { String::from('-') } else { String::new() };
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

/// `1.052033 × 10⁰³`, with narrow spaces that do not break. The precision is taken for a width there:
/// digits are always six.
fn scientific(number: f64, width: usize) -> String {
    let text = not_finite(number).unwrap_or_else(|| {
        let text = format!("{number:.DEFAULT_PRECISION$e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(("", exponent), |digits| ("⁻", digits));
        let raised: String = format!("{digits:0>2}").chars().filter_map(raised).collect();
        format!("{mantissa}\u{202f}×\u{202f}10{sign}{raised}")
    });
    format!("{text:>width$}")
}

fn raised(digit: char) -> Option<char> {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    DIGITS.get(digit.to_digit(10)? as usize).copied()
}

fn sign(number: i64) -> &'static str {
    if number < 0 { "-" } else { "" }
}

fn hex(value: &Value) -> Option<String> {
    let bytes = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match value {
        Value::Int(number) => Some(format!("{}{:x}", sign(*number), number.unsigned_abs())),
        Value::UInt(number) => Some(format!("{number:x}")),
        Value::String(text) => Some(bytes(text.as_bytes())),
        Value::Bytes(all) => Some(bytes(all)),
        _ => None,
    }
}

/// `6347.25s`
fn seconds(duration: &chrono::Duration) -> String {
    format!("{}s", duration.num_seconds() as f64 + f64::from(duration.subsec_nanos()) / 1e9)
}

/// With as many digits of a second as there are.
fn rfc3339(time: &DateTime<FixedOffset>) -> String {
    let time = time.with_timezone(&Utc);
    let nanos = format!(".{:09}", time.timestamp_subsec_nanos());
    format!("{}{}Z", time.format("%Y-%m-%dT%H:%M:%S"), nanos.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use crate::compile;
    use cel::Value;

    #[test]
    fn texts_are_filled() {
        for (text, want) in [
            ("'%% %s'.format(['a'])", "% a"),
            ("'%s %s %s %s'.format([null, true, -1, 2u])", "null true -1 2"),
            ("'%s %s'.format([2.5, 1e21])", "2.5 1000000000000000000000"),
            ("'%s'.format([timestamp('2023-02-03T23:31:20.5+01:00')])", "2023-02-03T22:31:20.5Z"),
            ("'%s'.format([duration('1h45m47.25s')])", "6347.25s"),
            ("'%s'.format([['a', 1, 2.5, duration('1s'), null]])", "[\"a\", 1, 2.500000, duration(\"1s\"), null]"),
            ("'%s'.format([{'b': 'x', 'a': [true]}])", "{\"a\":[true], \"b\":\"x\"}"),
            ("'%d %d'.format([-12, 12u])", "-12 12"),
            ("'%f %.0f %.2f'.format([2.71828, 2.5, -1234567.891])", "2.718280 2 -1,234,567.89"),
            ("'%f %f'.format([double('NaN'), 'Infinity'])", "NaN ∞"),
            ("'%.6e'.format([1052.032911275])", "1.052033\u{202f}×\u{202f}10⁰³"),
            ("'%e'.format([-0.000314])", "-3.140000\u{202f}×\u{202f}10⁻⁰⁴"),
            ("'%.20e|'.format([2.71828])", "     2.718280\u{202f}×\u{202f}10⁰⁰|"),
            ("'%b %b %b'.format([-5, 5u, true])", "-101 101 1"),
            ("'%o %x %X'.format([8, 'Hi!', b'\\x0a\\xff'])", "10 486921 0AFF"),
        ] {
            let program = compile(text).unwrap();
            let variables: [(&str, Value); 0] = [];
            assert_eq!(program.evaluate(&variables).unwrap(), Value::from(want), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_said() {
        for (text, want) in [
            ("'%d %d'.format([1])", "index 1 out of range"),
            ("'%'.format([1])", "unexpected end of string"),
            ("'%a'.format([1])", "could not parse formatting clause: unrecognized formatting clause \"a\""),
            ("'%.3'.format([1])", "could not find end of precision specifier"),
            (
                "'%d'.format([1.5])",
                "error during formatting: decimal clause can only be used on integers, was given double",
            ),
            (
                "'%f'.format([1])",
                "error during formatting: fixed-point clause can only be used on doubles, was given int",
            ),
            ("'%s'.format([ip('::1')])", "string clause can only be used on strings"),
        ] {
            let variables: [(&str, Value); 0] = [];
            let error = compile(text).unwrap().evaluate(&variables).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
