//! Server-side apply: who owns what, and what becomes of it.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{FOOS, MAPS, MERGE, apply, define, definition, get, map, patch, post, put};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"app": "n"}},
        "template": {"metadata": {"labels": {"app": "n"}}, "spec": {"containers": [{"name": "n", "image": "n:1"}]}}}});
    for (name, value) in spec.as_object().unwrap() {
        object["spec"][name] = value.clone();
    }
    object
}

/// Manager, operation, subresource and fields of each entry.
fn managers(object: &Value) -> Vec<(String, String, String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    entries
        .iter()
        .map(|entry| {
            (text(entry, "manager"), text(entry, "operation"), text(entry, "subresource"), entry["fieldsV1"].clone())
        })
        .collect()
}

fn names(object: &Value) -> Vec<String> {
    managers(object).into_iter().map(|(name, ..)| name).collect()
}

#[tokio::test]
async fn applying_the_same_again_changes_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{MAPS}/a");
    let config = map("a", json!({"k": "1"}));
    let made = apply(&client, &item, "one", "", &config).await.expect(201);
    // Times are in whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let again = apply(&client, &item, "one", "", &config).await.expect(200);
    assert_eq!(again["metadata"], made["metadata"], "resourceVersion and times stay");
    let unchanged = put(&client, &item, &again).await.expect(200);
    assert_eq!(unchanged["metadata"], made["metadata"]);
    let shared = apply(&client, &item, "two", "", &config).await.expect(200);
    assert_ne!(shared["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "an owner more");
    // What changed nothing has no time, and comes first.
    assert_eq!(names(&shared), ["two", "one"]);
    assert!(shared["metadata"]["managedFields"][0]["time"].is_null());
    // What two own stays until neither names it.
    let one =
        apply(&client, &item, "one", "", &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}))
            .await
            .expect(200);
    assert_eq!((&one["data"], names(&one)), (&json!({"k": "1"}), vec!["two".to_owned()]));
    let none =
        apply(&client, &item, "two", "", &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}))
            .await
            .expect(200);
    assert_eq!((&none["data"], names(&none)), (&Value::Null, vec![]));
}

#[tokio::test]
async fn a_conflict_names_the_owner_and_force_takes_over() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{MAPS}/a");
    apply(&client, &item, "one", "", &map("a", json!({"k": "1", "l": "1"}))).await.expect(201);
    patch(&client, &format!("{item}?fieldManager=editor"), MERGE, &json!({"data": {"k": "2"}})).await.expect(200);
    let conflict = apply(&client, &item, "one", "", &map("a", json!({"k": "1", "l": "1"}))).await;
    conflict.refused(409, "Conflict", "Apply failed with 1 conflict: conflict with \"editor\" using v1: .data.k");
    assert_eq!(
        conflict.value["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"editor\" using v1", "field": ".data.k"}])
    );
    apply(&client, &item, "third", "", &map("a", json!({"k": "3", "l": "3"}))).await.refused(
        409,
        "Conflict",
        "Apply failed with 2 conflicts: conflicts with \"editor\" using v1:\n- .data.k\nconflicts with \"one\":\n- .data.l",
    );
    let taken = apply(&client, &item, "one", "&force=true", &map("a", json!({"k": "1", "l": "1"}))).await.expect(200);
    assert_eq!(
        managers(&taken),
        [("one".into(), "Apply".into(), String::new(), json!({"f:data": {"f:k": {}, "f:l": {}}}))]
    );
    // The value that is there already is no conflict.
    let agreed = apply(&client, &item, "third", "", &map("a", json!({"k": "1"}))).await.expect(200);
    assert_eq!(names(&agreed), ["third", "one"]);
}

