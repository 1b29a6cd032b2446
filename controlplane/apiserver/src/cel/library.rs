//! Kubernetes' functions for CEL (`k8s.io/apiserver/pkg/cel/library`): quantities, addresses, URLs,
//! versions, regular expressions and lists.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use api::quantity::{Format, Quantity};
use cel::common::types::{DYN_TYPE, LIST_TYPE};
use cel::common::value::CowVal;
use cel::extractors::{Arguments, This};
use cel::objects::Opaque;
use cel::{Context, Env, ExecutionError, Value, extensions};
use regex::Regex;

use super::{list, map};

type Outcome<T> = Result<T, ExecutionError>;

/// Expressions longer than this as regular expressions would cost too much.
const MAX_REGEX: usize = 1 << 20;

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
    let _ = env.add_extension(extensions::math);
    let _ = env.add_member_overload("indexOf", "list.indexOf(dyn)", LIST_TYPE, vec![DYN_TYPE], index_of);
    let _ = env.add_member_overload("lastIndexOf", "list.lastIndexOf(dyn)", LIST_TYPE, vec![DYN_TYPE], last_index_of);
    env
}

/// Registers functions; names are disjoint from the environment's overloads.
macro_rules! functions {
    ($context:ident: $($name:literal => $function:expr),+ $(,)?) => { $(let _ = $context.add_function($name, $function);)+ };
}

fn build_context() -> Context<'static, 'static> {
    let mut context = Context::with_env(ENVIRONMENT.clone());
    functions! { context:
        "quantity" => |text: Arc<String>| parse_quantity(&text).map(opaque),
        "isQuantity" => |text: Arc<String>| parse_quantity(&text).is_ok(),
        "isInteger" => |This(this): This<Value>| Ok::<_, ExecutionError>(quantity_of(&this)?.0.is_integer()),
        "asInteger" => |This(this): This<Value>| as_integer(&this),
        "asApproximateFloat" => |This(this): This<Value>| Ok::<_, ExecutionError>(approximate(quantity_of(&this)?.0)),
        "sign" => |This(this): This<Value>| {
            let quantity = quantity_of(&this)?.0;
            Ok::<_, ExecutionError>(if quantity.is_zero() { 0_i64 } else if quantity.is_negative() { -1 } else { 1 })
        },
        "add" => |This(this): This<Value>, other: Value| Ok::<_, ExecutionError>(opaque(Amount(quantity_of(&this)?.0 + amount(&other)?))),
        "sub" => |This(this): This<Value>, other: Value| Ok::<_, ExecutionError>(opaque(Amount(quantity_of(&this)?.0 - amount(&other)?))),
        "compareTo" => |This(this): This<Value>, other: Value| compare(&this, &other),
        "isGreaterThan" => |This(this): This<Value>, other: Value| compare(&this, &other).map(|order| order > 0),
        "isLessThan" => |This(this): This<Value>, other: Value| compare(&this, &other).map(|order| order < 0),
        "semver" => |text: Arc<String>| Semver::parse(&text).map(opaque).ok_or_else(|| failed("semver", "not a semantic version")),
        "isSemver" => |text: Arc<String>| Semver::parse(&text).is_some(),
        "major" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Semver>(&this)?.numbers[0]),
        "minor" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Semver>(&this)?.numbers[1]),
        "patch" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Semver>(&this)?.numbers[2]),
        "find" => |This(this): This<Arc<String>>, pattern: Arc<String>| {
            Ok::<Value, ExecutionError>(regex(&pattern)?.find(&this).map_or("", |found| found.as_str()).into())
        },
        "findAll" => find_all,
        "isSorted" => |This(this): This<Arc<Vec<Value>>>| {
            this.windows(2).try_fold(true, |sorted, pair| Ok::<_, ExecutionError>(sorted && order(&pair[0], &pair[1])?.is_le()))
        },
        "sum" => |This(this): This<Arc<Vec<Value>>>| sum(&this),
        "min" => |This(this): This<Arc<Vec<Value>>>| extreme("min", &this, std::cmp::Ordering::Less),
        "max" => |This(this): This<Arc<Vec<Value>>>| extreme("max", &this, std::cmp::Ordering::Greater),
        "ip" => ip,
        "isIP" => |text: Arc<String>| parse_ip(&text).is_some(),
        "ip.isCanonical" => |text: Arc<String>| {
            parse_ip(&text).map(|ip| ip.to_string() == *text).ok_or_else(|| failed("ip.isCanonical", "not an IP address"))
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
        "cidr" => |text: Arc<String>| Cidr::parse(&text).map(opaque).ok_or_else(|| failed("cidr", "network address parse error")),
        "isCIDR" => |text: Arc<String>| Cidr::parse(&text).is_some(),
        "containsIP" => |This(this): This<Value>, other: Value| {
            let ip = match &other {
                Value::String(text) => parse_ip(text).ok_or_else(|| failed("containsIP", "not an IP address"))?,
                other => known::<Ip>(other)?.0,
            };
            Ok::<_, ExecutionError>(known::<Cidr>(&this)?.contains(ip))
        },
        "containsCIDR" => |This(this): This<Value>, other: Value| {
            let inner = match &other {
                Value::String(text) => Cidr::parse(text).ok_or_else(|| failed("containsCIDR", "network address parse error"))?,
                other => known::<Cidr>(other)?.clone(),
            };
            let outer = known::<Cidr>(&this)?;
            Ok::<_, ExecutionError>(outer.length <= inner.length && outer.contains(inner.ip))
        },
        "prefixLength" => |This(this): This<Value>| Ok::<_, ExecutionError>(i64::from(known::<Cidr>(&this)?.length)),
        "masked" => |This(this): This<Value>| Ok::<_, ExecutionError>(opaque(known::<Cidr>(&this)?.masked())),
        "url" => |text: Arc<String>| Url::parse(&text).map(opaque).ok_or_else(|| failed("url", "URL parse error during conversion from string: invalid URI for request")),
        "isURL" => |text: Arc<String>| Url::parse(&text).is_some(),
        "getScheme" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.scheme.as_str().into()),
        "getHost" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.host.as_str().into()),
        "getHostname" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.split_port().0.trim_matches(['[', ']']).into()),
        "getPort" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.split_port().1.into()),
        "getEscapedPath" => |This(this): This<Value>| Ok::<Value, ExecutionError>(known::<Url>(&this)?.path.as_str().into()),
        "getQuery" => |This(this): This<Value>| Ok::<_, ExecutionError>(known::<Url>(&this)?.query_map()),
    }
    context
}

