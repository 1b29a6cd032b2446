//! The `policy` group: PodDisruptionBudget.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(descriptor())]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
        .short(&["pdb"])
        .with_status()
        .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}
