//! Field selectors as text: `a=b`, `a==b`, `a!=b`, joined by commas. In values `\` escapes itself,
//! `,` and `=`.

use super::{Requirement, SelectorError};

/// The requirements of a field selector, in the order of their texts.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut terms = terms(text);
    terms.sort_unstable();
    terms.into_iter().filter(|term| !term.is_empty()).map(|term| requirement(text, term)).collect()
}

fn terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn requirement(whole: &str, term: &str) -> Result<Requirement, SelectorError> {
    let (key, value) = term.split_once('=').ok_or_else(|| SelectorError::Field(whole.to_owned(), term.to_owned()))?;
    match key.strip_suffix('!') {
        Some(key) => Ok(Requirement::NotEquals(key.to_owned(), unescape(value)?)),
        None => Ok(Requirement::Equals(key.to_owned(), unescape(value.strip_prefix('=').unwrap_or(value))?)),
    }
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let (mut plain, mut chars) = (String::with_capacity(value.len()), value.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                other => return Err(SelectorError::Escape(std::iter::once(c).chain(other).collect())),
            },
            ',' | '=' => return Err(SelectorError::Unescaped(c.into())),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use crate::selector::Selector;

    #[test]
    fn read() {
        for (text, key, value) in [
            ("a=b", "a", "b"),
            ("a==b", "a", "b"),
            ("a=", "a", ""),
            (",a=b,", "a", "b"),
            (r"a=b\,c\=d\\", "a", r"b,c=d\"),
            ("z=1,a!=x,a=b", "a", "b"),
        ] {
            assert_eq!(Selector::parse_fields(text).unwrap().exact(key), Some(value), "{text}");
        }
        let selector = Selector::parse_fields("spec.nodeName=a,status.phase!=Running").unwrap();
        assert!(selector.matches_with(|key| Some(if key == "spec.nodeName" { "a" } else { "Pending" })));
        assert!(!selector.matches_with(|key| Some(if key == "spec.nodeName" { "a" } else { "Running" })));
    }

    #[test]
    fn refused() {
        for (text, expected) in [
            ("nonsense", "invalid selector: 'nonsense'; can't understand 'nonsense'"),
            ("a=b,c", "invalid selector: 'a=b,c'; can't understand 'c'"),
            ("a>1", "invalid selector: 'a>1'; can't understand 'a>1'"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
            ("a===b", "invalid field selector: unescaped character in value: 61"),
            (r"a=b\c", r"invalid field selector: invalid escape sequence: \c"),
            (r"a=b\", r"invalid field selector: invalid escape sequence: \"),
        ] {
            assert_eq!(
                Selector::parse_fields(text).map_err(|error| error.to_string()),
                Err(expected.to_owned()),
                "{text}"
            );
        }
    }
}
