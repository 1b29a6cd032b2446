use k8s_openapi::api::core::v1::{ServicePort as Port, ServiceStatus};
use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;

fn node() -> NodeView {
    NodeView { name: "here".into(), zone: Some("z1".into()), served_here: Some("10.43.0.10".parse().unwrap()) }
}

fn service(name: &str, ip: &str, change: impl FnOnce(&mut ServiceSpec)) -> Arc<Service> {
    let mut spec = ServiceSpec {
        cluster_ip: Some(ip.into()),
        type_: Some("ClusterIP".into()),
        ports: Some(vec![Port { port: 80, protocol: Some("TCP".into()), ..Port::default() }]),
        ..ServiceSpec::default()
    };
    change(&mut spec);
    Arc::new(Service {
        metadata: ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() },
        spec: Some(spec),
        status: Some(ServiceStatus::default()),
    })
}

struct Ep {
    address: &'static str,
    node: &'static str,
    ready: bool,
    serving: bool,
    terminating: bool,
    hints: Option<EndpointHints>,
}

fn ep(address: &'static str, node: &'static str) -> Ep {
    Ep { address, node, ready: true, serving: true, terminating: false, hints: None }
}

fn slice(service: &str, endpoints: Vec<Ep>) -> Arc<EndpointSlice> {
    let endpoints = endpoints.into_iter().map(|each| SliceEndpoint {
        addresses: vec![each.address.into()],
        node_name: Some(each.node.into()),
        conditions: Some(EndpointConditions {
            ready: Some(each.ready),
            serving: Some(each.serving),
            terminating: Some(each.terminating),
        }),
        hints: each.hints,
        ..SliceEndpoint::default()
    });
    Arc::new(EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{service}-abc")),
            namespace: Some("default".into()),
            labels: Some([(SERVICE_LABEL.to_owned(), service.to_owned())].into()),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        endpoints: Some(endpoints.collect()),
        ports: Some(vec![EndpointPort { name: Some(String::new()), port: Some(8080), ..EndpointPort::default() }]),
    })
}

fn only(service: Arc<Service>, endpoints: Vec<Ep>) -> ServicePort {
    let name = service.metadata.name.clone().unwrap();
    let rules = build(&[service], &[slice(&name, endpoints)], &node());
    rules.ports.into_values().next().unwrap()
}

