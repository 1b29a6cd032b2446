//! Representations: `Accept` and `Content-Type` at their edges.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{Answer, FOOS, JSON, MAPS, MERGE, define, definition, map, patch, post, put, request};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAMS: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
const ALL: &str = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";

async fn ask(client: &kube::Client, path: &str, accept: &str) -> Answer {
    request(client, "GET", path, &[("accept", accept)], b"").await
}

fn shown(kind: &str, version: &str) -> String {
    format!("application/json;as={kind};g=meta.k8s.io;v={version}")
}

#[tokio::test]
async fn the_best_acceptable_representation_is_sent() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, MAPS, &map("a", json!({"x": "y"}))).await.expect(201);
    for (accept, kind) in [
        ("".to_owned(), "ConfigMapList"),
        ("application/json;q=0.1,text/html".to_owned(), "ConfigMapList"),
        (format!("{},application/json", shown("Table", "v1")), "Table"),
        (format!("{},application/json", shown("Table", "v9")), "ConfigMapList"),
        (format!("{},application/json", shown("Other", "v1")), "ConfigMapList"),
        (shown("Table", "v1beta1"), "Table"),
        (shown("PartialObjectMetadataList", "v1"), "PartialObjectMetadataList"),
        ("application/cbor,application/json;q=0.5".to_owned(), "ConfigMapList"),
    ] {
        let answer = ask(&client, MAPS, &accept).await;
        assert_eq!((answer.code, &answer.value["kind"]), (200, &json!(kind)), "{accept}");
    }
    let both = ask(&client, MAPS, "application/json;q=0.1,application/yaml;q=0.9").await;
    assert_eq!(both.header("content-type"), "application/yaml");
    for accept in ["text/html", "application/cbor", "*/json", "application/*", "garbage"] {
        let why = format!("406: Not Acceptable\n\nAvailable representations: {TYPES}, {STREAMS}");
        ask(&client, MAPS, accept).await.refused(406, "NotAcceptable", &why);
        let why = format!("406: Not Acceptable\n\nAvailable representations: {TYPES}");
        ask(&client, &format!("{MAPS}/a"), accept).await.refused(406, "NotAcceptable", &why);
    }
    for accept in [
        &*shown("Table", "v1alpha1"),
        &format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1"),
        "application/json;stream=other",
        "application/yaml;stream=watch",
    ] {
        ask(&client, MAPS, accept).await.refused(406, "NotAcceptable", ALL);
    }
    let accept =
        "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1,application/json;as=Table;g=meta.k8s.io;v=v1";
    assert_eq!(ask(&client, MAPS, accept).await.value["kind"], "Table");
}

#[tokio::test]
async fn metadata_of_lists_and_of_objects_are_different_things() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, MAPS, &map("a", json!({"x": "y"}))).await.expect(201);
    define(&client, &definition(json!({"type": "object"}))).await;
    post(&client, FOOS, &json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}}))
        .await
        .expect(201);
    let (one, list) = (shown("PartialObjectMetadata", "v1"), shown("PartialObjectMetadataList", "v1"));
    ask(&client, MAPS, &one).await.refused(
        406,
        "NotAcceptable",
        "you requested PartialObjectMetadata, but the requested object is a list (*core.ConfigMapList)",
    );
    ask(&client, &format!("{MAPS}/a"), &list).await.refused(
        406,
        "NotAcceptable",
        "you requested PartialObjectMetadataList, but the requested object is not a list (*core.ConfigMap)",
    );
    ask(&client, FOOS, &one).await.refused(
        406,
        "NotAcceptable",
        "you requested PartialObjectMetadata, but the requested object is a list (*unstructured.UnstructuredList)",
    );
    let items = ask(&client, FOOS, &list).await.expect(200);
    assert_eq!(
        (&items["items"][0]["kind"], &items["items"][0]["metadata"]["name"]),
        (&json!("PartialObjectMetadata"), &json!("f"))
    );
    assert!(items["items"][0]["spec"].is_null());
    // A custom resource has no protobuf; its metadata has.
    ask(&client, FOOS, PROTOBUF).await.refused(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml",
    );
    let answer =
        ask(&client, &format!("{FOOS}/f"), &format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1")).await;
    assert_eq!((answer.code, answer.header("content-type")), (200, PROTOBUF));
    assert_eq!(apiserver::protobuf::decode(&answer.bytes).unwrap()["metadata"]["name"], "f");
    let fallback = ask(&client, &format!("{FOOS}/f"), &format!("{PROTOBUF},application/json")).await;
    assert_eq!(fallback.value["kind"], "Foo");
    // And watched.
    let watched = ask(&client, &format!("{FOOS}?watch=1&timeoutSeconds=1"), &one).await;
    let event: Value = serde_json::from_slice(watched.bytes.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("ADDED"), &json!("PartialObjectMetadata")));
    let refused = ask(&client, &format!("{MAPS}?watch=1"), "application/yaml").await;
    let why = "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
    let text = String::from_utf8(refused.bytes).unwrap();
    assert!(refused.code == 406 && text.contains("reason: NotAcceptable") && text.contains(why), "{text}");
}

