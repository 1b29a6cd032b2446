//! kube-rs, the Rust client, against a running skiff: what its users do with it, one story each.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use integration::Lab;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event as CoreEvent, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, AttachParams, DeleteParams, DynamicObject, EvictParams, GroupVersionKind, ListParams, LogParams,
    Patch, PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::finalizer::{self, Event as Finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{Controller, WatchStreamExt, reflector, watcher};
use kube::{Client, Config, Discovery, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(60);

async fn client(lab: &Lab) -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Kubeconfig::read_from(&lab.kubeconfig).unwrap();
    Client::try_from(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap()).unwrap()
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} took longer than {SOON:?}"))
}

fn typed<K: serde::de::DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap()
}

#[test]
fn kube_rs_tells_its_stories() {
    let lab = Lab::up("kube-rs", &[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client(&lab).await;
        typed_objects_live_and_die(&client).await;
        everything_is_discovered(&client).await;
        reflectors_follow_a_streaming_list(&client).await;
        a_controller_keeps_its_resource(&client).await;
        pods_are_talked_to(&client).await;
        deployments_are_scaled(&client).await;
    });
}

async fn typed_objects_live_and_die(client: &Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map: ConfigMap =
        typed(json!({"metadata": {"name": "kube-rs", "labels": {"of": "kube-rs"}}, "data": {"a": "1"}}));
    let made = maps.create(&PostParams::default(), &map).await.unwrap();
    let again = maps.create(&PostParams::default(), &map).await.unwrap_err();
    assert!(matches!(&again, kube::Error::Api(status) if status.is_already_exists()), "{again}");
    let apply = PatchParams::apply("kube-rs-story");
    let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-rs"}, "data": {"b": "2"}});
    let applied = maps.patch("kube-rs", &apply, &Patch::Apply(&wanted)).await.unwrap();
    assert_eq!(applied.data.as_ref().unwrap().len(), 2);
    let conflict =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-rs"}, "data": {"b": "3"}});
    let refused = maps.patch("kube-rs", &PatchParams::apply("another"), &Patch::Apply(&conflict)).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.is_conflict()), "{refused}");
    let forced = maps.patch("kube-rs", &PatchParams::apply("another").force(), &Patch::Apply(&conflict)).await.unwrap();
    assert_eq!(forced.data.unwrap()["b"], "3");
    let meta = maps.get_metadata("kube-rs").await.unwrap();
    assert_eq!(meta.uid(), made.uid());
    let listed = maps.list_metadata(&ListParams::default().labels("of=kube-rs")).await.unwrap();
    assert_eq!(listed.items.len(), 1);
    let tried = PostParams { dry_run: true, ..PostParams::default() };
    let mut stale = made.clone();
    stale.data.get_or_insert_default().insert("c".into(), "3".into());
    let refused = maps.replace("kube-rs", &tried, &stale).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.is_conflict()), "{refused}");
    maps.delete(
        "kube-rs",
        &DeleteParams::default().preconditions(kube::api::Preconditions { uid: made.uid(), ..Default::default() }),
    )
    .await
    .unwrap();
    assert!(maps.get_opt("kube-rs").await.unwrap().is_none());
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    let lease: Lease = typed(
        json!({"metadata": {"name": "kube-rs"}, "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.123456Z"}}),
    );
    let mut held = leases.create(&PostParams::default(), &lease).await.unwrap();
    held.spec.as_mut().unwrap().holder_identity = Some("other".into());
    let taken = leases.replace("kube-rs", &PostParams::default(), &held).await.unwrap();
    assert!(leases.replace("kube-rs", &PostParams::default(), &held).await.is_err(), "only one may take it");
    assert_eq!(serde_json::to_value(taken.spec).unwrap()["renewTime"], "2026-01-01T00:00:00.123456Z");
    leases.delete("kube-rs", &DeleteParams::default()).await.unwrap();
}

async fn everything_is_discovered(client: &Client) {
    for discovery in [
        Discovery::new(client.clone()).run().await.unwrap(),
        Discovery::new(client.clone()).run_aggregated().await.unwrap(),
    ] {
        assert!(discovery.has_group("apps") && discovery.has_group(""));
        let (resource, capabilities) =
            discovery.resolve_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment")).unwrap();
        assert_eq!(resource.plural, "deployments");
        assert!(
            capabilities.subresources.iter().any(|(sub, _)| sub.plural == "scale"),
            "{:?}",
            capabilities.subresources.len()
        );
    }
    let (resource, _) =
        kube::discovery::pinned_kind(client, &GroupVersionKind::gvk("", "v1", "Namespace")).await.unwrap();
    let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    assert_eq!(namespaces.get("default").await.unwrap().data["status"]["phase"], "Active");
}

