//! Creates, updates and deletes beyond the plain ones: who may, what is noted of whom, what is answered.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{APPLY, JSON, JSON_PATCH, MAPS, MERGE, STRATEGIC, apply, delete, get, map, patch, post, put, request};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const CONTROLLERS: &str = "/api/v1/namespaces/default/replicationcontrollers";
const EVENTS: &str = "/api/v1/namespaces/default/events";
const HOLD: &str = "example.com/hold";

fn held(name: &str) -> Value {
    let mut object = map(name, json!({}));
    object["metadata"]["finalizers"] = json!([HOLD]);
    object
}

async fn delete_with(client: &kube::Client, path: &str, options: Value) -> super::Answer {
    request(client, "DELETE", path, &[("content-type", JSON)], options.to_string().as_bytes()).await
}

#[tokio::test]
async fn an_apply_that_creates_takes_the_right_to_create() {
    let cluster = Cluster::start().await;
    let (admin, jane) = (cluster.admin(), cluster.client("jane"));
    let role = |verbs: Value| json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]});
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    post(&admin, roles, &role(json!(["get", "patch", "update"]))).await.expect(201);
    let binding = json!({"metadata": {"name": "r"}, "roleRef": {"kind": "Role", "name": "r", "apiGroup": "rbac.authorization.k8s.io"}, "subjects": [{"kind": "User", "name": "jane"}]});
    post(&admin, "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding).await.expect(201);
    let item = format!("{MAPS}/a");
    // Until the role is known a patch is not even looked at.
    super::until(&jane, &item, |answer| answer.code == 404).await;
    apply(&jane, &item, "m", "", &map("a", json!({}))).await.refused(
        403,
        "Forbidden",
        "configmaps \"a\" is forbidden: User \"jane\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\"",
    );
    post(&admin, MAPS, &map("a", json!({}))).await.expect(201);
    apply(&jane, &item, "m", "", &map("a", json!({"k": "v"}))).await.expect(200);
}

#[tokio::test]
async fn what_admission_adds_is_nobodys() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let made = post(&client, &format!("{CLAIMS}?fieldManager=me"), &claim).await.expect(201);
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let entries = made["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(
        (entries.len(), &entries[0]["fieldsV1"]),
        (
            1,
            &json!({"f:spec": {"f:accessModes": {}, "f:resources": {"f:requests": {".": {}, "f:storage": {}}}, "f:volumeMode": {}}})
        )
    );
    // So nobody stands in the way of who takes it.
    let config =
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "finalizers": [HOLD]}});
    let both = apply(&client, &format!("{CLAIMS}/c"), "you", "", &config).await.expect(200);
    assert_eq!(both["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection", HOLD]));
}

#[tokio::test]
async fn owners_are_kept_once_each() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let owner = |uid: &str| json!({"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": uid});
    let mut object = map("a", json!({}));
    object["metadata"]["ownerReferences"] = json!([owner("1"), owner("2"), owner("1"), owner("2"), owner("1")]);
    let warning = |when: &str, uids: &str| {
        format!(
            "299 - \".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {uids}\""
        )
    };
    let made = post(&client, MAPS, &object).await;
    assert_eq!(made.warnings(), [warning("", "1, 2, 1")]);
    let made = made.expect(201);
    assert_eq!(made["metadata"]["ownerReferences"], json!([owner("1"), owner("2")]));
    let item = format!("{MAPS}/a");
    let replaced = put(&client, &item, &object).await;
    assert_eq!(replaced.warnings(), [warning("", "1, 2, 1")]);
    assert_eq!(replaced.expect(200)["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    // Of a patch this is found later.
    let twice = json!({"metadata": {"ownerReferences": [owner("1"), owner("1")]}});
    let patched = patch(&client, &item, MERGE, &twice).await;
    assert_eq!(patched.warnings(), [warning(" after mutating admission happens", "1")]);
    assert_eq!(patched.expect(200)["metadata"]["ownerReferences"], json!([owner("1")]));
}

#[tokio::test]
async fn a_name_that_is_taken_says_by_what() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, MAPS, &held("a")).await.expect(201);
    let mut generated = map("a", json!({}));
    generated["metadata"]["generateName"] = "a-".into();
    let answer = post(&client, MAPS, &generated).await;
    let taken = "configmaps \"a\" already exists";
    let not_unique = format!("{taken}, the server was not able to generate a unique name for the object");
    answer.refused(409, "AlreadyExists", &not_unique);
    assert_eq!(answer.value["details"], json!({"name": "a", "kind": "configmaps", "retryAfterSeconds": 1}));
    delete(&client, &format!("{MAPS}/a")).await.expect(200);
    for path in [MAPS.to_owned(), format!("{MAPS}?dryRun=All")] {
        let answer = post(&client, &path, &map("a", json!({}))).await;
        answer.refused(409, "AlreadyExists", &format!("object is being deleted: {taken}"));
    }
}

