//! Where a request for a node, a pod or a Service leads.

use std::net::IpAddr;

use http::HeaderMap;
use serde_json::{Value, json};

use super::dial::Security;
use crate::admit::Cluster;
use crate::error::{ApiError, Result};
use crate::http::info::RequestInfo;
use crate::http::pipeline::Asked;
use crate::http::query::Query;
use crate::server::Api;

/// An address and what to ask for there.
#[derive(Debug, Clone)]
pub struct Target {
    pub security: Security,
    /// Its complaints become `Status` objects.
    pub is_kubelet_call: bool,
    pub address: String,
    pub port: u16,
    /// For the `Host` header, and for people.
    pub host: String,
    /// The client's `Host` is passed on instead.
    pub keeps_host: bool,
    /// Path and query.
    pub path: String,
    pub takes_body: bool,
    /// More headers than the client's.
    pub headers: HeaderMap,
}

impl Target {
    /// A request as it is, to another server.
    pub fn passing(security: Security, address: String, port: u16, path: String) -> Self {
        Self {
            security,
            is_kubelet_call: false,
            host: host(&address, port),
            keeps_host: false,
            address,
            port,
            path,
            takes_body: true,
            headers: HeaderMap::new(),
        }
    }
}

/// What a request opens its connection with, as admission sees it: `PodExecOptions` and so on. What is not said is
/// left out, as Go's encoder leaves it.
pub fn options(info: &RequestInfo, query: &Query) -> Result<Value> {
    let kind = match (info.resource.as_str(), info.subresource.as_str()) {
        (_, "exec") => "PodExecOptions",
        (_, "attach") => "PodAttachOptions",
        (_, "portforward") => "PodPortForwardOptions",
        ("pods", _) => "PodProxyOptions",
        ("services", _) => "ServiceProxyOptions",
        _ => "NodeProxyOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    match kind {
        "PodExecOptions" | "PodAttachOptions" => {
            for key in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(key) {
                    options[key] = true.into();
                }
            }
            if !query.text("container").is_empty() {
                options["container"] = query.text("container").into();
            }
            if kind == "PodExecOptions" {
                let command: Vec<&str> = query.all("command").collect();
                options["command"] = if command.is_empty() { Value::Null } else { command.into() };
            }
        }
        "PodPortForwardOptions" => {
            let number = |text: &str| {
                let why = || format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
                text.parse::<i32>().map_err(|_| ApiError::bad_request(why()))
            };
            let ports = query.all("ports").map(number).collect::<Result<Vec<i32>>>()?;
            if !ports.is_empty() {
                options["ports"] = ports.into();
            }
        }
        _ if info.rest.is_empty() => {}
        _ => options["path"] = info.rest.as_str().into(),
    }
    Ok(options)
}

/// `options`: as admission left them; a log has none.
pub async fn of(asked: &Asked, options: &Value) -> Result<Target> {
    let info = &asked.info;
    match (info.resource.as_str(), info.subresource.as_str()) {
        ("pods", "proxy") => pod_proxy(asked, options).await,
        ("services", _) => service_proxy(asked, options).await,
        ("nodes", _) => node_proxy(asked, options).await,
        _ => kubelet_call(asked, options).await,
    }
}

/// Scheme, name and port of `name`, `name:port` or `scheme:name:port`; `kind` for those who said
/// something else.
fn split_name<'a>(text: &'a str, kind: &str) -> Result<(&'a str, &'a str, &'a str)> {
    let parts: Vec<&str> = text.split(':').collect();
    let split = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme @ ("http" | "https" | ""), name, port] => (*scheme, *name, *port),
        _ => ("", "", ""),
    };
    if split.1.is_empty() { Err(ApiError::bad_request(format!("invalid {kind} request {text:?}"))) } else { Ok(split) }
}

