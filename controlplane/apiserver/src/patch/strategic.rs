//! Strategic merge patch (`k8s.io/apimachinery/pkg/util/strategicpatch`): objects merge, lists are
//! replaced unless their type declares that they merge, by a key of their items or as sets.
//!
//! Directives, all of them members of the patch:
//! - `$patch: replace | delete` in an object, or in an item of a list that merges;
//! - `$retainKeys: [names]`: other members of the live object go;
//! - `$deleteFromPrimitiveList/<name>: [values]`;
//! - `$setElementOrder/<name>: [items]`: the order of a list that merges.
//!
//! The order of a merged list: items that the patch names come in the patch's order, the others
//! keep their order among themselves and stay before what they stood before.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::patch::shown::{go_text, go_type};
use crate::schema::Node;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Why a patch cannot be applied; the texts are upstream's, values as Go prints them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("unknown patch type: {directive} in map: {map}")]
    UnknownDirective { directive: String, map: String },
    #[error("merging lists cannot yet be specified in the patch")]
    MergeItem,
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { item: String, key: String },
    #[error("cannot merge lists without merge key for {0:?}")]
    NoKeyDeclared(String),
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    #[error("expected a []interface {{}}, but received a {0}")]
    NoList(&'static str),
    #[error("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")]
    ElementOrder { patch: String, order: String },
    #[error("lists of lists are not supported")]
    ListOfLists,
    #[error("list element types are not identical: {0}")]
    MixedList(String),
}

impl From<PatchError> for ApiError {
    fn from(error: PatchError) -> Self {
        match error {
            PatchError::ListOfLists => ApiError::rejected(),
            // Upstream answers 500 to most of these; they are the client's mistakes all the same.
            error => ApiError::bad_request(error.to_string()),
        }
    }
}

type Result<T> = std::result::Result<T, PatchError>;
type Members = Map<String, Value>;

/// Merges `patch` into `live`, an object at `node`.
pub fn merge_map(node: Node<'_>, mut live: Members, mut patch: Members) -> Result<Members> {
    match patch.get(PATCH) {
        None => {}
        Some(directive) if directive == "replace" => return Ok(without_directives(patch)),
        Some(directive) if directive == "delete" => return Ok(Map::new()),
        Some(other) => return Err(unknown(&other.clone(), patch)),
    }
    retain_keys(&mut live, &mut patch)?;
    let order = take_orders(&mut patch)?;
    for (name, change) in &patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            delete_from(&mut live, list, change);
        }
    }
    // Lists that only change their order take part with an empty change.
    for name in order.keys() {
        if live.get(name).is_some_and(Value::is_array) && !patch.contains_key(name) {
            patch.insert(name.clone(), Value::Array(Vec::new()));
        }
    }
    for (name, change) in patch {
        if name.starts_with(DELETE_FROM) {
            continue;
        }
        merge_member(node, &mut live, name, change, &order)?;
    }
    Ok(live)
}

fn merge_member(
    node: Node<'_>,
    live: &mut Members,
    name: String,
    change: Value,
    order: &Map<String, Value>,
) -> Result<()> {
    if change.is_null() {
        live.remove(&name);
        return Ok(());
    }
    let member = node.member(&name).unwrap_or(Node::Untyped);
    let order = order.get(&name).and_then(Value::as_array);
    let merged = match (live.remove(&name), change) {
        (Some(Value::Object(old)), Value::Object(change)) if !member.patch_rule().replaces => {
            Value::Object(merge_map(member, old, change)?)
        }
        (Some(Value::Array(old)), Value::Array(change)) if member.patch_rule().merges => {
            Value::Array(merge_list(member, &name, old, change, order.map(Vec::as_slice))?)
        }
        // There is nothing to merge with, and nothing for a directive to act on.
        (_, change) if is_directive(&change) => return Ok(()),
        (_, change) => strip(change),
    };
    live.insert(name, merged);
    Ok(())
}

fn unknown(directive: &Value, map: Members) -> PatchError {
    PatchError::UnknownDirective { directive: go_text(directive), map: go_text(&Value::Object(map)) }
}

fn is_directive(value: &Value) -> bool {
    value.get(PATCH).is_some()
}

