//! Selectors of devices (`k8s.io/dynamic-resource-allocation/cel/compile.go`): one variable,
//! `device`, and an answer of yes or no.
//!
//! ```text
//! let selector = device::compile("device.attributes['gpu.example.com'].cores >= 8")?;
//! selector.matches("gpu.example.com", &device)?      → true
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr, operators,
};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use parking_lot::Mutex;

use crate::decl::{Decl, Kind};
use crate::library::opaque;
use crate::quantity::Amount;
use crate::values::Semver;
use crate::{CelError, Checked, Program, Value, check, map, parse};

/// What one selector may cost for one device, in the units of CEL.
pub const MOST: u64 = 1_000_000;
/// Characters of a driver's name, or of the domain of an attribute.
const DOMAIN: u64 = 63;
/// Characters of an attribute's name without its domain.
const ID: u64 = 32;
/// Characters of an attribute's value.
const VALUE: u64 = 64;
/// Attributes and capacities of a device.
const MOST_ATTRIBUTES: u64 = 32;
/// Compiled selectors that are kept, at most.
const KEPT: usize = 64;

/// The variable of selectors.
fn declaration() -> Decl {
    let sized = |size| Decl::sized(Kind::String, size);
    let by_name = |value| Decl::map(sized(DOMAIN), Decl::map(sized(ID), value, MOST_ATTRIBUTES), MOST_ATTRIBUTES);
    Decl::object(
        "kubernetes.DRADevice",
        [
            ("driver", sized(DOMAIN)),
            ("allowMultipleAllocations", Decl::new(Kind::Bool)),
            ("attributes", by_name(Decl::sized(Kind::Dyn, VALUE))),
            ("capacity", by_name(Decl::new(Kind::Opaque("kubernetes.Quantity")))),
        ]
        .map(|(name, decl)| (name.to_owned(), decl)),
    )
}

/// Compiles a selector; also gives its type and what it may cost.
pub fn compile_checked(text: &str) -> Result<(Selector, Checked), CelError> {
    let mut parsed = parse::parse(text)?;
    parse::with_stack(parsed.depth, || each(&mut parsed.root, &mut bindings));
    // A binding is a loop around what it is for.
    parsed.depth += 1;
    let checked = check::check(text, &parsed, &[("device", declaration())])?;
    parse::with_stack(parsed.depth, || each(&mut parsed.root, &mut with_default));
    // A default adds two levels.
    parsed.depth *= 3;
    Ok((Selector(crate::program(text, parsed, None)), checked))
}

/// A compiled selector.
#[derive(Debug)]
pub struct Selector(Program);

impl Selector {
    /// Whether it selects a driver's device. The error is what upstream says of a failed evaluation.
    pub fn matches(&self, driver: &str, device: &Device) -> Result<bool, String> {
        let variable = value_of(driver, device)?;
        let (outcome, _) = self.0.evaluate_within(&[("device", variable)], MOST);
        match outcome.map_err(|error| with_hint(error.to_string()))? {
            Value::Bool(yes) => Ok(yes),
            other => Err(format!("CEL result of type {} could not be converted to bool", other.type_of())),
        }
    }
}

fn with_hint(error: String) -> String {
    if error.contains("no such key:") {
        return format!(
            "{error}. consider using CEL optional chaining (.? followed by orValue()) or guarding the check with has() for optional fields"
        );
    }
    error
}

/// Selectors that were compiled before. Empty until the first is used.
#[derive(Debug, Default)]
pub struct Cache {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    selectors: HashMap<String, Kept>,
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    selector: Result<Arc<Selector>, CelError>,
    /// Which use of the cache was the last of this one.
    used: u64,
}

impl Cache {
    pub fn get(&self, text: &str) -> Result<Arc<Selector>, CelError> {
        let mut known = self.known.lock();
        known.uses += 1;
        let used = known.uses;
        if let Some(kept) = known.selectors.get_mut(text) {
            kept.used = used;
            return kept.selector.clone();
        }
        let selector = compile_checked(text).map(|(selector, _)| Arc::new(selector));
        known.keep(text, Kept { selector: selector.clone(), used });
        selector
    }
}

impl Known {
    /// The one that was not used for longest makes room.
    fn keep(&mut self, text: &str, kept: Kept) {
        if self.selectors.len() >= KEPT {
            let oldest = self.selectors.iter().min_by_key(|(_, kept)| kept.used).map(|(text, _)| text.clone());
            oldest.map(|text| self.selectors.remove(&text));
        }
        self.selectors.insert(text.to_owned(), kept);
    }
}

