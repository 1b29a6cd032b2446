"""The Python client against the cluster of $KUBECONFIG: typed, dynamic, streams, watches."""

import os
import sys
import tempfile
import threading
import uuid
from datetime import datetime, timezone

import yaml
from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from kubernetes.stream import portforward, stream

NAMESPACE = "python"
BUSYBOX = os.environ["BUSYBOX"]
config.load_kube_config()
core, apps, batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()


def refused(status, reason, call, *arguments, **named):
    """The call is answered with this code and reason."""
    try:
        call(*arguments, **named)
    except ApiException as error:
        body = yaml.safe_load(error.body)
        assert (error.status, body["reason"]) == (status, reason), error
        return body
    raise AssertionError(f"{call} should have been refused with {status} {reason}")


def pod_template(name):
    container = client.V1Container(name="main", image=BUSYBOX, image_pull_policy="IfNotPresent", command=["sleep", "3600"])
    return client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": name}),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0),
    )


def replace(call):
    """Read, change, replace; again if a controller was quicker."""
    for _ in range(20):
        read = call("read")("typed", NAMESPACE)
        read.metadata.labels["how"] = "replaced"
        try:
            return call("replace")("typed", NAMESPACE, read)
        except ApiException as error:
            if error.status != 409:
                raise
    raise AssertionError(f"{read.kind} was always changed by others first")


def typed_kinds():
    """Fifteen kinds: created, read, listed, replaced, patched in three ways, deleted."""
    selector = client.V1LabelSelector(match_labels={"app": "a"})
    meta = lambda: client.V1ObjectMeta(name="typed")
    role_ref = client.V1RoleRef(api_group="rbac.authorization.k8s.io", kind="Role", name="typed")
    job = client.V1JobSpec(suspend=True, template=pod_template("a"))
    job.template.spec.restart_policy = "Never"
    backend = client.V1IngressBackend(service=client.V1IngressServiceBackend(name="s", port=client.V1ServiceBackendPort(number=80)))
    claim = client.V1PersistentVolumeClaimSpec(access_modes=["ReadWriteOnce"], storage_class_name="none", resources=client.V1VolumeResourceRequirements(requests={"storage": "1Gi"}))
    kinds = [
        (core, "config_map", client.V1ConfigMap(data={"a": "b"})),
        (core, "secret", client.V1Secret(string_data={"a": "b"})),
        (core, "service", client.V1Service(spec=client.V1ServiceSpec(ports=[client.V1ServicePort(port=80)]))),
        (core, "service_account", client.V1ServiceAccount()),
        (core, "persistent_volume_claim", client.V1PersistentVolumeClaim(spec=claim)),
        (core, "resource_quota", client.V1ResourceQuota(spec=client.V1ResourceQuotaSpec(hard={"secrets": "50"}))),
        (core, "limit_range", client.V1LimitRange(spec=client.V1LimitRangeSpec(limits=[client.V1LimitRangeItem(type="Pod", max={"cpu": "8"})]))),
        (apps, "deployment", client.V1Deployment(spec=client.V1DeploymentSpec(replicas=0, selector=selector, template=pod_template("a")))),
        (apps, "replica_set", client.V1ReplicaSet(spec=client.V1ReplicaSetSpec(replicas=0, selector=selector, template=pod_template("a")))),
        (apps, "stateful_set", client.V1StatefulSet(spec=client.V1StatefulSetSpec(replicas=0, service_name="a", selector=selector, template=pod_template("a")))),
        (batch, "job", client.V1Job(spec=job)),
        (batch, "cron_job", client.V1CronJob(spec=client.V1CronJobSpec(schedule="0 0 1 1 *", job_template=client.V1JobTemplateSpec(spec=job)))),
        (client.NetworkingV1Api(), "ingress", client.V1Ingress(spec=client.V1IngressSpec(default_backend=backend))),
        (client.NetworkingV1Api(), "network_policy", client.V1NetworkPolicy(spec=client.V1NetworkPolicySpec(pod_selector=selector))),
        (client.PolicyV1Api(), "pod_disruption_budget", client.V1PodDisruptionBudget(spec=client.V1PodDisruptionBudgetSpec(selector=selector, min_available=1))),
        (client.RbacAuthorizationV1Api(), "role", client.V1Role(rules=[client.V1PolicyRule(api_groups=[""], resources=["pods"], verbs=["get"])])),
        (client.RbacAuthorizationV1Api(), "role_binding", client.V1RoleBinding(role_ref=role_ref, subjects=[])),
        (client.CoordinationV1Api(), "lease", client.V1Lease(spec=client.V1LeaseSpec(holder_identity="me", renew_time=datetime.now(timezone.utc)))),
        (client.AutoscalingV2Api(), "horizontal_pod_autoscaler", client.V2HorizontalPodAutoscaler(spec=client.V2HorizontalPodAutoscalerSpec(max_replicas=2, scale_target_ref=client.V2CrossVersionObjectReference(api_version="apps/v1", kind="Deployment", name="typed")))),
    ]
    for api, name, body in kinds:
        call = lambda verb: getattr(api, f"{verb}_namespaced_{name}")
        body.metadata = meta()
        created = call("create")(NAMESPACE, body)
        assert created.metadata.uid and created.metadata.creation_timestamp, name
        refused(409, "AlreadyExists", call("create"), NAMESPACE, body)
        listed = call("list")(NAMESPACE, field_selector="metadata.name=typed").items
        assert [item.metadata.uid for item in listed] == [created.metadata.uid], name
        for patch, content in [
            ([{"op": "add", "path": "/metadata/labels", "value": {"how": "json"}}], "application/json-patch+json"),
            ({"metadata": {"labels": {"how": "merge"}}}, "application/merge-patch+json"),
            ({"metadata": {"labels": {"how": "strategic"}}}, "application/strategic-merge-patch+json"),
        ]:
            patched = call("patch")("typed", NAMESPACE, patch, _content_type=content)
            assert patched.metadata.labels["how"] in content, name
        replaced = replace(call)
        assert replaced.metadata.labels["how"] == "replaced", name
        refused(409, "Conflict", call("replace"), "typed", NAMESPACE, created)
        call("delete")("typed", NAMESPACE)
    refused(404, "NotFound", core.read_namespaced_config_map, "typed", NAMESPACE)
    refused(422, "Invalid", core.create_namespaced_config_map, NAMESPACE, {"metadata": {"name": "Not_Valid"}})
    core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "collected", "labels": {"collect": "me"}}})
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="collect=me")
    refused(404, "NotFound", core.read_namespaced_config_map, "collected", NAMESPACE)


