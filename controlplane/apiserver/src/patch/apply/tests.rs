use super::client_side::LAST_APPLIED;
use super::versions::Only;
use super::*;
use crate::resource::Paths;
use crate::schema::{Structural, lookup};
use futures::executor::block_on;
use proptest::prelude::*;

fn now() -> Timestamp {
    "2024-05-01T10:00:00Z".parse().unwrap()
}

fn schema_of(object: &Value) -> Schema {
    lookup(&kind_of(object)).unwrap()
}

fn write<'a>(versions: &'a Only, manager: &'a str, subresource: &'a str) -> Write<'a> {
    let ownable = Ownable::AllBut(if subresource == "status" { &[&["spec"]] } else { &[&["status"]] });
    Write { versions, version: &versions.version, manager, subresource, ownable, now: now() }
}

fn applied_with(
    schema: Schema,
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    force: bool,
) -> Result<Value, ApiError> {
    let versions = Only::of(config, schema);
    block_on(apply(&write(&versions, manager, ""), live, config, force))
}

fn applied(live: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, ApiError> {
    applied_with(schema_of(config), live, config, manager, force)
}

fn created(mut object: Value, manager: &str) -> Value {
    let schema = schema_of(&object);
    let gvk = kind_of(&object);
    normalize(&schema, &mut object, &gvk).unwrap();
    let versions = Only::of(&object, schema);
    block_on(track_update(&write(&versions, manager, ""), None, &mut object)).unwrap();
    object
}

fn updated(live: &Value, mut object: Value, manager: &str, subresource: &str) -> Value {
    let schema = schema_of(&object);
    let gvk = kind_of(&object);
    normalize(&schema, &mut object, &gvk).unwrap();
    let versions = Only::of(&object, schema);
    block_on(track_update(&write(&versions, manager, subresource), Some(live), &mut object)).unwrap();
    object
}

fn fields(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.iter().find(|entry| entry["manager"] == manager).map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

#[test]
fn creates_are_tracked_as_upstream_does() {
    let object = created(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
                    "securityContext": {}}}}}),
        "kubectl-create",
    );
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{"manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1", "time": "2024-05-01T10:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:securityContext": {}, "f:containers": {"k:{\"name\":\"nginx\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {},
                    "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}}}}}}}])
    );
}

#[test]
fn updates_take_over_what_they_change_and_nothing_else() {
    let live = created(config_map(json!({"a": "1", "b": "2"})), "one");
    let mut new = live.clone();
    new["data"] = json!({"a": "1", "b": "3", "c": "4"});
    let object = updated(&live, new, "two", "");
    assert_eq!(fields(&object, "one"), json!({"f:data": {".": {}, "f:a": {}}}));
    assert_eq!(fields(&object, "two"), json!({"f:data": {"f:b": {}, "f:c": {}}}));
    // Nothing changed: nothing is noted, and managed fields cannot be lost by leaving them out.
    let mut same = object.clone();
    same["metadata"].as_object_mut().unwrap().remove("managedFields");
    assert_eq!(updated(&object, same, "three", "")["metadata"]["managedFields"], object["metadata"]["managedFields"]);
    // One empty entry resets.
    let mut reset = object.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    assert!(updated(&object, reset, "three", "")["metadata"].get("managedFields").is_none());
}