#[tokio::test]
async fn managed_fields_are_reset_by_nothing_but_emptiness() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{MAPS}/a");
    apply(&client, &item, "one", "", &map("a", json!({"k": "1"}))).await.expect(201);
    for kept in [
        json!(null),
        json!([{"manager": "x", "operation": "Nonsense"}]),
        json!([{"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsV1": {"f:data": {}}}]),
        json!([{"manager": "x", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}}}]),
        json!([{"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV9", "fieldsV1": {}}]),
        json!([{"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"bad": {}}}]),
    ] {
        let answer = patch(&client, &item, MERGE, &json!({"metadata": {"managedFields": kept}})).await.expect(200);
        assert_eq!(names(&answer), ["one"], "{kept}");
    }
    for empty in [json!([]), json!([{}])] {
        let name = if empty == json!([]) { "b" } else { "a" };
        let item = format!("{MAPS}/{name}");
        apply(&client, &item, "one", "", &map(name, json!({"k": "1"}))).await;
        let reset = patch(&client, &item, MERGE, &json!({"metadata": {"managedFields": empty}})).await.expect(200);
        assert!(reset["metadata"]["managedFields"].is_null(), "{reset:#}");
    }
    let untracked = patch(&client, &item, MERGE, &json!({"data": {"l": "1"}})).await.expect(200);
    assert!(untracked["metadata"]["managedFields"].is_null(), "until someone applies");
    apply(&client, &item, "two", "", &map("a", json!({"k": "2"}))).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.k",
    );
    let forced = apply(&client, &item, "two", "&force=true", &map("a", json!({"k": "2"}))).await.expect(200);
    assert_eq!(names(&forced), ["two", "before-first-apply"]);
    let with = apply(
        &client,
        &item,
        "two",
        "",
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": []}}),
    )
    .await;
    with.refused(400, "BadRequest", "metadata.managedFields must be nil");
}

#[tokio::test]
async fn an_apply_that_creates_needs_a_name_and_no_history() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{MAPS}/new");
    let with = |metadata: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    apply(&client, &item, "m", "", &with(json!({"generateName": "new"}))).await.refused(
        400,
        "BadRequest",
        "the name of the object (new based on URL) was undeterminable: name must be provided",
    );
    apply(&client, &item, "m", "", &with(json!({"name": "old"}))).await.refused(
        400,
        "BadRequest",
        "the name of the object (old) does not match the name on the URL (new)",
    );
    apply(&client, &item, "m", "", &with(json!({"name": "new", "uid": "u"}))).await.refused(409, "Conflict", "Operation cannot be fulfilled on configmaps \"new\": uid mismatch: the provided object specified uid u, and no existing object was found");
    apply(&client, &item, "m", "", &with(json!({"name": "new", "namespace": "other"}))).await.refused(
        400,
        "BadRequest",
        "the namespace of the provided object does not match the namespace sent on the request",
    );
    apply(&client, "/api/v1/namespaces/none/configmaps/new", "m", "", &with(json!({"name": "new"}))).await.refused(
        404,
        "NotFound",
        "namespaces \"none\" not found",
    );
    post(&client, "/api/v1/namespaces", &json!({"metadata": {"name": "going", "finalizers": ["example.com/hold"]}}))
        .await
        .expect(201);
    super::delete(&client, "/api/v1/namespaces/going").await.expect(200);
    apply(&client, "/api/v1/namespaces/going/configmaps/new", "m", "", &with(json!({"name": "new"}))).await.refused(403, "Forbidden", "configmaps \"new\" is forbidden: unable to create new content in namespace going because it is being terminated");
    let marked = apply(
        &client,
        "/api/v1/namespaces/going",
        "m",
        "",
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "going", "labels": {"a": "b"}}}),
    )
    .await
    .expect(200);
    assert_eq!(marked["metadata"]["labels"]["a"], "b");
}

