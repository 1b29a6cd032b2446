//! CustomResourceDefinitions: their conditions, their status, what they publish and refuse.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{DEFINITIONS, FOOS, MERGE, define, definition, delete, get, patch, post, put, request, until};

fn condition<'a>(definition: &'a Value, kind: &str) -> &'a Value {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|one| one["type"] == kind)).unwrap_or(&Value::Null)
}

fn renamed(plural: &str, kind: &str) -> Value {
    let mut other = definition(json!({"type": "object"}));
    other["metadata"]["name"] = format!("{plural}.example.com").into();
    other["spec"]["names"] =
        json!({"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")});
    other
}

#[tokio::test]
async fn a_definition_is_made_listed_read_and_its_status_written() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(json!({"type": "object"}))).await;
    let path = format!("{DEFINITIONS}/foos.example.com");
    let made = get(&client, &path).await.expect(200);
    for kind in ["NamesAccepted", "Established"] {
        assert_eq!(condition(&made, kind)["status"], "True");
    }
    assert_eq!(made["status"]["acceptedNames"], made["spec"]["names"]);
    let status = get(&client, &format!("{path}/status")).await.expect(200);
    assert_eq!(condition(&status, "Established")["status"], "True");
    let mut changed = status.clone();
    changed["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "set by a test"}));
    let updated = put(&client, &format!("{path}/status"), &changed).await.expect(200);
    assert_eq!(condition(&updated, "StatusUpdate")["message"], "set by a test");
    let patched = patch(
        &client,
        &format!("{path}/status"),
        MERGE,
        &json!({"status": {"conditions": updated["status"]["conditions"]}, "spec": {"group": "other.example.com"}}),
    )
    .await
    .expect(200);
    assert_eq!(patched["spec"]["group"], "example.com", "the status subresource writes status");
    let mut second = renamed("bars", "Bar");
    second["metadata"]["labels"] = json!({"of": "test"});
    define(&client, &second).await;
    let list = get(&client, &format!("{DEFINITIONS}?labelSelector=of%3Dtest")).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    delete(&client, &format!("{DEFINITIONS}?labelSelector=of%3Dtest")).await.expect(200);
    until(&client, &format!("{DEFINITIONS}/bars.example.com"), |answer| answer.code == 404).await;
    get(&client, &path).await.expect(200);
}

#[tokio::test]
async fn names_in_use_are_refused_one_by_one_until_they_are_free() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(json!({"type": "object"}))).await;
    post(&client, DEFINITIONS, &renamed("others", "Foo")).await.expect(201);
    let path = format!("{DEFINITIONS}/others.example.com");
    let second = until(&client, &path, |answer| !condition(&answer.value, "NamesAccepted").is_null()).await;
    let names = condition(&second, "NamesAccepted");
    assert_eq!(
        (&names["status"], &names["reason"], &names["message"]),
        (&json!("False"), &json!("ListKindConflict"), &json!("\"FooList\" is already in use"))
    );
    let established = condition(&second, "Established");
    assert_eq!(
        (&established["status"], &established["reason"], &established["message"]),
        (&json!("False"), &json!("NotAccepted"), &json!("not all names are accepted"))
    );
    assert_eq!(second["status"]["acceptedNames"]["plural"], "others");
    assert_eq!(get(&client, "/apis/example.com/v1/others").await.code, 404);
    delete(&client, &format!("{DEFINITIONS}/foos.example.com")).await.expect(200);
    let freed = until(&client, &path, |answer| condition(&answer.value, "Established")["status"] == "True").await;
    assert_eq!(condition(&freed, "NamesAccepted")["reason"], "NoConflicts");
    until(&client, "/apis/example.com/v1/others", |answer| answer.code == 200).await;
}

