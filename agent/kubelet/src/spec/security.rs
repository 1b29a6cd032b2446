//! Users, capabilities, namespaces, seccomp: pod and container security contexts as CRI takes them.
//! The container's own setting wins over the pod's (`pkg/securitycontext`). Pure.

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile, SecurityContext};
use proto::runtime::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, UserNamespace, security_profile::ProfileType,
};

/// What stays hidden of /proc and /sys with `procMount: Default`.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the image and the host say, where it matters.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The user the image runs as, if it names a number.
    pub image_uid: Option<i64>,
    /// The user the image names otherwise; empty is root.
    pub image_user: String,
    /// Whether the host enforces AppArmor; profiles are ignored where it does not.
    pub apparmor: bool,
    /// Directory of `Localhost` seccomp profiles.
    pub seccomp_directory: String,
    /// The pod's own users (`hostUsers: false`); none for the host's.
    pub users: Option<UserNamespace>,
}

fn value(number: i64) -> Int64Value {
    Int64Value { value: number }
}

fn pod_id(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// The namespaces that a pod's sandbox and containers have.
pub fn namespaces(pod: &Pod, facts: &Facts) -> NamespaceOption {
    let spec = pod.spec.as_ref();
    let flag = |read: fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<bool>| spec.and_then(read).unwrap_or(false);
    let node_or = |node: bool, other: NamespaceMode| if node { NamespaceMode::Node } else { other } as i32;
    let pid = if flag(|spec| spec.share_process_namespace) { NamespaceMode::Pod } else { NamespaceMode::Container };
    NamespaceOption {
        network: node_or(flag(|spec| spec.host_network), NamespaceMode::Pod),
        pid: node_or(flag(|spec| spec.host_pid), pid),
        ipc: node_or(flag(|spec| spec.host_ipc), NamespaceMode::Pod),
        userns_options: facts.users.clone(),
        ..Default::default()
    }
}

pub fn sandbox(pod: &Pod, facts: &Facts) -> LinuxSandboxSecurityContext {
    let own = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, facts)),
        selinux_options: own.and_then(|own| own.se_linux_options.as_ref()).map(selinux),
        run_as_user: own.and_then(|own| own.run_as_user).map(value),
        // CRI refuses a group without a user.
        run_as_group: own.filter(|own| own.run_as_user.is_some()).and_then(|own| own.run_as_group).map(value),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        privileged: any_privileged(pod),
        seccomp: Some(profile(ProfileType::RuntimeDefault, "")),
        apparmor: own.and_then(|own| own.app_armor_profile.as_ref()).filter(|_| facts.apparmor).map(apparmor),
        ..Default::default()
    }
}

fn any_privileged(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let of = |context: Option<&SecurityContext>| context.and_then(|context| context.privileged).unwrap_or(false);
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .any(|container| of(container.security_context.as_ref()))
        || spec.ephemeral_containers.iter().flatten().any(|container| of(container.security_context.as_ref()))
}

fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let own = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let mut groups: Vec<i64> = own.and_then(|own| own.fs_group).into_iter().collect();
    groups.extend(own.and_then(|own| own.supplemental_groups.clone()).into_iter().flatten());
    groups
}

fn groups_policy(pod: &Pod) -> i32 {
    let own = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    match own.and_then(|own| own.supplemental_groups_policy.as_deref()) {
        Some("Strict") => SupplementalGroupsPolicy::Strict as i32,
        _ => SupplementalGroupsPolicy::Merge as i32,
    }
}

/// A container's context. Fails when `runAsNonRoot` does not hold.
pub fn container(pod: &Pod, container: &Container, facts: &Facts) -> Result<LinuxContainerSecurityContext, String> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let user = own.and_then(|own| own.run_as_user).or_else(|| of_pod.and_then(|pod| pod.run_as_user));
    let group = own.and_then(|own| own.run_as_group).or_else(|| of_pod.and_then(|pod| pod.run_as_group));
    let non_root =
        own.and_then(|own| own.run_as_non_root).or_else(|| of_pod.and_then(|pod| pod.run_as_non_root)).unwrap_or(false);
    if non_root {
        verify_non_root(pod, container, user, facts)?;
    }
    let privileged = own.and_then(|own| own.privileged).unwrap_or(false);
    let mut context = LinuxContainerSecurityContext {
        capabilities: own.and_then(|own| own.capabilities.as_ref()).map(|capabilities| Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, facts)),
        selinux_options: own
            .and_then(|own| own.se_linux_options.as_ref())
            .or_else(|| of_pod.and_then(|pod| pod.se_linux_options.as_ref()))
            .map(selinux),
        run_as_user: user.map(value),
        readonly_rootfs: own.and_then(|own| own.read_only_root_filesystem).unwrap_or(false),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        no_new_privs: own.and_then(|own| own.allow_privilege_escalation) == Some(false),
        ..Default::default()
    };
    // With no user asked for, the image's is named, so that a group can be set.
    if user.is_none() {
        match facts.image_uid {
            Some(uid) => context.run_as_user = Some(value(uid)),
            None => context.run_as_username = facts.image_user.clone(),
        }
    }
    if group.is_some() && context.run_as_user.is_none() && context.run_as_username.is_empty() {
        context.run_as_user = Some(value(0));
    }
    context.run_as_group = group.map(value);
    let unmasked = own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked");
    if !privileged && !unmasked {
        context.masked_paths = MASKED.map(str::to_owned).to_vec();
        context.readonly_paths = READ_ONLY.map(str::to_owned).to_vec();
    }
    if !privileged {
        let seccomp_profile = own
            .and_then(|own| own.seccomp_profile.as_ref())
            .or_else(|| of_pod.and_then(|pod| pod.seccomp_profile.as_ref()));
        context.seccomp = Some(seccomp(seccomp_profile, &facts.seccomp_directory)?);
        context.apparmor = own
            .and_then(|own| own.app_armor_profile.as_ref())
            .or_else(|| of_pod.and_then(|pod| pod.app_armor_profile.as_ref()))
            .filter(|_| facts.apparmor)
            .map(apparmor);
    }
    Ok(context)
}

