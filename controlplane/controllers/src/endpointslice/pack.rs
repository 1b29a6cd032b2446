//! Pure: endpoints into slices of at most a hundred, touching as few slices as possible.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::desired::Group;
use super::{MANAGED_BY, MANAGER};
use crate::meta;
use crate::service_pods::{HEADLESS, SERVICE_NAME, is_headless};

const MOST_ENDPOINTS: usize = 100;

#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<String>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }
}

pub fn pack(service: &Service, wanted: Vec<Group>, existing: &[Arc<EndpointSlice>]) -> Changes {
    let mut changes = Changes::default();
    let labels = labels(service);
    let mut left: Vec<&Arc<EndpointSlice>> =
        existing.iter().filter(|slice| !meta::is_deleting(&slice.metadata)).collect();
    left.sort_by_key(|slice| slice.name_any());
    for group in wanted {
        let (own, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|slice| fits(slice, &group));
        left = others;
        pack_group(service, group, own, &labels, &mut changes);
    }
    changes.delete.extend(left.into_iter().map(|slice| slice.name_any()));
    changes
}

fn fits(slice: &EndpointSlice, group: &Group) -> bool {
    slice.address_type == group.address_type && slice.ports.clone().unwrap_or_default() == group.ports
}

fn same_target(a: &Endpoint, b: &Endpoint) -> bool {
    let uid = |endpoint: &Endpoint| endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    uid(a) == uid(b) && a.addresses == b.addresses
}

fn pack_group(
    service: &Service,
    group: Group,
    own: Vec<&Arc<EndpointSlice>>,
    labels: &BTreeMap<String, String>,
    changes: &mut Changes,
) {
    let mut missing = group.endpoints;
    // what stays, updated where it stands
    let mut slices: Vec<(EndpointSlice, bool)> = Vec::new();
    for slice in own {
        let before = slice.endpoints.clone().unwrap_or_default();
        let mut kept = Vec::new();
        for endpoint in &before {
            if let Some(index) = missing.iter().position(|wanted| same_target(wanted, endpoint)) {
                kept.push(missing.swap_remove(index));
            }
        }
        let mut next = (**slice).clone();
        next.metadata.labels = Some(labels.clone());
        let changed = kept != before || slice.metadata.labels != next.metadata.labels;
        next.endpoints = Some(kept);
        slices.push((next, changed));
    }
    sort(&mut missing);
    // slices that are written anyway are filled first
    slices.sort_by_key(|(_, changed)| !changed);
    let mut missing = missing.into_iter().peekable();
    for (slice, changed) in &mut slices {
        let endpoints = slice.endpoints.get_or_insert_default();
        while endpoints.len() < MOST_ENDPOINTS && missing.peek().is_some() {
            endpoints.extend(missing.next());
            *changed = true;
        }
    }
    let mut rest: Vec<Endpoint> = missing.collect();
    if slices.is_empty() && rest.is_empty() {
        changes.create.push(new_slice(service, &group.address_type, group.ports, rest, labels));
    } else {
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().min(MOST_ENDPOINTS));
            let slice = new_slice(service, &group.address_type, group.ports.clone(), rest, labels);
            changes.create.push(slice);
            rest = tail;
        }
        drop_empty(slices, changes);
    }
}

/// Deletes slices that became empty, but for one when nothing else is there.
fn drop_empty(slices: Vec<(EndpointSlice, bool)>, changes: &mut Changes) {
    let is_empty = |slice: &EndpointSlice| slice.endpoints.as_ref().is_none_or(Vec::is_empty);
    let mut keep_one = slices.iter().all(|(slice, _)| is_empty(slice)) && changes.create.is_empty();
    for (slice, changed) in slices {
        if is_empty(&slice) && !std::mem::take(&mut keep_one) {
            changes.delete.push(slice.name_any());
        } else if changed {
            changes.update.push(slice);
        }
    }
}

fn sort(endpoints: &mut [Endpoint]) {
    endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = meta::labels(&service.metadata).clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn new_slice(
    service: &Service,
    address_type: &str,
    ports: Vec<k8s_openapi::api::discovery::v1::EndpointPort>,
    endpoints: Vec<Endpoint>,
    labels: &BTreeMap<String, String>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.namespace(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![meta::controller_ref(service)]),
            ..Default::default()
        },
        address_type: address_type.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::api::discovery::v1::EndpointPort;

    fn service() -> Service {
        let mut service = Service::default();
        service.metadata.name = Some("web".into());
        service.metadata.namespace = Some("default".into());
        service
    }

    fn endpoint(number: usize) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.42.{}.{}", number / 250, number % 250)],
            target_ref: Some(ObjectReference { uid: Some(format!("uid-{number}")), ..Default::default() }),
            ..Default::default()
        }
    }

    fn group(numbers: impl IntoIterator<Item = usize>) -> Group {
        let ports = vec![EndpointPort { port: Some(80), ..Default::default() }];
        Group { address_type: "IPv4".into(), ports, endpoints: numbers.into_iter().map(endpoint).collect() }
    }

    fn stored(mut slices: Vec<EndpointSlice>) -> Vec<Arc<EndpointSlice>> {
        for (index, slice) in slices.iter_mut().enumerate() {
            slice.metadata.name.get_or_insert(format!("web-{index}"));
        }
        slices.into_iter().map(Arc::new).collect()
    }

    fn sizes(slices: &[EndpointSlice]) -> Vec<usize> {
        slices.iter().map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).collect()
    }

    #[test]
    fn a_hundred_per_slice_and_nothing_to_do_afterwards() {
        let changes = pack(&service(), vec![group(0..250)], &[]);
        assert_eq!(sizes(&changes.create), [100, 100, 50]);
        assert!(pack(&service(), vec![group(0..250)], &stored(changes.create)).is_empty());
    }

    #[test]
    fn one_pod_more_or_less_writes_one_slice() {
        let existing = stored(pack(&service(), vec![group(0..150)], &[]).create);
        let more = pack(&service(), vec![group(0..151)], &existing);
        assert_eq!((more.create.len(), sizes(&more.update), more.delete.len()), (0, vec![51], 0));
        let exchanged = pack(&service(), vec![group((1..150).chain([200]))], &existing);
        assert_eq!((exchanged.create.len(), sizes(&exchanged.update)), (0, vec![100]));
    }

    #[test]
    fn the_last_pod_leaves_an_empty_slice_and_other_ports_leave_none() {
        let existing = stored(pack(&service(), vec![group(0..150)], &[]).create);
        let empty = pack(&service(), vec![group([])], &existing);
        assert_eq!((empty.create.len(), sizes(&empty.update), empty.delete.len()), (0, vec![0], 1));
        let mut moved = group(0..2);
        moved.ports[0].port = Some(8080);
        let changes = pack(&service(), vec![moved], &existing);
        assert_eq!((sizes(&changes.create), changes.delete.len()), (vec![2], 2));
    }

    #[test]
    fn labels_follow_the_service() {
        let existing = stored(pack(&service(), vec![group(0..1)], &[]).create);
        assert!(meta::labels(&existing[0].metadata).contains_key(HEADLESS));
        let mut relabelled = service();
        relabelled.metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
        let changes = pack(&relabelled, vec![group(0..1)], &existing);
        assert_eq!(meta::labels(&changes.update[0].metadata).get("team").map(String::as_str), Some("a"));
    }
}
