//! The `resource.k8s.io` group: dynamic resource allocation.

use crate::resource::{Descriptor, Resource};

const GROUP: &str = "resource.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(
            Descriptor::new(GROUP, "v1", "DeviceClass", "deviceclasses").cluster_scoped().with_generation(),
        ),
        Resource::plain(
            Descriptor::new(GROUP, "v1", "DeviceTaintRule", "devicetaintrules")
                .cluster_scoped()
                .with_status()
                .with_generation(),
        ),
        Resource::plain(Descriptor::new(GROUP, "v1", "ResourceClaim", "resourceclaims").with_status()),
        Resource::plain(Descriptor::new(GROUP, "v1", "ResourceClaimTemplate", "resourceclaimtemplates")),
        Resource::plain(slice_descriptor()),
    ]
}

fn slice_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "ResourceSlice", "resourceslices")
        .cluster_scoped()
        .with_generation()
        .selectable("spec.nodeName")
        .selectable("spec.driver")
}
