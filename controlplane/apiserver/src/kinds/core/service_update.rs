//! What an update of a Service keeps of the one that is there, and what it drops because the new
//! type has no use for it (`patchAllocatedValues`, `normalizeClusterIPs`,
//! `dropTypeDependentFields`). Pure.

use serde_json::{Value, json};

use super::service::{has_address, has_node_ports, is_external, needs_health_port};
use super::service_families::same_addresses;
use crate::kinds::value::{at, copy, int, list, list_mut, remove, same_at, set, text};

/// What a client left out stays as it was allocated.
pub fn keep_allocated(new: &mut Value, old: &Value) {
    if has_address(new) && has_address(old) {
        if text(new, "spec.clusterIP").is_empty() {
            copy(old, new, "spec.clusterIP");
        }
        if list(new, "spec.clusterIPs").is_empty() {
            copy(old, new, "spec.clusterIPs");
        }
    }
    if has_node_ports(new) && has_node_ports(old) {
        let numbers = |service: &Value| list(service, "spec.ports").iter().map(|port| int(port, "nodePort")).collect();
        let (before, now): (Vec<i64>, Vec<i64>) = (numbers(old), numbers(new));
        for port in list_mut(new, "spec.ports").filter(|port| int(port, "nodePort") == 0) {
            let was = list(old, "spec.ports").iter().rfind(|was| text(was, "name") == text(port, "name"));
            let number = was.map_or(0, |was| int(was, "nodePort"));
            // Another port of the new Service has it.
            let elsewhere = before.contains(&number) && now.contains(&number);
            if number != 0 && !elsewhere {
                set(port, "nodePort", number);
            }
        }
    }
    if needs_health_port(new) && needs_health_port(old) && int(new, "spec.healthCheckNodePort") == 0 {
        copy(old, new, "spec.healthCheckNodePort");
    }
}

/// `clusterIP` and `clusterIPs` are two views of one thing; old clients know only the first.
pub fn normalize_addresses(new: &mut Value, old: Option<&Value>) {
    let address = text(new, "spec.clusterIP").to_owned();
    let Some(old) = old else {
        if !address.is_empty() && list(new, "spec.clusterIPs").is_empty() {
            set(new, "spec.clusterIPs", json!([address]));
        }
        return;
    };
    let was = text(old, "spec.clusterIP");
    if address == was {
        if list(new, "spec.clusterIPs").is_empty() {
            copy(old, new, "spec.clusterIPs");
        }
    } else if same_at(new, old, "spec.clusterIPs") && !was.is_empty() && address.is_empty() {
        remove(new, "spec.clusterIPs");
    } else if same_at(new, old, "spec.clusterIPs") {
        set(new, "spec.clusterIPs", json!([address]));
    }
}

/// Fields that the new type has no use for go, if the client did not touch them.
pub fn drop_type_dependent(new: &mut Value, old: &Value) {
    if has_address(old) && !has_address(new) {
        if same_addresses(new, old) {
            remove(new, "spec.clusterIP");
            remove(new, "spec.clusterIPs");
        }
        drop_same(new, old, "spec.ipFamilies");
        drop_same(new, old, "spec.ipFamilyPolicy");
    }
    if has_node_ports(old) && !has_node_ports(new) {
        let before: Vec<&Value> = list(old, "spec.ports").iter().map(|port| at(port, "nodePort")).collect();
        let known = |port: &Value| int(port, "nodePort") == 0 || before.contains(&at(port, "nodePort"));
        if list(new, "spec.ports").iter().all(known) {
            list_mut(new, "spec.ports").for_each(|port| {
                remove(port, "nodePort");
            });
        }
    }
    if needs_health_port(old) && !needs_health_port(new) {
        drop_same(new, old, "spec.healthCheckNodePort");
    }
    let balances = |service: &Value| text(service, "spec.type") == "LoadBalancer";
    if balances(old) && !balances(new) {
        drop_same(new, old, "spec.allocateLoadBalancerNodePorts");
        drop_same(new, old, "spec.loadBalancerClass");
    }
    if is_external(old) && !is_external(new) {
        drop_same(new, old, "spec.externalTrafficPolicy");
    }
    if !balances(new) {
        set(new, "status.loadBalancer", json!({}));
    }
}

