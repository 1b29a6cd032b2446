//! JSON patches (RFC 6902) as Kubernetes applies them, which is as `gopkg.in/evanphx/json-patch.v4`
//! does. Where that is not the RFC:
//!
//! - an index may be negative, and counts from the end then;
//! - `replace` and `copy` take a member that is not there for null, `test` too, and a missing `value` is null;
//! - the document as a whole can be replaced and tested, not added, removed, moved or copied.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::schema::normalize::json_type;

/// What a patch may hold at most.
const MAX_OPERATIONS: usize = 10_000;
/// What the `copy` operations of a patch may copy together, in bytes.
const MAX_COPIED: usize = 3 * 1024 * 1024;
/// Documents that a patch would nest deeper are refused: every later step may then recurse.
const MAX_DEPTH: usize = 120;
/// Values that may be looked at to find out how deep they are when they are moved: moving costs little, looking
/// costs what the value holds.
const MAX_LOOKED_AT: usize = 20_000_000;

/// Why a patch was not applied; the texts are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonPatchError {
    #[error("error decoding patch: json: cannot unmarshal {found} into Go {target}")]
    Malformed { found: &'static str, target: String },
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooMany(usize),
    #[error("testing value {0} failed: test failed")]
    TestFailed(String),
    #[error("Unexpected kind: {0}")]
    UnknownOperation(String),
    #[error("{operation} operation does not apply: doc is missing {what}: {path}: missing value")]
    Missing { operation: &'static str, what: &'static str, path: String },
    #[error("{operation} operation failed to decode {what}: missing value")]
    Unsaid { operation: &'static str, what: &'static str },
    #[error("value was not a proper array index: '{0}'")]
    NoIndex(String),
    #[error("Unable to access invalid index: {0}: invalid index referenced")]
    InvalidIndex(i64),
    #[error("Unable to remove nonexistent key: {0}: missing value")]
    NothingToRemove(String),
    #[error("replace operation value must be object or array")]
    NoDocument,
    #[error(
        "Unable to complete the copy, the accumulated size increase of copy is {0}, exceeding the limit {MAX_COPIED}"
    )]
    TooMuchCopied(usize),
    #[error("the patch nests values deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

type Result<T> = std::result::Result<T, JsonPatchError>;

impl From<JsonPatchError> for ApiError {
    /// What a client is told of a patch that does not apply is that it does not.
    fn from(error: JsonPatchError) -> Self {
        match error {
            JsonPatchError::Malformed { .. } => ApiError::bad_request(error.to_string()),
            JsonPatchError::TooMany(_) => ApiError::too_large(error.to_string()),
            _ => ApiError::rejected(),
        }
    }
}

/// Applies a JSON patch.
pub fn json(live: &Value, patch: &Value) -> Result<Value> {
    let operations = match patch {
        Value::Null => &[][..],
        Value::Array(operations) => operations,
        other => return Err(malformed(other, "value of type []handlers.jsonPatchOp")),
    };
    let operations = operations.iter().map(Operation::read).collect::<Result<Vec<_>>>()?;
    if operations.len() > MAX_OPERATIONS {
        return Err(JsonPatchError::TooMany(operations.len()));
    }
    let mut document = live.clone();
    let mut spent = Spent::default();
    for operation in operations {
        operation.apply(&mut document, &mut spent)?;
    }
    Ok(document)
}

/// What a patch has used up, and made.
#[derive(Default)]
struct Spent {
    /// Bytes that were copied.
    copied: usize,
    /// Values that were looked at for what is moved.
    looked_at: usize,
    /// The document nests no deeper. None: nothing was moved so far, and nobody knows.
    depth: Option<usize>,
}

impl Spent {
    /// Takes note of a value `at` so many levels.
    fn made(&mut self, at: usize, depth: usize) -> Result<()> {
        self.depth = self.depth.map(|known| known.max(at + depth));
        if at + depth > MAX_DEPTH { Err(JsonPatchError::TooDeep) } else { Ok(()) }
    }