async fn reflectors_follow_a_streaming_list(client: &Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map = |name: &str| typed::<ConfigMap>(json!({"metadata": {"name": name, "labels": {"of": "reflector"}}}));
    maps.create(&PostParams::default(), &map("first")).await.unwrap();
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().labels("of=reflector").streaming_lists();
    let events = watcher(maps.clone(), config).default_backoff().reflect(writer).applied_objects();
    let following = tokio::spawn(async move { events.try_for_each(|_| async { Ok(()) }).await });
    soon("the first list", store.wait_until_ready()).await.unwrap();
    assert_eq!(store.state().len(), 1);
    maps.create(&PostParams::default(), &map("second")).await.unwrap();
    let key = reflector::ObjectRef::<ConfigMap>::new("second").within("default");
    let appears = async {
        while store.get(&key).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the second object", appears).await;
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("of=reflector")).await.unwrap();
    let empties = async {
        while !store.state().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("an empty store", empties).await;
    following.abort();
}

fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.kube.rs"}, "spec": {
        "group": "kube.rs", "scope": "Namespaced", "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wi"]},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer", "minimum": 0}}},
                "status": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}}]}})
}

struct Context {
    client: Client,
    widgets: ApiResource,
}

/// Makes a ConfigMap for each widget, says so in its status and in an event, and cleans up.
async fn reconcile(widget: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, finalizer::Error<kube::Error>> {
    let namespace = widget.namespace().unwrap_or_default();
    let widgets: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &context.widgets);
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    finalizer::finalizer(&widgets, "kube.rs/cleanup", widget, |event| async {
        match event {
            Finalizer::Apply(widget) => {
                let size = widget.data["spec"]["size"].clone();
                let owner = json!([{"apiVersion": "kube.rs/v1", "kind": "Widget", "name": widget.name_any(), "uid": widget.uid(), "controller": true}]);
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": widget.name_any(), "ownerReferences": owner}, "data": {"size": size.to_string()}});
                maps.patch(&widget.name_any(), &PatchParams::apply("widgets").force(), &Patch::Apply(&map)).await?;
                let status = json!({"apiVersion": "kube.rs/v1", "kind": "Widget", "status": {"size": size}});
                widgets.patch_status(&widget.name_any(), &PatchParams::apply("widgets").force(), &Patch::Apply(&status)).await?;
                let recorder = Recorder::new(context.client.clone(), Reporter { controller: "widgets".into(), instance: None });
                let event = Event { type_: EventType::Normal, reason: "Made".into(), note: Some("a ConfigMap".into()), action: "Making".into(), secondary: None };
                recorder.publish(&event, &widget.object_ref(&context.widgets)).await?;
            }
            Finalizer::Cleanup(widget) => {
                // The garbage collector may have been there first.
                match maps.delete(&widget.name_any(), &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    outcome => drop(outcome?),
                }
            }
        }
        Ok(Action::requeue(Duration::from_secs(300)))
    })
    .await
}

async fn a_controller_keeps_its_resource(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let made = definitions
        .patch("widgets.kube.rs", &PatchParams::apply("kube-rs-story"), &Patch::Apply(definition()))
        .await
        .unwrap();
    soon("the definition", await_condition(definitions.clone(), &made.name_any(), conditions::is_crd_established()))
        .await
        .unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("kube.rs", "v1", "Widget"));
    let widgets: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let context = Arc::new(Context { client: client.clone(), widgets: resource.clone() });
    let config = watcher::Config::default().streaming_lists();
    let controller = Controller::new_with(widgets.clone(), config.clone(), resource.clone())
        .owns(maps.clone(), config)
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(200)), context);
    let running = tokio::spawn(controller.for_each(|_| async {}));
    let widget = DynamicObject::new("w", &resource).data(json!({"spec": {"size": 3}}));
    widgets.create(&PostParams::default(), &widget).await.unwrap();
    let wrong = DynamicObject::new("x", &resource).data(json!({"spec": {"size": -1}}));
    let refused = widgets.create(&PostParams::default(), &wrong).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 422), "{refused}");
    let sized = |size: i64| {
        move |widget: Option<&DynamicObject>| widget.is_some_and(|widget| widget.data["status"]["size"] == size)
    };
    soon("the status", await_condition(widgets.clone(), "w", sized(3))).await.unwrap();
    assert_eq!(widgets.get_scale("w").await.unwrap().spec.unwrap().replicas, Some(3));
    widgets.patch_scale("w", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 5}}))).await.unwrap();
    soon("the new size", await_condition(widgets.clone(), "w", sized(5))).await.unwrap();
    // What the controller owns comes back.
    maps.delete("w", &DeleteParams::default()).await.unwrap();
    let comes_back = async {
        while maps.get_opt("w").await.unwrap().and_then(|map| map.data).is_none_or(|data| data["size"] != "5") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the ConfigMap", comes_back).await;
    let events: Api<CoreEvent> = Api::namespaced(client.clone(), "default");
    let said = events.list(&ListParams::default().fields("involvedObject.name=w,reason=Made")).await.unwrap();
    assert!(!said.items.is_empty());
    let uid = widgets.get("w").await.unwrap().uid().unwrap();
    widgets.delete("w", &DeleteParams::foreground()).await.unwrap();
    soon("the end of the widget", await_condition(widgets.clone(), "w", conditions::is_deleted(&uid))).await.unwrap();
    assert!(maps.get_opt("w").await.unwrap().is_none_or(|map| map.metadata.deletion_timestamp.is_some()));
    running.abort();
    definitions.delete("widgets.kube.rs", &DeleteParams::default()).await.unwrap();
    soon(
        "the end of the definition",
        await_condition(definitions, "widgets.kube.rs", conditions::is_deleted(&made.uid().unwrap())),
    )
    .await
    .unwrap();
}

