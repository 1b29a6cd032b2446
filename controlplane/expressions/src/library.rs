//! Kubernetes' functions for CEL (`k8s.io/apiserver/pkg/cel/library`): quantities, addresses, URLs,
//! versions, regular expressions and lists.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use cel::common::types::{DURATION_TYPE, DYN_TYPE, LIST_TYPE, TIMESTAMP_TYPE, Type};
use cel::common::value::CowVal;
use cel::extractors::{Arguments, This};
use cel::objects::{Key, Opaque};
use cel::{Context, Env, ExecutionError, Value, extensions};
use parking_lot::Mutex;
use regex::Regex;

use crate::authorizer::{Authorizer, Decision};
use crate::formats::NamedFormat;
use crate::network::{Cidr, Ip, Url, ip, link_local, link_local_multicast, parse_ip};
use crate::quantity::{Amount, amount, as_integer, quantity_of};
use crate::values::{Semver, compare};
use crate::{comprehensions, format, formats, list, lists, meter, network, optional, pattern};

pub(crate) type Outcome<T> = Result<T, ExecutionError>;

/// A compiled regular expression is no larger than this: others are refused.
const MAX_REGEX: usize = 1 << 20;
/// Compiled regular expressions kept, at most.
const KEPT_REGEXES: usize = 256;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(build_environment()));
static CONTEXT: LazyLock<Context<'static, 'static>> = LazyLock::new(build_context);

pub fn environment() -> &'static Env {
    &ENVIRONMENT
}

/// Holds the functions; evaluations add their variables in a scope of their own.
pub fn context() -> &'static Context<'static, 'static> {
    &CONTEXT
}

fn build_environment() -> Env {
    let mut env = Env::stdlib();
    // The names are disjoint: none of these can fail, and a missing one only misses its functions.
    let _ = env.add_extension(extensions::strings);
    let _ = env.add_extension(extensions::lists);
    let _ = env.add_member_overload("indexOf", "list.indexOf(dyn)", LIST_TYPE, vec![DYN_TYPE], index_of);
    let _ = env.add_member_overload("lastIndexOf", "list.lastIndexOf(dyn)", LIST_TYPE, vec![DYN_TYPE], last_index_of);
    for (name, id) in [("net.IP", "ip_to_string"), ("net.CIDR", "cidr_to_string")] {
        let _ = env.add_overload("string", id, vec![Type::new_opaque_type(name)], network::to_string);
    }
    for name in OPAQUE_TYPES {
        let _ = env.add_type(Type::new_opaque_type(*name));
    }
    let _ = env.add_type(TIMESTAMP_TYPE);
    let _ = env.add_type(DURATION_TYPE);
    meter::extend(&mut env);
    comprehensions::extend(&mut env);
    env
}

/// Types of Kubernetes' own that expressions may name.
const OPAQUE_TYPES: &[&str] = &[
    "net.IP",
    "net.CIDR",
    "kubernetes.Quantity",
    "kubernetes.URL",
    "kubernetes.Semver",
    "kubernetes.NamedFormat",
    "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.PathCheck",
    "kubernetes.authorization.GroupCheck",
    "kubernetes.authorization.ResourceCheck",
    "kubernetes.authorization.Decision",
];

/// Whether a name is that of a type: `int`, `google.protobuf.Duration`, `net.IP`.
pub fn is_type(name: &str) -> bool {
    const TYPES: &[&str] = &[
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "optional_type",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
    ];
    TYPES.contains(&name) || OPAQUE_TYPES.contains(&name)
}

/// Registers functions; names are disjoint from the environment's overloads.
macro_rules! functions {
    ($context:ident: $($name:literal => $function:expr),+ $(,)?) => { $(let _ = $context.add_function($name, $function);)+ };
}