/// Drops members that `$retainKeys` does not name. Everything the patch sets must be named.
fn retain_keys(live: &mut Members, patch: &mut Members) -> Result<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(PatchError::RetainKeys) };
    if !keys.iter().all(Value::is_string) {
        return Err(PatchError::RetainKeys);
    }
    let names: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let named = |name: &str| names.contains(name);
    let plain = patch.iter().filter(|(name, value)| !name.starts_with('$') && !value.is_null());
    if !plain.map(|(name, _)| name).all(|name| named(name)) {
        return Err(PatchError::RetainKeys);
    }
    live.retain(|name, _| named(name));
    Ok(())
}

/// Takes the `$setElementOrder/…` members out of a patch, by the list they are for.
fn take_orders(patch: &mut Members) -> Result<Map<String, Value>> {
    let names: Vec<String> = patch.keys().filter(|name| name.starts_with(ORDER)).cloned().collect();
    let mut orders = Map::new();
    for name in names {
        match patch.remove(&name) {
            Some(order @ Value::Array(_)) => {
                orders.insert(name[ORDER.len()..].to_owned(), order);
            }
            other => return Err(PatchError::NoList(other.as_ref().map_or("<nil>", go_type))),
        }
    }
    Ok(orders)
}

/// Takes plain values out of a list. What is no list, here or there, is passed over.
fn delete_from(live: &mut Members, name: &str, values: &Value) {
    if let (Some(Value::Array(items)), Value::Array(values)) = (live.get_mut(name), values) {
        let gone: HashSet<String> = values.iter().map(Value::to_string).collect();
        items.retain(|item| !gone.contains(&item.to_string()));
    }
}

fn merge_list(
    node: Node<'_>,
    name: &str,
    live: Vec<Value>,
    patch: Vec<Value>,
    order: Option<&[Value]>,
) -> Result<Vec<Value>> {
    let all = || live.iter().chain(&patch).chain(order.into_iter().flatten());
    if all().any(Value::is_array) {
        return Err(PatchError::ListOfLists);
    }
    let objects = all().any(Value::is_object);
    if objects && !all().all(Value::is_object) {
        return Err(PatchError::MixedList(name.to_owned()));
    }
    let key = node.patch_rule().key;
    let key = if objects { Some(key.ok_or_else(|| PatchError::NoKeyDeclared(name.to_owned()))?) } else { None };
    let before = live.clone();
    let Some(key) = key else {
        let mut seen = HashSet::new();
        let items = live.into_iter().chain(patch.iter().cloned());
        let merged = items.filter(|item| seen.insert(item.to_string())).collect();
        check_order(&patch, order, Value::eq)?;
        return Ok(in_order(merged, order.unwrap_or(&patch), &before, |item| Some(item.to_string())));
    };
    let same = |a: &Value, b: &Value| same_key(a, b, key);
    let known_by = |item: &Value| known_by(item, key);
    let (live, patch) = item_directives(live, patch, key)?;
    check_order(&patch, order, same)?;
    let named = patch.clone();
    let mut merged = live;
    let mut known = places(&merged, known_by);
    for item in patch {
        let Some(name) = known_by(&item).filter(|_| !item[key].is_null()) else {
            return Err(no_merge_key(&item, key));
        };
        let Value::Object(change) = item else { continue };
        match known.get(&name).copied() {
            Some(at) => {
                let old = match merged[at].take() {
                    Value::Object(old) => old,
                    _ => Map::new(),
                };
                merged[at] = Value::Object(merge_map(node.item(), old, change)?);
            }
            None => {
                known.insert(name, merged.len());
                merged.push(strip(Value::Object(change)));
            }
        }
    }
    Ok(in_order(merged, order.unwrap_or(&named), &before, known_by))
}

/// What an item of a list is known by, as text.
fn known_by(item: &Value, key: &str) -> Option<String> {
    item.get(key).map(Value::to_string)
}

/// Where in a list each item is, by what it is known by; of several with the same the first.
fn places(list: &[Value], known_by: impl Fn(&Value) -> Option<String>) -> HashMap<String, usize> {
    let mut places = HashMap::with_capacity(list.len());
    for (at, item) in list.iter().enumerate() {
        if let Some(name) = known_by(item) {
            places.entry(name).or_insert(at);
        }
    }
    places
}

