//! Pods: hooks, and what everything with a pod template shares.
//!
//! - [`defaults`]: defaults of pods and templates;
//! - [`spec`] and the modules of its parts: validation; [`internal`]: structures in messages;
//! - [`gated`]: fields of features that are off;
//! - [`update`], `resize`, `status`: what may change afterwards; `warn`: what is doubtful but allowed;
//! - [`row`]: what `kubectl get` shows.

mod annotations;
pub mod container;
pub mod defaults;
mod env;
pub mod eviction;
pub mod gated;
pub mod internal;
mod mounts;
mod overlap;
pub mod placement;
mod probe;
mod projected;
pub mod remote;
mod resize;
pub mod resources;
pub mod row;
#[cfg(test)]
mod rules;
mod security;
pub mod spec;
mod status;
mod update;
pub mod volume;
pub mod warn;
mod windows;

pub use resources::is_extended as is_extended_resource;
pub use warn::warnings;

use api::field::ErrorList;
use api::quantity::Quantity;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::Node;
use crate::kinds::value::{annotation, at, entries, get, has, list, list_mut, map, name, opt_int, set, text};
use crate::resource::{Context, Hooks, Ownable, Paths, SwitchedOff};

/// A quantity as stored: text, or a number from clients that write one.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

pub struct Pod;

impl Hooks for Pod {
    fn defaults(&self, pod: &mut Value) {
        defaults::pod(pod);
    }

    fn prepare_create(&self, ctx: &Context<'_>, pod: &mut Value) {
        defaults::pod_level(pod);
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
        if !list(pod, "spec.schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null, "lastTransitionTime": api::scalar::time(ctx.now),
            }]);
        }
        set(pod, "status", status);
        label_keys(pod);
        profiles_from_annotations(pod);
    }

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("")
    }

    /// Old kubelets spoil owner references.
    fn reset_by_status(&self) -> Paths {
        &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]
    }

    fn ownable(&self, subresource: &str) -> Option<Ownable> {
        match subresource {
            "ephemeralcontainers" => Some(Ownable::Only(&[&["spec", "ephemeralContainers"]])),
            "resize" => Some(Ownable::Only(&[
                &["spec", "containers", "*", "resources"],
                &["spec", "containers", "*", "resizePolicy"],
                &["spec", "initContainers", "*", "resources"],
                &["spec", "initContainers", "*", "resizePolicy"],
            ])),
            _ => None,
        }
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        match ctx.subresource {
            "status" => status::prepare(new, old),
            "ephemeralcontainers" => {
                update::keep_all_but_ephemeral(new, old);
                defaults::pod(new);
            }
            "resize" => resize::keep_all_but_resources(new, old),
            _ => {}
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, pod: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(pod);
        spec::validate_pod(&root, &mut errors);
        if !root.items("spec.ephemeralContainers").is_empty() {
            root.child("spec.ephemeralContainers").forbidden(&mut errors, "cannot be set on create");
        }
        let node = root.child("spec.nodeName");
        if !node.text().is_empty() && !root.items("spec.schedulingGates").is_empty() {
            node.forbidden(&mut errors, "cannot be set until all schedulingGates have been cleared");
        }
        annotations::match_fields(&root, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        update::validate(new, old)
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        match ctx.subresource {
            "status" => status::validate(new, old),
            "ephemeralcontainers" => update::validate_ephemeral(new, old),
            "resize" => resize::validate(new, old),
            _ => ErrorList::new(),
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        // Programs write pods that exist, and often: nobody reads warnings then.
        if old.is_some() { Vec::new() } else { created(new) }
    }

    fn row_conditions(&self, pod: &Value) -> Value {
        row::conditions(pod)
    }

    fn row(&self, pod: &Value, now: Timestamp) -> Vec<Value> {
        row::cells(pod, now)
    }

    fn grace_period(&self, pod: &Value, asked: Option<i64>) -> i64 {
        grace_period(pod, asked)
    }
}

/// Warnings about a new pod.
fn created(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let problems = api::names::dns1123_label(name(pod));
    if !problems.is_empty() {
        found.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        ));
    }
    found.extend(warnings(pod, ""));
    found.extend(profile_warnings(pod));
    found
}

/// The profile that an AppArmor annotation stands for.
fn profile_of(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        other => {
            let file = other.strip_prefix("localhost/").filter(|file| !file.is_empty() && file.trim() == *file)?;
            Some(json!({"type": "Localhost", "localhostProfile": file}))
        }
    }
}