#[tokio::test]
async fn groups_of_the_community_say_whether_they_are_approved() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let of = |name: &str, annotation: Option<&str>| {
        let mut object = renamed(name, &name.to_uppercase());
        object["metadata"]["name"] = format!("{name}.stable.k8s.io").into();
        object["spec"]["group"] = "stable.k8s.io".into();
        if let Some(text) = annotation {
            object["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": text});
        }
        object
    };
    let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
    let refused = post(&client, DEFINITIONS, &of("as", None)).await;
    refused.refused(422, "Invalid", &format!("CustomResourceDefinition.apiextensions.k8s.io \"as.stable.k8s.io\" is invalid: metadata.annotations[api-approved.kubernetes.io]: Required value: {why}"));
    for (name, annotation, status, reason, message) in [
        (
            "bs",
            "unapproved, experimental-only",
            "False",
            "UnapprovedAnnotation",
            "not approved: \"unapproved, experimental-only\"",
        ),
        (
            "cs",
            "https://github.com/kubernetes/kubernetes/pull/78458",
            "True",
            "ApprovedAnnotation",
            "approved in https://github.com/kubernetes/kubernetes/pull/78458",
        ),
    ] {
        post(&client, DEFINITIONS, &of(name, Some(annotation))).await.expect(201);
        let kind = "KubernetesAPIApprovalPolicyConformant";
        let made = until(&client, &format!("{DEFINITIONS}/{name}.stable.k8s.io"), |answer| {
            !condition(&answer.value, kind).is_null()
        })
        .await;
        let found = condition(&made, kind);
        assert_eq!(
            (&found["status"], &found["reason"], &found["message"]),
            (&json!(status), &json!(reason), &json!(message))
        );
    }
}

#[tokio::test]
async fn definitions_that_cannot_be_served_are_refused() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let refused = async |object: Value, why: &str| {
        let answer = post(&client, DEFINITIONS, &object).await;
        assert!(answer.code == 422 && answer.message().contains(why), "{}", answer.message());
    };
    refused(definition(json!({"type": "object", "properties": {"a": {}}})), "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields").await;
    refused(
        definition(json!({"properties": {}})),
        "openAPIV3Schema.type: Required value: must not be empty at the root",
    )
    .await;
    let mut old = definition(json!({"type": "object"}));
    old["spec"]["preserveUnknownFields"] = true.into();
    refused(old, "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead").await;
    let mut none = definition(json!({"type": "object"}));
    none["spec"]["versions"][0].as_object_mut().unwrap().remove("schema");
    refused(none, "spec.versions[0].schema.openAPIV3Schema: Required value").await;
    let mut misnamed = definition(json!({"type": "object"}));
    misnamed["metadata"]["name"] = "other.example.com".into();
    refused(
        misnamed,
        "metadata.name: Invalid value: \"other.example.com\": must be spec.names.plural+\".\"+spec.group",
    )
    .await;
}

#[tokio::test]
async fn a_definition_is_published_changed_and_withdrawn() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let spec = json!({"type": "object", "description": "Specification of Foo", "required": ["bars"], "properties": {"bars": {"type": "array", "description": "List of Bars and their specs.", "items": {"type": "object", "properties": {"name": {"type": "string", "description": "Name of Bar."}}}}}});
    define(
        &client,
        &definition(json!({"type": "object", "description": "Foo CRD for Testing", "properties": {"spec": spec}})),
    )
    .await;
    let has = |answer: &super::Answer, text: &str| String::from_utf8_lossy(&answer.bytes).contains(text);
    let (v2, v3) = ("/openapi/v2", "/openapi/v3/apis/example.com/v1");
    for path in [v2, v3] {
        let document =
            until(&client, path, |answer| answer.code == 200 && has(answer, "List of Bars and their specs.")).await;
        let schemas = if path == v2 { &document["definitions"] } else { &document["components"]["schemas"] };
        let foo = &schemas["com.example.v1.Foo"];
        assert_eq!(foo["description"], "Foo CRD for Testing");
        assert_eq!(
            foo["x-kubernetes-group-version-kind"],
            json!([{"group": "example.com", "kind": "Foo", "version": "v1"}])
        );
        assert!(foo["properties"]["metadata"].is_object() && schemas["com.example.v1.FooList"].is_object(), "{foo:#}");
        assert!(document["paths"]["/apis/example.com/v1/namespaces/{namespace}/foos/{name}/status"].is_object());
    }
    let path = format!("{DEFINITIONS}/foos.example.com");
    // A version more is published; one that is not served any more is not.
    let mut changed = get(&client, &path).await.expect(200);
    let mut next = changed["spec"]["versions"][0].clone();
    (next["name"], next["storage"]) = ("v2".into(), false.into());
    changed["spec"]["versions"].as_array_mut().unwrap().push(next);
    put(&client, &path, &changed).await.expect(200);
    until(&client, v2, |answer| has(answer, "com.example.v2.Foo\"")).await;
    let mut changed = get(&client, &path).await.expect(200);
    changed["spec"]["versions"][1]["served"] = false.into();
    put(&client, &path, &changed).await.expect(200);
    until(&client, v2, |answer| !has(answer, "com.example.v2.Foo\"")).await;
    until(&client, "/openapi/v3/apis/example.com/v2", |answer| answer.code == 404).await;
    until(&client, "/apis/example.com/v2/foos", |answer| answer.code == 404).await;
    delete(&client, &path).await.expect(200);
    until(&client, v2, |answer| !has(answer, "com.example.v1.Foo\"")).await;
    let index = until(&client, "/openapi/v3", |answer| answer.value["paths"]["apis/example.com/v1"].is_null()).await;
    assert!(index["paths"]["api/v1"].is_object());
    let etagged = get(&client, v2).await;
    let tag = etagged.header("etag").to_owned();
    let unchanged = request(&client, "GET", v2, &[("if-none-match", &tag)], b"").await;
    assert_eq!((unchanged.code, unchanged.bytes.len()), (304, 0), "{tag}");
}

