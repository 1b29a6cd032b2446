//! The `flowcontrol.apiserver.k8s.io` group.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(descriptor("FlowSchema", "flowschemas")),
        Resource::plain(descriptor("PriorityLevelConfiguration", "prioritylevelconfigurations")),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    let mut descriptor = Descriptor::new("flowcontrol.apiserver.k8s.io", "v1", kind, plural)
        .cluster_scoped()
        .with_status()
        .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}
