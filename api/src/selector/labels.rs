//! Label selectors as text: `labels.Parse`, with its words for what is wrong.
//!
//! ```text
//! selector    = [ requirement *( "," requirement ) ]
//! requirement = [ "!" ] key | key ( "=" | "==" | "!=" | ">" | "<" ) [ value ]
//!             | key ( "in" | "notin" ) "(" [ value ] *( "," [ value ] ) ")"
//! ```

use std::collections::BTreeSet;

use super::{Requirement, SelectorError};
use crate::field::{Error, Path};
use crate::names;

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// `=`, `==`, `!=`, `!`, `<`, `>`, `(`, `)`, `,`
    Sign(&'a str),
    /// A key, a value, or one of the operators `in` and `notin`.
    Word(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Token::Sign(text) | Token::Word(text) => text,
            Token::End => "",
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn is_sign(byte: u8) -> bool {
    b"=!(),><".contains(&byte)
}

/// The first token of `text`, and what follows it. A zero byte ends words, and the text where a token
/// would start.
fn token(text: &str) -> (Token<'_>, &str) {
    let text = text.trim_start_matches([' ', '\t', '\r', '\n']);
    let bytes = text.as_bytes();
    match bytes.first() {
        None | Some(0) => (Token::End, ""),
        Some(&byte) if is_sign(byte) => {
            let length = if text.starts_with("==") || text.starts_with("!=") { 2 } else { 1 };
            let (sign, rest) = text.split_at(length);
            (Token::Sign(sign), rest)
        }
        Some(_) => {
            let length = bytes.iter().position(|&byte| byte == 0 || is_sign(byte) || is_space(byte));
            let (word, rest) = text.split_at(length.unwrap_or(text.len()));
            (Token::Word(word), rest.strip_prefix('\0').unwrap_or(rest))
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        token(self.rest).0
    }

    fn next(&mut self) -> Token<'a> {
        let (found, rest) = token(self.rest);
        self.rest = rest;
        found
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        if self.peek() == Token::End {
            return Ok(requirements);
        }
        if !starts_requirement(self.peek()) {
            return Err(format!("found '{}', expected: !, identifier, or 'end of string'", self.peek().text()));
        }
        loop {
            requirements.push(self.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Sign(",") if starts_requirement(self.peek()) => {}
                Token::Sign(",") => {
                    return Err(format!("found '{}', expected: identifier after ','", self.peek().text()));
                }
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut first = self.next();
        let negated = first == Token::Sign("!");
        if negated {
            first = self.next();
        }
        let Token::Word(key) = first else { return Err(format!("found '{}', expected: identifier", first.text())) };
        let problems = names::qualified_name(key);
        if !problems.is_empty() {
            return Err(Error::invalid(&Path::empty(), key, problems.join("; ")).to_string());
        }
        if negated || matches!(self.peek(), Token::End | Token::Sign(",")) {
            let key = key.to_owned();
            return Ok(if negated { Requirement::DoesNotExist(key) } else { Requirement::Exists(key) });
        }
        let operator = self.next().text();
        let values = match operator {
            "in" | "notin" => self.values()?,
            "=" | "==" | "!=" | ">" | "<" => vec![self.value()?],
            other => return Err(format!("found '{other}', expected: {OPERATORS}")),
        };
        checked(key, operator, values).map_err(|error| error.to_string())
    }

    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Sign(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => Ok(value.to_owned()),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// Sorted, each once.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != Token::Sign("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut found = BTreeSet::new();
        if self.peek() == Token::Sign(")") {
            self.next();
            return Ok(vec![String::new()]);
        }
        if !matches!(self.peek(), Token::Word(_) | Token::Sign(",")) {
            return Err(format!("found '{}', expected: ',', ')' or identifier", self.peek().text()));
        }
        // A comma with nothing on one of its sides stands beside an empty value.
        loop {
            match self.next() {
                Token::Word(value) => {
                    found.insert(value);
                    match self.peek() {
                        Token::Sign(",") => {}
                        Token::Sign(")") => break,
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Sign(",") => {
                    let nothing_follows = matches!(self.peek(), Token::Sign("," | ")"));
                    if found.is_empty() || nothing_follows {
                        found.insert("");
                    }
                    if self.peek() == Token::Sign(")") {
                        break;
                    }
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
        }
        self.next();
        Ok(found.into_iter().map(str::to_owned).collect())
    }
}

fn starts_requirement(token: Token<'_>) -> bool {
    matches!(token, Token::Word(_) | Token::Sign("!"))
}

/// The requirements of a label selector, sorted by key.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut requirements = Parser { rest: text }.selector().map_err(SelectorError::Labels)?;
    requirements.sort_by(|one, other| one.key().cmp(other.key()));
    Ok(requirements)
}

/// `labels.NewRequirement`: a requirement whose key and values labels could have. `operator` is one
/// of `in`, `notin`, `exists`, `!`, `=`, `==`, `!=`, `>`, `<`.
pub(super) fn checked(key: &str, operator: &str, values: Vec<String>) -> Result<Requirement, SelectorError> {
    let mut errors = Vec::new();
    let (key_path, values_path) = (Path::root("key"), Path::root("values"));
    let problems = names::qualified_name(key);
    if !problems.is_empty() {
        errors.push(Error::invalid(&key_path, key, problems.join("; ")));
    }
    let fault = match operator {
        "in" | "notin" if values.is_empty() => Some("for 'in', 'notin' operators, values set can't be empty"),
        "exists" | "!" if !values.is_empty() => Some("values set must be empty for exists and does not exist"),
        _ => None,
    };
    if let Some(fault) = fault {
        errors.push(Error::invalid(&values_path, values.clone(), fault));
    }
    let mut bound = 0;
    if matches!(operator, ">" | "<") {
        match values.first().map(|value| value.parse()) {
            Some(Ok(number)) => bound = number,
            _ => {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(Error::invalid(&values_path.index(0), values.concat(), detail));
            }
        }
    }
    for (index, value) in values.iter().enumerate() {
        let problems = names::label_value(value);
        if !problems.is_empty() {
            let path = values_path.index(index).key(key);
            errors.push(Error::invalid(&path, value.as_str(), problems.join("; ")));
        }
    }
    if !errors.is_empty() {
        return Err(SelectorError::Labels(crate::field::join(&errors)));
    }
    let (key, single) = (key.to_owned(), values.first().cloned().unwrap_or_default());
    Ok(match operator {
        "in" => Requirement::In(key, values),
        "notin" => Requirement::NotIn(key, values),
        "exists" => Requirement::Exists(key),
        "!" => Requirement::DoesNotExist(key),
        ">" => Requirement::GreaterThan(key, bound),
        "<" => Requirement::LessThan(key, bound),
        "!=" => Requirement::NotEquals(key, single),
        _ => Requirement::Equals(key, single),
    })
}

#[cfg(test)]
mod tests {
    use crate::selector::Selector;

    const KEY: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

    #[test]
    fn read_and_written() {
        for (text, written) in [
            ("", ""),
            (" \t\r\n", ""),
            ("x=a,y=b", "x=a,y=b"),
            ("y==b , x != a", "x!=a,y=b"),
            ("x=", "x="),
            ("x= ,z= ", "x=,z="),
            ("z,!x", "!x,z"),
            ("! x", "!x"),
            ("x>1,z<5", "x>1,z<5"),
            ("x in (b,a,b),y notin(c)", "x in (a,b),y notin (c)"),
            ("x in ()", "x in ()"),
            ("x in (a,,b)", "x in (,a,b)"),
            ("x in (,a)", "x in (,a)"),
            ("x in (a,)", "x in (,a)"),
            ("x in (,)", "x in ()"),
            ("x notin (in,notin)", "x notin (in,notin)"),
            ("in=notin", "in=notin"),
            ("notin in (in)", "notin in (in)"),
            ("a.example/b=c", "a.example/b=c"),
            ("x\0,y", "x,y"),
            ("x \0,y", "x"),
        ] {
            assert_eq!(
                Selector::parse_labels(text).map(|selector| selector.to_string()),
                Ok(written.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn refused() {
        let requirement = |why: &str| format!("unable to parse requirement: {why}");
        let operators = |found: &str| requirement(&format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt"));
        for (text, expected) in [
            (",", "found ',', expected: !, identifier, or 'end of string'".to_owned()),
            ("=a", "found '=', expected: !, identifier, or 'end of string'".to_owned()),
            ("(a", "found '(', expected: !, identifier, or 'end of string'".to_owned()),
            ("x,", "found '', expected: identifier after ','".to_owned()),
            ("x,,y", "found ',', expected: identifier after ','".to_owned()),
            ("x=a=b", "found '=', expected: ',' or 'end of string'".to_owned()),
            ("x==a==b", "found '==', expected: ',' or 'end of string'".to_owned()),
            ("x=a b", "found 'b', expected: ',' or 'end of string'".to_owned()),
            ("x in (a) b", "found 'b', expected: ',' or 'end of string'".to_owned()),
            ("x y", operators("y")),
            ("x!y", operators("!")),
            ("x)", operators(")")),
            ("x gt 1", operators("gt")),
            ("!", requirement("found '', expected: identifier")),
            ("!!x", requirement("found '!', expected: identifier")),
            ("!x=a", "found '=', expected: ',' or 'end of string'".to_owned()),
            ("x=!", requirement("found '!', expected: identifier")),
            ("x=(a)", requirement("found '(', expected: identifier")),
            (
                "x>",
                requirement(&format!(
                    "values[0]: Invalid value: \"\": {}",
                    "for 'Gt', 'Lt' operators, the value must be an integer"
                )),
            ),
            (
                "x<a",
                requirement(&format!(
                    "values[0]: Invalid value: \"a\": {}",
                    "for 'Gt', 'Lt' operators, the value must be an integer"
                )),
            ),
            ("x>-1", requirement(&format!("values[0][x]: Invalid value: \"-1\": {VALUE}"))),
            ("x in a", requirement("found 'a' expected: '('")),
            ("x in", requirement("found '' expected: '('")),
            ("x in (", requirement("found '', expected: ',', ')' or identifier")),
            ("x in (=", requirement("found '=', expected: ',', ')' or identifier")),
            ("x in (a", requirement("found '', expected: ',' or ')'")),
            ("x in (a b)", requirement("found 'b', expected: ',' or ')'")),
            ("x in (a,=)", requirement("found '=', expected: ',', or identifier")),
            ("x in (a,", requirement("found '', expected: ',', or identifier")),
            ("-x", requirement(&format!("<nil>: Invalid value: \"-x\": name part {KEY}"))),
            ("/x=a", requirement("<nil>: Invalid value: \"/x\": prefix part must be non-empty")),
            ("x=a||y=b", requirement(&format!("values[0][x]: Invalid value: \"a||y\": {VALUE}"))),
            (
                "x in (-a,-b)",
                requirement(&format!(
                    "[values[0][x]: Invalid value: \"-a\": {VALUE}, values[1][x]: Invalid value: \"-b\": {VALUE}]"
                )),
            ),
        ] {
            assert_eq!(Selector::parse_labels(text).map_err(|error| error.to_string()), Err(expected), "{text}");
        }
    }
}