#[test]
fn subresources_have_entries_of_their_own() {
    let live = created(deployment(json!({"replicas": 1})), "one");
    let mut new = live.clone();
    new["status"] = json!({"replicas": 1});
    let object = updated(&live, new, "one", "status");
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    let status = entries.iter().find(|entry| entry["subresource"] == "status").unwrap();
    assert_eq!(status["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
}

#[test]
fn applying_owns_what_it_names_and_removes_what_it_no_longer_does() {
    let first = applied(None, &config_map(json!({"a": "1", "b": "2"})), "m", false).unwrap();
    assert_eq!(fields(&first, "m"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
    let second = applied(Some(&first), &config_map(json!({"a": "1"})), "m", false).unwrap();
    assert_eq!(second["data"], json!({"a": "1"}));
    // What another manager also applies stays.
    let shared = applied(Some(&second), &config_map(json!({"a": "1", "z": "9"})), "n", false).unwrap();
    let left = applied(Some(&shared), &config_map(json!({})), "m", false).unwrap();
    assert_eq!(left["data"], json!({"a": "1", "z": "9"}));
    let gone = applied(Some(&left), &config_map(json!({})), "n", false).unwrap();
    assert!(gone["data"].as_object().is_none_or(serde_json::Map::is_empty), "{gone}");
}

#[test]
fn conflicts_are_told_and_can_be_forced() {
    let live = created(deployment(json!({"replicas": 3})), "kubectl-client-side-apply");
    let config = deployment(json!({"replicas": 5}));
    let error = applied(Some(&live), &config, "m", false).unwrap_err();
    assert_eq!(
        error.message(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let status = error.to_status();
    assert_eq!((status["code"].as_u64(), &status["reason"]), (Some(409), &json!("Conflict")));
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"kubectl-client-side-apply\" using apps/v1", "field": ".spec.replicas"}])
    );
    let forced = applied(Some(&live), &config, "m", true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    assert!(fields(&forced, "kubectl-client-side-apply")["f:spec"].get("f:replicas").is_none());
    // The same value is no conflict: both own it.
    let agreed = applied(Some(&live), &deployment(json!({"replicas": 3})), "m", false).unwrap();
    assert_eq!(fields(&agreed, "m"), json!({"f:spec": {"f:replicas": {}}}));

    let two = created(config_map(json!({"a": "1", "b": "1"})), "x");
    let error = applied(Some(&two), &config_map(json!({"a": "2", "b": "2"})), "m", false).unwrap_err();
    assert_eq!(error.message(), "Apply failed with 2 conflicts: conflicts with \"x\" using v1:\n- .data.a\n- .data.b");
}

#[test]
fn lists_merge_by_keys_and_keep_what_others_own() {
    let containers = |value: Value| deployment(json!({"template": {"spec": {"containers": value}}}));
    let first =
        applied(None, &containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])), "m", false)
            .unwrap();
    let other = applied(Some(&first), &containers(json!([{"name": "c", "image": "1"}])), "n", false).unwrap();
    let names = |object: &Value| -> Vec<String> {
        let containers = object["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        containers.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&other), ["a", "b", "c"]);
    let less = applied(Some(&other), &containers(json!([{"name": "b", "image": "2"}])), "m", false).unwrap();
    assert_eq!(names(&less), ["b", "c"]);
    assert_eq!(less["spec"]["template"]["spec"]["containers"][0]["image"], "2");
}

#[test]
fn atomic_values_change_hands_as_a_whole() {
    let config = |selector: Value| deployment(json!({"template": {"spec": {"nodeSelector": selector}}}));
    let live = applied(None, &config(json!({"a": "1"})), "m", false).unwrap();
    assert!(applied(Some(&live), &config(json!({"b": "1"})), "n", false).is_err());
    let forced = applied(Some(&live), &config(json!({"b": "1"})), "n", true).unwrap();
    assert_eq!(forced["spec"]["template"]["spec"]["nodeSelector"], json!({"b": "1"}));
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let deployment = |containers: Value| deployment(json!({"template": {"spec": {"containers": containers}}}));
    for (config, message) in [
        (
            super::tests::deployment(json!({"foo": 1})),
            "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema",
        ),
        (
            deployment(json!([{"name": "a"}, {"name": "a"}])),
            "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
    ] {
        let error = applied(None, &config, "m", false).unwrap_err();
        assert_eq!((error.message(), error.code().as_u16(), error.reason()), (message, 400, "BadRequest"));
    }
    assert!(
        applied(None, &deployment(json!([{"image": "a"}])), "m", false)
            .unwrap_err()
            .message()
            .contains("omits all key fields [\"name\"] (and doesn't have default values for any key fields)")
    );
    let mut managed = config_map(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    assert_eq!(applied(None, &managed, "m", false).unwrap_err().message(), "metadata.managedFields must be nil");
}

#[test]
fn objects_from_before_tracking_belong_to_before_first_apply() {
    let live = config_map(json!({"a": "1", "b": "2"}));
    let error = applied(Some(&live), &config_map(json!({"a": "9"})), "m", false).unwrap_err();
    assert!(error.message().contains("\"before-first-apply\" using v1: .data.a"), "{error}");
    let object = applied(Some(&live), &config_map(json!({"a": "1"})), "m", false).unwrap();
    assert_eq!(object["data"], json!({"a": "1", "b": "2"}));
    assert_eq!(fields(&object, "before-first-apply"), json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}));
}

#[test]
fn kubectl_moves_over_from_client_side_apply() {
    let mut object = config_map(json!({"a": "1"}));
    let last = config_map(json!({"a": "1"})).to_string();
    object["metadata"]["annotations"] = json!({LAST_APPLIED: last});
    let live = created(object, "kubectl-client-side-apply");
    assert!(applied(Some(&live), &config_map(json!({"a": "2"})), "other", false).is_err());
    let moved = applied(Some(&live), &config_map(json!({"a": "2"})), "kubectl", false).unwrap();
    assert_eq!(moved["data"]["a"], "2");
    let annotation = moved["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
    assert!(annotation.contains("\"a\":\"2\""), "{annotation}");
}

#[test]
fn custom_resources_follow_their_schema() {
    let schema = Schema::custom(Structural::from_json(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                "items": {"type": "object", "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "plain": {"type": "array", "items": {"type": "string"}},
        }}}}),
    ));
    let config = |spec: Value| json!({"apiVersion": "e.com/v1", "kind": "W", "metadata": {"name": "w"}, "spec": spec});
    let first = config(json!({"ports": [{"port": 1, "name": "a"}], "tags": ["x"], "plain": ["1"]}));
    let live = applied_with(schema.clone(), None, &first, "m", false).unwrap();
    assert_eq!(
        fields(&live, "m"),
        json!({"f:spec": {"f:plain": {}, "f:tags": {"v:\"x\"": {}}, "f:ports": {"k:{\"port\":1}": {".": {}, "f:name": {}, "f:port": {}}}}})
    );
    let second = config(json!({"ports": [{"port": 2}], "tags": ["y"]}));
    let merged = applied_with(schema.clone(), Some(&live), &second, "n", false).unwrap();
    assert_eq!(
        merged["spec"],
        json!({"ports": [{"port": 1, "name": "a"}, {"port": 2}], "tags": ["x", "y"], "plain": ["1"]})
    );
    let unknown = config(json!({"bogus": 1}));
    assert!(
        applied_with(schema.clone(), None, &unknown, "m", false)
            .unwrap_err()
            .message()
            .contains(".spec.bogus: field not declared")
    );
}

