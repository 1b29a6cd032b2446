//! Schemas, patches, server-side apply and OpenAPI, as unmodified kubectls see them.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use apiserver::testing::Cluster;

struct Kubectl {
    binary: &'static str,
    config: PathBuf,
}

impl Kubectl {
    /// Success, stdout, stderr.
    async fn run(&self, line: &str, input: &str) -> (bool, String, String) {
        let mut command = Command::new(self.binary);
        command.arg("--kubeconfig").arg(&self.config).arg("--cache-dir").arg(self.config.with_extension("cache"));
        command.args(line.split_whitespace()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let work = move || {
            let mut child = command.spawn().expect("kubectl is missing: apt-get install kubernetes-client");
            // A command that reads no input may have closed it.
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
            let output = child.wait_with_output().unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            (output.status.success(), text(output.stdout), text(output.stderr))
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    async fn ok(&self, line: &str, input: &str) -> String {
        let (success, out, err) = self.run(line, input).await;
        assert!(success, "{} {line}\n{out}\n{err}", self.binary);
        out
    }

    async fn fails(&self, line: &str, input: &str) -> String {
        let (success, out, err) = self.run(line, input).await;
        assert!(!success, "{} {line} should fail\n{out}\n{err}", self.binary);
        err
    }
}

fn kubectls(cluster: &Cluster) -> Vec<Kubectl> {
    let known = [
        "/usr/bin/kubectl",
        "/usr/lib/google-cloud-sdk/bin/kubectl.1.27",
        "/usr/lib/google-cloud-sdk/bin/kubectl.1.33",
    ];
    let found: Vec<Kubectl> = known
        .into_iter()
        .filter(|binary| Path::new(binary).exists())
        .map(|binary| Kubectl { binary, config: cluster.kubeconfig("admin", &["system:masters"]) })
        .collect();
    assert!(!found.is_empty(), "no kubectl found: apt-get install kubernetes-client");
    found
}

const DEPLOYMENT: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx:1
        ports: [{containerPort: 80}]
        resources: {limits: {cpu: 500m, memory: 64Mi}}
      volumes:
      - {name: tmp, emptyDir: {}}
";

#[tokio::test(flavor = "multi_thread")]
async fn kinds_are_explained() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    for kubectl in kubectls(&cluster) {
        let text = kubectl.ok("explain pod.spec.containers.livenessProbe", "").await;
        assert!(text.contains("Periodic probe of container liveness"), "{text}");
        let tree = kubectl.ok("explain deployment --recursive", "").await;
        for field in ["revisionHistoryLimit", "maxUnavailable", "topologySpreadConstraints"] {
            assert!(tree.contains(field), "{field} is missing:\n{tree}");
        }
        assert!(kubectl.ok("explain crd.spec.versions.schema", "").await.contains("openAPIV3Schema"));
        assert!(kubectl.ok("explain hpa.spec.metrics", "").await.contains("MetricSpec"));
        assert!(kubectl.fails("explain pod.spec.nothing", "").await.contains("does not exist"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_found_by_validation() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    for kubectl in kubectls(&cluster) {
        let typo = DEPLOYMENT.replace("replicas", "replcias");
        let error = kubectl.fails("create -f -", &typo).await;
        assert!(error.contains("strict decoding error: unknown field \"spec.replcias\""), "{error}");
        let (_, _, warning) = kubectl.run("create --validate=warn --dry-run=server -f -", &typo).await;
        assert!(warning.contains("unknown field \"spec.replcias\""), "{warning}");
        let wrong = DEPLOYMENT.replace("replicas: 2", "replicas: two");
        let error = kubectl.fails("create -f -", &wrong).await;
        assert!(
            error.contains("cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_side_apply_merges() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    for kubectl in kubectls(&cluster) {
        assert!(kubectl.ok("apply -f -", DEPLOYMENT).await.contains("created"));
        assert!(kubectl.ok("apply -f -", DEPLOYMENT).await.contains("unchanged"));
        kubectl.ok("set env deployment/web MODE=test", "").await;
        kubectl.ok("scale deployment/web --replicas=5", "").await;
        let changed = DEPLOYMENT
            .replace("500m", "0.5")
            .replace("64Mi", "65536Ki")
            .replace("nginx:1", "nginx:2")
            .replace("  replicas: 2\n", "");
        assert!(kubectl.ok("apply -f -", &changed).await.contains("configured"));
        let path = "jsonpath={.spec.template.spec.containers[0].image},{.spec.template.spec.containers[0].env[0].name},{.spec.template.spec.containers[0].resources.limits}";
        let text = kubectl.ok(&format!("get deployment web -o {path}"), "").await;
        assert_eq!(text, "nginx:2,MODE,{\"cpu\":\"500m\",\"memory\":\"64Mi\"}");
        let volumes = changed.replace("emptyDir: {}", "hostPath: {path: /tmp}");
        kubectl.ok("apply -f -", &volumes).await;
        let volume = kubectl.ok("get deployment web -o jsonpath={.spec.template.spec.volumes[0]}", "").await;
        assert!(volume.contains("hostPath") && !volume.contains("emptyDir"), "{volume}");
        let error = kubectl
            .fails("patch deployment web --type=json -p [{\"op\":\"remove\",\"path\":\"/spec/nothing\"}]", "")
            .await;
        assert!(error.contains("The request is invalid: the server rejected our request"), "{error}");
        kubectl.ok("delete deployment web", "").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply_knows_owners() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    for kubectl in kubectls(&cluster) {
        kubectl.ok("apply --server-side -f -", DEPLOYMENT).await;
        kubectl.ok("apply --server-side -f -", DEPLOYMENT).await;
        let managers = kubectl
            .ok("get deployment web --show-managed-fields -o jsonpath={.metadata.managedFields[*].manager}", "")
            .await;
        assert_eq!(managers, "kubectl");
        let other = DEPLOYMENT.replace("replicas: 2", "replicas: 3");
        let error = kubectl.fails("apply --server-side --field-manager=other -f -", &other).await;
        assert!(error.contains("Apply failed with 1 conflict: conflict with \"kubectl\": .spec.replicas"), "{error}");
        kubectl.ok("apply --server-side --field-manager=other --force-conflicts -f -", &other).await;
        assert_eq!(kubectl.ok("get deployment web -o jsonpath={.spec.replicas}", "").await, "3");
        // What nobody names any more goes.
        let fewer = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n";
        kubectl.ok("apply --server-side --field-manager=other -f -", fewer).await;
        let labels = kubectl.ok("get deployment web -o jsonpath={.metadata.labels}", "").await;
        assert_eq!(labels, "{\"app\":\"web\"}");
        let error = kubectl.fails("apply --server-side -f -", &DEPLOYMENT.replace("replicas", "replcias")).await;
        assert!(error.contains("spec.replcias"), "{error}");
        kubectl.ok("delete deployment web", "").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_side_moves_over_to_server_side() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    for kubectl in kubectls(&cluster) {
        kubectl.ok("apply -f -", DEPLOYMENT).await;
        kubectl.ok("apply --server-side -f -", &DEPLOYMENT.replace("nginx:1", "nginx:3")).await;
        let image = kubectl.ok("get deployment web -o jsonpath={.spec.template.spec.containers[0].image}", "").await;
        assert_eq!(image, "nginx:3");
        kubectl.ok("delete deployment web", "").await;
    }
}

/// Every `$ref` of a document leads somewhere.
fn check_references(value: &serde_json::Value, document: &serde_json::Value) {
    match value {
        serde_json::Value::Object(members) => {
            if let Some(serde_json::Value::String(reference)) = members.get("$ref") {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
            members.values().for_each(|value| check_references(value, document));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|value| check_references(value, document)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_documents_of_all_groups_are_whole() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    let kubectl = &kubectls(&cluster)[0];
    let get = async |path: &str| -> serde_json::Value {
        serde_json::from_str(&kubectl.ok(&format!("get --raw {path}"), "").await).unwrap()
    };
    let index = get("/openapi/v3").await;
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.len() > 20, "{index}");
    for (path, place) in paths {
        let start = std::time::Instant::now();
        let document = get(place["serverRelativeURL"].as_str().unwrap()).await;
        println!("{path}: {} bytes in {:?}", document.to_string().len(), start.elapsed());
        check_references(&document, &document);
        let operations = document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap());
        for (method, operation) in operations.filter(|(method, _)| *method != "parameters") {
            assert!(operation["responses"]["200"]["description"].is_string(), "{path} {method}");
        }
    }
    let start = std::time::Instant::now();
    let document = get("/openapi/v2").await;
    println!("v2: {} bytes in {:?}", document.to_string().len(), start.elapsed());
    check_references(&document, &document);
    let error = kubectl.fails("get --raw /openapi/v3/apis/nothing/v1", "").await;
    assert!(error.contains("the server could not find the requested resource"), "{error}");
}

/// Status, content type and body of one request, sent in-process.
async fn send(client: &kube::Client, method: &str, path: &str, accept: &str, body: Vec<u8>) -> (u16, String, Vec<u8>) {
    use http_body_util::BodyExt;
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("Accept", accept)
        .header("Content-Type", PROTOBUF)
        .body(kube::client::Body::from(body))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let kind = parts.headers.get("Content-Type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    (parts.status.as_u16(), kind, body.collect().await.unwrap().to_bytes().to_vec())
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_goes_in_and_out() {
    use apiserver::protobuf::{decode, encode};
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1500m"}}}],
            "tolerations": [{"key": "k", "operator": "Exists"}]}});
    let account = serde_json::json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    send(&client, "POST", "/api/v1/namespaces/default/serviceaccounts", PROTOBUF, encode(&account).unwrap()).await;
    let pods = "/api/v1/namespaces/default/pods";
    let (status, kind, body) = send(&client, "POST", pods, PROTOBUF, encode(&pod).unwrap()).await;
    assert_eq!((status, kind.as_str()), (201, PROTOBUF), "{}", String::from_utf8_lossy(&body));
    let created = decode(&body).unwrap();
    assert_eq!(created["spec"]["containers"][0]["imagePullPolicy"], "Always");
    let (_, _, json) = send(&client, "GET", &format!("{pods}/p"), "application/json", Vec::new()).await;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let (_, _, body) = send(&client, "GET", &format!("{pods}/p"), PROTOBUF, Vec::new()).await;
    assert_eq!(body, encode(&json).unwrap());
    let (_, kind, body) =
        send(&client, "GET", pods, "application/vnd.kubernetes.protobuf,application/json", Vec::new()).await;
    let list = decode(&body).unwrap();
    assert_eq!((kind.as_str(), list["kind"].as_str()), (PROTOBUF, Some("PodList")));
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let (status, _, _) = send(&client, "GET", &format!("{pods}/none"), PROTOBUF, Vec::new()).await;
    assert_eq!(status, 404);
    let (_, kind, body) =
        send(&client, "GET", &format!("{pods}?watch=true&timeoutSeconds=1"), PROTOBUF, Vec::new()).await;
    assert_eq!(kind, "application/vnd.kubernetes.protobuf;stream=watch");
    let length = u32::from_be_bytes(body[..4].try_into().unwrap()) as usize;
    assert!(body.len() >= length + 4 && &body[4..11] == b"\x0a\x05ADDED", "{body:?}");
    for garbage in [&b"k8s\0garbage"[..], b"", b"{}"] {
        let (status, _, _) = send(&client, "POST", pods, "application/json", garbage.to_vec()).await;
        assert_eq!(status, 400);
    }
    let delete =
        encode(&serde_json::json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})).unwrap();
    let (status, _, body) = send(&client, "DELETE", &format!("{pods}/p"), PROTOBUF, delete).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
}

const WIDGETS: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - {rule: 'self.least <= self.size', message: 'size must be at least the least'}
            properties:
              size: {type: integer, minimum: 1, description: How large it is.}
              least: {type: integer, default: 1}
              ports:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [port]
                items: {type: object, required: [port], properties: {port: {type: integer}, name: {type: string}}}
";

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_obey_their_schema() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    let widget =
        |spec: &str| format!("apiVersion: example.com/v1\nkind: Widget\nmetadata: {{name: w}}\nspec: {spec}\n");
    let kubectls = kubectls(&cluster);
    kubectls[0].ok("create -f -", WIDGETS).await;
    kubectls[0].ok("wait --for=condition=Established crd/widgets.example.com --timeout=10s", "").await;
    for kubectl in kubectls {
        let error = kubectl.fails("create -f -", &widget("{size: 0}")).await;
        assert!(
            error.contains("spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
            "{error}"
        );
        let error = kubectl.fails("create -f -", &widget("{size: 1, least: 2}")).await;
        assert!(error.contains("spec: Invalid value: size must be at least the least"), "{error}");
        let error = kubectl.fails("create -f -", &widget("{size: 1, bogus: 2}")).await;
        assert!(error.contains("unknown field \"spec.bogus\""), "{error}");
        kubectl.ok("apply --server-side -f -", &widget("{size: 3, ports: [{port: 80, name: web}]}")).await;
        kubectl.ok("apply --server-side --field-manager=other -f -", &widget("{ports: [{port: 443}]}")).await;
        let spec = kubectl.ok("get widget w -o jsonpath={.spec}", "").await;
        assert_eq!(spec, "{\"least\":1,\"ports\":[{\"name\":\"web\",\"port\":80},{\"port\":443}],\"size\":3}");
        kubectl.ok("patch widget w --type=merge -p {\"spec\":{\"size\":4}}", "").await;
        let error = kubectl.fails("patch widget w --type=strategic -p {\"spec\":{\"size\":4}}", "").await;
        assert!(error.contains("application/merge-patch+json"), "{error}");
        assert!(kubectl.ok("explain widget.spec.size", "").await.contains("How large it is."));
        kubectl.ok("delete widget w", "").await;
    }
}
