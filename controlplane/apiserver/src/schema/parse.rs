//! JSON and YAML to `serde_json::Value`, keeping note of duplicate fields, which Kubernetes reports
//! (`duplicate field "spec.replicas"`) and resolves in favour of the last.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::ApiError;

/// Deeper documents are refused: every later step may then recurse.
const MAX_DEPTH: usize = 120;
/// Duplicates reported at most.
const MOST_DUPLICATES: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    Json,
    Yaml,
}

/// A document and the texts of its duplicate fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Parses one document. Errors are 400 with upstream's beginning.
pub fn parse(bytes: &[u8], content: ContentType) -> Result<Parsed, ApiError> {
    let quick = Watch::default();
    let value = read(bytes, content, &quick)?;
    if !quick.repeated.get() {
        return Ok(Parsed { value, duplicates: Vec::new() });
    }
    // Where they are is found out by another look.
    let watch = Watch { notes: Some(RefCell::default()), ..Watch::default() };
    let value = read(bytes, content, &watch)?;
    Ok(Parsed { value, duplicates: watch.notes.map(|notes| notes.into_inner().duplicates).unwrap_or_default() })
}

fn read(bytes: &[u8], content: ContentType, watch: &Watch) -> Result<Value, ApiError> {
    let value = match content {
        ContentType::Json => parse_json(bytes, watch),
        ContentType::Yaml => parse_yaml(bytes, watch),
    };
    value.map_err(|why| {
        ApiError::bad_request(match content {
            ContentType::Json => format!("couldn't get version/kind; json parse error: {why}"),
            ContentType::Yaml => format!("error converting YAML to JSON: yaml: {why}"),
        })
    })
}

fn parse_json(bytes: &[u8], watch: &Watch) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { watch, depth: 0 }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| super::document::syntax_error(bytes).unwrap_or_else(|| error.to_string()))
}

fn parse_yaml(bytes: &[u8], watch: &Watch) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        // YAML 1.1, as upstream reads it: the mode 0644 is no 644.
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let mut value = serde_saphyr::with_deserializer_from_str_with_options(first_document(text), options, |reader| {
        Seed { watch, depth: 0 }.deserialize(reader)
    })
    .map_err(|error| error.to_string())?;
    // Upstream makes JSON of it first: there is no `1.0` in that.
    super::numbers::canonical(&mut value);
    Ok(value)
}

/// The document that a stream of them begins with: upstream reads no further. A line that starts with a
/// marker is one wherever it stands.
fn first_document(text: &str) -> &str {
    let (mut begun, mut end) = (false, 0);
    for line in text.split_inclusive('\n') {
        let marks = |marker: &str| {
            line.strip_prefix(marker).is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace))
        };
        let starts = marks("---");
        if begun && (starts || marks("...")) {
            return &text[..end];
        }
        let content = line.trim_start();
        begun |= starts || !(content.is_empty() || content.starts_with('#') || line.starts_with('%'));
        end += line.len();
    }
    text
}

/// What is looked out for while reading.
#[derive(Default)]
struct Watch {
    /// Some field came twice.
    repeated: Cell<bool>,
    /// Which ones did, if that is asked for.
    notes: Option<RefCell<Notes>>,
}

#[derive(Default)]
struct Notes {
    path: Vec<Step>,
    duplicates: Vec<String>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl Notes {
    fn duplicate(&mut self, key: &str) {
        if self.duplicates.len() >= MOST_DUPLICATES {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Index(index) => path.push_str(&format!("[{index}]")),
                Step::Key(key) if path.is_empty() => path.push_str(key),
                Step::Key(key) => path.push_str(&format!(".{key}")),
            }
        }
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        self.duplicates.push(format!("duplicate field {path:?}"));
    }
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    watch: &'a Watch,
    depth: usize,
}

