//! The Pod Security Standards: each check says what in a pod it forbids and where. The wording is
//! that of `k8s.io/pod-security-admission/policy`.

use serde_json::Value;

use crate::kinds::value::{at, entries, flag, get, has, int, list, opt_flag, opt_int, text, texts};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// What a check found: a reason, and details for the brackets behind it.
struct Finding {
    reason: &'static str,
    detail: String,
}

type Check = fn(&Value) -> Option<Finding>;

/// `reason (detail), reason (detail)`; empty when the pod fits the level.
pub fn violations(level: Level, pod: &Value) -> String {
    let parts: Vec<String> = findings(level, pod)
        .into_iter()
        .map(|found| {
            if found.detail.is_empty() {
                found.reason.to_owned()
            } else {
                format!("{} ({})", found.reason, found.detail)
            }
        })
        .collect();
    parts.join(", ")
}

/// The reasons alone.
pub fn reasons(level: Level, pod: &Value) -> String {
    findings(level, pod).iter().map(|found| found.reason).collect::<Vec<_>>().join(", ")
}

fn findings(level: Level, pod: &Value) -> Vec<Finding> {
    let baseline: &[Check] = &[
        app_armor,
        capabilities_baseline,
        host_namespaces,
        host_path_volumes,
        host_ports,
        host_probes,
        privileged,
        proc_mount,
        se_linux,
        seccomp_baseline,
        sysctls,
        host_process,
    ];
    // The restricted level's own checks take the place of three of the baseline's.
    let restricted: &[Check] = &[
        app_armor,
        host_namespaces,
        host_ports,
        host_probes,
        privileged,
        proc_mount,
        se_linux,
        sysctls,
        host_process,
        escalation,
        capabilities_restricted,
        restricted_volumes,
        run_as_non_root,
        run_as_user,
        seccomp_restricted,
    ];
    let checks = match level {
        Level::Privileged => return Vec::new(),
        Level::Baseline => baseline,
        Level::Restricted => restricted,
    };
    checks.iter().filter_map(|check| check(pod)).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["spec.initContainers", "spec.containers", "spec.ephemeralContainers"]
        .into_iter()
        .flat_map(|field| list(pod, field))
}

fn names_where(pod: &Value, test: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(pod).filter(|container| test(container)).map(|container| text(container, "name")).collect()
}

