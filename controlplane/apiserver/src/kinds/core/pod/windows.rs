//! Validation of what depends on the pod's operating system: Windows options, and fields that mean
//! nothing there.

use api::field::{Error, ErrorList};
use api::names;

use super::security::all_containers;
use crate::kinds::check::Node;

const NOT_ON_WINDOWS: &str = "cannot be set for a windows pod";
const NOT_ON_LINUX: &str = "windows options cannot be set for a linux pod";
const MAX_CREDENTIAL_SPEC: usize = 64 * 1024;

/// `WindowsSecurityContextOptions`.
pub fn options(options: &Node<'_>, errors: &mut ErrorList) {
    let name = options.child("gmsaCredentialSpecName");
    if name.exists() {
        name.format(errors, names::dns1123_subdomain);
    }
    let credential = options.child("gmsaCredentialSpec");
    if credential.exists() && credential.text().is_empty() {
        credential.invalid(errors, "gmsaCredentialSpec cannot be an empty string");
    } else if credential.text().len() > MAX_CREDENTIAL_SPEC {
        credential.invalid(errors, "gmsaCredentialSpec size must be under 64 KiB");
    }
    let user = options.child("runAsUserName");
    if user.exists() {
        for problem in user_problems(user.text()) {
            user.invalid(errors, problem);
        }
    }
}

/// `DOMAIN\user` or `user`.
fn user_problems(text: &str) -> Vec<&'static str> {
    if text.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    let parts: Vec<&str> = text.split('\\').collect();
    let (domain, user) = match parts[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec!["runAsUserName cannot contain more than one backslash"],
    };
    let mut problems = Vec::new();
    if domain.is_some_and(|domain| domain.len() >= 256) {
        problems.push("runAsUserName's Domain length must be under 256 characters");
    }
    if domain.is_some_and(|domain| !is_net_bios(domain) && !is_dns(domain)) {
        problems.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
    }
    if user.is_empty() {
        problems.push("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        problems.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        problems.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c: char| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        problems.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
    problems
}

fn is_net_bios(domain: &str) -> bool {
    (1..=15).contains(&domain.chars().count())
        && !domain.starts_with('.')
        && !domain.contains(|c: char| "\\/:*?\"<>|".contains(c))
}

fn is_dns(domain: &str) -> bool {
    domain.split('.').all(|label| names::dns1123_label(&label.to_lowercase()).is_empty())
}

/// HostProcess containers: all or none, in the host's network.
pub fn host_process(spec: &Node<'_>, errors: &mut ErrorList) {
    let pods = spec.child("securityContext.windowsOptions.hostProcess").value.as_bool();
    let containers = all_containers(spec);
    let mut processes = 0;
    for container in &containers {
        let own = container.child("securityContext.windowsOptions.hostProcess");
        if let (Some(pods), Some(owns)) = (pods, own.value.as_bool())
            && pods != owns
        {
            own.invalid(errors, format!("pod hostProcess value must be identical if both are specified, was {pods}"));
        }
        processes += usize::from(own.value.as_bool().or(pods) == Some(true));
    }
    if processes == 0 {
        return;
    }
    if processes != containers.len() {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.push(Error::invalid(&spec.path, "", detail));
    }
    let network = spec.child("hostNetwork");
    if !network.flag() {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(Error::invalid(&network.path, false, detail));
    }
}

/// `spec.os`, and what the pods of that system may not have.
pub fn os(spec: &Node<'_>, errors: &mut ErrorList) {
    let os = spec.child("os");
    if !os.exists() {
        return;
    }
    match os.child("name").text() {
        "linux" => {
            let own = std::iter::once(spec.clone()).chain(all_containers(spec));
            for owner in own.filter(|owner| owner.has("securityContext.windowsOptions")) {
                owner.child("securityContext.windowsOptions").forbidden(errors, NOT_ON_LINUX);
            }
        }
        "windows" => windows(spec, errors),
        "" => os.child("name").missing(errors, "cannot be empty"),
        other => errors.push(Error::not_supported(&os.path, other, &["linux", "windows"])),
    }
}

fn windows(spec: &Node<'_>, errors: &mut ErrorList) {
    let refuse = |owner: &Node<'_>, fields: &[&str], errors: &mut ErrorList| {
        for field in fields.iter().filter(|field| owner.has(field)) {
            owner.child(field).forbidden(errors, NOT_ON_WINDOWS);
        }
    };
    refuse(
        &spec.child("securityContext"),
        &["appArmorProfile", "seLinuxOptions", "seccompProfile", "fsGroup", "fsGroupChangePolicy"],
        errors,
    );
    let sysctls = spec.child("securityContext.sysctls");
    if !sysctls.is_empty() {
        sysctls.forbidden(errors, NOT_ON_WINDOWS);
    }
    refuse(
        &spec.child("securityContext"),
        &["runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy"],
        errors,
    );
    refuse(spec, &["hostUsers"], errors);
    for field in ["hostPID", "hostIPC"] {
        if spec.child(field).flag() {
            spec.child(field).forbidden(errors, NOT_ON_WINDOWS);
        }
    }
    refuse(spec, &["shareProcessNamespace"], errors);
    for container in all_containers(spec) {
        refuse(
            &container.child("securityContext"),
            &[
                "appArmorProfile",
                "seLinuxOptions",
                "seccompProfile",
                "capabilities",
                "readOnlyRootFilesystem",
                "privileged",
                "allowPrivilegeEscalation",
                "procMount",
                "runAsUser",
                "runAsGroup",
            ],
            errors,
        );
    }
}
