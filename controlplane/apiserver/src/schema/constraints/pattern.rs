//! The regular expression that a text must match. Compiled when the first text is checked: of the
//! thousands in a cluster's definitions most are never asked, and each takes kilobytes.

use std::sync::OnceLock;

use regex::Regex;

use crate::cel::pattern;

#[derive(Debug)]
pub struct Pattern {
    text: Box<str>,
    /// None inside: no such expression can be compiled; definitions of old may have some.
    compiled: OnceLock<Option<Box<Regex>>>,
}

impl Pattern {
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), compiled: OnceLock::new() }
    }

    /// As the schema has it.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn fits(&self, text: &str) -> bool {
        let compile = || pattern::compile(&self.text, pattern::LARGEST).ok().map(Box::new);
        self.compiled.get_or_init(compile).as_ref().is_none_or(|regex| regex.is_match(text))
    }
}
