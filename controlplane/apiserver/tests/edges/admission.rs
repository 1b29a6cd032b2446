//! Admission plugins as an operator switches and configures them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use apiserver::testing::Cluster;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::ask;
use super::hook::Hook;

/// A cluster whose plugins are switched and configured; `plugins` are entries of an
/// `AdmissionConfiguration`.
async fn cluster(dir: &Path, enable: &[&str], disable: &[&str], plugins: Value) -> Cluster {
    let file = dir.join("admission.yaml");
    let config =
        json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": plugins});
    std::fs::write(&file, config.to_string()).unwrap();
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Cluster::start_with(|config| {
        let admission = &mut config.options.admission;
        (admission.enable, admission.disable) = (owned(enable), owned(disable));
        admission.config_file = Some(file);
    })
    .await
}

fn pod(name: &str, spec: Value) -> String {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "i:1"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod.to_string()
}

/// A kubeconfig of a hook.
fn leading_to(hook: &Hook) -> String {
    let config = hook.config();
    json!({"apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": config["url"], "certificate-authority-data": config["caBundle"]}}],
        "users": [{"name": "x", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}]})
    .to_string()
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

#[tokio::test]
async fn plugins_are_switched_and_configured() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("nodes.yaml"),
        "podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: disk=ssd}",
    )
    .unwrap();
    let security = json!({"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration",
        "defaults": {"enforce": "baseline"}, "exemptions": {"namespaces": ["free"]}});
    let plugins = json!([
        {"name": "PodSecurity", "configuration": security},
        {"name": "PodNodeSelector", "path": "nodes.yaml"},
    ]);
    let enabled = ["AlwaysPullImages", "NamespaceAutoProvision", "PodNodeSelector", "DenyServiceExternalIPs"];
    // Nobody makes the default account here.
    let cluster = cluster(dir.path(), &enabled, &["ServiceAccount"], plugins).await;
    let client = cluster.admin();
    let (code, made) = ask(&client, "POST", &pods("new"), &pod("p", json!({}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(made["spec"]["nodeSelector"], json!({"disk": "ssd"}));
    assert!(made["spec"]["serviceAccountName"].is_null(), "{made}");
    let (_, namespace) = ask(&client, "GET", "/api/v1/namespaces/new", "").await;
    assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]), "{namespace}");
    let host = json!({"hostNetwork": true});
    let (code, refused) = ask(&client, "POST", &pods("new"), &pod("h", host.clone())).await;
    assert_eq!(
        (code, refused["message"].as_str().unwrap()),
        (403, "pods \"h\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)")
    );
    assert_eq!(ask(&client, "POST", &pods("free"), &pod("h", host)).await.0, 201, "an exempt namespace");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 1}], "externalIPs": ["1.2.3.4"]}});
    let (code, refused) = ask(&client, "POST", "/api/v1/namespaces/new/services", &service.to_string()).await;
    assert_eq!(code, 403, "{refused}");
    assert!(refused["message"].as_str().unwrap().ends_with("Use of external IPs is denied by admission control"));
}

#[tokio::test]
async fn events_beyond_their_rate_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let limits = json!({"apiVersion": "eventratelimit.admission.k8s.io/v1alpha1", "kind": "Configuration",
        "limits": [{"type": "Namespace", "qps": 1, "burst": 2}]});
    let plugins = json!([{"name": "EventRateLimit", "configuration": limits}]);
    let cluster = cluster(dir.path(), &["EventRateLimit"], &[], plugins).await;
    let client = cluster.admin();
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "e-"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
    let mut codes = Vec::new();
    for _ in 0..50 {
        codes.push(ask(&client, "POST", "/api/v1/namespaces/default/events", &event.to_string()).await);
    }
    assert_eq!((codes[0].0, codes[1].0), (201, 201));
    let (code, status) = codes.iter().find(|(code, _)| *code != 201).expect("fifty take less than twenty seconds");
    assert_eq!((*code, &status["reason"]), (429, &json!("TooManyRequests")));
    assert_eq!(status["message"], "Too many requests: limit reached on type Namespace for key default");
}

