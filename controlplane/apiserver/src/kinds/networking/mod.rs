//! The `networking.k8s.io` group.

use crate::resource::{Descriptor, NameRule, Resource};

const GROUP: &str = "networking.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(ingress_class_descriptor()),
        Resource::plain(ingress_descriptor()),
        Resource::plain(ip_address_descriptor()),
        Resource::plain(network_policy_descriptor()),
        Resource::plain(service_cidr_descriptor()),
    ]
}

fn ingress_class_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "IngressClass", "ingressclasses").cluster_scoped().with_generation()
}

fn ingress_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "Ingress", "ingresses")
        .short(&["ing"])
        .stored_under("ingress")
        .with_status()
        .with_generation()
}

fn ip_address_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "IPAddress", "ipaddresses").cluster_scoped().short(&["ip"]).names(NameRule::Unchecked)
}

fn network_policy_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "NetworkPolicy", "networkpolicies").short(&["netpol"]).with_generation()
}

fn service_cidr_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "ServiceCIDR", "servicecidrs").cluster_scoped().with_status()
}
