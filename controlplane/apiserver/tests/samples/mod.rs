//! One sound object of every kind that is stored, for tests that go through all of them.

use serde_json::{Value, json};

fn pod_template() -> Value {
    json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
        "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}}}]}})
}

fn workload(extra: Value) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"app": "x"}}, "template": pod_template()});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({ "spec": spec })
}

/// Path of the collection, kind, API version and a sound object of each kind.
fn parts() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let ns = |group: &'static str| group;
    let job = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]});
    let webhook = json!({"webhooks": [{"name": "a.b.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore",
        "clientConfig": {"service": {"name": "s", "namespace": "default"}}, "namespaceSelector": {"matchLabels": {"never": "there"}}, "rules": [rule]}]});
    vec![
        (ns("/api/v1/namespaces"), "Namespace", "v1", json!({})),
        ("/api/v1/nodes", "Node", "v1", json!({"status": {"capacity": {"cpu": "4"}}})),
        (
            "/api/v1/persistentvolumes",
            "PersistentVolume",
            "v1",
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}}),
        ),
        ("/api/v1/namespaces/default/configmaps", "ConfigMap", "v1", json!({"data": {"a": "b"}})),
        ("/api/v1/namespaces/default/secrets", "Secret", "v1", json!({"stringData": {"a": "b"}})),
        ("/api/v1/namespaces/default/serviceaccounts", "ServiceAccount", "v1", json!({})),
        (
            "/api/v1/namespaces/default/endpoints",
            "Endpoints",
            "v1",
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        ),
        (
            "/api/v1/namespaces/default/events",
            "Event",
            "v1",
            json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "R", "message": "m"}),
        ),
        (
            "/api/v1/namespaces/default/limitranges",
            "LimitRange",
            "v1",
            json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "64"}}]}}),
        ),
        ("/api/v1/namespaces/default/resourcequotas", "ResourceQuota", "v1", json!({"spec": {"hard": {"pods": "10"}}})),
        (
            "/api/v1/namespaces/default/persistentvolumeclaims",
            "PersistentVolumeClaim",
            "v1",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        (
            "/api/v1/namespaces/default/services",
            "Service",
            "v1",
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}}}),
        ),
        (
            "/api/v1/namespaces/default/pods",
            "Pod",
            "v1",
            json!({"metadata": {"labels": {"app": "x"}}, "spec": pod_template()["spec"]}),
        ),
        ("/api/v1/namespaces/default/podtemplates", "PodTemplate", "v1", json!({"template": pod_template()})),
        (
            "/api/v1/namespaces/default/replicationcontrollers",
            "ReplicationController",
            "v1",
            json!({"spec": {"template": pod_template()}}),
        ),
        ("/apis/apps/v1/namespaces/default/deployments", "Deployment", "apps/v1", workload(json!({}))),
        ("/apis/apps/v1/namespaces/default/replicasets", "ReplicaSet", "apps/v1", workload(json!({}))),
        ("/apis/apps/v1/namespaces/default/daemonsets", "DaemonSet", "apps/v1", workload(json!({}))),
        (
            "/apis/apps/v1/namespaces/default/statefulsets",
            "StatefulSet",
            "apps/v1",
            workload(
                json!({"serviceName": "s", "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}),
            ),
        ),
        (
            "/apis/apps/v1/namespaces/default/controllerrevisions",
            "ControllerRevision",
            "apps/v1",
            json!({"revision": 1, "data": {"a": 1}}),
        ),
        ("/apis/batch/v1/namespaces/default/jobs", "Job", "batch/v1", json!({"spec": job})),
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            "CronJob",
            "batch/v1",
            json!({"spec": {"schedule": "@hourly", "jobTemplate": {"spec": job}}}),
        ),
        (
            "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
            "HorizontalPodAutoscaler",
            "autoscaling/v2",
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}}),
        ),
        (
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            "PodDisruptionBudget",
            "policy/v1",
            json!({"spec": {"minAvailable": "50%", "selector": {"matchLabels": {"no": "such"}}}}),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            "Ingress",
            "networking.k8s.io/v1",
            json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
        ),
        (
            "/apis/networking.k8s.io/v1/ingressclasses",
            "IngressClass",
            "networking.k8s.io/v1",
            json!({"spec": {"controller": "example.com/c"}}),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            "NetworkPolicy",
            "networking.k8s.io/v1",
            json!({"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}}),
        ),
        (
            "/apis/networking.k8s.io/v1/servicecidrs",
            "ServiceCIDR",
            "networking.k8s.io/v1",
            json!({"spec": {"cidrs": ["10.99.0.0/16"]}}),
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            "EndpointSlice",
            "discovery.k8s.io/v1",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
            "Role",
            "rbac.authorization.k8s.io/v1",
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "ClusterRole",
            "rbac.authorization.k8s.io/v1",
            json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "ClusterRoleBinding",
            "rbac.authorization.k8s.io/v1",
            json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "u"}]}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            "RoleBinding",
            "rbac.authorization.k8s.io/v1",
            json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "ServiceAccount", "name": "u", "namespace": "default"}]}),
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            "Lease",
            "coordination.k8s.io/v1",
            json!({"spec": {"holderIdentity": "h", "leaseDurationSeconds": 40}}),
        ),
        ("/apis/node.k8s.io/v1/runtimeclasses", "RuntimeClass", "node.k8s.io/v1", json!({"handler": "runc"})),
        ("/apis/scheduling.k8s.io/v1/priorityclasses", "PriorityClass", "scheduling.k8s.io/v1", json!({"value": 5})),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            "StorageClass",
            "storage.k8s.io/v1",
            json!({"provisioner": "example.com/p"}),
        ),
        ("/apis/storage.k8s.io/v1/csidrivers", "CSIDriver", "storage.k8s.io/v1", json!({"spec": {}})),
        ("/apis/storage.k8s.io/v1/csinodes", "CSINode", "storage.k8s.io/v1", json!({"spec": {"drivers": []}})),
        (
            "/apis/storage.k8s.io/v1/namespaces/default/csistoragecapacities",
            "CSIStorageCapacity",
            "storage.k8s.io/v1",
            json!({"storageClassName": "s"}),
        ),
        (
            "/apis/storage.k8s.io/v1/volumeattachments",
            "VolumeAttachment",
            "storage.k8s.io/v1",
            json!({"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}),
        ),
        (
            "/apis/storage.k8s.io/v1/volumeattributesclasses",
            "VolumeAttributesClass",
            "storage.k8s.io/v1",
            json!({"driverName": "d", "parameters": {"a": "b"}}),
        ),
        (
            "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
            "ValidatingWebhookConfiguration",
            "admissionregistration.k8s.io/v1",
            webhook.clone(),
        ),
        (
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
            "MutatingWebhookConfiguration",
            "admissionregistration.k8s.io/v1",
            webhook,
        ),
        (
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
            "ValidatingAdmissionPolicy",
            "admissionregistration.k8s.io/v1",
            json!({"spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "true"}]}}),
        ),
        (
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
            "ValidatingAdmissionPolicyBinding",
            "admissionregistration.k8s.io/v1",
            json!({"spec": {"policyName": "absent", "validationActions": ["Audit"]}}),
        ),
        (
            "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas",
            "FlowSchema",
            "flowcontrol.apiserver.k8s.io/v1",
            json!({"spec": {"priorityLevelConfiguration": {"name": "p"}}}),
        ),
        (
            "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations",
            "PriorityLevelConfiguration",
            "flowcontrol.apiserver.k8s.io/v1",
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}}),
        ),
        ("/apis/resource.k8s.io/v1/deviceclasses", "DeviceClass", "resource.k8s.io/v1", json!({"spec": {}})),
        (
            "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims",
            "ResourceClaim",
            "resource.k8s.io/v1",
            json!({"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}}),
        ),
        (
            "/apis/resource.k8s.io/v1/namespaces/default/resourceclaimtemplates",
            "ResourceClaimTemplate",
            "resource.k8s.io/v1",
            json!({"spec": {"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}}}),
        ),
        (
            "/apis/resource.k8s.io/v1/resourceslices",
            "ResourceSlice",
            "resource.k8s.io/v1",
            json!({"spec": {"driver": "d", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}}),
        ),
        (
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "CustomResourceDefinition",
            "apiextensions.k8s.io/v1",
            json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
        ),
    ]
}

/// Path of the collection and a sound object of each kind, called `sample` where the kind lets it.
pub fn samples() -> Vec<(&'static str, Value)> {
    let complete = |(path, kind, version, mut object): (&'static str, &str, &str, Value)| {
        object["kind"] = kind.into();
        object["apiVersion"] = version.into();
        if object["metadata"]["name"].is_null() {
            object["metadata"]["name"] = "sample".into();
        }
        (path, object)
    };
    parts().into_iter().map(complete).collect()
}
