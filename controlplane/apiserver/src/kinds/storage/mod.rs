//! The `storage.k8s.io` group.

use crate::resource::{Descriptor, Resource};

const GROUP: &str = "storage.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(csi_driver_descriptor()),
        Resource::plain(csi_node_descriptor()),
        Resource::plain(csi_capacity_descriptor()),
        Resource::plain(storage_class_descriptor()),
        Resource::plain(attachment_descriptor()),
        Resource::plain(attributes_class_descriptor()),
    ]
}

fn conditional(mut descriptor: Descriptor) -> Descriptor {
    descriptor.unconditional_update = false;
    descriptor
}

fn csi_driver_descriptor() -> Descriptor {
    conditional(Descriptor::new(GROUP, "v1", "CSIDriver", "csidrivers").cluster_scoped().with_generation())
}

fn csi_node_descriptor() -> Descriptor {
    conditional(Descriptor::new(GROUP, "v1", "CSINode", "csinodes").cluster_scoped())
}

fn csi_capacity_descriptor() -> Descriptor {
    conditional(Descriptor::new(GROUP, "v1", "CSIStorageCapacity", "csistoragecapacities"))
}

fn storage_class_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "StorageClass", "storageclasses").cluster_scoped().short(&["sc"])
}

fn attachment_descriptor() -> Descriptor {
    conditional(Descriptor::new(GROUP, "v1", "VolumeAttachment", "volumeattachments").cluster_scoped().with_status())
}

fn attributes_class_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "VolumeAttributesClass", "volumeattributesclasses").cluster_scoped().short(&["vac"])
}
