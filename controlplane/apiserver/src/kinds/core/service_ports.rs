//! Which node ports a Service's ports get (`initNodePorts`, `updateNodePorts`). Pure: the map of
//! taken ports is handed in.

use std::collections::{HashMap, HashSet};

use api::field::{Error, Path};
use serde_json::Value;

use super::allocator::{AllocationError, Held};
use super::port_map::PortMap;
use super::service::{allocates_node_ports, has_node_ports, needs_health_port};
use crate::kinds::value::{int, list, list_mut, set};

/// Why a Service does not get its ports.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    Invalid(Error),
    /// Nothing is wrong with the wish.
    Internal(String),
}

/// What the stored Service, if there is one, has already.
pub struct Before<'a> {
    pub held: &'a Held,
    /// It has a health check port, which then stays.
    pub checked: bool,
}

/// Ports taken from `map` by one write.
struct Taking<'a> {
    map: &'a mut PortMap,
    taken: Vec<u16>,
}

impl Taking<'_> {
    fn any(&mut self) -> Result<i64, AllocationError> {
        let port = self.map.take_any()?;
        self.taken.push(port);
        Ok(port.into())
    }

    fn this(&mut self, asked: i64) -> Result<(), AllocationError> {
        let port = u16::try_from(asked).map_err(|_| self.map.out_of_range())?;
        self.map.take(port)?;
        self.taken.push(port);
        Ok(())
    }

    fn node_port(&mut self, asked: i64, index: usize) -> Result<i64, Refusal> {
        if asked == 0 {
            return self.any().map_err(|error| Refusal::Internal(format!("failed to allocate a nodePort: {error}")));
        }
        let refused = |error: AllocationError| Refusal::Invalid(Error::invalid(&path(index), asked, error.to_string()));
        self.this(asked).map_err(refused).map(|()| asked)
    }
}

fn path(index: usize) -> Path {
    Path::root("spec").child("ports").index(index).child("nodePort")
}

/// Gives every port of `service` that needs one a node port, and the Service its health check port;
/// those that were taken for that.
pub fn assign(map: &mut PortMap, before: Option<&Before<'_>>, service: &mut Value) -> Result<Vec<u16>, Refusal> {
    let mut taking = Taking { map, taken: Vec::new() };
    if has_node_ports(service) {
        match before {
            None => first(&mut taking, service)?,
            Some(before) => again(&mut taking, before.held, service)?,
        }
    }
    if needs_health_port(service) && !before.is_some_and(|before| before.checked) {
        let asked = int(service, "spec.healthCheckNodePort");
        let got = if asked == 0 { taking.any() } else { taking.this(asked).map(|()| asked) };
        let what = if asked == 0 { "a HealthCheck NodePort 0" } else { "requested HealthCheck NodePort" };
        let number = if asked == 0 { String::new() } else { format!(" {asked}") };
        let got = got.map_err(|error| Refusal::Internal(format!("failed to allocate {what}{number}: {error}")))?;
        set(service, "spec.healthCheckNodePort", got);
    }
    Ok(taking.taken)
}

