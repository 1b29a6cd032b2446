//! Validation of security contexts of pods and containers.

use api::field::{Error, ErrorList};

use crate::kinds::check::{Node, Seen};

const MAX_ID: i64 = i32::MAX as i64;

pub fn container(container: &Node<'_>, errors: &mut ErrorList) {
    let context = container.child("securityContext");
    if !context.exists() {
        return;
    }
    ids(&context, errors);
    profiles(&context, errors);
    context.child("procMount").optional_one_of(errors, &["Default", "Unmasked"]);
    let escalation = context.child("allowPrivilegeEscalation");
    if escalation.value.as_bool() == Some(false) {
        if context.child("privileged").flag() {
            context.invalid(errors, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let admin = context.items("capabilities.add").iter().any(|item| item.text() == "CAP_SYS_ADMIN");
        if admin {
            context
                .invalid(errors, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}

pub fn pod(spec: &Node<'_>, errors: &mut ErrorList) {
    let context = spec.child("securityContext");
    if spec.child("shareProcessNamespace").flag() && spec.child("hostPID").flag() {
        spec.child("shareProcessNamespace").invalid(errors, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    ids(&context, errors);
    profiles(&context, errors);
    id(&context.child("fsGroup"), errors);
    for group in context.items("supplementalGroups") {
        id(&group, errors);
    }
    context.child("fsGroupChangePolicy").optional_one_of(errors, &["Always", "OnRootMismatch"]);
    context.child("supplementalGroupsPolicy").optional_one_of(errors, &["Merge", "Strict"]);
    sysctls(&context, spec.child("hostNetwork").flag(), spec.child("hostIPC").flag(), errors);
    host_users(spec, errors);
}

fn ids(context: &Node<'_>, errors: &mut ErrorList) {
    for field in ["runAsUser", "runAsGroup"] {
        id(&context.child(field), errors);
    }
}

fn id(node: &Node<'_>, errors: &mut ErrorList) {
    if node.exists() && !(0..=MAX_ID).contains(&node.int()) {
        node.invalid(errors, "must be between 0 and 2147483647, inclusive");
    }
}

fn profiles(context: &Node<'_>, errors: &mut ErrorList) {
    for (field, kind) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let profile = context.child(field);
        if !profile.exists() {
            continue;
        }
        let (type_, local) = (profile.child("type"), profile.child("localhostProfile"));
        if !type_.required_one_of(errors, &["Localhost", "RuntimeDefault", "Unconfined"]) {
            continue;
        }
        if type_.text() == "Localhost" {
            if local.required(errors, &format!("must be set when {kind} type is Localhost"))
                && field == "seccompProfile"
            {
                super::container::relative_path(&local, errors);
            }
        } else if local.exists() {
            local.invalid(errors, format!("can only be set when {kind} type is Localhost"));
        }
    }
}

fn sysctls(context: &Node<'_>, host_network: bool, host_ipc: bool, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for sysctl in context.items("sysctls") {
        let name = sysctl.child("name");
        if !name.required(errors, "") {
            continue;
        }
        if !is_sysctl(name.text()) {
            name.invalid(errors, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        } else if !seen.insert(name.text().replace('/', ".")) {
            name.duplicate(errors);
        }
        let dotted = name.text().replace('/', ".");
        if host_network && dotted.starts_with("net.") {
            name.invalid(errors, "may not be specified when 'hostNetwork' is true");
        }
        let ipc =
            ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix));
        if host_ipc && ipc {
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

/// A pod with its own user namespace may not share the host's other namespaces.
fn host_users(spec: &Node<'_>, errors: &mut ErrorList) {
    if spec.child("hostUsers").value.as_bool() != Some(false) {
        return;
    }
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec.child(field).flag() {
            errors.push(Error::forbidden(&spec.child(field).path, "when `hostUsers` is false"));
        }
    }
}