/// What is asked of the proxied server.
fn proxied_path(asked: &Asked, options: &Value) -> String {
    let path = options["path"].as_str().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    match asked.parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

async fn find(api: &Api, plural: &str, namespace: &str, name: &str) -> Result<std::sync::Arc<Value>> {
    api.get("", plural, namespace, name).await?.ok_or_else(|| ApiError::not_found("", plural, name))
}

/// Address and port of a node's kubelet.
pub async fn kubelet(api: &Api, node: &str) -> Result<(String, u16)> {
    let node_object = find(api, "nodes", "", node).await?;
    let addresses = node_object["status"]["addresses"].as_array();
    let of_type = |wanted: &str| {
        addresses
            .into_iter()
            .flatten()
            .find(|address| address["type"] == wanted)
            .and_then(|address| address["address"].as_str())
    };
    let address = ["InternalIP", "ExternalIP", "Hostname"].iter().find_map(|wanted| of_type(wanted));
    let Some(address) = address else {
        return Err(ApiError::internal(format!("no preferred addresses found on node {node}; known types: []")));
    };
    let port = node_object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    Ok((address.to_owned(), port.and_then(|port| u16::try_from(port).ok()).unwrap_or(api::defaults::KUBELET_PORT)))
}

fn host(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

async fn kubelet_call(asked: &Asked, options: &Value) -> Result<Target> {
    let (api, info) = (&asked.api, &asked.info);
    let pod = find(api, "pods", &info.namespace, &info.name).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let is_log = info.subresource == "log";
    let asked_container =
        if is_log { asked.query.text("container") } else { options["container"].as_str().unwrap_or_default() };
    let container =
        if info.subresource == "portforward" { String::new() } else { container_of(&pod, asked_container)? };
    if node.is_empty() {
        if is_log {
            // Nothing has run yet: there is nothing to read.
            return Err(ApiError::bad_request(format!(
                "container \"{container}\" in pod \"{}\" is not available: the pod is not assigned to a node",
                info.name
            )));
        }
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", info.name)));
    }
    let (address, port) = kubelet(api, node).await?;
    let path = if is_log {
        log_path(&info.namespace, &info.name, &container, &asked.query)?
    } else {
        stream_path(&info.subresource, &info.namespace, &info.name, &container, options)
    };
    let target = Target::passing(Security::Kubelet, address, port, path);
    Ok(Target { is_kubelet_call: true, takes_body: false, ..target })
}

/// The container asked for, or the only one.
fn container_of(pod: &Value, asked: &str) -> Result<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names = |field: &str| -> Vec<&str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
    };
    let (main, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !asked.is_empty() {
        if main.contains(&asked) || init.contains(&asked) || ephemeral.contains(&asked) {
            return Ok(asked.to_owned());
        }
        return Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}")));
    }
    if let [only] = main.as_slice() {
        return Ok((*only).to_owned());
    }
    let mut message = format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
    if !init.is_empty() {
        message += &format!(" or one of the init containers: [{}]", init.join(" "));
    }
    Err(ApiError::bad_request(message))
}

/// The kubelet's path for a container's log.
fn log_path(namespace: &str, pod: &str, container: &str, query: &Query) -> Result<String> {
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        return Err(ApiError::unprocessable(format!(
            "PodLogOptions \"{pod}\" is invalid: : Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
        )));
    }
    // `PodLogsQuerySplitStreams` is off.
    if query.get("stream").is_some() {
        return Err(ApiError::unprocessable(format!(
            "PodLogOptions \"{pod}\" is invalid: stream: Forbidden: may not be specified"
        )));
    }
    for key in ["sinceSeconds", "tailLines", "limitBytes"] {
        if query.number(key)?.is_some_and(|number| number < 0 || (number == 0 && key != "tailLines")) {
            let least =
                if key == "tailLines" { "must be greater than or equal to 0" } else { "must be greater than 0" };
            return Err(ApiError::unprocessable(format!(
                "PodLogOptions \"{pod}\" is invalid: {key}: Invalid value: {}: {least}",
                query.text(key)
            )));
        }
    }
    let mut pairs = Vec::new();
    for key in ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes"] {
        pairs.extend(query.all(key).map(|value| (key.to_owned(), value.to_owned())));
    }
    Ok(with_query(format!("/containerLogs/{namespace}/{pod}/{container}"), &pairs))
}

/// The kubelet's path for a stream that is opened with `options`.
fn stream_path(subresource: &str, namespace: &str, pod: &str, container: &str, options: &Value) -> String {
    let all = |key: &str| options[key].as_array().into_iter().flatten();
    let mut pairs: Vec<(String, String)> = Vec::new();
    if subresource == "portforward" {
        pairs.extend(all("ports").map(|port| ("port".to_owned(), port.to_string())));
        return with_query(format!("/portForward/{namespace}/{pod}"), &pairs);
    }
    let words = all("command").filter_map(Value::as_str);
    pairs.extend(words.map(|word| ("command".to_owned(), word.to_owned())));
    for (key, short) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if options[key] == true {
            pairs.push((short.to_owned(), "1".to_owned()));
        }
    }
    with_query(format!("/{subresource}/{namespace}/{pod}/{container}"), &pairs)
}