fn drop_same(new: &mut Value, old: &Value, field: &str) {
    if same_at(new, old, field) {
        remove(new, field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(mut base: Value, spec: &Value) -> Value {
        for (key, value) in spec.as_object().unwrap() {
            base["spec"][key] = value.clone();
        }
        base
    }

    fn balancer() -> Value {
        json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30100,
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "a/b",
            "ports": [{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}})
    }

    #[test]
    fn what_was_allocated_stays() {
        let ports =
            |ports: Value| json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports}});
        for (given, numbers) in [
            (json!([{"name": "a", "port": 90}, {"name": "c", "port": 91}]), [json!(30001), json!(null)]),
            (
                json!([{"name": "b", "port": 90, "nodePort": 30001}, {"name": "a", "port": 91}]),
                [json!(30001), json!(null)],
            ),
            (
                json!([{"name": "b", "port": 90, "nodePort": 30009}, {"name": "a", "port": 91}]),
                [json!(30009), json!(30001)],
            ),
        ] {
            let mut new = ports(given.clone());
            keep_allocated(&mut new, &balancer());
            let found = [0, 1].map(|index| at(&new["spec"]["ports"][index], "nodePort").clone());
            assert_eq!(found, numbers, "{given}");
            assert_eq!(new["spec"]["clusterIP"], "10.43.0.9");
            assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.0.9"]));
            assert_eq!(new["spec"]["healthCheckNodePort"], 30100);
        }
    }

    #[test]
    fn one_address_two_fields() {
        let with = |address: Value, all: Value| json!({"spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": all}});
        let old = with(json!("10.43.0.1"), json!(["10.43.0.1"]));
        for (old, new, expected) in [
            (None, with(json!("10.43.0.1"), json!(null)), json!(["10.43.0.1"])),
            (None, with(json!(null), json!(["10.43.0.1"])), json!(["10.43.0.1"])),
            (Some(&old), with(json!("10.43.0.1"), json!(null)), json!(["10.43.0.1"])),
            (Some(&old), with(json!("10.43.0.2"), json!(["10.43.0.1"])), json!(["10.43.0.2"])),
            (Some(&old), with(json!(null), json!(["10.43.0.1"])), json!(null)),
            (Some(&old), with(json!("10.43.0.2"), json!(["10.43.0.3"])), json!(["10.43.0.3"])),
        ] {
            let mut done = new.clone();
            normalize_addresses(&mut done, old);
            assert_eq!(at(&done, "spec.clusterIPs"), &expected, "{new}");
        }
    }

    #[test]
    fn what_another_type_drops() {
        for (change, gone, kept) in [
            (
                json!({"type": "ClusterIP"}),
                &["healthCheckNodePort", "externalTrafficPolicy", "allocateLoadBalancerNodePorts", "loadBalancerClass"]
                    [..],
                &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"][..],
            ),
            (
                json!({"type": "NodePort"}),
                &["healthCheckNodePort", "allocateLoadBalancerNodePorts", "loadBalancerClass"][..],
                &["externalTrafficPolicy", "clusterIP"][..],
            ),
            (
                json!({"type": "ExternalName", "externalName": "x"}),
                &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"][..],
                &["externalName"][..],
            ),
            // What the client changed is left for validation to name.
            (
                json!({"type": "ClusterIP", "healthCheckNodePort": 30101, "loadBalancerClass": "c/d", "externalIPs": ["1.2.3.4"]}),
                &["allocateLoadBalancerNodePorts"][..],
                &["healthCheckNodePort", "loadBalancerClass", "externalTrafficPolicy"][..],
            ),
        ] {
            let mut new = merged(balancer(), &change);
            drop_type_dependent(&mut new, &balancer());
            for field in gone {
                assert_eq!(new["spec"].get(*field), None, "{change} {field}");
            }
            for field in kept {
                assert!(new["spec"].get(*field).is_some(), "{change} {field}");
            }
            assert_eq!(new["status"]["loadBalancer"], json!({}), "{change}");
        }
        let mut new =
            merged(balancer(), &json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30001}, {"port": 81}]}));
        drop_type_dependent(&mut new, &balancer());
        assert_eq!(new["spec"]["ports"], json!([{"port": 80}, {"port": 81}]));
        let added =
            json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30001}, {"port": 81, "nodePort": 30077}]});
        let mut new = merged(balancer(), &added);
        drop_type_dependent(&mut new, &balancer());
        assert_eq!(new["spec"]["ports"], added["ports"], "a new number keeps them all");
        let old = json!({"spec": {"type": "ExternalName", "externalName": "x"}});
        let mut new = json!({"spec": {"type": "ClusterIP", "externalName": "x"}});
        drop_type_dependent(&mut new, &old);
        assert_eq!(new["spec"]["externalName"], "x");
    }
}