#[tokio::test]
async fn what_cannot_be_merged_is_refused_in_the_words_of_the_merge() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{DEPLOYMENTS}/d");
    let containers = |containers: Value| {
        let mut object = deployment(json!({}));
        object["spec"]["template"]["spec"]["containers"] = containers;
        object
    };
    for (config, why) in [
        (
            containers(json!([{"name": "n", "image": "a"}, {"name": "n", "image": "b"}])),
            ".spec.template.spec.containers: duplicate entries for key [name=\"n\"]",
        ),
        (
            containers(json!([{"image": "a"}])),
            ".spec.template.spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
        (
            containers(json!([{"name": "n", "env": [{"name": "PORT", "value": 8080}]}])),
            ".spec.template.spec.containers[name=\"n\"].env[name=\"PORT\"].value: expected string, got &value.valueUnstructured{Value:8080}",
        ),
        (containers(json!({"name": "n"})), ".spec.template.spec.containers: expected list, got &{map[name:n]}"),
        (
            containers(json!([{"name": "n", "tty": "true"}])),
            ".spec.template.spec.containers[name=\"n\"].tty: expected boolean, got &{true}",
        ),
        (deployment(json!({"replicas": "two"})), ".spec.replicas: expected numeric (int or float), got string"),
        (deployment(json!({"template": "x"})), ".spec.template: expected map, got &{x}"),
        (
            containers(json!([{"name": "n", "imag": "a"}])),
            ".spec.template.spec.containers[name=\"n\"].imag: field not declared in schema",
        ),
    ] {
        apply(&client, &item, "m", "", &config).await.refused(
            400,
            "BadRequest",
            &format!("failed to create typed patch object (/d; apps/v1, Kind=Deployment): {why}"),
        );
    }
    let mut twice = deployment(json!({}));
    twice["metadata"]["finalizers"] = json!(["a/b", "a/b"]);
    let answer = apply(&client, &item, "m", "", &twice).await;
    assert!(
        answer.message().ends_with(".metadata.finalizers: duplicate entries for key [=\"a/b\"]"),
        "{}",
        answer.message()
    );
    // `protocol` has a default: two ports of one number are two.
    let ports = |ports: Value| containers(json!([{"name": "n", "image": "n:1", "ports": ports}]));
    let made = apply(
        &client,
        &item,
        "m",
        "",
        &ports(json!([{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}])),
    )
    .await
    .expect(201);
    assert_eq!(made["spec"]["template"]["spec"]["containers"][0]["ports"].as_array().unwrap().len(), 2);
    let fewer =
        apply(&client, &item, "m", "", &ports(json!([{"containerPort": 80, "protocol": "UDP"}]))).await.expect(200);
    assert_eq!(
        fewer["spec"]["template"]["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 80, "protocol": "UDP"}])
    );
}

#[tokio::test]
async fn subresources_own_their_part() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{DEPLOYMENTS}/d");
    apply(&client, &item, "app", "", &deployment(json!({"replicas": 1}))).await.expect(201);
    let scale = |replicas: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": replicas}});
    let path = format!("{item}/scale");
    apply(&client, &path, "scaler", "", &scale(7)).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"app\": .spec.replicas",
    );
    let scaled = apply(&client, &path, "scaler", "&force=true", &scale(7)).await.expect(200);
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&json!("Scale"), &json!(7)));
    let owned = json!({"f:spec": {"f:replicas": {}}});
    let object = get(&client, &item).await.expect(200);
    assert!(
        managers(&object).contains(&("scaler".into(), "Apply".into(), "scale".into(), owned.clone())),
        "{:?}",
        managers(&object)
    );
    let app = managers(&object).into_iter().find(|(name, ..)| name == "app").unwrap();
    assert_eq!(app.3["f:spec"]["f:replicas"], Value::Null, "the other one lost it");
    patch(&client, &format!("{path}?fieldManager=hand"), MERGE, &json!({"spec": {"replicas": 2}})).await.expect(200);
    let object = get(&client, &item).await.expect(200);
    assert!(
        managers(&object).contains(&("hand".into(), "Update".into(), "scale".into(), owned)),
        "{:?}",
        managers(&object)
    );
    let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
    let times = entries.filter(|entry| entry["subresource"] == "scale").map(|entry| &entry["time"]);
    assert!(times.into_iter().all(Value::is_null), "a Scale notes no time");
    apply(&client, &path, "scaler", "", &scale(3)).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"hand\" with subresource \"scale\" using autoscaling/v1: .spec.replicas",
    );
    apply(&client, &item, "app", "", &deployment(json!({"replicas": 1}))).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"hand\" with subresource \"scale\" using apps/v1: .spec.replicas",
    );

    let status = |kind: &str, replicas: i64| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": replicas}, "status": {"conditions": [{"type": kind, "status": "True"}]}});
    for (manager, kind) in [("a", "Available"), ("b", "Progressing")] {
        apply(&client, &format!("{item}/status"), manager, "", &status(kind, 100)).await.expect(200);
    }
    let object = get(&client, &item).await.expect(200);
    let types: Vec<&str> =
        object["status"]["conditions"].as_array().unwrap().iter().filter_map(|one| one["type"].as_str()).collect();
    assert_eq!((types, &object["spec"]["replicas"]), (vec!["Available", "Progressing"], &json!(2)));
    let of_a = managers(&object).into_iter().find(|(name, ..)| name == "a").unwrap();
    assert_eq!((of_a.2.as_str(), &of_a.3["f:spec"]), ("status", &Value::Null));
    // The object's own endpoint does not write status, nor own it.
    let mut both = deployment(json!({}));
    both["status"] = json!({"replicas": 9});
    let object = apply(&client, &item, "c", "", &both).await.expect(200);
    assert_eq!(object["status"]["replicas"], Value::Null);
    assert_eq!(managers(&object).into_iter().find(|(name, ..)| name == "c").unwrap().3["f:status"], Value::Null);
}

