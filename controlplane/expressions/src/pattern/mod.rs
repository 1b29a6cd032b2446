//! Regular expressions as Go reads them (RE2), for schemas of custom resources and for CEL.
//!
//! The `regex` crate descends from RE2 and differs in details that patterns in the world do use:
//! [`translate`] rewrites those, [`words`] says what is wrong with a pattern as Go would.

mod translate;
mod words;

use regex::{Regex, RegexBuilder};

/// The most that one compiled pattern of a schema may take, in bytes.
pub const LARGEST: usize = 10 << 20;

/// Compiles a pattern to no more than `largest` bytes. `Err` is what Go would say, from
/// `error parsing regexp: ` on.
pub fn compile(pattern: &str, largest: usize) -> Result<Regex, String> {
    let translated = translate::translated(pattern).map_err(|why| format!("error parsing regexp: {why}"))?;
    RegexBuilder::new(&translated).size_limit(largest).build().map_err(|error| {
        // What is told about the pattern itself has its places right.
        let error = Regex::new(pattern).err().unwrap_or(error);
        words::in_gos_words(pattern, &error.to_string())
    })
}
