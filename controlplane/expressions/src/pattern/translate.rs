//! Go's regular expressions in the syntax of the `regex` crate. They differ in this:
//!
//! - `\d`, `\s`, `\w` and `\b` know ASCII only;
//! - within brackets `[` means itself, and so do `&&`, `--` and `~~`;
//! - braces that are no count mean themselves, and so do `\<` and `\>`;
//! - `\Q...\E` quotes, `\101` is octal;
//! - counts end at 1000, and nothing is repeated twice in a row.
//!
//! Upstream: <https://pkg.go.dev/regexp/syntax>.

/// `Err` says what Go finds wrong; much of that is left to the `regex` crate.
pub fn translated(pattern: &str) -> Result<String, String> {
    Translation { whole: pattern, rest: pattern, out: String::with_capacity(pattern.len() + 8) }.run()
}

/// The most times that something may be repeated.
const MOST: u32 = 1000;

const NAMED: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];

struct Translation<'a> {
    whole: &'a str,
    rest: &'a str,
    out: String,
}

impl Translation<'_> {
    fn run(mut self) -> Result<String, String> {
        // Where a repetition begins that has just been read.
        let mut repeated: Option<usize> = None;
        while let Some(c) = self.rest.chars().next() {
            let begin = self.at();
            let repeats = self.next(c)?;
            if repeats && self.rest.starts_with('?') {
                self.copy(1);
            }
            if let (true, Some(first)) = (repeats, repeated) {
                return Err(format!("invalid nested repetition operator: `{}`", &self.whole[first..self.at()]));
            }
            repeated = repeats.then_some(begin);
        }
        Ok(self.out)
    }

    /// Takes what begins with `c`. True: it says how often something is repeated.
    fn next(&mut self, c: char) -> Result<bool, String> {
        match c {
            '{' => return self.count(),
            '\\' => self.escape(true),
            '[' => self.class()?,
            // The question mark repeats nothing.
            '(' if self.rest.starts_with("(?") => self.copy(2),
            c => self.copy(c.len_utf8()),
        }
        Ok(matches!(c, '*' | '+' | '?'))
    }

    fn at(&self) -> usize {
        self.whole.len() - self.rest.len()
    }

    /// Takes so many bytes as they are.
    fn copy(&mut self, length: usize) {
        let (taken, rest) = self.rest.split_at(length);
        self.out.push_str(taken);
        self.rest = rest;
    }

    /// Writes `text` for so many bytes.
    fn replace(&mut self, length: usize, text: &str) {
        self.out.push_str(text);
        self.rest = &self.rest[length..];
    }

    /// `{2}`, `{2,}` or `{2,3}`, or a brace. True: it was a count.
    fn count(&mut self) -> Result<bool, String> {
        let Some((least, most, length)) = count(self.rest) else {
            self.replace(1, "\\{");
            return Ok(false);
        };
        if least > MOST || most.is_some_and(|most| most > MOST || most < least) {
            return Err(format!("invalid repeat count: `{}`", &self.rest[..length]));
        }
        self.copy(length);
        Ok(true)
    }

    /// What begins with a backslash.
    fn escape(&mut self, outside: bool) {
        let Some(escaped) = self.rest.chars().nth(1) else { return self.copy(self.rest.len()) };
        match escaped {
            'd' => self.replace(2, "[0-9]"),
            'D' => self.replace(2, "[^0-9]"),
            's' => self.replace(2, "[\\t\\n\\f\\r ]"),
            'S' => self.replace(2, "[^\\t\\n\\f\\r ]"),
            'w' => self.replace(2, "[0-9A-Za-z_]"),
            'W' => self.replace(2, "[^0-9A-Za-z_]"),
            '<' => self.replace(2, "<"),
            '>' => self.replace(2, ">"),
            'b' if outside => self.replace(2, "(?-u:\\b)"),
            'Q' if outside => self.quotation(),
            '0'..='7' => self.octal(),
            'p' | 'P' | 'x' => {
                self.copy(2);
                let end = self.rest.find('}').filter(|_| self.rest.starts_with('{'));
                self.copy(end.map_or(0, |end| end + 1));
            }
            escaped => self.copy(1 + escaped.len_utf8()),
        }
    }

    fn quotation(&mut self) {
        let (quoted, after) = self.rest[2..].split_once("\\E").unwrap_or((&self.rest[2..], ""));
        self.out.push_str(&regex::escape(quoted));
        self.rest = after;
    }

    /// Up to three digits; one alone, other than 0, would be a back reference, which there is none of.
    fn octal(&mut self) {
        let digits = self.rest[1..].bytes().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
        match u32::from_str_radix(&self.rest[1..=digits], 8) {
            Ok(code) if digits > 1 || code == 0 => self.replace(1 + digits, &format!("\\x{{{code:x}}}")),
            _ => self.copy(2),
        }
    }

    /// What is in brackets.
    fn class(&mut self) -> Result<(), String> {
        self.copy(if self.rest.starts_with("[^") { 2 } else { 1 });
        let mut first = true;
        while let Some(c) = self.rest.chars().next() {
            if c == ']' && !first {
                self.copy(1);
                break;
            }
            first = false;
            match named(self.rest) {
                Some(name) if !NAMED.contains(&name.trim_start_matches('^')) => {
                    return Err(format!("invalid character class range: `[:{name}:]`"));
                }
                Some(name) => self.copy(name.len() + 4),
                None => self.range()?,
            }
        }
        Ok(())
    }

    /// A member of a class, or all from one to another.
    fn range(&mut self) -> Result<(), String> {
        let single = self.member();
        let end = self.rest.strip_prefix('-').filter(|end| single && !end.is_empty() && !end.starts_with(']'));
        let Some(end) = end else { return Ok(()) };
        self.copy(1);
        if self.member() {
            return Ok(());
        }
        let escape: String = end.chars().take(2).collect();
        Err(format!("invalid escape sequence: `{escape}`"))
    }

    /// One character of a class, or, which is false, all that a letter stands for.
    fn member(&mut self) -> bool {
        match self.rest.chars().next() {
            Some('\\') => {
                let letter = self.rest.chars().nth(1);
                self.escape(false);
                return !matches!(letter, Some('d' | 'D' | 's' | 'S' | 'w' | 'W' | 'p' | 'P'));
            }
            Some(c @ ('[' | ']' | '^' | '-' | '&' | '~')) => self.replace(1, &format!("\\{c}")),
            Some(c) => self.copy(c.len_utf8()),
            None => {}
        }
        true
    }
}