fn verify_non_root(pod: &Pod, container: &Container, user: Option<i64>, facts: &Facts) -> Result<(), String> {
    let place = format!("(pod: \"{}\", container: {})", pod_id(pod), container.name);
    match (user, facts.image_uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Some(_)) => Ok(()),
        (None, None) if facts.image_user.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (None, None) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {place}",
            facts.image_user
        )),
    }
}

fn profile(kind: ProfileType, path: &str) -> SecurityProfile {
    SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() }
}

fn seccomp(wanted: Option<&SeccompProfile>, directory: &str) -> Result<SecurityProfile, String> {
    match wanted.map(|wanted| (wanted.type_.as_str(), wanted.localhost_profile.as_deref())) {
        None | Some(("Unconfined", _)) => Ok(profile(ProfileType::Unconfined, "")),
        Some(("RuntimeDefault", _)) => Ok(profile(ProfileType::RuntimeDefault, "")),
        Some(("Localhost", Some(file))) if !file.is_empty() => {
            Ok(profile(ProfileType::Localhost, &format!("{directory}/{file}")))
        }
        Some(("Localhost", _)) => Err("localhostProfile must be set if seccompProfile type is Localhost.".to_owned()),
        Some((other, _)) => Err(format!("unknown seccomp profile type {other}")),
    }
}

fn apparmor(wanted: &AppArmorProfile) -> SecurityProfile {
    match wanted.type_.as_str() {
        "Localhost" => profile(ProfileType::Localhost, wanted.localhost_profile.as_deref().unwrap_or_default()),
        "Unconfined" => profile(ProfileType::Unconfined, ""),
        _ => profile(ProfileType::RuntimeDefault, ""),
    }
}

fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn context(
        pod: serde_json::Value,
        own: serde_json::Value,
        facts: &Facts,
    ) -> Result<LinuxContainerSecurityContext, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}
        }))
        .unwrap();
        container(&pod, &pod.spec.as_ref().unwrap().containers[0], facts)
    }

    #[test]
    fn non_root_is_verified() {
        let root = Facts { image_uid: Some(0), ..Default::default() };
        let named = Facts { image_user: "nginx".into(), ..Default::default() };
        let number = Facts { image_uid: Some(101), ..Default::default() };
        let place = "(pod: \"p_n(u)\", container: c)";
        for (own, facts, error) in [
            (json!({}), &root, Some(format!("container has runAsNonRoot and image will run as root {place}"))),
            (json!({"runAsUser": 5}), &root, None),
            (json!({"runAsUser": 0}), &number, Some(format!("container's runAsUser breaks non-root policy {place}"))),
            (json!({}), &number, None),
            (
                json!({}),
                &named,
                Some(format!(
                    "container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root {place}"
                )),
            ),
            (json!({"runAsNonRoot": false}), &root, None),
        ] {
            assert_eq!(context(json!({"runAsNonRoot": true}), own.clone(), facts).err(), error, "{own}");
        }
    }

    #[test]
    fn the_containers_own_setting_wins() {
        let facts = Facts::default();
        let made = context(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 7, "supplementalGroups": [8], "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"runAsUser": 3, "allowPrivilegeEscalation": false, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}),
            &facts,
        )
        .unwrap();
        assert_eq!((made.run_as_user, made.run_as_group), (Some(value(3)), Some(value(2))));
        assert_eq!(made.supplemental_groups, [7, 8]);
        assert!(made.no_new_privs && made.masked_paths.len() == MASKED.len());
        assert_eq!(made.seccomp.unwrap().profile_type, ProfileType::RuntimeDefault as i32);
        let privileged = context(json!({}), json!({"privileged": true}), &facts).unwrap();
        assert!(privileged.masked_paths.is_empty() && privileged.seccomp.is_none());
    }
}
