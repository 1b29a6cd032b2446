//! Sets of fields, as `managedFields` records them (`FieldsV1`).
//!
//! A set is a trie. Its keys are path elements in their `FieldsV1` spelling: `f:<name>` for a field
//! or map key, `k:{"name":"a"}` for an item of a list by its keys, `v:<value>` for an item of a set,
//! `i:<index>`. `"."` in the JSON form marks an inner node that belongs to the set itself.
//!
//! ```text
//! {"f:metadata":{"f:labels":{".":{},"f:app":{}}}}   →   .metadata.labels, .metadata.labels.app
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;

use serde_json::{Map, Value};
use smallvec::SmallVec;

/// Deeper `FieldsV1` documents are refused.
const MAX_DEPTH: usize = 120;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    entries: BTreeMap<String, Entry>,
}

/// What a set says of one path and what is below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub member: bool,
    pub children: FieldSet,
}

impl Entry {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

impl IntoIterator for FieldSet {
    type Item = (String, Entry);
    type IntoIter = std::collections::btree_map::IntoIter<String, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

/// Does something with the key of a field. Names are short: it needs no memory of its own.
fn with_key<T>(name: &str, act: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let mut key = SmallVec::<[u8; 64]>::from_slice(b"f:");
    key.extend_from_slice(name.as_bytes());
    // Made of strings.
    act(std::str::from_utf8(&key).ok()?)
}

impl FieldSet {
    pub const fn new() -> Self {
        Self { entries: BTreeMap::new() }
    }

    /// What is said of a field, by its name.
    pub fn field(&self, name: &str) -> Option<&Entry> {
        if self.is_empty() {
            return None;
        }
        with_key(name, |key| self.entries.get(key))
    }

    /// Takes a field out, but not what is below it.
    pub fn disown(&mut self, name: &str) {
        with_key(name, |key| {
            let entry = self.entries.get_mut(key)?;
            entry.member = false;
            if entry.is_empty() { self.entries.remove(key) } else { None }
        });
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(key, entry)| (key.as_str(), entry))
    }

    /// Puts an entry in its place; empty ones are left out.
    pub fn put(&mut self, key: String, entry: Entry) {
        if entry.is_empty() {
            return;
        }
        match self.entries.entry(key) {
            Place::Vacant(place) => {
                place.insert(entry);
            }
            Place::Occupied(mut known) => {
                let known = known.get_mut();
                known.member |= entry.member;
                known.children.absorb(entry.children);
            }
        }
    }

    fn absorb(&mut self, other: FieldSet) {
        if self.is_empty() {
            *self = other;
        } else {
            other.entries.into_iter().for_each(|(key, entry)| self.put(key, entry));
        }
    }

    /// Adds a path of field names.
    pub fn insert_fields(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        let entry = self.entries.entry(format!("f:{first}")).or_default();
        if rest.is_empty() {
            entry.member = true;
        } else {
            entry.children.insert_fields(rest);
        }
    }

    #[must_use]
    pub fn union(mut self, other: FieldSet) -> FieldSet {
        self.absorb(other);
        self
    }

    /// The paths of `self` that are at one of these places or below it; `*` is every item of a list.
    #[must_use]
    pub fn within(self, places: &[&[&str]]) -> FieldSet {
        let mut kept = FieldSet::default();
        for (key, entry) in self {
            let fits = |part: &str| part == "*" || key.strip_prefix("f:") == Some(part);
            let below: Vec<&[&str]> = places
                .iter()
                .filter_map(|place| place.split_first().filter(|(first, _)| fits(first)).map(|(_, rest)| rest))
                .collect();
            let entry = match below.iter().any(|rest| rest.is_empty()) {
                true => entry,
                false => Entry { member: false, children: entry.children.within(&below) },
            };
            kept.put(key, entry);
        }
        kept
    }

    /// The paths of `self` that `other` does not have.
    #[must_use]
    pub fn difference(self, other: &FieldSet) -> FieldSet {
        self.filtered(other, |ours, theirs| Entry {
            member: ours.member && !theirs.member,
            children: ours.children.difference(&theirs.children),
        })
    }

    /// As `difference`, and what is below a path of `other` goes with it.
    #[must_use]
    pub fn recursive_difference(self, other: &FieldSet) -> FieldSet {
        self.filtered(other, |ours, theirs| {
            if theirs.member {
                return Entry::default();
            }
            Entry { member: ours.member, children: ours.children.recursive_difference(&theirs.children) }
        })
    }

    fn filtered(mut self, other: &FieldSet, keep: impl Fn(Entry, &Entry) -> Entry) -> FieldSet {
        if !other.is_empty() {
            self.entries.retain(|key, ours| {
                if let Some(theirs) = other.entries.get(key) {
                    *ours = keep(std::mem::take(ours), theirs);
                }
                !ours.is_empty()
            });
        }
        self
    }

    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let entries = self.entries.iter().filter_map(|(key, ours)| {
            let theirs = other.entries.get(key)?;
            let entry =
                Entry { member: ours.member && theirs.member, children: ours.children.intersection(&theirs.children) };
            (!entry.is_empty()).then(|| (key.clone(), entry))
        });
        FieldSet { entries: entries.collect() }
    }

