//! What can only be said with the document's text at hand: where it stops being JSON, in the words
//! of Go's parser, and in which order its fields come.

use std::collections::HashMap;

/// Why `text` is no JSON document, as `encoding/json` says it; none if it is one.
pub fn syntax_error(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner::new(text);
    scanner.document().err().map(|why| match why {
        Stop::End => "unexpected end of JSON input".to_owned(),
        Stop::At(byte, context) => format!("invalid character {} {context}", quoted(byte)),
    })
}

/// Problems of fields in the order in which decoding would meet them. A field that is unknown is
/// not a duplicate as well.
pub fn in_order(text: &[u8], problems: Vec<String>) -> Vec<String> {
    let mut scanner = Scanner { met: Some(Met::default()), ..Scanner::new(text) };
    let _ = scanner.document();
    let met = scanner.met.unwrap_or_default().places;
    let place_of = |problem: &String| {
        let path = problem.split('"').nth(1).unwrap_or_default();
        let met = met.get(path).copied().unwrap_or((usize::MAX, usize::MAX));
        if problem.starts_with("duplicate") { met.1 } else { met.0 }
    };
    let unknown = |path: &str| problems.iter().any(|other| *other == format!("unknown field {path}"));
    let mut kept: Vec<(usize, String)> = problems
        .iter()
        .filter(|problem| problem.strip_prefix("duplicate field ").is_none_or(|path| !unknown(path)))
        .map(|problem| (place_of(problem), problem.clone()))
        .collect();
    kept.sort_by_key(|(place, _)| *place);
    kept.into_iter().map(|(_, problem)| problem).collect()
}

fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        byte if byte.is_ascii_graphic() || byte == b' ' => format!("'{}'", char::from(byte)),
        b'\n' => r"'\n'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        byte if byte.is_ascii() => format!(r"'\x{byte:02x}'"),
        // Go shows the byte as the character of that number.
        byte => format!("'{}'", char::from(byte)),
    }
}

