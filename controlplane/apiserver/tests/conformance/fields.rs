//! `fieldValidation`: unknown and duplicate fields of every way to write.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{APPLY, Answer, FOOS, JSON, JSON_PATCH, MERGE, STRATEGIC, define, definition, request};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const BAD: &str = r#""unknown1":"v","unknownDupe":"v","unknownDupe":"w","paused":true,"paused":false"#;

fn deployment(spec: &str, metadata: &str, container: &str) -> String {
    format!(
        r#"{{"apiVersion":"apps/v1","kind":"Deployment","metadata":{{"name":"d","labels":{{"app":"n"}}{metadata}}},"spec":{{{spec}"selector":{{"matchLabels":{{"app":"n"}}}},"template":{{"metadata":{{"labels":{{"app":"n"}}}},"spec":{{"containers":[{{"name":"n","image":"n:1"{container}}}]}}}}}}}}"#
    )
}

async fn send(client: &kube::Client, method: &str, path: &str, media: &str, body: &str, directive: &str) -> Answer {
    let query = if path.contains('?') { "&" } else { "?" };
    let path = format!("{path}{query}dryRun=All&fieldValidation={directive}");
    request(client, method, &path, &[("content-type", media)], body.as_bytes()).await
}

fn warned(answer: &Answer) -> Vec<String> {
    let plain = |text: &str| {
        let quoted = text.strip_prefix("299 - \"").and_then(|text| text.strip_suffix('"')).unwrap();
        quoted.replace("\\\"", "\"")
    };
    answer.warnings().into_iter().map(plain).collect()
}

#[tokio::test]
async fn built_in_kinds_name_fields_in_the_order_they_are_met() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let good = deployment("", "", "");
    assert_eq!(request(&client, "POST", DEPLOYMENTS, &[("content-type", JSON)], good.as_bytes()).await.code, 201);
    let item = format!("{DEPLOYMENTS}/d");
    let nested = r#","unknownNested":"v","imagePullPolicy":"Always","imagePullPolicy":"Never""#;
    let bad = deployment(&format!("{BAD},"), "", nested);
    let problems = [
        "unknown field \"spec.unknown1\"",
        "unknown field \"spec.unknownDupe\"",
        "duplicate field \"spec.paused\"",
        "unknown field \"spec.template.spec.containers[0].unknownNested\"",
        "duplicate field \"spec.template.spec.containers[0].imagePullPolicy\"",
    ];
    for (method, path, code) in [("POST", DEPLOYMENTS, 201), ("PUT", &item, 200)] {
        let renamed = if method == "POST" { bad.replace(r#""name":"d""#, r#""name":"e""#) } else { bad.clone() };
        let strict = send(&client, method, path, JSON, &renamed, "Strict").await;
        strict.refused(
            400,
            "BadRequest",
            &format!(
                "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: {}",
                problems.join(", ")
            ),
        );
        for directive in ["Warn", ""] {
            let answer = send(&client, method, path, JSON, &renamed, directive).await;
            assert_eq!((answer.code, warned(&answer)), (code, problems.map(str::to_owned).to_vec()), "{method}");
        }
        let ignored = send(&client, method, path, JSON, &renamed, "Ignore").await;
        assert_eq!((ignored.code, ignored.warnings()), (code, vec![]));
    }
    let meta = send(&client, "PUT", &item, JSON, &deployment("", r#","unknownMeta":"x""#, ""), "Strict").await;
    assert!(
        meta.message().ends_with("strict decoding error: unknown field \"metadata.unknownMeta\""),
        "{}",
        meta.message()
    );
}

#[tokio::test]
async fn patches_name_their_duplicates_and_then_what_the_object_would_not_know() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let good = deployment("", "", "");
    assert_eq!(request(&client, "POST", DEPLOYMENTS, &[("content-type", JSON)], good.as_bytes()).await.code, 201);
    let item = format!("{DEPLOYMENTS}/d");
    let merge = format!(r#"{{"spec":{{{BAD}}}}}"#);
    let operations = r#"[{"op":"add","path":"/spec/unknown1","value":"v","foo":"bar"},{"op":"add","path":"/spec/unknown2","path":"/spec/unknown3","value":"v"}]"#;
    for (media, body, problems) in [
        (
            MERGE,
            &*merge,
            "duplicate field \"spec.unknownDupe\", duplicate field \"spec.paused\", unknown field \"spec.unknown1\", unknown field \"spec.unknownDupe\"",
        ),
        (
            STRATEGIC,
            &*merge,
            "duplicate field \"spec.unknownDupe\", duplicate field \"spec.paused\", unknown field \"spec.unknown1\", unknown field \"spec.unknownDupe\"",
        ),
        (
            JSON_PATCH,
            operations,
            "json patch unknown field \"[0].foo\", json patch duplicate field \"[1].path\", unknown field \"spec.unknown1\", unknown field \"spec.unknown3\"",
        ),
    ] {
        let strict = send(&client, "PATCH", &item, media, body, "Strict").await;
        assert_eq!((strict.code, &strict.value["reason"]), (422, &json!("Invalid")), "{:#}", strict.value);
        assert!(strict.message().starts_with(" \"\" is invalid: patch: Invalid value: \""), "{}", strict.message());
        assert!(strict.message().ends_with(&format!(": strict decoding error: {problems}")), "{}", strict.message());
        let warn = send(&client, "PATCH", &item, media, body, "Warn").await;
        assert_eq!((warn.code, warned(&warn).join(", ")), (200, problems.to_owned()), "{media}");
        let ignore = send(&client, "PATCH", &item, media, body, "Ignore").await;
        assert_eq!((ignore.code, ignore.warnings()), (200, vec![]), "{media}");
    }
    let wrong = send(&client, "PATCH", &item, MERGE, r#"{"spec":{"replicas":"two"}}"#, "").await;
    assert!(
        wrong.code == 422
            && wrong.message().ends_with(
                ": json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
            ),
        "{:#}",
        wrong.value
    );
    let wrong = send(&client, "PATCH", &item, STRATEGIC, r#"{"spec":{"replicas":"two"}}"#, "").await;
    wrong.refused(
        422,
        "Invalid",
        " \"\" is invalid: patch: Invalid value: \"map[spec:map[replicas:two]]\": unrecognized type: int32",
    );
}

#[tokio::test]
async fn a_configuration_that_is_applied_has_no_unknown_fields_and_no_key_twice() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let item = format!("{DEPLOYMENTS}/d?fieldManager=m");
    for directive in ["Strict", "Warn", "Ignore"] {
        let answer = send(&client, "PATCH", &item, APPLY, &deployment(&format!("{BAD},"), "", ""), directive).await;
        answer.refused(500, "", "failed to create typed patch object (/d; apps/v1, Kind=Deployment): errors:\n  .spec.unknown1: field not declared in schema\n  .spec.unknownDupe: field not declared in schema");
    }
    let twice = deployment(r#""paused":true,"paused":false,"#, "", "");
    let why = "error converting YAML to JSON: yaml: unmarshal errors:\n  line 1: key \"paused\" already set in map";
    send(&client, "PATCH", &item, APPLY, &twice, "Strict").await.refused(
        400,
        "BadRequest",
        &format!("error strict decoding patch: {why}"),
    );
    let warn = send(&client, "PATCH", &item, APPLY, &twice, "Warn").await;
    assert_eq!((warn.code, warned(&warn)), (201, vec![why.replace('\n', " ")]));
    let answer = send(&client, "PATCH", &item, APPLY, "{}", "").await;
    answer.refused(400, "BadRequest", "invalid object type: /, Kind=");
}

fn schema() -> Value {
    let port = json!({"type": "object", "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}});
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"known": {"type": "string"}, "ports": {"type": "array", "items": port},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}}}}}})
}

