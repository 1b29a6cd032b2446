//! The `storage.k8s.io` group.

mod attachment;
mod class;
mod driver;

use crate::resource::{Descriptor, Resource};

const GROUP: &str = "storage.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            conditional(descriptor("CSIDriver", "csidrivers").with_generation()).columns(driver::columns()),
            driver::Driver,
        ),
        Resource::new(
            conditional(descriptor("CSINode", "csinodes")).columns(driver::node_columns()),
            driver::DriverNode,
        ),
        Resource::new(
            conditional(Descriptor::new(GROUP, "v1", "CSIStorageCapacity", "csistoragecapacities"))
                .columns(driver::capacity_columns()),
            driver::Capacity,
        ),
        Resource::new(
            descriptor("StorageClass", "storageclasses").short(&["sc"]).columns(class::columns()),
            class::Class,
        ),
        Resource::new(
            conditional(descriptor("VolumeAttachment", "volumeattachments").with_status())
                .columns(attachment::columns()),
            attachment::Attachment,
        ),
        Resource::new(
            descriptor("VolumeAttributesClass", "volumeattributesclasses")
                .short(&["vac"])
                .columns(class::attributes_columns()),
            class::Attributes,
        ),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    Descriptor::new(GROUP, "v1", kind, plural).cluster_scoped()
}

fn conditional(mut descriptor: Descriptor) -> Descriptor {
    descriptor.unconditional_update = false;
    descriptor
}
