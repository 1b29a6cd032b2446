//! What is allowed in a pod but doubtful: texts for `Warning` headers (`pkg/api/pod/warnings.go`).
//! Neighbour: [`super::overlap`] for what one volume writes twice.

use serde_json::Value;

use super::annotations::{APP_ARMOR, SECCOMP_CONTAINER, SECCOMP_POD};
use super::{overlap, quantity};
use crate::kinds::check::{Seen, ip_warning};
use crate::kinds::value::{annotation, at, entries, has, int, list, text, texts};

/// Node labels of before, since when they are, and what they are called now.
pub const OLD_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
];

const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

/// Volume types that were given up, and how warnings call them.
const GONE_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Warnings about a pod (`path` is `""`) or the pod template at `path`.
pub fn warnings(owner: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let spec = at(owner, "spec");
    let field = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let (spec_path, annotations) = (field("spec"), field("metadata.annotations"));
    placement(spec, &spec_path, &mut found);
    for (key, words) in OLD_ANNOTATIONS {
        if annotation(owner, key).is_some() {
            found.push(format!("{annotations}[{key}]: {words}"));
        }
    }
    volumes(spec, &spec_path, &mut found);
    lists(spec, &spec_path, &mut found);
    fractions(at(spec, "overhead"), &format!("{spec_path}.overhead"), &mut found);
    if annotation(owner, SECCOMP_POD).is_some() && !has(spec, "securityContext.seccompProfile") {
        found.push(seccomp(&annotations, SECCOMP_POD));
    }
    let pod_profile = has(spec, "securityContext.appArmorProfile");
    for (container, at) in containers(spec, &spec_path) {
        let own = |prefix: &str| format!("{prefix}{}", text(container, "name"));
        let key = own(SECCOMP_CONTAINER);
        if annotation(owner, &key).is_some() && !has(container, "securityContext.seccompProfile") {
            found.push(seccomp(&annotations, &key));
        }
        let key = own(APP_ARMOR);
        // Of pods the annotation is made a field, which warns by itself.
        let profiled = pod_profile || has(container, "securityContext.appArmorProfile");
        if !path.is_empty() && !profiled && annotation(owner, &key).is_some() {
            found.push(app_armor(&annotations, &key));
        }
        for side in ["limits", "requests"] {
            let path = format!("{at}.resources.{side}");
            fractions(crate::kinds::value::at(container, &format!("resources.{side}")), &path, &mut found);
        }
        environment(container, &at, &mut found);
    }
    ports(spec, &spec_path, &mut found);
    if int(spec, "terminationGracePeriodSeconds") < 0 {
        found.push(format!(
            "{spec_path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    affinity(spec, &spec_path, &mut found);
    found
}

/// The annotation that stood for an AppArmor profile.
pub fn app_armor(annotations: &str, key: &str) -> String {
    format!("{annotations}[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead")
}

fn seccomp(annotations: &str, key: &str) -> String {
    format!("{annotations}[{key}]: non-functional in v1.27+; use the \"seccompProfile\" field instead")
}

/// All containers and where they are, in the order in which Kubernetes visits them.
fn containers<'a>(spec: &'a Value, path: &str) -> Vec<(&'a Value, String)> {
    let of = |field: &'static str| {
        let path = path.to_owned();
        list(spec, field).iter().enumerate().map(move |(index, c)| (c, format!("{path}.{field}[{index}]")))
    };
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(of).collect()
}

fn placement(spec: &Value, path: &str, found: &mut Vec<String>) {
    for (key, _) in entries(spec, "nodeSelector") {
        found.extend(old_label(key).map(|words| format!("{path}.nodeSelector[{key}]: {words}")));
    }
    let node = at(spec, "affinity.nodeAffinity");
    for (index, term) in list(node, &format!("{REQUIRED}.nodeSelectorTerms")).iter().enumerate() {
        old_keys(term, &format!("{path}.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[{index}]"), found);
    }
    for (index, preferred) in list(node, PREFERRED).iter().enumerate() {
        let place = format!("{path}.affinity.nodeAffinity.{PREFERRED}[{index}].preference");
        old_keys(at(preferred, "preference"), &place, found);
    }
    for (index, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let (key, at) = (text(constraint, "topologyKey"), format!("{path}.topologySpreadConstraints[{index}]"));
        found.extend(old_label(key).map(|words| format!("{at}.topologyKey: {key} is {words}")));
        found.extend(no_selector(constraint, &at));
    }
}

fn volumes(spec: &Value, path: &str, found: &mut Vec<String>) {
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let gone = GONE_VOLUMES.iter().filter(|(kind, ..)| has(volume, kind));
        found.extend(gone.map(|(_, named, words)| format!("{path}.volumes[{index}].{named}: {words}")));
        let claim = at(volume, "ephemeral.volumeClaimTemplate.spec");
        if !claim.is_null() {
            let at = format!("{path}.volumes[{index}].ephemeral.volumeClaimTemplate.spec");
            found.extend(crate::kinds::core::claim::fractional_sizes(claim, &at));
        }
    }
    found.extend(overlap::warnings(spec));
}

