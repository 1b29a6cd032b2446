//! `pods/resize`: compute resources of a pod that runs.

use api::field::{Error, ErrorList, Path};
use serde_json::{Map, Value};

use super::annotations::MIRROR;
use super::{defaults, qos_class, spec};
use crate::kinds::check::Node;
use crate::kinds::value::{annotation, at, copy, has, list, list_mut, map, same, set, text};

const ONLY_COMPUTE: &str = "only cpu and memory resources are mutable";
const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// Of what was sent only resources and resize policies count. Containers that were added, removed
/// or renamed are left for validation to refuse.
pub fn keep_all_but_resources(new: &mut Value, old: &Value) {
    let names = |pod: &Value, field: &str| -> Vec<String> {
        list(pod, field).iter().map(|container| text(container, "name").to_owned()).collect()
    };
    let mut kept = old.clone();
    for field in ["spec.containers", "spec.initContainers"] {
        if names(new, field) != names(old, field) {
            copy(new, &mut kept, field);
            continue;
        }
        for (container, sent) in list_mut(&mut kept, field).zip(list(new, field)) {
            copy(sent, container, "resources");
            copy(sent, container, "resizePolicy");
        }
    }
    // A client that does not know the field does not take it away.
    if has(new, "spec.resources") {
        copy(new, &mut kept, "spec.resources");
        defaults::pod_level(&mut kept);
    }
    for own in ["metadata.resourceVersion", "metadata.managedFields"] {
        copy(new, &mut kept, own);
    }
    *new = kept;
}

pub fn validate(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    spec::validate_pod(&Node::root(new), &mut errors);
    let refused = |detail: &str| vec![Error::forbidden(&Path::unnamed(), detail)];
    if annotation(old, MIRROR).is_some() {
        return refused("static pods cannot be resized");
    }
    if text(old, "spec.os.name") == "windows" {
        return refused("windows pods cannot be resized");
    }
    let spec = Node::root(new).child("spec");
    if qos_class(new) != qos_class(old) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(Error::invalid(&spec.path, text(new, "status.qosClass"), detail));
    }
    pod_level(&spec, old, &mut errors);
    if !same_containers(&spec, old, &mut errors) {
        return errors;
    }
    for (field, sidecars_only) in [("initContainers", true), ("containers", false)] {
        for (container, was) in spec.items(field).iter().zip(list(old, &format!("spec.{field}"))) {
            if !sidecars_only || text(was, "restartPolicy") == "Always" {
                nothing_removed(&container.child("resources"), at(was, "resources"), "resource", &mut errors);
            }
        }
    }
    for (container, was) in spec.items("containers").iter().zip(list(old, "spec.containers")) {
        if !same(&without_compute(container.value, was), was) {
            spec.forbidden(&mut errors, ONLY_COMPUTE);
        }
    }
    for (container, was) in spec.items("initContainers").iter().zip(list(old, "spec.initContainers")) {
        if !same(&without_compute(container.value, was), was) {
            let detail = "only cpu and memory resources for init or sidecar containers are mutable";
            container.forbidden(&mut errors, detail);
        }
    }
    errors
}

/// `owner` with `was`'s cpu and memory.
fn without_compute(owner: &Value, was: &Value) -> Value {
    let mut munged = owner.clone();
    for side in ["resources.limits", "resources.requests"] {
        let mut amounts: Map<String, Value> = map(owner, side).cloned().unwrap_or_default();
        for name in COMPUTE {
            amounts.remove(name);
            if let Some(amount) = map(was, side).and_then(|was| was.get(name)) {
                amounts.insert(name.to_owned(), amount.clone());
            }
        }
        set(&mut munged, side, amounts);
    }
    munged
}

fn pod_level(spec: &Node<'_>, old: &Value, errors: &mut ErrorList) {
    let was = at(old, "spec");
    if has(was, "resources") {
        nothing_removed(&spec.child("resources"), at(was, "resources"), "pod-level resource", errors);
    }
    if spec.has("resources") && !same(at(&without_compute(spec.value, was), "resources"), at(was, "resources")) {
        spec.forbidden(errors, "only cpu and memory resources are mutable at pod-level");
    }
}

fn nothing_removed(resources: &Node<'_>, was: &Value, what: &str, errors: &mut ErrorList) {
    for side in ["requests", "limits"] {
        let now = resources.child(side);
        let kept = |name: &String| now.value.get(name).is_some();
        if !map(was, side).into_iter().flatten().all(|(name, _)| kept(name)) {
            now.forbidden(errors, format!("{what} {side} cannot be removed"));
        }
    }
}

/// None was added, removed, reordered or renamed.
fn same_containers(spec: &Node<'_>, old: &Value, errors: &mut ErrorList) -> bool {
    let before = errors.len();
    for field in ["containers", "initContainers"] {
        let was = list(old, &format!("spec.{field}"));
        if spec.items(field).len() != was.len() {
            spec.child(field).forbidden(errors, format!("{field} may not be added or removed on resize"));
            continue;
        }
        for (container, was) in spec.items(field).iter().zip(was) {
            let name = container.child("name");
            if name.text() != text(was, "name") {
                name.forbidden(errors, format!("{field} may not be renamed or reordered on resize"));
            }
        }
    }
    errors.len() == before
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    fn pod(resources: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "initContainers": [{"name": "i", "image": "i"}, {"name": "s", "image": "i", "restartPolicy": "Always"}],
            "containers": [{"name": "c", "image": "i", "resources": resources}]}});
        defaults::pod(&mut pod);
        pod
    }

    #[test]
    fn resizes() {
        let start = json!({"requests": {"cpu": "1", "example.com/x": "1"}, "limits": {"example.com/x": "1"}});
        let old = pod(start.clone());
        for (resources, expected) in [
            (
                json!({"requests": {"cpu": "2", "memory": "1Gi", "example.com/x": "1"}, "limits": {"example.com/x": "1"}}),
                "[]",
            ),
            (
                json!({"requests": {"memory": "1", "example.com/x": "1"}, "limits": {"example.com/x": "1"}}),
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
            ),
            (
                json!({"requests": {"cpu": "1", "example.com/x": "2"}, "limits": {"example.com/x": "2"}}),
                "spec: Forbidden: only cpu and memory resources are mutable",
            ),
            (
                json!({"requests": {"cpu": "1", "memory": "1", "example.com/x": "1"}, "limits": {"cpu": "1", "memory": "1", "example.com/x": "1"}}),
                "[]",
            ),
        ] {
            let mut new = pod(resources.clone());
            keep_all_but_resources(&mut new, &old);
            assert_eq!(join(&validate(&new, &old)), expected, "{resources}");
        }
        let mut new = old.clone();
        new["spec"]["initContainers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        new["spec"]["initContainers"][1]["resources"] = json!({"requests": {"cpu": "1"}});
        new["spec"]["hostname"] = json!("ignored");
        keep_all_but_resources(&mut new, &old);
        assert_eq!(join(&validate(&new, &old)), "[]");
        new["spec"]["containers"][0]["name"] = json!("other");
        assert!(
            join(&validate(&new, &old))
                .contains("spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize")
        );
        let best_effort = pod(json!({}));
        assert!(
            join(&validate(&old, &best_effort))
                .contains("spec: Invalid value: \"\": Pod QOS Class may not change as a result of resizing")
        );
    }
}
