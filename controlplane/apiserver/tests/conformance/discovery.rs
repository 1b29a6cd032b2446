//! Discovery, aggregated and group by group; the server's version.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{DEFINITIONS, define, definition, delete, get, request, until};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

async fn aggregated(client: &kube::Client, path: &str) -> super::Answer {
    request(client, "GET", path, &[("accept", AGGREGATED)], b"").await
}

fn group<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["metadata"]["name"].as_str().unwrap_or_default() == name)
}

#[tokio::test]
async fn aggregated_discovery_names_every_group_and_follows_definitions() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let apis = aggregated(&client, "/apis").await;
    assert_eq!(apis.header("content-type"), AGGREGATED);
    let tag = apis.header("etag").to_owned();
    assert!(!tag.is_empty());
    let unchanged = request(&client, "GET", "/apis", &[("accept", AGGREGATED), ("if-none-match", &tag)], b"").await;
    assert_eq!((unchanged.code, unchanged.bytes.len()), (304, 0));
    let apis = apis.expect(200);
    assert_eq!(
        (&apis["kind"], &apis["apiVersion"]),
        (&json!("APIGroupDiscoveryList"), &json!("apidiscovery.k8s.io/v2"))
    );
    for name in [
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "apiregistration.k8s.io",
        "apps",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "events.k8s.io",
        "networking.k8s.io",
        "node.k8s.io",
        "policy",
        "scheduling.k8s.io",
    ] {
        let group = group(&apis, name).unwrap_or_else(|| panic!("{name}"));
        let version = &group["versions"][0];
        assert_eq!(version["freshness"], "Current", "{name}");
        let resource = &version["resources"][0];
        assert!(
            resource["verbs"].is_array()
                && resource["responseKind"]["kind"].is_string()
                && resource["scope"].is_string(),
            "{resource:#}"
        );
    }
    let order: Vec<&str> =
        apis["items"].as_array().unwrap().iter().map(|group| group["metadata"]["name"].as_str().unwrap()).collect();
    let ordered = |first: &str, then: &str| {
        order.iter().position(|one| *one == first) < order.iter().position(|one| *one == then)
    };
    assert!(order[0] == "apiregistration.k8s.io" && ordered("discovery.k8s.io", "resource.k8s.io"), "{order:?}");
    assert!(ordered("resource.k8s.io", "flowcontrol.apiserver.k8s.io"), "{order:?}");
    // Built-in resources leave the group and version of their own kind to be understood.
    let apps = group(&apis, "apps").unwrap();
    assert_eq!(apps["metadata"], json!({"name": "apps"}));
    let deployments = apps["versions"][0]["resources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["resource"] == "deployments")
        .unwrap();
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    assert_eq!(deployments["responseKind"], kind("", "", "Deployment"));
    assert_eq!(deployments["subresources"][0]["responseKind"], kind("autoscaling", "v1", "Scale"));
    let core = aggregated(&client, "/api").await.expect(200);
    let pods = core["items"][0]["versions"][0]["resources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["resource"] == "pods")
        .unwrap();
    assert_eq!(
        (&pods["singularResource"], &pods["shortNames"], &pods["categories"]),
        (&json!("pod"), &json!(["po"]), &json!(["all"]))
    );
    assert!(
        pods["subresources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|sub| sub["subresource"] == "status" && sub["responseKind"]["kind"] == "Pod")
    );
    define(&client, &definition(json!({"type": "object"}))).await;
    let wanted = json!({"resource": "foos", "singularResource": "foo", "scope": "Namespaced", "responseKind": {"group": "example.com", "kind": "Foo", "version": "v1"}});
    let mut found = Value::Null;
    for _ in 0..200 {
        let apis = aggregated(&client, "/apis").await.expect(200);
        if let Some(group) = group(&apis, "example.com") {
            found = group["versions"][0]["resources"][0].clone();
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(found[key], *value, "{found:#}");
    }
    delete(&client, &format!("{DEFINITIONS}/foos.example.com")).await.expect(200);
    until(&client, "/apis/example.com", |answer| answer.code == 404).await;
    assert!(group(&aggregated(&client, "/apis").await.expect(200), "example.com").is_none());
}

#[tokio::test]
async fn every_group_prefers_one_of_its_versions_and_serves_it() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let list = get(&client, "/apis").await.expect(200);
    assert_eq!(list["kind"], "APIGroupList");
    for group in list["groups"].as_array().unwrap() {
        let name = group["name"].as_str().unwrap();
        let alone = get(&client, &format!("/apis/{name}")).await.expect(200);
        assert_eq!(
            (&alone["kind"], &alone["preferredVersion"], &alone["versions"]),
            (&json!("APIGroup"), &group["preferredVersion"], &group["versions"]),
            "{name}"
        );
        assert!(group["versions"].as_array().unwrap().contains(&group["preferredVersion"]), "{name}");
        for version in group["versions"].as_array().unwrap() {
            let resources =
                get(&client, &format!("/apis/{}", version["groupVersion"].as_str().unwrap())).await.expect(200);
            assert_eq!(
                (&resources["kind"], &resources["groupVersion"]),
                (&json!("APIResourceList"), &version["groupVersion"])
            );
            assert!(!resources["resources"].as_array().unwrap().is_empty(), "{version}");
        }
    }
    let core = get(&client, "/api").await.expect(200);
    assert_eq!((&core["kind"], &core["versions"]), (&json!("APIVersions"), &json!(["v1"])));
    assert!(core["serverAddressByClientCIDRs"].is_array());
    // Lists of the core group are older than versions of lists.
    assert_eq!(get(&client, "/api/v1").await.expect(200)["apiVersion"], Value::Null);
    // Storage versions are told by their hash.
    let resources = get(&client, "/apis/apps/v1").await.expect(200);
    assert_eq!(resources["apiVersion"], "v1");
    let deployment =
        resources["resources"].as_array().unwrap().iter().find(|one| one["name"] == "deployments").unwrap();
    assert!(deployment["storageVersionHash"].as_str().is_some_and(|hash| !hash.is_empty()), "{deployment:#}");
    let version = get(&client, "/version").await.expect(200);
    assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("37")));
    for key in ["gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"] {
        assert!(version[key].is_string(), "{key}: {version:#}");
    }
}
