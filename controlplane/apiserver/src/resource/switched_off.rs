//! Fields of features that Kubernetes v1.37 has off (alpha, or beta and off): dropped from what is written,
//! unless the object used the feature before, as upstream's `DropDisabledFields` do.

use serde_json::{Map, Value};

/// The fields of one feature. In their paths `*` stands for every item of a list or entry of a map; a part
/// that ends in `?` goes with the last of its fields.
pub type Feature = &'static [&'static str];

/// Features of a kind.
#[derive(Clone, Copy, Default)]
pub struct SwitchedOff {
    /// Where in the object their paths begin; the object itself when empty.
    pub at: &'static str,
    pub features: &'static [Feature],
}

impl SwitchedOff {
    pub fn drop_from(&self, new: &mut Value, old: Option<&Value>) {
        let old = old.map(|old| self.part_of(old));
        let mut parts = self.at.split('.').filter(|part| !part.is_empty());
        let Some(new) = parts.try_fold(new, |at, part| at.get_mut(part)) else { return };
        for feature in self.features {
            let used = |old: &Value| feature.iter().any(|path| is_there(old, path));
            if !old.is_some_and(used) {
                feature.iter().for_each(|path| remove(new, path));
            }
        }
    }

    fn part_of<'a>(&self, object: &'a Value) -> &'a Value {
        self.at.split('.').filter(|part| !part.is_empty()).fold(object, |at, part| &at[part])
    }
}

/// The first part of a path, and what follows it.
fn split(path: &str) -> (&str, &str) {
    path.split_once('.').unwrap_or((path, ""))
}

fn is_there(value: &Value, path: &str) -> bool {
    if path.is_empty() {
        return !value.is_null();
    }
    match (split(path), value) {
        (("*", rest), Value::Array(items)) => items.iter().any(|item| is_there(item, rest)),
        (("*", rest), Value::Object(entries)) => entries.values().any(|entry| is_there(entry, rest)),
        ((part, rest), value) => is_there(&value[part.trim_end_matches('?')], rest),
    }
}

fn remove(value: &mut Value, path: &str) {
    match (split(path), value) {
        (("*", rest), Value::Array(items)) => items.iter_mut().for_each(|item| remove(item, rest)),
        (("*", rest), Value::Object(entries)) => entries.values_mut().for_each(|entry| remove(entry, rest)),
        ((last, ""), Value::Object(entries)) => drop(entries.remove(last)),
        ((part, rest), Value::Object(entries)) => {
            let name = part.trim_end_matches('?');
            if let Some(inner) = entries.get_mut(name) {
                remove(inner, rest);
            }
            let is_empty = |inner: &Value| inner.as_object().is_some_and(Map::is_empty);
            if name != part && entries.get(name).is_some_and(is_empty) {
                entries.remove(name);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OFF: SwitchedOff = SwitchedOff { at: "spec", features: &[&["a.*.b?.c", "d"], &["m.*.e"]] };

    #[test]
    fn fields_go_unless_their_feature_was_used() {
        let given = json!({"spec": {"a": [{"b": {"c": 1}}, {"b": {"c": 1, "x": 2}}, {}], "d": 1, "m": {"k": {"e": 1}, "l": 2}}});
        for (old, expected) in [
            (Value::Null, json!({"a": [{}, {"b": {"x": 2}}, {}], "m": {"k": {}, "l": 2}})),
            (
                json!({"spec": {"d": 3}}),
                json!({"a": [{"b": {"c": 1}}, {"b": {"c": 1, "x": 2}}, {}], "d": 1, "m": {"k": {}, "l": 2}}),
            ),
            (
                json!({"spec": {"m": {"z": {"e": 0}}}}),
                json!({"a": [{}, {"b": {"x": 2}}, {}], "m": {"k": {"e": 1}, "l": 2}}),
            ),
        ] {
            let mut new = given.clone();
            OFF.drop_from(&mut new, Some(&old).filter(|old| !old.is_null()));
            assert_eq!(new["spec"], expected, "{old}");
        }
    }

    #[test]
    fn what_is_of_another_shape_is_left() {
        for given in [
            json!({}),
            json!({"spec": null}),
            json!({"spec": {"a": 1, "m": [1, "x"]}}),
            json!({"spec": {"a": {"k": 1}}}),
        ] {
            let mut new = given.clone();
            OFF.drop_from(&mut new, None);
            assert_eq!(new, given);
        }
    }
}