impl<'a> Seed<'a> {
    fn deeper<E: de::Error>(self) -> Result<Seed<'a>, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!("exceeded max depth of {MAX_DEPTH}")));
        }
        Ok(Seed { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that JSON cannot express"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: de::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut items = Vec::new();
        loop {
            if let Some(notes) = &self.watch.notes {
                notes.borrow_mut().path.push(Step::Index(items.len()));
            }
            let item = access.next_element_seed(seed)?;
            if let Some(notes) = &self.watch.notes {
                notes.borrow_mut().path.pop();
            }
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut members = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let Some(notes) = &self.watch.notes else {
                if members.insert(key, access.next_value_seed(seed)?).is_some() {
                    self.watch.repeated.set(true);
                }
                continue;
            };
            if members.contains_key(&key) {
                notes.borrow_mut().duplicate(&key);
            }
            // The path keeps the key until the map takes it.
            notes.borrow_mut().path.push(Step::Key(key));
            let value = access.next_value_seed(seed)?;
            if let Some(Step::Key(key)) = notes.borrow_mut().path.pop() {
                members.insert(key, value);
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_found_and_the_last_wins() {
        let parsed = parse(br#"{"spec":{"a":[{"b":1,"b":2}],"a":3},"x":1,"x":2}"#, ContentType::Json).unwrap();
        assert_eq!(parsed.value, json!({"spec": {"a": 3}, "x": 2}));
        assert_eq!(
            parsed.duplicates,
            ["duplicate field \"spec.a[0].b\"", "duplicate field \"spec.a\"", "duplicate field \"x\""]
        );
    }

    #[test]
    fn yaml_reads_as_json_would() {
        let text =
            b"kind: Pod\nspec:\n  n: 1\n  f: 1.5\n  g: 2.0\n  t: \"1\"\n  b: true\n  z: ~\n  n: 2\nl:\n- a\n- {x: w}\n";
        let parsed = parse(text, ContentType::Yaml).unwrap();
        assert_eq!(
            parsed.value,
            json!({"kind": "Pod", "spec": {"n": 2, "f": 1.5, "g": 2, "t": "1", "b": true, "z": null}, "l": ["a", {"x": "w"}]})
        );
        assert_eq!(parsed.duplicates, ["duplicate field \"spec.n\""]);
    }

    #[test]
    fn yaml_numbers_and_words_are_those_of_yaml_1_1() {
        let text = b"mode: 0644\ntop: 0\nodd: 08\nnew: 0o17\nhex: 0x1F\nminus: -010\nsum: 1_000\ntext: \"0644\"\nso: yes\nnot: Off\nday: 2026-01-02\n";
        assert_eq!(
            parse(text, ContentType::Yaml).unwrap().value,
            json!({"mode": 420, "top": 0, "odd": 8, "new": 15, "hex": 31, "minus": -8, "sum": 1000, "text": "0644",
                "so": true, "not": false, "day": "2026-01-02"})
        );
    }

    #[test]
    fn only_the_first_document_of_a_stream_is_read() {
        for text in [
            "a: 1\n---\na: 2\n",
            "# said before\n---\na: 1\n---\nb: [\n",
            "---\na: 1\n...\nb: 2\n",
            "--- {a: 1}\n---\n",
            "a: 1\r\n---\r\n",
            "a: 1\n---",
        ] {
            let parsed = parse(text.as_bytes(), ContentType::Yaml).unwrap();
            assert_eq!(parsed.value, json!({"a": 1}), "{text}");
        }
        assert_eq!(first_document("a: |\n  ---\n----\n--- # end\nb"), "a: |\n  ---\n----\n");
    }

    #[test]
    fn broken_documents_are_refused() {
        let deep = "[".repeat(500) + &"]".repeat(500);
        for (text, content, part) in [
            ("{", ContentType::Json, "couldn't get version/kind; json parse error: unexpected end of JSON input"),
            ("", ContentType::Json, "unexpected end of JSON input"),
            ("{\"a\":}", ContentType::Json, "json parse error: invalid character '}' looking for beginning of value"),
            ("{} {}", ContentType::Json, "invalid character '{' after top-level value"),
            (deep.as_str(), ContentType::Json, "json parse error"),
            (deep.as_str(), ContentType::Yaml, "error converting YAML to JSON: yaml: "),
            ("a: [", ContentType::Yaml, "error converting YAML to JSON: yaml: "),
        ] {
            let error = parse(text.as_bytes(), content).unwrap_err();
            assert!(error.message().contains(part), "{text:.20}: {}", error.message());
            assert_eq!(error.code(), 400);
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, ContentType::Json);
            let _ = parse(&bytes, ContentType::Yaml);
        }

        #[test]
        fn random_yaml_never_panics(text in "[-:{}\\[\\],a-c0-9 \n&*!|>'\"#?]{0,80}") {
            let _ = parse(text.as_bytes(), ContentType::Yaml);
        }
    }
}