#[tokio::test]
async fn defaults_fill_requests_and_what_is_stored() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let schema = |a: Value| json!({"type": "object", "properties": {"a": a, "b": {"type": "string"}, "spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}});
    define(&client, &definition(schema(json!({"type": "string", "default": "A"})))).await;
    let foo = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}});
    assert_eq!(post(&client, FOOS, &foo("f")).await.expect(201)["a"], "A");
    let path = format!("{DEFINITIONS}/foos.example.com");
    let schema_path = "/spec/versions/0/schema/openAPIV3Schema/properties";
    let operations = json!([{"op": "add", "path": format!("{schema_path}/b/default"), "value": "B"}, {"op": "remove", "path": format!("{schema_path}/a/default")}]);
    patch(&client, &path, super::JSON_PATCH, &operations).await.expect(200);
    let read = until(&client, &format!("{FOOS}/f"), |answer| answer.value["b"] == "B").await;
    assert_eq!(read["a"], "A", "what was defaulted when it was written was stored");
    let made = post(&client, FOOS, &foo("g")).await.expect(201);
    assert_eq!((&made["a"], &made["b"]), (&Value::Null, &json!("B")));
    let null = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "h"}, "b": null});
    assert_eq!(post(&client, FOOS, &null).await.expect(201)["b"], "B", "null of what may not be null is absent");
}