#[test]
fn many_new_items_merge_with_many_live_ones_in_one_pass() {
    let schema = lookup(&GroupVersionKind::new("", "v1", "Pod")).unwrap();
    let names = |prefix: &str| (0..3_000).map(|at| Value::from(format!("{prefix}/{at}"))).collect::<Vec<_>>();
    let object = |finalizers: Vec<Value>| json!({"metadata": {"finalizers": finalizers}});
    let merged = typed::merge(schema.root(), Some(&object(names("live"))), &object(names("new")));
    assert_eq!(merged, object([names("live"), names("new")].concat()));
}

#[test]
fn what_is_wrong_with_a_configuration_is_told_up_to_a_limit() {
    let unknown: serde_json::Map<String, Value> = (0..1_000).map(|at| (at.to_string(), Value::from(1))).collect();
    let schema = lookup(&GroupVersionKind::new("", "v1", "Pod")).unwrap();
    let mut problems = Vec::new();
    typed::check(schema.root(), &json!({"spec": unknown}), "", &mut problems);
    assert_eq!((problems.len(), &*problems[0]), (100, ".spec.0: field not declared in schema"));
}

#[test]
fn old_writers_of_one_second_fold_into_the_bucket_that_is_there() {
    let mut managers = managers::Managers::default();
    for name in ["a", "aa", "ancient-changes", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"] {
        let mut fields = FieldSet::default();
        fields.insert_fields(&["data", name]);
        let manager = Manager::new(Operation::Update, name, "v1", "");
        managers.add(manager, fields, "v1", "2024-05-01T10:00:00Z".to_owned());
    }
    managers.cap();
    let mut object = json!({"metadata": {}});
    managers.write(&mut object);
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    assert!(entries.len() <= 10 && entries.iter().all(|entry| entry["apiVersion"] == "v1"), "{entries:?}");
    let owned: usize = entries.iter().map(|entry| entry["fieldsV1"]["f:data"].as_object().unwrap().len()).sum();
    assert_eq!(owned, 13);
}

