//! The `authentication.k8s.io` group: reviews, answered without the store.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    [("SelfSubjectReview", "selfsubjectreviews"), ("TokenReview", "tokenreviews")]
        .map(|(kind, plural)| {
            let mut descriptor =
                Descriptor::new("authentication.k8s.io", "v1", kind, plural).cluster_scoped().verbs(&["create"]);
            descriptor.virtual_ = true;
            Resource::plain(descriptor)
        })
        .into()
}