/// Annotations of before become fields of the containers that they name.
fn profiles_from_annotations(pod: &mut Value) {
    if text(pod, "spec.os.name") == "windows" {
        return;
    }
    let own = at(pod, "spec.securityContext.appArmorProfile").clone();
    let given = map(pod, "metadata.annotations").cloned().unwrap_or_default();
    for field in defaults::CONTAINER_LISTS {
        for container in list_mut(pod, &format!("spec.{field}")) {
            let key = format!("{}{}", annotations::APP_ARMOR, text(container, "name"));
            let annotation = given.get(&key).and_then(Value::as_str);
            let profile = annotation.and_then(profile_of).filter(|profile| *profile != own);
            if let Some(profile) = profile.filter(|_| !has(container, "securityContext.appArmorProfile")) {
                set(container, "securityContext.appArmorProfile", profile);
            }
        }
    }
}

/// What is said of annotations that were made fields, or could not be.
fn profile_warnings(pod: &Value) -> Vec<String> {
    let own = at(pod, "spec.securityContext.appArmorProfile");
    let mut found = Vec::new();
    for container in defaults::CONTAINER_LISTS.iter().flat_map(|field| list(pod, &format!("spec.{field}"))) {
        let key = format!("{}{}", annotations::APP_ARMOR, text(container, "name"));
        let Some(annotation) = annotation(pod, &key) else { continue };
        let profile = profile_of(annotation);
        if profile.as_ref() != Some(own) {
            found.push(warn::app_armor("metadata.annotations", &key));
        }
    }
    found
}

/// Seconds a pod gets to end: none when it never ran or has ended.
fn grace_period(pod: &Value, asked: Option<i64>) -> i64 {
    let unbound = text(pod, "spec.nodeName").is_empty();
    if unbound || matches!(text(pod, "status.phase"), "Failed" | "Succeeded") {
        return 0;
    }
    let period = asked.or_else(|| opt_int(pod, "spec.terminationGracePeriodSeconds")).unwrap_or(30);
    if period < 0 { 1 } else { period }
}