    /// Every path of the set, as messages show it: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths(&mut String::new(), &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &mut String, paths: &mut Vec<String>) {
        for (key, entry) in &self.entries {
            let length = prefix.len();
            prefix.push_str(&shown(key));
            if entry.member {
                paths.push(prefix.clone());
            }
            entry.children.collect_paths(prefix, paths);
            prefix.truncate(length);
        }
    }

    pub fn into_json(self) -> Value {
        Value::Object(self.into_map())
    }

    fn into_map(self) -> Map<String, Value> {
        let mut members = Map::new();
        for (key, entry) in self.entries {
            let mut inner = entry.children.into_map();
            if entry.member && !inner.is_empty() {
                inner.insert(".".to_owned(), Value::Object(Map::new()));
            }
            members.insert(key, Value::Object(inner));
        }
        members
    }

    /// Reads `FieldsV1`; `None` when it is malformed.
    pub fn from_json(json: &Value) -> Option<FieldSet> {
        Self::read(json, 0)
    }

    fn read(json: &Value, depth: usize) -> Option<FieldSet> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut set = FieldSet::default();
        for (key, inner) in json.as_object()? {
            if key == "." {
                continue;
            }
            let children = Self::read(inner, depth + 1)?;
            let member = children.is_empty() || inner.get(".").is_some();
            set.put(canonical(key)?, Entry { member, children });
        }
        Some(set)
    }
}

/// `f:<name>`
pub fn field_key(name: &str) -> String {
    ["f:", name].concat()
}

/// `v:<value>`
pub fn value_key(value: &Value) -> String {
    format!("v:{value}")
}

/// `k:{<names and values>}`, by name.
pub fn item_key(keys: BTreeMap<&str, Value>) -> String {
    let members: Vec<String> = keys.into_iter().map(|(name, value)| format!("{}:{value}", Value::from(name))).collect();
    format!("k:{{{}}}", members.join(","))
}

/// One spelling for each path element.
fn canonical(key: &str) -> Option<String> {
    let (kind, rest) = key.split_once(':')?;
    match kind {
        "f" => Some(key.to_owned()),
        "i" => rest.parse::<u64>().ok().map(|_| key.to_owned()),
        "v" => serde_json::from_str::<Value>(rest).ok().map(|value| value_key(&value)),
        "k" => {
            let Ok(Value::Object(members)) = serde_json::from_str(rest) else { return None };
            Some(item_key(members.iter().map(|(name, value)| (name.as_str(), value.clone())).collect()))
        }
        _ => None,
    }
}

fn shown(key: &str) -> String {
    let (kind, rest) = key.split_once(':').unwrap_or(("f", key));
    match kind {
        "f" => format!(".{rest}"),
        "v" => format!("[={rest}]"),
        "k" => match serde_json::from_str(rest) {
            Ok(Value::Object(members)) => {
                let parts: Vec<String> = members.iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("[{}]", parts.join(","))
            }
            _ => format!("[{rest}]"),
        },
        _ => format!("[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn fields_are_read_and_written() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {"f:ports": {"k:{\"protocol\":\"TCP\",\"containerPort\":80}": {".": {}, "f:name": {}}}}});
        let set = FieldSet::from_json(&fields).unwrap();
        assert_eq!(
            set.paths(),
            [
                ".metadata.finalizers[=\"x\"]",
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.ports[containerPort=80,protocol=\"TCP\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"].name",
            ]
        );
        assert_eq!(FieldSet::from_json(&set.clone().into_json()), Some(set));
        for bad in [json!({"x:a": {}}), json!({"k:[]": {}}), json!({"f:a": 1}), json!([]), json!({"v:{": {}})] {
            assert_eq!(FieldSet::from_json(&bad), None, "{bad}");
        }
    }

    fn sets() -> impl Strategy<Value = FieldSet> {
        proptest::collection::vec(proptest::collection::vec("[a-c]", 1..4), 0..6).prop_map(|paths| {
            let mut set = FieldSet::default();
            for path in &paths {
                set.insert_fields(&path.iter().map(String::as_str).collect::<Vec<_>>());
            }
            set
        })
    }

    proptest! {
        #[test]
        fn set_algebra_holds(a in sets(), b in sets()) {
            let both = a.intersection(&b);
            prop_assert_eq!(a.clone().difference(&b).union(both), a.clone());
            prop_assert!(a.clone().difference(&b).intersection(&b).is_empty());
            prop_assert_eq!(a.clone().union(b.clone()), b.union(a.clone()));
            prop_assert_eq!(FieldSet::from_json(&a.clone().into_json()), Some(a));
        }

        #[test]
        fn random_fields_never_panic(text in "[fkvi:.{}\"a,0-9]{0,30}") {
            let _ = FieldSet::from_json(&json!({text: {}}));
        }
    }
}
