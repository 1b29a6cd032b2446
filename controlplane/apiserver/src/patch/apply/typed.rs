//! Values walked together with their schema (`sigs.k8s.io/structured-merge-diff/typed`): which
//! fields a configuration names, how two objects differ, how a configuration merges into a live
//! object, and how fields are taken out again.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::fieldset::{Entry, FieldSet, field_key, item_key, value_key};
use super::versions::Ignored;
use crate::patch::shown::{go_syntax, go_text, go_type};
use crate::resource::Paths;
use crate::schema::{Expected, Node, Topology};

/// The keys of a list's items, or `None` for an item that has none of them, nor a default.
fn keys_of(node: Node<'_>, topology: &Topology<'_>, items: &[Value]) -> Vec<Option<String>> {
    items
        .iter()
        .map(|item| match topology {
            Topology::Set => Some(value_key(item)),
            Topology::ListMap(keys) => key_of(node, keys, item),
            _ => None,
        })
        .collect()
}

/// A key that an item lacks, and that has no default, is no part of what the item is known by.
fn key_of(node: Node<'_>, keys: &[&str], item: &Value) -> Option<String> {
    let default = |key: &str| node.item().member(key).and_then(Node::default_value);
    let held = keys.iter().filter_map(|key| Some((*key, item.get(key).cloned().or_else(|| default(key))?)));
    let parts: BTreeMap<&str, Value> = held.collect();
    (!parts.is_empty()).then(|| item_key(parts))
}

/// Items that cannot be told apart by keys go by their place.
fn or_index(key: Option<String>, index: usize) -> String {
    key.unwrap_or_else(|| format!("i:{index}"))
}

/// What `value` is a list of, for merging: `None` when it is no list that merges.
fn list_topology<'a>(node: Node<'a>, value: &Value) -> Option<Topology<'a>> {
    match node.topology(value) {
        topology @ (Topology::Set | Topology::ListMap(_)) if value.is_array() => Some(topology),
        _ => None,
    }
}

fn is_granular(node: Node<'_>, value: &Value) -> bool {
    value.is_object() && node.topology(value) == Topology::Granular
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(members)) => members.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        _ => false,
    }
}

/// The fields that a configuration names.
pub fn fields_of(node: Node<'_>, value: &Value) -> Entry {
    let mut children = FieldSet::default();
    match value {
        Value::Object(members) if is_granular(node, value) => {
            for (name, value) in members {
                let inner = node.member(name).unwrap_or(Node::Untyped);
                let mut entry = fields_of(inner, value);
                let bare = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                entry.member |= bare || !node.names(name);
                children.put(field_key(name), entry);
            }
        }
        Value::Array(items) => match list_topology(node, value) {
            Some(topology) => {
                for (index, (item, key)) in items.iter().zip(keys_of(node, &topology, items)).enumerate() {
                    let mut entry = fields_of(node.item(), item);
                    entry.member = true;
                    children.put(or_index(key, index), entry);
                }
            }
            None => return Entry { member: true, children },
        },
        _ => return Entry { member: true, children },
    }
    Entry { member: false, children }
}

/// Problems that are told, at most: each with a path that may be as long as the configuration.
const MOST_PROBLEMS: usize = 100;

/// Problems of a configuration that merging cannot express, in upstream's words.
pub fn check(node: Node<'_>, value: &Value, path: &str, problems: &mut Vec<String>) {
    check_at(node, value, &mut path.to_owned(), problems);
}

fn check_at(node: Node<'_>, value: &Value, path: &mut String, problems: &mut Vec<String>) {
    if problems.len() >= MOST_PROBLEMS {
        return;
    }
    let length = path.len();
    if let Some(problem) = mistyped(node.expected(), value) {
        let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
        problems.push(format!("{path}{problem}"));
        return;
    }
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match node.member(name) {
                    Some(node) => {
                        path.push('.');
                        path.push_str(name);
                        check_at(node, value, path, problems);
                        path.truncate(length);
                    }
                    None if problems.len() < MOST_PROBLEMS => {
                        problems.push(format!("{path}.{name}: field not declared in schema"));
                    }
                    None => return,
                }
            }
        }
        Value::Array(items) => {
            let Some(topology) = list_topology(node, value) else {
                for (index, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{index}]"));
                    check_at(node.item(), item, path, problems);
                    path.truncate(length);
                }
                return;
            };
            let mut seen = HashSet::new();
            for (index, item) in items.iter().enumerate() {
                // Without a place there is nothing to say of what is in it, nor of what follows.
                let key = match place_in(node, &topology, item) {
                    Ok(key) => key,
                    Err(why) => return problems.push(format!("{path}: element {index}: {why}")),
                };
                let step = shown_key(&key);
                if !seen.insert(key) && problems.len() < MOST_PROBLEMS {
                    problems.push(format!("{path}: duplicate entries for key {step}"));
                }
                path.push_str(&step);
                check_at(node.item(), item, path, problems);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// A key as paths show it: `[name="a"]`.
fn shown_key(key: &str) -> String {
    let mut set = FieldSet::default();
    set.put(key.to_owned(), Entry { member: true, children: FieldSet::default() });
    set.paths().pop().unwrap_or_default()
}

/// What an item of a set or of a list of maps is known by.
fn place_in(node: Node<'_>, topology: &Topology<'_>, item: &Value) -> Result<String, String> {
    let Topology::ListMap(keys) = topology else {
        return match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
            value => Ok(value_key(value)),
        };
    };
    match item {
        Value::Null => Err("associative list with keys may not have a null element".to_owned()),
        Value::Object(_) => key_of(node, keys, item).ok_or_else(|| {
            let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
            let keys = keys.join(" ");
            format!("associative list with keys has an element that omits all key fields [{keys}] (and doesn't have default values for any key fields)")
        }),
        _ => Err("associative list with keys may not have non-map elements".to_owned()),
    }
}

