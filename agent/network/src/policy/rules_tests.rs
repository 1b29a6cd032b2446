//! Policies as YAML-like JSON, packets walked through the table that they make.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;

fn pod(name: &str, namespace: &str, node: &str, ip: &str, labels: Value) -> Arc<Pod> {
    let pod = json!({
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "podIP": ip, "phase": "Running" },
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn views(pods: &[Arc<Pod>]) -> Vec<PodView> {
    pods.iter().filter_map(|pod| PodView::new(pod)).collect()
}

fn namespace(name: &str) -> Arc<Namespace> {
    let namespace = json!({ "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } } });
    Arc::new(serde_json::from_value(namespace).unwrap())
}

fn policy(spec: Value) -> Arc<NetworkPolicy> {
    let policy = json!({ "metadata": { "name": "p", "namespace": "default" }, "spec": spec });
    Arc::new(serde_json::from_value(policy).unwrap())
}

const WEB: &str = "10.42.0.2";
const CLIENT: &str = "10.42.0.3";
const FAR: &str = "10.42.1.4";
const OTHER: &str = "10.42.1.5";
const OUTSIDE: &str = "203.0.113.9";

fn table_of(policies: &[Arc<NetworkPolicy>]) -> Ruleset {
    let pods = [
        pod("web", "default", "here", WEB, json!({ "app": "web" })),
        pod("client", "default", "here", CLIENT, json!({ "app": "client" })),
        pod("far", "default", "there", FAR, json!({ "app": "client" })),
        pod("other", "other", "there", OTHER, json!({ "app": "client" })),
    ];
    render(policies, views(&pods), &[namespace("default"), namespace("other")], "here")
}

/// A new connection, through the forward hook.
fn passes(table: &Ruleset, source: &str, destination: &str, protocol: u8, port: u16) -> bool {
    let packet = Packet { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol, port };
    table.chains["forward"].rules.iter().all(|rule| walk(table, rule, &packet) != Some(false))
}

struct Packet {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    port: u16,
}

/// None: the next rule; true: allowed here; false: dropped.
fn walk(table: &Ruleset, rule: &Rule, packet: &Packet) -> Option<bool> {
    let load = |field: &Field| match field {
        Field::SourceAddress => packet.source.octets().to_vec(),
        Field::DestinationAddress => packet.destination.octets().to_vec(),
        Field::Protocol => vec![packet.protocol],
        Field::DestinationPort => packet.port.to_be_bytes().to_vec(),
        Field::ConntrackState => Field::NEW.to_ne_bytes().to_vec(),
        other => panic!("the walk does not know {other:?}"),
    };
    let joined = |fields: &[Field]| {
        fields.iter().fold(Vec::new(), |mut all, field| {
            all.extend(load(field));
            if fields.len() > 1 {
                all.resize(all.len().next_multiple_of(4), 0);
            }
            all
        })
    };
    for statement in &rule.statements {
        let holds = match statement {
            Statement::Compare { field, comparison, value } => match comparison {
                Comparison::Equal => load(field) == *value,
                Comparison::NotEqual => load(field) != *value,
                Comparison::AtLeast => load(field) >= *value,
                Comparison::AtMost => load(field) <= *value,
            },
            Statement::Masked { field, mask, negated, value } => {
                let masked: Vec<u8> = load(field).iter().zip(mask).map(|(a, b)| a & b).collect();
                (masked == *value) != *negated
            }
            Statement::InSet { fields, set, negated } => {
                table.sets[set].elements.contains_key(&joined(fields)) != *negated
            }
            Statement::VerdictMap { fields, map } => match table.sets[map].elements.get(&joined(fields)) {
                Some(ElementValue::Verdict(Verdict::Jump(chain))) => {
                    return table.chains[chain].rules.iter().find_map(|rule| walk(table, rule, packet));
                }
                _ => return None,
            },
            Statement::Verdict(Verdict::Return | Verdict::Accept) => return Some(true),
            Statement::Verdict(Verdict::Drop) => return Some(false),
            other => panic!("the walk does not know {other:?}"),
        };
        if !holds {
            return None;
        }
    }
    None
}

#[test]
fn policies_allow_what_they_say_and_nothing_else() {
    let select_web = json!({ "matchLabels": { "app": "web" } });
    let ingress = |rules: Value| json!({ "podSelector": select_web, "ingress": rules });
    let egress = |rules: Value| json!({ "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"], "egress": rules });
    let from_clients = json!([{ "podSelector": { "matchLabels": { "app": "client" } } }]);
    // policy, then (source, destination, protocol, port, passes)
    type Packets<'a> = &'a [(&'a str, &'a str, u8, u16, bool)];
    let cases: Vec<(&str, Value, Packets<'_>)> = vec![
        (
            "deny all ingress",
            json!({ "podSelector": {} }),
            &[
                (OUTSIDE, WEB, 6, 80, false),
                (CLIENT, WEB, 6, 80, false),
                (WEB, OUTSIDE, 6, 80, true),
                (OUTSIDE, FAR, 6, 80, true),
                // through a Service of its own
                (WEB, WEB, 6, 80, true),
            ],
        ),
        (
            "the same peers for every pod",
            json!({ "podSelector": {}, "ingress": [{ "from": from_clients }] }),
            &[
                (CLIENT, WEB, 6, 80, true),
                (WEB, CLIENT, 6, 80, false),
                (FAR, CLIENT, 6, 80, true),
                (OTHER, CLIENT, 6, 80, false),
            ],
        ),
        ("allow all ingress", ingress(json!([{}])), &[(OUTSIDE, WEB, 6, 80, true), (OUTSIDE, CLIENT, 6, 80, true)]),
        (
            "pods of this namespace",
            ingress(json!([{ "from": from_clients }])),
            &[
                (CLIENT, WEB, 6, 80, true),
                (FAR, WEB, 17, 53, true),
                (OTHER, WEB, 6, 80, false),
                (OUTSIDE, WEB, 6, 80, false),
            ],
        ),
        (
            "pods of other namespaces",
            ingress(
                json!([{ "from": [{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "other" } } }] }]),
            ),
            &[(OTHER, WEB, 6, 80, true), (CLIENT, WEB, 6, 80, false)],
        ),
        (
            "both selectors",
            ingress(
                json!([{ "from": [{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": "client" } } }] }]),
            ),
            &[(OTHER, WEB, 6, 80, true), (CLIENT, WEB, 6, 80, true), (OUTSIDE, WEB, 6, 80, false)],
        ),
        (
            "address block with exception",
            ingress(json!([{ "from": [{ "ipBlock": { "cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"] } }] }])),
            &[(OUTSIDE, WEB, 6, 80, true), ("203.0.113.200", WEB, 6, 80, false), ("198.51.100.1", WEB, 6, 80, false)],
        ),
        (
            "ports",
            ingress(json!([{ "ports": [{ "port": 80 }, { "port": 5000, "endPort": 5010, "protocol": "UDP" }] }])),
            &[
                (OUTSIDE, WEB, 6, 80, true),
                (OUTSIDE, WEB, 17, 80, false),
                (OUTSIDE, WEB, 6, 81, false),
                (OUTSIDE, WEB, 17, 5000, true),
                (OUTSIDE, WEB, 17, 5010, true),
                (OUTSIDE, WEB, 17, 5011, false),
            ],
        ),
        (
            "a named port",
            ingress(json!([{ "ports": [{ "port": "http" }] }])),
            &[(OUTSIDE, WEB, 6, 8080, true), (OUTSIDE, WEB, 6, 80, false)],
        ),
        (
            "a port name that the pod lacks",
            ingress(json!([{ "ports": [{ "port": "none" }] }])),
            &[(OUTSIDE, WEB, 6, 8080, false)],
        ),
        (
            "deny all egress",
            egress(json!([])),
            &[
                (CLIENT, OUTSIDE, 6, 80, false),
                (OUTSIDE, CLIENT, 6, 80, true),
                (WEB, OUTSIDE, 6, 80, true),
                (CLIENT, CLIENT, 6, 80, true),
            ],
        ),
        (
            "egress to pods",
            egress(json!([{ "to": [{ "podSelector": select_web }] }])),
            &[(CLIENT, WEB, 6, 80, true), (CLIENT, OUTSIDE, 6, 80, false)],
        ),
        (
            "egress to a named port",
            egress(json!([{ "to": [{ "podSelector": select_web }], "ports": [{ "port": "http" }] }])),
            &[(CLIENT, WEB, 6, 8080, true), (CLIENT, WEB, 6, 80, false), (CLIENT, FAR, 6, 8080, false)],
        ),
    ];
    for (name, spec, packets) in cases {
        let table = table_of(&[policy(spec)]);
        for (source, destination, protocol, port, expected) in packets {
            let found = passes(&table, source, destination, *protocol, *port);
            assert_eq!(found, *expected, "{name}: {source} to {destination}:{port}/{protocol}");
        }
    }
}

#[test]
fn one_of_hundreds_of_peers_is_enough() {
    let stranger = |number: u32| json!({ "podSelector": { "matchLabels": { "app": format!("no-{number}") } } });
    let other = json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "other" } } });
    let peers: Vec<Value> = (0..300).map(stranger).chain([other]).collect();
    let web = json!({ "matchLabels": { "app": "web" } });
    let table = table_of(&[policy(json!({ "podSelector": web, "ingress": [{ "from": peers }] }))]);
    assert!(passes(&table, OTHER, WEB, 6, 80));
    assert!(!passes(&table, CLIENT, WEB, 6, 80));
}

#[test]
fn policies_add_up_and_both_ends_have_a_say() {
    let web = json!({ "matchLabels": { "app": "web" } });
    let mut second = policy(json!({ "podSelector": web, "ingress": [{ "ports": [{ "port": 443 }] }] }));
    Arc::make_mut(&mut second).metadata.name = Some("q".into());
    let first = policy(json!({ "podSelector": web, "ingress": [{ "ports": [{ "port": 80 }] }] }));
    let table = table_of(&[first.clone(), second]);
    assert!(passes(&table, OUTSIDE, WEB, 6, 80) && passes(&table, OUTSIDE, WEB, 6, 443));
    let mut closed = policy(json!({ "podSelector": {}, "policyTypes": ["Egress"] }));
    Arc::make_mut(&mut closed).metadata.name = Some("closed".into());
    let table = table_of(&[first, closed]);
    assert!(!passes(&table, CLIENT, WEB, 6, 80), "the client may not send");
    assert!(passes(&table, OUTSIDE, WEB, 6, 80));
}

#[test]
fn a_policy_with_the_longest_name_does_not_keep_the_kernel_from_the_others() {
    let namespace_name = "n".repeat(63);
    let mut long = policy(json!({
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": {} }] }],
        "egress": [{ "to": [{ "podSelector": {} }], "ports": [{ "port": "http" }] }],
    }));
    let metadata = &mut Arc::make_mut(&mut long).metadata;
    metadata.name = Some("p".repeat(253));
    metadata.namespace = Some(namespace_name.clone());
    metadata.uid = Some("9c5b3f9e-3d0f-4d4a-8f58-0f6f5f1f2a3b".into());
    let pods = [pod("web", &namespace_name, "here", WEB, json!({ "app": "web" }))];
    let table = render(&[long], views(&pods), &[namespace(&namespace_name)], "here");
    assert!(table.sets.keys().any(|name| name.ends_with("/named")), "{:?}", table.sets.keys());
    assert!(table.sets.keys().all(|name| name.len() <= 255), "{:?}", table.sets.keys());
}

#[test]
fn an_address_belongs_to_the_pod_that_stays() {
    let mut leaving = pod("old", "default", "here", WEB, json!({ "app": "old" }));
    let stamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    Arc::make_mut(&mut leaving).metadata.deletion_timestamp = Some(stamp);
    let staying = pod("web", "default", "here", WEB, json!({ "app": "web" }));
    let open = policy(json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{}] }));
    let mut closed = policy(json!({ "podSelector": { "matchLabels": { "app": "old" } } }));
    Arc::make_mut(&mut closed).metadata.name = Some("closed".into());
    let table = render(&[open, closed], views(&[leaving, staying]), &[namespace("default")], "here");
    assert!(passes(&table, OUTSIDE, WEB, 6, 80));
}

#[test]
fn the_kernel_takes_the_table() {
    let spec = json!({
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": {} }, { "ipBlock": { "cidr": "192.0.2.0/24" } }], "ports": [{ "port": 80, "endPort": 90 }] }],
        "egress": [{ "to": [{ "namespaceSelector": {} }], "ports": [{ "port": "http" }, { "protocol": "UDP" }] }],
    });
    let table = table_of(&[policy(spec)]);
    let commit = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
        let mut nft = netlink::nft::Nft::open().unwrap();
        table.apply_over_unknown(&mut nft).unwrap();
        table.apply_over_unknown(&mut nft).unwrap();
        let empty = table_of(&[]);
        nft.commit(empty.changes(&table)).unwrap();
    };
    std::thread::spawn(commit).join().unwrap();
}
