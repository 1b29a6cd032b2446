use k8s_openapi::api::core::v1::{Namespace, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

fn service(name: &str, ip: &str, change: impl FnOnce(&mut ServiceSpec)) -> Service {
    let port =
        ServicePort { name: Some("http".into()), port: 80, protocol: Some("TCP".into()), ..ServicePort::default() };
    let mut spec = ServiceSpec {
        cluster_ip: Some(ip.into()),
        cluster_ips: Some(vec![ip.into()]),
        type_: Some("ClusterIP".into()),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    change(&mut spec);
    Service { metadata: meta(name), spec: Some(spec), ..Service::default() }
}

fn slice(service: &str, endpoints: &[(&str, Option<&str>, bool)]) -> EndpointSlice {
    let endpoint = |(address, hostname, ready): &(&str, Option<&str>, bool)| Endpoint {
        addresses: vec![(*address).into()],
        hostname: hostname.map(str::to_owned),
        conditions: Some(EndpointConditions { ready: Some(*ready), ..EndpointConditions::default() }),
        ..Endpoint::default()
    };
    let mut metadata = meta(&format!("{service}-x1"));
    metadata.labels = Some([("kubernetes.io/service-name".to_owned(), service.to_owned())].into());
    EndpointSlice {
        metadata,
        address_type: "IPv4".into(),
        endpoints: Some(endpoints.iter().map(endpoint).collect()),
        ports: Some(vec![EndpointPort {
            name: Some("http".into()),
            port: Some(8080),
            protocol: Some("TCP".into()),
            ..EndpointPort::default()
        }]),
    }
}

fn namespace(name: &str) -> Namespace {
    Namespace { metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }, ..Namespace::default() }
}

fn index() -> Index {
    let mut index = Index::known();
    index.apply_namespace(&namespace("default"));
    index.apply_namespace(&namespace("bare"));
    index.apply_service(&service("web", "10.43.0.20", |_| {}));
    index.apply_slice(&slice("web", &[("10.42.0.7", None, true)]));
    index.apply_service(&service("db", "None", |_| {}));
    index.apply_slice(&slice(
        "db",
        &[("10.42.0.5", Some("db-0"), true), ("10.42.1.5", Some("db-1"), true), ("10.42.1.6", None, false)],
    ));
    index.apply_service(&service("empty", "None", |_| {}));
    index.apply_service(&service("early", "None", |spec| spec.publish_not_ready_addresses = Some(true)));
    index.apply_slice(&slice("early", &[("10.42.2.2", None, false)]));
    index.apply_service(&service("away", "", |spec| {
        spec.type_ = Some("ExternalName".into());
        spec.external_name = Some("www.example.com".into());
    }));
    index
}

fn show(records: &[Record]) -> Vec<String> {
    let mut shown: Vec<String> = records.iter().map(|record| record.data.to_string()).collect();
    shown.sort();
    shown
}

/// The records' data, sorted; or what kind of answer there is instead.
fn ask(name: &str, kind: RecordType) -> Vec<String> {
    let zone = Zone::new(&Config::default()).unwrap();
    let name = Name::from_ascii(name).unwrap();
    match zone.answer(&index(), &name, kind) {
        Answer::Found { answers, .. } => {
            assert!(answers.iter().all(|record| record.name.eq_case(&name)), "the asker's own name comes back");
            show(&answers)
        }
        Answer::Alias { target, .. } => vec![format!("alias {target}")],
        Answer::Missing => vec!["missing".into()],
        Answer::Forward => vec!["forward".into()],
        Answer::NotYet => vec!["not yet".into()],
    }
}

#[test]
fn names_of_services_endpoints_and_pods() {
    use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
    let cases: &[(&str, RecordType, &[&str])] = &[
        ("web.default.svc.cluster.local.", A, &["10.43.0.20"]),
        ("WEB.Default.svc.cluster.LOCAL.", A, &["10.43.0.20"]),
        ("web.default.svc.cluster.local.", AAAA, &[]),
        ("web.other.svc.cluster.local.", A, &["missing"]),
        ("nothing.default.svc.cluster.local.", A, &["missing"]),
        ("db.default.svc.cluster.local.", A, &["10.42.0.5", "10.42.1.5"]),
        ("db-1.db.default.svc.cluster.local.", A, &["10.42.1.5"]),
        ("db-9.db.default.svc.cluster.local.", A, &["missing"]),
        ("10-42-0-7.web.default.svc.cluster.local.", A, &["10.42.0.7"]),
        ("empty.default.svc.cluster.local.", A, &["missing"]),
        ("early.default.svc.cluster.local.", A, &["10.42.2.2"]),
        ("away.default.svc.cluster.local.", A, &["alias www.example.com."]),
        ("away.default.svc.cluster.local.", CNAME, &["www.example.com."]),
        ("_http._tcp.web.default.svc.cluster.local.", SRV, &["0 100 80 web.default.svc.cluster.local."]),
        ("_http._udp.web.default.svc.cluster.local.", SRV, &["missing"]),
        ("_http._tcp.web.default.svc.cluster.local.", A, &[]),
        ("_tcp.web.default.svc.cluster.local.", A, &[]),
        (
            "_http._tcp.db.default.svc.cluster.local.",
            SRV,
            &["0 50 8080 db-0.db.default.svc.cluster.local.", "0 50 8080 db-1.db.default.svc.cluster.local."],
        ),
        ("10-42-0-5.default.pod.cluster.local.", A, &["10.42.0.5"]),
        ("10-42-0-5.bare.pod.cluster.local.", A, &["10.42.0.5"]),
        ("10-42-0-5.nowhere.pod.cluster.local.", A, &["missing"]),
        ("no-address.default.pod.cluster.local.", A, &["missing"]),
        ("default.svc.cluster.local.", A, &[]),
        ("bare.svc.cluster.local.", A, &[]),
        ("bare.pod.cluster.local.", A, &[]),
        ("nowhere.svc.cluster.local.", A, &["missing"]),
        ("svc.cluster.local.", A, &[]),
        ("cluster.local.", A, &[]),
        ("cluster.local.", NS, &["ns.dns.cluster.local."]),
        ("ns.dns.cluster.local.", A, &["10.43.0.10"]),
        ("dns-version.cluster.local.", TXT, &["1.1.0"]),
        ("a.b.c.d.e.f.cluster.local.", A, &["missing"]),
        ("20.0.43.10.in-addr.arpa.", PTR, &["web.default.svc.cluster.local."]),
        ("5.0.42.10.in-addr.arpa.", PTR, &["db-0.db.default.svc.cluster.local."]),
        ("7.0.42.10.in-addr.arpa.", PTR, &["10-42-0-7.web.default.svc.cluster.local."]),
        ("10.0.43.10.in-addr.arpa.", PTR, &["ns.dns.cluster.local."]),
        ("99.0.42.10.in-addr.arpa.", PTR, &["missing"]),
        ("1.2.0.192.in-addr.arpa.", PTR, &["forward"]),
        ("www.example.com.", A, &["forward"]),
        ("local.", A, &["forward"]),
    ];
    for (name, kind, expected) in cases {
        assert_eq!(ask(name, *kind), *expected, "{name} {kind}");
    }
    assert_eq!(ask("cluster.local.", SOA).len(), 1);
}

#[test]
fn srv_answers_bring_the_addresses_along() {
    let zone = Zone::new(&Config::default()).unwrap();
    let name = Name::from_ascii("_http._tcp.db.default.svc.cluster.local.").unwrap();
    let Answer::Found { additionals, .. } = zone.answer(&index(), &name, RecordType::SRV) else { panic!() };
    assert_eq!(show(&additionals), ["10.42.0.5", "10.42.1.5"]);
}

#[test]
fn names_go_with_their_objects() {
    let zone = Zone::new(&Config::default()).unwrap();
    let mut index = index();
    let ask = |index: &Index, name: &str| zone.answer(index, &Name::from_ascii(name).unwrap(), RecordType::PTR);
    index.remove_slice(&slice("db", &[]));
    assert_eq!(ask(&index, "5.0.42.10.in-addr.arpa."), Answer::Missing);
    index.remove_service(&service("web", "10.43.0.20", |_| {}));
    index.remove_slice(&slice("web", &[]));
    assert_eq!(ask(&index, "20.0.43.10.in-addr.arpa."), Answer::Missing);
    for name in ["db", "empty", "early", "away"] {
        index.remove_service(&service(name, "None", |_| {}));
    }
    assert!(index.has_namespace("default"), "a namespace outlives its Services");
    index.remove_namespace(&namespace("default"));
    assert!(!index.has_namespace("default"));
}

#[test]
fn endpoints_leave_the_service_that_their_slice_left() {
    let zone = Zone::new(&Config::default()).unwrap();
    let mut index = index();
    let before = slice("web", &[("10.42.0.7", None, true)]);
    let mut after = before.clone();
    after.metadata.labels = Some([("kubernetes.io/service-name".to_owned(), "db".to_owned())].into());
    index.change_slice(Some(&before), Some(&after));
    let name = Name::from_ascii("7.0.42.10.in-addr.arpa.").unwrap();
    let Answer::Found { answers, .. } = zone.answer(&index, &name, RecordType::PTR) else { panic!() };
    assert_eq!(show(&answers), ["10-42-0-7.db.default.svc.cluster.local."]);
}

#[test]
fn nothing_is_denied_before_the_objects_are_known() {
    let zone = Zone::new(&Config::default()).unwrap();
    let index = Index::default();
    let name = Name::from_ascii("web.default.svc.cluster.local.").unwrap();
    assert_eq!(zone.answer(&index, &name, RecordType::A), Answer::NotYet);
    let outside = Name::from_ascii("www.example.com.").unwrap();
    assert_eq!(zone.answer(&index, &outside, RecordType::A), Answer::Forward);
}
