//! CEL as Kubernetes speaks it: the standard library with the string and list extensions and
//! Kubernetes' own functions ([`library`]), over JSON values.
//!
//! Validation rules of custom resources (`x-kubernetes-validations`), admission policies, match
//! conditions and selectors of devices ([`device`]) use it:
//!
//! ```text
//! let program = compile("self.minReplicas <= self.replicas")?;
//! program.test(&[("self", from_json(&object["spec"]))])?      → true
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod authorizer;
pub mod check;
mod comprehensions;
mod cost;
pub mod decl;
pub mod device;
mod format;
mod formats;
mod library;
pub mod lists;
mod literals;
pub mod meter;
mod nesting;
mod network;
mod parse;
pub mod pattern;
mod quantity;
mod signatures;
mod values;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

pub use cel::Value;
use cel::common::ast::IdedExpr;
use cel::objects::{Key, Map, OptionalValue};
use parking_lot::Mutex;

pub use check::Checked;
pub use cost::{RULE_LIMIT, SCHEMA_LIMIT};
use decl::Decl;
use lists::Shape;
pub use meter::{BUDGET, EXCEEDED, PER_CALL_LIMIT};

/// Programs kept, at most.
const KEPT: usize = 4096;

/// A compiled expression.
pub struct Program {
    /// The tree that is evaluated: it meters itself.
    tree: IdedExpr,
    depth: usize,
    /// What it costs without its loops.
    size: u64,
    names: HashSet<String>,
    variables: Vec<String>,
    /// Of lists whose order does not count.
    shapes: Vec<Arc<Shape>>,
    text: String,
}

/// Why an expression does not compile or cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CelError {
    #[error("compilation failed: {0}")]
    Compile(String),
    #[error("{0}")]
    Evaluate(String),
    #[error("the expression must be a {wanted}, it is a {found}")]
    Type { wanted: &'static str, found: String },
}

/// Compiles an expression.
pub fn compile(text: &str) -> Result<Program, CelError> {
    compile_shaped(text, None)
}

/// Compiles an expression about `self` and `oldSelf`, of which `shape` says what order counts in.
pub fn compile_shaped(text: &str, shape: Option<&Arc<Shape>>) -> Result<Program, CelError> {
    Ok(program(text, parse::parse(text)?, shape))
}

/// Compiles an expression and checks it against the types of its variables.
pub fn compile_checked(text: &str, variables: &[(&str, Decl)]) -> Result<(Program, Checked), CelError> {
    let parsed = parse::parse(text)?;
    let checked = check::check(text, &parsed, variables)?;
    Ok((program(text, parsed, None), checked))
}

/// The program of an expression that is evaluated time and again.
pub fn cached(text: &str) -> Result<Arc<Program>, CelError> {
    static PROGRAMS: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);
    if let Some(known) = PROGRAMS.lock().get(text) {
        return Ok(known.clone());
    }
    let program = Arc::new(compile(text)?);
    let mut programs = PROGRAMS.lock();
    if programs.len() >= KEPT {
        programs.clear();
    }
    programs.insert(text.to_owned(), program.clone());
    Ok(program)
}

fn program(text: &str, parsed: parse::Parsed, shape: Option<&Arc<Shape>>) -> Program {
    let (mut names, mut variables) = (HashSet::new(), Vec::new());
    let depth = parsed.depth;
    parse::with_stack(depth, || {
        parse::names(&parsed.root, &mut names, &mut variables);
        let size = parse::size(&parsed.root);
        let (root, shapes) = match shape {
            Some(shape) => lists::rewritten(parsed.root, shape),
            None => (parsed.root, Vec::new()),
        };
        let tree = meter::rewritten(root);
        // Metering adds a level to each.
        Program { tree, depth: depth * 2, size, names, variables, shapes, text: text.to_owned() }
    })
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Program").field(&self.text).finish()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let tree = std::mem::take(&mut self.tree);
        parse::with_stack(self.depth, || drop(tree));
    }
}

