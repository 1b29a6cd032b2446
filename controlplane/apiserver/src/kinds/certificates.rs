//! The `certificates.k8s.io` group.

use crate::resource::{Descriptor, NameRule, Resource};

const GROUP: &str = "certificates.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(request_descriptor()),
        Resource::plain(bundle_descriptor()),
        Resource::plain(pod_request_descriptor()),
    ]
}

fn request_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "CertificateSigningRequest", "certificatesigningrequests")
        .cluster_scoped()
        .short(&["csr"])
        .names(NameRule::PathSegment)
        .with_status()
        .subresource("approval", (GROUP, "v1", "CertificateSigningRequest"), &["get", "patch", "update"])
        .selectable("spec.signerName")
}

fn bundle_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "ClusterTrustBundle", "clustertrustbundles")
        .cluster_scoped()
        .names(NameRule::Unchecked)
        .selectable("spec.signerName")
}

fn pod_request_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "PodCertificateRequest", "podcertificaterequests")
        .with_status()
        .selectable("spec.signerName")
        .selectable("spec.podName")
        .selectable("spec.nodeName")
}