fn addresses(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn services_that_are_not_redirected() {
    let cases = [
        service("headless", "None", |_| {}),
        service("external", "", |spec| spec.type_ = Some("ExternalName".into())),
        service("dns", "10.43.0.10", |_| {}),
    ];
    for service in cases {
        assert!(build(std::slice::from_ref(&service), &[], &node()).ports.is_empty(), "{:?}", service.metadata.name);
    }
    for (label, value) in [(PROXY_NAME_LABEL, "x"), (HEADLESS_LABEL, "")] {
        let mut other = service("other", "10.43.0.1", |_| {});
        Arc::make_mut(&mut other).metadata.labels = Some([(label.to_owned(), value.to_owned())].into());
        assert!(build(&[other], &[], &node()).ports.is_empty(), "{label}");
    }
}

#[test]
fn terminating_endpoints_serve_only_when_nothing_else_does() {
    let leaving = |address| Ep { ready: false, terminating: true, ..ep(address, "here") };
    let dead = |address| Ep { ready: false, serving: false, terminating: true, ..ep(address, "here") };
    let unready = |address| Ep { ready: false, serving: false, ..ep(address, "here") };
    let cases: Vec<(Vec<Ep>, &[&str])> = vec![
        (vec![ep("10.42.0.1", "here"), leaving("10.42.0.2")], &["10.42.0.1"]),
        (vec![leaving("10.42.0.2"), dead("10.42.0.3")], &["10.42.0.2"]),
        (vec![unready("10.42.0.4"), dead("10.42.0.3")], &[]),
    ];
    for (endpoints, expected) in cases {
        let port = only(service("web", "10.43.0.1", |_| {}), endpoints);
        assert_eq!(addresses(&port.cluster_endpoints), expected);
        assert_eq!(port.usable_elsewhere, !expected.is_empty());
    }
}

#[test]
fn local_policies_keep_to_this_node() {
    let endpoints = || vec![ep("10.42.0.1", "here"), ep("10.42.1.1", "there")];
    let port =
        only(service("web", "10.43.0.1", |spec| spec.internal_traffic_policy = Some("Local".into())), endpoints());
    assert_eq!(addresses(port.internal_endpoints()), ["10.42.0.1"]);
    assert_eq!(addresses(port.outside_endpoints()), ["10.42.0.1", "10.42.1.1"]);
    let port =
        only(service("web", "10.43.0.1", |spec| spec.external_traffic_policy = Some("Local".into())), endpoints());
    assert_eq!(addresses(port.outside_endpoints()), ["10.42.0.1"]);
    assert_eq!(addresses(port.internal_endpoints()), ["10.42.0.1", "10.42.1.1"]);
}

#[test]
fn hints_count_when_all_have_them() {
    let zone =
        |name: &str| Some(EndpointHints { for_zones: Some(vec![ForZone { name: name.into() }]), for_nodes: None });
    let on = |name: &str| Some(EndpointHints { for_nodes: Some(vec![ForNode { name: name.into() }]), for_zones: None });
    let with = |address, hints| Ep { hints, ..ep(address, "there") };
    let cases: Vec<(Vec<Ep>, &[&str])> = vec![
        (vec![with("10.42.0.1", zone("z1")), with("10.42.0.2", zone("z2"))], &["10.42.0.1"]),
        (vec![with("10.42.0.1", zone("z1")), with("10.42.0.2", None)], &["10.42.0.1", "10.42.0.2"]),
        (vec![with("10.42.0.1", zone("z3")), with("10.42.0.2", zone("z2"))], &["10.42.0.1", "10.42.0.2"]),
        (vec![with("10.42.0.1", on("here")), with("10.42.0.2", on("there"))], &["10.42.0.1"]),
    ];
    for (endpoints, expected) in cases {
        let port = only(service("web", "10.43.0.1", |_| {}), endpoints);
        assert_eq!(addresses(&port.cluster_endpoints), expected);
    }
}

#[test]
fn an_address_in_two_slices_is_one_endpoint() {
    let unready = Ep { ready: false, serving: false, ..ep("10.42.0.1", "here") };
    let slices = [slice("web", vec![unready]), slice("web", vec![ep("10.42.0.1", "here")])];
    let rules = build(&[service("web", "10.43.0.1", |_| {})], &slices, &node());
    assert_eq!(rules.ports.values().next().unwrap().cluster_endpoints.len(), 1);
}

#[test]
fn health_checks_count_local_endpoints() {
    let balanced = service("web", "10.43.0.1", |spec| {
        spec.type_ = Some("LoadBalancer".into());
        spec.external_traffic_policy = Some("Local".into());
        spec.health_check_node_port = Some(31000);
    });
    let slices = [slice("web", vec![ep("10.42.0.1", "here"), ep("10.42.1.1", "there")])];
    let rules = build(&[balanced], &slices, &node());
    assert_eq!(rules.health_checks[&31000].local_endpoints, 1);
}

#[test]
fn a_health_check_fails_once_every_endpoint_here_terminates() {
    let balanced = service("web", "10.43.0.1", |spec| {
        spec.type_ = Some("LoadBalancer".into());
        spec.external_traffic_policy = Some("Local".into());
        spec.health_check_node_port = Some(31000);
    });
    let leaving = Ep { ready: false, terminating: true, ..ep("10.42.0.1", "here") };
    let rules = build(&[balanced], &[slice("web", vec![leaving, ep("10.42.1.1", "there")])], &node());
    assert_eq!(rules.health_checks[&31000].local_endpoints, 0);
    let port = rules.ports.into_values().next().unwrap();
    assert_eq!(addresses(&port.local_endpoints), ["10.42.0.1"], "what still comes is served");
}

#[test]
fn udp_flows_may_stay_with_endpoints_that_terminate_or_are_elsewhere() {
    let udp = service("dns", "10.43.0.1", |spec| {
        spec.ports = Some(vec![Port { port: 53, protocol: Some("UDP".into()), ..Port::default() }]);
        spec.internal_traffic_policy = Some("Local".into());
    });
    let leaving = Ep { ready: false, terminating: true, ..ep("10.42.0.2", "here") };
    let dead = Ep { ready: false, serving: false, terminating: true, ..ep("10.42.0.3", "here") };
    let port = only(udp, vec![ep("10.42.0.1", "here"), leaving, dead, ep("10.42.1.1", "there")]);
    assert_eq!(addresses(port.internal_endpoints()), ["10.42.0.1"]);
    assert_eq!(addresses(&port.serving_endpoints), ["10.42.0.1", "10.42.0.2", "10.42.1.1"]);
}

#[test]
fn affinity_has_kubernetes_default_time() {
    let port = only(service("web", "10.43.0.1", |spec| spec.session_affinity = Some("ClientIP".into())), vec![]);
    assert_eq!(port.affinity, Some(Duration::from_secs(10_800)));
}