fn build_context() -> Context<'static, 'static> {
    let mut context = Context::with_env(ENVIRONMENT.clone());
    functions! { context:
        "quantity" => |text: Arc<String>| Amount::parse(&text).map(opaque),
        "isQuantity" => |text: Arc<String>| Amount::parse(&text).is_ok(),
        "isInteger" => |This(this): This<Value>| Ok::<_, ExecutionError>(quantity_of(&this)?.is_integer()),
        "asInteger" => |This(this): This<Value>| as_integer(&this),
        "asApproximateFloat" => |This(this): This<Value>| Ok::<_, ExecutionError>(quantity_of(&this)?.approximate()),
        "sign" => |of: Value| Ok::<_, ExecutionError>(quantity_of(&of)?.sign()),
        "add" => |This(this): This<Value>, other: Value| Ok::<_, ExecutionError>(opaque(quantity_of(&this)?.plus(&amount(&other)?))),
        "sub" => |This(this): This<Value>, other: Value| Ok::<_, ExecutionError>(opaque(quantity_of(&this)?.minus(&amount(&other)?))),
        "compareTo" => |This(this): This<Value>, other: Value| compare(&this, &other),
        "isGreaterThan" => |This(this): This<Value>, other: Value| compare(&this, &other).map(|order| order > 0),
        "isLessThan" => |This(this): This<Value>, other: Value| compare(&this, &other).map(|order| order < 0),
        "semver" => |Arguments(args): Arguments| {
            semver(&args).map(opaque).ok_or_else(|| failed("semver", "No Major.Minor.Patch elements found"))
        },
        "isSemver" => |Arguments(args): Arguments| semver(&args).is_some(),
        "major" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Semver>(&this)?.numbers[0]),
        "minor" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Semver>(&this)?.numbers[1]),
        "patch" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Semver>(&this)?.numbers[2]),
        "find" => |This(this): This<Arc<String>>, pattern: Arc<String>| {
            Ok::<Value, ExecutionError>(regex(&pattern, &this)?.find(&this).map_or("", |found| found.as_str()).into())
        },
        "findAll" => find_all,
        "isSorted" => |This(this): This<Arc<Vec<Value>>>| {
            this.windows(2).try_fold(true, |sorted, pair| Ok::<_, ExecutionError>(sorted && order(&pair[0], &pair[1])?.is_le()))
        },
        "sum" => |This(this): This<Arc<Vec<Value>>>| sum(&this),
        "min" => |This(this): This<Arc<Vec<Value>>>| extreme("min", &this, std::cmp::Ordering::Less),
        "max" => |This(this): This<Arc<Vec<Value>>>| extreme("max", &this, std::cmp::Ordering::Greater),
        "ip" => ip,
        "isIP" => |text: Arc<String>| parse_ip(&text).is_ok(),
        "ip.isCanonical" => |text: Arc<String>| {
            parse_ip(&text).map(|ip| ip.to_string() == *text).map_err(|why| failed("ip.isCanonical", why))
        },
        "family" => |This(this): This<Value>| Ok::<_, ExecutionError>(if known::<Ip>(&this)?.0.is_ipv4() { 4_i64 } else { 6 }),
        "isUnspecified" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Ip>(&this)?.0.is_unspecified()),
        "isLoopback" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Ip>(&this)?.0.is_loopback()),
        "isLinkLocalUnicast" => |This(this): This<Value>| Ok::<_, ExecutionError>(link_local(known::<Ip>(&this)?.0)),
        "isLinkLocalMulticast" => |This(this): This<Value>| Ok::<_, ExecutionError>(link_local_multicast(known::<Ip>(&this)?.0)),
        "isGlobalUnicast" => |This(this): This<Value>| {
            let ip = known::<Ip>(&this)?.0;
            let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            Ok::<_, ExecutionError>(!(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local(ip) || broadcast))
        },
        "cidr" => |text: Arc<String>| Cidr::parse(&text).map(opaque).map_err(|why| {
            failed("cidr", format!("network address parse error during conversion from string: {why}"))
        }),
        "isCIDR" => |text: Arc<String>| Cidr::parse(&text).is_ok(),
        "containsIP" => |This(this): This<Value>, other: Value| {
            let ip = match &other {
                Value::String(text) => parse_ip(text).map_err(|why| failed("containsIP", why))?,
                other => known::<Ip>(other)?.0,
            };
            Ok::<_, ExecutionError>(known::<Cidr>(&this)?.contains(ip))
        },
        "containsCIDR" => |This(this): This<Value>, other: Value| {
            let inner = match &other {
                Value::String(text) => Cidr::parse(text).map_err(|why| failed("containsCIDR", why))?,
                other => known::<Cidr>(other)?.clone(),
            };
            let outer = known::<Cidr>(&this)?;
            Ok::<_, ExecutionError>(outer.length <= inner.length && outer.contains(inner.ip))
        },
        "prefixLength" => |This(this): This<Value>| Ok::<_, ExecutionError>(i64::from(known::<Cidr>(&this)?.length)),
        "masked" => |This(this): This<Value>| Ok::<_, ExecutionError>(opaque(known::<Cidr>(&this)?.masked())),
        "url" => |text: Arc<String>| Url::parse(&text).map(opaque).ok_or_else(|| {
            failed("url", format!("URL parse error during conversion from string: parse {text:?}: invalid URI for request"))
        }),
        "isURL" => |text: Arc<String>| Url::parse(&text).is_some(),
        "getScheme" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.scheme.as_str().into()),
        "getHost" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.host.as_str().into()),
        "getHostname" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.split_port().0.trim_matches(['[', ']']).into()),
        "getPort" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.split_port().1.into()),
        "getEscapedPath" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.path.as_str().into()),
        "getQuery" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Url>(&this)?.query_map()),
    }
    functions! { context:
        // In place of those of the interpreter: these meter what they do.
        "@matches" => |This(this): This<Arc<String>>, pattern: Arc<String>| {
            regex(&pattern, &this).map(|regex| regex.is_match(&this))
        },
        "@replace" => replace,
        "@join" => join,
        "@format" => format::format,
        "@pairs" => |of: Value| pairs(&of),
        "@unpairs" => |of: Arc<Vec<Value>>| unpairs(&of),
        "@same" => |a: Value, b: Value, shape: i64| lists::same(&a, &b, shape),
        "@merge" => |a: Value, b: Value, shape: i64| lists::merge(&a, &b, shape),
        "sets.contains" => |a: Arc<Vec<Value>>, b: Arc<Vec<Value>>| {
            meter::spend((a.len() * b.len()) as u64)?;
            Ok::<_, ExecutionError>(b.iter().all(|item| a.contains(item)))
        },
        "sets.intersects" => |a: Arc<Vec<Value>>, b: Arc<Vec<Value>>| {
            meter::spend((a.len() * b.len()) as u64)?;
            Ok::<_, ExecutionError>(b.iter().any(|item| a.contains(item)))
        },
        "sets.equivalent" => |a: Arc<Vec<Value>>, b: Arc<Vec<Value>>| {
            meter::spend(2 * (a.len() * b.len()) as u64)?;
            Ok::<_, ExecutionError>(b.iter().all(|item| a.contains(item)) && a.iter().all(|item| b.contains(item)))
        },
        "format.named" => |name: Arc<String>| optional(NamedFormat::named(&name).map(opaque)),
        "validate" => |This(this): This<Value>, text: Arc<String>| {
            let problem = known::<NamedFormat>(&this)?.problem(&text);
            Ok::<_, ExecutionError>(optional(problem.map(|problem| list(std::iter::once(problem.into())))))
        },
        "jsonpatch.escapeKey" => |key: Arc<String>| key.replace('~', "~0").replace('/', "~1"),
        "serviceAccount" => |This(this): This<Value>, namespace: Arc<String>, name: Arc<String>| {
            Ok::<_, ExecutionError>(opaque(known::<Authorizer>(&this)?.service_account(&namespace, &name)))
        },
        "check" => |This(this): This<Value>, verb: Arc<String>| known::<Authorizer>(&this)?.check(&verb).map(opaque),
        "allowed" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Decision>(&this)?.allowed),
        "errored" => |This(this): This<Value>| known::<Decision>(&this).map(|_| false),
        "reason" => |This(this): This<Value>| known::<Decision>(&this).map(|_| Value::from("")),
        "error" => |This(this): This<Value>| known::<Decision>(&this).map(|_| Value::from("")),
    }
    for part in ["path", "group", "resource", "subresource", "namespace", "name", "fieldSelector", "labelSelector"] {
        let _ = context.add_function(part, move |This(this): This<Value>, value: Arc<String>| {
            Ok::<_, ExecutionError>(opaque(known::<Authorizer>(&this)?.with(part, &value)))
        });
    }
    for name in formats::NAMES {
        let _ = context.add_function(&format!("format.{name}"), move || {
            NamedFormat::named(name).map(opaque).ok_or_else(|| failed("format", "unknown format"))
        });
    }
    context
}