fn with_query(path: String, pairs: &[(String, String)]) -> String {
    if pairs.is_empty() { path } else { format!("{path}?{}", encode(pairs)) }
}

fn encode(pairs: &[(String, String)]) -> String {
    let escape = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect()
    };
    pairs.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect::<Vec<_>>().join("&")
}

async fn node_proxy(asked: &Asked, options: &Value) -> Result<Target> {
    let (scheme, name, port) = split_name(&asked.info.name, "node")?;
    let (address, own_port) = kubelet(&asked.api, name).await?;
    let port = if port.is_empty() { own_port } else { port_number(port)? };
    // The kubelet's own port is known to be its own, whatever scheme is named.
    if port == own_port {
        return Ok(direct(asked, options, Security::Kubelet, &address, port));
    }
    if !asked.api.config.proxies_to_itself {
        check_host(&address).await?;
    }
    Ok(direct(asked, options, security(scheme), &address, port))
}

/// Who may write a node's addresses is not to reach by way of this server what listens for its machine alone.
async fn check_host(host: &str) -> Result<()> {
    let found = tokio::net::lookup_host((host, 0)).await;
    let found = found.map_err(|error| ApiError::bad_request(format!("lookup {host}: {error}")))?;
    let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    if addresses.is_empty() {
        return Err(ApiError::bad_request("no addresses for hostname"));
    }
    if !addresses.into_iter().all(is_global_unicast) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    Ok(())
}

fn port_number(text: &str) -> Result<u16> {
    text.parse().map_err(|_| ApiError::bad_request(format!("{text:?} is no port number")))
}

async fn pod_proxy(asked: &Asked, options: &Value) -> Result<Target> {
    let (scheme, name, port) = split_name(&asked.info.name, "pod")?;
    let pod = find(&asked.api, "pods", &asked.info.namespace, name).await?;
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    if !address.parse().is_ok_and(is_global_unicast) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    let first = || {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        containers.filter_map(|container| container["ports"][0]["containerPort"].as_u64()).next()
    };
    let port = if port.is_empty() {
        first().and_then(|port| u16::try_from(port).ok()).unwrap_or(if scheme == "https" { 443 } else { 80 })
    } else {
        port_number(port)?
    };
    Ok(direct(asked, options, security(scheme), address, port))
}

/// Not of this machine, of the link or of a group.
fn is_global_unicast(address: IpAddr) -> bool {
    // Also when it is written as `::ffff:127.0.0.1`.
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

fn security(scheme: &str) -> Security {
    if scheme == "https" { Security::Unverified } else { Security::Plain }
}

fn direct(asked: &Asked, options: &Value, security: Security, address: &str, port: u16) -> Target {
    let mut headers = HeaderMap::new();
    if let Ok(path) = asked.info.path.parse() {
        headers.insert("x-forwarded-uri", path);
    }
    Target {
        headers,
        keeps_host: true,
        ..Target::passing(security, address.to_owned(), port, proxied_path(asked, options))
    }
}

async fn service_proxy(asked: &Asked, options: &Value) -> Result<Target> {
    let (scheme, name, port) = split_name(&asked.info.name, "service")?;
    let namespace = &asked.info.namespace;
    let service = find(&asked.api, "services", namespace, name).await?;
    let ports = || service["spec"]["ports"].as_array().into_iter().flatten();
    if let Ok(number) = port.parse::<u64>()
        && !ports().any(|one| one["port"].as_u64() == Some(number))
    {
        return Err(ApiError::unavailable(format!("no service port {number} found for service {name:?}")));
    }
    let Some(Endpoint { address, port, .. }) = ready_pod(&*asked.api, &service, namespace, port).await? else {
        return Err(ApiError::unavailable(format!("no endpoints available for service {:?}", asked.info.name)));
    };
    Ok(direct(asked, options, security(scheme), &address, port))
}

/// An address that a Service leads to.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    address: String,
    port: u16,
    /// The name of the pod behind it; empty if none is named.
    pod: String,
}