/// Carries out `$patch` in the items of a list: what is left of the live list and of the patch.
fn item_directives(mut live: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut rest = Vec::with_capacity(patch.len());
    let (mut replace, mut gone) = (false, HashSet::new());
    for item in patch {
        match item.get(PATCH) {
            None => rest.push(item),
            Some(directive) if directive == "delete" => {
                if item.get(key).is_none_or(Value::is_null) {
                    return Err(no_merge_key(&item, key));
                }
                gone.extend(known_by(&item, key));
            }
            // What else the item says is passed over.
            Some(directive) if directive == "replace" => replace = true,
            Some(directive) if directive == "merge" => return Err(PatchError::MergeItem),
            Some(directive) => {
                let (directive, map) = (go_text(directive), go_text(&item));
                return Err(PatchError::UnknownDirective { directive, map });
            }
        }
    }
    live.retain(|item| !replace && known_by(item, key).is_none_or(|name| !gone.contains(&name)));
    Ok((live, rest))
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    PatchError::NoMergeKey { item: go_text(item), key: key.to_owned() }
}

/// Keys are the same as values, not as text: `80` is not `"80"`.
fn same_key(a: &Value, b: &Value, key: &str) -> bool {
    a.get(key).is_some_and(|own| b.get(key) == Some(own))
}

/// Every item of the patch must be named by the order, in the same order.
fn check_order(patch: &[Value], order: Option<&[Value]>, same: impl Fn(&Value, &Value) -> bool) -> Result<()> {
    let Some(order) = order.filter(|order| !order.is_empty()) else { return Ok(()) };
    let mut rest = order.iter();
    if patch.iter().all(|item| rest.any(|known| same(known, item))) {
        return Ok(());
    }
    let shown = |list: &[Value]| go_text(&Value::Array(list.to_vec()));
    Err(PatchError::ElementOrder { patch: shown(patch), order: shown(order) })
}

/// Orders `merged`: items in `wanted` by that list, the others as in `before`, and between the two
/// kinds as `before` had them.
fn in_order(
    merged: Vec<Value>,
    wanted: &[Value],
    before: &[Value],
    known_by: impl Fn(&Value) -> Option<String>,
) -> Vec<Value> {
    let (wanted, before) = (places(wanted, &known_by), places(before, &known_by));
    let place = |places: &HashMap<String, usize>, item: &Value| places.get(&known_by(item)?).copied();
    let mut ordered: Vec<(usize, Value)> = Vec::new();
    let mut others: Vec<(usize, Value)> = Vec::new();
    for item in merged {
        match place(&wanted, &item) {
            Some(at) => ordered.push((at, item)),
            None => others.push((place(&before, &item).unwrap_or(usize::MAX), item)),
        }
    }
    ordered.sort_by_key(|(at, _)| *at);
    others.sort_by_key(|(at, _)| *at);
    let mut result = Vec::with_capacity(ordered.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, item) in ordered {
        let at = place(&before, &item);
        while let (Some(at), Some((other, _))) = (at, others.peek()) {
            if *other >= at {
                break;
            }
            result.extend(others.next().map(|(_, other)| other));
        }
        result.push(item);
    }
    result.extend(others.map(|(_, other)| other));
    result
}

/// A value that is new to the object, without nulls and directives, nor what those are about.
fn strip(value: Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(without_directives(members)),
        Value::Array(items) => Value::Array(items.into_iter().filter(|item| !is_directive(item)).map(strip).collect()),
        other => other,
    }
}

