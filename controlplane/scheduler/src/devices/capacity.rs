//! Capacity of devices: what a request takes of each, and whether that much is left
//! (`consumable_capacity.go`).

use std::collections::BTreeMap;

use api::quantity::{Format, Quantity};
use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequestPolicyRange, DeviceCapacity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

use super::taken::Amounts;

type Requested<'a> = Option<&'a BTreeMap<String, Wire>>;

/// Whether a device's capacities, of which `used` is gone, hold what is requested.
pub fn fits(capacities: &BTreeMap<String, DeviceCapacity>, requested: Requested<'_>, used: &[&Amounts]) -> bool {
    if requested.is_some_and(|requested| requested.keys().any(|name| !capacities.contains_key(name))) {
        return false;
    }
    capacities.iter().all(|(name, capacity)| {
        let wanted = amount(capacity, requested.and_then(|requested| requested.get(name)));
        let gone = used.iter().filter_map(|used| used.get(name));
        let total = gone.fold(wanted, |sum, used| sum + *used);
        is_allowed(wanted, capacity.request_policy.as_ref()) && total <= Quantity::from(&capacity.value)
    })
}

/// What a request takes of each capacity of a device.
pub fn consumed(capacities: &BTreeMap<String, DeviceCapacity>, requested: Requested<'_>) -> Amounts {
    let each = capacities.iter();
    each.map(|(name, capacity)| (name.clone(), amount(capacity, requested.and_then(|requested| requested.get(name)))))
        .collect()
}

/// What a request takes: what it asks for, rounded up to what may be given; nothing asked is the
/// default, or all.
fn amount(capacity: &DeviceCapacity, requested: Option<&Wire>) -> Quantity {
    let policy = capacity.request_policy.as_ref();
    let Some(requested) = requested.map(Quantity::from) else {
        return policy
            .and_then(|policy| policy.default.as_ref())
            .map_or_else(|| Quantity::from(&capacity.value), Quantity::from);
    };
    let Some(policy) = policy else { return requested };
    match (&policy.valid_range, &policy.valid_values) {
        (Some(range), _) if !range.min.0.is_empty() => in_range(requested, range),
        (_, Some(values)) => values.iter().map(Quantity::from).find(|valid| requested <= *valid).unwrap_or(requested),
        _ => requested,
    }
}

/// The least value of a range that is not below `requested`.
fn in_range(requested: Quantity, range: &CapacityRequestPolicyRange) -> Quantity {
    let min = Quantity::from(&range.min);
    if requested < min {
        return min;
    }
    let Some(step) = range.step.as_ref().map(Quantity::from).filter(|step| !step.is_zero()) else { return requested };
    let (added, step) = (steps(requested - min), steps(step));
    let beyond = added.rem_euclid(step);
    if beyond == 0 {
        return requested;
    }
    let missing = step - beyond;
    let total = requested.milli().saturating_add(missing);
    if total % 1000 == 0 {
        Quantity::from_units(total / 1000, Format::BinarySi)
    } else {
        Quantity::from_milli(total, Format::DecimalSi)
    }
}

/// Thousandths, rounded away from zero: a step that is not zero is never none of them.
fn steps(quantity: Quantity) -> i64 {
    quantity.milli()
}

fn is_allowed(amount: Quantity, policy: Option<&CapacityRequestPolicy>) -> bool {
    let Some(policy) = policy else { return true };
    if policy.default.as_ref().is_some_and(|default| Quantity::from(default) == amount) {
        return true;
    }
    if let Some(range) = &policy.valid_range {
        let above = range.max.as_ref().is_some_and(|max| amount > Quantity::from(max));
        let off = range.step.as_ref().map(Quantity::from).filter(|step| !step.is_zero()).is_some_and(|step| {
            let min = if range.min.0.is_empty() { Quantity::ZERO } else { Quantity::from(&range.min) };
            steps(amount - min) % steps(step) != 0
        });
        return !above && !off;
    }
    let values = policy.valid_values.iter().flatten();
    policy.valid_values.as_ref().is_none_or(Vec::is_empty) || values.map(Quantity::from).any(|valid| valid == amount)
}
