//! Custom resources of several versions: converted by a webhook or by name only, with defaults of
//! the version that is asked for.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::hook::Hook;
use super::{ask, eventually};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(conversion: Value, storage: &str) -> Value {
    let version = |name: &str, spec: Value| json!({"name": name, "served": true, "storage": name == storage, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "places.example.com"}, "spec": {
    "group": "example.com", "scope": "Namespaced", "names": {"plural": "places", "kind": "Place"}, "conversion": conversion, "versions": [
        version("v1", json!({"type": "object", "properties": {"hostPort": {"type": "string"}}})),
        version("v2", json!({"type": "object", "properties": {"host": {"type": "string"}, "port": {"type": "string"}, "note": {"type": "string", "default": "none"}}})),
    ]}})
}

/// `hostPort` of v1 is `host` and `port` of v2.
fn convert(object: &Value, to: &str) -> Value {
    let mut new = object.clone();
    new["apiVersion"] = to.into();
    let text = |key: &str| object["spec"][key].as_str().unwrap_or_default().to_owned();
    new["spec"] = match to {
        "example.com/v2" => {
            let both = text("hostPort");
            let (host, port) = both.split_once(':').unwrap_or_default();
            json!({"host": host, "port": port})
        }
        _ => json!({"hostPort": format!("{}:{}", text("host"), text("port"))}),
    };
    new
}

fn places(version: &str) -> String {
    format!("/apis/example.com/{version}/namespaces/default/places")
}

/// A webhook that converts places.
async fn converter(dir: &std::path::Path) -> Hook {
    Hook::start(dir, |request| {
        let to = request["desiredAPIVersion"].as_str().unwrap();
        let objects: Vec<Value> =
            request["objects"].as_array().unwrap().iter().map(|object| convert(object, to)).collect();
        json!({"result": {"status": "Success"}, "convertedObjects": objects})
    })
    .await
}

