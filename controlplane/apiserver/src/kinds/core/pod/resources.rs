//! Validation of compute resources: of containers, of a pod as a whole, and quantities alike.

use std::collections::BTreeMap;

use api::field::{Error, ErrorList};
use api::names;
use api::quantity::Quantity;

use super::quantity;
use crate::kinds::check::{NON_NEGATIVE, Node, Seen};

/// What may be asked for at pod level, beside huge pages.
pub const POD_LEVEL: [&str; 2] = ["cpu", "memory"];

/// Resources and quotas that are known by a bare name.
const STANDARD: [&str; 19] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

/// Things that are counted, not measured.
const WHOLE: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

/// `ResourceRequirements` of a container. `claims` are the names of the pod's resource claims.
pub fn container(resources: &Node<'_>, claims: &[&str], errors: &mut ErrorList) {
    requirements(resources, container_name, claims, errors);
}

/// A pod's own resources, and that the containers' fit into them.
pub fn pod(spec: &Node<'_>, claims: &[&str], errors: &mut ErrorList) {
    let resources = spec.child("resources");
    if !resources.exists() {
        return;
    }
    if spec.child("os.name").text() == "windows" {
        return resources.forbidden(errors, "may not be set for a windows pod");
    }
    if resources.has("claims") {
        resources.child("claims").forbidden(errors, "claims may not be set for Resources at pod-level");
    }
    requirements(&resources, pod_level_name, claims, errors);
    consistency(spec, &resources, errors);
}

fn requirements(
    resources: &Node<'_>,
    check_name: fn(&str, &Node<'_>, &mut ErrorList),
    claims: &[&str],
    errors: &mut ErrorList,
) {
    let (mut compute, mut huge) = (false, false);
    for side in ["limits", "requests"] {
        for (name, amount) in resources.entries(side) {
            check_name(name, &amount, errors);
            resource_quantity(name, &amount, errors);
            if side == "requests" {
                within_limit(name, &amount, resources, errors);
            }
            if is_huge(name) {
                huge = true;
                whole_pages(name, &amount, errors);
            }
            compute |= matches!(name, "cpu" | "memory");
        }
    }
    if huge && !compute {
        resources.forbidden(errors, "HugePages require cpu or memory");
    }
    claim_names(resources, claims, errors);
}

fn within_limit(name: &str, asked: &Node<'_>, resources: &Node<'_>, errors: &mut ErrorList) {
    let requests = resources.child("requests").path;
    let limit = resources.child("limits").value.get(name).and_then(quantity);
    let Some(asked) = quantity(asked.value) else { return };
    match limit {
        Some(limit) if !overcommits(name) && limit != asked => {
            let detail = format!("must be equal to {name} limit of {limit}");
            errors.push(Error::invalid(&requests, asked.to_string(), detail));
        }
        Some(limit) if asked > limit => {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(Error::invalid(&requests, asked.to_string(), detail));
        }
        None if !overcommits(name) => {
            resources.child("limits").missing(errors, "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

/// Pages come whole.
fn whole_pages(name: &str, amount: &Node<'_>, errors: &mut ErrorList) {
    let Some(asked) = quantity(amount.value) else { return };
    let size = name.strip_prefix("hugepages-").and_then(|size| size.parse::<Quantity>().ok());
    let fits = size.is_some_and(|size| {
        size > Quantity::ZERO && size.is_integer() && asked.units().checked_rem(size.units()) == Some(0)
    });
    if !fits {
        let detail = format!("{asked} is not positive integer multiple of {name}");
        errors.push(Error::invalid(&amount.path, asked.to_string(), detail));
    }
}

/// The pod's claims that a container uses, each request once.
fn claim_names(resources: &Node<'_>, claims: &[&str], errors: &mut ErrorList) {
    let mut seen = Seen::default();
    let mut partly: Vec<&str> = Vec::new();
    for claim in resources.items("claims") {
        let (name, request) = (claim.child("name").text(), claim.child("request"));
        if name.is_empty() {
            claim.missing(errors, "");
            continue;
        }
        let key = if request.text().is_empty() { name.to_owned() } else { format!("{name}/{}", request.text()) };
        if seen.has(name) {
            errors.push(Error::duplicate(&claim.path, name));
        } else {
            if !request.text().is_empty() {
                request.format(errors, names::dns1123_label);
            }
            if !seen.insert(key.clone()) {
                errors.push(Error::duplicate(&claim.path, key));
            } else if request.text().is_empty() {
                for _ in partly.iter().filter(|other| **other == name) {
                    errors.push(Error::duplicate(&claim.path, name));
                }
            } else {
                partly.push(name);
            }
        }
        if !claims.contains(&name) {
            let mut known = claims.to_vec();
            known.sort_unstable();
            let mut unknown = Error::not_found(&claim.path, name);
            unknown.detail = match known.is_empty() {
                true => "must be one of the names in pod.spec.resourceClaims which is empty".to_owned(),
                false => format!("must be one of the names in pod.spec.resourceClaims: {}", known.join(", ")),
            };
            errors.push(unknown);
        }
    }
}

/// Containers together ask for no more than the pod, and none may use more than it.
fn consistency(spec: &Node<'_>, resources: &Node<'_>, errors: &mut ErrorList) {
    let own = |side: &str, name: &str| resources.child(side).value.get(name).and_then(quantity);
    for (name, asked) in aggregate(spec, "requests") {
        if let Some(most) = own("requests", name)
            && asked > most
        {
            let path = resources.child("requests").path.key(name);
            let detail = format!("must be greater than or equal to aggregate container requests of {asked}");
            errors.push(Error::invalid(&path, most.to_string(), detail));
        }
    }
    for (name, limit) in aggregate(spec, "limits").into_iter().filter(|(name, _)| is_huge(name)) {
        if let Some(most) = own("limits", name)
            && limit > most
        {
            let path = resources.child("limits").path.key(name);
            let detail = format!("must be greater than or equal to aggregate container limits of {limit}");
            errors.push(Error::invalid(&path, most.to_string(), detail));
        }
    }
    for (index, container) in spec.items("containers").iter().enumerate() {
        for (name, amount) in container.entries("resources.limits") {
            let (Some(limit), Some(most)) = (quantity(amount.value), own("limits", name)) else { continue };
            if limit > most {
                let path = resources.path.child("containers").index(index).key(name).child("limits");
                let detail = format!("must be less than or equal to pod limits of {most}");
                errors.push(Error::invalid(&path, limit.to_string(), detail));
            }
        }
    }
}

/// What the containers take together: the regular ones and sidecars at once, or an init
/// container with the sidecars before it.
pub fn aggregate<'a>(spec: &Node<'a>, side: &str) -> BTreeMap<&'a str, Quantity> {
    let amounts = |container: &Node<'a>| -> Vec<(&'a str, Quantity)> {
        let entries = container.entries(&format!("resources.{side}"));
        entries.into_iter().filter_map(|(name, amount)| Some((name, quantity(amount.value)?))).collect()
    };
    let add = |sums: &mut BTreeMap<&'a str, Quantity>, more: &[(&'a str, Quantity)]| {
        for (name, amount) in more {
            let sum = sums.get(name).map_or(*amount, |sum| *sum + *amount);
            sums.insert(name, sum);
        }
    };
    let mut total = BTreeMap::new();
    for container in spec.items("containers") {
        add(&mut total, &amounts(&container));
    }
    let (mut sidecars, mut most) = (BTreeMap::new(), BTreeMap::<&str, Quantity>::new());
    for container in spec.items("initContainers") {
        let mut now = sidecars.clone();
        add(&mut now, &amounts(&container));
        if container.child("restartPolicy").text() == "Always" {
            add(&mut total, &amounts(&container));
            sidecars = now.clone();
        }
        for (name, amount) in now {
            let higher = most.get(name).is_none_or(|most| amount > *most);
            if higher {
                most.insert(name, amount);
            }
        }
    }
    for (name, amount) in most {
        let higher = total.get(name).is_none_or(|total| amount > *total);
        if higher {
            total.insert(name, amount);
        }
    }
    total
}