fn without_directives(members: Members) -> Members {
    let directive =
        |name: &str| name == PATCH || name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(ORDER);
    members
        .into_iter()
        .filter(|(name, value)| !directive(name) && !value.is_null() && !is_directive(value))
        .map(|(name, value)| (name, strip(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::GroupVersionKind;
    use crate::schema::lookup;
    use proptest::prelude::*;
    use serde_json::json;

    fn patched(live: Value, patch: Value) -> std::result::Result<Value, String> {
        let schema = lookup(&GroupVersionKind::new("", "v1", "Pod")).unwrap();
        let (Value::Object(live), Value::Object(patch)) = (live, patch) else { panic!("objects are expected") };
        merge_map(schema.root(), live, patch).map(Value::Object).map_err(|error| error.to_string())
    }

    fn spec(live: Value, patch: Value) -> Value {
        patched(json!({"spec": live}), json!({"spec": patch})).unwrap()["spec"].clone()
    }

    #[test]
    fn lists_merge_by_their_key() {
        let live = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1", "tty": true}]});
        assert_eq!(
            spec(live.clone(), json!({"containers": [{"name": "b", "image": "2", "tty": null}]})),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]})
        );
        // New items come first, as upstream has it.
        assert_eq!(
            spec(live.clone(), json!({"containers": [{"name": "c", "image": "3", "tty": null}]}))["containers"],
            json!([{"name": "c", "image": "3"}, {"name": "a", "image": "1"}, {"name": "b", "image": "1", "tty": true}])
        );
        assert_eq!(
            spec(live.clone(), json!({"containers": [{"name": "a", "$patch": "delete"}]}))["containers"],
            json!([{"name": "b", "image": "1", "tty": true}])
        );
        assert_eq!(
            spec(live, json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}))["containers"],
            json!([{"name": "z"}])
        );
    }

    #[test]
    fn element_order_is_set() {
        let live = json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]});
        let patch = json!({
            "$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c"}],
        });
        assert_eq!(
            spec(live.clone(), patch)["containers"],
            json!([{"name": "server"}, {"name": "b"}, {"name": "c"}, {"name": "a"}])
        );
        let only_order = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]});
        assert_eq!(
            spec(live.clone(), only_order)["containers"],
            json!([{"name": "server"}, {"name": "b"}, {"name": "a"}])
        );
        let missing = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "q"}]}});
        assert_eq!(
            patched(json!({"spec": live}), missing).unwrap_err(),
            "The order in patch list:\n[map[name:q]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n"
        );
        let wrong = json!({"spec": {"$setElementOrder/containers": "a", "containers": [{"name": "a"}]}});
        assert_eq!(
            patched(json!({"spec": live}), wrong).unwrap_err(),
            "expected a []interface {}, but received a string"
        );
    }

    #[test]
    fn primitive_lists_merge_as_sets() {
        let live = json!({"metadata": {"finalizers": ["a", "b"]}});
        let add = json!({"metadata": {"finalizers": ["c", "a"]}});
        assert_eq!(patched(live.clone(), add).unwrap()["metadata"]["finalizers"], json!(["c", "a", "b"]));
        let remove = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"]}});
        assert_eq!(patched(live.clone(), remove).unwrap()["metadata"]["finalizers"], json!(["c", "b"]));
        let no_list = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}});
        assert_eq!(patched(live.clone(), no_list).unwrap(), live);
    }

    #[test]
    fn long_lists_are_not_searched_for_each_item() {
        let names = |prefix: &str| (0..20_000).map(|at| format!("{prefix}/{at}")).collect::<Vec<_>>();
        let live = json!({"metadata": {"finalizers": names("live")}});
        let patch = json!({"metadata": {"finalizers": names("new")}});
        let merged = patched(live, patch).unwrap();
        assert_eq!(merged["metadata"]["finalizers"], json!([names("new"), names("live")].concat()));
        let containers = |prefix: &str| names(prefix).iter().map(|name| json!({"name": name})).collect::<Vec<Value>>();
        let delete = |name: &Value| json!({"name": name["name"], "$patch": "delete"});
        let mut change = containers("new");
        change.extend(containers("live").iter().map(delete));
        let merged = spec(json!({"containers": containers("live")}), json!({"containers": change}));
        assert_eq!(merged["containers"], json!(containers("new")));
    }

    #[test]
    fn retain_keys_drops_the_others() {
        let live = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let patch =
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]});
        assert_eq!(spec(live.clone(), patch)["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
        let bad = json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {}}]}});
        assert_eq!(patched(json!({"spec": live}), bad).unwrap_err(), "invalid patch format of retainKeys");
    }

    #[test]
    fn objects_merge_replace_and_go() {
        let live = json!({"nodeSelector": {"a": "1", "b": "2"}, "tolerations": [{"key": "x"}], "hostname": "h"});
        assert_eq!(
            spec(
                live.clone(),
                json!({"nodeSelector": {"b": null, "c": "3"}, "tolerations": [{"key": "y"}], "hostname": null})
            ),
            json!({"nodeSelector": {"a": "1", "c": "3"}, "tolerations": [{"key": "y"}]})
        );
        assert_eq!(
            spec(live.clone(), json!({"nodeSelector": {"$patch": "replace", "z": "1"}}))["nodeSelector"],
            json!({"z": "1"})
        );
        assert_eq!(spec(live.clone(), json!({"nodeSelector": {"$patch": "delete"}}))["nodeSelector"], json!({}));
        for directive in ["bogus", "merge"] {
            let error = patched(live.clone(), json!({"$patch": directive, "a": [1]})).unwrap_err();
            assert_eq!(error, format!("unknown patch type: {directive} in map: map[$patch:{directive} a:[1]]"));
        }
    }

    #[test]
    fn directives_about_what_is_not_there_go_with_what_they_are_in() {
        let patch = json!({"nodeSelector": {"$patch": "replace", "a": "b"}, "hostname": "h",
            "containers": [{"name": "a", "$patch": "delete"}, {"image": "i", "tty": null}]});
        // A list that is new is not looked into: what it lacks is said by validation.
        assert_eq!(spec(json!({}), patch), json!({"hostname": "h", "containers": [{"image": "i"}]}));
    }

    #[test]
    fn keys_are_compared_as_values() {
        let live = json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "x"}]}]});
        let ports =
            |port: Value| json!({"containers": [{"name": "a", "ports": [{"containerPort": port, "hostPort": 1}]}]});
        let merged = |port: Value| spec(live.clone(), ports(port))["containers"][0]["ports"].clone();
        assert_eq!(merged(json!(80)), json!([{"containerPort": 80, "name": "x", "hostPort": 1}]));
        assert_eq!(merged(json!("80")).as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_list_that_is_replaced_is_what_the_other_items_say() {
        let live = json!({"containers": [{"name": "a"}]});
        let patch = json!({"containers": [{"$patch": "replace", "name": "lost"}, {"name": "b", "tty": null}]});
        assert_eq!(spec(live, patch)["containers"], json!([{"name": "b"}]));
    }

    #[test]
    fn items_without_their_key_are_refused() {
        let error = patched(
            json!({"spec": {"containers": [{"name": "a"}]}}),
            json!({"spec": {"containers": [{"image": "x"}]}}),
        );
        assert_eq!(error.unwrap_err(), "map: map[image:x] does not contain declared merge key: name");
    }

    fn containers() -> impl Strategy<Value = Vec<Value>> {
        proptest::collection::btree_map("[a-e]", "[x-z]", 0..5)
            .prop_map(|map| {
                map.into_iter().map(|(name, image)| json!({"name": name, "image": image})).collect::<Vec<_>>()
            })
            .prop_shuffle()
    }

    proptest! {
        /// A patch that lists every item in order, with the deletions, leads to exactly that list.
        #[test]
        fn a_full_patch_leads_to_the_wanted_list(live in containers(), wanted in containers()) {
            let order: Vec<Value> = wanted.iter().map(|item| json!({"name": item["name"]})).collect();
            let gone = live.iter().filter(|item| !wanted.iter().any(|w| w["name"] == item["name"]));
            let mut change = wanted.clone();
            change.extend(gone.map(|item| json!({"name": item["name"], "$patch": "delete"})));
            let merged = spec(json!({"containers": live}), json!({"$setElementOrder/containers": order, "containers": change}));
            prop_assert_eq!(&merged["containers"], &json!(wanted));
        }

        #[test]
        fn merging_twice_changes_nothing(live in containers(), change in containers()) {
            let patch = json!({"containers": change});
            let once = spec(json!({"containers": live}), patch.clone());
            prop_assert_eq!(spec(once.clone(), patch), once);
        }
    }
}