fn through(hook: &Hook) -> Value {
    json!({"strategy": "Webhook", "webhook": {"clientConfig": hook.config(), "conversionReviewVersions": ["v1"]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let hook = converter(dir.path()).await;
    let conversion = through(&hook);
    let (code, answer) = ask(&client, "POST", DEFINITIONS, &definition(conversion, "v1").to_string()).await;
    assert_eq!(code, 201, "{answer:#}");
    eventually(&client, &places("v2"), |code, _| code == 200).await;
    let place = json!({"apiVersion": "example.com/v2", "kind": "Place", "metadata": {"name": "a"}, "spec": {"host": "h", "port": "80"}});
    let (code, made) = ask(&client, "POST", &places("v2"), &place.to_string()).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"host": "h", "port": "80", "note": "none"})), "{made:#}");
    let old = ask(&client, "GET", &format!("{}/a", places("v1")), "").await.1;
    assert_eq!((&old["apiVersion"], &old["spec"]), (&json!("example.com/v1"), &json!({"hostPort": "h:80"})), "{old:#}");
    assert_eq!(old["metadata"]["uid"], made["metadata"]["uid"]);
    let mut changed = old.clone();
    changed["spec"]["hostPort"] = "i:81".into();
    let (code, answer) = ask(&client, "PUT", &format!("{}/a", places("v1")), &changed.to_string()).await;
    assert_eq!(code, 200, "{answer:#}");
    let list = ask(&client, "GET", &places("v2"), "").await.1;
    assert_eq!(list["items"][0]["spec"], json!({"host": "i", "port": "81", "note": "none"}), "{list:#}");
    // With the webhook gone, the version that objects are stored in still works.
    drop(hook);
    let (code, answer) = ask(
        &client,
        "PUT",
        &format!("{}/a", places("v1")),
        &ask(&client, "GET", &format!("{}/a", places("v1")), "").await.1.to_string(),
    )
    .await;
    assert_eq!(code, 200, "{answer:#}");
    let place = json!({"apiVersion": "example.com/v2", "kind": "Place", "metadata": {"name": "b"}, "spec": {"host": "h", "port": "80"}});
    let (code, error) = ask(&client, "POST", &places("v2"), &place.to_string()).await;
    assert!(
        code == 500
            && error["message"]
                .as_str()
                .unwrap()
                .contains("conversion webhook for example.com/v2, Kind=Place failed: Post \"https://localhost:"),
        "{error:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_webhook_only_the_version_changes() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut first = definition(json!({"strategy": "None"}), "v1");
    for version in first["spec"]["versions"].as_array_mut().unwrap() {
        version["schema"]["openAPIV3Schema"]["properties"]["spec"] =
            json!({"type": "object", "properties": {"size": {"type": "integer"}}});
    }
    let (code, answer) = ask(&client, "POST", DEFINITIONS, &first.to_string()).await;
    assert_eq!(code, 201, "{answer:#}");
    eventually(&client, &places("v1"), |code, _| code == 200).await;
    let place =
        json!({"apiVersion": "example.com/v1", "kind": "Place", "metadata": {"name": "a"}, "spec": {"size": 1}});
    assert_eq!(ask(&client, "POST", &places("v1"), &place.to_string()).await.0, 201);
    let path = format!("{DEFINITIONS}/places.example.com");
    let mut current = ask(&client, "GET", &path, "").await.1;
    assert_eq!(current["status"]["storedVersions"], json!(["v1"]));
    for version in current["spec"]["versions"].as_array_mut().unwrap() {
        version["storage"] = (version["name"] == "v2").into();
        // Objects that are stored already get the new default when they are read.
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["color"] =
            json!({"type": "string", "default": "red"});
    }
    let (code, current) = ask(&client, "PUT", &path, &current.to_string()).await;
    assert_eq!((code, &current["status"]["storedVersions"]), (200, &json!(["v1", "v2"])), "{current:#}");
    let read = eventually(&client, &format!("{}/a", places("v2")), |code, object| {
        code == 200 && object["spec"]["color"] == "red"
    })
    .await;
    assert_eq!((&read["apiVersion"], &read["spec"]["size"]), (&json!("example.com/v2"), &json!(1)));
    let (code, answer) = ask(&client, "DELETE", &path, "").await;
    assert_eq!(code, 200, "{answer:#}");
    eventually(&client, &path, |code, _| code == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_answered_with_what_the_stored_version_kept() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let none = json!({"strategy": "None"});
    assert_eq!(ask(&client, "POST", DEFINITIONS, &definition(none, "v1").to_string()).await.0, 201);
    eventually(&client, &places("v2"), |code, _| code == 200).await;
    let place = json!({"apiVersion": "example.com/v2", "kind": "Place", "metadata": {"name": "a"}, "spec": {"host": "h", "port": "80"}});
    for dry_run in ["?dryRun=All", ""] {
        let (code, made) = ask(&client, "POST", &format!("{}{dry_run}", places("v2")), &place.to_string()).await;
        assert_eq!((code, &made["spec"]), (201, &json!({"note": "none"})), "{made:#}");
    }
    let path = format!("{}/a", places("v2"));
    let read = ask(&client, "GET", &path, "").await.1;
    assert_eq!(read["spec"], json!({"note": "none"}));
    // What is lost again changes nothing.
    let mut changed = read.clone();
    changed["spec"]["note"] = "seen".into();
    let (code, put) = ask(&client, "PUT", &path, &changed.to_string()).await;
    assert_eq!((code, &put["spec"]), (200, &read["spec"]), "{put:#}");
    // Not even when the object comes by way of the version that is stored.
    let stored = ask(&client, "GET", &format!("{}/a", places("v1")), "").await.1;
    assert_eq!(stored["spec"], json!({}));
}

/// Applies as a manager.
async fn apply(client: &kube::Client, version: &str, manager: &str, spec: Value) -> (u16, Value) {
    let config = json!({"apiVersion": format!("example.com/{version}"), "kind": "Place", "metadata": {"name": "a"}, "spec": spec});
    let path = format!("{}/a?fieldManager={manager}", places(version));
    let request =
        http::Request::builder().method("PATCH").uri(path).header("content-type", "application/apply-patch+yaml");
    let response =
        client.send(request.body(kube::client::Body::from(config.to_string().into_bytes())).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    (code, serde_json::from_slice(&response.into_body().collect_bytes().await.unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_meet_in_the_version_that_each_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let hook = converter(dir.path()).await;
    let conversion = through(&hook);
    assert_eq!(ask(&client, "POST", DEFINITIONS, &definition(conversion, "v1").to_string()).await.0, 201);
    eventually(&client, &places("v2"), |code, _| code == 200).await;
    let message = |answer: &(u16, Value)| (answer.0, answer.1["message"].as_str().unwrap_or_default().to_owned());
    assert_eq!(apply(&client, "v1", "one", json!({"hostPort": "h:80"})).await.0, 201);
    let conflict = apply(&client, "v2", "two", json!({"host": "i"})).await;
    assert_eq!(
        message(&conflict),
        (409, "Apply failed with 1 conflict: conflict with \"one\": .spec.hostPort".to_owned())
    );
    // The same host: both own it, each as their version has it.
    let (code, both) = apply(&client, "v2", "two", json!({"host": "h"})).await;
    assert_eq!(code, 200, "{both:#}");
    let fields = |object: &Value| -> Vec<(String, Value)> {
        let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
        let mut found: Vec<_> = entries
            .map(|entry| (entry["manager"].as_str().unwrap().to_owned(), entry["fieldsV1"]["f:spec"].clone()))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    };
    assert_eq!(
        fields(&both),
        [("one".to_owned(), json!({"f:hostPort": {}})), ("two".to_owned(), json!({"f:host": {}}))]
    );
    // Another port is nobody else's; another host is.
    let (code, moved) = apply(&client, "v1", "one", json!({"hostPort": "h:81"})).await;
    assert_eq!((code, &moved["spec"]["hostPort"]), (200, &json!("h:81")), "{moved:#}");
    let conflict = apply(&client, "v1", "one", json!({"hostPort": "j:81"})).await;
    assert_eq!(message(&conflict), (409, "Apply failed with 1 conflict: conflict with \"two\": .spec.host".to_owned()));
    // What one lets go of, the other keeps in the other version.
    let (code, kept) = apply(&client, "v2", "two", json!({})).await;
    assert_eq!((code, &kept["spec"]["host"]), (200, &json!("h")), "{kept:#}");
    assert_eq!(fields(&kept)[0], ("one".to_owned(), json!({"f:hostPort": {}})));
    // A plain write takes it from its owner, and says with which version.
    let mut changed = kept.clone();
    changed["spec"]["port"] = "82".into();
    let (code, put) = ask(&client, "PUT", &format!("{}/a?fieldManager=hand", places("v2")), &changed.to_string()).await;
    assert_eq!(code, 200, "{put:#}");
    assert_eq!(fields(&put)[0], ("hand".to_owned(), json!({"f:port": {}})), "{put:#}");
    assert!(fields(&put).iter().all(|(name, _)| name != "one"));
    let conflict = apply(&client, "v1", "one", json!({"hostPort": "h:80"})).await;
    assert_eq!(
        message(&conflict),
        (409, "Apply failed with 1 conflict: conflict with \"hand\" using example.com/v2: .spec.port".to_owned())
    );
    // With the webhook gone, plain writes in the stored version go on: owners stay as they were.
    drop(hook);
    let path = format!("{}/a", places("v1"));
    let mut object = ask(&client, "GET", &path, "").await.1;
    object["metadata"]["labels"] = json!({"a": "b"});
    let (code, unconverted) = ask(&client, "PUT", &path, &object.to_string()).await;
    assert_eq!(code, 200, "{unconverted:#}");
    assert_eq!(unconverted["metadata"]["managedFields"], object["metadata"]["managedFields"]);
}
