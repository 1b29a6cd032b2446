//! The API as kubectl sees it: verbs, patches, selectors, tables, and what bad input gets.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use integration::{Lab, command};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// A raw request with the administrator's certificate, through curl on the host.
struct Raw {
    base: String,
    directory: tempfile::TempDir,
}

impl Raw {
    fn new(lab: &Lab) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config: Value = serde_json::from_str(&std::fs::read_to_string(&lab.kubeconfig).unwrap()).unwrap();
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        for (name, text) in [
            ("ca", &cluster["certificate-authority-data"]),
            ("crt", &user["client-certificate-data"]),
            ("key", &user["client-key-data"]),
        ] {
            let decoded = command("base64", &["-d"], &[], text.as_str().unwrap()).expect_ok();
            std::fs::write(directory.path().join(name), decoded).unwrap();
        }
        Self { base: cluster["server"].as_str().unwrap().to_owned(), directory }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Status code and body.
    fn send(&self, method: &str, path: &str, headers: &[&str], body: &str, authenticated: bool) -> (u16, Value) {
        let (ca, crt, key, url) = (self.file("ca"), self.file("crt"), self.file("key"), format!("{}{path}", self.base));
        let mut arguments = vec!["-sS", "--max-time", "30", "-X", method, "--cacert", &ca, "-w", "\n%{http_code}"];
        if authenticated {
            arguments.extend(["--cert", crt.as_str(), "--key", key.as_str()]);
        }
        for header in headers {
            arguments.extend(["-H", header]);
        }
        if !body.is_empty() {
            arguments.extend(["--data-binary", "@-"]);
        }
        arguments.push(&url);
        let text = command("curl", &arguments, &[], body).expect_ok();
        let (body, code) = text.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())))
    }

    fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.send(method, path, &["Content-Type: application/json"], &body.to_string(), true)
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, &[], "", true)
    }
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

