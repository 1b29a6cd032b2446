//! The outcome of a search as claims hold it: devices, their configuration, and the nodes on which
//! the claim can be used.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
    ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

use super::Task;
use super::request::{Asked, Wanted};
use super::search::{Chosen, Given};

pub fn results(
    task: &Task<'_>,
    claims: &[Arc<ResourceClaim>],
    asked: &[Asked<'_>],
    given: &[Vec<Given<'_>>],
    chosen: &Chosen,
) -> Result<Vec<AllocationResult>, String> {
    let node = task.node.metadata.name.as_deref().unwrap_or_default();
    let mut results = Vec::with_capacity(claims.len());
    for (at, (asked, given)) in asked.iter().zip(given).enumerate() {
        let picked: Vec<&Wanted<'_>> = asked
            .requests
            .iter()
            .enumerate()
            .filter_map(|(request, options)| options.get(*chosen.get(&(at, request))?))
            .collect();
        let config = configuration(asked.claim, &picked);
        results.push(AllocationResult {
            allocation_timestamp: None,
            devices: Some(DeviceAllocationResult {
                config: (!config.is_empty()).then_some(config),
                results: Some(given.iter().map(device).collect()),
            }),
            node_selector: node_selector(given, node)?,
        });
    }
    Ok(results)
}

fn device(given: &Given<'_>) -> DeviceRequestAllocationResult {
    let Given { wanted, offer, share } = given;
    let consumed = share.as_ref().filter(|share| !share.is_empty());
    let consumed = consumed.map(|share| share.iter().map(|(name, q)| (name.clone(), Wire(q.to_string()))).collect());
    DeviceRequestAllocationResult {
        admin_access: wanted.admin.then_some(true),
        binding_conditions: offer.device.binding_conditions.clone(),
        binding_failure_conditions: offer.device.binding_failure_conditions.clone(),
        consumed_capacity: consumed,
        device: offer.entry.id.device.clone(),
        driver: offer.entry.id.driver.clone(),
        pool: offer.entry.id.pool.clone(),
        request: wanted.name.clone(),
        share_id: share.as_ref().map(|_| random_uuid()),
        skip_node_operations: None,
        tolerations: (!wanted.tolerations.is_empty()).then(|| wanted.tolerations.to_vec()),
    }
}

/// A random UUID (version 4).
pub fn random_uuid() -> String {
    let bits: u128 = rand::random();
    let bits = (bits & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let text = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

/// Parameters for drivers: those of classes first, each class once, then the claim's own. What is
/// for all requests names none.
fn configuration(claim: &ResourceClaim, picked: &[&Wanted<'_>]) -> Vec<DeviceAllocationConfiguration> {
    let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut classes: Vec<&str> = Vec::new();
    for wanted in picked {
        let class = wanted.class.metadata.name.as_deref().unwrap_or_default();
        if classes.contains(&class) {
            continue;
        }
        classes.push(class);
        let same = picked.iter().filter(|other| other.class.metadata.name.as_deref() == Some(class));
        let requests: Vec<String> = same.map(|wanted| wanted.name.clone()).collect();
        for item in wanted.class.spec.iter().flat_map(|spec| spec.config.iter().flatten()) {
            config.push(DeviceAllocationConfiguration {
                opaque: item.opaque.clone(),
                requests: Some(requests.clone()),
                source: "FromClass".to_owned(),
            });
        }
    }
    let names = |requests: &[String], wanted: &Wanted<'_>| {
        requests.iter().any(|name| name == wanted.base || (wanted.is_option() && *name == wanted.name))
    };
    let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
    let own = devices.and_then(|devices| devices.config.as_deref()).unwrap_or_default();
    for item in own {
        let requests = item.requests.as_deref().unwrap_or_default();
        if requests.is_empty() || picked.iter().any(|wanted| names(requests, wanted)) {
            config.push(DeviceAllocationConfiguration {
                opaque: item.opaque.clone(),
                requests: item.requests.clone(),
                source: "FromClaim".to_owned(),
            });
        }
    }
    for item in &mut config {
        let requests = item.requests.as_deref().unwrap_or_default();
        if picked.iter().all(|wanted| names(requests, wanted)) {
            item.requests = None;
        }
    }
    config
}

/// The nodes that can reach all devices: one, some, or none in particular.
fn node_selector(given: &[Given<'_>], node: &str) -> Result<Option<NodeSelector>, String> {
    let mut term = NodeSelectorTerm::default();
    for Given { offer, .. } in given {
        let (spec, device) = (&offer.slice.spec, offer.device);
        let (name, selector) = if spec.per_device_node_selection == Some(true) {
            (&device.node_name, &device.node_selector)
        } else {
            (&spec.node_name, &spec.node_selector)
        };
        if name.is_some() || device.binds_to_node == Some(true) {
            return Ok(Some(only(node)));
        }
        let terms = selector.as_ref().map(|selector| selector.node_selector_terms.as_slice()).unwrap_or_default();
        match terms {
            [] => {}
            [one] => {
                extend(&mut term.match_fields, one.match_fields.as_deref());
                extend(&mut term.match_expressions, one.match_expressions.as_deref());
            }
            more => return Err(format!("unsupported ResourceSlice.NodeSelector with {} terms", more.len())),
        }
    }
    let selects = term.match_fields.is_some() || term.match_expressions.is_some();
    Ok(selects.then(|| NodeSelector { node_selector_terms: vec![term] }))
}

fn only(node: &str) -> NodeSelector {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None }],
    }
}

fn extend(to: &mut Option<Vec<NodeSelectorRequirement>>, from: Option<&[NodeSelectorRequirement]>) {
    for requirement in from.unwrap_or_default() {
        let to = to.get_or_insert_default();
        if !to.iter().any(|known| is_same(known, requirement)) {
            to.push(requirement.clone());
        }
    }
}

/// Whatever the order of the values.
fn is_same(a: &NodeSelectorRequirement, b: &NodeSelectorRequirement) -> bool {
    let values = |requirement: &NodeSelectorRequirement| {
        let mut values = requirement.values.clone().unwrap_or_default();
        values.sort();
        values.dedup();
        values
    };
    a.key == b.key && a.operator == b.operator && values(a) == values(b)
}
