//! The `networking.k8s.io` group.

mod ingress;
mod policy;
mod service_cidr;

use crate::resource::{Descriptor, NameRule, Resource};

const GROUP: &str = "networking.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(ingress_class_descriptor().columns(ingress::class_columns()), ingress::IngressClass),
        Resource::new(ingress_descriptor().columns(ingress::columns()), ingress::Ingress),
        Resource::new(ip_address_descriptor().columns(service_cidr::address_columns()), service_cidr::IpAddress),
        Resource::new(network_policy_descriptor().columns(policy::columns()), policy::NetworkPolicy),
        Resource::new(service_cidr_descriptor().columns(service_cidr::columns()), service_cidr::ServiceCidr),
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
