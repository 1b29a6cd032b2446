//! The `autoscaling` group: HorizontalPodAutoscaler, stored as v2.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(descriptor())]
}

fn descriptor() -> Descriptor {
    Descriptor::new("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .also("autoscaling", "v1")
        .short(&["hpa"])
        .categories(&["all"])
        .with_status()
}
