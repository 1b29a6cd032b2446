//! `LimitRanger`: fills in what containers do not ask for and refuses what is out of a namespace's
//! LimitRanges.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use api::resources::Side;
use async_trait::async_trait;
use serde_json::Value;

use super::creates;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::core::pod::quantity;
use crate::kinds::value::{at, ensure_map, entries, list, list_mut, map, remove, text};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger;

#[async_trait]
impl Admission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        // A pod's containers do not change any more, a claim may grow.
        creates(attributes, "", "pods")
            || attributes.is("", "pods") && attributes.subresource == "resize"
            || attributes.subresource.is_empty()
                && attributes.is("", "persistentvolumeclaims")
                && matches!(attributes.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        if !attributes.is("", "pods") {
            return Ok(());
        }
        for range in cluster.list("", "limitranges", attributes.namespace).await? {
            fill_in(&mut attributes.object, &range);
        }
        Ok(())
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let pod = attributes.is("", "pods");
        for range in cluster.list("", "limitranges", attributes.namespace).await? {
            let mut found: Vec<String> = Vec::new();
            for problem in list(&range, "spec.limits").iter().flat_map(|item| problems(item, &attributes.object, pod)) {
                // What is true of several containers is said once.
                if !found.contains(&problem) {
                    found.push(problem);
                }
            }
            match found.as_slice() {
                [] => {}
                [one] => return Err(attributes.forbid(one)),
                many => return Err(attributes.forbid(format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

/// Default limits and requests of one LimitRange.
fn fill_in(pod: &mut Value, range: &Value) {
    let mut notes = Vec::new();
    for item in list(range, "spec.limits").iter().filter(|item| text(item, "type") == "Container") {
        for (field, words) in [("spec.containers", "container"), ("spec.initContainers", "init container")] {
            for container in list_mut(pod, field) {
                let container_name = text(container, "name").to_owned();
                for (source, side, what) in
                    [("defaultRequest", "resources.requests", "request"), ("default", "resources.limits", "limit")]
                {
                    let mut added = Vec::new();
                    for (resource, amount) in entries(item, source) {
                        let amounts = ensure_map(container, side);
                        if !amounts.contains_key(resource) {
                            amounts.insert(resource.to_owned(), amount.clone());
                            added.push(resource.to_owned());
                        }
                    }
                    if !added.is_empty() {
                        added.sort();
                        notes.push(format!("{} {what} for {words} {container_name}", added.join(", ")));
                    }
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        ensure_map(pod, "metadata.annotations").insert(ANNOTATION.to_owned(), note.into());
    }
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(owner: &Value, path: &str) -> Amounts {
    entries(owner, path).filter_map(|(key, amount)| Some((key.to_owned(), quantity(amount)?))).collect()
}

/// What of `object` is out of the limits of one item of a LimitRange.
fn problems(item: &Value, object: &Value, pod: bool) -> Vec<String> {
    match (text(item, "type"), pod) {
        ("Container", true) => ["spec.initContainers", "spec.containers"]
            .iter()
            .flat_map(|field| list(object, field))
            .flat_map(|c| check(item, "Container", &amounts(c, "resources.requests"), &amounts(c, "resources.limits")))
            .collect(),
        ("Pod", true) => check(item, "Pod", &of_pod(object, Side::Requests), &of_pod(object, Side::Limits)),
        ("PersistentVolumeClaim", false) => claim(item, &amounts(object, "spec.resources.requests")),
        _ => Vec::new(),
    }
}

/// What the pod's own resources and its containers' come to; its class's overhead is not the user's.
fn of_pod(pod: &Value, side: Side) -> Amounts {
    let mut spec = at(pod, "spec").clone();
    remove(&mut spec, "overhead");
    serde_json::from_value(spec).map(|spec| api::resources::of_pod(&spec, side)).unwrap_or_default()
}

fn check(item: &Value, kind: &str, requests: &Amounts, limits: &Amounts) -> Vec<String> {
    let mut found = Vec::new();
    for (resource, least) in amounts(item, "min") {
        let words = format!("minimum {resource} usage per {kind} is {least}");
        match (requests.get(&resource), limits.get(&resource)) {
            (None, _) => found.push(format!("{words}.  No request is specified")),
            (Some(request), _) if *request < least => found.push(format!("{words}, but request is {request}")),
            (_, Some(limit)) if *limit < least => found.push(format!("{words}, but limit is {limit}")),
            _ => {}
        }
    }
    for (resource, most) in amounts(item, "max") {
        let words = format!("maximum {resource} usage per {kind} is {most}");
        match (requests.get(&resource), limits.get(&resource)) {
            (_, None) => found.push(format!("{words}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => found.push(format!("{words}, but limit is {limit}")),
            (Some(request), _) if *request > most => found.push(format!("{words}, but request is {request}")),
            _ => {}
        }
    }
    for (resource, ratio) in amounts(item, "maxLimitRequestRatio") {
        let words = format!("{resource} max limit to request ratio per {kind} is {ratio}, but");
        let request = requests.get(&resource).filter(|request| !request.is_zero());
        match (request, limits.get(&resource).filter(|limit| !limit.is_zero())) {
            (None, _) => found.push(format!("{words} no request is specified or request is 0")),
            (_, None) => found.push(format!("{words} no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let actual = limit.milli() as f64 / request.milli() as f64;
                if actual > ratio.milli() as f64 / 1000.0 {
                    found.push(format!("{words} provided ratio is {actual:.6}"));
                }
            }
        }
    }
    found
}

fn claim(item: &Value, requests: &Amounts) -> Vec<String> {
    let mut found = Vec::new();
    for (field, words) in [("min", "minimum"), ("max", "maximum")] {
        let Some(bound) = map(item, field).and_then(|amounts| amounts.get("storage")).and_then(quantity) else {
            continue;
        };
        let words = format!("{words} storage usage per PersistentVolumeClaim is {bound}");
        match requests.get("storage") {
            None => found.push(format!("{words}.  No request is specified")),
            Some(request) if (field == "min" && *request < bound) || (field == "max" && *request > bound) => {
                found.push(format!("{words}, but request is {request}"));
            }
            Some(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    fn cluster(limits: Value) -> Fixed {
        Fixed::with(&[(
            "",
            "limitranges",
            json!({"metadata": {"name": "l", "namespace": "n"}, "spec": {"limits": [limits]}}),
        )])
    }

    fn pod(resources: Value) -> Request {
        Request::create(
            "",
            "pods",
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "resources": resources}]}}),
        )
    }

    #[tokio::test]
    async fn fills_in() {
        let cluster = cluster(
            json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "500m", "memory": "1Gi"}}),
        );
        let mut request = pod(json!({"requests": {"cpu": "100m"}}));
        request.admit(&LimitRanger, &cluster).await.unwrap();
        assert_eq!(
            request.object["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1"}})
        );
        assert_eq!(
            request.object["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: memory request for container c; cpu limit for container c"
        );
    }

    #[tokio::test]
    async fn refuses() {
        for (limits, resources, expected) in [
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({"limits": {"cpu": "2"}}),
                "pods \"p\" is forbidden: maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                json!({"type": "Container", "min": {"cpu": "1"}}),
                json!({}),
                "pods \"p\" is forbidden: minimum cpu usage per Container is 1.  No request is specified",
            ),
            (
                json!({"type": "Pod", "max": {"memory": "1Gi"}}),
                json!({"limits": {"memory": "2Gi"}, "requests": {"memory": "1Gi"}}),
                "pods \"p\" is forbidden: maximum memory usage per Pod is 1Gi, but limit is 2Gi",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"limits": {"cpu": "4"}, "requests": {"cpu": "1"}}),
                "pods \"p\" is forbidden: cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000",
            ),
        ] {
            assert_eq!(pod(resources).admit(&LimitRanger, &cluster(limits)).await, Err(expected.to_owned()));
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_several_containers_is_said_once() {
        let cluster = cluster(json!({"type": "Container", "max": {"cpu": "1"}}));
        let containers = json!([{"name": "a", "resources": {"limits": {"cpu": "2"}}}, {"name": "b", "resources": {"limits": {"cpu": "2"}}}, {"name": "c"}]);
        let mut request = pod(json!({}));
        request.object["spec"]["containers"] = containers;
        assert_eq!(
            request.admit(&LimitRanger, &cluster).await.unwrap_err(),
            "pods \"p\" is forbidden: [maximum cpu usage per Container is 1, but limit is 2, maximum cpu usage per Container is 1.  No limit is specified]"
        );
    }

    #[tokio::test]
    async fn sidecars_add_to_the_pod_and_resizes_are_looked_at() {
        let cluster = cluster(json!({"type": "Pod", "max": {"cpu": "2"}}));
        let sized = |cpu: &str| json!({"limits": {"cpu": cpu}, "requests": {"cpu": cpu}});
        let mut request = pod(sized("1"));
        request.object["spec"]["initContainers"] =
            json!([{"name": "s", "image": "i", "restartPolicy": "Always", "resources": sized("1500m")}]);
        request.object["spec"]["overhead"] = json!({"cpu": "5"});
        let expected = "pods \"p\" is forbidden: maximum cpu usage per Pod is 2, but limit is 2500m";
        assert_eq!(request.admit(&LimitRanger, &cluster).await, Err(expected.to_owned()));
        request.operation = Operation::Update;
        assert_eq!(request.admit(&LimitRanger, &cluster).await, Ok(()));
        request.subresource = "resize";
        assert_eq!(request.admit(&LimitRanger, &cluster).await, Err(expected.to_owned()));
    }
}