fn topologies() -> Value {
    let entry = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "zone": {"type": "string", "default": "z"}, "size": {"type": "integer"},
        "inner": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"], "items": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}, "v": {"type": "string"}}}}}});
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "atomic": {"type": "array", "items": {"type": "string"}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "zone"], "items": entry},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "either": {"x-kubernetes-int-or-string": true}}}}})
}

#[tokio::test]
async fn custom_resources_merge_as_their_schema_says() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(topologies())).await;
    let item = format!("{FOOS}/f");
    let foo =
        |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}, "spec": spec});
    let one = foo(
        json!({"atomic": ["a"], "set": ["a", "b"], "map": [{"name": "x", "size": 1, "inner": [{"id": 1, "v": "a"}]}], "whole": {"a": "1"}, "free": {"deep": {"er": 1}}, "either": 5}),
    );
    let made = apply(&client, &item, "one", "", &one).await.expect(201);
    assert_eq!(
        managers(&made)[0].3["f:spec"],
        json!({"f:atomic": {}, "f:either": {}, "f:free": {"f:deep": {".": {}, "f:er": {}}}, "f:map": {"k:{\"name\":\"x\",\"zone\":\"z\"}": {".": {}, "f:name": {}, "f:size": {}, "f:inner": {"k:{\"id\":1}": {".": {}, "f:id": {}, "f:v": {}}}}}, "f:set": {"v:\"a\"": {}, "v:\"b\"": {}}, "f:whole": {}})
    );
    let two = foo(
        json!({"set": ["c", "b"], "map": [{"name": "x", "inner": [{"id": 2, "v": "b"}]}, {"name": "x", "zone": "y"}], "free": {"other": true}}),
    );
    let merged = apply(&client, &item, "two", "", &two).await.expect(200);
    assert_eq!(merged["spec"]["set"], json!(["a", "c", "b"]));
    assert_eq!(
        merged["spec"]["map"],
        json!([{"name": "x", "zone": "z", "size": 1, "inner": [{"id": 1, "v": "a"}, {"id": 2, "v": "b"}]}, {"name": "x", "zone": "y"}])
    );
    assert_eq!(merged["spec"]["free"], json!({"deep": {"er": 1}, "other": true}));
    for (spec, field) in [
        (json!({"atomic": ["b"]}), ".spec.atomic"),
        (json!({"whole": {"b": "1"}}), ".spec.whole"),
        (json!({"either": "5"}), ".spec.either"),
        (json!({"map": [{"name": "x", "size": 2}]}), ".spec.map[name=\"x\",zone=\"z\"].size"),
    ] {
        apply(&client, &item, "three", "", &foo(spec)).await.refused(
            409,
            "Conflict",
            &format!("Apply failed with 1 conflict: conflict with \"one\": {field}"),
        );
    }
    let without = apply(&client, &item, "one", "", &foo(json!({"set": ["b"]}))).await.expect(200);
    assert_eq!(
        without["spec"],
        json!({"set": ["c", "b"], "map": [{"name": "x", "zone": "z", "inner": [{"id": 2, "v": "b"}]}, {"name": "x", "zone": "y"}], "free": {"other": true}})
    );
    let answer = apply(&client, &item, "one", "", &foo(json!({"set": ["b", "b"]}))).await;
    assert!(answer.message().ends_with(".spec.set: duplicate entries for key [=\"b\"]"), "{}", answer.message());
}

