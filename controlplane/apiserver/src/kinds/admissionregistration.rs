//! The `admissionregistration.k8s.io` group: webhooks and CEL policies.

use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(descriptor("MutatingAdmissionPolicy", "mutatingadmissionpolicies")),
        Resource::plain(descriptor("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings")),
        Resource::plain(descriptor("MutatingWebhookConfiguration", "mutatingwebhookconfigurations")),
        Resource::plain(descriptor("ValidatingAdmissionPolicy", "validatingadmissionpolicies").with_status()),
        Resource::plain(descriptor("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")),
        Resource::plain(descriptor("ValidatingWebhookConfiguration", "validatingwebhookconfigurations")),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    let mut descriptor = Descriptor::new("admissionregistration.k8s.io", "v1", kind, plural)
        .cluster_scoped()
        .categories(&["api-extensions"])
        .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}