/// The variable's value for one device.
fn value_of(driver: &str, device: &Device) -> Result<Value, String> {
    let mut attributes = Domains::default();
    for (name, attribute) in device.attributes.iter().flatten() {
        let value = attribute_value(attribute).map_err(|why| format!("attribute {name}: {why}"))?;
        attributes.insert(driver, name, value);
    }
    let mut capacity = Domains::default();
    for (name, amount) in device.capacity.iter().flatten() {
        let value = Amount::parse(&amount.value.0).map_err(|why| format!("capacity {name}: {why}"))?;
        capacity.insert(driver, name, opaque(value));
    }
    let fields = [
        ("driver", Value::from(driver)),
        ("allowMultipleAllocations", Value::Bool(device.allow_multiple_allocations == Some(true))),
        ("attributes", attributes.value()),
        ("capacity", capacity.value()),
    ];
    Ok(map(fields.into_iter().map(|(name, value)| (name.to_owned(), value))))
}

/// Values by domain and name.
#[derive(Default)]
struct Domains<'a>(BTreeMap<&'a str, Vec<(String, Value)>>);

impl<'a> Domains<'a> {
    /// A name without a domain is in the driver's.
    fn insert(&mut self, driver: &'a str, name: &'a str, value: Value) {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        self.0.entry(domain).or_default().push((id.to_owned(), value));
    }

    fn value(self) -> Value {
        map(self.0.into_iter().map(|(domain, values)| (domain.to_owned(), map(values.into_iter()))))
    }
}

fn attribute_value(attribute: &DeviceAttribute) -> Result<Value, &'static str> {
    if let Some(number) = attribute.int {
        return Ok(Value::Int(number));
    }
    if let Some(truth) = attribute.bool {
        return Ok(Value::Bool(truth));
    }
    if let Some(text) = &attribute.string {
        return Ok(text.as_str().into());
    }
    let Some(version) = &attribute.version else { return Err("unsupported attribute value") };
    Semver::parse(version).map(opaque).ok_or("parse semantic version: no Major.Minor.Patch elements found")
}

