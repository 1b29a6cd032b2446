//! Admission policies and webhooks, as someone who writes them sees them.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::hook::Hook;
use super::{ask, eventually};

const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn made(client: &kube::Client, path: &str, object: Value) -> Value {
    let (code, answer) = ask(client, "POST", path, &object.to_string()).await;
    assert_eq!(code, 201, "{answer:#}");
    answer
}

fn map(name: &str, data: Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
}

/// What matches ConfigMaps, but not those that the server itself keeps in every namespace.
fn config_maps() -> Value {
    json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]})
}

async fn policy(client: &kube::Client, kind: &str, name: &str, mut spec: Value, mut binding: Value) {
    let plural = format!("{REGISTRATION}/{}", kind.to_lowercase().replace("policy", "policies"));
    let object = |kind: &str, spec: &Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    spec["matchConstraints"] = config_maps();
    made(client, &plural, object(kind, &spec)).await;
    binding["policyName"] = name.into();
    made(client, &plural.replace("policies", "policybindings"), object(&format!("{kind}Binding"), &binding)).await;
}

/// Asks until the answer has `code`: policies take effect a moment after they are written.
async fn answers(client: &kube::Client, object: &str, code: u16) -> Value {
    let path = format!("{MAPS}?dryRun=All");
    let mut last = (0, Value::Null);
    for _ in 0..200 {
        last = ask(client, "POST", &path, object).await;
        if last.0 == code {
            return last.1;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("never {code}: {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn validating_policies_refuse_with_their_message() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let spec = json!({
        "variables": [{"name": "size", "expression": "has(object.data) && 'size' in object.data ? int(object.data['size']) : 0"}],
        "validations": [{"expression": "variables.size < 5", "messageExpression": "'too large: ' + string(variables.size)", "reason": "Forbidden"}],
        "matchConditions": [{"name": "not-free", "expression": "object.metadata.name != 'free'"}],
    });
    policy(&client, "ValidatingAdmissionPolicy", "sizes", spec, json!({"validationActions": ["Deny"]})).await;
    let error = answers(&client, &map("a", json!({"size": "7"})), 403).await;
    assert_eq!(
        error["message"],
        "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'sizes' with binding 'sizes' denied request: too large: 7"
    );
    assert_eq!(error["reason"], "Forbidden");
    answers(&client, &map("a", json!({"size": "3"})), 201).await;
    answers(&client, &map("free", json!({"size": "7"})), 201).await;
    let error = answers(&client, &map("a", json!({"size": "x"})), 422).await;
    assert!(
        error["message"].as_str().unwrap().contains("expression 'variables.size < 5' resulted in error"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_take_parameters_and_ask_the_authorizer() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [
            {"expression": "object.metadata.name.startsWith(params.data.prefix)"},
            {"expression": "authorizer.group('').resource('secrets').namespace('default').check('delete').allowed()", "message": "who may not delete secrets"},
            {"expression": "namespaceObject.metadata.name == 'default' && request.operation == 'CREATE'"},
        ],
    });
    made(
        &client,
        "/api/v1/namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "params"}}),
    )
    .await;
    let parameter =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "p"}, "data": {"prefix": "web-"}});
    made(&client, "/api/v1/namespaces/params/configmaps", parameter).await;
    let binding = json!({"validationActions": ["Deny"], "paramRef": {"name": "p", "namespace": "params", "parameterNotFoundAction": "Deny"},
        "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}});
    policy(&client, "ValidatingAdmissionPolicy", "names", spec, binding).await;
    let error = answers(&client, &map("db", json!({})), 422).await;
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .ends_with("failed expression: object.metadata.name.startsWith(params.data.prefix)"),
        "{error}"
    );
    answers(&client, &map("web-1", json!({})), 201).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "maps"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]});
    made(&client, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "maps"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maps"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]});
    made(&client, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let error = answers(&cluster.client("ann"), &map("web-1", json!({})), 422).await;
    assert!(error["message"].as_str().unwrap().ends_with("who may not delete secrets"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_policies_apply_and_patch() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let apply = json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'made': 'by-policy'}}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/b'), value: object.metadata.labels['made']}]"}},
    ]});
    policy(&client, "MutatingAdmissionPolicy", "marks", apply, json!({})).await;
    let mut object = Value::Null;
    for _ in 0..200 {
        object = ask(&client, "POST", &format!("{MAPS}?dryRun=All"), &map("a", json!({"x": "y"}))).await.1;
        if object["metadata"]["labels"].is_object() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert_eq!(object["metadata"]["labels"], json!({"made": "by-policy", "example.com/b": "by-policy"}), "{object:#}");
    assert_eq!(object["data"], json!({"x": "y"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_compiled_and_typed() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let object = |expression: &str| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]},
            "validations": [{"expression": expression}]}})
    };
    let path = format!("{REGISTRATION}/validatingadmissionpolicies");
    for (expression, why) in [
        (
            "object.spec.(",
            "spec.validations[0].expression: Invalid value: \"object.spec.(\": compilation failed: ERROR: <input>:1:13: Syntax error",
        ),
        ("nothing > 1", "compilation failed: ERROR: <input>:1:1: undeclared reference to 'nothing' (in container '')"),
        ("request.verb == 'x'", "undefined field 'verb'"),
        ("'text'", "must evaluate to bool"),
    ] {
        let (code, error) = ask(&client, "POST", &path, &object(expression).to_string()).await;
        assert!(code == 422 && error["message"].as_str().unwrap().contains(why), "{expression}: {error:#}");
    }
    made(&client, &path, object("object.spec.replicas > 1 && object.spec.nothing == 1")).await;
    let policy =
        eventually(&client, &format!("{path}/p"), |_, policy| policy["status"]["observedGeneration"] == 1).await;
    let warning = &policy["status"]["typeChecking"]["expressionWarnings"][0];
    assert_eq!(warning["fieldRef"], "spec.validations[0].expression");
    assert!(
        warning["warning"]
            .as_str()
            .unwrap()
            .starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:40: undefined field 'nothing'"),
        "{warning}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_change_and_refuse_what_their_conditions_let_through() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let hook = Hook::start(dir.path(), |request| {
        use base64::Engine;
        let patch = json!([{"op": "add", "path": "/data", "value": {"seen": request["object"]["metadata"]["name"]}}]);
        json!({"allowed": true, "patchType": "JSONPatch", "patch": base64::prelude::BASE64_STANDARD.encode(patch.to_string()), "warnings": ["seen"]})
    })
    .await;
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "h"}, "webhooks": [{
        "name": "h.example.com", "clientConfig": hook.config(), "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
        "rules": config_maps()["resourceRules"], "matchConditions": [{"name": "no-b", "expression": "!object.metadata.name.startsWith('b')"}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}]});
    made(&client, &format!("{REGISTRATION}/mutatingwebhookconfigurations"), configuration).await;
    let mut object = Value::Null;
    for _ in 0..200 {
        object = answers(&client, &map("a", json!({"x": "y"})), 201).await;
        if object["data"]["seen"] == "a" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert_eq!(object["data"], json!({"seen": "a"}));
    assert_eq!(answers(&client, &map("b", json!({"x": "y"})), 201).await["data"], json!({"x": "y"}));
    drop(hook);
    let error = answers(&client, &map("a", json!({})), 500).await;
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("failed calling webhook \"h.example.com\": failed to call webhook: Post \"https://localhost:")
            && message.contains("/hook?timeout=5s\": dial tcp localhost:")
            && message.ends_with(": connect: connection refused"),
        "{message}"
    );
}