#[test]
fn many_plain_writers_are_folded_together() {
    let mut live = created(config_map(json!({"k0": "x"})), "m0");
    for n in 1..20 {
        let mut new = live.clone();
        new["data"][format!("k{n}")] = "x".into();
        live = updated(&live, new, &format!("m{n}"), "");
    }
    let entries = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 10);
    assert!(entries.iter().any(|entry| entry["manager"] == "ancient-changes"));
}

fn widgets() -> Schema {
    Schema::custom(Structural::from_json(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                "items": {"type": "object", "properties": {"port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"},
                    "hosts": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "names": {"type": "object", "additionalProperties": {"type": "string"}},
            "part": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
            "on": {"type": "boolean"},
            "users": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "realm"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "realm": {"type": "string"}, "id": {"type": "integer"}}}},
        }}}}),
    ))
}

fn widget(spec: Value) -> Value {
    json!({"apiVersion": "e.com/v1", "kind": "W", "metadata": {"name": "w"}, "spec": spec})
}

#[test]
fn items_that_have_no_place_are_named_with_what_they_lack() {
    for (spec, why) in [
        (
            json!({"tags": ["a", {"b": 1}]}),
            ".spec.tags: element 1: associative list without keys has an element that's a map type",
        ),
        (json!({"tags": [["a"]]}), ".spec.tags: element 0: not supported: associative list with lists as elements"),
        (
            json!({"tags": [null, "a", "a"]}),
            ".spec.tags: element 0: associative list without keys has an element that's an explicit null",
        ),
        (json!({"tags": ["a", "a"]}), ".spec.tags: duplicate entries for key [=\"a\"]"),
        (json!({"ports": [null]}), ".spec.ports: element 0: associative list with keys may not have a null element"),
        (json!({"ports": [80]}), ".spec.ports: element 0: associative list with keys may not have non-map elements"),
        (
            json!({"users": [{"name": "a"}, {}]}),
            ".spec.users: element 1: associative list with keys has an element that omits all key fields [\"name\" \"realm\"] (and doesn't have default values for any key fields)",
        ),
        (
            json!({"ports": [{"port": 1}, {"port": 1, "protocol": "TCP"}]}),
            ".spec.ports: duplicate entries for key [port=1,protocol=\"TCP\"]",
        ),
        (
            json!({"ports": [{"port": 1, "hosts": [1]}], "on": "yes"}),
            "errors:\n  .spec.on: expected boolean, got &{yes}\n  .spec.ports[port=1,protocol=\"TCP\"].hosts[=1]: expected string, got &value.valueUnstructured{Value:1}",
        ),
        (json!({"part": ["a"]}), ".spec.part: expected map, got &{[a]}"),
    ] {
        let error = applied_with(widgets(), None, &widget(spec), "m", false).unwrap_err();
        assert_eq!(error.message(), format!("failed to create typed patch object (/w; e.com/v1, Kind=W): {why}"));
    }
    let core =
        applied(None, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "x": 1}), "m", false);
    assert_eq!(
        core.unwrap_err().message(),
        "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .x: field not declared in schema"
    );
}

/// Live spec, with what its managers applied one after another; then what one of them applies, and what
/// is left.
#[test]
fn what_is_no_longer_named_goes_and_takes_along_what_nobody_owns() {
    let unowned = |live: &Value, path: &str, value: Value| {
        let mut live = live.clone();
        *live.pointer_mut(path).unwrap() = value;
        live
    };
    let apply = |live: Option<&Value>, spec: Value, manager: &str| {
        applied_with(widgets(), live, &widget(spec), manager, false).unwrap()
    };
    let one = apply(None, json!({"part": {"a": "1"}, "tags": ["x"]}), "one");
    // Somebody who left no trace set `b`: with the part's last owner it goes.
    let with_b = unowned(&one, "/spec/part", json!({"a": "1", "b": "2"}));
    assert_eq!(apply(Some(&with_b), json!({"tags": ["x"]}), "one")["spec"], json!({"tags": ["x"]}));
    // An owner keeps it.
    let two = apply(Some(&one), json!({"part": {"b": "2"}}), "two");
    assert_eq!(apply(Some(&two), json!({"tags": ["x"]}), "one")["spec"], json!({"part": {"b": "2"}, "tags": ["x"]}));
    // Nested lists, by their keys; what the other owns in them stays.
    let one = apply(None, json!({"ports": [{"port": 1, "hosts": ["a", "b"]}, {"port": 2}]}), "one");
    let two = apply(Some(&one), json!({"ports": [{"port": 1, "protocol": "TCP", "hosts": ["b", "c"]}]}), "two");
    assert_eq!(two["spec"]["ports"][0]["hosts"], json!(["a", "b", "c"]));
    assert_eq!(
        apply(Some(&two), json!({"ports": [{"port": 2}]}), "one")["spec"],
        json!({"ports": [{"port": 1, "protocol": "TCP", "hosts": ["b", "c"]}, {"port": 2}]})
    );
    assert_eq!(
        apply(Some(&two), json!({}), "two")["spec"],
        json!({"ports": [{"port": 1, "hosts": ["a", "b"]}, {"port": 2}]})
    );
    // Null says nothing of what merges.
    let one = apply(None, json!({"names": {"a": "1"}, "tags": ["x"]}), "one");
    let null = apply(Some(&one), json!({"names": null, "tags": null}), "two");
    assert_eq!(null["spec"], json!({"names": {"a": "1"}, "tags": ["x"]}));
}

