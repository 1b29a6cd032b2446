//! Lists whose order does not count: `x-kubernetes-list-type: set` and `map` in the rules of custom
//! resources. `==` compares them by elements or keys, `+` merges them
//! (`k8s.io/apiserver/pkg/cel/common/valuesunstructured.go`).
//!
//! Values do not know their schema: the tree is rewritten where the left side of an operator is such
//! a list, or holds one, as far as the names of variables and fields tell.
//!
//! ```text
//! self.tags == ['b', 'a']     →   @same(self.tags, ['b', 'a'], 0)      0: the first of the shapes
//! self.tags + ['c']           →   @merge(self.tags, ['c'], 0)
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cel::Value;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::objects::Key;
use serde_json::Value as Json;

use super::comprehensions::PAIRS;
use super::decl::identifiers;
use super::library::{Outcome, failed};
use super::{list, meter};

pub const SAME: &str = "@same";
pub const MERGE: &str = "@merge";

/// Where in a value there are lists whose order does not count; there is at least one.
#[derive(Debug, PartialEq)]
pub enum Shape {
    List {
        order: Order,
        items: Known,
    },
    /// By names as expressions write them.
    Object(BTreeMap<String, Arc<Shape>>),
    Map(Arc<Shape>),
}

#[derive(Debug, PartialEq)]
pub enum Order {
    Counts,
    Set,
    /// The names of the keys, as expressions write them.
    Keys(Vec<String>),
}

/// None: every order counts.
type Known = Option<Arc<Shape>>;

impl Shape {
    pub fn of(schema: &Json) -> Known {
        let items = Shape::of_part(&schema["items"]);
        let order = match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => Order::Set,
            Some("map") => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                Order::Keys(keys.filter_map(Json::as_str).map(written).collect())
            }
            _ => Order::Counts,
        };
        if items.is_some() || order != Order::Counts {
            return Some(Arc::new(Shape::List { order, items }));
        }
        if let Some(values) = Shape::of_part(&schema["additionalProperties"]) {
            return Some(Arc::new(Shape::Map(values)));
        }
        let properties = schema["properties"].as_object().into_iter().flatten();
        let known = properties.filter_map(|(name, schema)| Some((name, Shape::of(schema)?)));
        let fields: BTreeMap<_, _> = known
            .flat_map(|(name, shape)| {
                let names: Vec<String> = identifiers(name).chain([name.clone()]).collect();
                names.into_iter().map(move |name| (name, shape.clone()))
            })
            .collect();
        (!fields.is_empty()).then(|| Arc::new(Shape::Object(fields)))
    }

    fn of_part(schema: &Json) -> Known {
        if schema.is_object() { Shape::of(schema) } else { None }
    }

    fn field(&self, name: &str) -> Known {
        match self {
            Shape::Object(fields) => fields.get(name).cloned(),
            Shape::Map(values) => Some(values.clone()),
            Shape::List { .. } => None,
        }
    }

    /// What a list or map holds.
    fn held(&self) -> Known {
        match self {
            Shape::List { items, .. } => items.clone(),
            Shape::Map(values) => Some(values.clone()),
            Shape::Object(_) => None,
        }
    }
}

fn written(name: &str) -> String {
    identifiers(name).next().unwrap_or_else(|| name.to_owned())
}

/// The tree with its operators on such lists replaced, and the shapes that those name by their place.
pub fn rewritten(mut root: IdedExpr, this: &Arc<Shape>) -> (IdedExpr, Vec<Arc<Shape>>) {
    let mut typer = Typer { shapes: Vec::new(), scope: Vec::new() };
    for name in ["self", "oldSelf"] {
        typer.scope.push((name.to_owned(), Bound::Value(Some(this.clone()))));
    }
    typer.visit(&mut root);
    (root, typer.shapes)
}

enum Bound {
    Value(Known),
    /// A pair of a key and such a value.
    Pair(Known),
}

struct Typer {
    shapes: Vec<Arc<Shape>>,
    scope: Vec<(String, Bound)>,
}

impl Typer {
    fn bound(&self, name: &str) -> Option<&Bound> {
        self.scope.iter().rev().find(|(known, _)| known == name).map(|(_, bound)| bound)
    }

