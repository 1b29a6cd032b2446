//! The "API operations" that conformance asks of kinds: made, read, listed in one namespace and in
//! all, watched, patched, updated (status too), deleted one by one and as a collection.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{MERGE, delete, get, patch, post, put};

/// Walks a kind through its life. `change` is a merge patch of the object, `status` one of its status.
async fn lives(client: &kube::Client, path: &str, object: &Value, change: &Value, status: Option<&Value>) {
    let name = object["metadata"]["name"].as_str().unwrap();
    let item = format!("{path}/{name}");
    let mut object = object.clone();
    object["metadata"]["labels"] = json!({"walk": "yes"});
    let made = post(client, path, &object).await.expect(201);
    let read = get(client, &item).await.expect(200);
    assert_eq!(read["metadata"]["uid"], made["metadata"]["uid"]);
    let everywhere = path.replace("/namespaces/default", "");
    for list in [path, &everywhere] {
        let list = get(client, &format!("{list}?labelSelector=walk%3Dyes")).await.expect(200);
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{path}");
    }
    let from = made["metadata"]["resourceVersion"].as_str().unwrap();
    let patched = patch(client, &item, MERGE, change).await.expect(200);
    assert_ne!(patched["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "{path}");
    let mut updated = get(client, &item).await.expect(200);
    updated["metadata"]["annotations"]["updated"] = "true".into();
    let updated = put(client, &item, &updated).await.expect(200);
    assert_eq!(updated["metadata"]["annotations"]["updated"], "true");
    if let Some(status) = status {
        get(client, &format!("{item}/status")).await.expect(200);
        let after = patch(client, &format!("{item}/status"), MERGE, status).await.expect(200);
        for (key, value) in status["status"].as_object().unwrap() {
            assert!(!after["status"][key].is_null(), "{path} {key} {value}: {:#}", after["status"]);
        }
        let again = put(client, &format!("{item}/status"), &after).await.expect(200);
        assert_eq!(again["status"], after["status"]);
    }
    let watched = get(client, &format!("{path}?watch=1&timeoutSeconds=1&resourceVersion={from}")).await;
    let types: Vec<String> = String::from_utf8(watched.bytes)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert!(types.len() >= 2 && types.iter().all(|kind| kind == "MODIFIED"), "{path}: {types:?}");
    delete(client, &item).await.expect(200);
    get(client, &item).await.expect(404);
    post(client, path, &object).await.expect(201);
    delete(client, &format!("{path}?labelSelector=walk%3Dyes")).await.expect(200);
    let left = get(client, &format!("{path}?labelSelector=walk%3Dyes")).await.expect(200);
    assert_eq!(left["items"], json!([]), "{path}");
}

#[tokio::test]
async fn kinds_live_their_lives() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let annotate = json!({"metadata": {"annotations": {"patched": "true"}}});
    let condition = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True", "reason": "E2E", "message": "set by a test", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let of = |api_version: &str, kind: &str, rest: Value| {
        let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "walk"}});
        object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        object
    };
    let flow = "flowcontrol.apiserver.k8s.io/v1";
    for (path, object, change, status) in [
        (
            format!("/apis/{flow}/flowschemas"),
            of(
                flow,
                "FlowSchema",
                json!({"spec": {"matchingPrecedence": 10000, "priorityLevelConfiguration": {"name": "global-default"}, "distinguisherMethod": {"type": "ByUser"}, "rules": [{"subjects": [{"kind": "User", "user": {"name": "ann"}}], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}]}}),
            ),
            json!({"spec": {"matchingPrecedence": 9999}}),
            Some(condition("StatusPatched")),
        ),
        (
            format!("/apis/{flow}/prioritylevelconfigurations"),
            of(
                flow,
                "PriorityLevelConfiguration",
                json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 2, "limitResponse": {"type": "Reject"}}}}),
            ),
            json!({"spec": {"limited": {"nominalConcurrencyShares": 4}}}),
            Some(condition("StatusPatched")),
        ),
        (
            "/api/v1/namespaces/default/serviceaccounts".into(),
            of("v1", "ServiceAccount", json!({})),
            json!({"automountServiceAccountToken": false}),
            None,
        ),
        (
            "/api/v1/namespaces/default/events".into(),
            of(
                "v1",
                "Event",
                json!({"message": "an event", "reason": "Test", "type": "Normal", "involvedObject": {"namespace": "default"}}),
            ),
            json!({"message": "changed"}),
            None,
        ),
        (
            "/apis/events.k8s.io/v1/namespaces/default/events".into(),
            of(
                "events.k8s.io/v1",
                "Event",
                json!({"eventTime": "2026-01-01T00:00:00.000001Z", "note": "an event", "reason": "Test", "type": "Normal", "action": "Do", "reportingController": "test-controller", "reportingInstance": "test-node", "regarding": {"namespace": "default"}}),
            ),
            json!({"series": {"count": 100, "lastObservedTime": "2026-01-01T00:00:00.000002Z"}}),
            None,
        ),
        (
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies".into(),
            of(
                "admissionregistration.k8s.io/v1",
                "ValidatingAdmissionPolicy",
                json!({"spec": {"failurePolicy": "Ignore", "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]}, "validations": [{"expression": "object.spec.replicas <= 100"}]}}),
            ),
            annotate.clone(),
            Some(condition("StatusPatched")),
        ),
        (
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings".into(),
            of(
                "admissionregistration.k8s.io/v1",
                "ValidatingAdmissionPolicyBinding",
                json!({"spec": {"policyName": "walk", "validationActions": ["Deny"]}}),
            ),
            annotate.clone(),
            None,
        ),
        (
            "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings".into(),
            of(
                "admissionregistration.k8s.io/v1",
                "MutatingAdmissionPolicyBinding",
                json!({"spec": {"policyName": "walk"}}),
            ),
            annotate.clone(),
            None,
        ),
        (
            "/apis/apiregistration.k8s.io/v1/apiservices".into(),
            json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1alpha1.wardle.example.com"}, "spec": {"service": {"namespace": "default", "name": "sample", "port": 443}, "group": "wardle.example.com", "version": "v1alpha1", "insecureSkipTLSVerify": true, "groupPriorityMinimum": 2000, "versionPriority": 200}}),
            json!({"spec": {"versionPriority": 400}}),
            Some(condition("StatusUpdated")),
        ),
    ] {
        lives(&client, &path, &object, &change, status.as_ref()).await;
    }
}

#[tokio::test]
async fn events_of_both_groups_are_the_same_events() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000001Z", "note": "a note", "reason": "Test", "type": "Warning", "action": "Do", "reportingController": "c", "reportingInstance": "i", "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}});
    post(&client, "/apis/events.k8s.io/v1/namespaces/default/events", &event).await.expect(201);
    let core = get(&client, "/api/v1/namespaces/default/events/e").await.expect(200);
    assert_eq!(
        (&core["message"], &core["involvedObject"]["name"], &core["reportingComponent"], &core["eventTime"]),
        (&json!("a note"), &json!("p"), &json!("c"), &json!("2026-01-01T00:00:00.000001Z"))
    );
    for (selector, found) in
        [("involvedObject.kind%3DPod,type%3DWarning", 1), ("reason%3DOther", 0), ("reportingComponent%3Dc", 1)]
    {
        let list =
            get(&client, &format!("/api/v1/namespaces/default/events?fieldSelector={selector}")).await.expect(200);
        assert_eq!(list["items"].as_array().unwrap().len(), found, "{selector}");
    }
    let list = get(&client, "/apis/events.k8s.io/v1/events?fieldSelector=regarding.kind%3DPod").await;
    assert_eq!((list.code, list.value["items"].as_array().map(Vec::len)), (200, Some(1)), "{:#}", list.value);
}

