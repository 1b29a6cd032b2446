//! Semantic versions as values of expressions, and the order of what has one.

use cel::Value;
use cel::objects::Opaque;

use crate::library::{Outcome, known, opaque_type};
use crate::quantity::quantity_of;

pub(crate) fn compare(this: &Value, other: &Value) -> Outcome<i64> {
    let order = match known::<Semver>(this) {
        Ok(version) => version.order(known::<Semver>(other)?),
        Err(_) => quantity_of(this)?.cmp(quantity_of(other)?),
    };
    Ok(order as i64)
}

/// `kubernetes.Semver`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Semver {
    pub(crate) numbers: [i64; 3],
    pre: Vec<String>,
}
opaque_type!(Semver, "kubernetes.Semver");

impl Semver {
    pub(crate) fn parse(text: &str) -> Option<Semver> {
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

    /// A version from text that lacks parts of one, or has more: `v1.2`, `01.2.3`.
    pub(crate) fn normalized(text: &str) -> Option<Semver> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let core = text.find(['-', '+']).unwrap_or(text.len());
        let (core, rest) = text.split_at(core);
        let mut parts: Vec<&str> = core.split('.').collect();
        if parts.len() < 3 && !rest.is_empty() {
            return None;
        }
        parts.resize(parts.len().max(3), "0");
        let plain = |part: &&str| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0".to_owned(),
            digits => digits.to_owned(),
        };
        let parts: Vec<String> = parts.iter().map(plain).collect();
        Semver::parse(&format!("{}{rest}", parts.join(".")))
    }

    pub(crate) fn order(&self, other: &Semver) -> std::cmp::Ordering {
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
pub(crate) struct PreRelease<'a>(&'a str);

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
