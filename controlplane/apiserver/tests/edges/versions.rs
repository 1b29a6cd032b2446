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

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let hook = Hook::start(dir.path(), |request| {
        let to = request["desiredAPIVersion"].as_str().unwrap();
        let objects: Vec<Value> =
            request["objects"].as_array().unwrap().iter().map(|object| convert(object, to)).collect();
        json!({"result": {"status": "Success"}, "convertedObjects": objects})
    })
    .await;
    let conversion =
        json!({"strategy": "Webhook", "webhook": {"clientConfig": hook.config(), "conversionReviewVersions": ["v1"]}});
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
