//! The Pod Security Standards: each check says what in a pod it forbids and where. The wording is
//! that of `k8s.io/pod-security-admission/policy`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::value::{annotation, at, entries, flag, has, int, list, opt_flag, opt_int, text, texts};

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

/// A pod and the minor version of the standards it is held to.
struct Subject<'a> {
    pod: &'a Value,
    version: u32,
}

type Check = fn(&Subject<'_>) -> Option<Finding>;

/// One control of the standards.
struct Control {
    id: &'static str,
    level: Level,
    /// First minor version of the standards that has it.
    since: u32,
    check: Check,
    /// The baseline's control whose place it takes.
    replaces: &'static str,
}

const fn control(id: &'static str, level: Level, since: u32, check: Check, replaces: &'static str) -> Control {
    Control { id, level, since, check, replaces }
}

/// In the order of messages: the baseline's controls, then those of the restricted level, by id.
const CONTROLS: [Control; 19] = [
    control("appArmorProfile", Level::Baseline, 0, app_armor, ""),
    control("capabilities_baseline", Level::Baseline, 0, capabilities_baseline, ""),
    control("hostNamespaces", Level::Baseline, 0, host_namespaces, ""),
    control("hostPathVolumes", Level::Baseline, 0, host_path_volumes, ""),
    control("hostPorts", Level::Baseline, 0, host_ports, ""),
    control("hostProbesAndHostLifecycle", Level::Baseline, 34, host_probes, ""),
    control("privileged", Level::Baseline, 0, privileged, ""),
    control("procMount", Level::Baseline, 0, proc_mount, ""),
    control("seLinuxOptions", Level::Baseline, 0, se_linux, ""),
    control("seccompProfile_baseline", Level::Baseline, 0, seccomp_baseline, ""),
    control("sysctls", Level::Baseline, 0, sysctls, ""),
    control("windowsHostProcess", Level::Baseline, 0, host_process, ""),
    control("allowPrivilegeEscalation", Level::Restricted, 8, escalation, ""),
    control("capabilities_restricted", Level::Restricted, 22, capabilities_restricted, "capabilities_baseline"),
    control("procMount_restricted", Level::Restricted, 35, proc_mount_restricted, "procMount"),
    control("restrictedVolumes", Level::Restricted, 0, restricted_volumes, "hostPathVolumes"),
    control("runAsNonRoot", Level::Restricted, 0, run_as_non_root, ""),
    control("runAsUser", Level::Restricted, 23, run_as_user, ""),
    control("seccompProfile_restricted", Level::Restricted, 19, seccomp_restricted, "seccompProfile_baseline"),
];

/// `reason (detail), reason (detail)`; empty when the pod fits the level as `version` has it.
pub fn violations(level: Level, version: u32, pod: &Value) -> String {
    let part = |found: Finding| format!("{} ({})", found.reason, found.detail);
    findings(level, version, pod).map(part).collect::<Vec<_>>().join(", ")
}

/// The reasons alone.
pub fn reasons(level: Level, version: u32, pod: &Value) -> String {
    findings(level, version, pod).map(|found| found.reason).collect::<Vec<_>>().join(", ")
}

fn findings(level: Level, version: u32, pod: &Value) -> impl Iterator<Item = Finding> {
    let active = move |control: &&Control| control.level <= level && control.since <= version;
    CONTROLS.iter().filter(active).filter_map(move |control| {
        let replaced = CONTROLS.iter().filter(active).any(|other| other.replaces == control.id);
        if replaced { None } else { (control.check)(&Subject { pod, version }) }
    })
}

impl<'a> Subject<'a> {
    /// Checks of Linux alone let Windows pods be, from 1.25 on.
    fn is_exempt_windows(&self) -> bool {
        self.version >= 25 && text(self.pod, "spec.os.name") == "windows"
    }

    /// With a user namespace of its own root in the pod is nobody outside, from 1.35 on.
    fn has_own_users(&self) -> bool {
        self.version >= 35 && opt_flag(self.pod, "spec.hostUsers") == Some(false)
    }

    fn names_where(&self, test: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        containers(self.pod).filter(|container| test(container)).map(|container| text(container, "name")).collect()
    }

    /// Who does what `test` finds: `pod`, `container "a"`, `pod and containers "a", "b"`, or nobody.
    fn setters(&self, test: impl Fn(&Value) -> bool) -> String {
        let mut setters = Vec::new();
        if test(at(self.pod, "spec")) {
            setters.push("pod".to_owned());
        }
        let names = self.names_where(test);
        if !names.is_empty() {
            setters.push(named(&names));
        }
        setters.join(" and ")
    }

    /// What the pod and its containers have at `path`, without what is empty, sorted, each once.
    fn values(&self, path: &str) -> Vec<&'a str> {
        let owners = std::iter::once(at(self.pod, "spec")).chain(containers(self.pod));
        sorted(owners.map(|owner| text(owner, path)).filter(|value| !value.is_empty()))
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["spec.initContainers", "spec.containers", "spec.ephemeralContainers"]
        .into_iter()
        .flat_map(|field| list(pod, field))
}

fn sorted<'a>(items: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    items.collect::<BTreeSet<_>>().into_iter().collect()
}

