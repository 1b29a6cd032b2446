//! The `scheduling.k8s.io` group: PriorityClass.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(descriptor())]
}

fn descriptor() -> Descriptor {
    Descriptor::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses")
        .cluster_scoped()
        .short(&["pc"])
        .with_generation()
}