/// `Guaranteed`, `Burstable` or `BestEffort` (`ComputePodQOS`).
pub fn qos_class(pod: &Value) -> &'static str {
    let positive = |amount: &Value| quantity(amount).is_some_and(|amount| amount > Quantity::ZERO);
    let relevant = |name: &str| matches!(name, "cpu" | "memory");
    let spec = at(pod, "spec");
    // A pod's own resources count once they say something (`PodLevelResourcesFixKubeletQOSClass`).
    let says = |side: &str| entries(spec, side).next().is_some();
    let owners: Vec<&Value> = if says("resources.requests") || says("resources.limits") {
        vec![spec]
    } else {
        ["initContainers", "containers"].iter().flat_map(|field| list(spec, field)).collect()
    };
    let any = owners.iter().any(|owner| {
        ["resources.requests", "resources.limits"]
            .iter()
            .any(|side| entries(owner, side).any(|(name, amount)| relevant(name) && positive(amount)))
    });
    if !any {
        return "BestEffort";
    }
    let guaranteed = owners.iter().all(|owner| {
        ["cpu", "memory"].iter().all(|name| {
            let amount = |side: &str| map(owner, side).and_then(|side| side.get(*name)).and_then(quantity);
            match (amount("resources.limits"), amount("resources.requests")) {
                (Some(limit), Some(request)) => limit > Quantity::ZERO && limit == request,
                (Some(limit), None) => limit > Quantity::ZERO,
                _ => false,
            }
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// `matchLabelKeys` of affinity terms and spread constraints become selector requirements on the
/// pod's own labels, once, at creation.
fn label_keys(pod: &mut Value) {
    let labels = map(pod, "metadata.labels").cloned().unwrap_or_default();
    let add = |term: &mut Value, keys: &str, operator: &str| {
        let wanted: Vec<Value> = list(term, keys).to_vec();
        if get(term, "labelSelector").is_none() {
            return;
        }
        for key in wanted {
            if let Some(value) = key.as_str().and_then(|key| labels.get(key)) {
                let requirement = json!({"key": key, "operator": operator, "values": [value]});
                crate::kinds::value::ensure_list(term, "labelSelector.matchExpressions").push(requirement);
            }
        }
    };
    for kind in ["spec.affinity.podAffinity", "spec.affinity.podAntiAffinity"] {
        for term in list_mut(pod, &format!("{kind}.requiredDuringSchedulingIgnoredDuringExecution")) {
            add(term, "matchLabelKeys", "In");
            add(term, "mismatchLabelKeys", "NotIn");
        }
        for preferred in list_mut(pod, &format!("{kind}.preferredDuringSchedulingIgnoredDuringExecution")) {
            if let Some(term) = crate::kinds::value::get_mut(preferred, "podAffinityTerm") {
                add(term, "matchLabelKeys", "In");
                add(term, "mismatchLabelKeys", "NotIn");
            }
        }
    }
    for constraint in list_mut(pod, "spec.topologySpreadConstraints") {
        add(constraint, "matchLabelKeys", "In");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    fn check(spec: Value) -> String {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": spec});
        defaults::pod(&mut pod);
        let mut errors = ErrorList::new();
        spec::validate_pod(&Node::root(&pod), &mut errors);
        join(&errors)
    }

    #[test]
    fn pod_specs_refused() {
        let container = json!({"name": "c", "image": "i"});
        let with = |extra: Value| {
            let mut merged = container.clone();
            for (key, value) in extra.as_object().unwrap() {
                merged[key] = value.clone();
            }
            json!({"containers": [merged]})
        };
        for (spec, expected) in [
            (with(json!({})), "[]"),
            (json!({"containers": []}), "spec.containers: Required value"),
            (with(json!({"image": ""})), "spec.containers[0].image: Required value"),
            (
                with(json!({"image": " i"})),
                "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
            ),
            (json!({"containers": [container, container]}), "spec.containers[1].name: Duplicate value: \"c\""),
            (
                with(json!({"ports": [{"containerPort": 70000}]})),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                with(json!({"ports": [{"containerPort": 1, "protocol": "X"}]})),
                "spec.containers[0].ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ),
            (
                with(json!({"ports": [{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]})),
                "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\"",
            ),
            (
                with(json!({"imagePullPolicy": "Sometimes"})),
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                with(json!({"env": [{"name": "a=b"}]})),
                "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            ),
            (
                with(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]})),
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.x\": error converting fieldPath: field label not supported: spec.x",
            ),
            (
                with(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}]})),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                with(json!({"livenessProbe": {}})),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                with(json!({"livenessProbe": {"exec": {"command": ["a"]}, "successThreshold": 2}})),
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                with(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}})),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                with(json!({"resources": {"limits": {"cpu": "-1"}}})),
                "[spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0, spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0]",
            ),
            (
                with(json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}})),
                "spec.containers[0].securityContext: Invalid value: {\"Capabilities\":null,\"Privileged\":true,\"SELinuxOptions\":null,\"WindowsOptions\":null,\"RunAsUser\":null,\"RunAsGroup\":null,\"RunAsNonRoot\":null,\"ReadOnlyRootFilesystem\":null,\"AllowPrivilegeEscalation\":false,\"ProcMount\":null,\"SeccompProfile\":null,\"AppArmorProfile\":null}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ),
        ] {
            assert_eq!(check(spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn pod_fields_refused() {
        for (extra, expected) in [
            (
                json!({"restartPolicy": "x"}),
                "spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                json!({"dnsPolicy": "None"}),
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ),
            (json!({"volumes": [{"name": "a", "secret": {}}]}), "spec.volumes[0].secret.secretName: Required value"),
            (json!({"volumes": [{"name": "a"}, {"name": "a"}]}), "spec.volumes[1].name: Duplicate value: \"a\""),
            (
                json!({"volumes": [{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                json!({"tolerations": [{"operator": "Equal", "value": "a"}]}),
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ),
            (
                json!({"hostname": "A"}),
                "spec.hostname: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ),
            (
                json!({"activeDeadlineSeconds": 0}),
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ),
            (
                json!({"initContainers": [{"name": "i", "image": "i", "livenessProbe": {"tcpSocket": {"port": 1}}}]}),
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ),
            (
                json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}),
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            ),
        ] {
            let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            assert_eq!(check(spec), expected, "{extra}");
        }
    }

    #[test]
    fn signals_are_those_of_the_system() {
        let with = |os: &str, signal: &str| {
            let container = json!({"name": "c", "image": "i", "lifecycle": {"stopSignal": signal}});
            check(json!({"os": {"name": os}, "containers": [container]}))
        };
        let at = "spec.containers[0].lifecycle.stopSignal: Unsupported value: \"SIGX\": supported values: ";
        assert_eq!(with("linux", "SIGRTMAX-14"), "[]");
        assert_eq!(with("windows", "SIGX"), format!("{at}\"SIGKILL\", \"SIGTERM\""));
        let found = with("linux", "SIGX");
        assert!(found.starts_with(&format!("{at}\"SIGABRT\", \"SIGALRM\", ")), "{found}");
        assert!(found.contains("\"SIGRTMAX\", \"SIGRTMAX-1\", \"SIGRTMAX-10\", "), "{found}");
        assert!(found.ends_with("\"SIGWINCH\", \"SIGXCPU\", \"SIGXFSZ\""), "{found}");
    }

    #[test]
    fn qos() {
        let with = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}),
                "Burstable",
            ),
            (json!({"requests": {"example.com/x": "1"}, "limits": {"example.com/x": "1"}}), "BestEffort"),
        ] {
            assert_eq!(qos_class(&with(resources.clone())), class, "{resources}");
        }
    }

    #[test]
    fn grace() {
        for (pod, asked, seconds) in [
            (json!({"spec": {"terminationGracePeriodSeconds": 30}}), None, 0),
            (json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 40}}), None, 40),
            (json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 40}}), Some(0), 0),
            (json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 40}}), Some(-5), 1),
            (json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), Some(9), 0),
        ] {
            assert_eq!(grace_period(&pod, asked), seconds, "{pod}");
        }
    }
}
