//! The `coordination.k8s.io` group: Lease.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(descriptor())]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("coordination.k8s.io", "v1", "Lease", "leases");
    descriptor.create_on_update = true;
    descriptor.unconditional_update = false;
    descriptor
}
