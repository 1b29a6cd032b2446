"""Helm 4's own SDK (as a library in Python) with the chart beside this file."""

import os

import helm_python as helm
from kubernetes import client, config
from kubernetes.client.rest import ApiException

NAMESPACE = "helm"
CHART = os.path.join(os.path.dirname(__file__), "chart")
VALUES = {"image": os.environ["NGINX"], "busybox": os.environ["BUSYBOX"]}
MINUTES = 180

config.load_kube_config()
core, apps, batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()


def gone(call, *arguments):
    try:
        call(*arguments)
    except ApiException as error:
        assert error.status == 404, error
        return
    raise AssertionError(f"{call.__name__}{arguments} should be gone")


with helm.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace=NAMESPACE) as cluster:
    # refused before anything is made
    try:
        cluster.install(CHART, "wrong", {**VALUES, "replicas": -1}, create_namespace=True, wait="watcher", timeout=MINUTES)
        raise AssertionError("a negative number of replicas was installed")
    except helm.HelmError as error:
        assert "spec.replicas: Invalid value: -1" in str(error), error
    cluster.uninstall("wrong", ignore_not_found=True)

    drawn = cluster.install(CHART, "web", VALUES, dry_run="server")
    assert drawn["revision"] == 1, drawn
    gone(core.read_namespaced_service, "web", NAMESPACE)

    release = cluster.install(CHART, "web", VALUES, wait="watcher", timeout=MINUTES)
    assert (release["revision"], release["status"]) == (1, "deployed"), release
    settings = core.read_namespaced_config_map("web-settings", NAMESPACE).data
    namespace = core.read_namespace(NAMESPACE).metadata.uid
    assert settings["namespace"] == namespace and settings["hasDeployments"] == "true", settings
    assert settings["version"].startswith("v1.37."), settings
    assert apps.read_namespaced_deployment("web", NAMESPACE).status.available_replicas == 1
    assert batch.read_namespaced_job("web-before", NAMESPACE).status.succeeded == 1, "the hook ran"
    assert client.CustomObjectsApi().get_namespaced_custom_object("skiff.test", "v1", NAMESPACE, "piers", "web")["spec"] == {"length": 1}
    print("helm: install: ok", flush=True)

    tested = cluster.test("web", timeout=MINUTES, logs=True)
    assert "nginx" in tested["logs"], tested
    print("helm: test: ok", flush=True)

    release = cluster.upgrade(CHART, "web", {**VALUES, "replicas": 2, "colour": "red"}, wait="watcher", timeout=MINUTES)
    assert release["revision"] == 2, release
    assert apps.read_namespaced_deployment("web", NAMESPACE).status.available_replicas == 2
    assert core.read_namespaced_config_map("web-settings", NAMESPACE).data["colour"] == "red"
    print("helm: upgrade: ok", flush=True)

    # an upgrade that cannot become ready goes back by itself (--atomic)
    try:
        cluster.upgrade(CHART, "web", {**VALUES, "image": "skiff.test/none:1"}, wait="watcher", timeout=10, rollback_on_failure=True)
        raise AssertionError("an image that does not exist became ready")
    except helm.HelmError as error:
        assert "rolled back" in str(error) or "rollback" in str(error), error
    statuses = [entry["status"] for entry in cluster.history("web")]
    assert statuses == ["superseded", "superseded", "failed", "deployed"], statuses
    assert apps.read_namespaced_deployment("web", NAMESPACE).spec.replicas == 2
    print("helm: failing upgrade: ok", flush=True)

    cluster.rollback("web", version=1, wait="watcher", timeout=MINUTES)
    assert cluster.status("web")["revision"] == 5
    assert core.read_namespaced_config_map("web-settings", NAMESPACE).data["colour"] == "blue"
    listed = [(entry["name"], entry["status"]) for entry in cluster.list()]
    assert listed == [("web", "deployed")], listed
    stored = core.list_namespaced_secret(NAMESPACE, label_selector="owner=helm,name=web,status=deployed", field_selector="type=helm.sh/release.v1")
    assert len(stored.items) == 1, stored
    print("helm: rollback: ok", flush=True)

    cluster.uninstall("web", wait="watcher", timeout=MINUTES)
    assert cluster.list(all_states=True) == []
    gone(core.read_namespaced_service, "web", NAMESPACE)
    gone(apps.read_namespaced_deployment, "web", NAMESPACE)
    client.ApiextensionsV1Api().read_custom_resource_definition("piers.skiff.test")
    print("helm: uninstall: ok", flush=True)