fn quoted(items: &[&str]) -> String {
    items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

fn plural<'a>(word: &'a str, words: &'a str, count: usize) -> &'a str {
    if count == 1 { word } else { words }
}

/// `container "a" must …`, `containers "a", "b" must …`.
fn these(names: &[&str], rest: &str) -> String {
    format!("{} {} {rest}", plural("container", "containers", names.len()), quoted(names))
}

fn found(reason: &'static str, names: &[&str], rest: &str) -> Option<Finding> {
    (!names.is_empty()).then(|| Finding { reason, detail: these(names, rest) })
}

fn windows(pod: &Value) -> bool {
    text(pod, "spec.os.name") == "windows"
}

fn app_armor(pod: &Value) -> Option<Finding> {
    let allowed = |kind: &str| matches!(kind, "" | "RuntimeDefault" | "Localhost");
    let mut details = Vec::new();
    let own = text(pod, "spec.securityContext.appArmorProfile.type");
    if !allowed(own) {
        details.push(format!("pod must not set AppArmor profile type to \"{own}\""));
    }
    let names = names_where(pod, |c| !allowed(text(c, "securityContext.appArmorProfile.type")));
    if !names.is_empty() {
        details.push(these(&names, "must not set AppArmor profile type to \"Unconfined\""));
    }
    for (key, value) in entries(pod, "metadata.annotations") {
        let profile = value.as_str().unwrap_or("");
        let sound = profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/");
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !sound {
            details.push(format!("{key}=\"{profile}\""));
        }
    }
    let reason = if details.len() > 1 { "forbidden AppArmor profiles" } else { "forbidden AppArmor profile" };
    (!details.is_empty()).then(|| Finding { reason, detail: details.join(", ") })
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Containers that add capabilities outside of `allowed`, and those capabilities.
fn added<'a>(pod: &'a Value, allowed: &[&str]) -> (Vec<&'a str>, Vec<&'a str>) {
    let mut capabilities: Vec<&str> = Vec::new();
    let names = names_where(pod, |container| {
        texts(container, "securityContext.capabilities.add").iter().any(|capability| !allowed.contains(capability))
    });
    for container in containers(pod) {
        for capability in texts(container, "securityContext.capabilities.add") {
            if !allowed.contains(&capability) && !capabilities.contains(&capability) {
                capabilities.push(capability);
            }
        }
    }
    capabilities.sort_unstable();
    (names, capabilities)
}

fn capabilities_baseline(pod: &Value) -> Option<Finding> {
    let (names, capabilities) = added(pod, &DEFAULT_CAPABILITIES);
    let rest = format!("must not include {} in securityContext.capabilities.add", quoted(&capabilities));
    found("non-default capabilities", &names, &rest)
}

fn capabilities_restricted(pod: &Value) -> Option<Finding> {
    if windows(pod) {
        return None;
    }
    let keep = names_where(pod, |container| !texts(container, "securityContext.capabilities.drop").contains(&"ALL"));
    let (names, capabilities) = added(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keep.is_empty() {
        details.push(these(&keep, "must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    if !names.is_empty() {
        details.push(these(
            &names,
            &format!("must not include {} in securityContext.capabilities.add", quoted(&capabilities)),
        ));
    }
    (!details.is_empty()).then(|| Finding { reason: "unrestricted capabilities", detail: details.join("; ") })
}

fn host_namespaces(pod: &Value) -> Option<Finding> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| flag(at(pod, "spec"), field))
        .map(|field| format!("{field}=true"))
        .collect();
    (!shared.is_empty()).then(|| Finding { reason: "host namespaces", detail: shared.join(", ") })
}

fn host_path_volumes(pod: &Value) -> Option<Finding> {
    let names: Vec<&str> = list(pod, "spec.volumes")
        .iter()
        .filter(|volume| has(volume, "hostPath"))
        .map(|volume| text(volume, "name"))
        .collect();
    let detail = || format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names));
    (!names.is_empty()).then(|| Finding { reason: "hostPath volumes", detail: detail() })
}

fn host_ports(pod: &Value) -> Option<Finding> {
    let uses = |container: &Value| list(container, "ports").iter().any(|port| int(port, "hostPort") != 0);
    let names = names_where(pod, uses);
    let mut ports: Vec<i64> = containers(pod)
        .flat_map(|c| list(c, "ports"))
        .map(|port| int(port, "hostPort"))
        .filter(|port| *port != 0)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let shown: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let verb = plural("uses", "use", names.len());
    let rest = format!("{verb} {} {}", plural("hostPort", "hostPorts", shown.len()), shown.join(", "));
    found("hostPort", &names, &rest)
}

/// Probes and hooks that address another host.
fn host_probes(pod: &Value) -> Option<Finding> {
    let handlers = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    let hosts = |container: &Value| -> Vec<String> {
        handlers
            .iter()
            .flat_map(|handler| {
                ["httpGet.host", "tcpSocket.host"]
                    .map(|field| text(container, &format!("{handler}.{field}")).to_owned())
            })
            .filter(|host| !host.is_empty())
            .collect()
    };
    let names = names_where(pod, |container| !hosts(container).is_empty());
    let mut all: Vec<String> = containers(pod).flat_map(hosts).collect();
    all.sort();
    all.dedup();
    let shown: Vec<&str> = all.iter().map(String::as_str).collect();
    let rest = format!(
        "{} probe or lifecycle {} {}",
        plural("uses", "use", names.len()),
        plural("host", "hosts", shown.len()),
        quoted(&shown)
    );
    found("probe or lifecycle host", &names, &rest)
}

fn privileged(pod: &Value) -> Option<Finding> {
    let names = names_where(pod, |container| flag(container, "securityContext.privileged"));
    found("privileged", &names, "must not set securityContext.privileged=true")
}

fn proc_mount(pod: &Value) -> Option<Finding> {
    // A pod with its own user namespace may.
    if opt_flag(pod, "spec.hostUsers") == Some(false) {
        return None;
    }
    let names = names_where(pod, |container| !matches!(text(container, "securityContext.procMount"), "" | "Default"));
    found("procMount", &names, "must not set securityContext.procMount to \"Unmasked\"")
}

const SE_LINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