fn lists(spec: &Value, path: &str, found: &mut Vec<String>) {
    let mut seen = Seen::default();
    for (index, alias) in list(spec, "hostAliases").iter().enumerate() {
        let ip = text(alias, "ip");
        if !seen.insert(ip) {
            found.push(format!("{path}.hostAliases[{index}].ip: duplicate ip {ip:?}"));
        }
    }
    let mut seen = Seen::default();
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        let name = text(secret, "name");
        if !seen.insert(name) {
            found.push(format!("{path}.imagePullSecrets[{index}].name: duplicate name {name:?}"));
        }
    }
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            found.push(format!("{path}.imagePullSecrets[{index}].name: invalid empty name \"\""));
        }
    }
    for (index, server) in texts(spec, "dnsConfig.nameservers").into_iter().enumerate() {
        found.extend(ip_warning(&format!("{path}.dnsConfig.nameservers[{index}]"), server));
    }
    for (index, alias) in list(spec, "hostAliases").iter().enumerate() {
        found.extend(ip_warning(&format!("{path}.hostAliases[{index}].ip"), text(alias, "ip")));
    }
}

/// Parts of bytes do not exist.
fn fractions(amounts: &Value, path: &str, found: &mut Vec<String>) {
    for resource in ["memory", "ephemeral-storage"] {
        let Some(amount) = amounts.get(resource).and_then(quantity).filter(|amount| !amount.is_integer()) else {
            continue;
        };
        found.push(format!("{path}[{resource}]: fractional byte value \"{amount}\" is invalid, must be an integer"));
    }
}

