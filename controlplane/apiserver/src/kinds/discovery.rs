//! The `discovery.k8s.io` group: EndpointSlice.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(descriptor())]
}

fn descriptor() -> Descriptor {
    Descriptor::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices").with_generation()
}
