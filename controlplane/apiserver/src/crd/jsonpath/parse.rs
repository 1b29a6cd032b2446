//! Reads paths. Blanks between steps, `$` and `@` mean nothing.

use serde_json::Value;

use super::{Filter, Operand, Path, Slice, Step};

/// None: it is no path.
pub fn path(text: &str) -> Option<Path> {
    let (mut steps, mut rest) = (Path::new(), text);
    while let Some(first) = rest.chars().next() {
        if let Some(filtered) = rest.strip_prefix("[?(") {
            let (inside, after) = filter_end(filtered)?;
            steps.push(Step::Where(filter(inside)?));
            rest = after;
        } else if let Some(below) = rest.strip_prefix("..") {
            if steps.last() == Some(&Step::Descend) {
                return None;
            }
            steps.push(Step::Descend);
            rest = if below.starts_with(is_word) { field(below, &mut steps) } else { below };
        } else if let Some(inside) = rest.strip_prefix('[') {
            let (inside, after) = inside.split_once(']')?;
            bracket(inside, &mut steps)?;
            rest = after;
        } else if let Some(named) = rest.strip_prefix('.') {
            rest = field(named, &mut steps);
        } else if matches!(first, ' ' | '$' | '@') {
            rest = &rest[1..];
        } else {
            return None;
        }
    }
    Some(steps)
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Takes a name and returns what is behind it; a backslash keeps what follows from ending it.
fn field<'a>(text: &'a str, steps: &mut Path) -> &'a str {
    let mut end = text.len();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}' => {
                end = at;
                break;
            }
            _ => {}
        }
    }
    steps.push(match &text[..end] {
        "*" => Step::All,
        name => Step::Member(name.replace('\\', "")),
    });
    &text[end..]
}

/// What is between `[` and `]`.
fn bracket(text: &str, steps: &mut Path) -> Option<()> {
    if text.contains(',') {
        let one = |part: &str| {
            let mut steps = Path::new();
            bracket(part.trim_matches(' '), &mut steps).map(|()| steps)
        };
        steps.push(Step::Union(text.split(',').map(one).collect::<Option<_>>()?));
    } else if let Some(name) = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        // An apostrophe cannot be part of a name.
        if name.contains('\'') {
            return None;
        }
        steps.extend(path(&format!(".{name}"))?);
    } else {
        steps.push(Step::Slice(slice(if text == "*" { ":" } else { text })?));
    }
    Some(())
}

fn slice(text: &str) -> Option<Slice> {
    let number = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
    let mut parts = text.splitn(3, ':');
    let from: Option<i64> = number(parts.next().unwrap_or_default())?;
    let (to, single) = match parts.next() {
        Some(to) => (number(to)?, false),
        None => (Some(from.unwrap_or(0).checked_add(1)?), true),
    };
    Some(Slice { from, to, step: number(parts.next().unwrap_or_default())?, single })
}

/// Splits behind `)]`; a parenthesis in quotes is not the end.
fn filter_end(text: &str) -> Option<(&str, &str)> {
    let (mut open, mut before) = (None, ' ');
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match (open, c) {
            (None, '"' | '\'') if !quoted => (open, quoted) = (Some(c), true),
            (Some(quote), c) if c == quote && before != '\\' => open = None,
            (None, ')') => return Some((&text[..at], text[at + 1..].strip_prefix(']')?)),
            _ => {}
        }
        before = c;
    }
    None
}

fn filter(text: &str) -> Option<Filter> {
    let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
    let begin = text.find(is_operator).filter(|begin| *begin > 0);
    let split = begin.map(|begin| {
        let length = text[begin..].find(|c: char| !is_operator(c)).unwrap_or(text.len() - begin);
        (&text[..begin], &text[begin..begin + length], &text[begin + length..])
    });
    match split {
        Some((left, operator, right)) if !right.is_empty() => {
            Some(Filter { left: operand(left)?, test: Some((operator.to_owned(), operand(right)?)) })
        }
        _ => Some(Filter { left: operand(text)?, test: None }),
    }
}

/// Text in quotes, a number, a truth, or a path.
fn operand(text: &str) -> Option<Operand> {
    let text = text.trim_matches(' ');
    match text.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let inside = text[1..].strip_suffix(quote)?;
            Some(Operand::Literal(unquoted(inside)?.into()))
        }
        Some('+' | '-' | '0'..='9') => number(text).map(Operand::Literal),
        Some(first) if is_word(first) => Some(Operand::Literal(match text {
            "true" => true.into(),
            "false" => false.into(),
            // It compares with nothing.
            _ => Value::Null,
        })),
        _ => path(text).map(Operand::Path),
    }
}

fn number(text: &str) -> Option<Value> {
    let whole = text.parse::<i64>().map(Value::from);
    whole.or_else(|_| text.parse::<f64>().map(Value::from)).ok()
}

fn unquoted(text: &str) -> Option<String> {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                c @ ('\\' | '"' | '\'') => c,
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}