#[tokio::test]
async fn images_are_for_another_server_to_judge() {
    let dir = tempfile::tempdir().unwrap();
    let hook = Hook::start(dir.path(), |spec| {
        let good = spec["containers"].as_array().unwrap().iter().all(|container| container["image"] == "good");
        json!({"allowed": good, "reason": if good { "" } else { "not signed" }, "auditAnnotations": {"seen": "yes"}})
    })
    .await;
    let kubeconfig = dir.path().join("images.kubeconfig");
    std::fs::write(&kubeconfig, leading_to(&hook)).unwrap();
    let policy = |allow: bool| {
        json!([{"name": "ImagePolicyWebhook", "configuration": {"imagePolicy": {
        "kubeConfigFile": kubeconfig, "allowTTL": -1, "denyTTL": -1, "retryBackoff": 1, "defaultAllow": allow}}}])
    };
    let closed = cluster(dir.path(), &["ImagePolicyWebhook"], &["ServiceAccount"], policy(false)).await;
    let open = cluster(dir.path(), &["ImagePolicyWebhook"], &["ServiceAccount"], policy(true)).await;
    let with = |image: &str| pod("p", json!({"containers": [{"name": "c", "image": image}]}));
    let path = format!("{}?dryRun=All", pods("default"));
    for client in [closed.admin(), open.admin()] {
        assert_eq!(ask(&client, "POST", &path, &with("good")).await.0, 201);
        let (code, refused) = ask(&client, "POST", &path, &with("bad")).await;
        assert_eq!(
            (code, refused["message"].as_str().unwrap()),
            (403, "pods \"p\" is forbidden: image policy webhook backend denied one or more images: not signed")
        );
    }
    drop(hook);
    let (code, refused) = ask(&closed.admin(), "POST", &path, &with("good")).await;
    assert_eq!(code, 403, "{refused}");
    let (code, made) = ask(&open.admin(), "POST", &path, &with("bad")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["annotations"]["alpha.image-policy.k8s.io/failed-open"], "true");
}

/// A server that takes connections and says nothing; how many it took.
async fn silent() -> (std::net::SocketAddr, Arc<AtomicUsize>, AbortOnDropHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let taken = count.clone();
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            taken.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    (address, count, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn a_judge_of_images_that_says_nothing_is_asked_once_and_within_the_requests_time() {
    let dir = tempfile::tempdir().unwrap();
    let (address, asked, _task) = silent().await;
    let kubeconfig = dir.path().join("images.kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "x", "user": {}}], "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}]});
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    for (open, expected) in [(true, 201), (false, 403)] {
        let policy = json!({"kubeConfigFile": kubeconfig, "retryBackoff": 1, "defaultAllow": open});
        let plugins = json!([{"name": "ImagePolicyWebhook", "configuration": {"imagePolicy": policy}}]);
        let cluster = cluster(dir.path(), &["ImagePolicyWebhook"], &["ServiceAccount"], plugins).await;
        let before = asked.load(Ordering::SeqCst);
        let path = format!("{}?dryRun=All&timeout=2s", pods("default"));
        let (code, answer) = ask(&cluster.admin(), "POST", &path, &pod("p", json!({}))).await;
        assert_eq!(code, expected, "{answer}");
        assert_eq!(asked.load(Ordering::SeqCst), before + 1, "who was silent once is not asked again");
    }
}

#[tokio::test]
async fn a_provided_namespace_is_made_as_a_client_would_make_it() {
    let dir = tempfile::tempdir().unwrap();
    let hook = Hook::start(dir.path(), |request| {
        let message = format!("not for {}", request["userInfo"]["username"].as_str().unwrap());
        json!({"allowed": request["name"] != "kept-out", "status": {"message": message}})
    })
    .await;
    let cluster = cluster(dir.path(), &["NamespaceAutoProvision"], &["ServiceAccount"], json!([])).await;
    let client = cluster.admin();
    let webhook = json!({"name": "w.example.com", "clientConfig": hook.config(), "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["namespaces"]}]});
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "w"}, "webhooks": [webhook]});
    let registered = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    assert_eq!(ask(&client, "POST", registered, &object.to_string()).await.0, 201);
    for (namespace, why) in [
        (
            "No.Label",
            "Namespace \"No.Label\" is invalid: metadata.name: Invalid value: \"No.Label\": a lowercase RFC 1123 label",
        ),
        ("kept-out", "admission webhook \"w.example.com\" denied the request: not for system:apiserver"),
    ] {
        let (code, refused) = ask(&client, "POST", &pods(namespace), &pod("p", json!({}))).await;
        assert_eq!(code, 403, "{refused}");
        let message = refused["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("pods \"p\" is forbidden: {why}")), "{message}");
        assert_eq!(ask(&client, "GET", &format!("/api/v1/namespaces/{namespace}"), "").await.0, 404);
    }
    let (code, made) = ask(&client, "POST", &pods("let-in"), &pod("p", json!({}))).await;
    assert_eq!(code, 201, "{made}");
    let (_, namespace) = ask(&client, "GET", "/api/v1/namespaces/let-in", "").await;
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "let-in");
    assert_eq!(namespace["metadata"]["managedFields"][0]["manager"], "kube-apiserver", "{namespace}");
}