#[tokio::test]
async fn owners_are_kept_across_versions_of_a_definition() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut two = definition(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    let mut next = two["spec"]["versions"][0].clone();
    (next["name"], next["storage"]) = ("v2".into(), false.into());
    two["spec"]["versions"].as_array_mut().unwrap().push(next);
    define(&client, &two).await;
    let (first, second) = (format!("{FOOS}/f"), FOOS.replace("/v1/", "/v2/") + "/f");
    let foo = |version: &str, spec: Value| json!({"apiVersion": format!("example.com/{version}"), "kind": "Foo", "metadata": {"name": "f"}, "spec": spec});
    apply(&client, &first, "one", "", &foo("v1", json!({"a": 1}))).await.expect(201);
    let other = apply(&client, &second, "two", "", &foo("v2", json!({"a": 2}))).await;
    other.refused(409, "Conflict", "Apply failed with 1 conflict: conflict with \"one\": .spec.a");
    let both = apply(&client, &second, "two", "", &foo("v2", json!({"b": 2}))).await.expect(200);
    let versions: Vec<&Value> =
        both["metadata"]["managedFields"].as_array().unwrap().iter().map(|entry| &entry["apiVersion"]).collect();
    assert_eq!(versions, ["example.com/v1", "example.com/v2"]);
    // The same manager in another version is the same manager.
    let moved = apply(&client, &second, "one", "", &foo("v2", json!({"c": 3}))).await.expect(200);
    assert_eq!((&moved["spec"], names(&moved).len()), (&json!({"b": 2, "c": 3}), 2));
    patch(&client, &format!("{first}?fieldManager=hand"), MERGE, &json!({"spec": {"b": 5}})).await.expect(200);
    let object = get(&client, &second).await.expect(200);
    // In what has no schema, the object around the field stays with who made it.
    let owned: Vec<_> =
        managers(&object).into_iter().map(|(name, .., fields)| (name, fields["f:spec"].clone())).collect();
    assert_eq!(owned[1], ("two".to_owned(), json!({})), "{owned:?}");
    assert_eq!(owned[2], ("hand".to_owned(), json!({"f:b": {}})), "{owned:?}");
    let wrong = apply(&client, &second, "one", "", &foo("v1", json!({}))).await;
    wrong.refused(400, "BadRequest", "invalid object type: example.com/v1, Kind=Foo");
}

