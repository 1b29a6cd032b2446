//! Endpoints: the older view of what `endpointslice` publishes, one object per Service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use component::{EventType, Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use crate::context::{Context, Controller, Key, Pods, synced};
use crate::error::{During, Result, is_already_exists, is_namespace_terminating};
use crate::service_pods::{self, HEADLESS, TRIGGER_TIME};
use crate::{meta, podstate};

pub const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses than this are cut off.
const CAPACITY: usize = 1000;
const WORKERS: usize = 5;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("endpoint-controller");
    let services = context.informers.of::<Service>();
    let endpoints = context.informers.of::<Endpoints>();
    service_pods::watch(&services, &service_pods::by_namespace(&services), &context.pods, &queue);
    crate::context::enqueue_changes(&endpoints, &queue);
    let ready = synced!(services, endpoints, context.pods.informer);
    let worker = Worker { controller: controller.clone(), services, endpoints, pods: context.pods.clone() };
    let worker = Arc::new(worker);
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

struct Worker {
    controller: Controller,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    pods: Pods,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let api: Api<Endpoints> = self.controller.namespaced(&key.0);
        let existing = self.endpoints.get(&key.0, &key.1);
        let Some(service) = self.services.get(&key.0, &key.1) else {
            // only what this controller wrote: Endpoints without a Service may be a leader lock
            if existing.is_some_and(|endpoints| meta::labels(&endpoints.metadata).contains_key(MANAGED_BY)) {
                let deleted = api.delete(&key.1, &DeleteParams::default()).await;
                deleted.unless_gone("deleting Endpoints", &key.1)?;
            }
            return Ok(Outcome::Done);
        };
        let Some(selector) = service_pods::selector(&service) else { return Ok(Outcome::Done) };
        let mut pods = self.pods.by_namespace.get(&key.0);
        pods.retain(|pod| selector.matches(meta::labels(&pod.metadata)));
        let Some(wanted) = desired(&service, &pods, existing.as_deref()) else { return Ok(Outcome::Done) };
        let result = match &existing {
            Some(_) => api.replace(&key.1, &PostParams::default(), &wanted).await,
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match result {
            Ok(_) => Ok(Outcome::Done),
            Err(error) if is_namespace_terminating(&error) => Ok(Outcome::Done),
            Err(error) if existing.is_none() && is_already_exists(&error) => Ok(Outcome::Retry),
            Err(error) => {
                if !crate::error::is_conflict(&error) {
                    let (reason, doing) = match existing {
                        Some(_) => ("FailedToUpdateEndpoint", "update endpoint"),
                        None => ("FailedToCreateEndpoint", "create endpoint for service"),
                    };
                    let text = format!("Failed to {doing} {}/{}: {}", key.0, key.1, crate::error::message(&error));
                    self.controller.events.object_event(&wanted, EventType::Warning, reason, text);
                }
                Err(error).during("writing Endpoints", &format!("{}/{}", key.0, key.1))
            }
        }
    }
}

/// What to write, or none when it is there already.
fn desired(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, truncated) = subsets(service, pods);
    let mut labels = meta::labels(&service.metadata).clone();
    labels.remove(HEADLESS);
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    let mut annotations = existing.and_then(|e| e.metadata.annotations.clone()).unwrap_or_default();
    if truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    let subsets = (!subsets.is_empty()).then_some(subsets);
    if let Some(existing) = existing {
        let known = existing.subsets.clone().filter(|subsets| !subsets.is_empty());
        let same_annotations = existing.metadata.annotations.clone().unwrap_or_default() == annotations;
        if known == subsets && meta::labels(&existing.metadata) == &labels && same_annotations {
            return None;
        }
    }
    annotations.insert(TRIGGER_TIME.to_owned(), service_pods::trigger_time(service, pods));
    let from = existing.map(|existing| existing.metadata.clone()).unwrap_or_default();
    let metadata = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.namespace(),
        labels: Some(labels),
        annotations: Some(annotations),
        ..from
    };
    Some(Endpoints { metadata, subsets })
}

/// A port as it orders: name, number, protocol, application protocol.
type Port = (Option<String>, i32, String, Option<String>);

