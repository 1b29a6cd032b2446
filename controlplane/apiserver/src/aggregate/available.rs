//! Whether the Service behind an APIService could be asked: the `Available` condition. Pure.

use serde_json::{Value, json};

/// Status, reason and message of an `Available` condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub available: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Condition {
    pub fn passed() -> Self {
        Self { available: true, reason: "Passed", message: "all checks passed".to_owned() }
    }

    pub fn failed(reason: &'static str, message: String) -> Self {
        Self { available: false, reason, message }
    }

    /// The object's status with this condition; none if it says so already.
    pub fn into_status(self, object: &Value, now: &str) -> Option<Value> {
        let status = if self.available { "True" } else { "False" };
        let mut condition = json!({
            "type": "Available", "status": status, "reason": self.reason, "message": self.message,
            "lastTransitionTime": now,
        });
        let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        match conditions.iter_mut().find(|held| held["type"] == "Available") {
            Some(held) => {
                if held["status"] == status {
                    condition["lastTransitionTime"] = held["lastTransitionTime"].clone();
                }
                if *held == condition {
                    return None;
                }
                *held = condition;
            }
            None => conditions.push(condition),
        }
        Some(json!({"conditions": conditions}))
    }
}

/// What the Service and its slices say; `Err` is why nobody could be asked.
pub fn reachable(spec: &Value, service: Option<&Value>, slices: &[&Value]) -> Result<(), Condition> {
    let target = &spec["service"];
    let text = |key: &str| target[key].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let port = target["port"].as_u64().unwrap_or(443);
    let Some(service) = service else {
        return Err(Condition::failed("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    if service["spec"]["type"].as_str().unwrap_or("ClusterIP") != "ClusterIP" {
        return Ok(());
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(port_name) =
        ports.filter(|held| held["port"] == port).map(|held| held["name"].as_str().unwrap_or_default()).next()
    else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Err(Condition::failed("ServicePortError", message));
    };
    let own: Vec<_> =
        slices.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name).collect();
    if own.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Err(Condition::failed("EndpointsNotFound", message));
    }
    let has_address = |slice: &Value| {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let ports = slice["ports"].as_array().into_iter().flatten();
        endpoints.map(|endpoint| endpoint["conditions"]["ready"].as_bool()).any(|ready| ready.unwrap_or(true))
            && ports
                .filter(|port| port["port"].is_u64())
                .any(|port| port["name"].as_str().unwrap_or_default() == port_name)
    };
    if own.iter().any(|slice| has_address(slice)) {
        return Ok(());
    }
    let message =
        format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}");
    Err(Condition::failed("MissingEndpoints", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_judged_in_upstreams_words() {
        let spec = json!({"service": {"namespace": "ns", "name": "api", "port": 443}});
        let service = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 443, "name": "https"}]}});
        let other_port = json!({"spec": {"ports": [{"port": 80}]}});
        let outside = json!({"spec": {"type": "ExternalName"}});
        let slice = |ready: bool, port: &str| {
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "api"}}, "ports": [{"name": port, "port": 8443}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]})
        };
        let (good, unready, misnamed) = (slice(true, "https"), slice(false, "https"), slice(true, "http"));
        type Case<'a> = (Option<&'a Value>, &'a [&'a Value], Option<(&'a str, &'a str)>);
        let cases: &[Case<'_>] = &[
            (None, &[], Some(("ServiceNotFound", "service/api in \"ns\" is not present"))),
            (Some(&other_port), &[], Some(("ServicePortError", "service/api in \"ns\" is not listening on port 443"))),
            (Some(&service), &[], Some(("EndpointsNotFound", "cannot find endpointslices for service/api in \"ns\""))),
            (
                Some(&service),
                &[&unready],
                Some((
                    "MissingEndpoints",
                    "endpointslices for service/api in \"ns\" have no addresses with port name \"https\"",
                )),
            ),
            (
                Some(&service),
                &[&misnamed],
                Some((
                    "MissingEndpoints",
                    "endpointslices for service/api in \"ns\" have no addresses with port name \"https\"",
                )),
            ),
            (Some(&service), &[&unready, &good], None),
            (Some(&outside), &[], None),
        ];
        for (service, slices, expected) in cases {
            let got = reachable(&spec, *service, slices).err().map(|condition| (condition.reason, condition.message));
            assert_eq!(got, expected.map(|(reason, message)| (reason, message.to_owned())));
        }
    }

    #[test]
    fn a_condition_moves_its_time_only_with_its_status() {
        let object = json!({});
        let first = Condition::passed().into_status(&object, "1").unwrap();
        let held = json!({"status": first});
        assert_eq!(Condition::passed().into_status(&held, "2"), None);
        let failed = Condition::failed("MissingEndpoints", "none".into());
        let second = json!({"status": failed.into_status(&held, "2").unwrap()});
        assert_eq!(second["status"]["conditions"][0]["lastTransitionTime"], "2");
        let third = Condition::failed("ServiceNotFound", "gone".into()).into_status(&second, "3").unwrap();
        assert_eq!(third["conditions"][0]["lastTransitionTime"], "2");
        assert_eq!(third["conditions"][0]["reason"], "ServiceNotFound");
    }
}