/// Changes every node of a tree, the innermost first.
fn each(node: &mut IdedExpr, change: &mut impl FnMut(&mut IdedExpr)) {
    match &mut node.expr {
        Expr::Call(call) => {
            call.target.as_deref_mut().into_iter().chain(&mut call.args).for_each(|inner| each(inner, change));
        }
        Expr::List(list) => list.elements.iter_mut().for_each(|inner| each(inner, change)),
        Expr::Select(select) => each(&mut select.operand, change),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| each_of(&mut entry.expr, change)),
        Expr::Struct(record) => record.entries.iter_mut().for_each(|entry| each_of(&mut entry.expr, change)),
        Expr::Comprehension(all) => {
            [&mut all.iter_range, &mut all.accu_init, &mut all.loop_cond, &mut all.loop_step, &mut all.result]
                .into_iter()
                .for_each(|inner| each(inner, change));
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
    change(node);
}

fn each_of(entry: &mut EntryExpr, change: &mut impl FnMut(&mut IdedExpr)) {
    match entry {
        EntryExpr::StructField(field) => each(&mut field.value, change),
        EntryExpr::MapEntry(entry) => {
            each(&mut entry.key, change);
            each(&mut entry.value, change);
        }
    }
}

/// `cel.bind(name, value, expression)`: a loop over nothing whose accumulator is the name.
fn bindings(node: &mut IdedExpr) {
    let id = node.id;
    let Expr::Call(call) = &mut node.expr else { return };
    let of_cel = call.target.as_ref().is_some_and(|target| matches!(&target.expr, Expr::Ident(name) if name == "cel"));
    if call.func_name != "bind" || !of_cel {
        return;
    }
    let [IdedExpr { expr: Expr::Ident(name), .. }, value, result] = call.args.as_mut_slice() else { return };
    let make = |expr| IdedExpr { id, expr };
    let all = ComprehensionExpr {
        iter_range: make(Expr::List(ListExpr::new(Vec::new()))),
        iter_var: "#unused".to_owned(),
        iter_var2: None,
        accu_var: name.clone(),
        accu_init: std::mem::take(value),
        loop_cond: make(Expr::Literal(LiteralValue::Boolean(false.into()))),
        loop_step: make(Expr::Ident(name.clone())),
        result: std::mem::take(result),
    };
    node.expr = Expr::Comprehension(Box::new(all));
}

/// A domain that a device says nothing about is empty, not missing: `device.attributes[domain]` is
/// read as `device.attributes[?domain].orValue({})`.
fn with_default(node: &mut IdedExpr) {
    let id = node.id;
    let args = match &mut node.expr {
        Expr::Call(call) if call.func_name == operators::INDEX && call.args.first().is_some_and(is_domains) => {
            std::mem::take(&mut call.args)
        }
        Expr::Select(select) if !select.test && is_domains(&select.operand) => {
            let name = LiteralValue::String(std::mem::take(&mut select.field).into());
            vec![std::mem::take(&mut *select.operand), IdedExpr { id, expr: Expr::Literal(name) }]
        }
        _ => return,
    };
    let call = |name: &str, target, args| Expr::Call(CallExpr { func_name: name.to_owned(), target, args });
    let found = IdedExpr { id, expr: call(operators::OPT_INDEX, None, args) };
    let empty = IdedExpr { id, expr: Expr::Map(MapExpr { entries: Vec::new() }) };
    node.expr = call("orValue", Some(Box::new(found)), vec![empty]);
}

/// Whether this is `device.attributes` or `device.capacity`.
fn is_domains(node: &IdedExpr) -> bool {
    let Expr::Select(select) = &node.expr else { return false };
    matches!(select.field.as_str(), "attributes" | "capacity")
        && matches!(&select.operand.expr, Expr::Ident(name) if name == "device")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_cost_what_upstream_estimates() {
        for (text, cost) in [
            ("true", 0),
            ("\"dra.example.com\" in device.attributes", 3),
            ("device.driver == \"dra.example.com\"", 4),
            ("device.attributes[\"dra.example.com\"].name", 4),
            ("device.attributes[\"dra.example.com\"].name > 0", 5),
            ("device.attributes[\"dra.example.com\"].name == \"fish\"", 5),
            ("device.attributes[\"dra.example.com\"].name.exists(x, x > 0)", 5 + 6 * 64),
            ("device.attributes[\"dra.example.com\"].name.isGreaterThan(semver(\"0.0.1\"))", 6),
            ("device.capacity[\"dra.example.com\"].name.isGreaterThan(quantity(\"1Ki\"))", 6),
            ("device.attributes.exists_one(x, x == \"dra.example.com\")", 164),
            ("device.attributes[\"dra.example.com\"].exists_one(x, x == \"services\")", 133),
            ("device.attributes[\"dra.example.com\"].services.split(\"example\").size() >= 2", 19),
            ("device.attributes[\"dra.example.com\"].services.matches(\"[^a]?sym\")", 18),
            ("device.allowMultipleAllocations == false", 3),
        ] {
            let (_, checked) = compile_checked(text).unwrap();
            assert_eq!(checked.cost, cost, "{text}");
        }
    }

    #[test]
    fn selectors_select() {
        let device: Device = serde_json::from_value(json!({
            "name": "d", "allowMultipleAllocations": true,
            "attributes": {"n": {"int": 3}, "yes": {"bool": true}, "word": {"string": "fish"},
                "other.example.com/v": {"version": "1.2.3"}},
            "capacity": {"memory": {"value": "2Gi"}},
        }))
        .unwrap();
        let no_key = "no such key: nothing. consider using CEL optional chaining (.? followed by orValue()) or guarding the check with has() for optional fields";
        for (text, want) in [
            ("true", Ok(true)),
            ("device.driver == 'dra.example.com'", Ok(true)),
            ("'dra.example.com' in device.attributes", Ok(true)),
            ("'none' in device.attributes", Ok(false)),
            ("device.attributes['none'].nothing == 1", Err(no_key)),
            ("device.attributes['none'].?nothing.orValue(1) == 1", Ok(true)),
            ("has(device.attributes['none'].nothing)", Ok(false)),
            ("device.attributes['dra.example.com'].n > 2", Ok(true)),
            ("device.attributes['dra.example.com'].yes", Ok(true)),
            ("device.attributes['dra.example.com']['word'] == 'fish'", Ok(true)),
            ("device.attributes['other.example.com'].v.isGreaterThan(semver('1.0.0'))", Ok(true)),
            ("cel.bind(dra, device.attributes['dra.example.com'], dra.n == 3 && dra.yes)", Ok(true)),
            ("device.capacity['dra.example.com'].memory.compareTo(quantity('1Gi')) > 0", Ok(true)),
            ("'memory' in device.capacity['none'] || device.allowMultipleAllocations", Ok(true)),
            ("device.attributes['dra.example.com'].n", Err("CEL result of type int could not be converted to bool")),
        ] {
            let (selector, _) = compile_checked(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.matches("dra.example.com", &device), want.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn selectors_are_kept_within_bounds() {
        let cache = Cache::default();
        for n in 0..=KEPT {
            cache.get(&format!("{n} == {n}")).unwrap();
            cache.get("0 == 0").unwrap();
        }
        let kept = |text: &str| cache.known.lock().selectors.contains_key(text);
        assert_eq!(cache.known.lock().selectors.len(), KEPT);
        assert!(kept("0 == 0") && !kept("1 == 1") && kept("2 == 2"), "only the one unused for longest is gone");
        assert!(cache.get("?!").is_err() && cache.get("?!").is_err());
    }
}