/// Subsets, and whether addresses were cut off.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let family = spec.ip_families.iter().flatten().next().cloned().unwrap_or_else(|| "IPv4".to_owned());
    let ports = spec.ports.unwrap_or_default();
    let tolerant = service_pods::publishes_not_ready(service);
    let mut shown: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|pod| !podstate::is_finished(pod) && (tolerant || !meta::is_deleting(&pod.metadata)))
        .filter(|pod| !service_pods::addresses(pod, &family).is_empty())
        .collect();
    let ready = |pod: &Pod| tolerant || podstate::is_ready(pod);
    shown.sort_by_key(|pod| (!ready(pod), pod.name_any()));
    let truncated = shown.len() > CAPACITY;
    shown.truncate(CAPACITY);

    // every port with the pods that have it; ports with the same pods then share a subset
    let mut by_port: BTreeMap<Option<Port>, BTreeSet<usize>> = BTreeMap::new();
    for (index, pod) in shown.iter().enumerate() {
        if ports.is_empty() {
            by_port.entry(None).or_default().insert(index);
        }
        for port in &ports {
            let Some(number) = service_pods::target_port(pod, port) else { continue };
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let key = (port.name.clone(), number, protocol, port.app_protocol.clone());
            by_port.entry(Some(key)).or_default().insert(index);
        }
    }
    let mut by_pods: BTreeMap<BTreeSet<usize>, Vec<Port>> = BTreeMap::new();
    for (port, pods) in by_port {
        by_pods.entry(pods).or_default().extend(port);
    }
    let subsets = by_pods.into_iter().map(|(indexes, ports)| {
        let (up, down): (Vec<_>, Vec<_>) = indexes.into_iter().map(|index| shown[index]).partition(|pod| ready(pod));
        let addresses = |pods: Vec<&Arc<Pod>>| {
            let mut list: Vec<_> = pods.into_iter().map(|pod| address(pod, service, &family)).collect();
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
            (!list.is_empty()).then_some(list)
        };
        let ports: Vec<_> = ports.into_iter().map(port).collect();
        EndpointSubset {
            addresses: addresses(up),
            not_ready_addresses: addresses(down),
            ports: (!ports.is_empty()).then_some(ports),
        }
    });
    (subsets.collect(), truncated)
}

fn port((name, port, protocol, app_protocol): Port) -> EndpointPort {
    EndpointPort { name, port, protocol: Some(protocol), app_protocol }
}

fn address(pod: &Pod, service: &Service, family: &str) -> EndpointAddress {
    EndpointAddress {
        ip: service_pods::addresses(pod, family).first().map(|ip| (*ip).to_owned()).unwrap_or_default(),
        hostname: service_pods::hostname(pod, service),
        node_name: Some(podstate::node_name(pod).to_owned()).filter(|node| !node.is_empty()),
        target_ref: Some(service_pods::target_ref(pod)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{pod, ready};
    use k8s_openapi::api::core::v1::{Container, ContainerPort, PodIP, ServicePort, ServiceSpec};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn service(ports: Vec<ServicePort>) -> Service {
        let mut service = Service::default();
        service.metadata.name = Some("web".into());
        service.metadata.namespace = Some("default".into());
        service.spec =
            Some(ServiceSpec { ports: Some(ports), cluster_ip: Some("10.43.0.9".into()), ..Default::default() });
        service
    }

    fn with_ip(mut pod: Pod, ip: &str, named: Option<i32>) -> Arc<Pod> {
        pod.status.get_or_insert_default().pod_ips = Some(vec![PodIP { ip: ip.into() }]);
        let port = named.map(|number| ContainerPort {
            name: Some("http".into()),
            container_port: number,
            ..Default::default()
        });
        pod.spec.get_or_insert_default().containers =
            vec![Container { ports: Some(port.into_iter().collect()), ..Default::default() }];
        Arc::new(pod)
    }

    #[test]
    fn ready_and_not_ready_share_a_subset_and_other_ports_have_their_own() {
        let port = ServicePort {
            name: Some("http".into()),
            port: 80,
            target_port: Some(IntOrString::String("http".into())),
            ..Default::default()
        };
        let pods = [
            with_ip(ready(pod("a", "n", "Running"), 0), "10.42.0.2", Some(8080)),
            with_ip(pod("b", "n", "Running"), "10.42.0.3", Some(8080)),
            with_ip(ready(pod("c", "n", "Running"), 0), "10.42.0.4", Some(9090)),
            with_ip(ready(pod("d", "n", "Running"), 0), "10.42.0.5", None),
        ];
        let service = service(vec![port]);
        let wanted = desired(&service, &pods, None).expect("nothing is there yet");
        let subsets = wanted.subsets.clone().unwrap_or_default();
        let shape = |subset: &EndpointSubset| {
            (
                subset.addresses.as_ref().map_or(0, Vec::len),
                subset.not_ready_addresses.as_ref().map_or(0, Vec::len),
                subset.ports.as_ref().map(|ports| ports[0].port),
            )
        };
        assert_eq!(subsets.iter().map(shape).collect::<Vec<_>>(), [(1, 1, Some(8080)), (1, 0, Some(9090))]);
        assert_eq!(desired(&service, &pods, Some(&wanted)), None, "no write without a change");
    }

    #[test]
    fn a_headless_service_without_ports_lists_addresses_only() {
        let mut service = service(Vec::new());
        service.spec.get_or_insert_default().cluster_ip = Some("None".into());
        let wanted = desired(&service, &[with_ip(ready(pod("a", "n", "Running"), 0), "10.42.0.2", None)], None);
        let wanted = wanted.expect("nothing is there yet");
        assert!(meta::labels(&wanted.metadata).contains_key(HEADLESS));
        let subset = &wanted.subsets.unwrap_or_default()[0];
        assert_eq!((subset.addresses.as_ref().map(Vec::len), &subset.ports), (Some(1), &None));
    }
}