def watches():
    """A stream with every change, taken up again where it ended, and Expired for what is too old."""
    start = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    for index in range(3):
        core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": f"seen-{index}"}})
    seen = []
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, NAMESPACE, resource_version=start, timeout_seconds=30):
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == 3:
            watcher.stop()
    assert seen == [("ADDED", f"seen-{index}") for index in range(3)], seen
    core.patch_namespaced_config_map("seen-0", NAMESPACE, {"data": {"a": "b"}})
    core.delete_namespaced_config_map("seen-1", NAMESPACE)
    again = []
    resumed = watch.Watch()
    for event in resumed.stream(core.list_namespaced_config_map, NAMESPACE, resource_version=watcher.resource_version, timeout_seconds=30):
        again.append((event["type"], event["object"].metadata.name))
        if len(again) == 2:
            resumed.stop()
    assert again == [("MODIFIED", "seen-0"), ("DELETED", "seen-1")], again
    ended = watch.Watch()
    for _ in ended.stream(core.list_namespaced_config_map, NAMESPACE, timeout_seconds=1, allow_watch_bookmarks=True):
        pass
    refused(400, "BadRequest", core.list_namespaced_config_map, NAMESPACE, resource_version="abc", watch=True)
    future = refused(504, "Timeout", core.list_namespaced_config_map, NAMESPACE, resource_version="99999999")
    assert "Too large resource version" in future["message"], future
    page = core.list_namespaced_config_map(NAMESPACE, limit=1)
    assert page.metadata._continue and len(page.items) == 1
    rest = core.list_namespaced_config_map(NAMESPACE, _continue=page.metadata._continue)
    assert rest.metadata.resource_version == page.metadata.resource_version


def streams():
    """Logs, exec, attach and port-forward of a running pod, all over websockets."""
    script = "echo hello from the log; while read -r line; do echo heard $line; done; sleep 3600"
    listener = "nc -l -p 8080 -e cat"
    spec = {
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {"name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "stdin": True, "command": ["sh", "-c", script]},
            {"name": "echo", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", f"while true; do {listener}; done"]},
        ],
    }
    core.create_namespaced_pod(NAMESPACE, {"metadata": {"name": "streams"}, "spec": spec})
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_pod, NAMESPACE, field_selector="metadata.name=streams", timeout_seconds=120):
        conditions = event["object"].status.conditions or []
        if any(condition.type == "Ready" and condition.status == "True" for condition in conditions):
            watcher.stop()
    for line in watch.Watch().stream(core.read_namespaced_pod_log, "streams", NAMESPACE, container="main"):
        assert line == "hello from the log", line
        break
    run = lambda *command, **more: stream(core.connect_get_namespaced_pod_exec, "streams", NAMESPACE, container="main", command=list(command), stdout=True, stderr=True, **more)
    assert run("sh", "-c", "echo out") == "out\n"
    talk = run("sh", stdin=True, _preload_content=False)
    talk.write_stdin("echo to-out; echo to-err >&2\n")
    assert talk.readline_stdout(timeout=60) == "to-out"
    assert talk.readline_stderr(timeout=60) == "to-err"
    talk.write_stdin("exit 3\n")
    talk.run_forever(timeout=60)
    assert talk.returncode == 3, talk.returncode
    attached = stream(core.connect_get_namespaced_pod_attach, "streams", NAMESPACE, container="main", stdin=True, stdout=True, stderr=True, _preload_content=False)
    attached.write_stdin("over the websocket\n")
    while "heard over the websocket" not in (line := attached.readline_stdout(timeout=60) or ""):
        assert attached.is_open(), line
    attached.close()
    forward = portforward(core.connect_get_namespaced_pod_portforward, "streams", NAMESPACE, ports="8080")
    socket = forward.socket(8080)
    socket.settimeout(60)
    socket.sendall(b"there and back")
    assert socket.recv(100) == b"there and back"
    socket.close()
    core.delete_namespaced_pod("streams", NAMESPACE)