/// What is wrong with a value's type. Values are shown as Go prints the wrapper that they are in.
fn mistyped(expected: Expected, value: &Value) -> Option<String> {
    let text = match (expected, value) {
        (_, Value::Null) | (Expected::Anything, _) => return None,
        (Expected::Map, Value::Object(_)) | (Expected::List, Value::Array(_)) => return None,
        (Expected::Numeric, Value::Number(_)) | (Expected::String, Value::String(_)) => return None,
        (Expected::Boolean, Value::Bool(_)) => return None,
        (Expected::Map, value) => format!("expected map, got &{{{}}}", go_text(value)),
        (Expected::List, value) => format!("expected list, got &{{{}}}", go_text(value)),
        (Expected::Numeric, value) => format!("expected numeric (int or float), got {}", go_type(value)),
        (Expected::String, value) => {
            format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(value))
        }
        (Expected::Boolean, value) => format!("expected boolean, got &{{{}}}", go_text(value)),
    };
    Some(text)
}

/// How two objects differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Difference {
    /// What is new, or has another value.
    pub fn changed(&self) -> FieldSet {
        self.added.clone().union(self.modified.clone())
    }

    fn within(self, places: Paths) -> Difference {
        let Difference { added, modified, removed } = self;
        Difference { added: added.within(places), modified: modified.within(places), removed: removed.within(places) }
    }
}

#[derive(Default)]
struct Step {
    added: Entry,
    modified: Entry,
    removed: Entry,
}

/// How an object changed, but for fields that are `ignored`.
pub fn compare(node: Node<'_>, old: &Value, new: &Value, ignored: &Ignored) -> Difference {
    let step = compare_at(node, Some(old), Some(new), &ignored.fields);
    let difference =
        Difference { added: step.added.children, modified: step.modified.children, removed: step.removed.children };
    match ignored.only {
        None => difference,
        Some(places) => difference.within(places),
    }
}

/// Of no field.
static NONE: FieldSet = FieldSet::new();

fn compare_at(node: Node<'_>, old: Option<&Value>, new: Option<&Value>, ignored: &FieldSet) -> Step {
    if old.is_some() && old == new {
        return Step::default();
    }
    let present = new.filter(|v| !v.is_null()).or(old).unwrap_or(&Value::Null);
    let inner = match present {
        // Where both are empty, empty and absent still differ: a leaf.
        _ if is_empty(old) && is_empty(new) => None,
        Value::Object(_) if is_granular(node, present) => compare_objects(node, old, new, ignored),
        Value::Array(_) => list_topology(node, present).and_then(|topology| compare_lists(node, &topology, old, new)),
        _ => None,
    };
    let leaf = inner.is_none();
    let mut step = inner.unwrap_or_default();
    match (old, new) {
        (None, Some(_)) => step.added.member = true,
        (Some(_), None) => step.removed.member = true,
        (Some(old), Some(new)) if leaf => step.modified.member = !equal(old, new),
        _ => {}
    }
    step
}

/// Equal as values: `1` and `1.0` are.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| equal(a, b)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(name, a)| y.get(name).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// Mostly there is nothing to put, and no key is made.
fn put_step(step: &mut Step, key: impl Fn() -> String, inner: Step) {
    let entries =
        [(&mut step.added, inner.added), (&mut step.modified, inner.modified), (&mut step.removed, inner.removed)];
    for (into, entry) in entries {
        if !entry.is_empty() {
            into.children.put(key(), entry);
        }
    }
}

