//! Validation of security contexts of pods and containers.

use api::field::{Error, ErrorList};

use super::internal::{self, PROFILE, SECURITY_CONTEXT};
use super::mounts::relative_path;
use super::windows;
use crate::kinds::check::{Node, Seen};

const MAX_ID: i64 = i32::MAX as i64;
const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];
const MAX_PROFILE_PATH: usize = 4095;

pub fn container(container: &Node<'_>, host_users: bool, errors: &mut ErrorList) {
    let context = container.child("securityContext");
    if !context.exists() {
        return;
    }
    id(&context.child("runAsUser"), errors);
    id(&context.child("runAsGroup"), errors);
    let proc_mount = context.child("procMount");
    if proc_mount.exists() {
        proc_mount.one_of(errors, &["Default", "Unmasked"]);
        if host_users && proc_mount.text() == "Unmasked" {
            proc_mount.invalid(errors, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(&context.child("seccompProfile"), errors);
    if context.child("allowPrivilegeEscalation").value.as_bool() == Some(false) {
        let refused = |errors: &mut ErrorList, detail: &str| {
            errors.push(internal::invalid(&context.path, context.value, SECURITY_CONTEXT, detail));
        };
        if context.child("privileged").flag() {
            refused(errors, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        for _ in context.items("capabilities.add").iter().filter(|item| item.text() == "CAP_SYS_ADMIN") {
            refused(errors, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    windows::options(&context.child("windowsOptions"), errors);
    app_armor(&context.child("appArmorProfile"), errors);
}

/// The security context of a pod.
pub fn pod(spec: &Node<'_>, errors: &mut ErrorList) {
    let context = spec.child("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(&context.child(field), errors);
    }
    for group in context.items("supplementalGroups") {
        id(&group, errors);
    }
    if spec.child("shareProcessNamespace").flag() && spec.child("hostPID").flag() {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(Error::invalid(&context.path.child("shareProcessNamespace"), true, detail));
    }
    sysctls(&context, spec.child("hostNetwork").flag(), spec.child("hostIPC").flag(), errors);
    context.child("fsGroupChangePolicy").optional_one_of(errors, &["Always", "OnRootMismatch"]);
    seccomp(&context.child("seccompProfile"), errors);
    windows::options(&context.child("windowsOptions"), errors);
    app_armor(&context.child("appArmorProfile"), errors);
    context.child("supplementalGroupsPolicy").optional_one_of(errors, &["Merge", "Strict"]);
    context.child("seLinuxChangePolicy").optional_one_of(errors, &["MountOption", "Recursive"]);
}

fn id(node: &Node<'_>, errors: &mut ErrorList) {
    if node.exists() && !(0..=MAX_ID).contains(&node.int()) {
        node.invalid(errors, "must be between 0 and 2147483647, inclusive");
    }
}

fn seccomp(profile: &Node<'_>, errors: &mut ErrorList) {
    if !profile.exists() {
        return;
    }
    let (kind, local) = (profile.child("type"), profile.child("localhostProfile"));
    if kind.text().is_empty() {
        kind.missing(errors, "type is required when seccompProfile is set");
    } else {
        kind.one_of(errors, &PROFILES);
    }
    if kind.text() == "Localhost" {
        if local.exists() {
            relative_path(&local, errors);
        } else {
            local.missing(errors, "must be set when seccomp type is Localhost");
        }
    } else if local.exists() {
        let detail = "can only be set when seccomp type is Localhost";
        errors.push(internal::invalid(&local.path, profile.value, PROFILE, detail));
    }
}

fn app_armor(profile: &Node<'_>, errors: &mut ErrorList) {
    const NEEDED: &str = "must be set when AppArmor type is Localhost";
    if !profile.exists() {
        return;
    }
    let (kind, local) = (profile.child("type"), profile.child("localhostProfile"));
    match kind.text() {
        "Localhost" if !local.exists() => local.missing(errors, NEEDED),
        "Localhost" => {
            let trimmed = local.text().trim();
            if trimmed != local.text() {
                local.invalid(errors, "must not be padded with whitespace");
            } else if trimmed.is_empty() {
                local.missing(errors, NEEDED);
            }
            if local.text().len() > MAX_PROFILE_PATH {
                errors.push(Error::too_long(&local.path, MAX_PROFILE_PATH));
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if local.exists() {
                local.invalid(errors, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => kind.missing(errors, "type is required when appArmorProfile is set"),
        _ => {
            kind.one_of(errors, &PROFILES);
        }
    }
}

fn sysctls(context: &Node<'_>, host_network: bool, host_ipc: bool, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for sysctl in context.items("sysctls") {
        let name = sysctl.child("name");
        if name.text().is_empty() {
            name.missing(errors, "");
        } else if !is_sysctl(name.text()) {
            name.invalid(errors, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        } else if seen.has(name.text()) {
            name.duplicate(errors);
        }
        seen.insert(name.text());
        let dotted = name.text().replace('/', ".");
        let ipc =
            ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix));
        if host_network && dotted.starts_with("net.") {
            name.invalid(errors, "may not be specified when 'hostNetwork' is true");
        } else if host_ipc && ipc {
            name.invalid(errors, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            match (bytes.first(), bytes.last()) {
                (Some(&first), Some(&last)) => {
                    edge(first) && edge(last) && bytes.iter().all(|&b| edge(b) || b"-_".contains(&b))
                }
                _ => false,
            }
        })
}

/// A pod with its own user namespace may not share the host's other namespaces, nor its devices.
pub fn host_users(spec: &Node<'_>, errors: &mut ErrorList) {
    const REFUSED: &str = "when `hostUsers` is false";
    if spec.child("hostUsers").value.as_bool() != Some(false) {
        return;
    }
    // The two names are written so in Kubernetes' errors.
    for (field, named) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.child(field).flag() {
            errors.push(Error::forbidden(&spec.path.child(named), REFUSED));
        }
    }
    for container in all_containers(spec) {
        if !container.items("volumeDevices").is_empty() {
            container.child("volumeDevices").forbidden(errors, REFUSED);
        }
    }
}

/// Init, regular and ephemeral containers, in the order in which Kubernetes visits them.
pub fn all_containers<'a>(spec: &Node<'a>) -> Vec<Node<'a>> {
    ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|field| spec.items(field)).collect()
}