#[tokio::test]
async fn updates_keep_to_what_is_known_of_the_object() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{MAPS}/a");
    post(&client, MAPS, &map("a", json!({}))).await.expect(201);
    let begins = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    patch(&client, &item, MERGE, &begins).await.refused(
        422,
        "Invalid",
        "ConfigMap \"a\" is invalid: metadata.deletionTimestamp: Invalid value: \"2026-01-01T00:00:00Z\": field is immutable",
    );
    // Some kinds are made by whoever puts them first, and some are put without saying over what.
    let class = json!({"metadata": {"name": "r"}, "handler": "runc"});
    let classes = "/apis/node.k8s.io/v1/runtimeclasses/r";
    put(&client, classes, &class).await.expect(201);
    put(&client, classes, &class).await.refused(
        422,
        "Invalid",
        "runtimeclasses.node.k8s.io \"r\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
    );
    let flow = json!({"metadata": {"name": "f"}, "spec": {"priorityLevelConfiguration": {"name": "global-default"}}});
    let flows = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
    post(&client, flows, &flow).await.expect(201);
    put(&client, &format!("{flows}/f"), &flow).await.expect(200);
    super::define(&client, &super::definition(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})))
        .await;
    let foo = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}});
    post(&client, super::FOOS, &foo).await.expect(201);
    put(&client, &format!("{}/f", super::FOOS), &foo).await.refused(
        422,
        "Invalid",
        "foos.example.com \"f\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
    );
}

