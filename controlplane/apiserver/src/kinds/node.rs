//! The `node.k8s.io` group: RuntimeClass.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(descriptor())]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster_scoped();
    descriptor.unconditional_update = false;
    descriptor
}