#[test]
fn a_status_that_is_apart_is_not_owned_by_way_of_the_object() {
    let schema = || {
        Schema::custom(Structural::from_json(
            &json!({"type": "object", "properties": {"status": {"type": "object", "properties": {"a": {"type": "string"}}}}}),
        ))
    };
    let config = json!({"apiVersion": "e.com/v1", "kind": "W", "metadata": {"name": "w", "labels": {"l": "1"}}, "status": {"a": "1"}});
    let versions = Only::of(&config, schema());
    let owned = |reset: Paths, subresource| {
        let write = Write { ownable: Ownable::AllBut(reset), ..write(&versions, "m", subresource) };
        let object = block_on(apply(&write, None, &config, false)).unwrap();
        fields(&object, "m")
    };
    assert_eq!(owned(&[&["status"]], ""), json!({"f:metadata": {"f:labels": {"f:l": {}}}}));
    assert_eq!(owned(&[], ""), json!({"f:metadata": {"f:labels": {"f:l": {}}}, "f:status": {"f:a": {}}}));
    assert_eq!(owned(crate::resource::ALL_BUT_STATUS, "status"), json!({"f:status": {"f:a": {}}}));
}

#[test]
fn a_custom_resource_that_is_created_leaves_its_metadata_to_nobody() {
    let create = |metadata: Value| {
        let mut object = widget(json!({"on": true}));
        object["metadata"] = metadata;
        let versions = Only::of(&object, widgets());
        block_on(track_update(&write(&versions, "m", ""), None, &mut object)).unwrap();
        fields(&object, "m")
    };
    let spec = json!({".": {}, "f:on": {}});
    assert_eq!(create(json!({"name": "w"})), json!({"f:spec": spec}));
    assert_eq!(
        create(json!({"name": "w", "labels": {"l": "1"}})),
        json!({"f:metadata": {"f:labels": {".": {}, "f:l": {}}}, "f:spec": spec})
    );
}

/// Upstream's filters of `pods/resize` and `pods/ephemeralcontainers`.
#[test]
fn some_endpoints_own_only_what_they_write() {
    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "labels": {"l": "1"}}, "spec": spec});
    let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}});
    let live = created(pod(json!({"containers": [container], "initContainers": [{"name": "i", "image": "i"}]})), "m");
    let hooks = crate::kinds::core::pod::Pod;
    let owned = |subresource: &'static str, spec: Value| {
        let config = pod(spec);
        let versions = Only::of(&config, schema_of(&config));
        let ownable = crate::resource::Hooks::ownable(&hooks, subresource).unwrap();
        let write = Write { ownable, ..write(&versions, "s", subresource) };
        let applied = block_on(apply(&write, Some(&live), &config, true)).unwrap();
        let mut updated = applied.clone();
        updated["metadata"]["managedFields"] = live["metadata"]["managedFields"].clone();
        block_on(track_update(&write, Some(&live), &mut updated)).unwrap();
        (fields(&applied, "s"), fields(&updated, "s"))
    };
    let resources = json!({"containers": [{"name": "c", "image": "j", "resources": {"requests": {"cpu": "2"}}}]});
    let expected =
        |resources: Value| json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:resources": resources}}}});
    let cpu = json!({"f:requests": {"f:cpu": {}}});
    assert_eq!(owned("resize", resources), (expected(cpu.clone()), expected(cpu)));
    let debugger = json!({"ephemeralContainers": [{"name": "d", "image": "i"}], "restartPolicy": "Never"});
    let item = |more: Value| json!({"f:spec": {"f:ephemeralContainers": more}});
    let named = json!({"k:{\"name\":\"d\"}": {".": {}, "f:image": {}, "f:name": {}}});
    let (applied, updated) = owned("ephemeralcontainers", debugger);
    assert_eq!(applied, item(named.clone()));
    // An update owns what its type adds, too.
    let mut listed = named;
    listed["."] = json!({});
    listed["k:{\"name\":\"d\"}"]["f:resources"] = json!({});
    assert_eq!(updated, item(listed));
}