#[test]
fn objects_live_their_lives() {
    let lab = Lab::up_without_images("verbs", &[]);
    let raw = Raw::new(&lab);
    let maps = "/api/v1/namespaces/default/configmaps";

    let (code, created) = raw.json("POST", maps, &config_map("one"));
    assert_eq!(code, 201, "{created}");
    assert!(created["metadata"]["uid"].is_string() && created["metadata"]["creationTimestamp"].is_string());
    let (code, again) = raw.json("POST", maps, &config_map("one"));
    assert_eq!(
        (code, again["reason"].as_str(), again["message"].as_str()),
        (409, Some("AlreadyExists"), Some("configmaps \"one\" already exists"))
    );

    let mut generated = config_map("");
    generated["metadata"] = json!({"generateName": "gen-", "labels": {"app": "a"}});
    let (code, generated) = raw.json("POST", maps, &generated);
    let name = generated["metadata"]["name"].as_str().unwrap();
    assert!(code == 201 && name.starts_with("gen-") && name.len() == 9, "{generated}");

    // a conflicting update
    let mut stale = created.clone();
    stale["data"]["a"] = json!("2");
    let (code, _) = raw.json("PUT", &format!("{maps}/one"), &stale);
    assert_eq!(code, 200);
    stale["data"]["a"] = json!("3");
    let (code, refused) = raw.json("PUT", &format!("{maps}/one"), &stale);
    assert_eq!((code, refused["reason"].as_str()), (409, Some("Conflict")), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("the object has been modified"));

    // the three patches
    for (kind, patch, value) in [
        ("json", json!([{"op": "replace", "path": "/data/a", "value": "json"}]), "json"),
        ("merge", json!({"data": {"a": "merge"}}), "merge"),
        ("strategic-merge", json!({"data": {"a": "strategic"}}), "strategic"),
    ] {
        let header = format!("Content-Type: application/{kind}-patch+json");
        let (code, patched) = raw.send("PATCH", &format!("{maps}/one"), &[&header], &patch.to_string(), true);
        assert_eq!((code, patched["data"]["a"].as_str()), (200, Some(value)), "{patched}");
    }

    // selectors, limit and continue
    for index in 0..5 {
        let mut labelled = config_map(&format!("l-{index}"));
        labelled["metadata"]["labels"] = json!({"app": if index < 3 { "x" } else { "y" }});
        assert_eq!(raw.json("POST", maps, &labelled).0, 201);
    }
    let count = |query: &str| raw.get(&format!("{maps}?{query}")).1["items"].as_array().unwrap().len();
    assert_eq!(count("labelSelector=app%3Dx"), 3);
    assert_eq!(count("labelSelector=app%20in%20(x,y)"), 5);
    assert_eq!(count("fieldSelector=metadata.name%3Done"), 1);
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let (code, page) = raw.get(&format!("{maps}?limit=2&continue={token}"));
        assert_eq!(code, 200, "{page}");
        assert!(page["items"].as_array().unwrap().len() <= 2);
        names.extend(
            page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
    }
    let mut sorted = names.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(names, sorted, "every name once, in order");

    // finalizers hold an object until they are gone
    lab.kubectl(&[
        "patch",
        "configmap",
        "one",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":["example.com/hold"]}}"#,
    ]);
    lab.kubectl(&["delete", "configmap", "one", "--wait=false"]);
    assert!(lab.get(&["configmap", "one"])["metadata"]["deletionTimestamp"].is_string());
    lab.kubectl(&["patch", "configmap", "one", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    lab.try_kubectl(&["get", "configmap", "one"]).expect_failure("configmaps \"one\" not found");
    let (code, _) = raw.send("DELETE", &format!("{maps}?labelSelector=app%3Dx"), &[], "", true);
    assert_eq!((code, count("labelSelector=app%3Dx")), (200, 0));

    // a namespace takes what is in it along
    lab.kubectl(&["create", "namespace", "short-lived"]);
    lab.kubectl(&["-n", "short-lived", "create", "configmap", "inside"]);
    lab.kubectl(&["delete", "namespace", "short-lived", "--timeout=30s"]);
    lab.try_kubectl(&["-n", "short-lived", "get", "configmap", "inside"]).expect_failure("not found");

    // quantities are canonical, whatever they were written as
    lab.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: q}\nspec: {schedulerName: none, containers: [{name: c, image: i, resources: {requests: {cpu: 0.5, memory: 1024Mi}}}]}\n",
    );
    let requests = lab.get(&["pod", "q"])["spec"]["containers"][0]["resources"]["requests"].clone();
    assert_eq!(requests, json!({"cpu": "500m", "memory": "1Gi"}));

    assert!(lab.kubectl(&["get", "pods"]).starts_with("NAME   READY   STATUS    RESTARTS   AGE"));
    assert!(lab.kubectl(&["api-resources"]).contains("deployments"));
    assert!(lab.kubectl(&["version"]).contains("v1.37"));
    assert!(lab.kubectl(&["explain", "deployment.spec.strategy"]).contains("rollingUpdate"));
    assert!(lab.kubectl(&["auth", "can-i", "--list"]).contains("*.*"));
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(raw.get(path), (200, json!("ok")), "{path}");
    }
}

