//! Pure: `service.kubernetes.io/topology-mode: Auto` as hints. Endpoints are given to zones in
//! proportion to the zones' CPU: each serves its own zone as far as that needs it, the rest serve
//! zones that have too few. Where no fair share can be had, nobody gets a hint.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForZone};

use super::desired::zone;
use crate::meta;
use crate::node_lifecycle::is_ready;

const MODE: &str = "service.kubernetes.io/topology-mode";
/// The annotation's older name; where it is there, it decides.
const OLD_MODE: &str = "service.kubernetes.io/topology-aware-hints";
/// How much more than its share an endpoint may have to bear.
const OVERLOAD: f64 = 0.2;
/// Nodes with these labels run no workloads, as a rule: their CPU says nothing.
const EXCLUDED: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

pub fn is_wanted(service: &Service) -> bool {
    let mode = |name| meta::annotation(&service.metadata, name);
    matches!(mode(OLD_MODE).or_else(|| mode(MODE)), Some("Auto" | "auto"))
}

/// What a node counts for: its zone and CPU (millicores); none when it is left out.
pub fn weight(node: &Node) -> Option<(Option<String>, i64)> {
    let labels = meta::labels(&node.metadata);
    if EXCLUDED.iter().any(|label| labels.contains_key(*label)) || !is_ready(node) {
        return None;
    }
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let cpu = allocatable.and_then(|amounts| amounts.get("cpu")).map_or(0, |cpu| Quantity::from(cpu).milli());
    Some((zone(node).filter(|zone| !zone.is_empty()), cpu))
}

/// Each zone's part of all CPU; none where a node hides its zone or CPU, or there is one zone only.
pub fn shares(nodes: &[Arc<Node>]) -> Option<BTreeMap<String, f64>> {
    let mut by_zone: BTreeMap<String, i64> = BTreeMap::new();
    for (zone, cpu) in nodes.iter().filter_map(|node| weight(node)) {
        *by_zone.entry(zone.filter(|_| cpu > 0)?).or_default() += cpu;
    }
    let total: i64 = by_zone.values().sum();
    (by_zone.len() > 1).then(|| by_zone.into_iter().map(|(zone, cpu)| (zone, cpu as f64 / total as f64)).collect())
}

/// How many of `count` endpoints each zone should have.
fn allocations(shares: Option<&BTreeMap<String, f64>>, count: usize) -> Result<BTreeMap<String, f64>, String> {
    let shares = shares.ok_or_else(|| {
        "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes".to_owned()
    })?;
    let numbers = format!("({count} endpoints, {} zones)", shares.len());
    if shares.len() > count {
        return Err(format!("Insufficient number of endpoints {numbers}"));
    }
    let least = |share: f64| (share * count as f64 / (1.0 + OVERLOAD)).ceil();
    if shares.values().map(|share| least(*share)).sum::<f64>() > count as f64 {
        return Err(format!(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold {numbers}"
        ));
    }
    Ok(shares.iter().map(|(zone, share)| (zone.clone(), (share * count as f64).max(least(*share)))).collect())
}

/// Zone to zone, as often as an endpoint should move: from those with most too many to those with
/// most too few.
fn moves(wanted: &BTreeMap<String, f64>, present: &BTreeMap<String, usize>) -> Vec<(String, String)> {
    let mut giving: BTreeMap<String, f64> = BTreeMap::new();
    let mut taking: BTreeMap<String, f64> = BTreeMap::new();
    for (zone, wanted) in wanted {
        let surplus = present.get(zone).copied().unwrap_or(0) as f64 - wanted;
        let (zones, count) = if surplus > 0.0 { (&mut giving, surplus) } else { (&mut taking, -surplus) };
        zones.insert(zone.clone(), count);
    }
    let most = |zones: &BTreeMap<String, f64>| {
        let most = zones.iter().max_by(|a, b| a.1.total_cmp(b.1));
        most.map(|(zone, count)| (zone.clone(), *count))
    };
    let mut moves = Vec::new();
    while let (Some((from, surplus)), Some((to, lack))) = (most(&giving), most(&taking)) {
        if (surplus < 1.0 && lack < 1.0) || surplus < 0.5 || lack < 0.5 {
            break;
        }
        giving.entry(from.clone()).and_modify(|left| *left -= 1.0);
        taking.entry(to.clone()).and_modify(|left| *left -= 1.0);
        moves.push((from, to));
    }
    moves
}