#[tokio::test]
async fn owners_are_noted_and_compared_in_the_version_they_wrote() {
    const SCALERS: &str = "/apis/autoscaling/VERSION/namespaces/default/horizontalpodautoscalers";
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = |version: &str| SCALERS.replace("VERSION", version) + "/h";
    let scaler = |version: &str, spec: Value| {
        let mut object = json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 5, "scaleTargetRef": {"kind": "ReplicationController", "name": "d"}}});
        for (name, value) in spec.as_object().unwrap() {
            object["spec"][name] = value.clone();
        }
        object
    };
    let cpu = |percent: u32| json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}]});
    let made = apply(&client, &item("v1"), "one", "", &scaler("v1", json!({"targetCPUUtilizationPercentage": 50})))
        .await
        .expect(201);
    assert_eq!(made["metadata"]["managedFields"][0]["apiVersion"], "autoscaling/v1");
    assert_eq!(
        managers(&made)[0].3["f:spec"],
        json!({"f:maxReplicas": {}, "f:scaleTargetRef": {}, "f:targetCPUUtilizationPercentage": {}})
    );
    // The owner's version says what it is that changes.
    apply(&client, &item("v2"), "two", "", &scaler("v2", cpu(60))).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"one\": .spec.targetCPUUtilizationPercentage",
    );
    let agreed = apply(&client, &item("v2"), "two", "", &scaler("v2", cpu(50))).await.expect(200);
    let of = |object: &Value, name: &str| {
        let entries = object["metadata"]["managedFields"].as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["manager"] == name).unwrap();
        (entry["apiVersion"].as_str().unwrap().to_owned(), entry["fieldsV1"]["f:spec"].clone())
    };
    assert_eq!(
        of(&agreed, "two"),
        (
            "autoscaling/v2".to_owned(),
            json!({"f:maxReplicas": {}, "f:metrics": {}, "f:scaleTargetRef": {"f:kind": {}, "f:name": {}}})
        )
    );
    // A plain write in the other version takes from both, each in its own words.
    let by_hand = format!("{}?fieldManager=hand", item("v1"));
    let changed =
        patch(&client, &by_hand, MERGE, &json!({"spec": {"targetCPUUtilizationPercentage": 70}})).await.expect(200);
    assert_eq!(of(&changed, "hand"), ("autoscaling/v1".to_owned(), json!({"f:targetCPUUtilizationPercentage": {}})));
    assert_eq!(of(&changed, "one").1, json!({"f:maxReplicas": {}, "f:scaleTargetRef": {}}));
    assert_eq!(of(&changed, "two").1, json!({"f:maxReplicas": {}, "f:scaleTargetRef": {"f:kind": {}, "f:name": {}}}));
    apply(&client, &item("v2"), "two", "", &scaler("v2", cpu(60))).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"hand\" using autoscaling/v1: .spec.targetCPUUtilizationPercentage",
    );
    // Versions that there are not, any more: their owners are forgotten with the next write.
    let mut entries = changed["metadata"]["managedFields"].as_array().unwrap().clone();
    let mut old = entries[0].clone();
    (old["manager"], old["apiVersion"]) = ("old".into(), "autoscaling/v2beta2".into());
    entries.push(old);
    let kept = patch(&client, &item("v2"), MERGE, &json!({"metadata": {"managedFields": entries}})).await.expect(200);
    assert!(!names(&kept).contains(&"old".to_owned()) && names(&kept).contains(&"one".to_owned()), "{kept:#}");
}