#[test]
fn what_became_atomic_is_owned_as_a_whole() {
    let live =
        applied_with(widgets(), None, &widget(json!({"names": {"a": "1"}, "tags": ["x"]})), "one", false).unwrap();
    let atomic = Schema::custom(Structural::from_json(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "names": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        "tags": {"type": "array", "items": {"type": "string"}}}}}}),
    ));
    let error =
        applied_with(atomic.clone(), Some(&live), &widget(json!({"names": {"b": "1"}, "tags": ["y"]})), "two", false);
    assert_eq!(
        error.unwrap_err().message(),
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.names\n- .spec.tags"
    );
    let versions = Only::of(&live, atomic);
    let mut new = live.clone();
    new["metadata"]["labels"] = json!({"a": "b"});
    block_on(track_update(&write(&versions, "two", ""), Some(&live), &mut new)).unwrap();
    assert_eq!(fields(&new, "one"), json!({"f:spec": {"f:names": {}, "f:tags": {}}}));
}

#[test]
fn the_oldest_writers_of_each_version_are_folded_together() {
    let entry = |name: &str, version: &str, subresource: &str, hour: usize| {
        json!({"manager": name, "operation": "Update", "apiVersion": version, "subresource": subresource,
        "time": format!("2024-05-01T{hour:02}:00:00Z"), "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {format!("f:{name}"): {}}}})
    };
    let mut entries = vec![entry("a", "v1", "status", 1), entry("b", "v2", "", 2), entry("c", "v1", "", 3)];
    entries.extend((0..9).map(|n| entry(&format!("m{n}"), "v1", "", 10 + n)));
    let mut managers = Managers::read(&json!(entries)).unwrap();
    managers.cap();
    let mut object = json!({});
    managers.write(&mut object);
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let folded = entries.iter().find(|entry| entry["manager"] == "ancient-changes").unwrap();
    assert_eq!((entries.len(), entries.iter().any(|entry| entry["manager"] == "b")), (10, true));
    assert_eq!(
        (&folded["apiVersion"], &folded["time"], folded.get("subresource"), &folded["fieldsV1"]),
        (&json!("v1"), &json!("2024-05-01T10:00:00Z"), None, &json!({"f:data": {"f:a": {}, "f:c": {}, "f:m0": {}}}))
    );
}

fn data() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map("[a-d]", "[x-z]", 0..4).prop_map(|map| json!(map))
}

proptest! {
    /// Forced, a configuration always wins, and applying it twice changes nothing.
    #[test]
    fn forced_applies_win_and_are_idempotent(first in data(), second in data(), third in data()) {
        let live = applied(None, &config_map(first), "one", false).unwrap();
        let live = applied(Some(&live), &config_map(second), "two", true).unwrap();
        let config = config_map(third.clone());
        let once = applied(Some(&live), &config, "one", true).unwrap();
        for (key, value) in third.as_object().unwrap() {
            prop_assert_eq!(&once["data"][key], value);
        }
        prop_assert_eq!(applied(Some(&once), &config, "one", true).unwrap(), once);
    }

    /// Two managers who do not share a key never conflict, and each removes only its own.
    #[test]
    fn separate_managers_do_not_meet(mine in data(), next in data()) {
        let theirs = config_map(json!({"q": "1"}));
        let live = applied(None, &theirs, "two", false).unwrap();
        let live = applied(Some(&live), &config_map(mine), "one", false).unwrap();
        let live = applied(Some(&live), &config_map(next.clone()), "one", false).unwrap();
        let mut wanted = next;
        wanted["q"] = "1".into();
        prop_assert_eq!(&live["data"], &wanted);
    }
}

#[test]
fn items_of_which_there_are_several_change_hands_as_a_whole() {
    let schema = widgets();
    let written = |live: Option<&Value>, spec: Value, manager: &str| {
        let mut object = widget(spec);
        let versions = Only::of(&object, schema.clone());
        block_on(track_update(&write(&versions, manager, ""), live, &mut object)).unwrap();
        object
    };
    let (a, b) = ("k:{\"port\":1,\"protocol\":\"TCP\"}", "k:{\"port\":2,\"protocol\":\"TCP\"}");
    let one = json!({"port": 1, "hosts": ["x"]});
    let (other, last) = (json!({"port": 1, "hosts": ["y"]}), json!({"port": 2}));
    let twice = written(None, json!({"ports": [one, other, last], "tags": ["t", "t"]}), "one");
    assert_eq!(
        fields(&twice, "one")["f:spec"],
        json!({".": {}, "f:ports": {".": {}, a: {}, b: {".": {}, "f:port": {}}}, "f:tags": {".": {}, "v:\"t\"": {}}})
    );
    // One of them is left: it is as good as new.
    let left = written(Some(&twice), json!({"ports": [one, last], "tags": ["t"]}), "two");
    assert_eq!(
        fields(&left, "two")["f:spec"],
        json!({"f:ports": {a: {".": {}, "f:port": {}, "f:hosts": {".": {}, "v:\"x\"": {}}}}, "f:tags": {"v:\"t\"": {}}})
    );
    assert_eq!(
        fields(&left, "one")["f:spec"],
        json!({".": {}, "f:ports": {".": {}, b: {".": {}, "f:port": {}}}, "f:tags": {}})
    );
    // And doubled again, nothing in it is anybody's.
    let again = written(Some(&left), json!({"ports": [one, one, last], "tags": ["t"]}), "three");
    assert_eq!(fields(&again, "three")["f:spec"], json!({"f:ports": {a: {}}}));
    assert_eq!(fields(&again, "two")["f:spec"], json!({"f:tags": {"v:\"t\"": {}}}));
    // A configuration puts its own in their place.
    let config = widget(json!({"ports": [{"port": 1}]}));
    let conflict = applied_with(schema.clone(), Some(&again), &config, "m", false).unwrap_err();
    assert!(conflict.message().ends_with(": .spec.ports[port=1,protocol=\"TCP\"]"), "{conflict}");
    let forced = applied_with(schema.clone(), Some(&again), &config, "m", true).unwrap();
    assert_eq!(forced["spec"]["ports"], json!([{"port": 1}, {"port": 2}]));
}

#[test]
fn times_alone_are_no_change() {
    let live = created(config_map(json!({"a": "1"})), "one");
    let later = |mut object: Value| {
        object["metadata"]["managedFields"][0]["time"] = "2025-01-01T00:00:00Z".into();
        object
    };
    let mut same = later(live.clone());
    managers::keep_times(&mut same, &live);
    assert_eq!(same, live);
    let mut changed = later(live.clone());
    changed["data"]["a"] = "2".into();
    let written = changed.clone();
    managers::keep_times(&mut changed, &live);
    assert_eq!(changed, written);
}

#[test]
fn an_item_is_known_by_the_keys_that_it_has() {
    let users = |users: Value| widget(json!({"users": users}));
    let schema = widgets();
    let live = applied_with(schema.clone(), None, &users(json!([{"name": "a", "id": 1}])), "one", false).unwrap();
    assert_eq!(
        fields(&live, "one")["f:spec"]["f:users"],
        json!({"k:{\"name\":\"a\"}": {".": {}, "f:id": {}, "f:name": {}}})
    );
    let other = users(json!([{"name": "a", "realm": "r", "id": 2}]));
    let both = applied_with(schema.clone(), Some(&live), &other, "two", false).unwrap();
    assert_eq!(both["spec"]["users"], json!([{"name": "a", "id": 1}, {"name": "a", "realm": "r", "id": 2}]));
    let merged = applied_with(schema, Some(&both), &users(json!([{"name": "a", "id": 3}])), "one", false).unwrap();
    assert_eq!(merged["spec"]["users"][0], json!({"name": "a", "id": 3}));
}