    /// The shape of what an expression evaluates to.
    fn visit(&mut self, at: &mut IdedExpr) -> Known {
        match &mut at.expr {
            Expr::Ident(name) => match self.bound(name) {
                Some(Bound::Value(known)) => known.clone(),
                _ => None,
            },
            Expr::Select(select) => {
                let of = self.visit(&mut select.operand);
                if select.test { None } else { of?.field(&select.field) }
            }
            Expr::Call(_) => self.visit_call(at),
            Expr::List(list) => {
                list.elements.iter_mut().for_each(|element| drop(self.visit(element)));
                None
            }
            Expr::Map(map) => {
                map.entries.iter_mut().for_each(|entry| self.visit_entry(&mut entry.expr));
                None
            }
            Expr::Struct(record) => {
                record.entries.iter_mut().for_each(|entry| self.visit_entry(&mut entry.expr));
                None
            }
            Expr::Comprehension(all) => {
                let item = match &mut all.iter_range.expr {
                    Expr::Call(pairs) if pairs.func_name == PAIRS => {
                        Bound::Pair(pairs.args.first_mut().and_then(|of| self.visit(of)?.held()))
                    }
                    _ => match self.visit(&mut all.iter_range).as_deref() {
                        Some(Shape::List { items, .. }) => Bound::Value(items.clone()),
                        // Of a map these are the keys.
                        _ => Bound::Value(None),
                    },
                };
                self.visit(&mut all.accu_init);
                let outer = self.scope.len();
                self.scope.push((all.iter_var.clone(), item));
                self.scope.extend(all.iter_var2.iter().map(|name| (name.clone(), Bound::Value(None))));
                self.scope.push((all.accu_var.clone(), Bound::Value(None)));
                for part in [&mut all.loop_cond, &mut all.loop_step, &mut all.result] {
                    self.visit(part);
                }
                self.scope.truncate(outer);
                None
            }
            Expr::Literal(_) | Expr::Unspecified => None,
        }
    }

    fn visit_entry(&mut self, entry: &mut EntryExpr) {
        match entry {
            EntryExpr::StructField(field) => drop(self.visit(&mut field.value)),
            EntryExpr::MapEntry(entry) => {
                self.visit(&mut entry.key);
                self.visit(&mut entry.value);
            }
        }
    }

    fn visit_call(&mut self, at: &mut IdedExpr) -> Known {
        let id = at.id;
        let Expr::Call(call) = &mut at.expr else { return None };
        let target = call.target.as_deref_mut().and_then(|target| self.visit(target));
        let args: Vec<Known> = call.args.iter_mut().map(|arg| self.visit(arg)).collect();
        let first = args.first().cloned().flatten();
        match (call.func_name.as_str(), args.len()) {
            (operators::INDEX | operators::OPT_INDEX | operators::OPT_SELECT, 2) => match &call.args[1].expr {
                Expr::Literal(LiteralValue::String(name)) => first?.field(name.inner()),
                place => match (&call.args[0].expr, place) {
                    (Expr::Ident(name), Expr::Literal(LiteralValue::Int(part))) if *part.inner() == 1 => {
                        match self.bound(name) {
                            Some(Bound::Pair(known)) => known.clone(),
                            _ => first?.held(),
                        }
                    }
                    _ => first?.held(),
                },
            },
            // Of optional values.
            ("orValue" | "or" | "value", _) => target,
            (operators::CONDITIONAL, 3) => args[1].clone().or_else(|| args[2].clone()),
            (operators::ADD, 2) => {
                let shape = first?;
                if matches!(*shape, Shape::List { order: Order::Set | Order::Keys(_), .. }) {
                    self.name(call, MERGE, &shape, id);
                    return Some(shape);
                }
                None
            }
            (operators::EQUALS, 2) => {
                self.name(call, SAME, &first?, id);
                None
            }
            (operators::NOT_EQUALS, 2) => {
                self.name(call, SAME, &first?, id);
                let same = IdedExpr { id, expr: std::mem::take(&mut at.expr) };
                let not = CallExpr { func_name: operators::LOGICAL_NOT.to_owned(), target: None, args: vec![same] };
                at.expr = Expr::Call(not);
                None
            }
            _ => None,
        }
    }

    /// Makes of an operator's call one that knows the shape of its left side.
    fn name(&mut self, call: &mut CallExpr, function: &str, shape: &Arc<Shape>, id: u64) {
        let known = self.shapes.iter().position(|other| Arc::ptr_eq(other, shape));
        let place = known.unwrap_or_else(|| {
            self.shapes.push(shape.clone());
            self.shapes.len() - 1
        });
        call.func_name = function.to_owned();
        let place = LiteralValue::Int(i64::try_from(place).unwrap_or_default().into());
        call.args.push(IdedExpr { id, expr: Expr::Literal(place) });
    }
}

