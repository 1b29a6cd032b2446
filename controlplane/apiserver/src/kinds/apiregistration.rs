//! The `apiregistration.k8s.io` group: APIService.

use crate::resource::{Descriptor, NameRule, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(descriptor())]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("apiregistration.k8s.io", "v1", "APIService", "apiservices")
        .cluster_scoped()
        .categories(&["api-extensions"])
        .stored_under("apiregistration.k8s.io/apiservices")
        .names(NameRule::PathSegment)
        .with_status();
    descriptor.unconditional_update = false;
    descriptor
}