    fn look(&mut self, value: &Value) -> Result<usize> {
        let depth = measured(value, &mut self.looked_at);
        if self.looked_at > MAX_LOOKED_AT { Err(JsonPatchError::TooDeep) } else { Ok(depth) }
    }

    /// Takes note of a value that was taken out of the `document` at one level and comes to another. Mostly what is
    /// known of the document tells that it fits.
    fn moved(&mut self, document: &Value, value: &Value, from: usize, to: usize) -> Result<()> {
        let known = match self.depth {
            Some(known) => known,
            None => self.look(document)?.max(from + self.look(value)?),
        };
        self.depth = Some(known);
        let at_most = known.saturating_sub(from);
        if to + at_most <= MAX_DEPTH {
            return self.made(to, at_most);
        }
        let exact = self.look(value)?;
        self.depth = Some(self.look(document)?);
        self.made(to, exact)
    }
}

fn malformed(value: &Value, target: &str) -> JsonPatchError {
    JsonPatchError::Malformed { found: json_type(value), target: target.to_owned() }
}

/// One step of a patch, as it says of itself.
struct Operation<'a> {
    kind: &'a str,
    path: Option<&'a str>,
    from: Option<&'a str>,
    value: Option<&'a Value>,
}

impl<'a> Operation<'a> {
    fn read(operation: &'a Value) -> Result<Self> {
        let members = match operation {
            Value::Null => None,
            Value::Object(members) => Some(members),
            other => return Err(malformed(other, "value of type handlers.jsonPatchOp")),
        };
        let text = |key: &str| match members.and_then(|members| members.get(key)) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(malformed(other, &format!("struct field jsonPatchOp.{key} of type string"))),
        };
        let value = members.and_then(|members| members.get("value"));
        Ok(Self { kind: text("op")?.unwrap_or("unknown"), path: text("path")?, from: text("from")?, value })
    }

    fn apply(&self, document: &mut Value, spent: &mut Spent) -> Result<()> {
        match self.kind {
            "add" => self.put(document, "add", self.value.cloned().unwrap_or_default(), spent),
            "remove" => self.place(document, "remove", "path", self.path)?.remove().map(drop),
            "replace" => self.replace(document, spent),
            "move" => {
                let from = self.place(document, "move", "from path", self.from)?;
                from.get()?;
                let value = from.remove()?;
                spent.moved(document, &value, levels(self.from), levels(self.path))?;
                self.place(document, "move", "path", self.path)?.add(value)
            }
            "copy" => {
                let value = self.place(document, "copy", "from path", self.from)?.get()?.cloned().unwrap_or_default();
                spent.copied += value.to_string().len();
                if spent.copied > MAX_COPIED {
                    return Err(JsonPatchError::TooMuchCopied(spent.copied));
                }
                self.put(document, "copy", value, spent)
            }
            "test" => self.test(document),
            other => Err(JsonPatchError::UnknownOperation(other.to_owned())),
        }
    }

    /// The place that a pointer names, in the container that it is in, which must be there.
    fn place<'d>(
        &self,
        document: &'d mut Value,
        operation: &'static str,
        what: &'static str,
        pointer: Option<&str>,
    ) -> Result<Place<'d>> {
        let pointer = pointer.ok_or(JsonPatchError::Unsaid { operation, what })?;
        Place::find(document, pointer).ok_or_else(|| JsonPatchError::Missing {
            operation,
            what,
            path: pointer.to_owned(),
        })
    }

    fn put(&self, document: &mut Value, operation: &'static str, value: Value, spent: &mut Spent) -> Result<()> {
        spent.made(levels(self.path), depth(&value))?;
        self.place(document, operation, "path", self.path)?.add(value)
    }

    fn replace(&self, document: &mut Value, spent: &mut Spent) -> Result<()> {
        let value = self.value.cloned().unwrap_or_default();
        if self.path == Some("") {
            if !value.is_object() && !value.is_array() {
                return Err(JsonPatchError::NoDocument);
            }
            *document = value;
            spent.depth = None;
            return Ok(());
        }
        spent.made(levels(self.path), depth(&value))?;
        self.place(document, "replace", "path", self.path)?.set(value)
    }

    fn test(&self, document: &mut Value) -> Result<()> {
        let wanted = self.value.unwrap_or(&Value::Null);
        let holds = match self.path {
            Some("") => document == wanted,
            path => self.place(document, "test", "path", path)?.get()?.unwrap_or(&Value::Null) == wanted,
        };
        if holds { Ok(()) } else { Err(JsonPatchError::TestFailed(self.path.unwrap_or_default().to_owned())) }
    }
}

