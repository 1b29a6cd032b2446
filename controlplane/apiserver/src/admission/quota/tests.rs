use super::super::fake::{Fixed, Request};
use super::*;
use serde_json::json;

fn quota(hard: Value, used: Value) -> Value {
    json!({"metadata": {"name": "q", "namespace": "n"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
}

fn pod(resources: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

#[tokio::test]
async fn booked_until_full() {
    let plugin = ResourceQuota::default();
    let cluster = Fixed::with(&[("", "resourcequotas", quota(json!({"pods": "2"}), json!({"pods": "1"})))]);
    let mut request = Request::create("", "pods", pod(json!({})));
    assert_eq!(request.admit(&plugin, &cluster).await, Ok(()));
    let stored = cluster.get("", "resourcequotas", "n", "q").await.unwrap().unwrap();
    assert_eq!(stored["status"]["used"]["pods"], "2");
    assert_eq!(
        request.admit(&plugin, &cluster).await,
        Err("pods \"p\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2".to_owned())
    );
}

#[tokio::test]
async fn compute_must_be_said() {
    let plugin = ResourceQuota::default();
    let cluster = Fixed::with(&[(
        "",
        "resourcequotas",
        quota(json!({"limits.cpu": "2", "requests.memory": "1Gi"}), json!({"limits.cpu": "0", "requests.memory": "0"})),
    )]);
    assert_eq!(
        Request::create("", "pods", pod(json!({}))).admit(&plugin, &cluster).await,
        Err("pods \"p\" is forbidden: failed quota: q: must specify limits.cpu for: c; requests.memory for: c"
            .to_owned())
    );
    let sized = pod(json!({"limits": {"cpu": "3"}, "requests": {"memory": "1Mi"}}));
    assert_eq!(
        Request::create("", "pods", sized).admit(&plugin, &cluster).await,
        Err("pods \"p\" is forbidden: exceeded quota: q, requested: limits.cpu=3, used: limits.cpu=0, limited: limits.cpu=2".to_owned())
    );
}

#[tokio::test]
async fn what_is_used_must_be_known() {
    let plugin = ResourceQuota::default();
    let hard = json!({"pods": "2", "count/pods": "3", "secrets": "1"});
    let cluster = Fixed::with(&[("", "resourcequotas", quota(hard, json!({"secrets": "0"})))]);
    assert_eq!(
        Request::create("", "pods", pod(json!({}))).admit(&plugin, &cluster).await,
        Err("pods \"p\" is forbidden: status unknown for quota: q, resources: count/pods,pods".to_owned())
    );
}

#[tokio::test]
async fn one_that_is_full_leaves_the_others_uncharged() {
    let plugin = ResourceQuota::default();
    let roomy = quota(json!({"pods": "9"}), json!({"pods": "1"}));
    let mut full = quota(json!({"count/pods": "1"}), json!({"count/pods": "1"}));
    full["metadata"]["name"] = json!("z");
    let cluster = Fixed::with(&[("", "resourcequotas", roomy), ("", "resourcequotas", full)]);
    assert!(Request::create("", "pods", pod(json!({}))).admit(&plugin, &cluster).await.is_err());
    let stored = cluster.get("", "resourcequotas", "n", "q").await.unwrap().unwrap();
    assert_eq!(stored["status"]["used"]["pods"], "1");
}

#[test]
fn pods_with_resources_of_their_own_need_none_per_container() {
    let quota = quota(json!({"requests.cpu": "2"}), json!({}));
    let mut pod = pod(json!({}));
    pod["spec"]["containers"] = json!([{"name": "b"}, {"name": "a"}]);
    assert_eq!(unspecified(&quota, &pod), "requests.cpu for: a,b");
    pod["spec"]["resources"] = json!({"requests": {"memory": "1Gi"}});
    assert_eq!(unspecified(&quota, &pod), "");
}

#[test]
fn what_counts() {
    let keys = |group: &str, plural: &str, object: Value| {
        usage(group, plural, &object).into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys("apps", "deployments", json!({})), "count/deployments.apps=1");
    assert_eq!(
        keys("", "services", json!({"spec": {"type": "NodePort", "ports": [{}, {}]}})),
        "count/services=1 services=1 services.nodeports=2"
    );
    assert_eq!(
        keys(
            "",
            "persistentvolumeclaims",
            json!({"spec": {"storageClassName": "s", "resources": {"requests": {"storage": "1Gi"}}}})
        ),
        "count/persistentvolumeclaims=1 persistentvolumeclaims=1 requests.storage=1Gi s.storageclass.storage.k8s.io/persistentvolumeclaims=1 s.storageclass.storage.k8s.io/requests.storage=1Gi"
    );
    assert_eq!(
        keys("", "pods", pod(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}))),
        "count/pods=1 cpu=1 limits.cpu=2 pods=1 requests.cpu=1"
    );
}

#[test]
fn a_pod_being_resized_counts_what_it_holds() {
    let resized = |wanted: &str, pending: &str| {
        let mut pod = pod(json!({"requests": {"cpu": wanted}}));
        pod["status"] = json!({"phase": "Running",
            "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "resources": {"requests": {"cpu": "2"}}, "allocatedResources": {"cpu": "2"}}],
            "conditions": [{"type": "PodResizePending", "status": "True", "reason": pending}]});
        usage("", "pods", &pod)["requests.cpu"].to_string()
    };
    assert_eq!(resized("3", "Deferred"), "3");
    assert_eq!(resized("1", "Deferred"), "2", "it has not given back what it had");
    assert_eq!(resized("9", "Infeasible"), "2", "it will never have that");
}

#[test]
fn scopes() {
    let scoped = |scope: &str| json!({"spec": {"scopes": [scope]}});
    assert!(matches(&scoped("BestEffort"), "pods", &pod(json!({}))));
    assert!(!matches(&scoped("NotBestEffort"), "pods", &pod(json!({}))));
    assert!(!matches(&scoped("BestEffort"), "services", &json!({})));
    let by_class = json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
    assert!(!matches(&by_class, "pods", &pod(json!({}))));
}

#[test]
fn claims_are_chosen_by_attributes_class() {
    let by = |operator: &str| {
        let values = if operator.ends_with("In") { json!(["gold"]) } else { json!([]) };
        json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "VolumeAttributesClass", "operator": operator, "values": values}]}}})
    };
    let claim = |class: &str| json!({"spec": {"volumeAttributesClassName": class}});
    for (operator, class, expected) in [
        ("In", "gold", true),
        ("In", "silver", false),
        ("NotIn", "silver", true),
        ("NotIn", "", true),
        ("Exists", "gold", true),
        ("Exists", "", false),
        ("DoesNotExist", "", true),
    ] {
        assert_eq!(matches(&by(operator), "persistentvolumeclaims", &claim(class)), expected, "{operator} {class}");
    }
    let changing = json!({"spec": {}, "status": {"modifyVolumeStatus": {"targetVolumeAttributesClassName": "gold"}}});
    assert!(matches(&by("In"), "persistentvolumeclaims", &changing));
    assert!(!matches(&by("Exists"), "pods", &pod(json!({}))));
}

#[test]
fn devices_count_by_class() {
    let claim = json!({"spec": {"devices": {"requests": [
        {"name": "a", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
        {"name": "b", "firstAvailable": [
            {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
            {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 3},
            {"deviceClassName": "nic", "allocationMode": "All"}]},
    ]}}});
    let used = usage("resource.k8s.io", "resourceclaims", &claim);
    assert_eq!(used["gpu.deviceclass.resource.k8s.io/devices"].to_string(), "5");
    assert_eq!(used["nic.deviceclass.resource.k8s.io/devices"].to_string(), "32");
    assert_eq!(used["count/resourceclaims.resource.k8s.io"].to_string(), "1");
}
