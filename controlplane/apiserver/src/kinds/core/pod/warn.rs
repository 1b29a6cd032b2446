//! What is allowed in a pod but doubtful: texts for `Warning` headers (`pkg/api/pod/warnings.go`).

use serde_json::Value;

use super::quantity;
use crate::kinds::check::Seen;
use crate::kinds::value::{at, entries, has, list, opt_int, text};

/// Node labels of before, since when they are, and what they are called now.
const OLD_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
];

/// Warnings about the pod spec at `path`, also of templates.
pub fn warnings(spec: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (key, _) in entries(spec, "nodeSelector") {
        found.extend(old_label(key).map(|words| format!("{path}.nodeSelector[{key}]: {words}")));
    }
    for (index, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let key = text(constraint, "topologyKey");
        found.extend(
            old_label(key)
                .map(|words| format!("{path}.topologySpreadConstraints[{index}].topologyKey: {key} is {words}")),
        );
        found.extend(no_selector(constraint, &format!("{path}.topologySpreadConstraints[{index}]")));
    }
    affinity_warnings(spec, path, &mut found);
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let gone = GONE_VOLUMES.iter().find(|(kind, _)| has(volume, kind));
        found.extend(gone.map(|(kind, words)| format!("{path}.volumes[{index}].{kind}: {words}")));
    }
    for field in ["initContainers", "containers"] {
        for (index, container) in list(spec, field).iter().enumerate() {
            container_warnings(container, &format!("{path}.{field}[{index}]"), &mut found);
        }
    }
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            found.push(format!("{path}.imagePullSecrets[{index}].name: invalid empty name \"\""));
        }
    }
    if opt_int(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        found.push(format!(
            "{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    found
}

/// Volume types that were given up.
const GONE_VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

fn no_selector(term: &Value, path: &str) -> Option<String> {
    (!has(term, "labelSelector"))
        .then(|| format!("{path}.labelSelector: a null labelSelector results in matching no pod"))
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn affinity_warnings(spec: &Value, path: &str, found: &mut Vec<String>) {
    let node = at(spec, "affinity.nodeAffinity");
    let path = format!("{path}.affinity");
    for (index, term) in list(node, &format!("{REQUIRED}.nodeSelectorTerms")).iter().enumerate() {
        old_keys(term, &format!("{path}.nodeAffinity.{REQUIRED}.nodeSelectorTerms[{index}]"), found);
    }
    for (index, preferred) in list(node, PREFERRED).iter().enumerate() {
        let place = format!("{path}.nodeAffinity.{PREFERRED}[{index}].preference");
        old_keys(at(preferred, "preference"), &place, found);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at(spec, &format!("affinity.{kind}"));
        for (index, term) in list(pods, REQUIRED).iter().enumerate() {
            found.extend(no_selector(term, &format!("{path}.{kind}.{REQUIRED}[{index}]")));
        }
        for (index, preferred) in list(pods, PREFERRED).iter().enumerate() {
            let place = format!("{path}.{kind}.{PREFERRED}[{index}].podAffinityTerm");
            found.extend(no_selector(at(preferred, "podAffinityTerm"), &place));
        }
    }
}

fn old_keys(term: &Value, path: &str, found: &mut Vec<String>) {
    for (index, expression) in list(term, "matchExpressions").iter().enumerate() {
        let key = text(expression, "key");
        found.extend(old_label(key).map(|words| format!("{path}.matchExpressions[{index}].key: {key} is {words}")));
    }
}

fn old_label(key: &str) -> Option<String> {
    let (_, since, now) = OLD_LABELS.iter().find(|(old, ..)| *old == key)?;
    Some(format!("deprecated since {since}; use \"{now}\" instead"))
}

fn container_warnings(container: &Value, path: &str, found: &mut Vec<String>) {
    let mut names = Seen::default();
    for (index, variable) in list(container, "env").iter().enumerate() {
        let name = text(variable, "name");
        if !names.insert(name) {
            found.push(format!(
                "{path}.env[{index}]: hides previous definition of \"{name}\", which may be dropped when using apply"
            ));
        }
    }
    let key = |port: &Value| {
        format!(
            "{}/{}/{}/{}",
            at(port, "containerPort"),
            text(port, "protocol"),
            at(port, "hostPort"),
            text(port, "hostIP")
        )
    };
    let ports = list(container, "ports");
    for (index, port) in ports.iter().enumerate() {
        if let Some(first) = ports[..index].iter().position(|earlier| key(earlier) == key(port)) {
            found.push(format!("{path}.ports[{index}]: duplicate port definition with {path}.ports[{first}]"));
        }
    }
    for side in ["limits", "requests"] {
        for (resource, amount) in entries(container, &format!("resources.{side}")) {
            let bytes = matches!(resource, "memory" | "ephemeral-storage");
            if bytes && quantity(amount).is_some_and(|amount| !amount.is_integer()) {
                let shown = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
                found.push(format!("{path}.resources.{side}[{resource}]: fractional byte value \"{shown}\" is invalid, must be an integer"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn doubtful_placement_and_volumes() {
        let spec = json!({
            "topologySpreadConstraints": [{"topologyKey": "z"}],
            "affinity": {
                "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [{"key": "beta.kubernetes.io/arch"}]}]}},
                "podAntiAffinity": {REQUIRED: [{"labelSelector": {}}], PREFERRED: [{"podAffinityTerm": {}}]},
            },
            "volumes": [{"name": "a"}, {"name": "b", "rbd": {}}],
        });
        assert_eq!(
            warnings(&spec, "spec"),
            [
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key: beta.kubernetes.io/arch is deprecated since v1.14; use \"kubernetes.io/arch\" instead",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod",
                "spec.volumes[1].rbd: deprecated in v1.28, non-functional in v1.31+",
            ]
        );
    }

    #[test]
    fn doubtful_specs() {
        let spec = json!({"nodeSelector": {"beta.kubernetes.io/os": "linux", "a": "b"}, "containers": [{
            "env": [{"name": "A"}, {"name": "A"}], "resources": {"limits": {"memory": "100m", "cpu": "100m"}},
            "ports": [{"containerPort": 80}, {"containerPort": 80}]}]});
        assert_eq!(
            warnings(&spec, "spec"),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
            ]
        );
    }
}