/// `semver(text)`, or `semver(text, true)` which makes a version of what is nearly one.
fn semver(args: &[Value]) -> Option<Semver> {
    match args {
        [Value::String(text)] | [Value::String(text), Value::Bool(false)] => Semver::parse(text),
        [Value::String(text), Value::Bool(true)] => Semver::normalized(text),
        _ => None,
    }
}

fn replace(This(this): This<Arc<String>>, Arguments(args): Arguments) -> Outcome<Value> {
    let (from, to, times) = match args.as_slice() {
        [Value::String(from), Value::String(to)] => (from, to, usize::MAX),
        [Value::String(from), Value::String(to), Value::Int(times)] => {
            (from, to, usize::try_from(*times).unwrap_or(usize::MAX))
        }
        other => return Err(ExecutionError::invalid_argument_count(2, other.len())),
    };
    let most = if from.is_empty() { this.len() + 1 } else { this.len() / from.len() }.min(times);
    meter::spend((this.len() + most * to.len()) as u64 / 10 + 1)?;
    Ok(this.replacen(from.as_str(), to, times).into())
}

fn join(This(this): This<Arc<Vec<Value>>>, Arguments(args): Arguments) -> Outcome<Value> {
    let between = match args.as_slice() {
        [] => "",
        [Value::String(between)] => between.as_str(),
        other => return Err(ExecutionError::invalid_argument_count(1, other.len())),
    };
    let mut texts = Vec::with_capacity(this.len());
    for item in this.iter() {
        let Value::String(text) = item else { return Err(failed("join", "no such overload")) };
        meter::spend((text.len() + between.len()) as u64 / 10 + 1)?;
        texts.push(text.as_str());
    }
    Ok(texts.join(between).into())
}

