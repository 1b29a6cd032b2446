//! The `apps` group.

use crate::kinds::core::selectable_or;
use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(Descriptor::new("apps", "v1", "ControllerRevision", "controllerrevisions")),
        Resource::plain(daemon_set_descriptor()),
        Resource::plain(deployment_descriptor()),
        Resource::plain(replica_set_descriptor()),
        Resource::plain(stateful_set_descriptor()),
    ]
}

fn workload(kind: &'static str, plural: &'static str, short: &'static str) -> Descriptor {
    Descriptor::new("apps", "v1", kind, plural).short(&[short]).categories(&["all"]).with_status().with_generation()
}

fn daemon_set_descriptor() -> Descriptor {
    workload("DaemonSet", "daemonsets", "ds")
}

fn deployment_descriptor() -> Descriptor {
    workload("Deployment", "deployments", "deploy").with_scale("spec.replicas", "status.replicas", "spec.selector")
}

fn replica_set_descriptor() -> Descriptor {
    let mut descriptor =
        workload("ReplicaSet", "replicasets", "rs").with_scale("spec.replicas", "status.replicas", "spec.selector");
    descriptor.selectable.push(selectable_or("status.replicas", "status.replicas", "0"));
    descriptor
}

fn stateful_set_descriptor() -> Descriptor {
    workload("StatefulSet", "statefulsets", "sts").with_scale("spec.replicas", "status.replicas", "spec.selector")
}
