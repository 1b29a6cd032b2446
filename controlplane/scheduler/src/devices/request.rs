//! What claims ask for, parsed and checked as far as that goes without choosing devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::devices::tolerates;
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceConstraint, DeviceRequest, DeviceSelector, DeviceSubRequest,
    DeviceToleration, ExactDeviceRequest, ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

use super::inventory::{Offer, Pool, State};
use super::{Failure, MOST_RESULTS, Task, capacity};

/// One claim's requests.
pub struct Asked<'a> {
    pub claim: &'a ResourceClaim,
    /// For each request what would do: one thing, or alternatives, the best first.
    pub requests: Vec<Vec<Wanted<'a>>>,
    pub constraints: &'a [DeviceConstraint],
}

/// Devices that would do for a request.
pub struct Wanted<'a> {
    /// Name of the request.
    pub base: &'a str,
    /// As results name it: `request`, or `request/alternative`.
    pub name: String,
    pub class: Arc<DeviceClass>,
    pub admin: bool,
    pub selectors: &'a [DeviceSelector],
    pub tolerations: &'a [DeviceToleration],
    pub capacity: Option<&'a BTreeMap<String, Wire>>,
    pub count: usize,
    /// The devices, where all that match are wanted.
    pub all: Option<Vec<Offer<'a>>>,
}

impl Wanted<'_> {
    /// Whether it is an alternative among others.
    pub fn is_option(&self) -> bool {
        self.name.len() > self.base.len()
    }
}

/// `namespace/name`
pub fn shown(claim: &ResourceClaim) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&claim.metadata.namespace), part(&claim.metadata.name))
}

/// A request or an alternative, of which each has its own type.
struct Form<'a> {
    option: Option<&'a str>,
    class: &'a str,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: bool,
    selectors: &'a [DeviceSelector],
    tolerations: &'a [DeviceToleration],
    capacity: Option<&'a CapacityRequirements>,
}

impl<'a> Form<'a> {
    fn exact(request: &'a ExactDeviceRequest) -> Self {
        Self {
            option: None,
            class: &request.device_class_name,
            mode: request.allocation_mode.as_deref(),
            count: request.count,
            admin: request.admin_access == Some(true),
            selectors: request.selectors.as_deref().unwrap_or_default(),
            tolerations: request.tolerations.as_deref().unwrap_or_default(),
            capacity: request.capacity.as_ref(),
        }
    }

    fn option(request: &'a DeviceSubRequest) -> Self {
        Self {
            option: Some(&request.name),
            class: &request.device_class_name,
            mode: request.allocation_mode.as_deref(),
            count: request.count,
            admin: false,
            selectors: request.selectors.as_deref().unwrap_or_default(),
            tolerations: request.tolerations.as_deref().unwrap_or_default(),
            capacity: request.capacity.as_ref(),
        }
    }
}

pub fn parse<'a>(
    task: &Task<'a>,
    pools: &[Pool<'a>],
    claims: &'a [Arc<ResourceClaim>],
) -> Result<Vec<Asked<'a>>, Failure> {
    claims.iter().map(|claim| parse_claim(task, pools, claim)).collect()
}

fn parse_claim<'a>(task: &Task<'a>, pools: &[Pool<'a>], claim: &'a ResourceClaim) -> Result<Asked<'a>, Failure> {
    let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
    let requests = devices.and_then(|devices| devices.requests.as_deref()).unwrap_or_default();
    let requests = requests.iter().map(|request| alternatives(task, pools, claim, request));
    let requests: Vec<Vec<Wanted<'a>>> = requests.collect::<Result<_, _>>()?;
    let least = |options: &Vec<Wanted<'_>>| options.iter().map(|option| option.count).min().unwrap_or(0);
    let least = requests.iter().map(least).fold(0, usize::saturating_add);
    if least > MOST_RESULTS {
        return Err(Failure::Broken(format!(
            "claim {}: number of requested devices {least} exceeds the claim limit of {MOST_RESULTS}",
            shown(claim)
        )));
    }
    let constraints = devices.and_then(|devices| devices.constraints.as_deref()).unwrap_or_default();
    let known =
        |constraint: &DeviceConstraint| constraint.match_attribute.is_some() || constraint.distinct_attribute.is_some();
    if let Some(at) = constraints.iter().position(|constraint| !known(constraint)) {
        let why = format!("claim {}, constraint #{at}: empty constraint (unsupported constraint type?)", shown(claim));
        return Err(Failure::Broken(why));
    }
    Ok(Asked { claim, requests, constraints })
}

fn alternatives<'a>(
    task: &Task<'a>,
    pools: &[Pool<'a>],
    claim: &'a ResourceClaim,
    request: &'a DeviceRequest,
) -> Result<Vec<Wanted<'a>>, Failure> {
    let forms: Vec<Form<'a>> = match (&request.exactly, &request.first_available) {
        (Some(exactly), _) => vec![Form::exact(exactly)],
        (None, options) => options.iter().flatten().map(Form::option).collect(),
    };
    forms.into_iter().map(|form| wanted(task, pools, claim, request, &form)).collect()
}