#[tokio::test]
async fn bodies_that_are_no_patches_say_what_they_are_instead() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{MAPS}/a");
    post(&client, MAPS, &map("a", json!({"k": "v"}))).await.expect(201);
    let decoding =
        |found: &str, target: &str| format!("error decoding patch: json: cannot unmarshal {found} into Go {target}");
    let a_map = "value of type map[string]interface {}";
    for (media, body, why) in [
        (JSON_PATCH, "[{", "invalid JSON patch".to_owned()),
        (MERGE, "", "invalid JSON patch".to_owned()),
        (STRATEGIC, "a: b", "invalid JSON patch".to_owned()),
        (JSON_PATCH, "{}", decoding("object", "value of type []handlers.jsonPatchOp")),
        (JSON_PATCH, r#"[{"op":"add","path":1}]"#, decoding("number", "struct field jsonPatchOp.path of type string")),
        (MERGE, "null", "Invalid JSON Patch".to_owned()),
        (MERGE, "[]", decoding("array", a_map)),
        (STRATEGIC, "[]", format!("json: cannot unmarshal array into Go {a_map}")),
        (STRATEGIC, r#"{"$patch":"merge"}"#, "unknown patch type: merge in map: map[$patch:merge]".to_owned()),
    ] {
        let answer = request(&client, "PATCH", &item, &[("content-type", media)], body.as_bytes()).await;
        answer.refused(400, "BadRequest", &why);
    }
    let path = format!("{item}?fieldManager=m");
    let answer = request(&client, "PATCH", &path, &[("content-type", APPLY)], b"a: [").await;
    assert!(answer.code == 400 && answer.message().starts_with("error encoding patch: yaml: "), "{:#}", answer.value);
    let answer = patch(&client, &item, JSON_PATCH, &json!([{"op": "test", "path": "/data/k", "value": "w"}])).await;
    answer.refused(422, "Invalid", "the server rejected our request due to an error in our request");
    assert_eq!(answer.value["details"], json!({}));
    // What there is not cannot be patched, whatever the patch.
    for (media, body) in [(JSON_PATCH, r#"[{"op":"bogus"}]"#), (MERGE, "[]"), (STRATEGIC, "{}")] {
        let none = format!("{MAPS}/none");
        let answer = request(&client, "PATCH", &none, &[("content-type", media)], body.as_bytes()).await;
        answer.refused(404, "NotFound", "configmaps \"none\" not found");
    }
    // Replaced where it is not yet, and removed by its place from the end.
    let operations = json!([
        {"op": "replace", "path": "/data/new", "value": "1"},
        {"op": "add", "path": "/metadata/finalizers", "value": ["a/b", "c/d"]},
        {"op": "remove", "path": "/metadata/finalizers/-1"},
    ]);
    let patched = patch(&client, &item, JSON_PATCH, &operations).await.expect(200);
    assert_eq!(
        (&patched["data"], &patched["metadata"]["finalizers"]),
        (&json!({"k": "v", "new": "1"}), &json!(["a/b"]))
    );
}

#[tokio::test]
async fn deletes_that_wait_answer_as_they_were_asked() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for name in ["a", "b"] {
        post(&client, MAPS, &held(name)).await.expect(201);
    }
    let waiting = delete_with(&client, &format!("{MAPS}/a"), json!({"orphanDependents": false})).await.expect(202);
    assert_eq!((&waiting["kind"], &waiting["metadata"]["finalizers"]), (&json!("ConfigMap"), &json!([HOLD])));
    // With a body the query says nothing.
    let path = format!("{MAPS}/b?propagationPolicy=Orphan&dryRun=All");
    let marked = delete_with(&client, &path, json!({"propagationPolicy": "Foreground"})).await.expect(200);
    assert_eq!(marked["metadata"]["finalizers"], json!([HOLD, "foregroundDeletion"]));
    let kept = get(&client, &format!("{MAPS}/b")).await.expect(200);
    assert!(kept["metadata"]["deletionTimestamp"].is_string());
    // Another policy takes the first one's place.
    let marked = delete(&client, &format!("{MAPS}/b?propagationPolicy=Orphan")).await.expect(200);
    assert_eq!(marked["metadata"]["finalizers"], json!([HOLD, "orphan"]));
    delete(&client, &format!("{MAPS}/b?uid=other")).await.expect(409);
}

#[tokio::test]
async fn kinds_say_what_becomes_of_dependents_when_nobody_does() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let controller = json!({"metadata": {"name": "r"}, "spec": {"replicas": 0, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let item = format!("{CONTROLLERS}/r");
    post(&client, CONTROLLERS, &controller).await.expect(201);
    let dry = delete(&client, &format!("{item}?propagationPolicy=Background&dryRun=All")).await.expect(200);
    assert_eq!(dry["kind"], "Status");
    let orphaning = delete(&client, &item).await.expect(200);
    assert_eq!(orphaning["metadata"]["finalizers"], json!(["orphan"]));
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}, "reason": "r"});
    post(&client, EVENTS, &event).await.expect(201);
    delete(&client, &format!("{EVENTS}/e?propagationPolicy=Foreground")).await.expect(200);
    get(&client, &format!("{EVENTS}/e")).await.expect(404);
}

#[tokio::test]
async fn a_collection_is_answered_as_it_was_found() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for name in ["a", "b", "c"] {
        post(&client, MAPS, &held(name)).await.expect(201);
    }
    let path = format!("{MAPS}?fieldSelector=metadata.name!%3Da&limit=1");
    let first = delete(&client, &path).await.expect(200);
    assert_eq!(first["kind"], "ConfigMapList");
    assert_eq!((&first["items"][0]["metadata"]["name"], first["items"].as_array().unwrap().len()), (&json!("b"), 1));
    assert!(first["items"][0]["metadata"]["deletionTimestamp"].is_null(), "as it was before");
    let metadata = &first["metadata"];
    assert!(metadata["resourceVersion"].is_string(), "{metadata}");
    let on = format!("{path}&continue={}", metadata["continue"].as_str().unwrap());
    let second = delete(&client, &on).await.expect(200);
    assert_eq!(second["items"][0]["metadata"]["name"], "c");
    let left = get(&client, MAPS).await.expect(200);
    let marked = |item: &&Value| item["metadata"]["deletionTimestamp"].is_string();
    assert_eq!(left["items"].as_array().unwrap().iter().filter(marked).count(), 2);
    delete(&client, &format!("{MAPS}?resourceVersionMatch=Exact")).await.refused(
        422,
        "Invalid",
        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
    );
    delete(&client, &format!("{MAPS}?propagationPolicy=Sideways")).await.expect(422);
}
