//! Who owns a pod's volumes: `fsGroup`, and the user that projected tokens are for.

use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

/// The pod's wishes about ownership.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    pub group: Option<u32>,
    /// The user that every container of the pod runs as, if it is the same.
    pub user: Option<u32>,
    /// Ownership is left alone where the volume's root has it right already.
    pub on_root_mismatch: bool,
}

impl Owner {
    /// The same, whatever the root looks like: for files that the agent has just written.
    pub fn always(self) -> Self {
        Self { on_root_mismatch: false, ..self }
    }

    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let context = spec.security_context.as_ref();
        let pod_user = context.and_then(|context| context.run_as_user);
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let mut users = containers
            .map(|container| container.security_context.as_ref().and_then(|own| own.run_as_user).or(pod_user));
        let first = users.next().flatten();
        let user = first.filter(|first| users.all(|user| user == Some(*first)));
        Self {
            group: context.and_then(|context| context.fs_group).and_then(|group| u32::try_from(group).ok()),
            user: user.and_then(|user| u32::try_from(user).ok()),
            on_root_mismatch: context.and_then(|context| context.fs_group_change_policy.as_deref())
                == Some("OnRootMismatch"),
        }
    }
}

/// Gives everything under `root` to the group, as Kubernetes' `SetVolumeOwnership`: files become
/// readable (and writable) for it, directories get the setgid bit so that new files inherit it.
pub fn give_to_group(root: &Path, owner: Owner, read_only: bool) -> io::Result<()> {
    let Some(group) = owner.group else { return Ok(()) };
    if owner.on_root_mismatch && root_matches(root, group, read_only)? {
        return Ok(());
    }
    // A local volume's path may be a link to the directory; links within it are left alone.
    let mut waiting = vec![root.canonicalize()?];
    while let Some(path) = waiting.pop() {
        let meta = std::fs::symlink_metadata(&path)?;
        lchown(&path, None, Some(group))?;
        if meta.file_type().is_symlink() {
            continue;
        }
        let wanted = meta.permissions().mode() | added_bits(meta.is_dir(), read_only);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(wanted & 0o7777))?;
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
    }
    Ok(())
}

fn added_bits(is_directory: bool, read_only: bool) -> u32 {
    let access = if read_only { 0o440 } else { 0o660 };
    if is_directory { access | 0o2110 } else { access }
}

fn root_matches(root: &Path, group: u32, read_only: bool) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(root)?;
    let wanted = added_bits(true, read_only);
    Ok(meta.gid() == group && meta.permissions().mode() & wanted == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn owner(spec: serde_json::Value) -> Owner {
        Owner::of(&serde_json::from_value(json!({ "spec": spec })).unwrap())
    }

    #[test]
    fn the_user_counts_only_if_all_containers_share_it() {
        let same = json!({ "securityContext": { "fsGroup": 7, "runAsUser": 5 }, "containers": [{ "name": "a" }] });
        assert_eq!(owner(same), Owner { group: Some(7), user: Some(5), on_root_mismatch: false });
        let other = json!({ "securityContext": { "runAsUser": 5 }, "containers": [
            { "name": "a" }, { "name": "b", "securityContext": { "runAsUser": 6 } }] });
        assert_eq!(owner(other).user, None);
        assert_eq!(owner(json!({ "containers": [{ "name": "a" }] })), Owner::default());
    }

    #[test]
    fn the_group_gets_in() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        // our own group: allowed without privileges too
        let group = nix::unistd::getgid().as_raw();
        give_to_group(directory.path(), Owner { group: Some(group), ..Owner::default() }, false).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o660);
        assert_eq!(std::fs::metadata(directory.path()).unwrap().permissions().mode() & 0o2070, 0o2070);
    }

    #[test]
    fn a_volume_that_is_a_link_is_the_directory_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let (behind, link) = (directory.path().join("behind"), directory.path().join("link"));
        std::fs::create_dir(&behind).unwrap();
        std::os::unix::fs::symlink(&behind, &link).unwrap();
        let group = nix::unistd::getgid().as_raw();
        give_to_group(&link, Owner { group: Some(group), ..Owner::default() }, false).unwrap();
        assert_eq!(std::fs::metadata(&behind).unwrap().permissions().mode() & 0o2070, 0o2070);
    }
}
