//! What may change in a pod that exists, by an update or through `ephemeralcontainers`.
//! Neighbours: [`super::resize`], [`super::status`].

use api::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::annotations::{self, MIRROR};
use super::{placement, spec};
use crate::kinds::check::Node;
use crate::kinds::core::diff;
use crate::kinds::core::pod::internal::{self, SELECTOR_TERM};
use crate::kinds::value::{self, annotation, at, copy, list, list_mut, same, same_at, text};

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const AFFINITY: &str = "spec.affinity.nodeAffinity";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

pub fn validate(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(new);
    metadata_and_spec(new, old, &mut errors);
    let (spec, was) = (root.child("spec"), Node::root(old).child("spec"));
    for field in ["containers", "initContainers"] {
        if spec.items(field).len() != was.items(field).len() {
            spec.child(field).forbidden(&mut errors, "pod updates may not add or remove containers");
            return errors;
        }
        for container in spec.items(field) {
            container.child("image").required(&mut errors, "");
            super::container::trimmed_image(&container, &mut errors);
        }
    }
    if !deadline(&spec, &was, &mut errors) {
        return errors;
    }
    tolerations(&spec, &was, &mut errors);
    gates(&spec, &was, &mut errors);
    let mut munged = munge(new, old);
    if !list(old, "spec.schedulingGates").is_empty() {
        narrowed(&spec, &mut munged, old, &mut errors);
    }
    if !same(at(&munged, "spec"), was.value) {
        spec.forbidden(&mut errors, format!("{ALLOWED}\n{}", diff::unified(was.value, at(&munged, "spec"))));
    }
    errors
}

/// What an updated pod has to be like whatever changed.
pub fn metadata_and_spec(new: &Value, old: &Value, errors: &mut ErrorList) {
    let root = Node::root(new);
    let path = root.child("metadata.annotations").path;
    spec::validate_pod(&root, errors);
    annotations::unchanged(new, old, &path, errors);
    annotations::validate(&root, &path, errors);
}

/// `new` with what may change set back to what it was.
fn munge(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for field in ["spec.containers", "spec.initContainers"] {
        for (container, was) in list_mut(&mut munged, field).zip(list(old, field)) {
            copy(was, container, "image");
        }
    }
    for field in ["spec.activeDeadlineSeconds", "spec.tolerations", "spec.schedulingGates"] {
        copy(old, &mut munged, field);
    }
    let grace = "spec.terminationGracePeriodSeconds";
    if value::int(old, grace) < 0 && value::int(new, grace) == 1 {
        copy(old, &mut munged, grace);
    }
    munged
}

/// A gated pod has not been considered yet: its placement may be narrowed.
fn narrowed(spec: &Node<'_>, munged: &mut Value, old: &Value, errors: &mut ErrorList) {
    let selector = spec.child("nodeSelector");
    let kept = |(key, value): (&str, &Value)| selector.value.get(key) == Some(value);
    if !value::entries(old, "spec.nodeSelector").all(kept) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        selector.invalid(errors, detail);
    }
    copy(old, munged, "spec.nodeSelector");
    if same_at(munged, old, AFFINITY) {
        return;
    }
    node_affinity(&spec.child("affinity.nodeAffinity"), at(old, AFFINITY), errors);
    copy(old, munged, AFFINITY);
    if same(at(munged, "spec.affinity"), &Value::Null) && !value::has(old, "spec.affinity") {
        value::remove(munged, "spec.affinity");
    }
}

fn node_affinity(new: &Node<'_>, old: &Value, errors: &mut ErrorList) {
    let terms = new.child(REQUIRED).child("nodeSelectorTerms");
    let was = list(old, &format!("{REQUIRED}.nodeSelectorTerms"));
    if was.is_empty() {
        return;
    }
    if was.len() != terms.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return errors.push(internal::invalid(&terms.path, terms.value, SELECTOR_TERM, detail));
    }
    for (term, was) in new.child(REQUIRED).items("nodeSelectorTerms").iter().zip(was) {
        let starts = |field: &str| list(term.value, field).starts_with(list(was, field));
        let any = |term: &Value| !list(term, "matchExpressions").is_empty() || !list(term, "matchFields").is_empty();
        if !starts("matchExpressions") || !starts("matchFields") || any(term.value) && !any(was) {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.push(internal::invalid(&term.path, term.value, SELECTOR_TERM, detail));
        }
    }
}

