//! The `apiextensions.k8s.io` group: CustomResourceDefinition.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(descriptor())]
}

fn descriptor() -> Descriptor {
    let mut descriptor =
        Descriptor::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
            .cluster_scoped()
            .short(&["crd", "crds"])
            .categories(&["api-extensions"])
            .stored_under("apiextensions.k8s.io/customresourcedefinitions")
            .with_status()
            .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}