#[test]
fn bad_input_is_answered_and_explained() {
    let lab = Lab::up_without_images("bad", &[]);
    let raw = Raw::new(&lab);
    let maps = "/api/v1/namespaces/default/configmaps";
    let json_header = ["Content-Type: application/json"];
    let send = |method: &str, path: &str, body: &str| raw.send(method, path, &json_header, body, true);

    let huge = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "huge"}, "data": {"a": "x".repeat(3 << 20)}}).to_string();
    let service = |ports: &str| {
        format!(r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s"}},"spec":{{"ports":{ports}}}}}"#)
    };
    let deployment = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":-1,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
    let cases: Vec<(&str, &str, String, u16, &str)> = vec![
        ("POST", maps, "{ not json".into(), 400, "BadRequest"),
        ("POST", maps, huge, 413, "RequestEntityTooLarge"),
        ("POST", maps, r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"}}"#.into(), 400, "BadRequest"),
        ("POST", maps, r#"{"apiVersion":"v9","kind":"ConfigMap","metadata":{"name":"a"}}"#.into(), 400, "BadRequest"),
        (
            "POST",
            maps,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"other"}}"#.into(),
            400,
            "BadRequest",
        ),
        (
            "POST",
            maps,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"Not_Valid"}}"#.into(),
            422,
            "Invalid",
        ),
        ("POST", "/api/v1/namespaces/absent/configmaps", config_map("a").to_string(), 404, "NotFound"),
        ("POST", "/api/v1/namespaces/default/unknowns", "{}".into(), 404, "NotFound"),
        (
            "POST",
            "/api/v1/namespaces/default/services",
            service(r#"[{"name":"a","port":80},{"name":"a","port":81}]"#),
            422,
            "Invalid",
        ),
        ("POST", "/api/v1/namespaces/default/services", service(r#"[{"port":70000}]"#), 422, "Invalid"),
        ("POST", "/apis/apps/v1/namespaces/default/deployments", deployment.into(), 422, "Invalid"),
        ("GET", "/api/v1/namespaces/default/configmaps/none", String::new(), 404, "NotFound"),
        ("PATCH", "/api/v1/namespaces/default/configmaps/none", "{}".into(), 415, "UnsupportedMediaType"),
        ("GET", "/api/v1/configmaps?labelSelector=a%20b", String::new(), 400, "BadRequest"),
        ("GET", "/api/v1/configmaps?continue=nonsense", String::new(), 400, "BadRequest"),
        ("PUT", maps, "{}".into(), 405, "MethodNotAllowed"),
    ];
    for (method, path, body, code, reason) in &cases {
        let (got, status) = send(method, path, body);
        let shown: String = body.chars().take(200).collect();
        assert_eq!((got, status["reason"].as_str()), (*code, Some(*reason)), "{method} {path} {shown}: {status}");
        assert_eq!((status["kind"].as_str(), status["status"].as_str()), (Some("Status"), Some("Failure")));
        assert!(!status["message"].as_str().unwrap_or_default().is_empty());
    }
    let (_, status) = send("POST", "/api/v1/namespaces/default/services", &service(r#"[{"port":70000}]"#));
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"),
        "{status}"
    );
    let (_, status) = send("POST", "/apis/apps/v1/namespaces/default/deployments", deployment);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        "{status}"
    );

    // unknown and duplicate fields, as fieldValidation says
    let unknown =
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"f"},"nonsense":1,"data":{"a":"1","a":"2"}}"#;
    let (code, status) = send("POST", &format!("{maps}?fieldValidation=Strict"), unknown);
    assert_eq!(code, 400, "{status}");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("unknown field \"nonsense\"") && message.contains("duplicate field \"data.a\""),
        "{message}"
    );
    assert_eq!(send("POST", &format!("{maps}?fieldValidation=Ignore"), unknown).0, 201);

    // who is nobody, and who may not
    assert_eq!(raw.send("GET", maps, &[], "", false).0, 403, "anonymous");
    let (code, status) = raw.send("GET", maps, &["Authorization: Bearer wrong"], "", false);
    assert_eq!((code, status["reason"].as_str()), (401, Some("Unauthorized")));
    lab.kubectl(&["create", "serviceaccount", "powerless"]);
    let token = lab.kubectl(&["create", "token", "powerless"]);
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let (code, status) = raw.send("GET", "/api/v1/namespaces/default/secrets", &[&bearer], "", false);
    assert_eq!(code, 403, "{status}");
    assert!(
        status["message"].as_str().unwrap().contains(r#"User "system:serviceaccount:default:powerless" cannot list resource "secrets" in API group "" in the namespace "default""#),
        "{status}"
    );
    // rights come, and the token is accepted
    lab.kubectl(&["create", "rolebinding", "now", "--clusterrole=view", "--serviceaccount=default:powerless"]);
    lab.eventually("the binding is seen", SOON, || {
        let (code, status) = raw.send("GET", maps, &[&bearer], "", false);
        if code == 200 { Ok(()) } else { Err(status.to_string()) }
    });
    // and a token of a deleted account is not
    lab.kubectl(&["delete", "serviceaccount", "powerless"]);
    lab.eventually("the token is refused", SOON, || {
        let (code, status) = raw.send("GET", maps, &[&bearer], "", false);
        if code == 401 { Ok(()) } else { Err(status.to_string()) }
    });
}

#[test]
fn watches_see_every_change_once() {
    let lab = Lab::up_without_images("watch", &[]);
    let mut watching = lab.spawn_kubectl(&["get", "configmaps", "-l", "seen=yes", "--watch", "--output-watch-events"]);
    for index in 0..3 {
        let name = format!("w-{index}");
        lab.kubectl(&["create", "configmap", &name]);
        lab.kubectl(&["label", "configmap", &name, "seen=yes"]);
    }
    lab.kubectl(&["label", "configmap", "w-0", "seen=no", "--overwrite"]);
    lab.kubectl(&["delete", "configmap", "w-1"]);
    for index in 0..3 {
        let line = watching.line_with(&format!("w-{index}"));
        assert!(line.contains("ADDED"), "{line}");
    }
    assert!(watching.line_with("w-0").contains("DELETED"), "an object that no longer matches goes");
    assert!(watching.line_with("w-1").contains("DELETED"));
}