fn wanted<'a>(
    task: &Task<'a>,
    pools: &[Pool<'a>],
    claim: &'a ResourceClaim,
    request: &'a DeviceRequest,
    form: &Form<'a>,
) -> Result<Wanted<'a>, Failure> {
    let name = form.option.unwrap_or(&request.name);
    let broken = |why: String| Failure::Broken(format!("claim {}, request {name}: {why}", shown(claim)));
    if form.class.is_empty() {
        return Err(broken("missing device class name (unsupported request type?)".to_owned()));
    }
    let class = (task.classes)(form.class).ok_or_else(|| {
        let class = form.class;
        broken(format!("could not retrieve device class {class}: deviceclass.resource.k8s.io \"{class}\" not found"))
    })?;
    let mut wanted = Wanted {
        base: &request.name,
        name: form.option.map_or_else(|| request.name.clone(), |option| format!("{}/{option}", request.name)),
        class,
        admin: form.admin,
        selectors: form.selectors,
        tolerations: form.tolerations,
        capacity: form.capacity.and_then(|capacity| capacity.requests.as_ref()),
        count: 0,
        all: None,
    };
    match form.mode {
        None | Some("" | "ExactCount") => {
            wanted.count = usize::try_from(form.count.unwrap_or(1).max(0)).unwrap_or(usize::MAX);
        }
        Some("All") => {
            let all = all_of(task, pools, claim, &wanted, name)?;
            wanted.count = all.len();
            wanted.all = Some(all);
        }
        Some(other) => return Err(broken(format!("unsupported count mode {other}"))),
    }
    Ok(wanted)
}

/// Every device that matches. All is not known as long as a pool is not whole.
fn all_of<'a>(
    task: &Task<'a>,
    pools: &[Pool<'a>],
    claim: &ResourceClaim,
    wanted: &Wanted<'_>,
    name: &str,
) -> Result<Vec<Offer<'a>>, Failure> {
    let mut all = Vec::new();
    for pool in pools {
        let fault = match pool.state {
            State::Usable => None,
            State::Incomplete => Some("being updated"),
            State::Invalid(_) => Some("invalid"),
        };
        if let Some(fault) = fault {
            let (claim, pool) = (shown(claim), &pool.name);
            let why = format!(
                "claim {claim}, request {name}: asks for all devices, but resource pool {pool} is currently {fault}"
            );
            return Err(Failure::Broken(why));
        }
        for offer in &pool.offers {
            task.look_at_the_clock()?;
            if matches(task, claim, wanted, offer)? && has_room(wanted, offer, None) {
                all.push(*offer);
            }
        }
    }
    Ok(all)
}

/// Whether a device's capacity suffices; `taken` is what this search gave of it.
pub fn has_room(wanted: &Wanted<'_>, offer: &Offer<'_>, taken: Option<&super::taken::Amounts>) -> bool {
    let none = BTreeMap::new();
    let used: Vec<_> = offer.share.into_iter().chain(taken).collect();
    capacity::fits(offer.device.capacity.as_ref().unwrap_or(&none), wanted.capacity, &used)
}

/// Whether the selectors of class and request select a device.
pub fn matches(
    task: &Task<'_>,
    claim: &ResourceClaim,
    wanted: &Wanted<'_>,
    offer: &Offer<'_>,
) -> Result<bool, Failure> {
    let class = || format!("class {}", wanted.class.metadata.name.as_deref().unwrap_or_default());
    let of_class = wanted.class.spec.as_ref().and_then(|spec| spec.selectors.as_deref()).unwrap_or_default();
    Ok(select(task, of_class, offer, class)?
        && select(task, wanted.selectors, offer, || format!("claim {}", shown(claim)))?)
}

fn select(
    task: &Task<'_>,
    selectors: &[DeviceSelector],
    offer: &Offer<'_>,
    whose: impl Fn() -> String,
) -> Result<bool, Failure> {
    for (at, selector) in selectors.iter().enumerate() {
        let broken = |why: String| Failure::Broken(format!("{}: selector #{at}{why}", whose()));
        let Some(cel) = &selector.cel else {
            return Err(broken(": CEL expression empty (unsupported selector type?)".to_owned()));
        };
        let compiled = task.selectors.get(&cel.expression);
        let compiled = compiled.map_err(|error| broken(format!(": CEL compile error: {error}")))?;
        let selected = compiled.matches(&offer.slice.spec.driver, offer.device).map_err(|error| {
            let id = &offer.entry.id;
            broken(format!(" on device {}/{}/{}: CEL runtime error: {error}", id.driver, id.pool, id.device))
        })?;
        if !selected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first taint that keeps a device from being given for a request; `None` effects keep nothing.
pub fn is_kept_off(wanted: &Wanted<'_>, offer: &Offer<'_>) -> bool {
    let mut taints = offer.taints().filter(|taint| matches!(taint.effect.as_str(), "NoExecute" | "NoSchedule"));
    taints.any(|taint| !wanted.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}
