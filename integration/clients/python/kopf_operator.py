"""A kopf operator with a resource of its own, and the person who uses it."""

import os
import threading
import time

import kopf
import yaml
from kubernetes import client, config

NAMESPACE = "kopf"
config.load_kube_config()
core, custom = client.CoreV1Api(), client.CustomObjectsApi()
BOATS = ("skiff.test", "v1", NAMESPACE, "boats")


@kopf.on.startup()
def configure(settings, **_):
    settings.posting.level = 20
    settings.persistence.finalizer = "skiff.test/operator"


@kopf.on.create("boats")
def built(name, spec, body, patch, **_):
    patch.status["afloat"] = True
    kopf.info(body, reason="Launched", message=f"{name} has {spec['oars']} oars")
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-papers"}, "data": {"colour": spec["colour"]}}
    kopf.adopt(settings, owner=body)
    core.create_namespaced_config_map(NAMESPACE, settings)
    return {"papers": f"{name}-papers"}


@kopf.on.field("boats", field="spec.colour")
def painted(name, old, new, patch, **_):
    patch.status["painted"] = f"{old} to {new}"


@kopf.on.update("boats")
def changed(spec, patch, **_):
    patch.status["seenOars"] = spec["oars"]


@kopf.timer("boats", interval=1)
def ticked(status, patch, **_):
    patch.status["ticks"] = status.get("ticks", 0) + 1


@kopf.on.delete("boats")
def scrapped(name, **_):
    core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": f"{name}-scrapped"}})


def until(what, condition):
    deadline = time.monotonic() + 90
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within 90 s: {custom.list_namespaced_custom_object(*BOATS)}"
        time.sleep(0.1)
    return found


def status():
    return custom.get_namespaced_custom_object(*BOATS, "one").get("status", {})


def config_maps():
    return {item.metadata.name for item in core.list_namespaced_config_map(NAMESPACE).items}


def patch(spec):
    custom.patch_namespaced_custom_object(*BOATS, "one", {"spec": spec}, _content_type="application/merge-patch+json")


extensions = client.ApiextensionsV1Api()
crd = yaml.safe_load(open(os.path.join(os.path.dirname(__file__), "crd.yaml")))
crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-preserve-unknown-fields"] = True
extensions.create_custom_resource_definition(crd)
core.create_namespace({"metadata": {"name": NAMESPACE}})

ready, stop = threading.Event(), threading.Event()
# The resource is served once it is established; the operator itself waits for that too.
operator = threading.Thread(target=lambda: kopf.run(namespace=NAMESPACE, standalone=True, ready_flag=ready, stop_flag=stop), daemon=True)
operator.start()
assert ready.wait(90), "the operator did not start"

boat = {"apiVersion": "skiff.test/v1", "kind": "Boat", "metadata": {"name": "one"}, "spec": {"oars": 2}}
until("the resource is served", lambda: "boats" in [r.name for r in custom.get_api_resources("skiff.test", "v1").resources])
custom.create_namespaced_custom_object(*BOATS, boat)
until("it was created", lambda: status().get("afloat") and status().get("built", {}).get("papers") == "one-papers")
held = custom.get_namespaced_custom_object(*BOATS, "one")["metadata"]
assert held["finalizers"] == ["skiff.test/operator"], held
papers = core.read_namespaced_config_map("one-papers", NAMESPACE)
assert papers.metadata.owner_references[0].uid == held["uid"] and papers.data == {"colour": "blue"}, papers
print("kopf: create: ok", flush=True)

patch({"colour": "red", "oars": 4})
until("it was painted", lambda: status().get("painted") == "blue to red" and status().get("seenOars") == 4)
until("it ticks", lambda: status().get("ticks", 0) >= 2)
print("kopf: update, field, timer: ok", flush=True)

events = until("events", lambda: [e for e in core.list_namespaced_event(NAMESPACE).items if e.reason == "Launched"])
assert events[0].message == "one has 2 oars" and events[0].involved_object.kind == "Boat", events

custom.delete_namespaced_custom_object(*BOATS, "one")
until("it was deleted", lambda: not custom.list_namespaced_custom_object(*BOATS)["items"])
until("the handler ran, and what it owned went along", lambda: "one-scrapped" in config_maps() and "one-papers" not in config_maps())
print("kopf: delete, finalizer, owned objects: ok", flush=True)

stop.set()
operator.join(60)
extensions.delete_custom_resource_definition("boats.skiff.test")
core.delete_namespace(NAMESPACE)