/// What discovery names in `example.com/v1`, subresources aside.
async fn discovered(client: &kube::Client) -> Vec<String> {
    let list = get(client, "/apis/example.com/v1").await.value;
    let names = list["resources"].as_array().into_iter().flatten().map(|one| one["name"].as_str().unwrap().to_owned());
    names.filter(|name| !name.contains('/')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_one_of_many_definitions_is_the_work_of_one() {
    const MANY: u64 = 60;
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let since = |(decoded, compiled): (u64, u64)| {
        let now = cluster.server.definitions_work();
        (now.0 - decoded, now.1 - compiled)
    };
    let before = cluster.server.definitions_work();
    let made = (0..MANY).map(|n| {
        let client = client.clone();
        async move { post(&client, DEFINITIONS, &renamed(&format!("n{n}s"), &format!("N{n}"))).await.expect(201) }
    });
    futures::future::join_all(made).await;
    for n in 0..MANY {
        let path = format!("{DEFINITIONS}/n{n}s.example.com");
        until(&client, &path, |answer| condition(&answer.value, "Established")["status"] == "True").await;
        // Whoever has seen that finds it served.
        get(&client, &format!("/apis/example.com/v1/n{n}s")).await.expect(200);
    }
    assert_eq!(since(before), (MANY, MANY), "one decoded and compiled for each that was made");
    assert_eq!(discovered(&client).await.len() as u64, MANY);
    let path = format!("{DEFINITIONS}/n7s.example.com");
    // A change of what is served: that one.
    let before = cluster.server.definitions_work();
    let columns = json!([{"op": "add", "path": "/spec/versions/0/additionalPrinterColumns", "value": [{"name": "A", "type": "string", "jsonPath": ".a"}]}]);
    patch(&client, &path, super::JSON_PATCH, &columns).await.expect(200);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while since(before).1 == 0 && std::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(since(before), (1, 1));
    // A label changes nothing that is served; nor does deleting it.
    let before = cluster.server.definitions_work();
    patch(&client, &path, MERGE, &json!({"metadata": {"labels": {"a": "b"}}})).await.expect(200);
    delete(&client, &path).await.expect(200);
    until(&client, &path, |answer| answer.code == 404).await;
    until(&client, "/apis/example.com/v1/n7s", |answer| answer.code == 404).await;
    let (decoded, compiled) = since(before);
    assert!(decoded <= 3 && compiled == 0, "{decoded} {compiled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_that_come_and_go_at_once_leave_those_that_exist() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let one = |n: usize| {
        let client = client.clone();
        async move {
            // Three and three want the same short name.
            let mut object = renamed(&format!("n{n}s"), &format!("N{n}"));
            object["spec"]["names"]["shortNames"] = json!([format!("s{}", n % 4)]);
            let path = format!("{DEFINITIONS}/n{n}s.example.com");
            for round in 0..3 {
                until_created(&client, &object).await;
                if !n.is_multiple_of(3) || round < 2 {
                    delete(&client, &path).await;
                }
            }
            if n % 3 == 1 {
                until_created(&client, &object).await;
            }
        }
    };
    futures::future::join_all((0..12).map(one)).await;
    let wanted: Vec<String> = (0..12).filter(|n| n % 3 != 2).map(|n| format!("n{n}s")).collect();
    let mut sorted = wanted.clone();
    sorted.sort();
    // One of those that want a short name has it; the others are not established.
    let settled = async || {
        let list = get(&client, DEFINITIONS).await.value;
        let held: Vec<&Value> = list["items"].as_array().unwrap().iter().collect();
        let established = held.iter().filter(|one| condition(one, "Established")["status"] == "True");
        let established: Vec<String> =
            established.map(|one| one["spec"]["names"]["plural"].as_str().unwrap().to_owned()).collect();
        (held.len(), established)
    };
    for _ in 0..400 {
        let (held, established) = settled().await;
        if held == wanted.len() && established.len() == 4 && discovered(&client).await == established {
            for plural in &established {
                get(&client, &format!("/apis/example.com/v1/{plural}")).await.expect(200);
            }
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("{:?}, discovered {:?}, wanted {sorted:?}", settled().await, discovered(&client).await);
}

/// Creates it as soon as what had its name is gone.
async fn until_created(client: &kube::Client, object: &Value) {
    for _ in 0..1000 {
        let answer = post(client, DEFINITIONS, object).await;
        if answer.code == 201 {
            return;
        }
        answer.refused(
            409,
            "AlreadyExists",
            &format!(
                "object is being deleted: customresourcedefinitions.apiextensions.k8s.io {} already exists",
                object["metadata"]["name"]
            ),
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("{} stays", object["metadata"]["name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_definition_waits_for_its_objects_and_lets_nothing_in() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let define_foos = async || {
        define(&client, &definition(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))).await;
    };
    define_foos().await;
    let foo = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}});
    let mut held = foo("held");
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    post(&client, FOOS, &held).await.expect(201);
    post(&client, FOOS, &foo("free")).await.expect(201);
    let path = format!("{DEFINITIONS}/foos.example.com");
    let said = |definition: &Value| {
        let held = condition(definition, "Terminating");
        ["status", "reason", "message"].map(|key| held[key].as_str().unwrap_or_default().to_owned())
    };
    let marked = delete(&client, &path).await.expect(200);
    assert_eq!(
        said(&marked),
        [
            "True",
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
        ]
    );
    let begun = until(&client, &path, |answer| said(&answer.value)[1] == "InstanceDeletionInProgress").await;
    assert_eq!(said(&begun)[2], "CustomResource deletion is in progress");
    until(&client, &format!("{FOOS}/free"), |answer| answer.code == 404).await;
    let refused = post(&client, FOOS, &foo("late")).await;
    let why =
        "foos.example.com \"late\" is forbidden: create not allowed while custom resource definition is terminating";
    refused.refused(403, "Forbidden", why);
    super::apply(&client, &format!("{FOOS}/late"), "m", "", &foo("late")).await.refused(403, "Forbidden", why);
    let resources = get(&client, "/apis/example.com/v1").await.expect(200);
    assert_eq!(resources["resources"][0]["verbs"], json!(["delete", "deletecollection", "get", "list", "watch"]));
    // What is there can still be changed: that lets it go.
    let freed = json!({"metadata": {"finalizers": null}});
    patch(&client, &format!("{FOOS}/held"), MERGE, &freed).await.expect(200);
    until(&client, &path, |answer| answer.code == 404).await;
    until(&client, FOOS, |answer| answer.code == 404).await;
    // The next of the same name begins empty.
    define_foos().await;
    assert_eq!(get(&client, FOOS).await.expect(200)["items"], json!([]));
    post(&client, FOOS, &foo("late")).await.expect(201);
}