/// A variable is set again without its value of before.
fn environment(container: &Value, path: &str, found: &mut Vec<String>) {
    let mut names = Seen::default();
    for (index, variable) in list(container, "env").iter().enumerate() {
        let (name, value) = (text(variable, "name"), text(variable, "value"));
        let reference = format!("$({name})");
        let hides = has(variable, "valueFrom") || value == reference || !value.contains(&reference);
        if !names.insert(name) && hides {
            found.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

/// Ports of all containers that may be in each other's way.
fn ports(spec: &Value, path: &str, found: &mut Vec<String>) {
    let mut before: Vec<(&Value, String)> = Vec::new();
    for (container, at) in containers(spec, path) {
        for (index, port) in list(container, "ports").iter().enumerate() {
            let here = format!("{at}.ports[{index}]");
            let (host, host_ip) = (int(port, "hostPort"), text(port, "hostIP"));
            if !host_ip.is_empty() && host == 0 {
                found.push(format!(
                    "{here}: hostIP set without hostPort: {{Name:{} HostPort:{host} ContainerPort:{} Protocol:{} HostIP:{host_ip}}}",
                    text(port, "name"),
                    int(port, "containerPort"),
                    text(port, "protocol")
                ));
            }
            for (other, there) in before.iter().filter(|(other, _)| {
                int(other, "containerPort") == int(port, "containerPort")
                    && text(other, "protocol") == text(port, "protocol")
            }) {
                let (their, their_ip) = (int(other, "hostPort"), text(other, "hostIP"));
                let word = if host == their && host_ip == their_ip {
                    "duplicate"
                } else if host == 0 || their == 0 {
                    "overlapping"
                } else if host == their && host_ip.is_empty() != their_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                found.push(format!("{here}: {word} port definition with {there}"));
            }
            before.push((port, here));
        }
    }
}

fn no_selector(term: &Value, path: &str) -> Option<String> {
    (!has(term, "labelSelector"))
        .then(|| format!("{path}.labelSelector: a null labelSelector results in matching no pod"))
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn affinity(spec: &Value, path: &str, found: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at(spec, &format!("affinity.{kind}"));
        for (index, term) in list(pods, REQUIRED).iter().enumerate() {
            found.extend(no_selector(term, &format!("{path}.affinity.{kind}.{REQUIRED}[{index}]")));
        }
        for (index, preferred) in list(pods, PREFERRED).iter().enumerate() {
            let place = format!("{path}.affinity.{kind}.{PREFERRED}[{index}].podAffinityTerm");
            found.extend(no_selector(at(preferred, "podAffinityTerm"), &place));
        }
    }
}

/// Labels of before in a node selector's term.
pub fn old_keys(term: &Value, path: &str, found: &mut Vec<String>) {
    for (index, expression) in list(term, "matchExpressions").iter().enumerate() {
        let key = text(expression, "key");
        found.extend(old_label(key).map(|words| format!("{path}.matchExpressions[{index}].key: {key} is {words}")));
    }
}

/// What is said of a node's label of before.
pub fn old_label(key: &str) -> Option<String> {
    let (_, since, now) = OLD_LABELS.iter().find(|(old, ..)| *old == key)?;
    Some(format!("deprecated since {since}; use \"{now}\" instead"))
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
            warnings(&json!({ "spec": spec }), ""),
            [
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key: beta.kubernetes.io/arch is deprecated since v1.14; use \"kubernetes.io/arch\" instead",
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                "spec.volumes[1].rbd: deprecated in v1.28, non-functional in v1.31+",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod",
            ]
        );
    }

    #[test]
    fn doubtful_specs() {
        let spec = json!({"nodeSelector": {"beta.kubernetes.io/os": "linux", "a": "b"},
            "hostAliases": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.4"}], "imagePullSecrets": [{"name": "s"}, {"name": "s"}, {}],
            "containers": [
                {"env": [{"name": "A"}, {"name": "A"}, {"name": "A", "value": "$(A)b"}],
                 "resources": {"limits": {"memory": "100m", "cpu": "100m"}},
                 "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}]},
                {"ports": [{"containerPort": 80, "protocol": "TCP", "hostPort": 80}, {"containerPort": 81, "protocol": "TCP", "hostIP": "1.2.3.4"}]}]});
        assert_eq!(
            warnings(&json!({ "spec": spec }), "spec.template"),
            [
                "spec.template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.template.spec.hostAliases[1].ip: duplicate ip \"1.2.3.4\"",
                "spec.template.spec.imagePullSecrets[1].name: duplicate name \"s\"",
                "spec.template.spec.imagePullSecrets[2].name: invalid empty name \"\"",
                "spec.template.spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.template.spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.template.spec.containers[0].ports[1]: duplicate port definition with spec.template.spec.containers[0].ports[0]",
                "spec.template.spec.containers[1].ports[0]: overlapping port definition with spec.template.spec.containers[0].ports[0]",
                "spec.template.spec.containers[1].ports[0]: overlapping port definition with spec.template.spec.containers[0].ports[1]",
                "spec.template.spec.containers[1].ports[1]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:81 Protocol:TCP HostIP:1.2.3.4}",
            ]
        );
    }

    #[test]
    fn a_template_may_end_its_pods_before_they_began() {
        let template = |seconds: i64| json!({"spec": {"terminationGracePeriodSeconds": seconds}});
        assert_eq!(
            warnings(&template(-1), "spec.template"),
            [
                "spec.template.spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
            ]
        );
        assert!(warnings(&template(0), "spec.template").is_empty());
    }

    #[test]
    fn annotations_of_before() {
        let key = format!("{APP_ARMOR}c");
        let pod = json!({
            "metadata": {"annotations": {SECCOMP_POD: "unconfined", "scheduler.alpha.kubernetes.io/critical-pod": "", (key.as_str()): "unconfined"}},
            "spec": {"containers": [{"name": "c"}]}
        });
        let expected = [
            "metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the \"priorityClassName\" field instead",
            "metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: non-functional in v1.27+; use the \"seccompProfile\" field instead",
        ];
        assert_eq!(warnings(&pod, ""), expected);
        assert_eq!(
            warnings(&pod, "template").last().map(String::as_str),
            Some(
                "template.metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            )
        );
    }
}
