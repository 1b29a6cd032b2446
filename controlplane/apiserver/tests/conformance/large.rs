//! Definitions as large as those of cert-manager, the Prometheus operator and the Gateway API: tens
//! of thousands of lines of schema, deeply nested, with rules that have a budget, in two versions.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use apiserver::testing::Cluster;
use serde_json::{Map, Value, json};

use super::{DEFINITIONS, FOOS, apply, definition, get, post, until};

/// A schema of some `4^levels` fields, described at length, with lists, maps, unions and rules.
fn nested(levels: usize, path: &str) -> Value {
    let described = |schema: Value, what: &str| {
        let mut schema = schema;
        schema["description"] = format!("{what} of {path}: says how the part that is described by this field behaves, what it defaults to, and what happens when it is left out by whoever writes it.").into();
        schema
    };
    let mut properties = Map::new();
    properties.insert(
        "name".into(),
        described(
            json!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
            "The name",
        ),
    );
    properties.insert(
        "mode".into(),
        described(
            json!({"type": "string", "enum": ["Always", "IfNotPresent", "Never"], "default": "Always"}),
            "The mode",
        ),
    );
    properties.insert(
        "limit".into(),
        described(json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 65535}), "The limit"),
    );
    properties.insert(
        "size".into(),
        described(
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            "The size",
        ),
    );
    properties.insert(
        "labels".into(),
        described(
            json!({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 16}),
            "The labels",
        ),
    );
    if levels > 0 {
        for part in ["selector", "template", "policy"] {
            properties.insert(part.into(), nested(levels - 1, &format!("{path}.{part}")));
        }
        let item = nested(levels - 1, &format!("{path}.items"));
        properties.insert("items".into(), described(json!({"type": "array", "maxItems": 8, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": item}), "The items"));
    }
    let mut schema = described(json!({"type": "object", "required": ["name"], "properties": properties}), "The part");
    schema["x-kubernetes-validations"] =
        json!([{"rule": "!has(self.limit) || self.limit != 13", "message": "limit must not be 13"}]);
    schema
}

fn large(levels: usize) -> Value {
    let schema = json!({"type": "object", "description": "Foo is large.", "properties": {"spec": nested(levels, "spec"), "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let mut large = definition(schema);
    let mut old = large["spec"]["versions"][0].clone();
    (old["name"], old["storage"]) = ("v1beta1".into(), false.into());
    large["spec"]["versions"].as_array_mut().unwrap().push(old);
    large
}

fn kubectl(config: &std::path::Path, arguments: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(config).arg("--cache-dir").arg(config.with_extension("cache")).args(arguments);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is missing: apt-get install kubernetes-client");
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (
        output.status.success(),
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_definition_is_applied_served_explained_and_published() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    let (client, config) = (cluster.admin(), cluster.kubeconfig("admin", &["system:masters"]));
    let object = large(4);
    let lines = serde_json::to_string_pretty(&object).unwrap().lines().count();
    let text = object.to_string();
    println!("{lines} lines, {} bytes", text.len());
    assert!(lines > 20_000 && text.len() < 3 * 1024 * 1024, "{lines} {}", text.len());
    // Client-side, it does not fit into its annotation.
    let (done, said) = kubectl(&config, &["apply", "-f", "-"], &text);
    assert!(!done && said.contains("metadata.annotations: Too long: may not be more than 262144 bytes"), "{said}");
    let started = std::time::Instant::now();
    let (done, said) = kubectl(&config, &["apply", "--server-side", "-f", "-"], &text);
    assert!(done && said.contains("serverside-applied"), "{said}");
    for version in ["v1", "v1beta1"] {
        until(&client, &format!("/apis/example.com/{version}/foos"), |answer| answer.code == 200).await;
    }
    println!("applied and served in {:?}", started.elapsed());
    let (done, said) = kubectl(&config, &["apply", "--server-side", "-f", "-"], &text);
    assert!(done, "{said}");
    let part = json!({"name": "a", "items": [{"name": "x", "limit": 7, "template": {"name": "y"}}]});
    let foo = |name: &str, spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec});
    let made = post(&client, FOOS, &foo("a", part.clone())).await.expect(201);
    assert_eq!(made["spec"]["items"][0]["template"]["mode"], "Always", "defaulted in the depth: {made:#}");
    let mut wrong = part.clone();
    wrong["items"][0]["template"]["limit"] = 13.into();
    let refused = post(&client, FOOS, &foo("b", wrong)).await;
    refused.refused(
        422,
        "Invalid",
        "Foo.example.com \"b\" is invalid: spec.items[0].template: Invalid value: limit must not be 13",
    );
    let applied = apply(
        &client,
        &format!("{FOOS}/a"),
        "m",
        "",
        &foo("a", json!({"name": "a", "items": [{"name": "z", "mode": "Never"}]})),
    )
    .await
    .expect(200);
    assert_eq!(applied["spec"]["items"].as_array().unwrap().len(), 2);
    let (done, said) = kubectl(&config, &["explain", "foo.spec.template.items.policy.limit"], "");
    assert!(done && said.contains("The limit of spec.template.items.policy"), "{said}");
    for path in ["/openapi/v2", "/openapi/v3/apis/example.com/v1", "/openapi/v3/apis/example.com/v1beta1"] {
        let started = std::time::Instant::now();
        until(&client, path, |answer| {
            answer.code == 200
                && String::from_utf8_lossy(&answer.bytes).contains("The limit of spec.template.items.policy")
        })
        .await;
        println!("{path} in {:?}", started.elapsed());
    }
    let (done, said) = kubectl(&config, &["get", "foos"], "");
    assert!(done && said.contains("NAME"), "{said}");
    // Five of them, one after another, as an operator's bundle has them.
    for index in 0..4 {
        let mut next = object.clone();
        next["metadata"]["name"] = format!("foo{index}s.example.com").into();
        next["spec"]["names"] = json!({"plural": format!("foo{index}s"), "kind": format!("Foo{index}")});
        post(&client, DEFINITIONS, &next).await.expect(201);
    }
    until(&client, "/apis/example.com/v1/foo3s", |answer| answer.code == 200).await;
    tokio::time::timeout(Duration::from_secs(5), get(&client, MAPS_PATH)).await.expect("others are served").expect(200);
}

const MAPS_PATH: &str = super::MAPS;

#[tokio::test]
async fn rules_that_could_cost_too_much_are_refused_with_their_cost() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let unbounded = json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}, "x-kubernetes-validations": [{"rule": "self.all(x, self.all(y, x.all(z, z.contains('a'))))"}]});
    let answer = post(
        &client,
        DEFINITIONS,
        &definition(
            json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": unbounded}}}}),
        ),
    )
    .await;
    let why = answer.message();
    assert!(answer.code == 422 && why.contains("estimated rule cost exceeds budget by factor of more than 100x") && why.contains("(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"), "{why}");
}