#[tokio::test]
async fn reviews_tell_rights_without_being_stored() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let authorization = "/apis/authorization.k8s.io/v1";
    let attributes = json!({"namespace": "default", "verb": "list", "resource": "configmaps"});
    let subject = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "ann", "groups": ["system:authenticated"], "resourceAttributes": attributes}});
    let denied = post(&client, &format!("{authorization}/subjectaccessreviews"), &subject).await.expect(201);
    assert_eq!((&denied["status"]["allowed"], &denied["metadata"]["name"]), (&json!(false), &Value::Null));
    let local = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "LocalSubjectAccessReview", "metadata": {"namespace": "default"}, "spec": subject["spec"]});
    let path = format!("{authorization}/namespaces/default/localsubjectaccessreviews");
    assert_eq!(post(&client, &path, &local).await.expect(201)["status"]["allowed"], false);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]});
    post(&client, "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &role).await.expect(201);
    let allowed = post(&client, &path, &local).await.expect(201);
    assert_eq!(allowed["status"]["allowed"], true);
    assert!(
        allowed["status"]["reason"]
            .as_str()
            .unwrap()
            .starts_with("RBAC: allowed by RoleBinding \"b/default\" of ClusterRole \"view\" to User \"ann\""),
        "{allowed:#}"
    );
    let mut elsewhere = local.clone();
    elsewhere["spec"]["resourceAttributes"]["namespace"] = "other".into();
    let answer = post(&client, &path, &elsewhere).await;
    assert!(answer.code == 422 && answer.message().contains("must match metadata.namespace"), "{}", answer.message());
    let me = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let ann = cluster.client("ann");
    let answer = post(&ann, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &me).await.expect(201);
    assert_eq!(answer["status"]["userInfo"]["username"], "ann");
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
    let answer = post(&ann, &format!("{authorization}/selfsubjectrulesreviews"), &rules).await.expect(201);
    assert!(
        answer["status"]["resourceRules"].to_string().contains("configmaps") && answer["status"]["incomplete"] == false
    );
}

#[tokio::test]
async fn certificate_requests_are_approved_and_signed_through_their_subresources() {
    use base64::Engine;
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let request = base64::prelude::BASE64_STANDARD.encode(request);
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "walk"}, "spec": {"request": request, "signerName": "example.com/e2e", "usages": ["client auth"]}});
    let made = post(&client, path, &object).await.expect(201);
    assert_eq!(made["spec"]["username"], "system:admin");
    let item = format!("{path}/walk");
    let condition = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True", "reason": "E2E", "message": "by a test"}]}});
    let plain = patch(&client, &item, MERGE, &condition("Approved")).await.expect(200);
    assert!(plain["status"]["conditions"].is_null(), "only by the subresource: {plain:#}");
    let approved = patch(&client, &format!("{item}/approval"), MERGE, &condition("Approved")).await.expect(200);
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    let denied = patch(&client, &format!("{item}/approval"), MERGE, &json!({"status": {"conditions": []}})).await;
    assert_eq!(denied.code, 422, "an approval stays: {:#}", denied.value);
    let (_, pem) = apiserver::testing::authority();
    let certificate = base64::prelude::BASE64_STANDARD.encode(pem);
    let signed = patch(&client, &format!("{item}/status"), MERGE, &json!({"status": {"certificate": certificate}}))
        .await
        .expect(200);
    assert_eq!(signed["status"]["certificate"], certificate);
    get(&client, &format!("{item}/approval")).await.expect(200);
    delete(&client, path).await.expect(200);
    get(&client, &item).await.expect(404);
}
