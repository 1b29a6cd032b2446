//! Pure: which pods stand behind a Service, and on which ports. Shared by `endpointslice` and
//! `endpoints`; and the watches both need.

use std::sync::Arc;

use api::selector::Selector;
use component::{Informer, WorkQueue};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::context::{Key, Pods};
use crate::index::Index;
use crate::{meta, podstate};

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The selector of a Service whose endpoints a controller keeps; none for ExternalName and for
/// Services whose endpoints somebody else writes.
pub fn selector(service: &Service) -> Option<Selector> {
    selected(service).map(Selector::from_map)
}

/// The labels that such a Service's pods have.
fn selected(service: &Service) -> Option<&meta::Labels> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then_some(selector)
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = meta::labels(&pod.metadata);
    selected(service).is_some_and(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

pub fn is_headless(service: &Service) -> bool {
    let ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    matches!(ip, Some("None" | "") | None)
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

/// The pod's addresses of one family, `IPv4` or `IPv6`.
pub fn addresses<'a>(pod: &'a Pod, family: &str) -> Vec<&'a str> {
    let status = pod.status.as_ref();
    let ips = status.and_then(|status| status.pod_ips.as_ref());
    let mut all: Vec<&str> = ips.into_iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if all.is_empty() {
        all.extend(status.and_then(|status| status.pod_ip.as_deref()).filter(|ip| !ip.is_empty()));
    }
    all.retain(|ip| ip.contains(':') == (family == "IPv6"));
    all
}

/// Where a Service's port leads in this pod, if the pod has it.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let sidecars = spec.init_containers.iter().flatten().filter(|c| api::resources::is_sidecar(c));
            let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let mut named = ports.filter(|port| port.name.as_deref() == Some(name));
            named.find(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol).map(|port| port.container_port)
        }
    }
}

/// The pod's hostname under a headless Service, from `spec.hostname` and `spec.subdomain`.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let under_service = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|hostname| under_service && !hostname.is_empty())
}

pub fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// What of a pod shows in its endpoints.
#[derive(PartialEq)]
struct Shown<'a> {
    labels: &'a meta::Labels,
    ips: Option<&'a Vec<k8s_openapi::api::core::v1::PodIP>>,
    ip: Option<&'a str>,
    ready: bool,
    deleting: bool,
    finished: bool,
    node: &'a str,
    host: Option<(&'a Option<String>, &'a Option<String>)>,
}

fn shown(pod: &Pod) -> Shown<'_> {
    let status = pod.status.as_ref();
    Shown {
        labels: meta::labels(&pod.metadata),
        ips: status.and_then(|status| status.pod_ips.as_ref()),
        ip: status.and_then(|status| status.pod_ip.as_deref()),
        ready: podstate::is_ready(pod),
        deleting: meta::is_deleting(&pod.metadata),
        finished: podstate::is_finished(pod),
        node: podstate::node_name(pod),
        host: pod.spec.as_ref().map(|spec| (&spec.hostname, &spec.subdomain)),
    }
}

pub fn by_namespace(services: &Informer<Service>) -> Index<Service> {
    Index::new(services, |service: &Service| service.metadata.namespace.iter().cloned().collect())
}

/// Enqueues Services as they change, and those that select a pod whose endpoint changes.
pub fn watch(services: &Informer<Service>, index: &Index<Service>, pods: &Pods, queue: &WorkQueue<Key>) {
    crate::context::enqueue_changes(services, queue);
    let (index, queue) = (index.clone(), queue.clone());
    pods.informer.on_change(move |change| {
        if let (Some(old), Some(new)) = (change.old, change.new)
            && shown(old) == shown(new)
        {
            return;
        }
        let namespace = change.object().metadata.namespace.clone().unwrap_or_default();
        let versions: Vec<&Arc<Pod>> = change.old.into_iter().chain(change.new).collect();
        // each change of a pod looks at every Service of its namespace: nothing is parsed here
        for service in index.get(&namespace) {
            if versions.iter().any(|pod| selects(&service, pod)) {
                queue.add(meta::key(&service.metadata));
            }
        }
    });
}

/// The newest moment at which something of these endpoints changed, as clients measure
/// programming latency from.
pub fn trigger_time(service: &Service, pods: &[Arc<Pod>]) -> String {
    let changes = pods.iter().filter_map(|pod| podstate::condition(pod, "Ready")?.last_transition_time.as_ref());
    let newest = changes.map(|time| time.0).max();
    api::scalar::time(newest.unwrap_or_else(|| meta::created(&service.metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::pod;
    use k8s_openapi::api::core::v1::{Container, ContainerPort};

    #[test]
    fn a_pod_wakes_the_services_that_select_it_alone() {
        let service = |selector: Option<&str>, kind: &str| {
            let mut service = Service::default();
            let spec = service.spec.get_or_insert_default();
            spec.selector = selector.map(|app| [("app".to_owned(), app.to_owned())].into());
            spec.type_ = Some(kind.into());
            service
        };
        let mut web = pod("a", "n", "Running");
        web.metadata.labels = Some([("app", "web"), ("tier", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert!(selects(&service(Some("web"), "ClusterIP"), &web));
        for other in
            [service(Some("db"), "ClusterIP"), service(None, "ClusterIP"), service(Some("web"), "ExternalName")]
        {
            assert!(!selects(&other, &web));
        }
    }

    #[test]
    fn named_ports_are_found_by_name_and_protocol() {
        let mut pod = pod("a", "n", "Running");
        let port = |name: &str, number, protocol: &str| ContainerPort {
            name: Some(name.into()),
            container_port: number,
            protocol: Some(protocol.into()),
            ..Default::default()
        };
        pod.spec.get_or_insert_default().containers = vec![Container {
            ports: Some(vec![port("dns", 53, "UDP"), port("dns-tcp", 5353, "TCP"), port("web", 8080, "TCP")]),
            ..Default::default()
        }];
        let service_port =
            |target: Option<IntOrString>| ServicePort { port: 80, target_port: target, ..Default::default() };
        let named = |name: &str| Some(IntOrString::String(name.into()));
        for (target, expected) in [
            (named("web"), Some(8080)),
            (named("dns"), None),
            (named("absent"), None),
            (Some(IntOrString::Int(9090)), Some(9090)),
            (None, Some(80)),
        ] {
            assert_eq!(target_port(&pod, &service_port(target.clone())), expected, "{target:?}");
        }
    }
}