/// `None` when one of them is something else: then they differ as a whole.
fn compare_objects(node: Node<'_>, old: Option<&Value>, new: Option<&Value>, ignored: &FieldSet) -> Option<Step> {
    let none = Map::new();
    let (old, new) = (members_of(old, &none)?, members_of(new, &none)?);
    let mut step = Step::default();
    let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
    for name in names {
        let (old, new) = (old.get(name), new.get(name));
        let ignored = ignored.field(name);
        if ignored.is_some_and(|entry| entry.member) || old == new {
            continue;
        }
        let inner = node.member(name).unwrap_or(Node::Untyped);
        let below = ignored.map_or(&NONE, |entry| &entry.children);
        put_step(&mut step, || field_key(name), compare_at(inner, old, new, below));
    }
    Some(step)
}

fn members_of<'a>(value: Option<&'a Value>, none: &'a Map<String, Value>) -> Option<&'a Map<String, Value>> {
    match value {
        None | Some(Value::Null) => Some(none),
        Some(Value::Object(members)) => Some(members),
        _ => None,
    }
}

fn items_of(value: Option<&Value>) -> Option<&[Value]> {
    match value {
        None | Some(Value::Null) => Some(&[]),
        Some(Value::Array(items)) => Some(items),
        _ => None,
    }
}

fn compare_lists(node: Node<'_>, topology: &Topology<'_>, old: Option<&Value>, new: Option<&Value>) -> Option<Step> {
    let (old, new) = (keyed(node, topology, items_of(old)?), keyed(node, topology, items_of(new)?));
    let mut step = Step::default();
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    for key in keys {
        let inner = match (old.get(key).map(Vec::as_slice), new.get(key).map(Vec::as_slice)) {
            (None, Some([new])) => compare_at(node.item(), None, Some(new), &NONE),
            (Some([old]), None) => compare_at(node.item(), Some(old), None, &NONE),
            (Some([old]), Some([new])) => compare_at(node.item(), Some(old), Some(new), &NONE),
            // Several items under one key cannot be told apart: they are there, or differ, as a whole,
            // and where there was one before or is one now, all that is in it went or came.
            (Some(_), Some([new])) => {
                let mut step = compare_at(node.item(), None, Some(new), &NONE);
                step.removed.member = true;
                step
            }
            (Some([old]), Some(_)) => {
                let mut step = compare_at(node.item(), Some(old), None, &NONE);
                step.added.member = true;
                step
            }
            (old, new) => {
                let mut step = Step::default();
                step.modified.member = old.is_some() && new.is_some() && old != new;
                step.added.member = old.is_none();
                step.removed.member = new.is_none();
                step
            }
        };
        put_step(&mut step, || key.clone(), inner);
    }
    Some(step)
}

fn keyed<'a>(node: Node<'_>, topology: &Topology<'_>, items: &'a [Value]) -> BTreeMap<String, Vec<&'a Value>> {
    let mut keyed: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for (index, (item, key)) in items.iter().zip(keys_of(node, topology, items)).enumerate() {
        keyed.entry(or_index(key, index)).or_default().push(item);
    }
    keyed
}

/// The live value with the configuration merged in.
pub fn merge(node: Node<'_>, live: Option<&Value>, config: &Value) -> Value {
    match (live, config) {
        (Some(Value::Object(live)), Value::Object(members)) if is_granular(node, config) => {
            let mut merged = live.clone();
            for (name, value) in members {
                let inner = node.member(name).unwrap_or(Node::Untyped);
                merged.insert(name.clone(), merge(inner, live.get(name), value));
            }
            Value::Object(merged)
        }
        (Some(Value::Array(live)), Value::Array(items)) => match list_topology(node, config) {
            Some(topology) => Value::Array(merge_lists(node, &topology, live, items)),
            None => config.clone(),
        },
        // Of what merges, null says as little as emptiness.
        (Some(live), Value::Null) if is_granular(node, live) || list_topology(node, live).is_some() => live.clone(),
        _ => config.clone(),
    }
}

/// Items of the configuration keep their order among themselves; items that only the live list has
/// stay in front of the items they were in front of. Where the live list has several items under one
/// key, one of the configuration takes their place without anything of theirs.
fn merge_lists(node: Node<'_>, topology: &Topology<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let live_keys = keys_of(node, topology, live);
    let config_keys = keys_of(node, topology, config);
    // The first live item of each key, and whether it is the only one.
    let mut places: HashMap<&String, (usize, bool)> = HashMap::new();
    for (at, key) in live_keys.iter().enumerate() {
        if let Some(key) = key {
            places.entry(key).and_modify(|(_, alone)| *alone = false).or_insert((at, true));
        }
    }
    let place_of = |key: &Option<String>| places.get(key.as_ref()?).copied();
    // For each item of the configuration the first live one that is still to come in its order.
    let mut stops: Vec<Option<usize>> = config_keys.iter().map(|key| place_of(key).map(|(place, _)| place)).collect();
    for at in (1..stops.len()).rev() {
        stops[at - 1] = stops[at - 1].or(stops[at]);
    }
    let shared: HashSet<&String> = config_keys.iter().flatten().collect();
    let is_shared = |key: &Option<String>| key.as_ref().is_some_and(|key| shared.contains(key));
    let mut merged = Vec::with_capacity(live.len() + config.len());
    let mut next = 0;
    for ((item, key), stop) in config.iter().zip(&config_keys).zip(stops) {
        while next < live.len() && Some(next) != stop {
            if !is_shared(&live_keys[next]) {
                merged.push(live[next].clone());
            }
            next += 1;
        }
        let place = place_of(key);
        let alone = place.filter(|(_, alone)| *alone).map(|(place, _)| &live[place]);
        merged.push(merge(node.item(), alone, item));
        if place.is_some_and(|(place, _)| place == next) {
            next += 1;
        }
    }
    let rest = live.iter().zip(&live_keys).skip(next).filter(|(_, key)| !is_shared(key));
    merged.extend(rest.map(|(item, _)| item.clone()));
    merged
}