thread_local! {
    /// Of the program that runs.
    static SHAPES: RefCell<Vec<Arc<Shape>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` with the shapes of a program.
pub fn with_shapes<T>(shapes: &[Arc<Shape>], work: impl FnOnce() -> T) -> T {
    if shapes.is_empty() {
        return work();
    }
    let outer = SHAPES.replace(shapes.to_vec());
    let outcome = work();
    SHAPES.set(outer);
    outcome
}

fn shape(place: i64) -> Outcome<Arc<Shape>> {
    let place = usize::try_from(place).unwrap_or(usize::MAX);
    let known = SHAPES.with_borrow(|shapes| shapes.get(place).cloned());
    known.ok_or_else(|| failed("list", "its shape is not known"))
}

/// `a == b`, where `a` has the shape.
pub fn same(a: &Value, b: &Value, place: i64) -> Outcome<bool> {
    equal(Some(&*shape(place)?), a, b)
}

fn equal(shape: Option<&Shape>, a: &Value, b: &Value) -> Outcome<bool> {
    match (shape, a, b) {
        (Some(Shape::List { order, items }), Value::List(a), Value::List(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            let items = items.as_deref();
            match order {
                Order::Counts => all(a.iter().zip(b.iter()), |(a, b)| equal(items, a, b)),
                Order::Set => {
                    scalars(a)?;
                    scalars(b)?;
                    equal_by(a, b, |one, other| one == other, |_, _| Ok(true))
                }
                Order::Keys(keys) => {
                    equal_by(a, b, |one, other| same_keys(keys, one, other), |one, other| equal(items, one, other))
                }
            }
        }
        (Some(shape), Value::Map(a), Value::Map(b)) => {
            let (a, b) = (&a.map, &b.map);
            if a.len() != b.len() {
                return Ok(false);
            }
            all(a.iter(), |(key, value)| {
                let known = if let Key::String(name) = key { shape.field(name) } else { None };
                b.get(key).map_or(Ok(false), |other| equal(known.as_deref(), value, other))
            })
        }
        _ => {
            meter::spend(1)?;
            Ok(a == b)
        }
    }
}

fn all<T>(mut items: impl Iterator<Item = T>, holds: impl Fn(T) -> Outcome<bool>) -> Outcome<bool> {
    items.try_fold(true, |so_far, item| Ok(so_far && holds(item)?))
}

/// Every element of `b` stands for one of `a` that is equal to it, and all of `a` have one.
fn equal_by(
    a: &[Value],
    b: &[Value],
    stands_for: impl Fn(&Value, &Value) -> bool,
    equal: impl Fn(&Value, &Value) -> Outcome<bool>,
) -> Outcome<bool> {
    meter::spend((a.len() * b.len()) as u64)?;
    let mut seen = HashSet::new();
    for other in b {
        // Of several with the same keys the last counts.
        let Some(at) = a.iter().rposition(|one| stands_for(one, other)) else { return Ok(false) };
        if !equal(&a[at], other)? {
            return Ok(false);
        }
        seen.insert(at);
    }
    let distinct = |at: usize| !a[at + 1..].iter().any(|later| stands_for(later, &a[at]));
    Ok(seen.len() == (0..a.len()).filter(|at| distinct(*at)).count())
}

fn same_keys(keys: &[String], one: &Value, other: &Value) -> bool {
    let key = |of: &Value, name: &str| match of {
        Value::Map(map) => map.map.get(&Key::String(Arc::new(name.to_owned()))).cloned(),
        _ => None,
    };
    keys.iter().all(|name| key(one, name) == key(other, name))
}

fn scalars(items: &[Value]) -> Outcome<()> {
    match items.iter().any(|item| matches!(item, Value::List(_) | Value::Map(_))) {
        true => Err(failed("list", "listSet operations are only supported on lists of scalar values")),
        false => Ok(()),
    }
}

/// `a + b`, where `a` is a list of the shape: what is in both stays in its place, of keys with `b`'s
/// values, and the rest of `b` follows.
pub fn merge(a: &Value, b: &Value, place: i64) -> Outcome<Value> {
    let shape = shape(place)?;
    let (Shape::List { order, .. }, Value::List(a), Value::List(b)) = (&*shape, a, b) else {
        return Err(failed("list", "no such overload"));
    };
    meter::spend(((a.len() + 1) * (b.len() + 1)) as u64)?;
    let mut merged = a.to_vec();
    if *order == Order::Set {
        scalars(a)?;
        scalars(b)?;
    }
    for item in b.iter() {
        let known = merged.iter().rposition(|one| match order {
            Order::Keys(keys) => same_keys(keys, one, item),
            _ => one == item,
        });
        match known {
            Some(at) => merged[at] = item.clone(),
            None => merged.push(item.clone()),
        }
    }
    Ok(list(merged.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::super::{compile_shaped, from_json};
    use super::*;
    use serde_json::json;

    fn schema() -> Json {
        let texts = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}});
        let item = json!({"type": "object", "properties": {"k": {"type": "string"}, "k2": {"type": "integer"},
            "v": {"type": "integer"}, "set": texts}});
        json!({"type": "object", "properties": {
            "set": texts,
            "namespace": texts,
            "plain": {"type": "array", "items": {"type": "string"}},
            "byKey": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
            "byKeys": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "k2"], "items": item},
            "inner": {"type": "object", "properties": {"set": texts}},
            "map": {"type": "object", "additionalProperties": texts},
            "lists": {"type": "array", "items": {"type": "object", "properties": {"set": texts}}},
        }})
    }

    fn holds(text: &str) -> Result<bool, String> {
        let this = json!({
            "set": ["a", "b", "c"], "__namespace__": ["x", "y"], "plain": ["a", "b"],
            "byKey": [{"k": "a", "v": 1}, {"k": "b", "v": 2}],
            "byKeys": [{"k": "a", "k2": 1, "v": 1}, {"k": "a", "k2": 2, "v": 2}],
            "inner": {"set": ["a", "b"]}, "map": {"m": ["a", "b"]}, "lists": [{"set": ["a", "b"]}],
        });
        let old = json!({
            "set": ["c", "a", "b"], "__namespace__": ["y", "x"], "plain": ["b", "a"],
            "byKey": [{"k": "b", "v": 2}, {"k": "a", "v": 1}],
            "byKeys": [{"k": "a", "k2": 2, "v": 2}, {"k": "a", "k2": 1, "v": 1}],
            "inner": {"set": ["b", "a"]}, "map": {"m": ["b", "a"]}, "lists": [{"set": ["b", "a"]}],
        });
        let program = compile_shaped(text, Shape::of(&schema()).as_ref()).map_err(|error| error.to_string())?;
        program.test(&[("self", from_json(&this)), ("oldSelf", from_json(&old))]).map_err(|error| error.to_string())
    }

    /// Upstream's rows (`TestEquality`, and the set and map lists of `TestValidationExpressions`).
    #[test]
    fn order_does_not_count_where_the_schema_says_so() {
        for (text, expected) in [
            ("self.set == oldSelf.set", true),
            ("self.set != oldSelf.set", false),
            ("self.set == ['c', 'b', 'a']", true),
            ("self.set == ['a', 'b']", false),
            ("self.set == ['a', 'b', 'd']", false),
            ("self.set == ['a', 'b', 'b']", false),
            // The left side says how they are compared.
            ("['c', 'b', 'a'] == self.set", false),
            ("self.__namespace__ == oldSelf.__namespace__", true),
            ("self.plain == oldSelf.plain", false),
            ("self.byKey == oldSelf.byKey", true),
            ("self.byKey == [{'k': 'b', 'v': 2}, {'k': 'a', 'v': 9}]", false),
            ("self.byKey == [{'k': 'b', 'v': 2}, {'k': 'c', 'v': 1}]", false),
            ("self.byKeys == oldSelf.byKeys", true),
            ("self.byKeys != [{'k': 'a', 'k2': 1, 'v': 1}, {'k': 'a', 'k2': 2, 'v': 3}]", true),
            ("self.inner == oldSelf.inner", true),
            ("self.map == oldSelf.map && self.map['m'] == ['b', 'a'] && self.map.m == oldSelf.map.m", true),
            ("self.lists == oldSelf.lists", true),
            ("self.lists[0].set == ['b', 'a']", true),
            ("self.lists.all(l, l.set == ['b', 'a'])", true),
            ("self.lists.exists(i, l, l.set == ['b', 'a'])", true),
            ("(self.plain.size() > 0 ? self.set : oldSelf.set) == ['b', 'a', 'c']", true),
            ("self.?set.orValue([]) == ['b', 'a', 'c']", true),
            // What other functions make of them are plain lists.
            ("self.set.filter(x, true) == ['c', 'b', 'a']", false),
            ("self.set + ['c', 'd'] == ['a', 'b', 'c', 'd']", true),
            ("(self.set + ['d'])[3] == 'd' && (self.set + ['d']) == ['d', 'c', 'b', 'a']", true),
            ("['d'] + self.set == ['d', 'a', 'b', 'c']", true),
            ("(self.plain + ['b']).size() == 3", true),
            ("(self.byKey + [{'k': 'b', 'v': 7}, {'k': 'c', 'v': 8}]).map(x, x.v) == [1, 7, 8]", true),
            ("self.byKeys + [{'k': 'a', 'k2': 3, 'v': 3}] == [{'k': 'a', 'k2': 3, 'v': 3}] + self.byKeys", true),
            ("(self.byKeys + [{'k': 'a', 'k2': 2, 'v': 3}])[1].v == 3", true),
        ] {
            assert_eq!(holds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn shapes_are_only_kept_where_they_matter() {
        assert_eq!(Shape::of(&json!({"type": "object", "properties": {"a": {"type": "array", "items": {}}}})), None);
        assert!(Shape::of(&schema()).is_some());
    }
}
