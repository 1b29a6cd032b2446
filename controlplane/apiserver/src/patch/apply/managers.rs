//! `metadata.managedFields`: who owns which fields, read, written and kept within bounds.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fieldset::FieldSet;

/// More entries of plain writes are folded into one.
const MOST_UPDATE_MANAGERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Who a set of fields belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    /// Empty for appliers: they are the same manager in every version.
    pub api_version: String,
    pub subresource: String,
}

impl Manager {
    pub fn new(operation: Operation, name: &str, api_version: &str, subresource: &str) -> Self {
        Self {
            name: name.to_owned(),
            operation,
            api_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
            subresource: subresource.to_owned(),
        }
    }

    /// As conflict messages name it: `"kubectl" using apps/v1`.
    pub fn shown(&self, version: &str) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {version}"));
        }
        text
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owned {
    pub fields: FieldSet,
    /// The version the fields are of.
    pub api_version: String,
    /// RFC 3339, or empty.
    pub time: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managers {
    pub entries: BTreeMap<Manager, Owned>,
}

impl Managers {
    /// Reads `managedFields`; `None` when it is malformed.
    pub fn read(managed: &Value) -> Option<Managers> {
        let mut managers = Managers::default();
        for entry in managed.as_array().into_iter().flatten() {
            let operation = match entry["operation"].as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            let text = |key: &str| entry[key].as_str().unwrap_or_default();
            if text("fieldsType") != "FieldsV1" || text("apiVersion").is_empty() {
                return None;
            }
            let fields = match &entry["fieldsV1"] {
                Value::Null => FieldSet::default(),
                fields => FieldSet::from_json(fields)?,
            };
            let manager = Manager::new(operation, text("manager"), text("apiVersion"), text("subresource"));
            let owned = Owned { fields, api_version: text("apiVersion").to_owned(), time: text("time").to_owned() };
            managers.entries.insert(manager, owned);
        }
        Some(managers)
    }

    pub fn drop_empty(&mut self) {
        self.entries.retain(|_, owned| !owned.fields.is_empty());
    }

    /// Writes `managedFields` into an object; nothing when there is none.
    pub fn write(self, object: &mut Value) {
        let mut order: Vec<(Manager, Owned)> = self.entries.into_iter().collect();
        order.sort_by(|(a, x), (b, y)| {
            (a.operation, &x.time, &a.name, &x.api_version, &a.subresource).cmp(&(
                b.operation,
                &y.time,
                &b.name,
                &y.api_version,
                &b.subresource,
            ))
        });
        let entries: Vec<Value> = order.into_iter().map(|(manager, owned)| entry(manager, owned)).collect();
        if !object["metadata"].is_object() {
            object["metadata"] = Value::Object(Map::new());
        }
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if entries.is_empty() {
                metadata.remove("managedFields");
            } else {
                metadata.insert("managedFields".to_owned(), entries.into());
            }
        }
    }

    /// Fields owned by anyone, by their version.
    pub fn all_fields(&self) -> BTreeMap<String, FieldSet> {
        let mut all: BTreeMap<String, FieldSet> = BTreeMap::new();
        for owned in self.entries.values() {
            let known = all.entry(owned.api_version.clone()).or_default();
            *known = std::mem::take(known).union(owned.fields.clone());
        }
        all
    }

    /// Gives a plain writer fields, beside those it has.
    pub fn add(&mut self, manager: Manager, fields: FieldSet, api_version: &str, time: String) {
        let owned = self.entries.entry(manager).or_default();
        owned.fields = std::mem::take(&mut owned.fields).union(fields);
        owned.api_version = api_version.to_owned();
        owned.time = time;
    }

    /// Folds the oldest plain writers of each version together when there are too many.
    pub fn cap(&mut self) {
        let mut updaters: Vec<(String, Manager)> = self
            .entries
            .iter()
            .filter(|(manager, _)| manager.operation == Operation::Update)
            .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
            .collect();
        let mut count = updaters.len();
        updaters.sort();
        let mut first: BTreeMap<String, Manager> = BTreeMap::new();
        for (_, manager) in updaters {
            if count <= MOST_UPDATE_MANAGERS {
                return;
            }
            let Some(oldest) = first.get(&manager.api_version) else {
                first.insert(manager.api_version.clone(), manager);
                continue;
            };
            // The bucket itself, of as long ago as those that went into it.
            if *oldest == manager {
                continue;
            }
            let bucket = Manager::new(Operation::Update, ANCIENT, &manager.api_version, "");
            let (older, newer) = (self.entries.remove(oldest), self.entries.remove(&manager));
            first.insert(manager.api_version, bucket.clone());
            let fields = older.into_iter().chain(newer.clone()).map(|owned| owned.fields);
            let fields = fields.fold(FieldSet::default(), FieldSet::union);
            let merged = self.entries.entry(bucket).or_default();
            *merged = Owned { fields: std::mem::take(&mut merged.fields).union(fields), ..newer.unwrap_or_default() };
            count -= 1;
        }
    }
}

/// A write that would change nothing but the times of owners leaves those as they were.
pub fn keep_times(new: &mut Value, old: &Value) {
    let was = &old["metadata"]["managedFields"];
    let same = |a: &Value, b: &Value| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            let timeless = |entry: &Map<String, Value>| entry.len() - usize::from(entry.contains_key("time"));
            timeless(a) == timeless(b) && a.iter().all(|(key, value)| key == "time" || b.get(key) == Some(value))
        }
        _ => a == b,
    };
    let equal = match (new["metadata"]["managedFields"].as_array(), was.as_array()) {
        (Some(is), Some(was)) => is != was && is.len() == was.len() && is.iter().zip(was).all(|(a, b)| same(a, b)),
        _ => false,
    };
    if !equal {
        return;
    }
    let written = std::mem::replace(&mut new["metadata"]["managedFields"], was.clone());
    if new != old {
        new["metadata"]["managedFields"] = written;
    }
}

fn entry(manager: Manager, owned: Owned) -> Value {
    let mut entry = Map::new();
    entry.insert("operation".to_owned(), manager.operation.name().into());
    entry.insert("apiVersion".to_owned(), owned.api_version.into());
    entry.insert("fieldsType".to_owned(), "FieldsV1".into());
    entry.insert("fieldsV1".to_owned(), owned.fields.into_json());
    for (key, text) in [("manager", manager.name), ("time", owned.time), ("subresource", manager.subresource)] {
        if !text.is_empty() {
            entry.insert(key.to_owned(), text.into());
        }
    }
    Value::Object(entry)
}