/// A set as the schema has it now: what has become atomic is owned as a whole.
pub fn reconciled(node: Node<'_>, fields: FieldSet) -> FieldSet {
    let mut now = FieldSet::default();
    for (key, mut entry) in fields {
        let inner = match key.strip_prefix("f:") {
            Some(name) => node.member(name),
            None => Some(node.item()),
        };
        match inner {
            // What a schema does not say is as it was.
            None | Some(Node::Untyped) => {}
            Some(inner) if is_atomic(inner) => entry = Entry { member: true, children: FieldSet::default() },
            Some(inner) => entry.children = reconciled(inner, entry.children),
        }
        now.put(key, entry);
    }
    now
}

fn is_atomic(node: Node<'_>) -> bool {
    match node.expected() {
        Expected::Map => node.topology(&Value::Object(Map::new())) == Topology::Atomic,
        Expected::List => node.topology(&Value::Array(Vec::new())) == Topology::Atomic,
        _ => false,
    }
}

/// A set in which structs belong to whoever owns something in them.
pub fn with_named(node: Node<'_>, fields: &FieldSet) -> FieldSet {
    let mut named = FieldSet::default();
    for (key, entry) in fields.iter() {
        let (inner, is_named) = step(node, key);
        let children = with_named(inner, &entry.children);
        named.put(key.to_owned(), Entry { member: entry.member || (is_named && !children.is_empty()), children });
    }
    named
}

/// The place of a path element, and whether it is a declared field.
fn step<'a>(node: Node<'a>, key: &str) -> (Node<'a>, bool) {
    match key.strip_prefix("f:") {
        Some(name) => (node.member(name).unwrap_or(Node::Untyped), node.names(name)),
        None => (node.item(), false),
    }
}

/// Fields of the last configuration that nobody owns any more.
pub fn orphaned(node: Node<'_>, last: &FieldSet, owned: Option<&FieldSet>) -> FieldSet {
    let mut orphans = FieldSet::default();
    for (key, entry) in last.iter() {
        let kept = owned.and_then(|owned| owned.get(key));
        let (inner, named) = step(node, key);
        let keep = kept.is_some_and(|kept| kept.member || (named && !kept.children.is_empty()));
        // A struct goes as a whole, with what nobody owns in it.
        let owned_whole = entry.member || (named && !entry.children.is_empty());
        let orphan = if owned_whole && !keep {
            Entry { member: true, children: FieldSet::default() }
        } else {
            Entry { member: false, children: orphaned(inner, &entry.children, kept.map(|kept| &kept.children)) }
        };
        orphans.put(key.to_owned(), orphan);
    }
    orphans
}

/// Takes the fields of a set out of a value. True when nothing is left of it.
pub fn remove(node: Node<'_>, value: &mut Value, fields: &FieldSet) -> bool {
    if fields.is_empty() {
        return false;
    }
    if value.is_object() && is_granular(node, value) {
        let Value::Object(members) = value else { return false };
        let before = members.len();
        members.retain(|name, value| match fields.get(&field_key(name)) {
            Some(entry) if entry.member => false,
            Some(entry) => !remove(node.member(name).unwrap_or(Node::Untyped), value, &entry.children),
            None => true,
        });
        return before > 0 && members.is_empty();
    }
    if let Some(topology) = list_topology(node, value) {
        let Value::Array(items) = value else { return false };
        let keys = keys_of(node, &topology, items);
        let before = items.len();
        let mut keys = keys.into_iter().enumerate();
        items.retain_mut(|item| {
            let key = keys.next().map(|(index, key)| or_index(key, index)).unwrap_or_default();
            match fields.get(&key) {
                Some(entry) if entry.member => false,
                Some(entry) => !remove(node.item(), item, &entry.children),
                None => true,
            }
        });
        return before > 0 && items.is_empty();
    }
    false
}
