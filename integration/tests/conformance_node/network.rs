//! Services, their endpoints, network policies and names, from inside pods, through both writers of the
//! proxy. The pods run the host's python in its own root: a server that says its name by HTTP and UDP.

use std::collections::BTreeSet;

use integration::{BUSYBOX, Lab};
use serde_json::{Value, json};

use crate::{SOON, condition};

const SERVER: &str = r#"
import http.server, socket, socketserver, threading
name = socket.gethostname().split('.')[0]
class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(name.encode(), self.client_address)
class Http(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(name.encode())
    def log_message(self, *ignored): pass
threading.Thread(target=socketserver.ThreadingUDPServer(('', 8053), Udp).serve_forever).start()
http.server.ThreadingHTTPServer(('', 8080), Http).serve_forever()
"#;

/// Asks `count` times, each from another port, and prints the answers, or `refused` or `silent`.
const CLIENT: &str = r#"
import http.client, socket, sys
protocol, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for _ in range(count):
    try:
        if protocol == 'udp':
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.settimeout(0.8); client.connect((host, port)); client.send(b'?'); print(client.recv(99).decode())
        else:
            client = http.client.HTTPConnection(host, port, timeout=0.8)
            client.request('GET', '/'); print(client.getresponse().read().decode()); client.close()
    except ConnectionRefusedError: print('refused')
    except OSError as error: print('silent' if isinstance(error, TimeoutError) else repr(error))
"#;

fn pod(name: &str, node: &str, labels: Value, container: Value, more: Value) -> Value {
    let mut spec = json!({"nodeName": node, "terminationGracePeriodSeconds": 1, "hostname": name,
        "volumes": [{"name": "host", "hostPath": {"path": "/"}}]});
    let mut main = json!({"name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
        "volumeMounts": [{"name": "host", "mountPath": "/host", "readOnly": true}]});
    main.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    spec["containers"] = json!([main]);
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

fn server(name: &str, node: &str, more: Value) -> Value {
    let container = json!({"command": ["chroot", "/host", "python3", "-c", SERVER],
        "ports": [{"name": "http", "containerPort": 8080}, {"name": "udp", "containerPort": 8053, "protocol": "UDP"}],
        "readinessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"sleep": {"seconds": if name == "leaving" { 60 } else { 0 }}}}});
    pod(name, node, json!({"app": "web", "name": name}), container, more)
}

fn client(name: &str, node: &str) -> Value {
    pod(name, node, json!({"app": "client", "name": name}), json!({"command": ["sleep", "3600"]}), json!({}))
}

fn service(name: &str, spec: Value) -> Value {
    let mut all = json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": all})
}

struct Story {
    lab: Lab,
}

impl Story {
    /// The different answers that a pod gets.
    fn ask(&self, from: &str, protocol: &str, host: &str, port: u16, count: u32) -> BTreeSet<String> {
        let (port, count) = (port.to_string(), count.to_string());
        let asked = ["exec", from, "--", "chroot", "/host", "python3", "-c", CLIENT, protocol, host, &port, &count];
        self.lab.kubectl(&asked).lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn answers(&self, from: &str, to: (&str, &str, u16), expected: &[&str]) {
        let wanted: BTreeSet<String> = expected.iter().map(|text| (*text).to_owned()).collect();
        let (protocol, host, port) = to;
        self.lab.eventually(&format!("{from} asks {protocol} {host}:{port}"), SOON, || {
            let found = self.ask(from, protocol, host, port, if wanted.len() > 1 { 16 } else { 1 });
            if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
        });
    }

    fn ip(&self, service: &str) -> String {
        self.lab.get(&["service", service])["spec"]["clusterIP"].as_str().unwrap().to_owned()
    }

    fn apply(&self, items: Value) {
        self.lab.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    }

    /// What a pod's own resolver says.
    fn look_up(&self, query: &str) -> String {
        self.lab.try_kubectl(&["exec", "near", "--", "sh", "-c", &format!("nslookup {query} 2>&1")]).stdout
    }

    fn names(&self) {
        let address = |pod: &str| self.lab.get(&["pod", pod])["status"]["podIP"].as_str().unwrap().to_owned();
        let stays = address("stays");
        for (query, words) in [
            ("web.default.svc.cluster.local".to_owned(), self.ip("web")),
            ("web".to_owned(), self.ip("web")),
            ("stays.web-headless.default.svc.cluster.local".to_owned(), stays.clone()),
            ("web-headless.default.svc.cluster.local".to_owned(), stays.clone()),
            (
                "-type=srv _http._tcp.web.default.svc.cluster.local".to_owned(),
                "0 100 80 web.default.svc.cluster.local".to_owned(),
            ),
            (
                "-type=srv _http._tcp.web-headless.default.svc.cluster.local".to_owned(),
                "8080 stays.web-headless.default.svc.cluster.local".to_owned(),
            ),
            (
                "-type=srv _udp._udp.web.default.svc.cluster.local".to_owned(),
                "web.default.svc.cluster.local".to_owned(),
            ),
            (
                "-type=cname alias.default.svc.cluster.local".to_owned(),
                "canonical name = web.default.svc.cluster.local".to_owned(),
            ),
            ("-type=txt dns-version.cluster.local".to_owned(), "text = \"1.1.0\"".to_owned()),
            (self.ip("web"), "name = web.default.svc.cluster.local".to_owned()),
            (stays.clone(), "name = stays.web-headless.default.svc.cluster.local".to_owned()),
            (format!("{}.default.pod.cluster.local", stays.replace('.', "-")), stays.clone()),
            ("kubernetes.default.svc.cluster.local".to_owned(), "10.43.0.1".to_owned()),
            ("missing.default.svc.cluster.local".to_owned(), "NXDOMAIN".to_owned()),
        ] {
            let text = self.look_up(&query);
            assert!(text.contains(&words), "nslookup {query} does not say {words:?}:\n{text}");
        }
        let file = |pod: &str| self.lab.kubectl(&["exec", pod, "--", "cat", "/etc/resolv.conf"]);
        assert_eq!(file("dns-own"), "search one.test two.test\nnameserver 192.0.2.53\noptions ndots:2 single\n");
        let search = "search default.svc.cluster.local svc.cluster.local cluster.local\n";
        assert!(file("near").contains(search), "{}", file("near"));
        assert!(
            file("dns-host-network").contains(search) && file("dns-host-network").contains("nameserver 10.43.0.10")
        );
        assert!(!file("dns-default").contains("10.43.0.10"), "{}", file("dns-default"));
    }

    fn services(&self) {
        let web = self.ip("web");
        let (first, second) = (self.lab.address("node-1"), self.lab.address("node-2"));
        let both = ["stays", "leaving"];
        for from in ["near", "far", "stays"] {
            self.answers(from, ("tcp", &web, 80), &both);
            self.answers(from, ("udp", &web, 80), &both);
        }
        for node in [&first, &second] {
            self.answers("near", ("tcp", node, 30080), &both);
            self.answers("near", ("udp", node, 30080), &both);
        }
        assert_eq!(self.ask("near", "tcp", &self.ip("sticky"), 80, 16).len(), 1, "one server for one client");
        self.answers("near", ("tcp", &self.ip("local"), 80), &["stays"]);
        self.answers("far", ("tcp", &self.ip("local"), 80), &["leaving"]);
        // from a pod of the cluster an external address is as good as the cluster's own
        self.answers("near", ("tcp", "203.0.113.7", 80), &both);
        self.answers("far", ("tcp", "203.0.113.9", 80), &both);
        self.answers("near", ("tcp", &self.ip("nobody"), 80), &["refused"]);
        self.answers("near", ("udp", &self.ip("nobody"), 80), &["refused"]);
    }

    /// The pod on the second node is deleted, and takes its time.
    fn terminating(&self) {
        self.lab.kubectl(&["delete", "pod", "leaving", "--wait=false"]);
        let slices = ["endpointslices", "-l", "kubernetes.io/service-name=web"];
        self.lab.eventually("the endpoint serves and terminates", SOON, || {
            let slices = self.lab.get(&slices);
            let endpoints = slices["items"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
            let leaving =
                endpoints.into_iter().find(|endpoint| endpoint["targetRef"]["name"] == "leaving").unwrap_or_default();
            let wanted = json!({"ready": false, "serving": true, "terminating": true});
            if leaving["conditions"] == wanted { Ok(()) } else { Err(slices.to_string()) }
        });
        assert_eq!(condition(&self.lab.get(&["pod", "leaving"]), "Ready")["status"], "True", "it serves until it ends");
        self.answers("far", ("tcp", &self.ip("web"), 80), &["stays"]);
        // where nothing else is, what terminates still serves
        self.answers("far", ("tcp", &self.ip("local"), 80), &["leaving"]);
        let external = format!("http://{}:30081/", self.lab.address("node-2"));
        let page = integration::command("curl", &["-sS", "--max-time", "5", &external], &[], "").expect_ok();
        assert_eq!(page, "leaving");
        self.lab.kubectl(&["delete", "pod", "leaving", "--now"]);
        self.answers("far", ("tcp", &self.ip("local"), 80), &["silent"]);
    }

    fn type_changes(&self) {
        let node = self.lab.address("node-2");
        let patch = |text: &str| self.lab.kubectl(&["patch", "service", "changes", "--type=merge", "-p", text]);
        patch(r#"{"spec":{"type":"NodePort","ports":[{"name":"http","port":80,"targetPort":8080,"nodePort":30090}]}}"#);
        self.answers("near", ("tcp", &node, 30090), &["stays"]);
        patch(r#"{"spec":{"type":"ClusterIP","ports":[{"name":"http","port":80,"targetPort":8080}]}}"#);
        self.answers("near", ("tcp", &node, 30090), &["refused"]);
        self.answers("near", ("tcp", &self.ip("changes"), 80), &["stays"]);
        let before = self.ip("changes");
        patch(
            r#"{"spec":{"type":"ExternalName","externalName":"web-headless.default.svc.cluster.local","clusterIP":null,"clusterIPs":null}}"#,
        );
        self.lab.eventually("the name is an alias now", SOON, || {
            let text = self.look_up("-type=cname changes.default.svc.cluster.local");
            if text.contains("canonical name = web-headless.default") { Ok(()) } else { Err(text) }
        });
        self.lab.eventually("the address before is nobody's", SOON, || {
            let found = self.ask("near", "tcp", &before, 80, 2);
            if found.contains("stays") { Err(format!("{found:?}")) } else { Ok(()) }
        });
        patch(r#"{"spec":{"type":"ClusterIP","externalName":null}}"#);
        self.answers("near", ("tcp", &self.ip("changes"), 80), &["stays"]);
    }

    fn policies(&self) {
        let stays = self.lab.get(&["pod", "stays"])["status"]["podIP"].as_str().unwrap().to_owned();
        let far = self.lab.get(&["pod", "far"])["status"]["podIP"].as_str().unwrap().to_owned();
        let web = |spec: Value| {
            let mut all = json!({"podSelector": {"matchLabels": {"app": "web"}}});
            all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "policy"}, "spec": all});
            self.lab.kubectl(&["delete", "networkpolicy", "--all"]);
            self.lab.apply(&policy.to_string());
        };
        let from = |peer: Value, ports: Value| json!({"ingress": [{"from": [peer], "ports": ports}]});
        let tcp = ("tcp", stays.as_str(), 8080);
        let udp = ("udp", stays.as_str(), 8053);
        let check = |near: &str, far: &str, near_udp: &str| {
            self.answers("near", tcp, &[near]);
            self.answers("far", tcp, &[far]);
            self.answers("near", udp, &[near_udp]);
        };
        web(json!({}));
        check("silent", "silent", "silent");
        web(from(json!({"podSelector": {"matchLabels": {"name": "near"}}}), json!([])));
        check("stays", "silent", "stays");
        web(from(json!({"podSelector": {"matchLabels": {"app": "client"}}}), json!([{"port": "http"}])));
        check("stays", "stays", "silent");
        web(from(json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}), json!([])));
        check("silent", "silent", "silent");
        web(from(json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"name": "far"}}}), json!([])));
        check("silent", "stays", "silent");
        let block = json!({"ipBlock": {"cidr": "10.42.0.0/16", "except": [format!("{far}/32")]}});
        web(from(block, json!([{"protocol": "TCP", "port": 8000, "endPort": 8090}])));
        check("stays", "silent", "silent");

        // what a pod may ask
        let egress = |to: Value| json!({"podSelector": {"matchLabels": {"name": "near"}}, "policyTypes": ["Egress"], "egress": to});
        web(egress(json!([])));
        check("silent", "stays", "silent");
        web(egress(
            json!([{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"protocol": "UDP", "port": 8053}]}]),
        ));
        check("silent", "stays", "stays");
        self.lab.kubectl(&["delete", "networkpolicy", "--all"]);
        check("stays", "stays", "stays");
    }

    /// What policies forbid a pod fails from its first instant on, in init containers too.
    fn isolated_from_the_first_instant(&self) {
        let stays = self.lab.get(&["pod", "stays"])["status"]["podIP"].as_str().unwrap().to_owned();
        let apps = json!([{"key": "app", "operator": "In", "values": ["client", "early"]}]);
        let spec = json!({"podSelector": {"matchExpressions": apps}, "policyTypes": ["Egress"]});
        let metadata = json!({"name": "closed"});
        let kind = "NetworkPolicy";
        self.apply(json!([{"apiVersion": "networking.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}]));
        // Both nodes know of it before the first of the pods comes.
        for from in ["near", "far"] {
            self.answers(from, ("tcp", &stays, 8080), &["silent"]);
        }
        let ask = format!("timeout 1 wget -q -O - http://{stays}:8080/ & sleep 0.02");
        let asking = format!("i=0; while [ $i -lt 40 ]; do {ask}; i=$((i+1)); done");
        let script = format!("exec 2>/dev/null; {asking}; wait; echo done");
        let command = json!(["sh", "-c", script]);
        let hasty = |name: &str, node: &str, app: &str| {
            let init = json!({"name": "init", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": command});
            let more = json!({"restartPolicy": "Never", "initContainers": [init]});
            pod(name, node, json!({"app": app}), json!({"command": command}), more)
        };
        let early = ["early-1", "early-2", "early-3", "early-4"];
        let mut pods = vec![hasty("open", "node-1", "open")];
        for (at, name) in early.into_iter().enumerate() {
            pods.push(hasty(name, ["node-1", "node-2"][at % 2], "early"));
        }
        self.apply(json!(pods));
        for name in early.into_iter().chain(["open"]) {
            self.lab.wait(&format!("pod/{name}"), "jsonpath={.status.phase}=Succeeded", 60);
            for container in ["init", "main"] {
                let log = self.lab.kubectl(&["logs", name, "-c", container]);
                match name {
                    "open" => assert!(log.contains("stays"), "{container} shows that the attempts can succeed: {log}"),
                    _ => assert_eq!(log, "done\n", "{name} {container}"),
                }
            }
        }
        let late = self.lab.get(&["events", "--field-selector", "reason=NetworkNotReady"]);
        assert_eq!(late["items"], json!([]), "pods started without their policies");
        self.lab.kubectl(&["delete", "networkpolicy", "--all"]);
    }
}

fn network(story: &str, mode: &str) {
    let story = Story { lab: Lab::up(story, &["--nodes", "2", "--proxy-mode", mode]) };
    let lab = &story.lab;
    let udp = json!([{"name": "http", "port": 80, "targetPort": "http"}, {"name": "udp", "port": 80, "targetPort": "udp", "protocol": "UDP"}]);
    let mut node_ports = udp.clone();
    (node_ports[0]["nodePort"], node_ports[1]["nodePort"]) = (json!(30080), json!(30080));
    let local_port = json!([{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30081}]);
    let named = json!({"subdomain": "web-headless"});
    let leaving = json!({"subdomain": "web-headless", "terminationGracePeriodSeconds": 90});
    let resolver = |name: &str, more: Value| {
        pod(name, "node-1", json!({"app": "client"}), json!({"command": ["sleep", "3600"]}), more)
    };
    story.apply(json!([
        server("stays", "node-1", named), server("leaving", "node-2", leaving), client("near", "node-1"), client("far", "node-2"),
        resolver("dns-own", json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["one.test", "two.test"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "single"}]}})),
        resolver("dns-default", json!({"dnsPolicy": "Default"})),
        resolver("dns-host-network", json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true, "hostname": null})),
        service("web", json!({"type": "NodePort", "ports": node_ports, "externalIPs": ["203.0.113.7"]})),
        service("web-headless", json!({"clusterIP": "None"})),
        service("sticky", json!({"sessionAffinity": "ClientIP"})),
        service("local", json!({"internalTrafficPolicy": "Local"})),
        service("outside", json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": local_port})),
        service("balanced", json!({"type": "LoadBalancer"})),
        service("nobody", json!({"selector": {"app": "nobody"}, "ports": udp})),
        service("changes", json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]})),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias"}, "spec": {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}},
    ]));
    let balanced = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.9"}]}}}"#;
    lab.kubectl(&["patch", "service", "balanced", "--subresource=status", "--type=merge", "-p", balanced]);
    lab.kubectl(&["wait", "pods", "--all", "--for=condition=Ready", "--timeout=90s"]);
    story.services();
    story.names();
    story.terminating();
    story.type_changes();
    story.policies();
    story.isolated_from_the_first_instant();
}

#[test]
fn network_by_nftables() {
    network("cnetn", "nftables");
}

#[test]
fn network_by_iptables() {
    network("cneti", "iptables");
}
