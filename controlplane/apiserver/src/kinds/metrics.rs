//! The `metrics.k8s.io` group: NodeMetrics and PodMetrics, computed when asked for.

use crate::registry::usage::GROUP;
use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    let metrics = |kind: &'static str, plural: &'static str| {
        let mut descriptor = Descriptor::new(GROUP, "v1", kind, plural).also(GROUP, "v1beta1").verbs(&["get", "list"]);
        descriptor.virtual_ = true;
        descriptor
    };
    vec![
        Resource::plain(metrics("NodeMetrics", "nodes").cluster_scoped()),
        Resource::plain(metrics("PodMetrics", "pods")),
    ]
}
