//! `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`: four views of where a Service can
//! be reached, which clients write any of (`pkg/registry/core/service/storage/alloc.go`,
//! `ValidateServiceClusterIPsRelatedFields`). The cluster is IPv4 single-stack. Pure.

use std::net::IpAddr;

use api::field::{Error, ErrorList};
use serde_json::{Value, json};

use super::service::{has_address, is_headless};
use crate::kinds::check::{Node, Seen, parse_ip_sloppy};
use crate::kinds::value::{at, ensure_list, has, list, map, opt_text, same_at, set, text, texts};

/// The only family that addresses are allocated of.
const FAMILY: &str = "IPv4";
const BOTH: [&str; 2] = ["IPv4", "IPv6"];

/// Fills in policy and families, or says why they cannot be. Running it again on what it filled in
/// says the same.
pub fn settle(service: &mut Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    if !has_address(service) || old.is_some_and(|old| stays_dual(service, old)) {
        return errors;
    }
    if !has(service, "spec.ipFamilyPolicy") {
        let before = old.and_then(|old| opt_text(old, "spec.ipFamilyPolicy"));
        let fresh = if is_free(service) { "RequireDualStack" } else { "SingleStack" };
        set(service, "spec.ipFamilyPolicy", before.unwrap_or(fresh));
    }
    related(service, old, &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    if let Some(old) = old {
        release(service, old, &mut errors);
    }
    infer(service, &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    if is_free(service) {
        // Whoever makes its endpoints knows the families: the cluster's do not matter.
        let families = ensure_list(service, "spec.ipFamilies");
        if families.is_empty() {
            families.push(FAMILY.into());
        }
        let other = if families[0] == BOTH[0] { BOTH[1] } else { BOTH[0] };
        if !is_single(service) && list(service, "spec.ipFamilies").len() < 2 {
            ensure_list(service, "spec.ipFamilies").push(other.into());
        }
        return errors;
    }
    configured(service, &mut errors);
    if errors.is_empty() && list(service, "spec.ipFamilies").is_empty() {
        set(service, "spec.ipFamilies", json!([FAMILY]));
    }
    errors
}

/// An unchanged `PreferDualStack` Service stays as it is, whatever the cluster's families are now.
fn stays_dual(service: &Value, old: &Value) -> bool {
    [service, old].iter().all(|service| text(service, "spec.ipFamilyPolicy") == "PreferDualStack")
        && same_addresses(service, old)
        && same_at(service, old, "spec.ipFamilies")
}

pub fn same_addresses(service: &Value, old: &Value) -> bool {
    text(service, "spec.clusterIP") == text(old, "spec.clusterIP") && same_at(service, old, "spec.clusterIPs")
}

/// Headless and without a selector.
fn is_free(service: &Value) -> bool {
    text(service, "spec.clusterIP") == "None" && map(service, "spec.selector").is_none_or(serde_json::Map::is_empty)
}

fn is_single(service: &Value) -> bool {
    text(service, "spec.ipFamilyPolicy") == "SingleStack"
}

/// Gives the second address and family up when the policy says so; only then may they go.
fn release(service: &mut Value, old: &Value, errors: &mut ErrorList) {
    let single = is_single(service);
    for (field, same, what) in [
        ("spec.clusterIPs", same_addresses(service, old), "cluster IP"),
        ("spec.ipFamilies", same_at(service, old, "spec.ipFamilies"), "IP family"),
    ] {
        let count = list(service, field).len();
        if single && same && count > 1 {
            ensure_list(service, field).truncate(1);
        } else if !single && count > 0 && count < list(old, field).len() {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            Node::root(service).child("spec.ipFamilyPolicy").invalid(errors, detail);
        }
    }
}

/// Families follow from addresses.
fn infer(service: &mut Value, errors: &mut ErrorList) {
    if is_single(service) {
        for (field, what) in [("spec.clusterIPs", "cluster IPs"), ("spec.ipFamilies", "IP families")] {
            if list(service, field).len() == 2 {
                let detail =
                    format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
                Node::root(service).child("spec.ipFamilyPolicy").invalid(errors, detail);
            }
        }
    }
    for index in list(service, "spec.ipFamilies").len()..list(service, "spec.clusterIPs").len() {
        let address = list(service, "spec.clusterIPs")[index].as_str().unwrap_or("");
        if address == "None" {
            break;
        }
        if is_v6(address) {
            let all = Node::root(service).child("spec.clusterIPs");
            errors.push(Error::invalid(
                &all.path.index(index),
                all.value.clone(),
                "IPv6 is not configured on this cluster",
            ));
        } else {
            ensure_list(service, "spec.ipFamilies").push(FAMILY.into());
        }
    }
}

fn configured(service: &Value, errors: &mut ErrorList) {
    let spec = Node::root(service).child("spec");
    let policy = spec.child("ipFamilyPolicy");
    if policy.text() == "RequireDualStack" {
        policy.invalid(errors, "this cluster is not configured for dual-stack services");
    }
    for family in spec.items("ipFamilies") {
        if family.text() != FAMILY {
            family.invalid(errors, "not configured on this cluster");
        }
    }
}

/// That the four fields fit each other.
pub fn related(service: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    if !has_address(service) {
        return;
    }
    let spec = Node::root(service).child("spec");
    let (all, listed, single) = (spec.child("clusterIPs"), spec.items("clusterIPs"), spec.child("clusterIP").text());
    match listed.first() {
        None if !single.is_empty() => all.missing(errors, ""),
        Some(_) if single.is_empty() => all.invalid(errors, "must be empty when `clusterIP` is not specified"),
        Some(first) if first.text() != single => all.invalid(errors, "first value must match `clusterIP`"),
        _ => {}
    }
    let mut seen = Seen::default();
    for family in spec.items("ipFamilies") {
        family.one_of(errors, &BOTH);
        if !seen.insert(family.text()) {
            family.duplicate(errors);
        }
    }
    spec.child("ipFamilyPolicy").optional_one_of(errors, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    // What was valid once stays so.
    let known = old.map_or_else(Vec::new, |old| texts(old, "spec.clusterIPs"));
    let mut malformed = false;
    for (index, address) in listed.iter().enumerate() {
        if index == 0 && address.text() == "None" {
            if listed.len() > 1 {
                malformed = true;
                all.invalid(errors, "'None' must be the first and only value");
            }
        } else if !known.contains(&address.text()) && !address.legacy_ip(errors) {
            malformed = true;
        }
    }
    if listed.len() > 2 {
        all.invalid(errors, "may only hold up to 2 values");
    }
    if malformed {
        return;
    }
    let six = listed.iter().filter(|address| is_v6(address.text())).count();
    if listed.len() > 1 && (six == 0 || six == listed.len()) {
        all.invalid(errors, "may specify no more than one IP for each IP family");
    }
    if is_headless(service) {
        return;
    }
    for (index, (address, family)) in listed.iter().zip(texts(service, "spec.ipFamilies")).enumerate() {
        if matches!((family, is_v6(address.text())), ("IPv4", true) | ("IPv6", false)) {
            address.invalid(errors, format!("expected an {family} value as indicated by `ipFamilies[{index}]`"));
        }
    }
}

fn is_v6(address: &str) -> bool {
    matches!(parse_ip_sloppy(address), Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none())
}

/// Addresses stay, once there are any; a second one may come, or go with its policy.
pub fn address_changes(service: &Value, old: &Value, errors: &mut ErrorList) {
    if !has_address(service) || !has_address(old) || is_headless(service) && is_headless(old) {
        return;
    }
    let (now, was) = (list(service, "spec.clusterIPs"), list(old, "spec.clusterIPs"));
    let all = Node::root(service).child("spec.clusterIPs");
    let refuse = |errors: &mut ErrorList, index: usize, detail: &str| {
        errors.push(Error::invalid(&all.path.index(index), all.value.clone(), detail));
    };
    if now.len() == was.len() {
        for (index, _) in now.iter().zip(was).enumerate().filter(|(_, (now, was))| now != was) {
            refuse(errors, index, "may not change once set");
        }
        return;
    }
    match (now.first(), was.first()) {
        (None, _) => refuse(errors, 0, "primary clusterIP can not be unset"),
        (Some(now), Some(was)) if now != was => refuse(errors, 0, "may not change once set"),
        _ => {}
    }
    if now.len() == 1 && was.len() > 1 {
        needs_single(service, "clusterIP", errors);
    }
}

/// As [`address_changes`], of families.
pub fn family_changes(service: &Value, old: &Value, errors: &mut ErrorList) {
    if !has_address(service) || !has_address(old) || is_headless(service) || is_headless(old) {
        return;
    }
    let (now, was) = (list(service, "spec.ipFamilies"), list(old, "spec.ipFamilies"));
    let path = Node::root(service).child("spec.ipFamilies").path.index(0);
    let mut refuse = |shown: &str, detail: &str| errors.push(Error::invalid(&path, at(service, shown).clone(), detail));
    if now.len() == was.len() {
        for _ in now.iter().zip(was).filter(|(now, was)| now != was) {
            refuse("spec.ipFamilies", "may not change once set");
        }
        return;
    }
    if now.len() < was.len() && list(service, "spec.clusterIPs").is_empty() {
        refuse("spec.ipFamilies", "primary ipFamily can not be unset");
    }
    if let (Some(now), Some(was)) = (now.first(), was.first())
        && now != was
    {
        // Upstream shows the addresses here.
        refuse("spec.clusterIPs", "may not change once set");
    }
    if now.len() == 1 && was.len() > 1 {
        needs_single(service, "ipFamily", errors);
    }
}

fn needs_single(service: &Value, what: &str, errors: &mut ErrorList) {
    if !is_single(service) {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        Node::root(service).child("spec.ipFamilyPolicy").invalid(errors, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    fn spec(spec: Value) -> Value {
        let mut service = json!({"spec": {"type": "ClusterIP", "selector": {"a": "b"}}});
        for (key, value) in spec.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        service
    }

    #[test]
    fn what_is_filled_in() {
        for (given, policy, families) in [
            (json!({}), "SingleStack", json!(["IPv4"])),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack", json!(["IPv4"])),
            (json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"]}), "SingleStack", json!(["IPv4"])),
            (json!({"clusterIP": "None", "clusterIPs": ["None"]}), "SingleStack", json!(["IPv4"])),
            (
                json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {}}),
                "RequireDualStack",
                json!(["IPv4", "IPv6"]),
            ),
            (
                json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {}, "ipFamilies": ["IPv6"]}),
                "RequireDualStack",
                json!(["IPv6", "IPv4"]),
            ),
            (
                json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {}, "ipFamilyPolicy": "SingleStack"}),
                "SingleStack",
                json!(["IPv4"]),
            ),
        ] {
            let mut service = spec(given.clone());
            assert_eq!(settle(&mut service, None), [], "{given}");
            assert_eq!(
                (&service["spec"]["ipFamilyPolicy"], &service["spec"]["ipFamilies"]),
                (&json!(policy), &families)
            );
            let once = service.clone();
            assert_eq!(settle(&mut service, None), [], "{given}");
            assert_eq!(service, once, "{given}");
        }
        let mut named = json!({"spec": {"type": "ExternalName"}});
        settle(&mut named, None);
        assert_eq!(named, json!({"spec": {"type": "ExternalName"}}));
    }

    #[test]
    fn refused() {
        for (given, expected) in [
            (json!({"clusterIP": "10.43.0.1"}), "spec.clusterIPs: Required value"),
            (
                json!({"clusterIPs": ["10.43.0.1"]}),
                "spec.clusterIPs: Invalid value: [\"10.43.0.1\"]: must be empty when `clusterIP` is not specified",
            ),
            (
                json!({"clusterIP": "10.43.0.2", "clusterIPs": ["10.43.0.1"]}),
                "spec.clusterIPs: Invalid value: [\"10.43.0.1\"]: first value must match `clusterIP`",
            ),
            (
                json!({"ipFamilies": ["IPv4", "IPv4", "X"]}),
                "[spec.ipFamilies[1]: Duplicate value: \"IPv4\", \
                 spec.ipFamilies[2]: Unsupported value: \"X\": supported values: \"IPv4\", \"IPv6\"]",
            ),
            (
                json!({"ipFamilyPolicy": "X"}),
                "spec.ipFamilyPolicy: Unsupported value: \"X\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
            ),
            (
                json!({"clusterIP": "None", "clusterIPs": ["None", "10.43.0.1"]}),
                "spec.clusterIPs: Invalid value: [\"None\",\"10.43.0.1\"]: 'None' must be the first and only value",
            ),
            (
                json!({"clusterIP": "010.43.0.1", "clusterIPs": ["010.43.0.1"]}),
                "spec.clusterIPs[0]: Invalid value: \"010.43.0.1\": must not have leading 0s",
            ),
            (
                json!({"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1", "fd00::1", "10.43.0.2"]}),
                "spec.clusterIPs: Invalid value: [\"10.43.0.1\",\"fd00::1\",\"10.43.0.2\"]: may only hold up to 2 values",
            ),
            (
                json!({"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1", "10.43.0.2"]}),
                "spec.clusterIPs: Invalid value: [\"10.43.0.1\",\"10.43.0.2\"]: may specify no more than one IP for each IP family",
            ),
            (
                json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"], "ipFamilies": ["IPv4"]}),
                "spec.clusterIPs[0]: Invalid value: \"fd00::1\": expected an IPv4 value as indicated by `ipFamilies[0]`",
            ),
            (
                json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
                "spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster",
            ),
            (
                json!({"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}),
                "[spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified, \
                 spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified]",
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                "[spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services, \
                 spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster]",
            ),
        ] {
            let mut service = spec(given.clone());
            assert_eq!(join(&settle(&mut service, None)), expected, "{given}");
            assert_eq!(join(&settle(&mut service, None)), expected, "again: {given}");
        }
    }

    fn dual() -> Value {
        spec(
            json!({"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"}),
        )
    }

    #[test]
    fn a_second_family_goes_only_with_its_policy() {
        let mut single = dual();
        single["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        assert_eq!(settle(&mut single, Some(&dual())), []);
        assert_eq!(single["spec"]["clusterIPs"], json!(["10.43.0.1"]));
        assert_eq!(single["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(settle(&mut dual(), Some(&dual())), [], "an unchanged one stays");
        let mut less = dual();
        less["spec"]["clusterIPs"] = json!(["10.43.0.1"]);
        less["spec"]["ipFamilies"] = json!(["IPv4"]);
        assert_eq!(
            join(&settle(&mut less, Some(&dual()))),
            "[spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP, \
             spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary IP family]"
        );
    }

    #[test]
    fn changes() {
        let one = |address: &str, family: &str| {
            spec(json!({"clusterIP": address, "clusterIPs": [address], "ipFamilies": [family]}))
        };
        let none = spec(json!({}));
        for (old, new, expected) in [
            (one("10.43.0.1", "IPv4"), one("10.43.0.1", "IPv4"), "[]"),
            (
                one("10.43.0.1", "IPv4"),
                one("fd00::2", "IPv6"),
                "[spec.clusterIPs[0]: Invalid value: [\"fd00::2\"]: may not change once set, \
                 spec.ipFamilies[0]: Invalid value: [\"IPv6\"]: may not change once set]",
            ),
            (
                one("10.43.0.1", "IPv4"),
                none.clone(),
                "[spec.clusterIPs[0]: Invalid value: null: primary clusterIP can not be unset, \
                 spec.ipFamilies[0]: Invalid value: null: primary ipFamily can not be unset]",
            ),
            (
                one("None", "IPv4"),
                one("10.43.0.1", "IPv4"),
                "spec.clusterIPs[0]: Invalid value: [\"10.43.0.1\"]: may not change once set",
            ),
            (none, one("10.43.0.1", "IPv4"), "[]"),
            (
                dual(),
                one("10.43.0.1", "IPv4"),
                "[spec.ipFamilyPolicy: Invalid value: null: must be set to 'SingleStack' when releasing the secondary clusterIP, \
                 spec.ipFamilyPolicy: Invalid value: null: must be set to 'SingleStack' when releasing the secondary ipFamily]",
            ),
            (json!({"spec": {"type": "ExternalName"}}), one("10.43.0.1", "IPv4"), "[]"),
        ] {
            let mut errors = ErrorList::new();
            address_changes(&new, &old, &mut errors);
            family_changes(&new, &old, &mut errors);
            assert_eq!(join(&errors), expected, "{old} {new}");
        }
    }
}