enum Stop {
    End,
    /// The byte that does not fit, and where it stands.
    At(u8, &'static str),
}

/// Deeper documents are left to the parser, which refuses them.
const MAX_DEPTH: usize = 256;

/// Paths are kept up to so many bytes together: a long key is part of each below it. Fields behind those
/// stay in the order in which they were found.
const MOST_PATHS: usize = 16 << 20;

#[derive(Default)]
struct Met {
    /// By path: where the field was met first, and where last.
    places: HashMap<String, (usize, usize)>,
    /// Bytes of all paths so far.
    bytes: usize,
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    path: Vec<String>,
    /// None: nobody asks for the order.
    met: Option<Met>,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, path: Vec::new(), met: None }
    }

    fn document(&mut self) -> Result<(), Stop> {
        self.value()?;
        self.space();
        self.text.get(self.at).map_or(Ok(()), |byte| Err(Stop::At(*byte, "after top-level value")))
    }

    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    fn next(&mut self) -> Result<u8, Stop> {
        self.space();
        self.bump()
    }

    fn bump(&mut self) -> Result<u8, Stop> {
        let byte = *self.text.get(self.at).ok_or(Stop::End)?;
        self.at += 1;
        Ok(byte)
    }

    fn value(&mut self) -> Result<(), Stop> {
        if self.path.len() > MAX_DEPTH {
            return Ok(());
        }
        match self.next()? {
            b'{' => self.object(),
            b'[' => self.array(),
            b'"' => self.string().map(|_| ()),
            b't' => self.literal(&[
                (b'r', "in literal true (expecting 'r')"),
                (b'u', "in literal true (expecting 'u')"),
                (b'e', "in literal true (expecting 'e')"),
            ]),
            b'f' => self.literal(&[
                (b'a', "in literal false (expecting 'a')"),
                (b'l', "in literal false (expecting 'l')"),
                (b's', "in literal false (expecting 's')"),
                (b'e', "in literal false (expecting 'e')"),
            ]),
            b'n' => self.literal(&[
                (b'u', "in literal null (expecting 'u')"),
                (b'l', "in literal null (expecting 'l')"),
                (b'l', "in literal null (expecting 'l')"),
            ]),
            b'-' => match self.bump()? {
                b'0' => self.fraction(),
                b'1'..=b'9' => self.digits(),
                byte => Err(Stop::At(byte, "in numeric literal")),
            },
            b'0' => self.fraction(),
            b'1'..=b'9' => self.digits(),
            byte => Err(Stop::At(byte, "looking for beginning of value")),
        }
    }

    fn literal(&mut self, rest: &[(u8, &'static str)]) -> Result<(), Stop> {
        for (wanted, context) in rest {
            let byte = self.bump()?;
            if byte != *wanted {
                return Err(Stop::At(byte, context));
            }
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Stop> {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        self.fraction()
    }

    fn fraction(&mut self) -> Result<(), Stop> {
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits("after decimal point in numeric literal")?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits("in exponent of numeric literal")?;
        }
        Ok(())
    }

    fn some_digits(&mut self, context: &'static str) -> Result<(), Stop> {
        let byte = self.bump()?;
        if !byte.is_ascii_digit() {
            return Err(Stop::At(byte, context));
        }
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        Ok(())
    }

    /// The text between the quotes, as it stands.
    fn string(&mut self) -> Result<String, Stop> {
        let start = self.at;
        loop {
            match self.bump()? {
                b'"' => return Ok(String::from_utf8_lossy(&self.text[start..self.at - 1]).into_owned()),
                b'\\' => self.escape()?,
                byte if byte < 0x20 => return Err(Stop::At(byte, "in string literal")),
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Result<(), Stop> {
        match self.bump()? {
            b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => Ok(()),
            b'u' => {
                for _ in 0..4 {
                    let byte = self.bump()?;
                    if !byte.is_ascii_hexdigit() {
                        return Err(Stop::At(byte, "in \\u hexadecimal character escape"));
                    }
                }
                Ok(())
            }
            byte => Err(Stop::At(byte, "in string escape code")),
        }
    }

    fn meet(&mut self, key: &str) {
        let Some(met) = &mut self.met else { return };
        met.bytes += self.path.iter().map(|step| step.len() + 1).sum::<usize>() + key.len();
        if met.bytes > MOST_PATHS {
            return;
        }
        let mut path = String::new();
        for step in self.path.iter().map(String::as_str).chain([key]) {
            if !path.is_empty() && !step.starts_with('[') {
                path.push('.');
            }
            path.push_str(step);
        }
        let at = self.at;
        met.places.entry(path).and_modify(|met| met.1 = at).or_insert((at, at));
    }

    fn object(&mut self) -> Result<(), Stop> {
        let mut byte = self.next()?;
        if byte == b'}' {
            return Ok(());
        }
        loop {
            if byte != b'"' {
                return Err(Stop::At(byte, "looking for beginning of object key string"));
            }
            let key = self.string()?;
            self.meet(&key);
            match self.next()? {
                b':' => {}
                byte => return Err(Stop::At(byte, "after object key")),
            }
            self.path.push(key);
            self.value()?;
            self.path.pop();
            match self.next()? {
                b',' => byte = self.next()?,
                b'}' => return Ok(()),
                byte => return Err(Stop::At(byte, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self) -> Result<(), Stop> {
        self.space();
        if self.text.get(self.at) == Some(&b']') {
            self.at += 1;
            return Ok(());
        }
        for index in 0.. {
            self.path.push(format!("[{index}]"));
            self.value()?;
            self.path.pop();
            match self.next()? {
                b',' => {}
                b']' => return Ok(()),
                byte => return Err(Stop::At(byte, "after array element")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn syntax_errors_are_gos() {
        for (text, why) in [
            ("", "unexpected end of JSON input"),
            ("{\"a\":", "unexpected end of JSON input"),
            ("apiVersion: v1", "invalid character 'a' looking for beginning of value"),
            ("{}x", "invalid character 'x' after top-level value"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            ("[1 2]", "invalid character '2' after array element"),
            ("tru0", "invalid character '0' in literal true (expecting 'e')"),
            ("\"\n\"", r"invalid character '\n' in string literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
        ] {
            assert_eq!(syntax_error(text.as_bytes()).as_deref(), Some(why), "{text}");
        }
        assert_eq!(syntax_error(br#" {"a": [1, -2.5e3, "\u00e4", {}, [], null, true]} "#), None);
    }

    #[test]
    fn problems_come_as_they_are_met() {
        let text = br#"{"spec":{"x":1,"paused":true,"y":1,"y":2,"paused":false,"t":[{"z":1}]}}"#;
        let problems = [
            "duplicate field \"spec.y\"",
            "duplicate field \"spec.paused\"",
            "unknown field \"spec.t[0].z\"",
            "unknown field \"spec.x\"",
            "unknown field \"spec.y\"",
        ];
        let ordered = in_order(text, problems.map(str::to_owned).to_vec());
        assert_eq!(
            ordered,
            [
                "unknown field \"spec.x\"",
                "unknown field \"spec.y\"",
                "duplicate field \"spec.paused\"",
                "unknown field \"spec.t[0].z\""
            ]
        );
    }

    #[test]
    fn a_long_key_above_many_takes_no_memory_for_each() {
        // Their paths would be 20 GB.
        let below: Vec<String> = (0..20_000).map(|at| format!("\"{at}\":1")).collect();
        let text = format!("{{\"{}\":{{{}}},\"x\":1}}", "k".repeat(1 << 20), below.join(","));
        assert_eq!(syntax_error(text.as_bytes()), None);
        let mut scanner = Scanner { met: Some(Met::default()), ..Scanner::new(text.as_bytes()) };
        assert!(scanner.document().is_ok());
        let kept: usize = scanner.met.unwrap().places.keys().map(String::len).sum();
        assert!(kept <= MOST_PATHS, "{kept}");
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_parser(text in r#"[\[\]{}",:0-9.eE+\-a-f\\ tru]{0,24}"#) {
            prop_assert_eq!(
                syntax_error(text.as_bytes()).is_none(),
                serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok()
            );
        }
    }
}