#[tokio::test]
async fn a_table_without_metadata_is_refused_by_who_cannot_make_one() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"nonResourceAttributes": {"verb": "get", "path": "/"}}});
    let accept = [("accept", &*shown("Table", "v1")), ("content-type", JSON)];
    let answer = request(
        &client,
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        &accept,
        review.to_string().as_bytes(),
    )
    .await;
    answer.refused(406, "NotAcceptable", ALL);
    let wrong = ask(&client, &format!("{MAPS}?includeObject=Some"), &shown("Table", "v1")).await;
    wrong.refused(400, "BadRequest", "Unable to convert to Table as requested: includeObject: Invalid value: \"Some\": must be 'Metadata', 'Object', 'None', or empty");
}

#[tokio::test]
async fn tables_say_more_than_their_cells() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let table = async |path: &str| ask(&client, path, &shown("Table", "v1")).await.expect(200);
    let names = |table: &Value| -> Vec<Value> {
        table["rows"].as_array().unwrap().iter().map(|row| row["cells"][0].clone()).collect()
    };
    // The version of one object is its table's, too.
    post(&client, MAPS, &map("a", json!({"x": "y"}))).await.expect(201);
    let one = table(&format!("{MAPS}/a")).await;
    assert_eq!(one["metadata"]["resourceVersion"], one["rows"][0]["object"]["metadata"]["resourceVersion"]);
    assert!(one["metadata"]["resourceVersion"].is_string());
    // Flow schemas come as they are tried, by precedence before name.
    let schemas = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
    for (name, precedence) in [("zz-first", 2), ("b-last", 9999), ("a-last", 9999)] {
        let schema = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name},
            "spec": {"matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": "global-default"}}});
        post(&client, schemas, &schema).await.expect(201);
    }
    let found = names(&table(schemas).await);
    let at = |name: &str| found.iter().position(|found| found == name).unwrap();
    assert!(at("zz-first") < at("a-last") && at("a-last") < at("b-last"), "{found:?}");
    // A pod that has come to its end says so beside its cells.
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    post(&client, "/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    post(&client, pods, &pod).await.expect(201);
    assert_eq!(table(&format!("{pods}/p")).await["rows"][0]["conditions"], Value::Null);
    patch(&client, &format!("{pods}/p/status"), MERGE, &json!({"status": {"phase": "Failed"}})).await.expect(200);
    let conditions = json!([{"type": "Completed", "status": "True", "reason": "Failed", "message": "The pod failed."}]);
    assert_eq!(table(&format!("{pods}/p")).await["rows"][0]["conditions"], conditions);
    // A scale has columns of its own.
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod["spec"]}}});
    post(&client, sets, &set).await.expect(201);
    let scale = table(&format!("{sets}/r/scale")).await;
    let columns: Vec<&Value> = scale["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(columns, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(scale["rows"][0]["cells"].as_array().unwrap()[..3], [json!("r"), json!(2), json!(0)]);
}

#[tokio::test]
async fn bodies_are_read_as_their_type_says() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{MAPS}?dryRun=All");
    let json = map("a", json!({})).to_string();
    let send = async |media: &str, body: &[u8]| request(&client, "POST", &path, &[("content-type", media)], body).await;
    for media in [JSON, "application/json; charset=utf-8", "application/json;", "APPLICATION/JSON", "application/yaml"]
    {
        assert_eq!(send(media, json.as_bytes()).await.code, 201, "{media}");
    }
    assert_eq!(request(&client, "POST", &path, &[], json.as_bytes()).await.code, 201);
    for media in ["*/*", "application/*", "text/json", "application/cbor", "application/x-www-form-urlencoded"] {
        let why = "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf";
        send(media, json.as_bytes()).await.refused(415, "UnsupportedMediaType", why);
    }
    let unrecognized = |why: &str| {
        format!(
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: {why}"
        )
    };
    for (body, why) in [
        ("", "unexpected end of JSON input (<empty>)"),
        ("a: b", "invalid character 'a' looking for beginning of value (613a2062)"),
        (
            "{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\"}x",
            "invalid character 'x' after top-level value ({\"kind\":\"ConfigMap\",\"apiVersio ...)",
        ),
        ("\u{feff}{}", "invalid character 'ï' looking for beginning of value (efbbbf7b7d)"),
        (
            "[]",
            "json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b5d)",
        ),
    ] {
        send(JSON, body.as_bytes()).await.refused(400, "BadRequest", &unrecognized(why));
    }
    let scheme = "in scheme \"pkg/api/legacyscheme/scheme.go:30\"";
    for (body, why) in [
        (json!({"kind": "Pod", "apiVersion": "v1"}), "Pod in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Pod) to (core.ConfigMap): unknown conversion".to_owned()),
        (json!({"kind": "Foo", "apiVersion": "bar/v1"}), format!("Foo in version \"v1\" cannot be handled as a ConfigMap: no kind \"Foo\" is registered for version \"bar/v1\" {scheme}")),
        (json!({"kind": "ConfigMap", "apiVersion": "v2"}), format!("ConfigMap in version \"v2\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \"v2\" {scheme}")),
        (json!({"data": {"a": 1}}), "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string".to_owned()),
    ] {
        post(&client, &path, &body).await.refused(400, "BadRequest", &why);
    }
    let scaler = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "a"}});
    let answer = post(&client, "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", &scaler).await;
    answer.refused(
        400,
        "BadRequest",
        "the API version in the data (autoscaling/v1) does not match the expected API version (autoscaling/v2)",
    );
}

