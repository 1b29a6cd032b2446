//! Options in queries and bodies that are wrong, and what a path or a method that is not there says.

use apiserver::testing::Cluster;
use serde_json::json;

use super::{APPLY, JSON, MAPS, MERGE, delete, get, map, patch, post, put, request};

#[tokio::test]
async fn wrong_list_options_are_named() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let invalid = |field: &str, why: &str| format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {why}");
    for (query, field, why) in [
        (
            "resourceVersionMatch=Exact",
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=1&continue=x",
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch is forbidden when continue is provided",
        ),
        ("sendInitialEvents=true", "sendInitialEvents", "Forbidden: sendInitialEvents is forbidden for list"),
        (
            "watch=1&resourceVersionMatch=NotOlderThan",
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (
            "watch=1&sendInitialEvents=true",
            "resourceVersionMatch",
            "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
    ] {
        let answer = get(&client, &format!("{MAPS}?{query}")).await;
        answer.refused(422, "Invalid", &invalid(field, why));
        assert_eq!(
            answer.value["details"]["causes"],
            json!([{"reason": "FieldValueForbidden", "message": why, "field": field}])
        );
        assert_eq!(
            (&answer.value["details"]["group"], &answer.value["details"]["kind"]),
            (&json!("meta.k8s.io"), &json!("ListOptions"))
        );
    }
    for (query, why) in [
        ("limit=x", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("timeoutSeconds=x", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        (
            "watch=1&limit=99999999999999999999",
            "strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
        ),
        (
            // {"v":"meta.k8s.io/v1","rv":1,"start":"a"}
            "resourceVersion=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhIn0",
            "specifying resource version is not allowed when using continue",
        ),
        (
            "continue=e30",
            "invalid continue token: continue key is not valid: server does not recognize this encoded version",
        ),
        ("fieldSelector=x", "invalid selector: 'x'; can't understand 'x'"),
        ("fieldSelector=a%3Db%3Dc", "invalid field selector: unescaped character in value: 61"),
        ("labelSelector=a%20b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("watch=1&labelSelector=a,", "found '', expected: identifier after ','"),
        ("labelSelector=-a", "unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist of"),
        (
            "fieldSelector=data.a%3D1",
            "\"data.a\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
    ] {
        let answer = get(&client, &format!("{MAPS}?{query}")).await;
        assert!(answer.message().starts_with(why), "{query}: {}", answer.message());
        assert_eq!((answer.code, &answer.value["reason"]), (400, &json!("BadRequest")));
    }
    let answer = get(&client, "/api/v1/namespaces/default/pods?fieldSelector=spec.none%3D1").await;
    answer.refused(400, "BadRequest", "field label not supported: spec.none");
    let renamed = get(&client, "/api/v1/namespaces/default/pods?fieldSelector=spec.host%3Dn,status.podIPs!%3Dx").await;
    assert_eq!(renamed.code, 200, "{:#}", renamed.value);
    let foreign = get(&client, "/apis/events.k8s.io/v1/events?fieldSelector=involvedObject.name%3Dp").await;
    foreign.refused(400, "BadRequest", "field label not supported: involvedObject.name");
    assert_eq!(get(&client, &format!("{MAPS}?limit=-1")).await.code, 200);
}

#[tokio::test]
async fn wrong_write_options_are_named() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, MAPS, &map("a", json!({}))).await.expect(201);
    let item = format!("{MAPS}/a");
    let long = "x".repeat(129);
    for (query, why, reason) in [
        (
            "dryRun=Some".to_owned(),
            r#"dryRun: Unsupported value: ["Some"]: supported values: "All""#,
            "FieldValueNotSupported",
        ),
        (
            "fieldValidation=Loose".to_owned(),
            r#"fieldValidation: Unsupported value: "Loose": supported values: "", "Ignore", "Strict", "Warn""#,
            "FieldValueNotSupported",
        ),
        (format!("fieldManager={long}"), "fieldManager: Too long: may not be more than 128 bytes", "FieldValueTooLong"),
        (
            "fieldManager=a%0A".to_owned(),
            "fieldManager: Invalid value: \"a\\n\": invalid character U+000A (at position 1)",
            "FieldValueInvalid",
        ),
    ] {
        for (kind, answer) in [
            ("CreateOptions", post(&client, &format!("{MAPS}?{query}"), &map("b", json!({}))).await),
            ("UpdateOptions", put(&client, &format!("{item}?{query}"), &map("a", json!({}))).await),
            ("PatchOptions", patch(&client, &format!("{item}?{query}"), MERGE, &json!({})).await),
        ] {
            answer.refused(422, "Invalid", &format!("{kind}.meta.k8s.io \"\" is invalid: {why}"));
            assert_eq!(answer.value["details"]["causes"][0]["reason"], reason);
        }
    }
    let forced = patch(&client, &format!("{item}?force=true"), MERGE, &json!({})).await;
    forced.refused(
        422,
        "Invalid",
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
    );
    let unnamed = patch(&client, &item, APPLY, &map("a", json!({}))).await;
    unnamed.refused(
        422,
        "Invalid",
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    );
}

#[tokio::test]
async fn delete_options_travel_in_the_body_or_the_query() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = post(&client, MAPS, &map("a", json!({}))).await.expect(201);
    let item = format!("{MAPS}/a");
    let with_body = async |media: &str, body: &str| {
        request(&client, "DELETE", &item, &[("content-type", media)], body.as_bytes()).await
    };
    let invalid = |why: &str| format!("DeleteOptions.meta.k8s.io \"\" is invalid: {why}");
    for (body, why) in [
        (
            r#"{"propagationPolicy":"Bad"}"#,
            r#"propagationPolicy: Unsupported value: "Bad": supported values: "Foreground", "Background", "Orphan", "nil""#,
        ),
        (
            r#"{"propagationPolicy":"Orphan","orphanDependents":true}"#,
            "propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set",
        ),
        (r#"{"dryRun":["bad"]}"#, r#"dryRun: Unsupported value: ["bad"]: supported values: "All""#),
    ] {
        with_body(JSON, body).await.refused(422, "Invalid", &invalid(why));
    }
    let answer = delete(&client, &format!("{item}?orphanDependents=true&propagationPolicy=Background")).await;
    assert_eq!(answer.code, 422, "{:#}", answer.value);
    assert_eq!(
        delete(&client, &format!("{item}?gracePeriodSeconds=x")).await.message(),
        "strconv.ParseInt: parsing \"x\": invalid syntax"
    );
    let answer = with_body(JSON, r#"{"gracePeriodSeconds":"x"}"#).await;
    assert!(
        answer.code == 400
            && answer.message().ends_with(
                "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64"
            ),
        "{:#}",
        answer.value
    );
    let uid = made["metadata"]["uid"].as_str().unwrap();
    let answer = with_body(JSON, r#"{"preconditions":{"uid":"other"}}"#).await;
    answer.refused(409, "Conflict", &format!("Operation cannot be fulfilled on ConfigMap \"a\": the UID in the precondition (other) does not match the UID in record ({uid}). The object might have been deleted and then recreated"));
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let answer = with_body(JSON, r#"{"preconditions":{"resourceVersion":"1"}}"#).await;
    answer.refused(409, "Conflict", &format!("Operation cannot be fulfilled on ConfigMap \"a\": the ResourceVersion in the precondition (1) does not match the ResourceVersion in record ({version}). The object might have been modified"));
    // Tried only, in YAML and in the query; then done.
    with_body("application/yaml", "kind: DeleteOptions\napiVersion: v1\ndryRun: [All]\n").await.expect(200);
    delete(&client, &format!("{item}?dryRun=All")).await.expect(200);
    let status =
        with_body(JSON, r#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":-1}"#).await.expect(200);
    assert_eq!(status["details"], json!({"name": "a", "kind": "configmaps", "uid": uid}));
    assert_eq!(get(&client, &item).await.code, 404);
}

#[tokio::test]
async fn a_collection_is_deleted_as_far_as_the_limit_and_the_selector_go() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for name in ["a", "b", "c"] {
        let mut object = map(name, json!({}));
        object["metadata"]["labels"] = json!({"of": "test"});
        post(&client, MAPS, &object).await.expect(201);
    }
    post(&client, MAPS, &map("d", json!({}))).await.expect(201);
    let deleted = delete(&client, &format!("{MAPS}?labelSelector=of%3Dtest&limit=2")).await.expect(200);
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2, "{deleted:#}");
    delete(&client, &format!("{MAPS}?labelSelector=of%3Dtest")).await.expect(200);
    let left = get(&client, MAPS).await.expect(200);
    let names: Vec<&str> =
        left["items"].as_array().unwrap().iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["d"]);
}

#[tokio::test]
async fn writes_name_the_object_they_mean() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = post(&client, MAPS, &map("a", json!({}))).await.expect(201);
    let uid = made["metadata"]["uid"].as_str().unwrap();
    let item = format!("{MAPS}/a");
    let storage = |name: &str, held: &str| {
        format!(
            "Operation cannot be fulfilled on configmaps \"{name}\": StorageError: invalid object, Code: 4, Key: /registry/configmaps/default/{name}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: other, UID in object meta: {held}"
        )
    };
    let with = |name: &str, key: &str, value: &str| {
        let mut object = map(name, json!({}));
        object["metadata"][key] = value.into();
        object
    };
    put(&client, &item, &with("a", "uid", "other")).await.refused(409, "Conflict", &storage("a", uid));
    put(&client, &format!("{MAPS}/b"), &with("b", "uid", "other")).await.refused(409, "Conflict", &storage("b", ""));
    put(&client, &format!("{MAPS}/b"), &map("b", json!({}))).await.refused(
        404,
        "NotFound",
        "configmaps \"b\" not found",
    );
    put(&client, &item, &map("b", json!({}))).await.refused(
        400,
        "BadRequest",
        "the name of the object (b) does not match the name on the URL (a)",
    );
    put(&client, &item, &json!({"metadata": {}})).await.refused(
        400,
        "BadRequest",
        "the name of the object (a based on URL) was undeterminable: name must be provided",
    );
    let answer = patch(&client, &item, MERGE, &json!({"metadata": {"uid": "other"}})).await;
    answer.refused(
        422,
        "Invalid",
        "ConfigMap \"a\" is invalid: metadata.uid: Invalid value: \"other\": field is immutable",
    );
    let stale = "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again";
    put(&client, &item, &with("a", "resourceVersion", "1")).await.refused(409, "Conflict", stale);
    patch(&client, &item, MERGE, &json!({"metadata": {"resourceVersion": "1"}})).await.refused(409, "Conflict", stale);
    let versioned = with("c", "resourceVersion", "1");
    let why = "resourceVersion should not be set on objects to be created";
    post(&client, MAPS, &versioned).await.refused(400, "BadRequest", why);
    post(&client, &format!("{MAPS}?dryRun=All"), &versioned).await.expect(201);
    // No number, no version.
    post(&client, MAPS, &with("d", "resourceVersion", "v1")).await.expect(201);
    post(&client, MAPS, &with("c", "namespace", "other")).await.refused(
        400,
        "BadRequest",
        "the namespace of the provided object does not match the namespace sent on the request",
    );
    post(&client, MAPS, &map("a", json!({}))).await.refused(409, "AlreadyExists", "configmaps \"a\" already exists");
}
