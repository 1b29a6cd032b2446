use super::*;
use crate::resource::Text;

fn sources() -> Vec<Source> {
    let mut pods = Descriptor::new("", "v1", "Pod", "pods").with_status();
    pods = pods.subresource("eviction", ("policy", "v1", "Eviction"), &["create"]);
    let deployments =
        Descriptor::new("apps", "v1", "Deployment", "deployments").with_status().with_scale("a", "b", "c");
    let mut custom = Descriptor::new("example.com", "v1", "Widget", "widgets");
    custom.custom = true;
    custom.list_kind = Text::from("WidgetList");
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "nullable": true, "properties": {"size": {"type": "integer"}}}}});
    [(pods, None), (deployments, None), (custom, Some(schema))]
        .into_iter()
        .map(|(descriptor, schema)| Source {
            descriptor: Arc::new(descriptor),
            schemas: schema
                .into_iter()
                .map(|schema| ("v1".to_owned(), Arc::new(schema::source::Source::new(&schema))))
                .collect(),
        })
        .collect()
}

fn parsed(document: &Document) -> Value {
    serde_json::from_slice(&document.plain()).unwrap()
}

/// Every `$ref` of a document names a schema that it holds.
fn check_references(value: &Value, document: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
            members.values().for_each(|value| check_references(value, document));
        }
        Value::Array(items) => items.iter().for_each(|value| check_references(value, document)),
        _ => {}
    }
}