def dynamic_client():
    """Discovery, a CustomResourceDefinition and its objects, server-side apply, watches."""
    crd = yaml.safe_load(open(os.path.join(os.path.dirname(__file__), "crd.yaml")))
    extensions = client.ApiextensionsV1Api()
    extensions.create_custom_resource_definition(crd)
    watcher = watch.Watch()
    for event in watcher.stream(extensions.list_custom_resource_definition, field_selector="metadata.name=boats.skiff.test", timeout_seconds=60):
        if any(c.type == "Established" and c.status == "True" for c in event["object"].status.conditions or []):
            watcher.stop()
    dyn = dynamic.DynamicClient(client.ApiClient())
    boats = dyn.resources.get(api_version="skiff.test/v1", kind="Boat")
    boat = {"apiVersion": "skiff.test/v1", "kind": "Boat", "metadata": {"name": "one"}, "spec": {"oars": 2, "unknown": True}}
    created = boats.create(body=boat, namespace=NAMESPACE)
    assert created.spec.colour == "blue" and "unknown" not in created.spec.to_dict(), created
    invalid = {**boat, "metadata": {"name": "two"}, "spec": {"oars": 3}}
    body = refused(422, "Invalid", boats.create, body=invalid, namespace=NAMESPACE)
    assert "a boat has an even number of oars" in body["message"], body
    boats.patch(body={"spec": {"oars": 4}}, name="one", namespace=NAMESPACE, content_type="application/merge-patch+json")
    refused(415, "UnsupportedMediaType", boats.patch, body={}, name="one", namespace=NAMESPACE, content_type="application/strategic-merge-patch+json")
    applied = boats.server_side_apply(body={**boat, "spec": {"colour": "red"}}, name="one", namespace=NAMESPACE, field_manager="painter", force_conflicts=True)
    assert (applied.spec.colour, applied.spec.oars) == ("red", 4), applied
    refused(409, "Conflict", boats.server_side_apply, body={**boat, "spec": {"colour": "green"}}, name="one", namespace=NAMESPACE, field_manager="other")
    boats.status.patch(body={"status": {"afloat": True}, "spec": {"oars": 8}}, name="one", namespace=NAMESPACE, content_type="application/merge-patch+json")
    got = boats.get(name="one", namespace=NAMESPACE)
    assert (got.status.afloat, got.spec.oars, got.metadata.generation) == (True, 4, 3), got
    for event in boats.watch(namespace=NAMESPACE, timeout=5):
        assert (event["type"], event["object"].metadata.name) == ("ADDED", "one"), event
        break
    custom = client.CustomObjectsApi()
    assert len(custom.list_namespaced_custom_object("skiff.test", "v1", NAMESPACE, "boats")["items"]) == 1
    boats.delete(name="one", namespace=NAMESPACE)
    extensions.delete_custom_resource_definition("boats.skiff.test")
    pods = dyn.resources.get(api_version="v1", kind="Pod")
    assert {"log", "exec", "eviction"} <= set(pods.subresources), pods.subresources
    assert dyn.version["kubernetes"]["minor"] == "37"


def from_yaml():
    """Several documents and a List, as utils.create_from_yaml sends them."""
    documents = """
apiVersion: v1
kind: ConfigMap
metadata: {name: from-yaml, namespace: python}
---
apiVersion: v1
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: from-yaml, namespace: python}, spec: {replicas: 0, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}
- {apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: from-yaml, namespace: python}, rules: []}
"""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(documents)
        file.flush()
        utils.create_from_yaml(client.ApiClient(), file.name)
        try:
            utils.create_from_yaml(client.ApiClient(), file.name)
            raise AssertionError("a second creation should fail")
        except utils.FailToCreateError as error:
            assert "AlreadyExists" in str(error), error
    assert apps.read_namespaced_deployment("from-yaml", NAMESPACE).spec.strategy.type == "RollingUpdate"


def election():
    """A leader is elected through a Lease."""
    led = threading.Event()
    lock = LeaseLock("leader", NAMESPACE, f"me-{uuid.uuid4()}")
    settings = electionconfig.Config(lock, lease_duration=17, renew_deadline=15, retry_period=1, onstarted_leading=led.set, onstopped_leading=None)
    threading.Thread(target=leaderelection.LeaderElection(settings).run, daemon=True).start()
    assert led.wait(60), "nobody led within a minute"


core.create_namespace({"metadata": {"name": NAMESPACE}})
for chapter in [typed_kinds, watches, streams, dynamic_client, from_yaml, election]:
    chapter()
    print(f"python: {chapter.__name__}: ok", flush=True)
core.delete_namespace(NAMESPACE)
# The election's thread never ends, and the interpreter must not be taken down beneath it.
sys.stdout.flush()
os._exit(0)
