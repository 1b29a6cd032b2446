//! The core group (`v1`).

pub mod allocator;
pub mod claim;
mod data;
pub mod diff;
mod endpoints;
mod event;
mod event_validation;
mod key_pair;
mod limits;
mod namespace;
mod node;
mod node_validation;
mod persistent_volume;
pub mod pod;
mod port_map;
mod quota;
mod service;
mod service_families;
mod service_ports;
mod service_repair;
mod service_status;
mod service_update;
mod service_validation;
mod service_warnings;

pub use endpoints::host_port;
pub use persistent_volume::inline_spec;
pub use service::load_balancers;
pub use service_validation::endpoint_ip;

use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::apps;
use crate::kinds::table::{created_at_columns, words};
use crate::kinds::value::{list, name, text};

use crate::resource::{Column, Descriptor, FieldAlias, Hooks, NameRule, Resource, SelectableField};
use allocator::ServiceRanges;

const STREAM: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const CHANGE: &[&str] = &["get", "patch", "update"];

pub fn resources(ranges: ServiceRanges) -> Vec<Resource> {
    vec![
        binding(),
        Resource::new(component_status_descriptor().columns(component_columns()), ComponentStatus),
        Resource::new(config_map_descriptor().columns(data::config_map_columns()), data::ConfigMap),
        Resource::new(endpoints_descriptor().columns(endpoints::columns()), endpoints::Endpoints),
        Resource::new(event_descriptor().columns(event::columns()), event::Event),
        Resource::new(limit_range_descriptor().columns(created_at_columns()), limits::LimitRange),
        Resource::new(namespace_descriptor().columns(namespace::columns()), namespace::Namespace),
        Resource::new(node_descriptor().columns(node::columns()), node::Node),
        Resource::new(claim_descriptor().columns(claim::claim_columns()), claim::Claim),
        Resource::new(volume_descriptor().columns(persistent_volume::columns()), persistent_volume::Volume),
        Resource::new(pod_descriptor().columns(pod::row::columns()), pod::Pod),
        Resource::new(pod_template_descriptor().columns(apps::pod_template_columns()), apps::PodTemplate),
        Resource::new(
            replication_controller_descriptor().columns(apps::controller_columns()),
            apps::ReplicationController,
        ),
        Resource::new(resource_quota_descriptor().columns(quota::columns()), quota::ResourceQuota),
        Resource::new(secret_descriptor().columns(data::secret_columns()), data::Secret),
        Resource::new(service_account_descriptor(), data::ServiceAccount),
        Resource::new(service_descriptor().columns(service::columns()), service::Service::new(ranges)),
    ]
}

/// Health of components, long deprecated.
struct ComponentStatus;

impl Hooks for ComponentStatus {
    fn row(&self, status: &Value, _now: Timestamp) -> Vec<Value> {
        let healthy = list(status, "conditions").iter().find(|condition| text(condition, "type") == "Healthy");
        let part = |field: &str| healthy.map_or("", |condition| text(condition, field));
        let word = match healthy {
            None => "Unknown",
            Some(_) if part("status") == "True" => "Healthy",
            Some(_) => "Unhealthy",
        };
        vec![name(status).into(), word.into(), part("message").into(), part("error").into()]
    }
}

fn component_columns() -> Vec<Column> {
    vec![
        Column::name(),
        words("Status", "Status of the component conditions"),
        words("Message", "Message of the component conditions"),
        words("Error", "Error of the component conditions"),
    ]
}

fn core(kind: &'static str, plural: &'static str) -> Descriptor {
    Descriptor::new("", "v1", kind, plural)
}

/// A selectable field whose absence reads as `absent`.
pub fn selectable_or(label: &'static str, path: &'static str, absent: &'static str) -> SelectableField {
    SelectableField { label: label.into(), paths: vec![path.into()], absent: absent.into() }
}

fn binding() -> Resource {
    let mut descriptor = core("Binding", "bindings").verbs(&["create"]);
    descriptor.virtual_ = true;
    Resource::plain(descriptor)
}

fn component_status_descriptor() -> Descriptor {
    let mut descriptor =
        core("ComponentStatus", "componentstatuses").cluster_scoped().short(&["cs"]).verbs(&["get", "list"]);
    descriptor.virtual_ = true;
    descriptor.deprecated("v1 ComponentStatus is deprecated in v1.19+")
}

fn config_map_descriptor() -> Descriptor {
    core("ConfigMap", "configmaps").short(&["cm"])
}