/// Gives the ready endpoints of one address family their hints; `Err` says why there are none.
pub fn hint(endpoints: &mut [&mut Endpoint], shares: Option<&BTreeMap<String, f64>>) -> Result<(), String> {
    endpoints.iter_mut().for_each(|endpoint| endpoint.hints = None);
    let is_ready = |endpoint: &Endpoint| endpoint.conditions.as_ref().is_none_or(|known| known.ready != Some(false));
    let mut ready: Vec<_> = endpoints.iter_mut().filter(|endpoint| is_ready(endpoint)).collect();
    let wanted = allocations(shares, ready.len())?;
    if ready.iter().any(|endpoint| endpoint.zone.as_deref().is_none_or(str::is_empty)) {
        return Err("One or more endpoints do not have a zone specified".to_owned());
    }
    let mut present: BTreeMap<String, usize> = BTreeMap::new();
    for endpoint in &ready {
        *present.entry(endpoint.zone.clone().unwrap_or_default()).or_default() += 1;
    }
    let mut moves = moves(&wanted, &present);
    // by address, so that the same endpoints move each time
    ready.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    for endpoint in ready {
        let own = endpoint.zone.clone().unwrap_or_default();
        let name = match moves.iter().position(|(from, _)| *from == own) {
            Some(index) => moves.remove(index).1,
            None => own,
        };
        endpoint.hints = Some(EndpointHints { for_zones: Some(vec![ForZone { name }]), for_nodes: None });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(zone: Option<&str>, cpu: &str, ready: &str, label: &str) -> Arc<Node> {
        let mut labels = json!({label: ""});
        if let Some(zone) = zone {
            labels["topology.kubernetes.io/zone"] = zone.into();
        }
        let value = json!({"metadata": {"name": "n", "labels": labels}, "status": {
            "allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(value).expect("a node"))
    }

    fn endpoint(number: usize, zone: &str) -> Endpoint {
        let zone = (!zone.is_empty()).then(|| zone.to_owned());
        Endpoint { addresses: vec![format!("10.42.0.{number}")], zone, ..Default::default() }
    }

    /// The zones hinted at, in order.
    fn hints(zones: &[&str], shares: &[(&str, f64)]) -> Result<Vec<String>, String> {
        let shares: BTreeMap<_, _> = shares.iter().map(|(zone, share)| ((*zone).to_owned(), *share)).collect();
        let mut endpoints: Vec<_> = zones.iter().enumerate().map(|(number, zone)| endpoint(number, zone)).collect();
        let shares = (!shares.is_empty()).then_some(&shares);
        hint(&mut endpoints.iter_mut().collect::<Vec<_>>(), shares)?;
        let name = |endpoint: Endpoint| endpoint.hints?.for_zones?.into_iter().next().map(|zone| zone.name);
        Ok(endpoints.into_iter().filter_map(name).collect())
    }

    #[test]
    fn zones_count_by_the_cpu_of_their_ready_workers() {
        let (a, b) = (node(Some("a"), "1", "True", "x"), node(Some("b"), "3", "True", "x"));
        let left_out = [node(None, "9", "False", "x"), node(None, "9", "True", EXCLUDED[0])];
        let all: Vec<_> = [a.clone(), b].into_iter().chain(left_out).collect();
        assert_eq!(shares(&all), Some([("a".to_owned(), 0.25), ("b".to_owned(), 0.75)].into()));
        assert_eq!(shares(&[a.clone(), a.clone()]), None, "one zone");
        assert_eq!(shares(&[a.clone(), node(None, "1", "True", "x")]), None, "a zone is not known");
        assert_eq!(shares(&[a, node(Some("b"), "0", "True", "x")]), None, "CPU is not known");
    }

    #[test]
    fn endpoints_serve_zones_in_proportion() {
        let even = [("a", 0.5), ("b", 0.5)];
        let text = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(hints(&["a", "b", "a", "b"], &even), text(&["a", "b", "a", "b"]));
        assert_eq!(hints(&["a", "a", "a", "b"], &even), text(&["b", "a", "a", "b"]), "one is lent");
        assert_eq!(hints(&["a", "b", "c"], &[("a", 0.33), ("b", 0.33), ("c", 0.34)]), text(&["a", "b", "c"]));
    }

    #[test]
    fn without_a_fair_share_nobody_is_sent_anywhere() {
        let even = [("a", 0.5), ("b", 0.5)];
        for (zones, shares, expected) in [
            (
                vec!["a", "b"],
                &[][..],
                "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes",
            ),
            (vec!["a"], &even, "Insufficient number of endpoints (1 endpoints, 2 zones)"),
            (
                vec!["a", "b"],
                &[("a", 0.1), ("b", 0.9)],
                "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (2 endpoints, 2 zones)",
            ),
            (vec!["a", ""], &even, "One or more endpoints do not have a zone specified"),
        ] {
            assert_eq!(hints(&zones, shares), Err(expected.to_owned()));
        }
    }

    #[test]
    fn the_older_annotation_decides() {
        let wanted = |annotations: serde_json::Value| {
            let value = json!({"metadata": {"annotations": annotations}});
            is_wanted(&serde_json::from_value(value).expect("a Service"))
        };
        assert!(wanted(json!({MODE: "Auto"})) && wanted(json!({OLD_MODE: "auto"})));
        assert!(!wanted(json!({MODE: "Auto", OLD_MODE: "Disabled"})) && !wanted(json!({MODE: "Off"})));
        assert!(!wanted(json!({})));
    }
}
