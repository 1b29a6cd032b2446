//! The endpoints of `kube-system/kube-dns`: the nodes, as each of them answers for the cluster's
//! domain itself.
//!
//! No packet goes by them: the Service's address is served on every node, and proxies leave it
//! alone. They are there for whoever waits until the cluster's DNS has endpoints. A Service of that
//! name with a selector is somebody's own DNS, and has its own endpoints. The mirroring controller
//! makes the EndpointSlice.

use std::sync::Arc;

use component::{Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::context::{Context, Controller, synced};
use crate::endpoints::MANAGED_BY;
use crate::error::{During, Result, is_already_exists, is_namespace_terminating};
use crate::node_lifecycle::is_ready;
use crate::{meta, service_pods};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// More addresses than this do not fit into one Endpoints object.
const CAPACITY: usize = 1000;

pub fn start(context: &Context) {
    let queue = WorkQueue::<()>::new();
    let controller = context.controller("endpoint-controller");
    let services = context.informers.of::<Service>();
    let endpoints = context.informers.of::<Endpoints>();
    let nodes = context.informers.of::<Node>();
    let changed = queue.clone();
    nodes.on_change(move |change| {
        let shown = |node: Option<&Arc<Node>>| node.map(|node| (is_ready(node), address(node)));
        if shown(change.old) != shown(change.new) {
            changed.add(());
        }
    });
    let is_ours =
        |meta: &ObjectMeta| meta.name.as_deref() == Some(NAME) && meta.namespace.as_deref() == Some(NAMESPACE);
    let changed = queue.clone();
    services.on_change(move |change| {
        if is_ours(&change.object().metadata) {
            changed.add(());
        }
    });
    let changed = queue.clone();
    endpoints.on_change(move |change| {
        if is_ours(&change.object().metadata) {
            changed.add(());
        }
    });
    let ready = synced!(services, endpoints, nodes);
    let worker = Arc::new(Worker { controller: controller.clone(), services, endpoints, nodes });
    controller.run(&queue, 1, ready, move |()| {
        let worker = worker.clone();
        async move { worker.reconcile().await }
    });
}

struct Worker {
    controller: Controller,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    nodes: Informer<Node>,
}

impl Worker {
    async fn reconcile(&self) -> Result<Outcome> {
        let Some(service) = self.services.get(NAMESPACE, NAME) else { return Ok(Outcome::Done) };
        if service_pods::selector(&service).is_some() || meta::is_deleting(&service.metadata) {
            return Ok(Outcome::Done);
        }
        let existing = self.endpoints.get(NAMESPACE, NAME);
        let subsets = subsets(&service, &self.nodes.list());
        if existing.as_ref().map(|known| known.subsets.clone().unwrap_or_default()) == Some(subsets.clone()) {
            return Ok(Outcome::Done);
        }
        let metadata = match &existing {
            Some(known) => known.metadata.clone(),
            None => {
                // by this label `endpoints` removes them when the Service is gone
                let mut labels = meta::labels(&service.metadata).clone();
                labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
                ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(NAMESPACE.to_owned()),
                    labels: Some(labels),
                    ..Default::default()
                }
            }
        };
        let wanted = Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) };
        let api: Api<Endpoints> = self.controller.namespaced(NAMESPACE);
        let written = match &existing {
            Some(_) => api.replace(NAME, &PostParams::default(), &wanted).await,
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match written {
            Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) => Ok(Outcome::Done),
            other => other.during("writing the Endpoints of", "kube-system/kube-dns").map(|_| Outcome::Done),
        }
    }
}

fn address(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses
        .iter()
        .find(|known| known.type_ == "InternalIP" && !known.address.contains(':'))
        .map(|a| a.address.clone())
}

fn subsets(service: &Service, nodes: &[Arc<Node>]) -> Vec<EndpointSubset> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default().into_iter();
    let ports = ports.map(|port| EndpointPort {
        name: port.name,
        port: port.port,
        protocol: Some(port.protocol.unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol,
    });
    // in one order, so that equal sets are equal
    let mut ports: Vec<_> = ports.collect();
    ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
    let mut known: Vec<_> =
        nodes.iter().filter_map(|node| Some((!is_ready(node), address(node)?, node.name_any()))).collect();
    known.sort();
    known.truncate(CAPACITY);
    if known.is_empty() || ports.is_empty() {
        return Vec::new();
    }
    let (down, up): (Vec<_>, Vec<_>) = known.into_iter().partition(|(down, ..)| *down);
    let addresses = |nodes: Vec<(bool, String, String)>| {
        let list =
            nodes.into_iter().map(|(_, ip, node)| EndpointAddress { ip, node_name: Some(node), ..Default::default() });
        let list: Vec<_> = list.collect();
        (!list.is_empty()).then_some(list)
    };
    vec![EndpointSubset { addresses: addresses(up), not_ready_addresses: addresses(down), ports: Some(ports) }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, ip: &str, ready: &str) -> Arc<Node> {
        let value = json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}],
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        Arc::new(serde_json::from_value(value).expect("a node"))
    }

    #[test]
    fn ready_nodes_answer() {
        let service = json!({"metadata": {"name": NAME}, "spec": {"ports": [
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}});
        let service: Service = serde_json::from_value(service).expect("a Service");
        let nodes = [node("b", "10.0.0.2", "True"), node("a", "10.0.0.1", "True"), node("c", "10.0.0.3", "Unknown")];
        let found = serde_json::to_value(subsets(&service, &nodes)).expect("plain data");
        let expected = json!([{
            "addresses": [{"ip": "10.0.0.1", "nodeName": "a"}, {"ip": "10.0.0.2", "nodeName": "b"}],
            "notReadyAddresses": [{"ip": "10.0.0.3", "nodeName": "c"}],
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}],
        }]);
        assert_eq!(found, expected);
        assert!(subsets(&service, &[]).is_empty());
    }
}