fn endpoints_descriptor() -> Descriptor {
    let mut descriptor = core("Endpoints", "endpoints").short(&["ep"]).stored_under("services/endpoints");
    descriptor.create_on_update = true;
    descriptor.singular = "endpoints".into();
    descriptor.list_kind = "EndpointsList".into();
    descriptor.deprecated("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
}

fn event_descriptor() -> Descriptor {
    let mut descriptor =
        core("Event", "events").also("events.k8s.io", "v1").short(&["ev"]).names(NameRule::PathSegment);
    descriptor.create_on_update = true;
    descriptor.ttl = Some(3600);
    for label in [
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "type",
        "reportingComponent",
    ] {
        descriptor = descriptor.selectable(label);
    }
    // In events.k8s.io the object is called `regarding`.
    descriptor.field_labels.aliases = [
        ("regarding.kind", "involvedObject.kind"),
        ("regarding.namespace", "involvedObject.namespace"),
        ("regarding.name", "involvedObject.name"),
        ("regarding.uid", "involvedObject.uid"),
        ("regarding.apiVersion", "involvedObject.apiVersion"),
        ("regarding.resourceVersion", "involvedObject.resourceVersion"),
        ("regarding.fieldPath", "involvedObject.fieldPath"),
        ("reportingController", "reportingComponent"),
    ]
    .map(|(label, field)| FieldAlias { group: "events.k8s.io", label, field, replaces: true })
    .into();
    descriptor.selectable.push(SelectableField {
        label: "source".into(),
        paths: vec!["source.component".into(), "reportingComponent".into()],
        absent: "".into(),
    });
    descriptor
}

fn limit_range_descriptor() -> Descriptor {
    let mut descriptor = core("LimitRange", "limitranges").short(&["limits"]);
    descriptor.create_on_update = true;
    descriptor
}

fn namespace_descriptor() -> Descriptor {
    core("Namespace", "namespaces")
        .cluster_scoped()
        .short(&["ns"])
        .names(NameRule::DnsLabel)
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .with_status()
        .subresource("finalize", ("", "v1", "Namespace"), &["update"])
        .selectable("status.phase")
}

fn node_descriptor() -> Descriptor {
    let mut descriptor = core("Node", "nodes")
        .cluster_scoped()
        .short(&["no"])
        .stored_under("minions")
        .with_status()
        .subresource("proxy", ("", "v1", "NodeProxyOptions"), PROXY);
    descriptor.keep_status_on_create = true;
    descriptor.selectable.push(selectable_or("spec.unschedulable", "spec.unschedulable", "false"));
    descriptor
}

fn claim_descriptor() -> Descriptor {
    let mut descriptor = core("PersistentVolumeClaim", "persistentvolumeclaims").short(&["pvc"]).with_status();
    descriptor.returns_deleted = true;
    descriptor
}

fn volume_descriptor() -> Descriptor {
    let mut descriptor = core("PersistentVolume", "persistentvolumes").cluster_scoped().short(&["pv"]).with_status();
    descriptor.returns_deleted = true;
    descriptor
}

fn pod_descriptor() -> Descriptor {
    let mut descriptor = core("Pod", "pods")
        .short(&["po"])
        .categories(&["all"])
        .with_status()
        .with_generation()
        .subresource("attach", ("", "v1", "PodAttachOptions"), STREAM)
        .subresource("binding", ("", "v1", "Binding"), &["create"])
        .subresource("ephemeralcontainers", ("", "v1", "Pod"), CHANGE)
        .subresource("eviction", ("policy", "v1", "Eviction"), &["create"])
        .subresource("exec", ("", "v1", "PodExecOptions"), STREAM)
        .subresource("log", ("", "v1", "Pod"), &["get"])
        .subresource("portforward", ("", "v1", "PodPortForwardOptions"), STREAM)
        .subresource("proxy", ("", "v1", "PodProxyOptions"), PROXY)
        .subresource("resize", ("", "v1", "Pod"), CHANGE);
    for label in [
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ] {
        descriptor = descriptor.selectable(label);
    }
    descriptor.selectable.push(selectable_or("spec.hostNetwork", "spec.hostNetwork", "false"));
    descriptor.selectable.push(SelectableField { label: "status.podIPs".into(), paths: Vec::new(), absent: "".into() });
    // What old clients call it.
    descriptor.field_labels.aliases =
        vec![FieldAlias { group: "", label: "spec.host", field: "spec.nodeName", replaces: false }];
    descriptor.graceful = true;
    descriptor.returns_deleted = true;
    descriptor
}

fn pod_template_descriptor() -> Descriptor {
    let mut descriptor = core("PodTemplate", "podtemplates").with_generation();
    descriptor.returns_deleted = true;
    descriptor
}

fn replication_controller_descriptor() -> Descriptor {
    let mut descriptor = core("ReplicationController", "replicationcontrollers")
        .short(&["rc"])
        .categories(&["all"])
        .stored_under("controllers")
        .with_status()
        .with_generation()
        .with_scale("spec.replicas", "status.replicas", "spec.selector");
    descriptor.selectable.push(selectable_or("status.replicas", "status.replicas", "0"));
    descriptor
}

fn resource_quota_descriptor() -> Descriptor {
    let mut descriptor = core("ResourceQuota", "resourcequotas").short(&["quota"]).with_status();
    descriptor.returns_deleted = true;
    descriptor
}

fn secret_descriptor() -> Descriptor {
    core("Secret", "secrets").selectable("type")
}

fn service_account_descriptor() -> Descriptor {
    let mut descriptor = core("ServiceAccount", "serviceaccounts").short(&["sa"]).subresource(
        "token",
        ("authentication.k8s.io", "v1", "TokenRequest"),
        &["create"],
    );
    descriptor.returns_deleted = true;
    descriptor
}

fn service_descriptor() -> Descriptor {
    let mut descriptor = core("Service", "services")
        .short(&["svc"])
        .categories(&["all"])
        .stored_under("services/specs")
        .names(NameRule::DnsLabel)
        .with_status()
        .subresource("proxy", ("", "v1", "ServiceProxyOptions"), PROXY)
        .selectable("spec.clusterIP")
        .selectable("spec.type");
    descriptor.create_on_update = true;
    descriptor.returns_deleted = true;
    descriptor
}