impl Program {
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the expression refers to a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.names.contains(variable)
    }

    /// The members of `variables` that it refers to.
    pub fn variables(&self) -> &[String] {
        &self.variables
    }

    /// Evaluates within `limit`; also gives what was spent.
    pub fn evaluate_within(&self, variables: &[(&str, Value)], limit: u64) -> (Result<Value, CelError>, u64) {
        let run = || {
            meter::spend(self.size).map_err(|error| error.to_string())?;
            let mut scope = library::context().new_inner_scope();
            for (name, value) in variables.iter().filter(|(name, _)| self.uses(name.split('.').next().unwrap_or(name)))
            {
                scope.add_variable_from_value(*name, value.clone());
            }
            Value::resolve(&self.tree, &scope).map_err(said)
        };
        let (outcome, spent) =
            meter::metered(limit, || lists::with_shapes(&self.shapes, || parse::with_stack(self.depth, run)));
        (outcome.map_err(CelError::Evaluate), spent)
    }

    pub fn evaluate(&self, variables: &[(&str, Value)]) -> Result<Value, CelError> {
        self.evaluate_within(variables, PER_CALL_LIMIT).0
    }

    /// Evaluates an expression that must be true or false.
    pub fn test(&self, variables: &[(&str, Value)]) -> Result<bool, CelError> {
        truth(self.evaluate(variables)?)
    }

    /// Evaluates an expression that must be text.
    pub fn text_of(&self, variables: &[(&str, Value)]) -> Result<String, CelError> {
        match self.evaluate(variables)? {
            Value::String(text) => Ok(text.to_string()),
            other => Err(CelError::Type { wanted: "string", found: other.type_of().to_string() }),
        }
    }
}

pub fn truth(value: Value) -> Result<bool, CelError> {
    match value {
        Value::Bool(truth) => Ok(truth),
        other => Err(CelError::Type { wanted: "bool", found: other.type_of().to_string() }),
    }
}

/// An error in cel-go's words.
fn said(error: cel::ExecutionError) -> String {
    use cel::ExecutionError::{
        DivisionByZero, FunctionError, IndexOutOfBounds, NoSuchKey, NoSuchOverload, Overflow, RemainderByZero,
    };
    match error {
        NoSuchKey(key) => format!("no such key: {key}"),
        NoSuchOverload(_) => "no such overload".to_owned(),
        DivisionByZero(_) => "division by zero".to_owned(),
        RemainderByZero(_) => "modulus by zero".to_owned(),
        Overflow(..) => "integer overflow".to_owned(),
        IndexOutOfBounds(index) => match to_json(&index) {
            Some(index) => format!("index out of bounds: {index}"),
            None => "index out of bounds".to_owned(),
        },
        FunctionError { function, message } => match converts_to(&function) {
            Some(wanted) => of_conversion(wanted, message),
            None => message,
        },
        other => other.to_string(),
    }
}

/// The type that a function makes of a string.
fn converts_to(function: &str) -> Option<&'static str> {
    Some(match function {
        "int" => "int",
        "uint" => "uint",
        "double" => "double",
        "bool" => "bool",
        "duration" => "google.protobuf.Duration",
        "timestamp" => "google.protobuf.Timestamp",
        _ => return None,
    })
}

/// Of numbers that another type has no room for it is said that they overflow; of strings never more
/// than that they are not of the type.
fn of_conversion(wanted: &str, message: String) -> String {
    match message.as_str() {
        "integer overflow" | "unsigned integer overflow" => message,
        "timestamp out of range" | "range error parsing timestamp" => "timestamp overflow".to_owned(),
        _ => format!("type conversion error from 'string' to '{wanted}'"),
    }
}

/// JSON as CEL sees it when no schema says more: whole numbers are ints.
pub fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(items) => list(items.iter().map(from_json)),
        serde_json::Value::Object(members) => map(members.iter().map(|(name, value)| (name.clone(), from_json(value)))),
    }
}

pub fn list(items: impl Iterator<Item = Value>) -> Value {
    Value::List(Arc::new(items.collect()))
}

pub fn map(members: impl Iterator<Item = (String, Value)>) -> Value {
    let members: HashMap<Key, Value> = members.map(|(name, value)| (Key::String(Arc::new(name)), value)).collect();
    Value::Map(Map { map: Arc::new(members) })
}

/// A timestamp; `None` outside of what CEL holds.
pub fn timestamp(time: &jiff::Timestamp) -> Option<Value> {
    let nanos = u32::try_from(time.subsec_nanosecond()).ok()?;
    let utc = chrono::DateTime::from_timestamp(time.as_second(), nanos)?;
    Some(Value::Timestamp(utc.fixed_offset()))
}

pub fn duration(nanos: i64) -> Value {
    Value::Duration(chrono::Duration::nanoseconds(nanos))
}

/// `optional.of(value)` or `optional.none()`.
pub fn optional(value: Option<Value>) -> Value {
    Value::Opaque(Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of)))
}