/// `digit` of `[:digit:]...`.
fn named(text: &str) -> Option<&str> {
    text.strip_prefix("[:")?.split_once(":]").map(|(name, _)| name)
}

/// Least, most if there is one, and the length of the text.
fn count(text: &str) -> Option<(u32, Option<u32>, usize)> {
    let end = text.find('}')?;
    let inside = &text[1..end];
    let (least, most) = match inside.split_once(',') {
        None => (number(inside)?, Some(number(inside)?)),
        Some((least, "")) => (number(least)?, None),
        Some((least, most)) => (number(least)?, Some(number(most)?)),
    };
    Some((least, most, end + 1))
}

/// Digits, no zero before others; what does not fit is too many by far.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let padded = text.len() > 1 && text.starts_with('0');
    (plain && !padded).then(|| text.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use crate::pattern::{LARGEST, compile};

    #[test]
    fn patterns_match_what_they_match_in_go() {
        for (pattern, fits, fits_not) in [
            (r"^\d+$", &["12"][..], &["١٢", "x"][..]),
            (r"^[\d\w-]+$", &["1-a_"], &["é"]),
            (r"^[^\s]+$", &["a\u{a0}b"], &["a b"]),
            (r"^\W$", &["é", "-"], &["a"]),
            (r"\bmüller\b", &["müller"], &["xmüller"]),
            (r"^[^()\[\]?={} \t]+$", &["a"], &["[", "]", "{"]),
            (r#"^[^()<>@,;:\\"\/[\]?={} \t\x7f\x00]+$"#, &["abc"], &["a[b", "a]b", "a b"]),
            (r"^[]a]+$", &["]a"], &["b"]),
            (r"^[^]a]+$", &["b"], &["]"]),
            (r"^[[:alpha:][]+$", &["a["], &["1"]),
            (r"^[a&&b~~c]+$", &["a&b~c"], &["d"]),
            (r"^[+--]$", &["+", ",", "-"], &["."]),
            (r"^[-a-]$", &["-", "a"], &["b"]),
            (r"^[a-c-e]+$", &["a-e"], &["d"]),
            (r"^{{.*}}$", &["{{ x }}"], &["x"]),
            (r"^\${[a-z]+}$", &["${a}"], &["$a"]),
            (r"^a{,2}$", &["a{,2}"], &["aa"]),
            (r"^a{2,}$", &["aaa"], &["a"]),
            (r"^\p{Greek}\x{3b1}$", &["αα"], &["aα"]),
            (r"^\<a\>$", &["<a>"], &["a"]),
            (r"^\Qa.b[\E+$", &["a.b[["], &["acb["]),
            (r"^\101\0$", &["A\0"], &["101"]),
            (r"^(?i:abc)(?P<n>d)??$", &["ABCd"], &["abcD"]),
            (r"^a+?$", &["aa"], &[""]),
        ] {
            let regex = compile(pattern, LARGEST).unwrap();
            assert!(fits.iter().all(|text| regex.is_match(text)), "{pattern} should match {fits:?}");
            assert!(!fits_not.iter().any(|text| regex.is_match(text)), "{pattern} should match none of {fits_not:?}");
        }
        for pattern in [r"\1", r"[a-\d]", r"a\", "[a", "(?x", r"\E", "[[:a"] {
            assert!(compile(pattern, LARGEST).is_err(), "{pattern}");
        }
    }
}