/// A member or an item, there or not, of a container that is.
enum Place<'d> {
    Member(&'d mut Map<String, Value>, String),
    Item(&'d mut Vec<Value>, String),
}

impl<'d> Place<'d> {
    /// None: there is no such container, or the pointer names the document itself.
    fn find(document: &'d mut Value, pointer: &str) -> Option<Self> {
        let (way, last) = pointer.rsplit_once('/')?;
        let mut container = document;
        // Whatever comes before the first slash is not looked at.
        for step in way.split('/').skip(1) {
            container = match container {
                Value::Object(members) => members.get_mut(&unescaped(step))?,
                Value::Array(items) => {
                    let at = index(&unescaped(step), items.len()).ok()?;
                    items.get_mut(at)?
                }
                _ => return None,
            };
        }
        match container {
            Value::Object(members) => Some(Place::Member(members, unescaped(last))),
            Value::Array(items) => Some(Place::Item(items, unescaped(last))),
            _ => None,
        }
    }

    fn get(&self) -> Result<Option<&Value>> {
        match self {
            Place::Member(members, name) => Ok(members.get(name)),
            Place::Item(items, key) => Ok(items.get(index(key, items.len())?)),
        }
    }

    fn set(self, value: Value) -> Result<()> {
        match self {
            Place::Member(members, name) => drop(members.insert(name, value)),
            Place::Item(items, key) => {
                let at = index(&key, items.len())?;
                items[at] = value;
            }
        }
        Ok(())
    }

    fn add(self, value: Value) -> Result<()> {
        match self {
            Place::Member(members, name) => drop(members.insert(name, value)),
            Place::Item(items, key) if key == "-" => items.push(value),
            Place::Item(items, key) => {
                // One more may be named than there are.
                let at = index(&key, items.len() + 1)?;
                items.insert(at, value);
            }
        }
        Ok(())
    }

    fn remove(self) -> Result<Value> {
        match self {
            Place::Member(members, name) => members.remove(&name).ok_or(JsonPatchError::NothingToRemove(name)),
            Place::Item(items, key) => {
                let at = index(&key, items.len())?;
                Ok(items.remove(at))
            }
        }
    }
}

fn unescaped(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

/// An index below `length`; a negative one counts from there.
fn index(key: &str, length: usize) -> Result<usize> {
    let asked: i64 = key.parse().map_err(|_| JsonPatchError::NoIndex(key.to_owned()))?;
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let at = if asked < 0 { asked.saturating_add(length) } else { asked };
    let at = Some(at).filter(|at| *at < length).and_then(|at| usize::try_from(at).ok());
    at.ok_or(JsonPatchError::InvalidIndex(asked))
}

/// How far down in the document a pointer leads.
fn levels(pointer: Option<&str>) -> usize {
    pointer.map_or(0, |pointer| pointer.matches('/').count())
}

fn depth(value: &Value) -> usize {
    measured(value, &mut 0)
}

/// The same; counts the values that it looks at.
fn measured(value: &Value, looked_at: &mut usize) -> usize {
    *looked_at += 1;
    match value {
        Value::Array(items) => 1 + items.iter().map(|item| measured(item, looked_at)).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(|member| measured(member, looked_at)).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn live() -> Value {
        json!({"a": {"b": [1, 2, 3], "~/": "k"}, "c": "x", "n": null})
    }

    #[test]
    fn what_patches_make() {
        for (patch, pointer, wanted) in [
            (json!([{"op": "add", "path": "/a/b/-", "value": 4}]), "/a/b", json!([1, 2, 3, 4])),
            (json!([{"op": "add", "path": "/a/b/3", "value": 4}]), "/a/b", json!([1, 2, 3, 4])),
            (json!([{"op": "add", "path": "/a/b/-1", "value": 4}]), "/a/b", json!([1, 2, 3, 4])),
            (json!([{"op": "add", "path": "/a/b/0", "value": 0}]), "/a/b", json!([0, 1, 2, 3])),
            (json!([{"op": "add", "path": "/c", "value": [1]}]), "/c", json!([1])),
            (json!([{"op": "add", "path": "/d"}]), "/d", json!(null)),
            (json!([{"op": "remove", "path": "/a/b/-1"}]), "/a/b", json!([1, 2])),
            (json!([{"op": "replace", "path": "/a/b/-3", "value": 9}]), "/a/b", json!([9, 2, 3])),
            (json!([{"op": "replace", "path": "/new", "value": 1}]), "/new", json!(1)),
            (json!([{"op": "replace", "path": "", "value": {"z": 1}}]), "", json!({"z": 1})),
            (json!([{"op": "replace", "path": "/a/~0~1", "value": 1}]), "/a", json!({"b": [1, 2, 3], "~/": 1})),
            (json!([{"op": "move", "from": "/a/b/0", "path": "/a/b/-"}]), "/a/b", json!([2, 3, 1])),
            (json!([{"op": "copy", "from": "/a/b", "path": "/d"}]), "/d", json!([1, 2, 3])),
            (json!([{"op": "copy", "from": "/none", "path": "/d"}]), "/d", json!(null)),
            (json!([{"op": "test", "path": "/c", "value": "x"}, {"op": "remove", "path": "/c"}]), "/c", json!("gone")),
            (json!([{"op": "test", "path": "/none", "value": null}]), "/c", json!("x")),
            (json!([{"op": "test", "path": "/n"}]), "/c", json!("x")),
            (json!([{"op": "test", "path": "", "value": live()}]), "/c", json!("x")),
            (json!([]), "", live()),
            (json!(null), "", live()),
        ] {
            let made = json(&live(), &patch).unwrap_or_else(|error| panic!("{patch}: {error}"));
            assert_eq!(made.pointer(pointer).unwrap_or(&json!("gone")), &wanted, "{patch}");
        }
    }

    #[test]
    fn what_does_not_apply_is_rejected() {
        for (operation, why) in [
            (json!({"op": "test", "path": "/c", "value": "y"}), "testing value /c failed: test failed"),
            (json!({"op": "test", "path": "/c", "value": null}), "testing value /c failed: test failed"),
            (json!({"op": "test", "path": "/c"}), "testing value /c failed: test failed"),
            (json!({"op": "test", "path": "/a/b/0", "value": 1.0}), "testing value /a/b/0 failed: test failed"),
            (
                json!({"op": "test", "path": "/none/of/it", "value": null}),
                "doc is missing path: /none/of/it: missing value",
            ),
            (json!({"op": "test", "path": "/a/b/9", "value": null}), "Unable to access invalid index: 9"),
            (json!({"op": "remove", "path": "/nothing"}), "Unable to remove nonexistent key: nothing"),
            (json!({"op": "remove", "path": "/a/b/3"}), "Unable to access invalid index: 3"),
            (json!({"op": "remove", "path": "/a/b/-"}), "value was not a proper array index: '-'"),
            (json!({"op": "remove", "path": ""}), "doc is missing path"),
            (json!({"op": "add", "path": "", "value": {}}), "doc is missing path"),
            (json!({"op": "add", "path": "/a/b/4", "value": 1}), "Unable to access invalid index: 4"),
            (json!({"op": "add", "path": "/a/b/-5", "value": 1}), "Unable to access invalid index: -5"),
            (json!({"op": "add", "path": "/c/d", "value": 1}), "doc is missing path: /c/d"),
            (json!({"op": "add", "path": "/n/d", "value": 1}), "doc is missing path: /n/d"),
            (json!({"op": "add", "value": 1}), "add operation failed to decode path"),
            (json!({"op": "replace", "path": "/a/b/7", "value": 1}), "Unable to access invalid index: 7"),
            (json!({"op": "replace", "path": "", "value": 1}), "replace operation value must be object or array"),
            (json!({"op": "move", "from": "/a", "path": "/a/x"}), "doc is missing path: /a/x"),
            (json!({"op": "move", "from": "/none", "path": "/x"}), "Unable to remove nonexistent key: none"),
            (json!({"op": "copy", "path": "/x"}), "copy operation failed to decode from path"),
            (json!({"op": "bogus", "path": "/a"}), "Unexpected kind: bogus"),
            (json!({"path": "/a"}), "Unexpected kind: unknown"),
            (json!(null), "Unexpected kind: unknown"),
        ] {
            let error = json(&live(), &json!([operation])).unwrap_err();
            assert!(error.to_string().contains(why), "{operation}: {error}");
            let told = ApiError::from(error);
            assert_eq!(told.message(), "the server rejected our request due to an error in our request");
            assert_eq!((told.code().as_u16(), &told.to_status()["details"]), (422, &json!({})));
        }
    }

    #[test]
    fn what_is_no_patch_is_a_bad_request() {
        for (patch, code, why) in [
            (
                json!({"a": 1}),
                400,
                "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
            ),
            (
                json!([1]),
                400,
                "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp",
            ),
            (
                json!([{"op": 1}]),
                400,
                "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string",
            ),
            (
                json!(vec![json!({"op": "test", "path": "/c", "value": "x"}); 10_001]),
                413,
                "The allowed maximum operations in a JSON patch is 10000, got 10001",
            ),
        ] {
            let told = ApiError::from(json(&live(), &patch).unwrap_err());
            assert_eq!((told.code().as_u16(), told.message()), (code, why));
        }
    }

    #[test]
    fn copies_are_bounded_together() {
        let live = json!({"a": "x".repeat(1024 * 1024)});
        let copies: Vec<Value> =
            (0..3).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/b{n}")})).collect();
        assert!(matches!(json(&live, &copies.into()), Err(JsonPatchError::TooMuchCopied(_))));
    }

    #[test]
    fn a_patch_that_copies_a_value_into_itself_is_refused_not_crashed_on() {
        let mut path = "/a".to_owned();
        let mut operations = Vec::new();
        for _ in 0..20 {
            let deeper = format!("{path}{path}");
            operations.push(json!({"op": "copy", "from": "/a", "path": deeper}));
            path = deeper;
        }
        json(&json!({"a": {}}), &operations.into()).unwrap_err();
    }

    #[test]
    fn moving_much_to_and_fro_costs_no_more_than_moving_little() {
        let much: Value = (0..50_000).collect();
        let there = |n: usize| json!({"op": "move", "from": "/a", "path": format!("/b/c/d{n}")});
        let back = |n: usize| json!({"op": "move", "from": format!("/b/c/d{n}"), "path": "/a"});
        let operations: Vec<Value> = (0..MAX_OPERATIONS / 2).flat_map(|n| [there(n), back(n)]).collect();
        let live = json!({"a": much, "b": {"c": {}}});
        assert_eq!(json(&live, &operations.into()).unwrap(), live);
    }

    #[test]
    fn moves_that_nest_a_document_too_deep_are_refused() {
        let chain = |levels: usize| (0..levels).fold(json!({}), |inner, _| json!({"x": inner}));
        let deep = |levels: usize| format!("/a{}", "/x".repeat(levels));
        let live = json!({"a": chain(80), "b": chain(30), "c": chain(80)});
        let to = |from: &str| json!([{"op": "move", "from": from, "path": format!("{}/y", deep(80))}]);
        assert!(json(&live, &to("/b")).is_ok());
        assert_eq!(json(&live, &to("/c")), Err(JsonPatchError::TooDeep));
    }

    proptest! {
        #[test]
        fn patches_never_panic(path in "(/[abc0-9~-]{0,2}){0,4}", from in "(/[abc0-9-]{0,2}){0,3}", op in "add|remove|replace|move|copy|test", value in any::<u8>()) {
            let _ = json(&live(), &json!([{"op": op, "path": path, "from": from, "value": [value]}]));
        }
    }
}