async fn pods_are_talked_to(client: &Client) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let script = "echo started; while read line; do echo \"heard $line\"; done";
    let pod: Pod = typed(
        json!({"metadata": {"name": "talk", "labels": {"app": "talk"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "busybox", "image": integration::BUSYBOX, "imagePullPolicy": "Never", "stdin": true, "command": ["sh", "-c", script]},
        {"name": "nginx", "image": integration::NGINX, "imagePullPolicy": "Never"}]}}),
    );
    let made = pods.create(&PostParams::default(), &pod).await.unwrap();
    let ready = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
    };
    soon("a ready pod", await_condition(pods.clone(), "talk", ready)).await.unwrap();

    let mut process = pods
        .exec(
            "talk",
            ["sh", "-c", "cat; echo wrong >&2; exit 3"],
            &AttachParams::default().container("busybox").stdin(true),
        )
        .await
        .unwrap();
    let mut input = process.stdin().unwrap();
    input.write_all(b"through the pipe\n").await.unwrap();
    input.shutdown().await.unwrap();
    drop(input);
    let (mut out, mut err) = (String::new(), String::new());
    soon("exec", process.stdout().unwrap().read_to_string(&mut out)).await.unwrap();
    soon("exec", process.stderr().unwrap().read_to_string(&mut err)).await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through the pipe\n", "wrong\n"));
    let status = process.take_status().unwrap().await.unwrap();
    assert_eq!((status.reason.as_deref(), status.status.as_deref()), (Some("NonZeroExitCode"), Some("Failure")));

    let mut attached =
        pods.attach("talk", &AttachParams::default().container("busybox").stdin(true).stderr(false)).await.unwrap();
    attached.stdin().unwrap().write_all(b"hello\n").await.unwrap();
    let follow = LogParams { container: Some("busybox".into()), follow: true, ..LogParams::default() };
    let mut lines = pods.log_stream("talk", &follow).await.unwrap().lines();
    assert_eq!(soon("a log line", lines.try_next()).await.unwrap().as_deref(), Some("started"));
    assert_eq!(soon("a log line", lines.try_next()).await.unwrap().as_deref(), Some("heard hello"));
    drop(attached);

    let mut forwarder = pods.portforward("talk", &[80]).await.unwrap();
    let mut stream = forwarder.take_stream(80).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\nHost: talk\r\n\r\n").await.unwrap();
    let mut page = String::new();
    soon("a page", stream.read_to_string(&mut page)).await.unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");

    pods.evict("talk", &EvictParams::default()).await.unwrap();
    soon("the end of the pod", await_condition(pods.clone(), "talk", conditions::is_deleted(&made.uid().unwrap())))
        .await
        .unwrap();
}

async fn deployments_are_scaled(client: &Client) {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "nginx", "image": integration::NGINX, "imagePullPolicy": "Never"}]}}}});
    deployments.patch("web", &PatchParams::apply("kube-rs-story"), &Patch::Apply(&deployment)).await.unwrap();
    let available = |wanted: i32| {
        move |deployment: Option<&Deployment>| {
            deployment
                .and_then(|one| one.status.as_ref())
                .is_some_and(|status| status.available_replicas == Some(wanted))
        }
    };
    soon("one replica", await_condition(deployments.clone(), "web", available(1))).await.unwrap();
    deployments
        .patch_scale("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 2}})))
        .await
        .unwrap();
    soon("two replicas", await_condition(deployments.clone(), "web", available(2))).await.unwrap();
    deployments.restart("web").await.unwrap();
    let restarted = deployments.get("web").await.unwrap();
    let template = serde_json::to_value(&restarted.spec.template).unwrap();
    assert!(template["metadata"]["annotations"]["kube.kubernetes.io/restartedAt"].is_string(), "{template}");
    let uid = restarted.metadata.uid.unwrap();
    deployments.delete("web", &DeleteParams::foreground()).await.unwrap();
    soon("the end of the deployment", await_condition(deployments, "web", conditions::is_deleted(&uid))).await.unwrap();
}