fn failed(function: &str, why: impl ToString) -> ExecutionError {
    ExecutionError::function_error(function, why)
}

fn opaque(value: impl Opaque) -> Value {
    Value::Opaque(Arc::new(value))
}

fn known<T: Opaque + 'static>(value: &Value) -> Outcome<&T> {
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

/// `kubernetes.Quantity`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Amount(Quantity);
opaque_type!(Amount, "kubernetes.Quantity");

fn parse_quantity(text: &str) -> Outcome<Amount> {
    text.parse().map(Amount).map_err(|error: api::quantity::QuantityError| failed("quantity", error))
}

fn quantity_of(value: &Value) -> Outcome<&Amount> {
    known(value)
}

/// A quantity, or a whole number.
fn amount(value: &Value) -> Outcome<Quantity> {
    match value {
        Value::Int(number) => Ok(Quantity::from_units(*number, Format::DecimalSi)),
        other => Ok(quantity_of(other)?.0),
    }
}

fn as_integer(value: &Value) -> Outcome<i64> {
    let quantity = quantity_of(value)?.0;
    if quantity.is_integer() {
        Ok(quantity.units())
    } else {
        Err(failed("asInteger", "cannot convert value to integer"))
    }
}

fn approximate(quantity: Quantity) -> f64 {
    if quantity.is_integer() { quantity.units() as f64 } else { quantity.milli() as f64 / 1000.0 }
}

fn compare(this: &Value, other: &Value) -> Outcome<i64> {
    let order = match known::<Semver>(this) {
        Ok(version) => version.order(known::<Semver>(other)?),
        Err(_) => quantity_of(this)?.0.cmp(&quantity_of(other)?.0),
    };
    Ok(order as i64)
}

/// `kubernetes.Semver`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Semver {
    numbers: [i64; 3],
    pre: Vec<String>,
}
opaque_type!(Semver, "kubernetes.Semver");

impl Semver {
    fn parse(text: &str) -> Option<Semver> {
        let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
        let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
        let part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let numeric = |part: &str| part.chars().all(|c| c.is_ascii_digit());
        let plain = |part: &str| part == "0" || !part.starts_with('0');
        let mut numbers = core.split('.').map(|n| Some(n).filter(|n| numeric(n) && plain(n))?.parse().ok());
        let parsed = [numbers.next()??, numbers.next()??, numbers.next()??];
        let pre: Vec<String> = pre.into_iter().flat_map(|pre| pre.split('.')).map(str::to_owned).collect();
        let well_formed = numbers.next().is_none()
            && pre.iter().all(|p| part(p) && (!numeric(p) || plain(p)))
            && build.is_none_or(|build| build.split('.').all(part));
        well_formed.then_some(Semver { numbers: parsed, pre })
    }

