//! The server reaches what runs in pods: proxied Services and pods, webhooks, and kubelets whose
//! certificates it verifies. It is no node itself.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use apiserver::testing::{authority, leaf};
use integration::{BUSYBOX, Lab, NGINX};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

const NGINX_CONF: &str = "
user root; daemon off; pid /tmp/nginx.pid; error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
  server {
    listen 8443 ssl;
    ssl_certificate /hook/tls.crt; ssl_certificate_key /hook/tls.key;
    location / { proxy_pass http://127.0.0.1:8080/cgi-bin/hook; }
  }
}";

/// Refuses what it is asked about.
const HOOK: &str = r#"#!/bin/sh
uid=$(head -c "$CONTENT_LENGTH" | sed -n 's/.*"uid":"\([^"]*\)","userInfo".*/\1/p')
printf 'Content-Type: application/json\r\n\r\n'
printf '{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"%s","allowed":false,"status":{"message":"not in this house"}}}' "$uid"
"#;

#[test]
fn the_server_reaches_webhooks_services_and_pods_without_being_a_node() {
    let lab = Lab::up("reach", &["--nodes", "2"]);
    let directory = tempfile::tempdir().unwrap();
    let (ca, ca_pem) = authority();
    let pair = leaf(directory.path(), &ca, "hook.default.svc", &[], true);
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    lab.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hook"}, "stringData": {
            "tls.crt": read(&pair.certificate), "tls.key": read(&pair.key), "nginx.conf": NGINX_CONF, "hook": HOOK}})
        .to_string(),
    );
    lab.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: hook, labels: {{app: hook}}}}
spec:
  nodeName: node-2
  volumes: [{{name: hook, secret: {{secretName: hook, defaultMode: 0755}}}}]
  containers:
  - name: tls
    image: {NGINX}
    imagePullPolicy: IfNotPresent
    command: [/usr/sbin/nginx, -c, /hook/nginx.conf]
    volumeMounts: [{{name: hook, mountPath: /hook}}]
    readinessProbe: {{tcpSocket: {{port: 8443}}, periodSeconds: 1}}
  - name: httpd
    image: {BUSYBOX}
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo ready to refuse; exec httpd -f -p 8080 -h /www"]
    volumeMounts: [{{name: hook, mountPath: /www/cgi-bin}}]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: hook}}
spec:
  selector: {{app: hook}}
  ports: [{{port: 443, targetPort: 8443}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  nodeName: node-1
  containers:
  - name: nginx
    image: {NGINX}
    imagePullPolicy: IfNotPresent
    ports: [{{containerPort: 80}}]
    readinessProbe: {{httpGet: {{path: /, port: 80}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80}}]
"#
    ));
    lab.wait("pod/web", "condition=Ready", 90);
    lab.wait("pod/hook", "condition=Ready", 90);

    // A Service and a pod through the server's proxy.
    for path in ["services/http:web:80/proxy/", "services/web/proxy/", "pods/web:80/proxy/"] {
        lab.eventually(&format!("{path} answers"), SOON, || {
            let output = lab.try_kubectl(&["get", "--raw", &format!("/api/v1/namespaces/default/{path}")]);
            if output.stdout.contains("Welcome to nginx") { Ok(()) } else { Err(format!("{output:?}")) }
        });
    }

    // A webhook behind a Service.
    let bundle = integration::command("base64", &["-w0"], &[], &ca_pem).expect_ok();
    lab.apply(
        &json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "hook"},
            "webhooks": [{"name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"namespace": "default", "name": "hook"}, "caBundle": bundle.trim()},
                "objectSelector": {"matchLabels": {"ask": "hook"}},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}]})
        .to_string(),
    );
    let asked =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "asked", "labels": {"ask": "hook"}}})
            .to_string();
    lab.eventually("the webhook refuses", SOON, || {
        let output = lab.try_apply(&asked);
        if output.stderr.contains("not in this house") { Ok(()) } else { Err(format!("{output:?}")) }
    });

    // What pods and nodes use, as the kubelets say.
    for (what, names) in [("pods", ["web", "hook"]), ("nodes", ["node-1", "node-2"])] {
        lab.eventually(&format!("kubectl top {what}"), SOON, || {
            let output = lab.try_kubectl(&["top", what]);
            let shown = names.iter().all(|name| output.stdout.contains(name)) && output.stdout.contains("Mi");
            if shown { Ok(()) } else { Err(format!("{output:?}")) }
        });
    }

    // Kubelets are asked over connections whose certificates are verified.
    assert!(lab.kubectl(&["logs", "hook", "-c", "httpd"]).contains("ready to refuse"));
    assert_eq!(lab.kubectl(&["exec", "web", "--", "echo", "inside"]).trim(), "inside");
}