/// At creation one number serves the same port over several protocols.
fn first(taking: &mut Taking<'_>, service: &mut Value) -> Result<(), Refusal> {
    let all = allocates_node_ports(service);
    let wishes: Vec<(i64, i64)> =
        list(service, "spec.ports").iter().map(|port| (int(port, "port"), int(port, "nodePort"))).collect();
    let mut by_number: HashMap<i64, i64> = HashMap::new();
    for (index, port) in list_mut(service, "spec.ports").enumerate() {
        let (number, asked) = (int(port, "port"), int(port, "nodePort"));
        if asked == 0 && !all {
            continue;
        }
        match by_number.get(&number) {
            None => {
                let wished = wishes.iter().find(|(port, node)| *port == number && *node != 0);
                let got = taking.node_port(wished.map_or(0, |(_, node)| *node), index)?;
                by_number.insert(number, got);
                set(port, "nodePort", got);
            }
            Some(shared) if asked == 0 => set(port, "nodePort", *shared),
            Some(shared) if asked != *shared => {
                taking.node_port(asked, index)?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// At an update what the Service has already needs no taking.
fn again(taking: &mut Taking<'_>, held: &Held, service: &mut Value) -> Result<(), Refusal> {
    let all = allocates_node_ports(service);
    for (index, port) in list_mut(service, "spec.ports").enumerate() {
        let asked = int(port, "nodePort");
        let has = u16::try_from(asked).is_ok_and(|port| held.ports.contains(&port) || taking.taken.contains(&port));
        if has || asked == 0 && !all {
            continue;
        }
        set(port, "nodePort", taking.node_port(asked, index)?);
    }
    Ok(())
}

/// A number that two ports of a new Service ask for without being able to share it: found when
/// ports are taken, which upstream does before it validates.
pub fn asked_twice(service: &Value) -> Option<Error> {
    if !has_node_ports(service) {
        return None;
    }
    let ports = list(service, "spec.ports");
    let (mut by_number, mut taken) = (HashMap::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let (number, own) = (int(port, "port"), int(port, "nodePort"));
        let wished = ports.iter().filter(|other| int(other, "port") == number).map(|other| int(other, "nodePort"));
        let asked = match by_number.get(&number) {
            None => wished.into_iter().find(|node| *node != 0).unwrap_or(0),
            Some(shared) if *shared == own => 0,
            Some(_) => own,
        };
        if asked != 0 && !taken.insert(asked) {
            return Some(Error::invalid(&path(index), asked, AllocationError::Taken("port").to_string()));
        }
        by_number.entry(number).or_insert(asked);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RANGE: (u16, u16) = (30000, 32767);

    fn service(spec: Value) -> Value {
        let mut service = json!({"spec": {"type": "NodePort"}});
        for (key, value) in spec.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        service
    }

    fn numbers(service: &Value) -> Vec<i64> {
        list(service, "spec.ports").iter().map(|port| int(port, "nodePort")).collect()
    }

    #[test]
    fn protocols_share_a_number_at_creation() {
        let mut new = service(json!({"ports": [{"port": 53}, {"port": 53, "protocol": "UDP"}, {"port": 54}]}));
        let taken = assign(&mut PortMap::read(RANGE, None), None, &mut new).unwrap();
        let got = numbers(&new);
        assert_eq!((got[0] == got[1], got[0] == got[2], taken.len()), (true, false, 2));
        let held = Held { addresses: vec![], ports: taken };
        let mut update = service(
            json!({"ports": [{"port": 53, "nodePort": got[0]}, {"port": 55}, {"port": 55, "protocol": "UDP"}]}),
        );
        let before = Before { held: &held, checked: false };
        let mut map = PortMap::read(RANGE, None);
        assert_eq!(assign(&mut map, Some(&before), &mut update).unwrap().len(), 2, "its own is not taken again");
        let got = numbers(&update);
        assert_ne!(got[1], got[2], "an update gives each port its own");
    }

    #[test]
    fn balancers_without_node_ports_keep_those_asked_for() {
        let mut new = service(
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 1}, {"port": 2, "nodePort": 30005}]}),
        );
        assert_eq!(assign(&mut PortMap::read(RANGE, None), None, &mut new), Ok(vec![30005]));
        assert_eq!(numbers(&new), [0, 30005]);
    }

    #[test]
    fn refused() {
        let refused = |spec: Value, before: Option<&Before<'_>>| {
            let mut map = PortMap::read((30000, 30001), None);
            map.set(30000, true);
            match assign(&mut map, before, &mut service(spec)).unwrap_err() {
                Refusal::Invalid(error) => error.to_string(),
                Refusal::Internal(text) => text,
            }
        };
        let held = Held::default();
        let before = Before { held: &held, checked: false };
        let balancer = |port: i64| json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false, "healthCheckNodePort": port});
        for (spec, before, expected) in [
            (
                json!({"ports": [{"port": 1, "nodePort": 30000}]}),
                None,
                "spec.ports[0].nodePort: Invalid value: 30000: provided port is already allocated",
            ),
            (
                json!({"ports": [{"port": 1, "nodePort": 30000}]}),
                Some(&before),
                "spec.ports[0].nodePort: Invalid value: 30000: provided port is already allocated",
            ),
            (
                json!({"ports": [{"port": 1, "nodePort": 80}]}),
                None,
                "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30001",
            ),
            (
                json!({"ports": [{"port": 1, "nodePort": 300000}]}),
                None,
                "spec.ports[0].nodePort: Invalid value: 300000: provided port is not in the valid range. The range of valid ports is 30000-30001",
            ),
            (json!({"ports": [{"port": 1}, {"port": 2}]}), None, "failed to allocate a nodePort: range is full"),
            (
                balancer(30000),
                None,
                "failed to allocate requested HealthCheck NodePort 30000: provided port is already allocated",
            ),
        ] {
            assert_eq!(refused(spec.clone(), before), expected, "{spec}");
        }
        let mut kept = service(balancer(30000));
        let checked = Before { held: &held, checked: true };
        assert_eq!(assign(&mut PortMap::read(RANGE, None), Some(&checked), &mut kept), Ok(vec![]));
    }

    #[test]
    fn numbers_asked_for_twice() {
        for (ports, index) in [
            (json!([{"port": 1, "nodePort": 30001}, {"port": 2, "nodePort": 30001}]), Some(1)),
            (json!([{"port": 1, "nodePort": 30001}, {"port": 1, "nodePort": 30001, "protocol": "UDP"}]), None),
            (json!([{"port": 1}, {"port": 2, "nodePort": 30001}, {"port": 1, "nodePort": 30001}]), Some(1)),
            (json!([{"port": 1}, {"port": 1}]), None),
        ] {
            let found = asked_twice(&service(json!({"ports": ports.clone()}))).map(|error| error.to_string());
            let expected = index.map(|index| {
                format!("spec.ports[{index}].nodePort: Invalid value: 30001: provided port is already allocated")
            });
            assert_eq!(found, expected, "{ports}");
        }
    }
}