const BAD_FOO: &str =
    r#""unknown1":"v","unknownDupe":1,"unknownDupe":2,"known":"a","known":"b","ports":[{"port":1,"port":2,"zz":1}]"#;

fn foo(spec: &str) -> String {
    format!(r#"{{"apiVersion":"example.com/v1","kind":"Foo","metadata":{{"name":"f"}},"spec":{{{spec}}}}}"#)
}

#[tokio::test]
async fn custom_resources_name_duplicates_before_unknown_fields() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(schema())).await;
    let problems = "duplicate field \"spec.unknownDupe\", duplicate field \"spec.known\", duplicate field \"spec.ports[0].port\", unknown field \"spec.ports[0].zz\", unknown field \"spec.unknown1\", unknown field \"spec.unknownDupe\"";
    let strict = send(&client, "POST", FOOS, JSON, &foo(BAD_FOO), "Strict").await;
    assert!(
        strict.code == 400 && strict.message().ends_with(&format!("strict decoding error: {problems}")),
        "{:#}",
        strict.value
    );
    let warn = send(&client, "POST", FOOS, JSON, &foo(BAD_FOO), "").await;
    assert_eq!((warn.code, warned(&warn).join(", ")), (201, problems.to_owned()));
    let kept = &warn.value["spec"];
    assert_eq!(*kept, json!({"known": "b", "ports": [{"port": 2}]}), "pruned, and the last wins");
    assert_eq!(request(&client, "POST", FOOS, &[("content-type", JSON)], foo("").as_bytes()).await.code, 201);
    let item = format!("{FOOS}/f");
    let merge = send(&client, "PATCH", &item, MERGE, &format!(r#"{{"spec":{{{BAD_FOO}}}}}"#), "Strict").await;
    assert!(
        merge.code == 422 && merge.message().ends_with(&format!("strict decoding error: {problems}")),
        "{:#}",
        merge.value
    );
    let applied =
        send(&client, "PATCH", &format!("{item}?fieldManager=m"), APPLY, &foo(r#""unknown1":1"#), "Strict").await;
    applied.refused(500, "", "failed to create typed patch object (/f; example.com/v1, Kind=Foo): .spec.unknown1: field not declared in schema");
    // Metadata is known, at the root and in what is embedded.
    let embedded =
        r#""template":{"apiVersion":"v1","kind":"Sub","metadata":{"name":"s","unknownSubMeta":1},"any":{"thing":1}}"#;
    let body = foo(embedded).replacen(r#""name":"f""#, r#""name":"g","unknownMeta":1"#, 1);
    let strict = send(&client, "POST", FOOS, JSON, &body, "Strict").await;
    assert!(strict.message().ends_with("strict decoding error: unknown field \"metadata.unknownMeta\", unknown field \"spec.template.metadata.unknownSubMeta\""), "{}", strict.message());
}

#[tokio::test]
async fn what_is_preserved_may_hold_anything_but_the_same_key_twice() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))).await;
    let strict = send(&client, "POST", FOOS, JSON, &foo(r#""a":{"b":1},"c":[1,"x"]"#), "Strict").await;
    assert_eq!(
        (strict.code, &strict.value["spec"]),
        (201, &json!({"a": {"b": 1}, "c": [1, "x"]})),
        "{:#}",
        strict.value
    );
    let twice = send(&client, "POST", FOOS, JSON, &foo(r#""a":1,"a":2"#), "Strict").await;
    assert!(
        twice.code == 400 && twice.message().ends_with("strict decoding error: duplicate field \"spec.a\""),
        "{:#}",
        twice.value
    );
}
