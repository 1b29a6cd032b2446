//! The `rbac.authorization.k8s.io` group.

use crate::resource::{Descriptor, NameRule, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(descriptor("ClusterRoleBinding", "clusterrolebindings").cluster_scoped()),
        Resource::plain(descriptor("ClusterRole", "clusterroles").cluster_scoped()),
        Resource::plain(descriptor("RoleBinding", "rolebindings")),
        Resource::plain(descriptor("Role", "roles")),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    let mut descriptor = Descriptor::new("rbac.authorization.k8s.io", "v1", kind, plural).names(NameRule::PathSegment);
    descriptor.create_on_update = true;
    descriptor
}
