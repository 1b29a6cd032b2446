//! How deep the tree of an expression can be, known before it is parsed: the parser recurses.
//!
//! Text is cut where CEL's grammar cuts it, since what is in quotes and in comments nests nothing. Of
//! text that cannot be cut so (a quote without an end, a lone `&`) every byte counts: the parser goes
//! on behind such a mistake, and where it does is its own affair.

/// The deepest nesting of brackets, and the number of what else makes a tree deeper.
pub fn of(text: &str) -> (usize, usize) {
    let (mut depth, mut deepest, mut operators) = (0_usize, 0, 0);
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let Some(length) = token(rest) else { return of_all(text) };
        let (token, after) = rest.split_at(length);
        match token {
            [b'(' | b'[' | b'{'] => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            [b')' | b']' | b'}'] => depth = depth.saturating_sub(1),
            [b'/'] => operators += 1,
            // A number may stand right before it.
            [b'i', b'n'] | [b'0'..=b'9', .., b'i', b'n'] => operators += 1,
            [b'+' | b'-' | b'*' | b'%' | b'!' | b'?' | b'.' | b'<' | b'>' | b'=', ..] => operators += 1,
            _ => {}
        }
        rest = after;
    }
    (deepest, operators)
}

/// As much as there could be, whatever is in quotes.
fn of_all(text: &str) -> (usize, usize) {
    let count = |of: &[u8]| text.bytes().filter(|byte| of.contains(byte)).count();
    (count(b"([{"), count(b"+-*/%!?.<>=") + text.matches("in").count())
}

/// The length of the token that a text begins with; a blank is one, too.
fn token(text: &[u8]) -> Option<usize> {
    let word = text.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
    let quotes = matches!(text.get(word), Some(b'\'' | b'"'));
    match text {
        [b'\'' | b'"', ..] => quoted(text, false),
        [b'/', b'/', ..] => Some(text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len())),
        [b'&', b'&', ..] | [b'|', b'|', ..] | [b'=' | b'!' | b'<' | b'>', b'=', ..] => Some(2),
        [b'&' | b'|' | b'=', ..] => None,
        [b'`', inside @ ..] => {
            let within = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-/ ".contains(byte);
            let name = inside.iter().position(|byte| !within(byte)).unwrap_or(inside.len());
            (name > 0 && inside.get(name) == Some(&b'`')).then_some(name + 2)
        }
        // No text can follow a number.
        [b'0'..=b'9', ..] => (!quotes).then_some(word),
        _ if quotes && matches!(&text[..word], [b'r' | b'R'] | [b'b' | b'B', b'r' | b'R']) => {
            quoted(&text[word..], true).map(|length| word + length)
        }
        _ => Some(word.max(1)),
    }
}

/// The length of a text in quotes, these included.
fn quoted(text: &[u8], raw: bool) -> Option<usize> {
    let quote = [*text.first()?; 3];
    // Three at the beginning are two that hold nothing, unless there are three at the end.
    until(text, &quote, raw).or_else(|| until(text, &quote[..1], raw))
}

fn until(text: &[u8], mark: &[u8], raw: bool) -> Option<usize> {
    let mut at = text.starts_with(mark).then_some(mark.len())?;
    loop {
        let rest = text.get(at..)?;
        at += match rest {
            _ if rest.starts_with(mark) => return Some(at + mark.len()),
            [] => return None,
            [b'\\', escape @ ..] if !raw => 1 + escaped(escape)?,
            [b'\n' | b'\r', ..] if mark.len() == 1 => return None,
            _ => 1,
        };
    }
}

/// The length of an escape behind its backslash; none if it is none.
fn escaped(text: &[u8]) -> Option<usize> {
    let hex = |count: usize| text.get(1..=count)?.iter().all(u8::is_ascii_hexdigit).then_some(count + 1);
    match text {
        [b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'"' | b'\'' | b'\\' | b'?' | b'`', ..] => Some(1),
        [b'x' | b'X', ..] => hex(2),
        [b'u', ..] => hex(4),
        [b'U', ..] => hex(8),
        [b'0'..=b'3', b'0'..=b'7', b'0'..=b'7', ..] => Some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_quotes_and_comments_does_not_count() {
        for (text, expected) in [
            ("a + [b(1)] - 1.5", (2, 3)),
            ("1 <= 2 && 3 != -4 || x", (0, 3)),
            ("'(+' + \"[\\\"(\" + '\\'('", (0, 2)),
            ("r'\\' + '(' + br\"\\\" + b'\\x28('", (0, 3)),
            ("'''it's (''' + '' + \"\"\"\n\"(\"\"\"", (0, 2)),
            ("'''+(' == ''", (0, 1)),
            ("1 // it's (+\n + 2", (0, 1)),
            ("a.`b-c.(d`", (1, 3)),
            ("a.`b-c.d`", (0, 1)),
            ("a in b && 1in[2] && inside.min", (1, 3)),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
    }

    #[test]
    fn behind_a_mistake_everything_counts() {
        for text in ["'+\n+(", "'\\z' + '+('", "\"+", "1'+('", "a & '+('", "a = '+('"] {
            let (brackets, operators) = of(text);
            assert_eq!(brackets, text.matches('(').count(), "{text}");
            assert!(operators >= text.matches('+').count(), "{text}");
        }
    }
}
