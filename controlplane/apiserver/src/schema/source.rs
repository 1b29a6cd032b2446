//! The text of a custom resource's schema, for OpenAPI and for the types of policies. It is seldom
//! read, and a cluster's definitions hold tens of megabytes of it: it is kept deflated.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde_json::Value;
use sha2::{Digest, Sha256};

#[derive(Debug)]
pub struct Source {
    deflated: Box<[u8]>,
    digest: [u8; 32],
}

impl Source {
    pub fn new(schema: &Value) -> Self {
        let text = schema.to_string();
        let mut out = DeflateEncoder::new(Vec::new(), Compression::fast());
        // Writing to memory cannot fail.
        let _ = out.write_all(text.as_bytes());
        let deflated = out.finish().unwrap_or_default().into();
        Self { deflated, digest: Sha256::digest(text.as_bytes()).into() }
    }

    /// The schema again.
    pub fn value(&self) -> Option<Value> {
        let mut text = Vec::new();
        DeflateDecoder::new(&self.deflated[..]).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Another for another text.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_comes_back_as_it_was() {
        let schema =
            json!({"type": "object", "properties": {"a": {"type": "string", "description": "Ä".repeat(1000)}}});
        let source = Source::new(&schema);
        assert_eq!(source.value(), Some(schema.clone()));
        assert!(source.deflated.len() < 200, "{}", source.deflated.len());
        assert_eq!(source.digest(), Source::new(&schema).digest());
        assert_ne!(source.digest(), Source::new(&json!({"type": "object"})).digest());
    }
}