#[tokio::test]
async fn webhooks_are_asked_as_their_kubeconfig_says() {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("webhooks.kubeconfig");
    std::fs::write(&kubeconfig, "users: [{name: localhost, user: {token: other}}, {name: '*', user: {token: secret}}]")
        .unwrap();
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
        "kubeConfigFile": kubeconfig});
    let plugins = json!([{"name": "ValidatingAdmissionWebhook", "configuration": config}]);
    let cluster = cluster(dir.path(), &[], &[], plugins).await;
    let client = cluster.admin();
    let hook = Hook::start(dir.path(), |request| {
        let shown = request["authorization"].as_str().unwrap_or("nothing");
        json!({"allowed": false, "status": {"message": format!("shown {shown}")}})
    })
    .await;
    let webhook = |name: &str| {
        json!({"name": name, "clientConfig": hook.config(), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]})
    };
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "w"}, "webhooks": [webhook("w.example.com")]});
    let registered = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    assert_eq!(ask(&client, "POST", registered, &object.to_string()).await.0, 201);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}}).to_string();
    let maps = "/api/v1/namespaces/default/configmaps?dryRun=All";
    // It takes effect a moment after it is written.
    let mut last = Value::Null;
    for _ in 0..200 {
        let (code, answer) = ask(&client, "POST", maps, &map).await;
        last = answer;
        if code != 201 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // The port is not 443: its host alone does not name it.
    let why = "admission webhook \"w.example.com\" denied the request: shown Bearer secret";
    assert_eq!(last["message"], why, "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_from_files_rule_before_those_of_the_api_and_over_them() {
    const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
    let dir = tempfile::tempdir().unwrap();
    let manifests = dir.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let policy = |denied: &str| {
        let rules = json!([{"apiGroups": ["", "admissionregistration.k8s.io"], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["configmaps", "validatingwebhookconfigurations"]}]);
        let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "names.static.k8s.io"}, "spec": {"matchConstraints": {"resourceRules": rules},
                "validations": [{"expression": format!("object.metadata.name != '{denied}'")}]}});
        let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "names.static.k8s.io"}, "spec": {"policyName": "names.static.k8s.io", "validationActions": ["Deny"]}});
        format!("{policy}\n---\n{binding}\n")
    };
    let write = |text: &str| {
        let staged = manifests.join("policies.new");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, manifests.join("policies.yaml")).unwrap();
    };
    write(&policy("denied"));
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "ValidatingAdmissionPolicyConfiguration",
        "staticManifestsDir": manifests});
    let plugins = json!([{"name": "ValidatingAdmissionPolicy", "configuration": configuration}]);
    let cluster = cluster(dir.path(), &[], &[], plugins).await;
    let client = cluster.admin();
    let try_map = async |name: &str| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}).to_string();
        ask(&client, "POST", "/api/v1/namespaces/default/configmaps?dryRun=All", &map).await
    };
    let (code, status) = try_map("denied").await;
    assert_eq!(code, 422, "{status}");
    assert!(
        status["message"].as_str().unwrap().contains(
            "ValidatingAdmissionPolicy 'names.static.k8s.io' with binding 'names.static.k8s.io' denied request"
        ),
        "{status}"
    );
    assert_eq!(try_map("other").await.0, 201);
    // What the API's own policies never see.
    let hooks = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "denied"}});
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations");
    assert_eq!(ask(&client, "POST", &path, &hooks.to_string()).await.0, 422);
    let (_, listed) = ask(&client, "GET", &format!("{REGISTRATION}/validatingadmissionpolicies"), "").await;
    assert_eq!(listed["items"], json!([]), "nobody sees them through the API");

    write("kind: Nothing");
    write(&policy("other"));
    for _ in 0..600 {
        if try_map("other").await.0 == 422 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(try_map("other").await.0, 422, "the files were not read again");
    assert_eq!(try_map("denied").await.0, 201);
}