/// `[key, value]` of each entry, or `[index, element]`.
fn pairs(of: &Value) -> Outcome<Value> {
    let pair = |first: Value, second: &Value| list([first, second.clone()].into_iter());
    // All are made, also for a loop that ends with the first.
    let count = match of {
        Value::List(items) => items.len(),
        Value::Map(entries) => entries.map.len(),
        _ => 0,
    };
    meter::spend(count as u64 / 10 + 1)?;
    match of {
        Value::List(items) => Ok(list(items.iter().enumerate().map(|(at, item)| pair(Value::Int(at as i64), item)))),
        Value::Map(entries) => Ok(list(entries.map.iter().map(|(key, value)| pair(key.into(), value)))),
        other => Err(failed(
            "comprehension",
            format!("expression of type '{}' cannot be range of a comprehension", other.type_of()),
        )),
    }
}

fn key(of: &Value) -> Outcome<Key> {
    match of {
        Value::String(text) => Ok(Key::String(text.clone())),
        Value::Int(number) => Ok(Key::Int(*number)),
        Value::UInt(number) => Ok(Key::Uint(*number)),
        Value::Bool(truth) => Ok(Key::Bool(*truth)),
        other => Err(ExecutionError::UnsupportedKeyType(other.clone())),
    }
}

/// A map of pairs and of maps with one entry.
fn unpairs(of: &[Value]) -> Outcome<Value> {
    let mut entries = HashMap::new();
    for item in of {
        let fresh: Vec<(Key, Value)> = match item {
            Value::List(pair) if pair.len() == 2 => {
                vec![(key(&pair[0])?, pair[1].clone())]
            }
            Value::Map(map) => map.map.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            _ => return Err(failed("transformMapEntry", "no such overload")),
        };
        for (key, value) in fresh {
            if entries.insert(key.clone(), value).is_some() {
                return Err(failed("transformMapEntry", format!("insert failed: key {key} already exists")));
            }
        }
    }
    Ok(Value::Map(cel::objects::Map { map: Arc::new(entries) }))
}

pub(crate) fn failed(function: &str, why: impl ToString) -> ExecutionError {
    ExecutionError::function_error(function, why)
}

pub(crate) fn opaque(value: impl Opaque) -> Value {
    Value::Opaque(Arc::new(value))
}

pub(crate) fn known<T: Opaque + 'static>(value: &Value) -> Outcome<&T> {
    let found = match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<T>(),
        _ => None,
    };
    found.ok_or_else(|| ExecutionError::UnexpectedType {
        got: value.type_of().to_string(),
        want: std::any::type_name::<T>().rsplit(':').next().unwrap_or_default().to_lowercase(),
    })
}

macro_rules! opaque_type {
    ($type:ty, $name:literal) => {
        impl Opaque for $type {
            fn runtime_type_name(&self) -> &str {
                $name
            }
        }
    };
}
pub(crate) use opaque_type;