#[tokio::test]
async fn custom_resources_say_what_their_body_must_be() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(json!({"type": "object"}))).await;
    let foo = |kind: &str, version: &str| json!({"apiVersion": format!("example.com/{version}"), "kind": kind, "metadata": {"name": "f"}});
    post(&client, FOOS, &foo("Bar", "v1")).await.refused(
        422,
        "Invalid",
        "Foo.example.com \"f\" is invalid: kind: Invalid value: \"Bar\": must be Foo",
    );
    post(&client, FOOS, &foo("Foo", "v2")).await.refused(
        400,
        "BadRequest",
        "the API version in the data (example.com/v2) does not match the expected API version (example.com/v1)",
    );
    let answer = request(&client, "POST", FOOS, &[("content-type", PROTOBUF)], b"k8s\0").await;
    answer.refused(415, "UnsupportedMediaType", "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml");
    post(&client, FOOS, &foo("Foo", "v1")).await.expect(201);
    let strategic = patch(&client, &format!("{FOOS}/f"), super::STRATEGIC, &json!({})).await;
    strategic.refused(415, "UnsupportedMediaType", "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml");
    put(&client, &format!("{FOOS}/f"), &foo("Foo", "v1")).await.refused(
        422,
        "Invalid",
        "foos.example.com \"f\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
    );
}

#[tokio::test]
async fn patches_of_unknown_types_are_refused() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, MAPS, &map("a", json!({}))).await.expect(201);
    let item = format!("{MAPS}/a");
    let why = "415: Unsupported Media Type";
    for media in [JSON, "text/plain", "application/apply-patch+cbor"] {
        patch(&client, &item, media, &json!({})).await.refused(415, "UnsupportedMediaType", why);
    }
    request(&client, "PATCH", &item, &[], b"{}").await.refused(415, "UnsupportedMediaType", why);
    patch(&client, &item, "application/merge-patch+json; charset=utf-8", &json!({})).await.expect(200);
    patch(&client, &item, MERGE, &json!([])).await.refused(
        400,
        "BadRequest",
        "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
    );
}

#[tokio::test]
async fn people_get_indented_json_and_large_answers_come_compressed() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, MAPS, &map("a", json!({"x": "y".repeat(1000)}))).await.expect(201);
    for (query, agent, indented) in [
        ("", "", false),
        ("?pretty=true", "", true),
        ("?pretty=1", "", true),
        ("?pretty=no", "", false),
        ("", "curl/8", true),
        ("?pretty=false", "curl/8", false),
    ] {
        let answer = request(&client, "GET", &format!("{MAPS}/a{query}"), &[("user-agent", agent)], b"").await;
        assert_eq!(answer.bytes.starts_with(b"{\n  \""), indented, "{query} {agent}");
    }
    let pretty = ask(&client, &format!("{MAPS}/a"), "application/json;pretty=1").await;
    assert!(pretty.bytes.starts_with(b"{\n"));
    let zipped = async |path: &str| request(&client, "GET", path, &[("accept-encoding", "gzip")], b"").await;
    assert_eq!(zipped(&format!("{MAPS}/a")).await.header("content-encoding"), "", "below 128 KiB");
    post(&client, MAPS, &map("b", json!({"x": "y".repeat(200_000)}))).await.expect(201);
    for path in [format!("{MAPS}/b"), MAPS.to_owned()] {
        let answer = zipped(&path).await;
        assert_eq!((answer.header("content-encoding"), answer.header("vary")), ("gzip", "Accept-Encoding"), "{path}");
        assert!(answer.bytes.len() < 10_000);
    }
    // A compressor would keep events back, or readers wait for the next before they show the last.
    let watch = format!("{MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan");
    let answer = zipped(&format!("{watch}&sendInitialEvents=true")).await;
    assert_eq!(answer.header("content-encoding"), "", "watches are not compressed");
    let head = request(&client, "HEAD", MAPS, &[], b"").await;
    assert_eq!((head.code, head.bytes.len(), head.header("content-type")), (200, 0, JSON));
    let options = request(&client, "OPTIONS", MAPS, &[], b"").await;
    options.refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
}
