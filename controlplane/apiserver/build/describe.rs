//! Descriptions of types and properties, from the schemas that the types crate can generate.

use std::collections::HashMap;

use schemars::SchemaGenerator;
use serde_json::Value;

/// (type, property) → description; the property is empty for the type's own.
pub type Descriptions = HashMap<(String, String), String>;

pub fn collect() -> Descriptions {
    let mut generator = SchemaGenerator::default();
    register(&mut generator);
    let mut descriptions = Descriptions::new();
    for (name, schema) in generator.take_definitions(false) {
        if let Some(text) = schema.get("description").and_then(Value::as_str) {
            descriptions.insert((name.clone(), String::new()), text.to_owned());
        }
        for (property, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if let Some(text) = schema.get("description").and_then(Value::as_str) {
                descriptions.insert((name.clone(), property.clone()), text.to_owned());
            }
        }
    }
    descriptions
}

/// Every served kind; the types they use follow from them.
fn register(generator: &mut SchemaGenerator) {
    macro_rules! add {
        ($module:path: $($kind:ident),+) => {{
            use $module as module;
            $(let _ = generator.subschema_for::<module::$kind>();)+
        }};
    }
    add!(k8s_openapi::api::admissionregistration::v1: MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration);
    add!(k8s_openapi::api::apps::v1: ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet);
    add!(k8s_openapi::api::authentication::v1: SelfSubjectReview, TokenRequest, TokenReview);
    add!(k8s_openapi::api::authorization::v1: LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview);
    add!(k8s_openapi::api::autoscaling::v1: HorizontalPodAutoscaler, Scale);
    add!(k8s_openapi::api::autoscaling::v2: HorizontalPodAutoscaler);
    add!(k8s_openapi::api::batch::v1: CronJob, Job);
    add!(k8s_openapi::api::certificates::v1: CertificateSigningRequest, ClusterTrustBundle, PodCertificateRequest);
    add!(k8s_openapi::api::coordination::v1: Lease);
    add!(k8s_openapi::api::core::v1: Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount);
    add!(k8s_openapi::api::discovery::v1: EndpointSlice);
    add!(k8s_openapi::api::events::v1: Event);
    add!(k8s_openapi::api::flowcontrol::v1: FlowSchema, PriorityLevelConfiguration);
    add!(k8s_openapi::api::networking::v1: IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR);
    add!(k8s_openapi::api::node::v1: RuntimeClass);
    add!(k8s_openapi::api::policy::v1: Eviction, PodDisruptionBudget);
    add!(k8s_openapi::api::rbac::v1: ClusterRole, ClusterRoleBinding, Role, RoleBinding);
    add!(k8s_openapi::api::resource::v1: DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice);
    add!(k8s_openapi::api::scheduling::v1: PriorityClass);
    add!(k8s_openapi::api::storage::v1: CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass);
    add!(k8s_openapi::api::storagemigration::v1: StorageVersionMigration);
    add!(k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1: CustomResourceDefinition);
    add!(k8s_openapi::apimachinery::pkg::apis::meta::v1: APIGroup, APIGroupList, APIResource, APIResourceList, APIVersions, Condition, DeleteOptions, LabelSelector, ListMeta, ObjectMeta, Status);
    add!(k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1: APIService);
}
