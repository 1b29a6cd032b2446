//! The `authorization.k8s.io` group: access reviews, answered without the store.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    [
        ("LocalSubjectAccessReview", "localsubjectaccessreviews", true),
        ("SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
        ("SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
        ("SubjectAccessReview", "subjectaccessreviews", false),
    ]
    .map(|(kind, plural, namespaced)| {
        let mut descriptor = Descriptor::new("authorization.k8s.io", "v1", kind, plural).verbs(&["create"]);
        descriptor.namespaced = namespaced;
        descriptor.virtual_ = true;
        Resource::plain(descriptor)
    })
    .into()
}