/// In quotation marks, without escapes, as Kubernetes shows them.
fn quoted(items: &[&str]) -> String {
    items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

fn plural<'a>(word: &'a str, words: &'a str, count: usize) -> &'a str {
    if count == 1 { word } else { words }
}

/// `container "a"`, `containers "a", "b"`.
fn named(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `container "a" must …`, `containers "a", "b" must …`.
fn these(names: &[&str], rest: &str) -> String {
    format!("{} {rest}", named(names))
}

fn found(reason: &'static str, names: &[&str], rest: &str) -> Option<Finding> {
    (!names.is_empty()).then(|| Finding { reason, detail: these(names, rest) })
}

/// A finding about whoever `setters` names, if anybody.
fn set_by(reason: &'static str, setters: &str, rest: &str) -> Option<Finding> {
    (!setters.is_empty()).then(|| Finding { reason, detail: format!("{setters} {rest}") })
}

fn app_armor(subject: &Subject<'_>) -> Option<Finding> {
    const TYPE: &str = "securityContext.appArmorProfile.type";
    let allowed = |kind: &str| matches!(kind, "" | "RuntimeDefault" | "Localhost");
    let mut setters = subject.setters(|owner| !allowed(text(owner, TYPE)));
    let mut values: Vec<String> =
        subject.values(TYPE).into_iter().filter(|kind| !allowed(kind)).map(str::to_owned).collect();
    let annotations: BTreeSet<String> = entries(subject.pod, "metadata.annotations")
        .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .map(|(key, value)| (key, value.as_str().unwrap_or("")))
        .filter(|(_, profile)| {
            !(profile.is_empty() || *profile == "runtime/default" || profile.starts_with("localhost/"))
        })
        .map(|(key, profile)| format!("{key}={profile:?}"))
        .collect();
    if !annotations.is_empty() {
        let and = if setters.is_empty() { "" } else { " and " };
        setters = format!("{setters}{and}{}", plural("annotation", "annotations", annotations.len()));
        values.extend(annotations);
    }
    let shown: Vec<&str> = values.iter().map(String::as_str).collect();
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", shown.len());
    set_by(reason, &setters, &format!("must not set AppArmor profile type to {}", quoted(&shown)))
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

/// Containers that add capabilities outside of `allowed`, and what to say of them.
fn added<'a>(subject: &Subject<'a>, allowed: &[&str]) -> (Vec<&'a str>, String) {
    let extra = |container: &'a Value| {
        let added = texts(container, "securityContext.capabilities.add").into_iter();
        added.filter(|capability| !allowed.contains(capability)).collect::<Vec<_>>()
    };
    let names = containers(subject.pod).filter(|c| !extra(c).is_empty()).map(|c| text(c, "name")).collect();
    let capabilities = sorted(containers(subject.pod).flat_map(extra));
    (names, format!("must not include {} in securityContext.capabilities.add", quoted(&capabilities)))
}

fn capabilities_baseline(subject: &Subject<'_>) -> Option<Finding> {
    let (names, rest) = added(subject, &DEFAULT_CAPABILITIES);
    found("non-default capabilities", &names, &rest)
}

fn capabilities_restricted(subject: &Subject<'_>) -> Option<Finding> {
    if subject.is_exempt_windows() {
        return None;
    }
    let keep = subject.names_where(|c| !texts(c, "securityContext.capabilities.drop").contains(&"ALL"));
    let (names, rest) = added(subject, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keep.is_empty() {
        details.push(these(&keep, "must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    if !names.is_empty() {
        details.push(these(&names, &rest));
    }
    (!details.is_empty()).then(|| Finding { reason: "unrestricted capabilities", detail: details.join("; ") })
}

fn host_namespaces(subject: &Subject<'_>) -> Option<Finding> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| flag(at(subject.pod, "spec"), field))
        .map(|field| format!("{field}=true"))
        .collect();
    (!shared.is_empty()).then(|| Finding { reason: "host namespaces", detail: shared.join(", ") })
}

fn host_path_volumes(subject: &Subject<'_>) -> Option<Finding> {
    let volumes = list(subject.pod, "spec.volumes").iter();
    let names: Vec<&str> =
        volumes.filter(|volume| has(volume, "hostPath")).map(|volume| text(volume, "name")).collect();
    let detail = || format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names));
    (!names.is_empty()).then(|| Finding { reason: "hostPath volumes", detail: detail() })
}

fn host_ports(subject: &Subject<'_>) -> Option<Finding> {
    let used = |container: &Value| -> Vec<String> {
        let ports = list(container, "ports").iter().map(|port| int(port, "hostPort"));
        ports.filter(|port| *port != 0).map(|port| port.to_string()).collect()
    };
    let names = subject.names_where(|container| !used(container).is_empty());
    let ports: BTreeSet<String> = containers(subject.pod).flat_map(used).collect();
    let (verb, word) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
    let shown: Vec<String> = ports.into_iter().collect();
    found("hostPort", &names, &format!("{verb} {word} {}", shown.join(", ")))
}

/// Probes and hooks that address another host.
fn host_probes(subject: &Subject<'_>) -> Option<Finding> {
    const HANDLERS: [&str; 5] =
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    let hosts = |container: &Value| -> Vec<String> {
        let fields =
            HANDLERS.iter().flat_map(|handler| ["httpGet", "tcpSocket"].map(|kind| format!("{handler}.{kind}.host")));
        fields.map(|field| text(container, &field).to_owned()).filter(|host| !host.is_empty()).collect()
    };
    let mut names = subject.names_where(|container| !hosts(container).is_empty());
    names.sort_unstable();
    let all: BTreeSet<String> = containers(subject.pod).flat_map(hosts).collect();
    let shown: Vec<&str> = all.iter().map(String::as_str).collect();
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", shown.len());
    found(
        "probe or lifecycle host",
        &names,
        &format!("{} {word} {}", plural("uses", "use", names.len()), quoted(&shown)),
    )
}

fn privileged(subject: &Subject<'_>) -> Option<Finding> {
    let names = subject.names_where(|container| flag(container, "securityContext.privileged"));
    found("privileged", &names, "must not set securityContext.privileged=true")
}

fn proc_mount(subject: &Subject<'_>) -> Option<Finding> {
    if subject.has_own_users() { None } else { proc_mount_restricted(subject) }
}

fn proc_mount_restricted(subject: &Subject<'_>) -> Option<Finding> {
    const FIELD: &str = "securityContext.procMount";
    let bad = |kind: &str| !matches!(kind, "" | "Default");
    let names = subject.names_where(|container| bad(text(container, FIELD)));
    let kinds = sorted(containers(subject.pod).map(|container| text(container, FIELD)).filter(|kind| bad(kind)));
    found("procMount", &names, &format!("must not set {FIELD} to {}", quoted(&kinds)))
}

fn se_linux(subject: &Subject<'_>) -> Option<Finding> {
    const OPTIONS: &str = "securityContext.seLinuxOptions";
    let known = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || kind == "container_engine_t" && subject.version >= 31
    };
    let part = |owner: &'_ Value, field: &str| text(owner, &format!("{OPTIONS}.{field}")).to_owned();
    let setters = subject.setters(|owner| {
        !known(&part(owner, "type")) || !part(owner, "user").is_empty() || !part(owner, "role").is_empty()
    });
    let values = |field: &str| subject.values(&format!("{OPTIONS}.{field}"));
    let types: Vec<&str> = values("type").into_iter().filter(|kind| !known(kind)).collect();
    let mut bits = Vec::new();
    if !types.is_empty() {
        bits.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    for field in ["user", "role"] {
        if !values(field).is_empty() {
            bits.push(format!("{field} may not be set"));
        }
    }
    set_by("seLinuxOptions", &setters, &format!("set forbidden {OPTIONS}: {}", bits.join("; ")))
}

const SECCOMP: &str = "securityContext.seccompProfile.type";

fn seccomp_fits(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

/// Before 1.19 profiles were annotations.
fn seccomp_baseline(subject: &Subject<'_>) -> Option<Finding> {
    if subject.version < 19 { seccomp_annotations(subject) } else { seccomp_unconfined(subject) }
}

fn seccomp_annotations(subject: &Subject<'_>) -> Option<Finding> {
    let names =
        containers(subject.pod).map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", text(c, "name")));
    let keys = names.chain(["seccomp.security.alpha.kubernetes.io/pod".to_owned()]);
    let bad: BTreeSet<String> = keys
        .filter_map(|key| {
            let profile = annotation(subject.pod, &key)?;
            let fits = matches!(profile, "runtime/default" | "docker/default") || profile.starts_with("localhost/");
            (!fits).then(|| format!("{key}={profile:?}"))
        })
        .collect();
    let word = plural("annotation", "annotations", bad.len());
    let shown: Vec<String> = bad.into_iter().collect();
    (!shown.is_empty())
        .then(|| Finding { reason: "seccompProfile", detail: format!("forbidden {word} {}", shown.join(", ")) })
}

fn seccomp_unconfined(subject: &Subject<'_>) -> Option<Finding> {
    let bad = |kind: &str| !kind.is_empty() && !seccomp_fits(kind);
    let setters = subject.setters(|owner| bad(text(owner, SECCOMP)));
    let kinds: Vec<&str> = subject.values(SECCOMP).into_iter().filter(|kind| bad(kind)).collect();
    set_by("seccompProfile", &setters, &format!("must not set {SECCOMP} to {}", quoted(&kinds)))
}

fn seccomp_restricted(subject: &Subject<'_>) -> Option<Finding> {
    if subject.is_exempt_windows() {
        return None;
    }
    if let Some(unconfined) = seccomp_unconfined(subject) {
        return Some(unconfined);
    }
    if seccomp_fits(text(at(subject.pod, "spec"), SECCOMP)) {
        return None;
    }
    let names = subject.names_where(|container| text(container, SECCOMP).is_empty());
    let detail = these(&names, &format!("must set {SECCOMP} to \"RuntimeDefault\" or \"Localhost\""));
    (!names.is_empty()).then(|| Finding { reason: "seccompProfile", detail: format!("pod or {detail}") })
}

/// Sysctls that only touch the pod itself, and the minor version since when they may be set.
const SAFE_SYSCTLS: [(&str, u32); 14] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
    ("net.ipv4.tcp_slow_start_after_idle", 37),
    ("net.ipv4.tcp_notsent_lowat", 37),
];

fn sysctls(subject: &Subject<'_>) -> Option<Finding> {
    let safe = |name: &str| SAFE_SYSCTLS.iter().any(|(known, since)| *known == name && *since <= subject.version);
    let set = list(subject.pod, "spec.securityContext.sysctls").iter().map(|sysctl| text(sysctl, "name"));
    let refused: Vec<&str> = set.filter(|name| !safe(name)).collect();
    (!refused.is_empty()).then(|| Finding { reason: "forbidden sysctls", detail: refused.join(", ") })
}

fn host_process(subject: &Subject<'_>) -> Option<Finding> {
    const FIELD: &str = "securityContext.windowsOptions.hostProcess";
    set_by("hostProcess", &subject.setters(|owner| flag(owner, FIELD)), &format!("must not set {FIELD}=true"))
}

fn escalation(subject: &Subject<'_>) -> Option<Finding> {
    const FIELD: &str = "securityContext.allowPrivilegeEscalation";
    if subject.is_exempt_windows() {
        return None;
    }
    let names = subject.names_where(|container| opt_flag(container, FIELD) != Some(false));
    found("allowPrivilegeEscalation != false", &names, &format!("must set {FIELD}=false"))
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

fn restricted_volumes(subject: &Subject<'_>) -> Option<Finding> {
    let sources = |volume: &'_ Value| -> Vec<String> {
        let fields = volume.as_object().into_iter().flatten();
        fields.filter(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key.clone()).collect()
    };
    let bad = |volume: &&Value| !sources(volume).iter().any(|kind| RESTRICTED_VOLUMES.contains(&kind.as_str()));
    let volumes: Vec<&Value> = list(subject.pod, "spec.volumes").iter().filter(bad).collect();
    let names: Vec<&str> = volumes.iter().map(|volume| text(volume, "name")).collect();
    let first = |volume: &&Value| sources(volume).into_iter().next().unwrap_or_else(|| "unknown".to_owned());
    let kinds: BTreeSet<String> = volumes.iter().map(first).collect();
    let shown: Vec<&str> = kinds.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| Finding {
        reason: "restricted volume types",
        detail: format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", names.len()),
            quoted(&names),
            plural("uses", "use", names.len()),
            plural("restricted volume type", "restricted volume types", shown.len()),
            quoted(&shown)
        ),
    })
}