/// Whether the checks may go on.
fn deadline(spec: &Node<'_>, was: &Node<'_>, errors: &mut ErrorList) -> bool {
    let (new, old) = (spec.child("activeDeadlineSeconds"), was.child("activeDeadlineSeconds"));
    if !new.exists() {
        if old.exists() {
            new.invalid(errors, "must not update from a positive integer to nil value");
        }
        return true;
    }
    if !(0..=i64::from(i32::MAX)).contains(&new.int()) {
        new.invalid(errors, "must be between 0 and 2147483647, inclusive");
        return false;
    }
    if old.exists() && old.int() < new.int() {
        new.invalid(errors, "must be less than or equal to previous value");
        return false;
    }
    true
}

fn tolerations(spec: &Node<'_>, was: &Node<'_>, errors: &mut ErrorList) {
    const FIELDS: [&str; 4] = ["key", "operator", "value", "effect"];
    let now = list(spec.value, "tolerations");
    let kept = |old: &Value| now.iter().any(|new| FIELDS.iter().all(|field| text(new, field) == text(old, field)));
    if list(was.value, "tolerations").iter().all(kept) {
        placement::tolerations(spec, errors);
    } else {
        spec.child("tolerations")
            .forbidden(errors, "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn gates(spec: &Node<'_>, was: &Node<'_>, errors: &mut ErrorList) {
    let before: Vec<&str> = list(was.value, "schedulingGates").iter().map(|gate| text(gate, "name")).collect();
    for gate in spec.items("schedulingGates") {
        let name = gate.child("name");
        if !before.contains(&name.text()) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", name.text());
            name.forbidden(errors, detail);
        }
    }
}

/// `pods/ephemeralcontainers`: of what was sent only the ephemeral containers count.
pub fn keep_all_but_ephemeral(new: &mut Value, old: &Value) {
    let mut kept = old.clone();
    for own in ["spec.ephemeralContainers", "metadata.resourceVersion", "metadata.managedFields"] {
        copy(new, &mut kept, own);
    }
    *new = kept;
}

pub fn validate_ephemeral(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    metadata_and_spec(new, old, &mut errors);
    if annotation(old, MIRROR).is_some() {
        return vec![Error::forbidden(&Path::unnamed(), "static pods do not support ephemeral containers")];
    }
    let all = Node::root(new).child("spec.ephemeralContainers");
    for was in list(old, "spec.ephemeralContainers") {
        let name = text(was, "name");
        match list(new, "spec.ephemeralContainers").iter().find(|container| text(container, "name") == name) {
            None => {
                all.forbidden(&mut errors, format!("existing ephemeral containers \"{name}\" may not be removed\n"));
            }
            Some(container) if !same(container, was) => {
                let changed = diff::unified(was, container);
                let detail = format!("existing ephemeral containers \"{name}\" may not be changed\n{changed}");
                all.forbidden(&mut errors, detail);
            }
            Some(_) => {}
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::core::pod::{Pod, defaults};
    use crate::kinds::tested;
    use crate::kinds::value::set;
    use crate::resource::Hooks;
    use api::field::join;
    use serde_json::json;

    fn pod(extra: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "containers": [{"name": "c", "image": "a:1"}],
            "tolerations": [{"key": "k", "operator": "Exists"}], "activeDeadlineSeconds": 50}});
        for (path, value) in extra.as_object().unwrap() {
            set(&mut pod, path, value.clone());
        }
        defaults::pod(&mut pod);
        pod
    }

    #[test]
    fn updates() {
        for (old, new, expected) in [
            (json!({}), json!({}), "[]"),
            (json!({}), json!({"spec.containers": [{"name": "c", "image": "a:2"}]}), "[]"),
            (
                json!({}),
                json!({"spec.containers": [{"name": "c", "image": " a:2"}]}),
                "spec.containers[0].image: Invalid value: \" a:2\": must not have leading or trailing whitespace",
            ),
            (
                json!({}),
                json!({"spec.containers": [{"name": "c", "image": "a:1"}, {"name": "d", "image": "a:1"}]}),
                "spec.containers: Forbidden: pod updates may not add or remove containers",
            ),
            (json!({}), json!({"spec.activeDeadlineSeconds": 40}), "[]"),
            (
                json!({}),
                json!({"spec.activeDeadlineSeconds": 60}),
                "spec.activeDeadlineSeconds: Invalid value: 60: must be less than or equal to previous value",
            ),
            (
                json!({}),
                json!({"spec.activeDeadlineSeconds": null}),
                "spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive integer to nil value",
            ),
            (
                json!({}),
                json!({"spec.tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]}),
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
            ),
            (
                json!({}),
                json!({"spec.tolerations": [{"key": "l", "operator": "Exists"}, {"key": "k", "operator": "Exists"}]}),
                "[]",
            ),
            (
                json!({"spec.schedulingGates": [{"name": "g"}]}),
                json!({"spec.schedulingGates": [{"name": "g"}, {"name": "h"}]}),
                "spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'h'",
            ),
            (json!({"spec.schedulingGates": [{"name": "g"}]}), json!({"spec.nodeSelector": {"a": "b"}}), "[]"),
            (
                json!({"spec.schedulingGates": [{"name": "g"}], "spec.nodeSelector": {"a": "b"}}),
                json!({"spec.nodeSelector": {"a": "c"}}),
                "spec.nodeSelector: Invalid value: {\"a\":\"c\"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)",
            ),
            (
                json!({"metadata.annotations": {"kubernetes.io/config.mirror": "x"}, "spec.nodeName": "n"}),
                json!({"spec.nodeName": "n"}),
                "metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not remove or update mirror pod annotation",
            ),
        ] {
            assert_eq!(join(&validate(&pod(new.clone()), &pod(old.clone()))), expected, "{old} {new}");
        }
        let found = join(&validate(&pod(json!({"spec.hostname": "h"})), &pod(json!({}))));
        assert!(found.starts_with(&format!("spec: Forbidden: {ALLOWED}\n@@ ")), "{found}");
        assert!(found.contains("\n+ \"hostname\": \"h\""), "{found}");
    }

    #[test]
    fn gated_affinity() {
        let affinity = |terms: Value| json!({"spec.schedulingGates": [{"name": "g"}], "spec.affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}});
        let one = json!([{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]);
        let two =
            json!([{"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]}]);
        let path = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        assert_eq!(join(&validate(&pod(affinity(two.clone())), &pod(affinity(one.clone())))), "[]");
        assert_eq!(
            join(&validate(&pod(affinity(one.clone())), &pod(json!({"spec.schedulingGates": [{"name": "g"}]})))),
            "[]"
        );
        assert_eq!(
            join(&validate(&pod(affinity(one)), &pod(affinity(two)))),
            format!(
                "{path}[0]: Invalid value: {{\"MatchExpressions\":[{{\"Key\":\"a\",\"Operator\":\"Exists\",\"Values\":null}}],\"MatchFields\":null}}: only additions are allowed (no mutations or deletions)"
            )
        );
    }

    #[test]
    fn ephemeral_containers() {
        let with = |containers: Value| pod(json!({"spec.ephemeralContainers": containers}));
        let debug = json!({"name": "d", "image": "i"});
        for (old, new, expected) in [
            (json!([]), json!([debug]), "[]"),
            (json!([debug]), json!([debug, {"name": "e", "image": "i", "targetContainerName": "c"}]), "[]"),
            (
                json!([debug]),
                json!([]),
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be removed\n",
            ),
            (
                json!([]),
                json!([{"name": "c", "image": "i"}]),
                "spec.ephemeralContainers[0].name: Duplicate value: \"c\"",
            ),
            (
                json!([]),
                json!([{"name": "d", "image": "i", "targetContainerName": "x"}]),
                "spec.ephemeralContainers[0].targetContainerName: Not found: \"x\"",
            ),
            (
                json!([]),
                json!([{"name": "d", "image": "i", "ports": [{"containerPort": 1}], "lifecycle": {}}]),
                "[spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container, spec.ephemeralContainers[0].lifecycle: Forbidden: cannot be set for an Ephemeral Container]",
            ),
        ] {
            assert_eq!(join(&validate_ephemeral(&with(new.clone()), &with(old))), expected, "{new}");
        }
        // A write that names none takes them all away.
        let mut none = pod(json!({}));
        tested::with(&none.clone(), "ephemeralcontainers", |ctx| {
            Pod.prepare_subresource_update(ctx, &mut none, &with(json!([debug])));
        });
        assert_eq!(
            join(&validate_ephemeral(&none, &with(json!([debug])))),
            "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be removed\n"
        );
        let changed = join(&validate_ephemeral(&with(json!([{"name": "d", "image": "j"}])), &with(json!([debug]))));
        assert!(
            changed.starts_with(
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be changed\n@@ "
            ),
            "{changed}"
        );
    }
}
