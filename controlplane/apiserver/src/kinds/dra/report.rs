//! What validation of this group finds. Rules that Kubernetes declares beside the types speak last
//! and in words of their own, so they are kept apart from those written by hand.

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::Value;

use crate::kinds::check::Node;

#[derive(Default)]
pub struct Report {
    pub said: ErrorList,
    pub declared: ErrorList,
}

impl Report {
    pub fn errors(mut self) -> ErrorList {
        self.said.append(&mut self.declared);
        self.said
    }

    /// The items of a list that may not be longer than `most`: none, and an error, when it is.
    pub fn limited<'a>(&mut self, owner: &Node<'a>, field: &str, most: usize) -> Vec<Node<'a>> {
        let items = owner.items(field);
        if items.len() <= most {
            return items;
        }
        self.declared.push(Error::too_many(&owner.child(field).path, items.len(), most));
        Vec::new()
    }

    /// As [`Report::limited`], of items that differ in `keys` (none: as a whole).
    pub fn unique<'a>(&mut self, owner: &Node<'a>, field: &str, most: usize, keys: &[&str]) -> Vec<Node<'a>> {
        let items = self.limited(owner, field, most);
        let key = |item: &Node<'a>| -> Vec<&'a Value> {
            if keys.is_empty() { vec![item.value] } else { keys.iter().map(|key| item.child(key).value).collect() }
        };
        let all: Vec<_> = items.iter().map(key).collect();
        for (index, item) in items.iter().enumerate() {
            if all[..index].contains(&all[index]) {
                self.declared.push(Error::duplicate(&item.path, item.value.clone()));
            }
        }
        items
    }

    /// A required string of a format of `api::names`.
    pub fn required_format(&mut self, node: &Node<'_>, check: fn(&str) -> Vec<String>) {
        if node.required(&mut self.declared, "") {
            node.format(&mut self.declared, check);
        }
    }

    /// One of the values, where the field may be left out.
    pub fn one_of(&mut self, node: &Node<'_>, allowed: &[&str]) {
        if !node.text().is_empty() {
            node.one_of(&mut self.declared, allowed);
        }
    }

    pub fn max_bytes(&mut self, node: &Node<'_>, most: usize) {
        if node.text().len() > most {
            self.declared.push(Error::too_long(&node.path, most));
        }
    }

    /// The name of a driver where that is declared.
    pub fn driver(&mut self, name: &Node<'_>) {
        if !name.required(&mut self.declared, "") {
            return;
        }
        for problem in names::dns1123_subdomain(&name.text().to_lowercase()) {
            name.invalid_text(&mut self.declared, problem);
        }
        if name.text().chars().count() > 63 {
            self.declared.push(Error::too_many_characters(&name.path, 63));
        }
    }

    /// The name of a pool where that is declared.
    pub fn pool(&mut self, name: &Node<'_>) {
        if !name.required(&mut self.declared, "") {
            return;
        }
        self.max_bytes(name, 253);
        for (index, part) in name.text().split('/').enumerate() {
            if part.is_empty() {
                name.invalid(&mut self.declared, format!("segment {index}: must not be empty"));
                continue;
            }
            for problem in names::dns1123_subdomain(part) {
                let detail = format!("segment {index}: {problem}");
                self.declared.push(Error::invalid(&name.path, part, detail));
            }
        }
    }

    pub fn uid(&mut self, uid: &Node<'_>) {
        if uid.exists() && !is_uid(uid.text()) {
            uid.invalid_text(&mut self.declared, "must be a lowercase UUID in 8-4-4-4-12 format");
        }
    }

    /// `domain/name` of an attribute, where that is declared.
    pub fn full_name(&mut self, name: &Node<'_>) {
        match name.text().split('/').collect::<Vec<_>>().as_slice() {
            [id] => {
                identifier(id, &name.path, &mut self.declared);
                name.invalid_text(&mut self.declared, NOT_FULL);
            }
            [domain, id] => {
                let mut wrong = |value: &str, detail: String| {
                    self.declared.push(Error::invalid(&name.path, value, detail));
                };
                if domain.is_empty() {
                    wrong("", "prefix must not be empty".to_owned());
                } else {
                    names::dns1123_subdomain(domain).into_iter().for_each(|p| wrong(domain, format!("prefix: {p}")));
                }
                if id.is_empty() {
                    wrong("", "name must not be empty".to_owned());
                } else {
                    identifier(id, &name.path, &mut self.declared);
                }
                if domain.len() > 63 {
                    self.declared.push(Error::too_long(&name.path, 63));
                }
            }
            _ => name.invalid_text(&mut self.said, MANY_SLASHES),
        }
    }
}