async fn ready_endpoints(cluster: &dyn Cluster, service: &Value, namespace: &str, port: &str) -> Result<Vec<Endpoint>> {
    let slices = cluster.list("discovery.k8s.io", "endpointslices", namespace).await?;
    let slices: Vec<&Value> = slices.iter().map(|slice| &**slice).collect();
    Ok(endpoints_of(service, &slices, port))
}

/// Takes one out.
fn any(ready: &mut Vec<Endpoint>) -> Option<Endpoint> {
    (!ready.is_empty()).then(|| ready.swap_remove(rand::random_range(0..ready.len())))
}

/// A ready endpoint that is a pod of the namespace, as upstream insists on: who may write endpoints is not to
/// reach by way of this server whatever it reaches.
async fn ready_pod(cluster: &dyn Cluster, service: &Value, namespace: &str, port: &str) -> Result<Option<Endpoint>> {
    let mut ready = ready_endpoints(cluster, service, namespace, port).await?;
    ready.retain(|endpoint| !endpoint.pod.is_empty());
    while let Some(endpoint) = any(&mut ready) {
        let pod = cluster.get("", "pods", namespace, &endpoint.pod).await?;
        if pod.is_some_and(|pod| has_address(&pod, &endpoint.address)) {
            return Ok(Some(endpoint));
        }
    }
    Ok(None)
}

fn has_address(pod: &Value, address: &str) -> bool {
    let all = pod["status"]["podIPs"].as_array().into_iter().flatten().map(|one| &one["ip"]);
    all.chain([&pod["status"]["podIP"]]).any(|own| own == address)
}

/// Where a Service's port is answered: one of its ready endpoints, so that no Service network is
/// needed on this machine. The error is what a client or a condition may say.
pub async fn resolve(
    cluster: &dyn Cluster,
    namespace: &str,
    name: &str,
    port: u64,
) -> std::result::Result<(String, u16), String> {
    let failed = |error: ApiError| error.message().to_owned();
    let service = cluster.get("", "services", namespace, name).await.map_err(failed)?;
    let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
    if service["spec"]["type"] == "ExternalName" {
        let port = u16::try_from(port).map_err(|_| format!("{port} is no port"))?;
        return Ok((service["spec"]["externalName"].as_str().unwrap_or_default().to_owned(), port));
    }
    let mut ready = ready_endpoints(cluster, &service, namespace, &port.to_string()).await.map_err(failed)?;
    let found = any(&mut ready).ok_or_else(|| format!("no endpoints available for service {name:?}"))?;
    Ok((found.address, found.port))
}