fn se_linux(pod: &Value) -> Option<Finding> {
    let bad = |owner: &Value| {
        get(owner, "securityContext.seLinuxOptions").is_some_and(|options| {
            !SE_LINUX_TYPES.contains(&text(options, "type"))
                || !text(options, "user").is_empty()
                || !text(options, "role").is_empty()
        })
    };
    let names = names_where(pod, bad);
    let own = bad(at(pod, "spec"));
    if names.is_empty() && !own {
        return None;
    }
    let mut setters = Vec::new();
    if own {
        setters.push("pod".to_owned());
    }
    if !names.is_empty() {
        setters.push(format!("{} {}", plural("container", "containers", names.len()), quoted(&names)));
    }
    let options: Vec<&Value> = std::iter::once(at(pod, "spec"))
        .chain(containers(pod))
        .map(|o| at(o, "securityContext.seLinuxOptions"))
        .collect();
    let types: Vec<&str> =
        options.iter().map(|o| text(o, "type")).filter(|kind| !SE_LINUX_TYPES.contains(kind)).collect();
    let mut bits = Vec::new();
    if !types.is_empty() {
        bits.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    for field in ["user", "role"] {
        if options.iter().any(|o| !text(o, field).is_empty()) {
            bits.push(format!("{field} may not be set"));
        }
    }
    Some(Finding {
        reason: "seLinuxOptions",
        detail: format!("{} set forbidden securityContext.seLinuxOptions: {}", setters.join(" and "), bits.join("; ")),
    })
}

const SECCOMP: &str = "securityContext.seccompProfile.type";

fn seccomp_baseline(pod: &Value) -> Option<Finding> {
    seccomp_unconfined(pod)
}

fn seccomp_unconfined(pod: &Value) -> Option<Finding> {
    let fits = |kind: &str| matches!(kind, "" | "RuntimeDefault" | "Localhost");
    let own = text(at(pod, "spec"), SECCOMP);
    let mut details = Vec::new();
    if !fits(own) {
        details.push(format!("pod must not set securityContext.seccompProfile.type to \"{own}\""));
    }
    let names = names_where(pod, |container| !fits(text(container, SECCOMP)));
    if !names.is_empty() {
        details.push(these(&names, "must not set securityContext.seccompProfile.type to \"Unconfined\""));
    }
    (!details.is_empty()).then(|| Finding { reason: "seccompProfile", detail: details.join("; ") })
}

fn seccomp_restricted(pod: &Value) -> Option<Finding> {
    if windows(pod) {
        return None;
    }
    if let Some(unconfined) = seccomp_unconfined(pod) {
        return Some(unconfined);
    }
    if !text(at(pod, "spec"), SECCOMP).is_empty() {
        return None;
    }
    let names = names_where(pod, |container| text(container, SECCOMP).is_empty());
    let detail = these(&names, "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"");
    (!names.is_empty()).then(|| Finding { reason: "seccompProfile", detail: format!("pod or {detail}") })
}

const SAFE_SYSCTLS: [&str; 11] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
];

fn sysctls(pod: &Value) -> Option<Finding> {
    let refused: Vec<&str> = list(pod, "spec.securityContext.sysctls")
        .iter()
        .map(|sysctl| text(sysctl, "name"))
        .filter(|name| !SAFE_SYSCTLS.contains(name) && *name != "net.ipv4.tcp_wmem")
        .collect();
    (!refused.is_empty()).then(|| Finding { reason: "forbidden sysctls", detail: refused.join(", ") })
}

fn host_process(pod: &Value) -> Option<Finding> {
    let set = |owner: &Value| flag(owner, "securityContext.windowsOptions.hostProcess");
    let names = names_where(pod, set);
    if set(at(pod, "spec")) && names.is_empty() {
        return Some(Finding {
            reason: "hostProcess",
            detail: "pod must not set securityContext.windowsOptions.hostProcess=true".to_owned(),
        });
    }
    found("hostProcess", &names, "must not set securityContext.windowsOptions.hostProcess=true")
}

fn escalation(pod: &Value) -> Option<Finding> {
    if windows(pod) {
        return None;
    }
    let names =
        names_where(pod, |container| opt_flag(container, "securityContext.allowPrivilegeEscalation") != Some(false));
    found("allowPrivilegeEscalation != false", &names, "must set securityContext.allowPrivilegeEscalation=false")
}

const RESTRICTED_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn restricted_volumes(pod: &Value) -> Option<Finding> {
    let kind = |volume: &Value| -> Option<String> {
        let fields = volume.as_object()?.iter();
        fields
            .filter(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| key.clone())
            .find(|key| !RESTRICTED_VOLUMES.contains(&key.as_str()))
    };
    let (mut names, mut kinds) = (Vec::new(), Vec::new());
    for volume in list(pod, "spec.volumes") {
        if let Some(kind) = kind(volume) {
            names.push(text(volume, "name"));
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
    }
    kinds.sort();
    let shown: Vec<&str> = kinds.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| Finding {
        reason: "restricted volume types",
        detail: format!(
            "{} {} {} restricted volume {} {}",
            plural("volume", "volumes", names.len()),
            quoted(&names),
            plural("uses", "use", names.len()),
            plural("type", "types", shown.len()),
            quoted(&shown)
        ),
    })
}

fn run_as_non_root(pod: &Value) -> Option<Finding> {
    const FIELD: &str = "securityContext.runAsNonRoot";
    // With a user namespace of its own root in the pod is nobody outside.
    if opt_flag(pod, "spec.hostUsers") == Some(false) {
        return None;
    }
    let own = opt_flag(at(pod, "spec"), FIELD);
    let explicit = names_where(pod, |container| opt_flag(container, FIELD) == Some(false));
    let implicit = names_where(pod, |container| opt_flag(container, FIELD).is_none() && own != Some(true));
    let mut details = Vec::new();
    if own == Some(false) {
        details.push("pod must not set securityContext.runAsNonRoot=false".to_owned());
    }
    if !explicit.is_empty() {
        details.push(these(&explicit, "must not set securityContext.runAsNonRoot=false"));
    }
    if details.is_empty() && !implicit.is_empty() {
        details.push(format!("pod or {}", these(&implicit, "must set securityContext.runAsNonRoot=true")));
    }
    (!details.is_empty() && (!explicit.is_empty() || !implicit.is_empty()))
        .then(|| Finding { reason: "runAsNonRoot != true", detail: details.join("; ") })
}

fn run_as_user(pod: &Value) -> Option<Finding> {
    const FIELD: &str = "securityContext.runAsUser";
    if opt_flag(pod, "spec.hostUsers") == Some(false) {
        return None;
    }
    let mut details = Vec::new();
    if opt_int(at(pod, "spec"), FIELD) == Some(0) {
        details.push("pod must not set runAsUser=0".to_owned());
    }
    let names = names_where(pod, |container| opt_int(container, FIELD) == Some(0));
    if !names.is_empty() {
        details.push(these(&names, "must not set runAsUser=0"));
    }
    (!details.is_empty()).then(|| Finding { reason: "runAsUser=0", detail: details.join("; ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn baseline() {
        for (spec, expected) in [
            (json!({"containers": [{"name": "c"}]}), ""),
            (json!({"hostPID": true, "hostIPC": true}), "host namespaces (hostPID=true, hostIPC=true)"),
            (
                json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}, {"name": "b", "securityContext": {"privileged": true}}]}),
                "privileged (containers \"a\", \"b\" must not set securityContext.privileged=true)",
            ),
            (
                json!({"containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}}}]}),
                "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
            (
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 81}]}]}),
                "hostPort (container \"a\" uses hostPorts 80, 81)",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.x"}]}}), "forbidden sysctls (kernel.x)"),
        ] {
            assert_eq!(violations(Level::Baseline, &json!({"spec": spec})), expected, "{spec}");
        }
    }

    #[test]
    fn restricted() {
        let sound = json!({"spec": {"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]}});
        assert_eq!(violations(Level::Restricted, &sound), "");
        let mut rooted = sound.clone();
        rooted["spec"]["containers"][0]["securityContext"]["runAsUser"] = json!(0);
        rooted["spec"]["volumes"] = json!([{"name": "v", "hostPath": {}}, {"name": "n", "nfs": {}}]);
        assert_eq!(
            violations(Level::Restricted, &rooted),
            "restricted volume types (volumes \"v\", \"n\" use restricted volume types \"hostPath\", \"nfs\"), runAsUser=0 (container \"c\" must not set runAsUser=0)"
        );
        assert_eq!(violations(Level::Privileged, &rooted), "");
    }
}
