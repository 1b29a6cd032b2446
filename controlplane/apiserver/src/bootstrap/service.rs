//! The Service `default/kubernetes` and its endpoints: how pods find the servers.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{ensure as ensure_object, servers};
use crate::admit::Cluster;
use crate::error::Result;
use crate::server::Api;

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";
const NETWORKING: &str = "networking.k8s.io";

/// Makes them.
pub async fn ensure(api: &Api) -> Result<()> {
    ensure_object(api, NETWORKING, "servicecidrs", network(api)).await?;
    tokio::try_join!(ensure_object(api, "", "services", service(api)), ensure_dns(api), follow_servers(api)).map(drop)
}

/// What is kept there while the server runs, by group and plural: all but the Service for DNS, which is
/// no server's own, and the endpoints, which follow the servers.
pub fn kept(api: &Api) -> [(&'static str, &'static str, Value); 2] {
    [(NETWORKING, "servicecidrs", network(api)), ("", "services", service(api))]
}

/// Points the endpoints at all servers that there are, this one among them.
pub async fn follow_servers(api: &Api) -> Result<()> {
    point_at(api, &servers::renew(api).await?).await
}

/// Points them at the others. The last server leaves them as they are: it may come back.
pub async fn leave(api: &Api) -> Result<()> {
    match servers::leave(api).await?.as_slice() {
        [] => Ok(()),
        others => point_at(api, others).await,
    }
}

async fn point_at(api: &Api, servers: &[IpAddr]) -> Result<()> {
    tokio::try_join!(
        point(api, "", "endpoints", endpoints(servers, api.config.port)),
        point(api, "discovery.k8s.io", "endpointslices", slice(servers, api.config.port)),
    )
    .map(drop)
}

fn service(api: &Api) -> Value {
    let cluster_ip = api.config.service_address.to_string();
    json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": api.config.port}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// The ServiceCIDR `kubernetes`: where addresses come from until others are added.
fn network(api: &Api) -> Value {
    json!({
        "metadata": {"name": NAME},
        "spec": {"cidrs": [api.config.service_cidr]},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready",
            "lastTransitionTime": api::scalar::time(Timestamp::now()),
        }]},
    })
}

/// `kube-system/kube-dns`, where people and charts look for the cluster's DNS address. Every node
/// answers on it itself, so it leads to no pods, and the controllers list the nodes as its endpoints;
/// having it keeps the address from being given away.
async fn ensure_dns(api: &Api) -> Result<()> {
    let cluster_ip = api.config.dns_address.to_string();
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    ensure_object(api, "", "services", json!({
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
        "status": {"loadBalancer": {}},
    })).await
}

fn endpoints(servers: &[IpAddr], port: u16) -> Value {
    let addresses: Vec<Value> = servers.iter().map(|address| json!({"ip": address})).collect();
    json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": addresses,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    })
}

fn slice(servers: &[IpAddr], port: u16) -> Value {
    let endpoint = |address| json!({"addresses": [address], "conditions": {"ready": true}});
    json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": if servers.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" },
        "endpoints": servers.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

async fn point(api: &Api, group: &str, plural: &str, wanted: Value) -> Result<()> {
    ensure_object(api, group, plural, wanted.clone()).await?;
    let Some(held) = api.get_live(group, plural, NAMESPACE, NAME).await? else { return Ok(()) };
    let mut changed = (*held).clone();
    for key in ["subsets", "endpoints", "ports", "addressType"] {
        if !wanted[key].is_null() {
            changed[key] = wanted[key].clone();
        }
    }
    if changed == *held {
        return Ok(());
    }
    match api.update(group, plural, "", changed).await {
        Err(error) if error.is_conflict() => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}