pub const NOT_FULL: &str = "a fully qualified name must be a domain and a name separated by a slash";
pub const MANY_SLASHES: &str = "must not contain more than one slash";

/// A C identifier of at most 32 characters.
pub fn identifier(id: &str, path: &Path, errors: &mut ErrorList) {
    if id.len() > 32 {
        errors.push(Error::too_long(path, 32));
    }
    let mut bytes = id.bytes();
    let starts = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
    if !starts || !bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        errors.push(Error::invalid(path, id, "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')"));
    }
}

/// `name`, or `domain/name`.
pub fn qualified_name(name: &str, path: &Path, errors: &mut ErrorList) {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [id] => identifier(id, path, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.push(Error::invalid(path, "", "the domain must not be empty"));
            } else {
                let value = Value::from(*domain);
                crate::kinds::core::pod::remote::csi_driver_name(&Node::new(&value, path.clone()), errors);
            }
            if id.is_empty() {
                errors.push(Error::invalid(path, "", "the name must not be empty"));
            } else {
                identifier(id, path, errors);
            }
        }
        _ => errors.push(Error::invalid(path, name, MANY_SLASHES)),
    }
}

/// Segments of a subdomain each, 253 characters in all.
pub fn pool_name(name: &Node<'_>, errors: &mut ErrorList) {
    if !name.required(errors, "") {
        return;
    }
    if name.text().len() > 253 {
        errors.push(Error::too_long(&name.path, 253));
    }
    for part in name.text().split('/') {
        for problem in names::dns1123_subdomain(part) {
            errors.push(Error::invalid(&name.path, part, problem));
        }
    }
}

fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn names_are_checked() {
        let c = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
        for (name, declared, written) in [
            ("d.example/a_1", "[]".to_owned(), "[]".to_owned()),
            ("a", format!("x: Invalid value: \"a\": {NOT_FULL}"), "[]".to_owned()),
            ("d/1", format!("x: Invalid value: \"1\": {c}"), format!("x: Invalid value: \"1\": {c}")),
            ("/", "[x: Invalid value: \"\": prefix must not be empty, x: Invalid value: \"\": name must not be empty]".to_owned(),
                "[x: Invalid value: \"\": the domain must not be empty, x: Invalid value: \"\": the name must not be empty]".to_owned()),
            ("a/b/c", format!("x: Invalid value: \"a/b/c\": {MANY_SLASHES}"), format!("x: Invalid value: \"a/b/c\": {MANY_SLASHES}")),
        ] {
            let (object, mut report, mut errors) = (json!({ "x": name }), Report::default(), ErrorList::new());
            let node = Node::root(&object).child("x");
            report.full_name(&node);
            qualified_name(name, &node.path, &mut errors);
            assert_eq!((join(&report.errors()), join(&errors)), (declared, written), "{name}");
        }
        for (uid, fits) in [
            ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", true),
            ("6BA7B810-9dad-11d1-80b4-00c04fd430c8", false),
            ("x", false),
        ] {
            assert_eq!(is_uid(uid), fits, "{uid}");
        }
    }

    #[test]
    fn pools_and_drivers() {
        let (object, mut report) =
            (json!({"pool": "a//b", "driver": format!("{}.example", "d".repeat(60))}), Report::default());
        report.pool(&Node::root(&object).child("pool"));
        report.driver(&Node::root(&object).child("driver"));
        report.driver(&Node::root(&object).child("none"));
        assert_eq!(
            join(&report.errors()),
            "[pool: Invalid value: \"a//b\": segment 1: must not be empty, driver: Too long: may not be more than 63 characters, none: Required value]"
        );
    }
}