/// What kubectl does when people move from client-side apply to server-side: reads the object, and
/// replaces its owners by a JSON patch that insists on the version read; again if that conflicts.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn owners_that_were_replaced_stay_replaced_while_others_write_the_status() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const ROUNDS: usize = 40;
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = "/apis/apps/v1/namespaces/default/deployments/d";
    post(&client, "/apis/apps/v1/namespaces/default/deployments?fieldManager=first", &deployment(json!({})))
        .await
        .expect(201);
    let (done, written) = (AtomicBool::new(false), AtomicU64::new(0));
    // Whole statuses with the version read, patches without one, and dry runs of both.
    let writer = async |number: u64| {
        let mut count = number;
        while !done.load(Ordering::Relaxed) {
            count += 7;
            let status = json!({"replicas": count, "updatedReplicas": 1, "observedGeneration": number});
            let dry = if count.is_multiple_of(3) { "&dryRun=All" } else { "" };
            let path = format!("{item}/status?fieldManager=controller{number}{dry}");
            let answer = if number.is_multiple_of(2) {
                let mut object = get(&client, item).await.expect(200);
                object["status"] = status;
                put(&client, &path, &object).await
            } else {
                patch(&client, &path, MERGE, &json!({"status": status})).await
            };
            assert!(matches!(answer.code, 200 | 409), "{:#}", answer.value);
            written.fetch_add(1, Ordering::Relaxed);
        }
    };
    let mover = async {
        for round in 0..ROUNDS {
            let (from, to) = (["first", "second"][round % 2], ["first", "second"][(round + 1) % 2]);
            let moved = loop {
                let object = get(&client, item).await.expect(200);
                let mut entries = object["metadata"]["managedFields"].as_array().unwrap().clone();
                for entry in entries.iter_mut().filter(|entry| entry["manager"] == from) {
                    (entry["manager"], entry["operation"]) = (to.into(), "Apply".into());
                }
                let operations = json!([
                    {"op": "replace", "path": "/metadata/managedFields", "value": entries},
                    {"op": "replace", "path": "/metadata/resourceVersion", "value": object["metadata"]["resourceVersion"]},
                ]);
                let answer =
                    patch(&client, &format!("{item}?fieldManager=kubectl"), super::JSON_PATCH, &operations).await;
                match answer.code {
                    200 => break answer.value,
                    _ => assert_eq!(answer.code, 409, "{:#}", answer.value),
                }
            };
            for object in [moved, get(&client, item).await.expect(200)] {
                let found = names(&object);
                assert!(found.iter().any(|name| name == to) && !found.iter().any(|name| name == from), "{found:?}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            let found = names(&get(&client, item).await.expect(200));
            assert!(found.iter().any(|name| name == to) && !found.iter().any(|name| name == from), "later {found:?}");
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(mover, writer(1), writer(2), writer(3), writer(4));
    assert!(written.load(Ordering::Relaxed) > ROUNDS as u64, "nobody was in the way");
}

/// What an endpoint does not write is not owned by way of it, and so no conflict there.
#[tokio::test]
async fn what_a_status_write_resets_is_not_its_own() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut own = deployment(json!({"replicas": 1}));
    own["metadata"]["labels"] = json!({"a": "b"});
    own["status"] = json!({"observedGeneration": 1});
    let mut other = deployment(json!({"replicas": 2, "paused": true}));
    (other["metadata"]["labels"], other["metadata"]["annotations"]) = (json!({"a": "c"}), json!({"x": "y"}));
    other["status"] = json!({"observedGeneration": 2});
    let item = format!("{DEPLOYMENTS}/d");
    apply(&client, &item, "one", "", &own).await.expect(201);
    let both = apply(&client, &format!("{item}/status"), "two", "", &other).await.expect(200);
    assert_eq!((&both["metadata"]["labels"], &both["spec"]["replicas"]), (&json!({"a": "b"}), &json!(1)));
    let fields = |object: &Value, name: &str| {
        let found = managers(object).into_iter().find(|(manager, ..)| manager == name);
        found.map(|(.., fields)| fields).unwrap_or_default()
    };
    assert_eq!(
        fields(&both, "two"),
        json!({"f:metadata": {"f:annotations": {"f:x": {}}}, "f:status": {"f:observedGeneration": {}}})
    );
    let schema = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/f";
    let flow = |level: &str, label: &str| {
        json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "f", "labels": {"a": label}}, "spec": {"priorityLevelConfiguration": {"name": level}},
            "status": {"conditions": [{"type": "MyStatus", "status": "True"}]}})
    };
    apply(&client, schema, "one", "", &flow("global-default", "b")).await.expect(201);
    let both = apply(&client, &format!("{schema}/status"), "two", "", &flow("other", "c")).await.expect(200);
    assert_eq!(both["metadata"]["labels"], json!({"a": "b"}));
    let of_two = fields(&both, "two");
    assert_eq!(of_two.as_object().unwrap().keys().collect::<Vec<_>>(), ["f:status"], "{of_two}");
}