fn run_as_non_root(subject: &Subject<'_>) -> Option<Finding> {
    const FIELD: &str = "securityContext.runAsNonRoot";
    const REASON: &str = "runAsNonRoot != true";
    if subject.has_own_users() {
        return None;
    }
    let setters = subject.setters(|owner| opt_flag(owner, FIELD) == Some(false));
    if !setters.is_empty() {
        return set_by(REASON, &setters, &format!("must not set {FIELD}=false"));
    }
    if flag(at(subject.pod, "spec"), FIELD) {
        return None;
    }
    let names = subject.names_where(|container| opt_flag(container, FIELD).is_none());
    let detail = || format!("pod or {}", these(&names, &format!("must set {FIELD}=true")));
    (!names.is_empty()).then(|| Finding { reason: REASON, detail: detail() })
}

fn run_as_user(subject: &Subject<'_>) -> Option<Finding> {
    if subject.has_own_users() {
        return None;
    }
    let setters = subject.setters(|owner| opt_int(owner, "securityContext.runAsUser") == Some(0));
    set_by("runAsUser=0", &setters, "must not set runAsUser=0")
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
            (
                json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}, "containers": [{"name": "a", "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}]}),
                "forbidden AppArmor profile (pod and container \"a\" must not set AppArmor profile type to \"Unconfined\")",
            ),
            (
                json!({"securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}, "containers": [{"name": "a", "securityContext": {"seLinuxOptions": {"role": "r"}}}]}),
                "seLinuxOptions (pod and container \"a\" set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set; role may not be set)",
            ),
            (
                json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}, "lifecycle": {"preStop": {"tcpSocket": {"host": "g"}}}}]}),
                "probe or lifecycle host (container \"a\" uses probe or lifecycle hosts \"g\", \"h\")",
            ),
            (
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}, "containers": [{"name": "a", "securityContext": {"windowsOptions": {"hostProcess": true}}}]}),
                "hostProcess (pod and container \"a\" must not set securityContext.windowsOptions.hostProcess=true)",
            ),
        ] {
            assert_eq!(violations(Level::Baseline, u32::MAX, &json!({"spec": spec})), expected, "{spec}");
        }
    }

    #[test]
    fn restricted() {
        let sound = json!({"spec": {"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]}});
        assert_eq!(violations(Level::Restricted, u32::MAX, &sound), "");
        let mut rooted = sound.clone();
        rooted["spec"]["containers"][0]["securityContext"]["runAsUser"] = json!(0);
        rooted["spec"]["volumes"] = json!([{"name": "v", "hostPath": {}}, {"name": "n", "nfs": {}}]);
        assert_eq!(
            violations(Level::Restricted, u32::MAX, &rooted),
            "restricted volume types (volumes \"v\", \"n\" use restricted volume types \"hostPath\", \"nfs\"), runAsUser=0 (container \"c\" must not set runAsUser=0)"
        );
        assert_eq!(violations(Level::Privileged, u32::MAX, &rooted), "");
    }

    #[test]
    fn standards_of_earlier_versions() {
        let own_users = json!({"spec": {"hostUsers": false, "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}});
        let refused = "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")";
        let sysctl = json!({"spec": {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}}});
        let windows = json!({"spec": {"os": {"name": "windows"}, "containers": [{"name": "c", "securityContext": {"runAsNonRoot": true}}]}});
        let annotated = json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}, "spec": {}});
        for (level, version, pod, expected) in [
            (Level::Baseline, 34, &own_users, refused),
            (Level::Baseline, 35, &own_users, ""),
            (Level::Baseline, 31, &sysctl, "forbidden sysctls (net.ipv4.tcp_rmem)"),
            (Level::Baseline, 32, &sysctl, ""),
            (Level::Restricted, 25, &windows, ""),
            (
                Level::Restricted,
                18,
                &windows,
                "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
            ),
            (
                Level::Baseline,
                18,
                &annotated,
                "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")",
            ),
            (Level::Baseline, 19, &annotated, ""),
        ] {
            assert_eq!(violations(level, version, pod), expected, "{pod} at 1.{version}");
        }
        assert!(violations(Level::Restricted, 37, &own_users).contains(refused));
    }
}
