//! nginx behind a Service, reached as people reach it, through both writers of the proxy.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use integration::{BUSYBOX, Lab, NGINX};

const SOON: Duration = Duration::from_secs(30);
/// curl could not connect, at once: the connection was refused.
const CURL_REFUSED: i32 = 7;

fn web(replicas: u32) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: nginx
        image: {NGINX}
        imagePullPolicy: IfNotPresent
        ports: [{{containerPort: 80, name: http}}]
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports:
  - {{name: http, port: 80, targetPort: http, nodePort: 30080}}
  - {{name: other, port: 8080, targetPort: 80}}
"#
    )
}

/// The same story for both proxy modes.
fn nginx_is_served(story: &str, mode: &str) {
    let lab = Lab::up(story, &["--nodes", "2", "--proxy-mode", mode]);
    lab.apply(&web(3));
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let service = lab.get(&["service", "web"]);
    let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(cluster_ip.starts_with("10.43."), "{cluster_ip}");

    // ClusterIP, both ports, from both nodes
    for node in ["node-1", "node-2"] {
        for port in [80, 8080] {
            fetch(&lab, node, &format!("http://{cluster_ip}:{port}/"));
        }
    }
    // NodePort on each node, from the host
    for node in ["node-1", "node-2"] {
        let url = format!("http://{}:30080/", lab.address(node));
        let page = integration::command("curl", &["-sS", "--max-time", "10", &url], &[], "").expect_ok();
        assert!(page.contains("nginx"), "{page}");
    }
    // by name, from inside another pod
    lab.kubectl(&[
        "run",
        "client",
        &format!("--image={BUSYBOX}"),
        "--image-pull-policy=IfNotPresent",
        "--restart=Never",
        "--command",
        "--",
        "wget",
        "-q",
        "-O",
        "-",
        "http://web.default.svc.cluster.local/",
    ]);
    lab.wait("pod/client", "jsonpath={.status.phase}=Succeeded", 30);
    assert!(lab.kubectl(&["logs", "client"]).contains("nginx"));

    // endpoints go: refused at once, not timed out
    lab.kubectl(&["scale", "deployment/web", "--replicas=0"]);
    let url = format!("http://{cluster_ip}/");
    lab.eventually("a Service without endpoints refuses", SOON, || {
        let answer = lab.exec("node-1", &["curl", "-sS", "--max-time", "5", &url]);
        if answer.code == Some(CURL_REFUSED) { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    // and come back
    lab.kubectl(&["scale", "deployment/web", "--replicas=1"]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    fetch(&lab, "node-2", &url);

    session_affinity_keeps_a_client(&lab);
    for (port, path, expected) in [(10248, "healthz", "ok"), (10249, "proxyMode", mode), (10249, "healthz", "ok")] {
        let url = format!("http://127.0.0.1:{port}/{path}");
        let answer = lab.exec("node-1", &["curl", "-sS", "--max-time", "5", &url]);
        assert_eq!(answer.stdout.trim(), expected, "{url}: {answer:?}");
    }
    // The kubelet listens on every address of its node, and tells nothing without a certificate.
    let refused = lab.exec("node-1", &["curl", "-sSk", "--max-time", "5", "https://127.0.0.1:10250/pods"]);
    assert_eq!(refused.stdout.trim(), "Unauthorized", "{refused:?}");
    let report = lab.exec("node-1", &["curl", "-sS", "--max-time", "5", "http://127.0.0.1:10256/healthz"]);
    assert!(report.ok, "{report:?}");
}

#[track_caller]
fn fetch(lab: &Lab, node: &str, url: &str) {
    lab.eventually(&format!("{url} from {node}"), SOON, || {
        let answer = lab.exec(node, &["curl", "-sS", "--max-time", "5", url]);
        if answer.stdout.contains("nginx") { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

fn session_affinity_keeps_a_client(lab: &Lab) {
    // Each pod answers with its own name.
    lab.apply(&format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: who}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: who}}}}
  template:
    metadata: {{labels: {{app: who}}}}
    spec:
      containers:
      - name: who
        image: {BUSYBOX}
        imagePullPolicy: IfNotPresent
        command: ["sh", "-c", "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 80 -h /www"]
        readinessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: who}}
spec: {{selector: {{app: who}}, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: sticky}}
spec: {{selector: {{app: who}}, ports: [{{port: 80}}], sessionAffinity: ClientIP}}
"#
    ));
    lab.kubectl(&["rollout", "status", "deployment/who", "--timeout=60s"]);
    let answers = |service: &str| -> Vec<String> {
        let ip = lab.get(&["service", service])["spec"]["clusterIP"].as_str().unwrap().to_owned();
        let url = format!("http://{ip}/");
        let mut seen: Vec<String> = (0..20)
            .map(|_| lab.exec("node-1", &["curl", "-sS", "--max-time", "5", &url]).expect_ok().trim().to_owned())
            .collect();
        seen.sort();
        seen.dedup();
        seen
    };
    lab.eventually("all three pods are routed", SOON, || {
        let seen = answers("who");
        if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(answers("sticky").len(), 1, "ClientIP affinity keeps one client at one pod");
}

#[test]
fn nginx_is_served_through_nftables() {
    nginx_is_served("nft", "nftables");
}

#[test]
fn nginx_is_served_through_iptables() {
    nginx_is_served("ipt", "iptables");
}
