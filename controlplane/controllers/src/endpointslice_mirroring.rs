//! EndpointSlices for Endpoints that somebody else writes for a Service without a selector, so that
//! kube-proxy and DNS, which read slices only, see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use component::{Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use crate::context::{self, Context, Controller, Key, synced};
use crate::endpointslice::MANAGED_BY;
use crate::error::{During, Result, is_already_exists, is_namespace_terminating};
use crate::index::Index;
use crate::meta;
use crate::service_pods::SERVICE_NAME;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations of Endpoints that say nothing about their slices.
const OWN: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
const MOST_ADDRESSES: usize = 1000;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("endpointslicemirroring-controller");
    let services = context.informers.of::<Service>();
    let endpoints = context.informers.of::<Endpoints>();
    let slices = context.informers.of::<EndpointSlice>();
    let mirrors = Index::new(&slices, |slice: &EndpointSlice| mirrored(slice).into_iter().map(text).collect());
    context::enqueue_changes(&services, &queue);
    context::enqueue_changes(&endpoints, &queue);
    let changed = queue.clone();
    slices.on_change(move |change| {
        change.old.into_iter().chain(change.new).filter_map(|slice| mirrored(slice)).for_each(|key| changed.add(key));
    });
    let ready = synced!(services, endpoints, slices);
    let worker = Arc::new(Worker { controller: controller.clone(), services, endpoints, mirrors });
    controller.run(&queue, 2, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

fn text(key: Key) -> String {
    format!("{}/{}", key.0, key.1)
}

fn mirrored(slice: &EndpointSlice) -> Option<Key> {
    let labels = meta::labels(&slice.metadata);
    let service = labels.get(SERVICE_NAME).filter(|_| labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER))?;
    Some((slice.metadata.namespace.clone()?, service.clone()))
}

struct Worker {
    controller: Controller,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    mirrors: Index<EndpointSlice>,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let service = self.services.get(&key.0, &key.1);
        let endpoints = self.endpoints.get(&key.0, &key.1);
        let wanted = match (service, endpoints) {
            (Some(service), Some(endpoints)) if is_mirrored(&service, &endpoints) => slices(&endpoints),
            _ => Vec::new(),
        };
        let existing = self.mirrors.get(&text(key.clone()));
        let api: Api<EndpointSlice> = self.controller.namespaced(&key.0);
        for slice in &wanted {
            let name = slice.name_any();
            let result = match existing.iter().find(|known| known.name_any() == name) {
                Some(known) if is_same(known, slice) => continue,
                Some(known) => {
                    let mut changed = slice.clone();
                    changed.metadata.resource_version = known.metadata.resource_version.clone();
                    api.replace(&name, &PostParams::default(), &changed).await
                }
                None => api.create(&PostParams::default(), slice).await,
            };
            match result {
                Err(error) if is_already_exists(&error) => return Ok(Outcome::Retry),
                Err(error) if is_namespace_terminating(&error) => return Ok(Outcome::Done),
                other => drop(other.during("mirroring Endpoints into EndpointSlice", &name)?),
            }
        }
        for slice in existing.iter().filter(|known| !wanted.iter().any(|slice| slice.name_any() == known.name_any())) {
            let name = slice.name_any();
            api.delete(&name, &DeleteParams::default()).await.unless_gone("deleting EndpointSlice", &name)?;
        }
        Ok(Outcome::Done)
    }
}

fn is_mirrored(service: &Service, endpoints: &Endpoints) -> bool {
    let selects = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|map| !map.is_empty());
    let skipped = meta::labels(&endpoints.metadata).get(SKIP).is_some_and(|value| value == "true");
    !selects && !skipped && meta::annotation(&endpoints.metadata, LEADER).is_none()
}

fn is_same(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    let (of, to) = (&a.metadata, &b.metadata);
    (&a.endpoints, &a.ports, &a.address_type) == (&b.endpoints, &b.ports, &b.address_type)
        && (meta::labels(of), &of.annotations, &of.owner_references)
            == (meta::labels(to), &to.annotations, &to.owner_references)
}

/// One slice per subset and address family; their names follow from the position, so that a
/// lagging cache makes none twice.
fn slices(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut result = Vec::new();
    for (number, subset) in endpoints.subsets.iter().flatten().enumerate() {
        for family in ["IPv4", "IPv6"] {
            let ready = subset.addresses.iter().flatten().map(|address| (address, true));
            let down = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
            let of_family = |(address, _): &(&EndpointAddress, bool)| address.ip.contains(':') == (family == "IPv6");
            let list: Vec<_> = ready.chain(down).filter(of_family).take(MOST_ADDRESSES).collect();
            if list.is_empty() {
                continue;
            }
            let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            });
            result.push(EndpointSlice {
                metadata: metadata(endpoints, number, family),
                address_type: family.to_owned(),
                endpoints: Some(list.into_iter().map(|(address, ready)| endpoint(address, ready)).collect()),
                ports: Some(ports.collect()),
            });
        }
    }
    result
}

fn metadata(endpoints: &Endpoints, number: usize, family: &str) -> ObjectMeta {
    let mut labels: BTreeMap<String, String> = meta::labels(&endpoints.metadata).clone();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()));
    ObjectMeta {
        name: Some(format!("{}-mirror-{number}-{}", endpoints.name_any(), family.to_ascii_lowercase())),
        namespace: endpoints.namespace(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![meta::controller_ref(endpoints)]),
        ..Default::default()
    }
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: None, terminating: None }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn endpoints() -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "default", "uid": "u"},
            "subsets": [{
                "addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}],
                "ports": [{"port": 5432}],
            }],
        }))
        .expect("endpoints")
    }

    #[test]
    fn families_have_their_own_slices() {
        let slices = slices(&endpoints());
        let shape: Vec<_> = slices
            .iter()
            .map(|slice| (slice.address_type.as_str(), slice.endpoints.as_ref().map_or(0, Vec::len), slice.name_any()))
            .collect();
        assert_eq!(shape, [("IPv4", 2, "db-mirror-0-ipv4".to_owned()), ("IPv6", 1, "db-mirror-0-ipv6".to_owned())]);
    }

    #[test]
    fn slices_have_the_annotations_of_their_endpoints() {
        let mut annotated = endpoints();
        let given = [("team", "db"), (OWN[0], "x"), (OWN[1], "x")];
        annotated.metadata.annotations = Some(given.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        let mirrored = slices(&annotated);
        let kept = BTreeMap::from([("team".to_owned(), "db".to_owned())]);
        assert_eq!(mirrored[0].metadata.annotations, Some(kept));
        assert!(!is_same(&slices(&endpoints())[0], &mirrored[0]));
    }

    #[test]
    fn only_endpoints_of_services_without_selector() {
        let plain = Service::default();
        assert!(is_mirrored(&plain, &endpoints()));
        let mut selecting = Service::default();
        selecting.spec.get_or_insert_default().selector = Some([("a".to_owned(), "b".to_owned())].into());
        assert!(!is_mirrored(&selecting, &endpoints()));
        let mut skipped = endpoints();
        skipped.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(&plain, &skipped));
    }
}
