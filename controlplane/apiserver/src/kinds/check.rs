//! The validators' toolbox: a [`Node`] is a value together with its field path, so that a check
//! reads as `port.child("port").port_number(errors)` and the error names the right field.
//!
//! Layer: above `value`, below the kinds. Messages are Kubernetes' own
//! (`apimachinery/pkg/util/validation`, `pkg/apis/core/validation`).

use std::collections::HashSet;
use std::net::IpAddr;

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::Value;

use super::value;

static NULL: Value = Value::Null;

pub const NON_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";

/// A value and where it is.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    pub value: &'a Value,
    pub path: Path,
}

impl<'a> Node<'a> {
    /// The whole object.
    pub fn root(value: &'a Value) -> Self {
        Self { value, path: Path::empty() }
    }

    pub fn new(value: &'a Value, path: Path) -> Self {
        Self { value, path }
    }

    /// The field at `path` (dotted, of fixed field names) below this one; null when missing.
    #[must_use]
    pub fn child(&self, path: &str) -> Node<'a> {
        Node { value: value::get(self.value, path).unwrap_or(&NULL), path: self.path.child(path) }
    }

    /// The items of the list at `path`.
    pub fn items(&self, path: &str) -> Vec<Node<'a>> {
        self.child(path).each()
    }

    /// The items of the list here.
    pub fn each(&self) -> Vec<Node<'a>> {
        let items = self.value.as_array().map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().map(|(index, item)| Node { value: item, path: self.path.index(index) }).collect()
    }

    /// The entries of the map at `path`, their paths as `path[key]`.
    pub fn entries(&self, path: &str) -> Vec<(&'a str, Node<'a>)> {
        let map = self.child(path);
        let Some(entries) = map.value.as_object() else { return Vec::new() };
        entries.iter().map(|(key, item)| (key.as_str(), Node { value: item, path: map.path.key(key) })).collect()
    }

    pub fn exists(&self) -> bool {
        !self.value.is_null()
    }

    pub fn has(&self, path: &str) -> bool {
        value::has(self.value, path)
    }

    /// The string here; `""` when there is none.
    pub fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    pub fn int(&self) -> i64 {
        self.value.as_i64().unwrap_or(0)
    }

    pub fn flag(&self) -> bool {
        self.value.as_bool().unwrap_or(false)
    }

    /// Items of a list or entries of a map here.
    pub fn len(&self) -> usize {
        self.value.as_array().map_or_else(|| self.value.as_object().map_or(0, serde_json::Map::len), Vec::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn invalid(&self, errors: &mut ErrorList, detail: impl Into<String>) {
        errors.push(Error::invalid(&self.path, self.value.clone(), detail));
    }

    /// As [`Node::invalid`] of a string: a missing one is shown as `""`.
    pub fn invalid_text(&self, errors: &mut ErrorList, detail: impl Into<String>) {
        errors.push(Error::invalid(&self.path, self.text(), detail));
    }

    /// As [`Node::invalid`] of a whole number: a missing one is shown as `0`.
    pub fn invalid_int(&self, errors: &mut ErrorList, detail: impl Into<String>) {
        errors.push(Error::invalid(&self.path, self.int(), detail));
    }

    pub fn forbidden(&self, errors: &mut ErrorList, detail: impl Into<String>) {
        errors.push(Error::forbidden(&self.path, detail));
    }

    pub fn missing(&self, errors: &mut ErrorList, detail: impl Into<String>) {
        errors.push(Error::required(&self.path, detail));
    }

    pub fn duplicate(&self, errors: &mut ErrorList) {
        errors.push(Error::duplicate(&self.path, self.value.clone()));
    }

    /// Whether there is a non-empty string, list, map, or any other value; an error when not.
    pub fn required(&self, errors: &mut ErrorList, detail: &str) -> bool {
        let empty = match self.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if empty {
            self.missing(errors, detail);
        }
        !empty
    }

    /// The string is one of `allowed`; a missing or empty one is an unsupported value too.
    pub fn one_of(&self, errors: &mut ErrorList, allowed: &[&str]) -> bool {
        let fits = allowed.contains(&self.text());
        if !fits {
            errors.push(Error::not_supported(&self.path, self.text(), allowed));
        }
        fits
    }

    /// As [`Node::one_of`], but an empty or missing value asks for one.
    pub fn required_one_of(&self, errors: &mut ErrorList, allowed: &[&str]) -> bool {
        if self.text().is_empty() {
            self.missing(errors, "");
            return false;
        }
        self.one_of(errors, allowed)
    }

    /// As [`Node::one_of`], where the field may be left out.
    pub fn optional_one_of(&self, errors: &mut ErrorList, allowed: &[&str]) {
        if self.exists() {
            self.one_of(errors, allowed);
        }
    }

    pub fn non_negative(&self, errors: &mut ErrorList) -> bool {
        let fits = self.int() >= 0;
        if !fits {
            self.invalid(errors, NON_NEGATIVE);
        }
        fits
    }

    pub fn positive(&self, errors: &mut ErrorList) {
        if self.int() <= 0 {
            self.invalid_int(errors, "must be greater than 0");
        }
    }

    pub fn port_number(&self, errors: &mut ErrorList) {
        if let Some(problem) = names::port_number(self.int()) {
            self.invalid_int(errors, problem);
        }
    }

    /// The string keeps a format of `api::names`.
    pub fn format<P>(&self, errors: &mut ErrorList, check: fn(&str) -> P) -> bool
    where
        P: IntoIterator<Item = String>,
    {
        let before = errors.len();
        for problem in check(self.text()) {
            self.invalid_text(errors, problem);
        }
        errors.len() == before
    }

    /// A required string of a format.
    pub fn required_format<P>(&self, errors: &mut ErrorList, check: fn(&str) -> P) -> bool
    where
        P: IntoIterator<Item = String>,
    {
        self.required(errors, "") && self.format(errors, check)
    }

    /// A port number or port name, as in probes and `targetPort`.
    pub fn port_or_name(&self, errors: &mut ErrorList) {
        match self.value {
            Value::String(text) => {
                for problem in names::port_name(text) {
                    self.invalid(errors, problem);
                }
            }
            _ => self.port_number(errors),
        }
    }

    /// No item of this list (given its keys) twice.
    pub fn unique(&self, errors: &mut ErrorList) {
        let mut seen = HashSet::new();
        for (index, item) in self.value.as_array().into_iter().flatten().enumerate() {
            if !seen.insert(item.to_string()) {
                errors.push(Error::duplicate(&self.path.index(index), item.clone()));
            }
        }
    }

    /// The field must be what it was.
    pub fn immutable(&self, errors: &mut ErrorList, old: &Node<'_>) {
        self.immutable_because(errors, old, IMMUTABLE);
    }

    pub fn immutable_because(&self, errors: &mut ErrorList, old: &Node<'_>, detail: &str) {
        if !value::same(self.value, old.value) {
            self.invalid(errors, detail);
        }
    }

    /// An IPv4 or IPv6 address (`IsValidIPForLegacyField`, strict).
    pub fn ip(&self, errors: &mut ErrorList) -> bool {
        let problem = match parse_ip(self.text()) {
            Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => "must not be an IPv4-mapped IPv6 address",
            Some(_) => return true,
            None if parse_ip(&without_leading_zeros(self.text())).is_some() => "must not have leading 0s",
            None => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        };
        self.invalid_text(errors, problem);
        false
    }

    /// The field must be what it was; the error of a declared rule shows no value.
    pub fn immutable_declared(&self, errors: &mut ErrorList, old: &Node<'_>) {
        if !value::same(self.value, old.value) {
            errors.push(Error::invalid(&self.path, Value::Null, IMMUTABLE));
        }
    }

    /// An address in a field that is older than the strict rules: any notation of it, but only one
    /// meaning.
    pub fn legacy_ip(&self, errors: &mut ErrorList) -> bool {
        let Some(address) = parse_ip_sloppy(self.text()) else {
            self.invalid(errors, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
            return false;
        };
        if parse_ip(self.text()).is_none() {
            self.invalid(errors, "must not have leading 0s");
        } else if is_mapped(address) {
            self.invalid(errors, "must not be an IPv4-mapped IPv6 address");
        } else {
            return true;
        }
        false
    }

    /// An address as new fields want it: canonical.
    pub fn strict_ip(&self, errors: &mut ErrorList) -> bool {
        if !self.legacy_ip(errors) {
            return false;
        }
        match parse_ip(self.text()) {
            Some(ip) if ip.to_string() != self.text() => {
                self.invalid(errors, format!("must be in canonical form (\"{ip}\")"));
                false
            }
            _ => true,
        }
    }

    /// A network as new fields want it: canonical.
    pub fn strict_cidr(&self, errors: &mut ErrorList) {
        let before = errors.len();
        if !self.cidr(errors) || errors.len() > before {
            return;
        }
        if let Some((ip, length)) = parse_cidr(self.text())
            && format!("{ip}/{length}") != self.text()
        {
            self.invalid(errors, format!("must be in canonical form (\"{ip}/{length}\")"));
        }
    }

    /// `address/length`: a whole network, in unambiguous digits. Whether it can be read at all.
    pub fn cidr(&self, errors: &mut ErrorList) -> bool {
        let Some((address, length)) = parse_cidr_sloppy(self.text()) else {
            self.invalid(errors, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
            return false;
        };
        if parse_cidr(self.text()).is_none() {
            self.invalid(errors, "must not have leading 0s in IP or prefix length");
        } else if is_mapped(address) {
            self.invalid(errors, "must not have an IPv4-mapped IPv6 address");
        } else if network_of(address, length) != address {
            self.invalid(errors, "must not have bits set beyond the prefix length");
        }
        true
    }
}

/// As Go's `netip.ParseAddr` without zones.
pub fn parse_ip(text: &str) -> Option<std::net::IpAddr> {
    text.parse().ok()
}

/// As [`parse_ip`], with leading zeros in any number (`netutils.ParseIPSloppy`).
pub fn parse_ip_sloppy(text: &str) -> Option<std::net::IpAddr> {
    parse_cidr_sloppy(&format!("{text}/0")).map(|(address, _)| address)
}

pub fn parse_cidr(text: &str) -> Option<(std::net::IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || length.len() > 3 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let address = parse_ip(address)?;
    let length: u8 = length.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (length <= most && (length == 0 || text.split_once('/').is_some_and(|(_, l)| !l.starts_with('0'))))
        .then_some((address, length))
}

/// `010.0.0.1` as the `10.0.0.1` that old parsers read.
fn without_leading_zeros(text: &str) -> String {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !text.split('.').all(digits) {
        return text.to_owned();
    }
    let stripped = text.split('.').map(|part| match part.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    });
    stripped.collect::<Vec<_>>().join(".")
}

/// What is said of an address that is not written as it should be (`GetWarningsForIP`).
pub fn ip_warning(path: &str, text: &str) -> Option<String> {
    let parsed = parse_ip(text).or_else(|| parse_ip(&without_leading_zeros(text)))?;
    match parsed {
        IpAddr::V4(v4) if v4.to_string() != text => {
            Some(format!("{path}: non-standard IP address {text:?} is invalid: use \"{v4}\""))
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Some(format!("{path}: non-standard IP address {text:?} is invalid: use \"{v4}\"")),
            None if v6.to_string() != text => {
                Some(format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format (\"{v6}\")"))
            }
            None => None,
        },
        IpAddr::V4(_) => None,
    }
}

/// As [`ip_warning`], of a network (`GetWarningsForCIDR`).
pub fn cidr_warning(path: &str, text: &str) -> Option<String> {
    let (address, length) = parse_cidr(text)?;
    let network = network_of(address, length);
    if network != address {
        return Some(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be \"{network}/{length}\" or \"{address}/{}\"?)",
            if address.is_ipv4() { 32 } else { 128 }
        ));
    }
    let canonical = format!("{address}/{length}");
    (canonical != text && address.is_ipv6())
        .then(|| format!("{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({canonical:?})"))
}

/// As [`parse_cidr`], with leading zeros in any number.
pub fn parse_cidr_sloppy(text: &str) -> Option<(std::net::IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let without_zeros = |part: &str| {
        let rest = part.trim_start_matches('0');
        if rest.is_empty() && !part.is_empty() { "0".to_owned() } else { rest.to_owned() }
    };
    let address = if address.contains(':') {
        address.to_owned()
    } else {
        address.split('.').map(without_zeros).collect::<Vec<_>>().join(".")
    };
    parse_cidr(&format!("{address}/{}", without_zeros(length)))
}

/// `::ffff:10.0.0.1`.
pub fn is_mapped(address: std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The address with every bit beyond the prefix cleared.
pub fn network_of(address: std::net::IpAddr, length: u8) -> std::net::IpAddr {
    match address {
        std::net::IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            std::net::Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        std::net::IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            std::net::Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

/// Remembers what was seen, by any key; says whether it is new.
#[derive(Debug, Default)]
pub struct Seen(HashSet<String>);

impl Seen {
    pub fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }

    pub fn insert(&mut self, key: impl Into<String>) -> bool {
        self.0.insert(key.into())
    }

    pub fn contains(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

/// A whole number or a percentage, not negative (`maxSurge`, `minAvailable`, ...).
pub fn positive_int_or_percent(node: &Node<'_>, errors: &mut ErrorList) {
    match node.value {
        Value::String(text) => {
            if percent(text).is_none() {
                node.invalid(errors, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
            }
        }
        Value::Number(_) => {
            node.non_negative(errors);
        }
        _ => node.invalid(errors, "must be an integer or percentage (e.g '5%')"),
    }
}

/// A percentage may not be above 100.
pub fn not_more_than_hundred_percent(node: &Node<'_>, errors: &mut ErrorList) {
    if node.value.as_str().and_then(percent).is_some_and(|value| value > 100) {
        node.invalid(errors, "must not be greater than 100%");
    }
}

/// The number in front of `%`.
pub fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// `ValidateLabels`.
pub fn labels(node: &Node<'_>, errors: &mut ErrorList) {
    let Some(map) = node.value.as_object() else { return };
    for (key, value) in map {
        for problem in names::qualified_name(key) {
            errors.push(Error::invalid(&node.path, key.clone(), problem));
        }
        for problem in names::label_value(value.as_str().unwrap_or("")) {
            errors.push(Error::invalid(&node.path, value.clone(), problem));
        }
    }
}

/// `ValidateLabelSelector`.
pub fn label_selector(node: &Node<'_>, errors: &mut ErrorList) {
    label_selector_where(node, true, errors);
}

/// As [`label_selector`]; values that were always wrong may stay (`values_count` is false).
pub fn label_selector_where(node: &Node<'_>, values_count: bool, errors: &mut ErrorList) {
    labels(&node.child("matchLabels"), errors);
    for requirement in node.items("matchExpressions") {
        let values = requirement.child("values");
        match requirement.child("operator").text() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    values.missing(errors, "must be specified when `operator` is 'In' or 'NotIn'");
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    values.forbidden(errors, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
            }
            _ => requirement.child("operator").invalid(errors, "not a valid selector operator"),
        }
        requirement.child("key").format(errors, names::qualified_name);
        if values_count {
            for value in requirement.items("values") {
                value.format(errors, names::label_value);
            }
        }
    }
}

/// `GetWarningsForCIDR`: notations of a network that are read, but should not be written.
pub fn cidr_warnings(network: &Node<'_>) -> Vec<String> {
    let (path, text) = (&network.path, network.text());
    let Some((address, length)) = parse_cidr_sloppy(text) else { return Vec::new() };
    let whole = format!("{}/{length}", network_of(address, length));
    let mut warnings = Vec::new();
    if network_of(address, length) != address {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        warnings.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be {whole:?} or \"{address}/{bits}\"?)"
        ));
    }
    if parse_cidr(text).is_none() || is_mapped(address) {
        warnings.push(format!("{path}: non-standard CIDR value {text:?} is invalid: use {whole:?}"));
    }
    let canonical = format!("{address}/{length}");
    if warnings.is_empty() && address.is_ipv6() && canonical != text {
        warnings
            .push(format!("{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({canonical:?})"));
    }
    warnings
}

/// `ValidateConditions`: a list of `metav1.Condition`.
pub fn conditions(object: &Node<'_>, path: &str, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for condition in object.items(path) {
        let field = |name: &str| condition.child(name);
        if !seen.insert(field("type").text()) {
            errors.push(Error::duplicate(&condition.path, field("type").text()));
        }
        if field("type").required(errors, "is required") {
            field("type").format(errors, names::qualified_name);
        }
        field("status").required_one_of(errors, &["False", "True", "Unknown"]);
        if field("observedGeneration").int() < 0 {
            field("observedGeneration").invalid(errors, "must be greater than or equal to zero");
        }
        field("lastTransitionTime").required(errors, "");
        let reason = field("reason");
        if reason.required(errors, "") {
            if !is_reason(reason.text()) {
                reason.invalid(errors, "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')");
            }
            if reason.text().len() > 1024 {
                errors.push(Error::too_long(&reason.path, 1024));
            }
        }
        if field("message").text().len() > 32 * 1024 {
            errors.push(Error::too_long(&field("message").path, 32 * 1024));
        }
    }
}

fn is_reason(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_,:".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(inner)
        && !text.ends_with([',', ':'])
}

/// `IsDomainPrefixedPath`: `acme.io/foo`.
pub fn domain_prefixed_path(node: &Node<'_>, errors: &mut ErrorList) {
    if node.text().is_empty() {
        return node.missing(errors, "");
    }
    let Some((domain, path)) = node.text().split_once('/').filter(|(a, b)| !a.is_empty() && !b.is_empty()) else {
        return node.invalid(errors, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    };
    for problem in names::dns1123_subdomain(domain) {
        errors.push(Error::invalid(&node.path, domain, problem));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
    if !path.bytes().all(allowed) {
        let detail = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.push(Error::invalid(&node.path, path, detail));
    }
}

/// Whether a label selector is there but selects nothing in particular.
pub fn selector_is_empty(selector: &Value) -> bool {
    value::map(selector, "matchLabels").is_none_or(serde_json::Map::is_empty)
        && value::list(selector, "matchExpressions").is_empty()
}

/// An absolute or relative path without `..` parts.
pub fn no_backsteps(node: &Node<'_>, errors: &mut ErrorList) {
    if node.text().split('/').any(|part| part == "..") {
        node.invalid(errors, "must not contain '..'");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn paths_and_messages() {
        let object = json!({"spec": {"ports": [{"port": 70000, "name": "A"}], "replicas": -1, "selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}});
        let root = Node::root(&object);
        let mut errors = Vec::new();
        for port in root.items("spec.ports") {
            port.child("port").port_number(&mut errors);
        }
        root.child("spec.replicas").non_negative(&mut errors);
        root.child("spec.name").required(&mut errors, "");
        label_selector(&root.child("spec.selector"), &mut errors);
        assert_eq!(
            join(&errors),
            "[spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive, \
             spec.replicas: Invalid value: -1: must be greater than or equal to 0, spec.name: Required value, \
             spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn']"
        );
    }

    #[test]
    fn addresses() {
        for (text, fits) in [("10.0.0.1", true), ("::1", true), ("10.0.0", false), ("01.2.3.4", false), ("", false)] {
            assert_eq!(parse_ip(text).is_some(), fits, "{text}");
        }
        for (text, fits) in
            [("10.0.0.0/8", true), ("::/0", true), ("10.0.0.0/33", false), ("10.0.0.0/08", false), ("10.0.0.0", false)]
        {
            assert_eq!(parse_cidr(text).is_some(), fits, "{text}");
        }
        for (text, words) in [
            ("1.2.3.4", ""),
            ("01.2.3.4", "must not have leading 0s"),
            ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
            ("1.2.3", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        ] {
            let (value, mut errors) = (json!(text), Vec::new());
            assert_eq!(Node::root(&value).ip(&mut errors), words.is_empty(), "{text}");
            assert_eq!(errors.first().map_or("", |error| error.detail.as_str()), words, "{text}");
        }
        for (text, words) in [
            ("10.0.0.0/8", ""),
            ("::/0", ""),
            ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
            ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
            ("fe80::1/64", "must not have bits set beyond the prefix length"),
            ("10.0.0.0/33", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        ] {
            let (value, mut errors) = (json!(text), Vec::new());
            Node::root(&value).cidr(&mut errors);
            assert_eq!(errors.first().map_or("", |error| error.detail.as_str()), words, "{text}");
        }
        assert_eq!((percent("25%"), percent("%"), percent("-1%"), percent("5")), (Some(25), None, None, None));
    }
}