/// Subresources own what they write: upstream's reset fields, endpoint by endpoint.
#[tokio::test]
async fn subresources_own_only_what_they_write() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    // Nobody makes the default account here.
    let cluster =
        Cluster::start_with(|config| config.options.admission.disable = vec!["ServiceAccount".to_owned()]).await;
    let client = cluster.admin();
    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
    let container =
        |image: &str, cpu: &str| json!({"name": "c", "image": image, "resources": {"requests": {"cpu": cpu}}});
    let (item, resize) = (format!("{PODS}/p"), format!("{PODS}/p/resize"));
    apply(&client, &item, "maker", "", &pod(json!({"containers": [container("i", "1")]}))).await.expect(201);
    let larger = pod(json!({"containers": [container("j", "2")]}));
    apply(&client, &resize, "sizer", "", &larger).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"maker\": .spec.containers[name=\"c\"].resources.requests.cpu",
    );
    let of = |object: &Value, name: &str| managers(object).into_iter().find(|(manager, ..)| manager == name).unwrap();
    let cpu =
        json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:resources": {"f:requests": {"f:cpu": {}}}}}}});
    let resized = apply(&client, &resize, "sizer", "&force=true", &larger).await.expect(200);
    let read = &resized["spec"]["containers"][0];
    assert_eq!((&read["image"], &read["resources"]["requests"]["cpu"]), (&json!("i"), &json!("2")));
    assert_eq!(of(&resized, "sizer"), ("sizer".into(), "Apply".into(), "resize".into(), cpu.clone()));
    let kept = of(&resized, "maker").3.to_string();
    assert!(kept.contains("f:image") && !kept.contains("f:cpu"), "{kept}");
    let change = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]}});
    let patched =
        patch(&client, &format!("{resize}?fieldManager=patcher"), super::STRATEGIC, &change).await.expect(200);
    assert_eq!(of(&patched, "patcher"), ("patcher".into(), "Update".into(), "resize".into(), cpu));
    assert!(!names(&patched).contains(&"sizer".to_owned()), "it owns nothing any more");

    let debugger = pod(json!({"restartPolicy": "Never", "ephemeralContainers": [{"name": "d", "image": "i"}]}));
    let debugged = apply(&client, &format!("{item}/ephemeralcontainers"), "debugger", "", &debugger).await.expect(200);
    assert_eq!(debugged["spec"]["restartPolicy"], "Always");
    let (_, _, subresource, fields) = of(&debugged, "debugger");
    assert_eq!(subresource, "ephemeralcontainers");
    assert_eq!(
        fields,
        json!({"f:spec": {"f:ephemeralContainers": {"k:{\"name\":\"d\"}": {".": {}, "f:image": {}, "f:name": {}}}}})
    );
    let status = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"l": "1"}},
        "spec": {"nodeName": "n"}, "status": {"message": "m"}});
    let told = apply(&client, &format!("{item}/status"), "teller", "", &status).await.expect(200);
    assert_eq!(
        of(&told, "teller").3,
        json!({"f:metadata": {"f:labels": {"f:l": {}}}, "f:status": {"f:message": {}}}),
        "of a pod labels are written with the status"
    );
}

#[tokio::test]
async fn requests_are_owned_by_way_of_their_subresources() {
    use base64::Engine;
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let request = base64::prelude::BASE64_STANDARD.encode(request);
    let item = "/apis/certificates.k8s.io/v1/certificatesigningrequests/r";
    let object = |status: Value| {
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "r", "labels": {"l": "1"}}, "status": status,
        "spec": {"request": request, "signerName": "example.com/e2e", "usages": ["client auth"]}})
    };
    let labels = json!({"f:labels": {"f:l": {}}});
    let made = apply(&client, item, "maker", "", &object(json!({}))).await.expect(201);
    assert_eq!(managers(&made), [("maker".into(), "Apply".into(), String::new(), json!({"f:metadata": labels}))]);
    let approved = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "R", "message": "m"}], "certificate": "eA=="});
    let approved = apply(&client, &format!("{item}/approval"), "approver", "", &object(approved)).await.expect(200);
    assert!(approved["status"]["certificate"].is_null());
    let (_, _, subresource, fields) =
        managers(&approved).into_iter().find(|(manager, ..)| manager == "approver").unwrap();
    let condition = json!({".": {}, "f:message": {}, "f:reason": {}, "f:status": {}, "f:type": {}});
    assert_eq!(
        (subresource.as_str(), fields),
        (
            "approval",
            json!({"f:metadata": labels, "f:status": {"f:conditions": {"k:{\"type\":\"Approved\"}": condition}}})
        )
    );
}