/// A compiled pattern, about to be searched for in `text`.
fn regex(pattern: &str, text: &str) -> Outcome<Arc<Regex>> {
    static KNOWN: LazyLock<Mutex<HashMap<String, Arc<Regex>>>> = LazyLock::new(Mutex::default);
    meter::spend((text.len() as u64 / 10 + 1) * (pattern.len() as u64 / 4 + 1))?;
    if let Some(known) = KNOWN.lock().get(pattern) {
        return Ok(known.clone());
    }
    let compiled = Arc::new(compiled(pattern).map_err(|why| failed("matches", why))?);
    let mut known = KNOWN.lock();
    if known.len() >= KEPT_REGEXES {
        known.clear();
    }
    known.insert(pattern.to_owned(), compiled.clone());
    Ok(compiled)
}

/// A regular expression; `Err` says in a line what is wrong with it.
pub(crate) fn compiled(pattern: &str) -> Result<Regex, String> {
    pattern::compile(pattern, MAX_REGEX)
}

fn find_all(This(this): This<Arc<String>>, Arguments(arguments): Arguments) -> Outcome<Value> {
    // As a method the arguments are the pattern and, perhaps, how many to find.
    let (pattern, limit) = match arguments.as_slice() {
        [Value::String(pattern)] => (pattern, usize::MAX),
        [Value::String(pattern), Value::Int(limit)] => (pattern, usize::try_from(*limit).unwrap_or(usize::MAX)),
        other => return Err(ExecutionError::invalid_argument_count(1, other.len())),
    };
    let regex = regex(pattern, &this)?;
    Ok(list(regex.find_iter(&this).take(limit).map(|found| found.as_str().into())))
}

fn order(a: &Value, b: &Value) -> Outcome<std::cmp::Ordering> {
    a.partial_cmp(b).ok_or_else(|| ExecutionError::ValuesNotComparable(a.clone(), b.clone()))
}

fn sum(items: &[Value]) -> Outcome<Value> {
    let mut items = items.iter();
    let Some(first) = items.next() else { return Ok(Value::Int(0)) };
    items.try_fold(first.clone(), |total, item| match (total, item) {
        (Value::Int(a), Value::Int(b)) => {
            a.checked_add(*b).map(Value::Int).ok_or_else(|| failed("sum", "integer overflow"))
        }
        (Value::UInt(a), Value::UInt(b)) => {
            a.checked_add(*b).map(Value::UInt).ok_or_else(|| failed("sum", "unsigned integer overflow"))
        }
        (Value::Float(a), Value::Float(b)) => Ok(Value::Float(a + b)),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(b).map(Value::Duration).ok_or_else(|| failed("sum", "duration overflow"))
        }
        (a, b) => Err(ExecutionError::UnsupportedBinaryOperator("sum", a, b.clone())),
    })
}

fn extreme(name: &str, items: &[Value], wanted: std::cmp::Ordering) -> Outcome<Value> {
    let mut items = items.iter();
    let first = items.next().ok_or_else(|| failed(name, format!("{name} called on empty list")))?;
    let best = items.try_fold(first, |best, item| {
        Ok::<_, ExecutionError>(if order(item, best)? == wanted { item } else { best })
    })?;
    Ok(best.clone())
}

fn list_and_item(args: &[CowVal<'_, '_>]) -> Outcome<(Vec<Value>, Value)> {
    let [items, item] = args else { return Err(ExecutionError::invalid_argument_count(2, args.len())) };
    let Value::List(items) = Value::try_from(items.as_ref())? else {
        return Err(failed("indexOf", "not a list"));
    };
    Ok((items.to_vec(), Value::try_from(item.as_ref())?))
}

fn place<'b, 'v>(at: Option<usize>) -> Outcome<CowVal<'b, 'v>> {
    let at = at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1);
    Ok(CowVal::Owned(Value::Int(at).try_into()?))
}

fn index_of<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Outcome<CowVal<'b, 'v>> {
    let (items, item) = list_and_item(&args)?;
    place(items.iter().position(|known| *known == item))
}

fn last_index_of<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Outcome<CowVal<'b, 'v>> {
    let (items, item) = list_and_item(&args)?;
    place(items.iter().rposition(|known| *known == item))
}
