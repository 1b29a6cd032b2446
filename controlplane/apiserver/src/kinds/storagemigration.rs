//! The `storagemigration.k8s.io` group: StorageVersionMigration.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::plain(
        Descriptor::new("storagemigration.k8s.io", "v1", "StorageVersionMigration", "storageversionmigrations")
            .cluster_scoped()
            .with_status(),
    )]
}