/// The name of any resource: standard, or with a prefix.
pub fn resource_name(name: &str, node: &Node<'_>, errors: &mut ErrorList) {
    let problems = names::qualified_name(name);
    let sound = problems.is_empty();
    for problem in problems {
        errors.push(Error::invalid(&node.path, name, problem));
    }
    if sound && !name.contains('/') && !(STANDARD.contains(&name) || name == "storage" || is_quota_huge(name)) {
        errors.push(Error::invalid(&node.path, name, "must be a standard resource type or fully qualified"));
    }
}

/// The name of something a quota bounds.
pub fn quota_name(name: &str, node: &Node<'_>, errors: &mut ErrorList) {
    resource_name(name, node, errors);
    if !name.contains('/') && !is_standard_quota(name) {
        errors.push(Error::invalid(&node.path, name, "must be a standard resource for quota"));
    }
}

pub fn is_standard_quota(name: &str) -> bool {
    STANDARD.contains(&name) || is_quota_huge(name)
}

/// The name of something a container uses.
pub fn container_name(name: &str, node: &Node<'_>, errors: &mut ErrorList) {
    resource_name(name, node, errors);
    if !name.contains('/') {
        if !(matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge(name)) {
            errors.push(Error::invalid(&node.path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(Error::invalid(&node.path, name, "doesn't follow extended resource name standard"));
    }
}

fn pod_level_name(name: &str, node: &Node<'_>, errors: &mut ErrorList) {
    let before = errors.len();
    resource_name(name, node, errors);
    if errors.len() == before && !POD_LEVEL.contains(&name) && !is_huge(name) {
        errors.push(Error::not_supported(&node.path, name, &POD_LEVEL));
    }
}

pub fn is_huge(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_quota_huge(name: &str) -> bool {
    is_huge(name) || name.starts_with("requests.hugepages-")
}

/// Kubernetes' own: without a domain, or with one of its.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Of others than Kubernetes: `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Resources whose request may be below their limit.
pub fn overcommits(name: &str) -> bool {
    is_native(name) && !is_huge(name)
}

/// Not negative, and whole where only whole things can be counted.
pub fn resource_quantity(name: &str, node: &Node<'_>, errors: &mut ErrorList) {
    let Some(amount) = quantity(node.value) else {
        return node.invalid(
            errors,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        );
    };
    if amount < Quantity::ZERO {
        errors.push(Error::invalid(&node.path, amount.to_string(), NON_NEGATIVE));
    }
    if (WHOLE.contains(&name) || is_extended(name)) && !amount.is_integer() {
        errors.push(Error::invalid(&node.path, amount.to_string(), "must be an integer"));
    }
}

/// Not negative (`validateBasicResource`).
pub fn basic_quantity(node: &Node<'_>, errors: &mut ErrorList) {
    if let Some(amount) = quantity(node.value)
        && amount.is_negative()
    {
        errors.push(Error::invalid(&node.path, amount.units(), "must be a valid resource quantity"));
    }
}
