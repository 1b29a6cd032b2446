//! The Service `default/kubernetes` and its endpoints: how pods find this server.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::ensure as ensure_object;
use crate::admit::Cluster;
use crate::error::Result;
use crate::server::Api;

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";

/// Makes them, and points them at this server's address.
pub async fn ensure(api: &Api) -> Result<()> {
    ensure_network(api).await?;
    tokio::try_join!(
        ensure_service(api),
        ensure_dns(api),
        point(api, "", "endpoints", endpoints(api)),
        point(api, "discovery.k8s.io", "endpointslices", slice(api)),
    )
    .map(drop)
}

async fn ensure_service(api: &Api) -> Result<()> {
    let cluster_ip = api.config.service_address.to_string();
    ensure_object(api, "", "services", json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": api.config.port}],
        },
        "status": {"loadBalancer": {}},
    })).await
}

/// The ServiceCIDR `kubernetes`: where addresses come from until others are added.
async fn ensure_network(api: &Api) -> Result<()> {
    ensure_object(
        api,
        "networking.k8s.io",
        "servicecidrs",
        json!({
            "metadata": {"name": NAME},
            "spec": {"cidrs": [api.config.service_cidr]},
            "status": {"conditions": [{
                "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready",
                "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]},
        }),
    )
    .await
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

fn endpoints(api: &Api) -> Value {
    json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": [{"ip": api.config.advertise_address.to_string()}],
            "ports": [{"name": "https", "port": api.config.port, "protocol": "TCP"}],
        }],
    })
}

fn slice(api: &Api) -> Value {
    let address = api.config.advertise_address;
    json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": api.config.port, "protocol": "TCP"}],
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