#[test]
fn the_index_names_every_group_version() {
    let openapi = OpenApi::new(sources());
    let index = parsed(&openapi.v3_index());
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
    let mut paths: Vec<&str> = index["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    paths.sort_unstable();
    let groups = ["api/v1", "apis/apps/v1", "apis/example.com/v1"];
    let pages = [".well-known", "api", "apis", "apis/apps", "openid/v1", "version"];
    let mut wanted = [&groups[..], &pages[..]].concat();
    wanted.sort_unstable();
    assert_eq!(paths, wanted);
    assert!(openapi.v3("apis/apps/v2").is_none());
}

#[test]
fn documents_of_groups_are_whole() {
    let openapi = OpenApi::new(sources());
    for path in ["api/v1", "apis/apps/v1", "apis/example.com/v1"] {
        let document = parsed(&openapi.v3(path).unwrap());
        check_references(&document, &document);
    }
    let apps = parsed(&openapi.v3("apis/apps/v1").unwrap());
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
    assert_eq!(
        apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
    );
    assert!(apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"].is_object());
    let custom = parsed(&openapi.v3("apis/example.com/v1").unwrap());
    let widget = &custom["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(widget["properties"]["spec"]["properties"]["size"]["type"], "integer");
    assert_eq!(widget["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
}

#[test]
fn version_two_is_whole_and_leaves_out_what_it_cannot_say() {
    let openapi = OpenApi::new(sources());
    let document = parsed(&openapi.v2(V2Format::Json));
    check_references(&document, &document);
    assert!(document["definitions"]["com.example.v1.Widget"]["properties"]["spec"]["nullable"].is_null());
    assert_eq!(
        document["definitions"]["io.k8s.api.core.v1.Pod"]["properties"]["spec"]["$ref"],
        "#/definitions/io.k8s.api.core.v1.PodSpec"
    );
    let protobuf = openapi.v2(V2Format::Protobuf).plain();
    assert_eq!(&protobuf[..5], b"\x0a\x032.0");
}

/// Clients that learn their calls from the documents look for the server's version and for watches there, too.
#[test]
fn what_belongs_to_no_resource_is_described() {
    let openapi = OpenApi::new(sources());
    let v2 = parsed(&openapi.v2(V2Format::Json));
    for (document, path, id, schema) in [
        (".well-known", "/.well-known/openid-configuration", "getServiceAccountIssuerOpenIDConfiguration", None),
        ("api", "/api/", "getCoreAPIVersions", Some("io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions")),
        ("apis", "/apis/", "getAPIVersions", Some("io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList")),
        ("apis/apps", "/apis/apps/", "getAppsAPIGroup", Some("io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup")),
        ("openid/v1", "/openid/v1/jwks", "getServiceAccountIssuerOpenIDKeyset", None),
        ("version", "/version/", "getCodeVersion", Some("io.k8s.apimachinery.pkg.version.Info")),
    ] {
        let v3 = parsed(&openapi.v3(document).unwrap());
        check_references(&v3, &v3);
        assert_eq!(v3["paths"][path]["get"]["operationId"], id);
        assert_eq!(v2["paths"][path]["get"]["operationId"], id);
        let answer = &v2["paths"][path]["get"]["responses"]["200"]["schema"];
        match schema {
            Some(schema) => {
                assert!(v3["components"]["schemas"][schema]["properties"].is_object(), "{document}");
                assert_eq!(answer["$ref"], format!("#/definitions/{schema}"));
            }
            None => assert_eq!(answer["type"], "string"),
        }
        let url = format!("/openapi/v3/{document}?hash={}", openapi.v3_hash(document).unwrap());
        assert_eq!(parsed(&openapi.v3_index())["paths"][document]["serverRelativeURL"], url);
    }
    let apis = parsed(&openapi.v3("apis").unwrap());
    let group = &apis["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup"];
    let kinds = &group["x-kubernetes-group-version-kind"];
    assert_eq!(*kinds, json!([{"group": "", "kind": "APIGroup", "version": "v1"}]));
    assert!(openapi.v3("apis/example.com").is_none());
}

#[test]
fn watches_have_paths_of_their_own() {
    let nodes = Descriptor::new("", "v1", "Node", "nodes").cluster_scoped();
    let mut sources = sources();
    sources.push(Source { descriptor: Arc::new(nodes), schemas: Vec::new() });
    let openapi = OpenApi::new(sources);
    let core = parsed(&openapi.v3("api/v1").unwrap());
    check_references(&core, &core);
    for (path, id, action) in [
        ("/api/v1/watch/pods", "watchCoreV1PodListForAllNamespaces", "watchlist"),
        ("/api/v1/watch/namespaces/{namespace}/pods", "watchCoreV1NamespacedPodList", "watchlist"),
        ("/api/v1/watch/namespaces/{namespace}/pods/{name}", "watchCoreV1NamespacedPod", "watch"),
        ("/api/v1/watch/nodes", "watchCoreV1NodeList", "watchlist"),
        ("/api/v1/watch/nodes/{name}", "watchCoreV1Node", "watch"),
    ] {
        let item = &core["paths"][path];
        let get = &item["get"];
        assert_eq!((&get["operationId"], &get["x-kubernetes-action"]), (&json!(id), &json!(action)));
        assert!(item["parameters"].as_array().unwrap().iter().any(|one| one["name"] == "resourceVersion"), "{path}");
        let answer = &get["responses"]["200"]["content"]["application/json;stream=watch"]["schema"];
        assert_eq!(answer["$ref"], "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent");
    }
    let custom = parsed(&openapi.v3("apis/example.com/v1").unwrap());
    assert!(custom["paths"].as_object().unwrap().keys().all(|path| !path.contains("/watch/")));
}

#[test]
fn only_what_changed_is_made_again() {
    let openapi = OpenApi::new(sources());
    let before = openapi.v3("apis/apps/v1").unwrap();
    let mut changed = sources();
    changed[2].schemas[0].1 = Arc::new(schema::source::Source::new(&json!({"type": "object"})));
    let old = openapi.v3_hash("apis/example.com/v1").unwrap();
    openapi.set_sources(changed);
    assert_ne!(openapi.v3_hash("apis/example.com/v1").unwrap(), old);
    assert_eq!(openapi.v3("apis/apps/v1").unwrap().etag, before.etag);
}

#[test]
fn a_definition_that_came_while_version_two_was_made_is_in_it_afterwards() {
    let openapi = OpenApi::new(sources()[..2].to_vec());
    let before = openapi.state.lock().changes;
    let old = openapi.v2(V2Format::Json);
    openapi.set_sources(sources());
    // Whoever began before the definition came ends only now.
    openapi.keep_v2(before, &old);
    let document = parsed(&openapi.v2(V2Format::Json));
    assert!(document["definitions"]["com.example.v1.Widget"].is_object());
}

#[test]
fn numbers_are_good_where_text_is_too() {
    let openapi = OpenApi::new(sources());
    let v2 = parsed(&openapi.v2(V2Format::Json));
    let v3 = parsed(&openapi.v3("api/v1").unwrap());
    for (name, other) in [
        ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", json!([{"type": "integer"}, {"type": "string"}])),
        ("io.k8s.apimachinery.pkg.api.resource.Quantity", json!([{"type": "string"}, {"type": "number"}])),
    ] {
        assert_eq!(v2["definitions"][name]["type"], "string");
        let schema = &v3["components"]["schemas"][name];
        assert_eq!((&schema["oneOf"], schema.get("type")), (&other, None));
    }
}

#[test]
fn operations_are_named_as_upstreams() {
    let mut pods = Descriptor::new("", "v1", "Pod", "pods").with_status();
    pods.returns_deleted = true;
    let pods = pods
        .subresource("exec", ("", "v1", "PodExecOptions"), &["create", "get"])
        .subresource("log", ("", "v1", "Pod"), &["get"])
        .subresource("proxy", ("", "v1", "PodProxyOptions"), &["get"]);
    let nodes = Descriptor::new("", "v1", "Node", "nodes").cluster_scoped();
    let sources = [pods, nodes].map(|descriptor| Source { descriptor: Arc::new(descriptor), schemas: Vec::new() });
    let openapi = OpenApi::new(sources.to_vec());
    let document = parsed(&openapi.v3("api/v1").unwrap());
    for (path, method, id) in [
        ("/api/v1/", "get", "getCoreV1APIResources"),
        ("/api/v1/pods", "get", "listCoreV1PodForAllNamespaces"),
        ("/api/v1/namespaces/{namespace}/pods", "delete", "deleteCoreV1CollectionNamespacedPod"),
        ("/api/v1/namespaces/{namespace}/pods/{name}/status", "put", "replaceCoreV1NamespacedPodStatus"),
        ("/api/v1/namespaces/{namespace}/pods/{name}/exec", "post", "connectCoreV1PostNamespacedPodExec"),
        (
            "/api/v1/namespaces/{namespace}/pods/{name}/proxy/{path}",
            "get",
            "connectCoreV1GetNamespacedPodProxyWithPath",
        ),
        ("/api/v1/namespaces/{namespace}/pods/{name}/proxy", "head", "connectCoreV1HeadNamespacedPodProxy"),
        ("/api/v1/nodes", "delete", "deleteCoreV1CollectionNode"),
        ("/api/v1/nodes/{name}", "get", "readCoreV1Node"),
    ] {
        assert_eq!(document["paths"][path][method]["operationId"], id, "{path}");
    }
    let answered = |path: &str, method: &str, media: &str| {
        document["paths"][path][method]["responses"]["200"]["content"][media]["schema"].clone()
    };
    let (pod, text) = (json!({"$ref": "#/components/schemas/io.k8s.api.core.v1.Pod"}), json!({"type": "string"}));
    let item = "/api/v1/namespaces/{namespace}/pods/{name}";
    assert_eq!(answered(item, "delete", "application/json"), pod);
    assert_eq!(answered(&format!("{item}/log"), "get", "text/plain"), text);
    assert_eq!(answered(&format!("{item}/exec"), "get", "*/*"), text);
}

#[test]
fn custom_objects_say_what_every_object_has_also_within() {
    let gvk = GroupVersionKind::new("example.com", "v1", "Widget");
    let embedded = json!({"type": "object", "x-kubernetes-embedded-resource": true, "required": ["kind"]});
    let schema = json!({"type": "object", "properties": {"template": embedded}});
    let v3 = custom::schema(Version::V3, Some(&schema), &gvk, &[]);
    let template = &v3["properties"]["template"];
    assert_eq!(template["required"], json!(["kind", "apiVersion"]));
    assert!(template["properties"]["metadata"]["$ref"].is_string(), "{template}");
    // Version 2 of an open object names nothing, also not within.
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"spec": {"type": "object"}}});
    let field = crate::resource::SelectableField { label: "spec.color".into(), paths: Vec::new(), absent: "".into() };
    let v2 = custom::schema(Version::V2, Some(&open), &gvk, &[field]);
    assert!(v2["properties"].is_null() && v2["type"] == "object", "{v2}");
    assert_eq!(v2["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.color"}]));
    let v3 = custom::schema(Version::V3, Some(&open), &gvk, &[]);
    assert!(v3["properties"]["metadata"].is_object() && v3["properties"]["spec"].is_object(), "{v3}");
}
