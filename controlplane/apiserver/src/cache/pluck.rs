//! Reads a few fields out of an object's JSON without building the rest of it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// A tree of field names; a leaf stands for everything below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(BTreeMap<String, Fields>);

impl Fields {
    /// `paths` are dotted, as in `spec.nodeName`. Of two paths, one inside the other, the outer counts.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut root = Self::default();
        for path in paths {
            root.add(path);
        }
        root
    }

    fn add(&mut self, path: &str) {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let known = self.0.contains_key(first);
        let inner = self.0.entry(first.to_owned()).or_default();
        match rest {
            Some(rest) if !known || !inner.0.is_empty() => inner.add(rest),
            Some(_) => {}
            None => inner.0.clear(),
        }
    }

    /// An object with these fields and no others; what is in their way (a list, a number) is left out.
    pub fn pluck(&self, json: &[u8]) -> serde_json::Result<Value> {
        let mut from = serde_json::Deserializer::from_slice(json);
        let plucked = Pluck(self).deserialize(&mut from)?;
        from.end()?;
        Ok(plucked)
    }
}

struct Pluck<'a>(&'a Fields);

impl<'de> DeserializeSeed<'de> for Pluck<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        if self.0.0.is_empty() {
            return serde::Deserialize::deserialize(from);
        }
        from.deserialize_any(self)
    }
}

/// A key, if it is a wanted one.
struct Find<'a>(&'a Fields);

impl<'a, 'de> DeserializeSeed<'de> for Find<'a> {
    type Value = Option<(&'a str, &'a Fields)>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Find<'a> {
    type Value = Option<(&'a str, &'a Fields)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.0.get_key_value(key).map(|(key, inner)| (key.as_str(), inner)))
    }
}

impl<'de> Visitor<'de> for Pluck<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut plucked = Map::new();
        while let Some(wanted) = entries.next_key_seed(Find(self.0))? {
            match wanted {
                Some((key, inner)) => {
                    let value = entries.next_value_seed(Pluck(inner))?;
                    plucked.insert(key.to_owned(), value);
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(plucked))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_plucked_and_the_rest_is_only_checked() {
        let fields = Fields::new(["metadata.labels", "spec.nodeName", "spec.deep.er", "metadata.labels.x", "kind"]);
        let object = json!({
            "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "1", "y\"": "2"}},
            "spec": {"nodeName": "n", "deep": [1, {"er": 2}], "containers": [{}]}, "status": 1.5,
        });
        let plucked = fields.pluck(object.to_string().as_bytes()).unwrap();
        let wanted = json!({
            "kind": "Pod", "metadata": {"labels": {"x": "1", "y\"": "2"}}, "spec": {"nodeName": "n", "deep": null},
        });
        assert_eq!(plucked, wanted);
        assert_eq!(fields.pluck(b"[1, {}]").unwrap(), Value::Null);
        for bad in ["{", "{\"a\": }", "{} {}", "", "{\"spec\": {\"x\": [1,}}"] {
            assert!(fields.pluck(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