/// The ready endpoints of the Service's port (by name or number; empty: its only one). Pure.
fn endpoints_of(service: &Value, slices: &[&Value], wanted: &str) -> Vec<Endpoint> {
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let port = match wanted {
        "" => ports.next(),
        wanted => ports.find(|port| {
            port["name"] == wanted || wanted.parse::<u64>().is_ok_and(|number| port["port"].as_u64() == Some(number))
        }),
    };
    let Some(port) = port else { return Vec::new() };
    let port_name = port["name"].as_str().unwrap_or_default();
    let list = |value: &'_ Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for slice in slices {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != service["metadata"]["name"] {
            continue;
        }
        let ports = list(slice, "ports");
        let number = ports.iter().find(|port| port["name"].as_str().unwrap_or_default() == port_name);
        let Some(number) = number.and_then(|port| port["port"].as_u64()).and_then(|port| u16::try_from(port).ok())
        else {
            continue;
        };
        let endpoints = list(slice, "endpoints").into_iter();
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true));
        found.extend(ready.filter_map(|endpoint| {
            let target = &endpoint["targetRef"];
            let pod = if target["kind"] == "Pod" { target["name"].as_str().unwrap_or_default() } else { "" };
            Some(Endpoint { address: endpoint["addresses"][0].as_str()?.to_owned(), port: number, pod: pod.to_owned() })
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;

    #[test]
    fn kubelet_paths_carry_the_options() {
        let of = |subresource: &str, query: &str| {
            let (resource, subresource) = ("pods".to_owned(), subresource.to_owned());
            options(&RequestInfo { resource, subresource, ..RequestInfo::default() }, &Query::parse(query))
        };
        let exec = of("exec", "container=c&stdin=true&stdout=true&tty=false&command=sh&command=-c&command=a%20b");
        let mut exec = exec.unwrap();
        assert_eq!(
            exec,
            json!({"kind": "PodExecOptions", "apiVersion": "v1", "container": "c", "stdin": true, "stdout": true,
                "command": ["sh", "-c", "a b"]})
        );
        let path = |options: &Value| stream_path("exec", "ns", "p", "c", options);
        assert_eq!(path(&exec), "/exec/ns/p/c?command=sh&command=-c&command=a%20b&input=1&output=1");
        // What a webhook makes of it counts.
        exec["command"] = json!(["true"]);
        exec["stdin"] = false.into();
        assert_eq!(path(&exec), "/exec/ns/p/c?command=true&output=1");
        let forward = of("portforward", "ports=80").unwrap();
        assert_eq!(forward, json!({"kind": "PodPortForwardOptions", "apiVersion": "v1", "ports": [80]}));
        assert_eq!(stream_path("portforward", "ns", "p", "", &forward), "/portForward/ns/p?port=80");
        let why = of("portforward", "ports=web").unwrap_err();
        assert_eq!(why.message(), "strconv.ParseInt: parsing \"web\": invalid syntax");
        let log = |query: &str| log_path("ns", "p", "c", &Query::parse(query));
        assert_eq!(
            log("follow=true&tailLines=0&container=c&pretty=1").unwrap(),
            "/containerLogs/ns/p/c?follow=true&tailLines=0"
        );
        assert!(log("tailLines=-1").is_err());
        assert!(log("stream=Stdout").is_err());
    }

    #[test]
    fn the_container_must_be_one_of_the_pods() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container_of(&pod, "i").unwrap(), "i");
        assert_eq!(container_of(&pod, "x").unwrap_err().message(), "container x is not valid for pod p");
        assert_eq!(
            container_of(&pod, "").unwrap_err().message(),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }

    #[test]
    fn services_lead_to_a_ready_endpoint() {
        let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
        let slice = json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}, {"addresses": ["10.0.0.2"], "conditions": {"ready": true}}]});
        let other = Endpoint { address: "10.0.0.2".to_owned(), port: 8080, pod: String::new() };
        for wanted in ["", "http", "80"] {
            assert_eq!(endpoints_of(&service, &[&slice], wanted), std::slice::from_ref(&other), "{wanted}");
        }
        assert_eq!(endpoints_of(&service, &[&slice, &json!({})], "https"), []);
    }

    #[tokio::test]
    async fn the_proxy_of_a_service_leads_to_pods_alone() {
        let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"podIP": "10.42.0.7", "podIPs": [{"ip": "10.42.0.7"}]}});
        let target = |name: &str| json!({"kind": "Pod", "namespace": "n", "name": name});
        for (address, target, reached) in [
            ("10.42.0.7", target("p"), true),
            ("192.168.0.1", target("p"), false),
            ("10.42.0.7", target("gone"), false),
            ("10.42.0.7", Value::Null, false),
        ] {
            let slice = json!({"metadata": {"name": "web-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"port": 8080}], "endpoints": [{"addresses": [address], "targetRef": target}]});
            let cluster =
                Fixed::with(&[("", "pods", pod.clone()), ("discovery.k8s.io", "endpointslices", slice.clone())]);
            let found = ready_pod(&cluster, &service, "n", "80").await.unwrap();
            assert_eq!(found.is_some(), reached, "{slice}");
        }
    }

    #[test]
    fn names_may_say_scheme_and_port() {
        for (text, split) in [
            ("web", Some(("", "web", ""))),
            ("web:http", Some(("", "web", "http"))),
            ("https:web:443", Some(("https", "web", "443"))),
            (":web:", Some(("", "web", ""))),
            ("ftp:web:21", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(split_name(text, "service").ok(), split, "{text}");
        }
        assert_eq!(split_name("a:b:c:d", "service").unwrap_err().message(), r#"invalid service request "a:b:c:d""#);
    }

    #[test]
    fn pods_are_reached_by_addresses_of_the_network_only() {
        for (address, allowed) in
            [("10.42.0.7", true), ("127.0.0.1", false), ("169.254.169.254", false), ("fd00::1", true), ("::1", false)]
        {
            assert_eq!(is_global_unicast(address.parse().unwrap()), allowed, "{address}");
        }
        assert!(!is_global_unicast("::ffff:127.0.0.1".parse().unwrap()));
    }
}