    fn order(&self, other: &Semver) -> std::cmp::Ordering {
        let pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => std::cmp::Ordering::Equal,
            (true, false) => std::cmp::Ordering::Greater,
            (false, true) => std::cmp::Ordering::Less,
            _ => self.pre.iter().map(|p| PreRelease(p)).cmp(other.pre.iter().map(|p| PreRelease(p))),
        };
        self.numbers.cmp(&other.numbers).then_with(pre)
    }
}

/// Numbers come before words, by value.
#[derive(PartialEq, Eq)]
struct PreRelease<'a>(&'a str);

impl PartialOrd for PreRelease<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PreRelease<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        match (self.0.parse::<u64>(), other.0.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => std::cmp::Ordering::Less,
            (Err(_), Ok(_)) => std::cmp::Ordering::Greater,
            _ => self.0.cmp(other.0),
        }
    }
}

fn regex(pattern: &str) -> Outcome<Regex> {
    if pattern.len() > MAX_REGEX {
        return Err(failed("find", "the regular expression is too long"));
    }
    Regex::new(pattern).map_err(|error| failed("find", error))
}

fn find_all(This(this): This<Arc<String>>, Arguments(arguments): Arguments) -> Outcome<Value> {
    // As a method the arguments are the pattern and, perhaps, how many to find.
    let (pattern, limit) = match arguments.as_slice() {
        [Value::String(pattern)] => (pattern, usize::MAX),
        [Value::String(pattern), Value::Int(limit)] => (pattern, usize::try_from(*limit).unwrap_or(usize::MAX)),
        other => return Err(ExecutionError::invalid_argument_count(1, other.len())),
    };
    let regex = regex(pattern)?;
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

/// `net.IP`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ip(IpAddr);
opaque_type!(Ip, "net.IP");

/// Zones and IPv4 in IPv6 are refused, as upstream does.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        ip => Some(ip),
    }
}

/// `ip(text)`, or the address of a network: `cidr.ip()`.
fn ip(This(this): This<Value>) -> Outcome<Value> {
    match &this {
        Value::String(text) => {
            parse_ip(text).map(|ip| opaque(Ip(ip))).ok_or_else(|| failed("ip", "IP Address parse error"))
        }
        other => Ok(opaque(Ip(known::<Cidr>(other)?.ip))),
    }
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

/// `net.CIDR`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cidr {
    ip: IpAddr,
    length: u8,
}
opaque_type!(Cidr, "net.CIDR");

impl Cidr {
    fn parse(text: &str) -> Option<Cidr> {
        let (ip, length) = text.split_once('/')?;
        let ip = parse_ip(ip)?;
        let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
        let length: u8 = Some(length).filter(|l| digits && (*l == "0" || !l.starts_with('0')))?.parse().ok()?;
        (length <= if ip.is_ipv4() { 32 } else { 128 }).then_some(Cidr { ip, length })
    }

    fn mask(&self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length.min(32))).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
        }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.ip.is_ipv4() && self.mask(ip) == self.mask(self.ip)
    }

    fn masked(&self) -> Cidr {
        Cidr { ip: self.mask(self.ip), length: self.length }
    }
}

/// `kubernetes.URL`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}
opaque_type!(Url, "kubernetes.URL");

impl Url {
    /// An absolute URI or an absolute path, as Go's `url.ParseRequestURI` takes them.
    fn parse(text: &str) -> Option<Url> {
        if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return None;
        }
        let colon = text.find(':').filter(|at| {
            let scheme = &text[..*at];
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        });
        let (scheme, rest) = match colon {
            Some(at) => (text[..at].to_lowercase(), &text[at + 1..]),
            None if text.starts_with('/') => (String::new(), text),
            None => return None,
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
            None => ("", rest),
        };
        let host = authority.rsplit('@').next().unwrap_or_default();
        let url = Url { scheme, host: host.to_owned(), path: path.to_owned(), query: query.to_owned() };
        let port = url.split_port().1;
        port.bytes().all(|b| b.is_ascii_digit()).then_some(url)
    }

    fn split_port(&self) -> (&str, &str) {
        match self.host.rfind(':') {
            Some(at) if !self.host[at..].contains(']') => (&self.host[..at], &self.host[at + 1..]),
            _ => (&self.host, ""),
        }
    }

    fn query_map(&self) -> Value {
        let mut values: std::collections::BTreeMap<String, Vec<Value>> = std::collections::BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(decoded(name)).or_default().push(decoded(value).into());
        }
        map(values.into_iter().map(|(name, values)| (name, list(values.into_iter()))))
    }
}

/// Percent-decoding, with `+` for a space.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut ahead = rest.clone();
                match (hex(ahead.next()), hex(ahead.next())) {
                    (Some(high), Some(low)) => {
                        bytes.push((high * 16 + low) as u8);
                        rest = ahead;
                    }
                    _ => bytes.push(byte),
                }
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
