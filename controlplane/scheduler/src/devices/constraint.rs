//! Constraints of a claim: devices that must have an attribute in common, or must differ in it.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceConstraint};

use super::inventory::Offer;
use super::request::Wanted;

/// A constraint, and the devices that it was told of. Once refused, a device stays refused however
/// many more come.
pub struct Constraint<'a> {
    attribute: &'a str,
    requests: &'a [String],
    kind: Kind<'a>,
}

enum Kind<'a> {
    /// All have the same value: of the first, for so many.
    Same { value: Option<&'a DeviceAttribute>, count: usize },
    /// No two have the same value; values by position.
    Distinct(Vec<&'a DeviceAttribute>),
}

impl<'a> Constraint<'a> {
    /// None: it is of a kind that is not known here.
    pub fn new(constraint: &'a DeviceConstraint) -> Option<Self> {
        let requests = constraint.requests.as_deref().unwrap_or_default();
        let (attribute, kind) = match (&constraint.match_attribute, &constraint.distinct_attribute) {
            (Some(attribute), _) => (attribute, Kind::Same { value: None, count: 0 }),
            (None, Some(attribute)) => (attribute, Kind::Distinct(Vec::new())),
            (None, None) => return None,
        };
        Some(Self { attribute, requests, kind })
    }

    fn covers(&self, wanted: &Wanted<'_>) -> bool {
        let named = |name: &str| self.requests.iter().any(|request| request == name);
        self.requests.is_empty() || named(wanted.base) || (wanted.is_option() && named(&wanted.name))
    }

    /// Takes a device in, if it may be.
    pub fn add(&mut self, wanted: &Wanted<'_>, offer: &Offer<'a>) -> bool {
        if !self.covers(wanted) {
            return true;
        }
        let Some(found) = attribute(offer, self.attribute) else { return false };
        match &mut self.kind {
            Kind::Same { value, count } => {
                if *count > 0 && !value.is_some_and(|first| is_same(found, first)) {
                    return false;
                }
                *value = if *count == 0 { Some(found) } else { *value };
                *count += 1;
            }
            Kind::Distinct(values) => {
                if values.iter().any(|known| is_same(found, known)) {
                    return false;
                }
                values.push(found);
            }
        }
        true
    }

    /// Takes back the last [`Constraint::add`] that was true.
    pub fn remove(&mut self, wanted: &Wanted<'_>) {
        if !self.covers(wanted) {
            return;
        }
        match &mut self.kind {
            Kind::Same { count, .. } => *count -= 1,
            Kind::Distinct(values) => drop(values.pop()),
        }
    }
}

/// Two values of the same type, and equal. Versions have one form only.
fn is_same(a: &DeviceAttribute, b: &DeviceAttribute) -> bool {
    let known = a.string.is_some() || a.int.is_some() || a.bool.is_some() || a.version.is_some();
    known && (&a.string, a.int, a.bool, &a.version) == (&b.string, b.int, b.bool, &b.version)
}

/// An attribute by its full name; one in the driver's own domain may be written without it.
fn attribute<'a>(offer: &Offer<'a>, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes: &BTreeMap<_, _> = offer.device.attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        attributes.get(id).filter(|_| domain == offer.slice.spec.driver)
    })
}