/// CEL's result as JSON; `None` for what JSON cannot say.
pub fn to_json(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(truth) => (*truth).into(),
        Value::Int(number) => (*number).into(),
        Value::UInt(number) => (*number).into(),
        Value::Float(number) => serde_json::Number::from_f64(*number)?.into(),
        Value::String(text) => text.as_str().into(),
        Value::Bytes(bytes) => api::scalar::to_base64(bytes).into(),
        Value::List(items) => items.iter().map(to_json).collect::<Option<Vec<_>>>()?.into(),
        Value::Map(map) => {
            let mut members = serde_json::Map::new();
            for (key, value) in map.map.iter() {
                let Key::String(name) = key else { return None };
                members.insert(name.to_string(), to_json(value)?);
            }
            members.into()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn truth(text: &str) -> Result<bool, String> {
        let object = json!({"replicas": 3, "name": "web-1", "labels": {"a": "1"}, "ports": [80, 443], "cpu": "1500m"});
        compile(text)
            .and_then(|program| program.test(&[("self", from_json(&object))]))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn kubernetes_expressions_hold() {
        for text in [
            "self.replicas <= 5 && self.replicas > 0",
            "has(self.labels) && !has(self.none)",
            "self.ports.all(p, p > 0)",
            "self.name.matches('^web-[0-9]+$')",
            "self.name.startsWith('web') && self.name.size() == 5",
            "'a' in self.labels && self.labels['a'] == '1'",
            "self.name.find('[0-9]+') == '1'",
            "'a1b22'.findAll('[0-9]+') == ['1', '22']",
            "'a1b22'.findAll('[0-9]+', 1) == ['1']",
            "[1, 2, 3].sum() == 6 && [1, 2, 3].isSorted() && [3, 1].max() == 3 && [3, 1].min() == 1",
            "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && 'hello'.indexOf('l') == 2",
            "quantity(self.cpu).isGreaterThan(quantity('1')) && quantity('1Gi').compareTo(quantity('1024Mi')) == 0",
            "isQuantity('1Gi') && !isQuantity('x') && quantity('2').asInteger() == 2 && quantity('50k').isInteger()",
            "quantity('1').add(quantity('500m')).compareTo(quantity('1500m')) == 0 && sign(quantity('3').sub(1)) == 1",
            "quantity('1500m').asApproximateFloat() == 1.5",
            "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('x') && ip('::1').isLoopback()",
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
            "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('10.0.0.0/8').prefixLength() == 8 && isCIDR('::/0')",
            "cidr('10.0.0.0/8').ip() == ip('10.0.0.0') && ip.isCanonical('::1') && !ip.isCanonical('0::1')",
            "url('https://user@example.com:8443/a%20b?x=1').getHost() == 'example.com:8443'",
            "url('https://example.com:8443/a?x=1').getPort() == '8443' && url('http://[::1]/').getHostname() == '::1'",
            "url('https://e.com/p?x=1&y=2&x=3').getQuery()['x'] == ['1', '3'] && url('https://e.com/p').getEscapedPath() == '/p'",
            "isURL('https://e.com') && !isURL('not a url')",
            "string(ip('::1')) == '::1' && string(cidr('10.0.0.0/8')) == '10.0.0.0/8' && type(ip('::1')) == net.IP",
            "type(duration('1s')) == google.protobuf.Duration && [3, 1, 2].sortBy(e, -e) == [3, 2, 1] && lists.range(2) == [0, 1]",
            "url('https://e.com/a b?k 1=v 1#x').getEscapedPath() == '/a%20b' && url('https://e.com/?a=b#x').getQuery() == {'a': ['b']}",
            "!format.dns1123SubdomainPrefix().validate('my.prefix.-').hasValue()",
            "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.2.3').minor() == 2 && isSemver('1.0.0-rc.1') && !isSemver('v1')",
            "semver('1.0.0-alpha').compareTo(semver('1.0.0')) == -1",
            "self.name.upperAscii() == 'WEB-1' && 'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
            "duration('1h') > duration('59m') && timestamp('2024-01-01T00:00:00Z') < timestamp('2024-01-02T00:00:00Z')",
            "self.?none.orValue('x') == 'x'",
            "self.labels.all(k, v, k == 'a' && v == '1') && self.ports.exists(i, v, i == 1 && v == 443)",
            "self.ports.transformList(i, v, i + v) == [80, 444] && self.labels.transformMap(k, v, k + v) == {'a': 'a1'}",
            "self.ports.existsOne(i, v, v == 80) && self.labels.transformMapEntry(k, v, {v: k}) == {'1': 'a'}",
            "[[1, 2], [3]].all(i, l, l.all(j, v, v > i))",
            "sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && !sets.intersects([1], [2])",
            "!format.dns1123Label().validate('abc').hasValue() && format.named('uuid').value().validate('x').hasValue()",
            "semver('v1.2', true).compareTo(semver('1.2.0')) == 0 && isSemver('v1.0', true) && jsonpatch.escapeKey('a/~b') == 'a~1~0b'",
            "'aXbX'.replace('X', 'y', 1) == 'aybX' && ['a', 'b'].join() == 'ab' && 'abc'.matches('b.')",
        ] {
            assert_eq!(truth(text), Ok(true), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(truth("self.replicas <").unwrap_err().starts_with("compilation failed"));
        assert!(truth("self.none > 1").unwrap_err().contains("none"));
        assert!(truth("self.replicas").unwrap_err().contains("must be a bool"));
        assert!(truth("sign(quantity('x')) == 1").unwrap_err().contains("quantit"));
        assert!(truth("1 / 0 == 1").is_err());
        for (text, error) in [
            (
                "ip('1.2.3.4.5').family() == 4",
                "IP Address \"1.2.3.4.5\" parse error during conversion from string: ParseAddr(\"1.2.3.4.5\"): IPv4 address too long",
            ),
            ("ip('::ffff:1.2.3.4').family() == 4", "IPv4-mapped IPv6 address \"::ffff:1.2.3.4\" is not allowed"),
            (
                "cidr('1.2.3.0/').prefixLength() == 4",
                "network address parse error during conversion from string: network address parse error during conversion from string: netip.ParsePrefix(\"1.2.3.0/\"): bad bits after slash: \"\"",
            ),
            (
                "url('a b').getHost() == ''",
                "URL parse error during conversion from string: parse \"a b\": invalid URI for request",
            ),
            ("int('abc') == 1", "type conversion error from 'string' to 'int'"),
            ("int('99999999999999999999') == 1", "type conversion error from 'string' to 'int'"),
            ("int(1e30) == 1", "integer overflow"),
            ("uint('-1') == 1u", "type conversion error from 'string' to 'uint'"),
            ("uint(-1) == 1u", "unsigned integer overflow"),
            ("double('') == 1.0", "type conversion error from 'string' to 'double'"),
            ("bool('yes')", "type conversion error from 'string' to 'bool'"),
            ("duration('5') == duration('5s')", "type conversion error from 'string' to 'google.protobuf.Duration'"),
            ("timestamp('now') == timestamp(0)", "type conversion error from 'string' to 'google.protobuf.Timestamp'"),
        ] {
            assert_eq!(truth(text).unwrap_err(), error);
        }
    }

    #[test]
    fn loops_and_growing_text_are_metered() {
        let list = super::list((0..300).map(Value::Int));
        for text in [
            "l.all(x, l.all(y, l.all(z, x + y + z >= 0)))",
            "l.map(x, l.map(y, l)).size() > 0",
            "l.filter(x, l.exists(y, l.exists(z, z < 0))).size() == 0",
            "l.all(a, b, l.all(c, d, l.all(e, f, a + c + e >= 0)))",
            "l.map(x, 'aaaaaaaaaaaaaaaaaaaa').join('bbbbbbbbbbbbbbbbbbbbbb').replace('a', 'cccccccccccccccccc').size() > 0",
            "l.map(x, '%.255f'.format([1e300])).size() > 0",
        ] {
            let (outcome, spent) = compile(text).unwrap().evaluate_within(&[("l", list.clone())], 5_000);
            assert_eq!((outcome.unwrap_err().to_string().as_str(), spent), (EXCEEDED, 5_000), "{text}");
        }
        let (outcome, spent) = compile("l.map(x, x * 2).sum()").unwrap().evaluate_within(&[("l", list)], 10_000);
        assert!(outcome.is_ok() && spent < 10_000, "{spent}");
    }

    #[test]
    fn a_loop_over_pairs_that_ends_at_once_still_costs_making_them() {
        let list = super::list((0..2000).map(Value::Int));
        let program = compile("l.all(i, v, l.exists(j, w, true))").unwrap();
        let (outcome, _) = program.evaluate_within(&[("l", list)], 200_000);
        assert_eq!(outcome.unwrap_err().to_string(), EXCEEDED);
    }

    #[test]
    fn values_go_both_ways() {
        let value = json!({"a": [1, 2.5, "x", null, true], "b": {"c": -1}});
        assert_eq!(to_json(&from_json(&value)), Some(value));
    }

    proptest! {
        #[test]
        fn random_expressions_never_panic(text in "[a-c0-9.()\\[\\]+*<>=!&|?:'\", ]{0,40}") {
            if let Ok(program) = compile(&text) {
                let _ = program.test(&[("a", from_json(&json!({"b": 1})))]);
            }
        }
    }
}
