//! Fields of pods and pod templates whose features Kubernetes v1.37 has off (`DropDisabledPodFields`).

use crate::resource::{Feature, SwitchedOff};

/// `ContainerStopSignals`
const STOP_SIGNALS: Feature = &[
    "spec.containers.*.lifecycle?.stopSignal",
    "spec.initContainers.*.lifecycle?.stopSignal",
    "spec.ephemeralContainers.*.lifecycle?.stopSignal",
    "status.containerStatuses.*.stopSignal",
    "status.initContainerStatuses.*.stopSignal",
    "status.ephemeralContainerStatuses.*.stopSignal",
];
/// `EmptyDirVolumeMode`
const EMPTY_DIR_MODE: Feature = &["spec.volumes.*.emptyDir.mode"];
/// `AtomicWriteVolumeUserFields`
const VOLUME_USERS: Feature = &[
    "spec.volumes.*.configMap.defaultUser",
    "spec.volumes.*.configMap.items.*.user",
    "spec.volumes.*.secret.defaultUser",
    "spec.volumes.*.secret.items.*.user",
    "spec.volumes.*.downwardAPI.defaultUser",
    "spec.volumes.*.downwardAPI.items.*.user",
    "spec.volumes.*.projected.defaultUser",
    "spec.volumes.*.projected.sources.*.configMap.items.*.user",
    "spec.volumes.*.projected.sources.*.secret.items.*.user",
    "spec.volumes.*.projected.sources.*.downwardAPI.items.*.user",
    "spec.volumes.*.projected.sources.*.serviceAccountToken.user",
    "spec.volumes.*.projected.sources.*.clusterTrustBundle.user",
    "spec.volumes.*.projected.sources.*.podCertificate.user",
];
/// `H2CContainerProbe`
const HTTP_PROTOCOL: Feature = &[
    "spec.containers.*.livenessProbe.httpGet.protocol",
    "spec.containers.*.readinessProbe.httpGet.protocol",
    "spec.containers.*.startupProbe.httpGet.protocol",
    "spec.containers.*.lifecycle.postStart.httpGet.protocol",
    "spec.containers.*.lifecycle.preStop.httpGet.protocol",
    "spec.initContainers.*.livenessProbe.httpGet.protocol",
    "spec.initContainers.*.readinessProbe.httpGet.protocol",
    "spec.initContainers.*.startupProbe.httpGet.protocol",
    "spec.initContainers.*.lifecycle.postStart.httpGet.protocol",
    "spec.initContainers.*.lifecycle.preStop.httpGet.protocol",
];
/// `GRPCContainerProbeTLS`
const GRPC_MODE: Feature = &[
    "spec.containers.*.livenessProbe.grpc.mode",
    "spec.containers.*.readinessProbe.grpc.mode",
    "spec.containers.*.startupProbe.grpc.mode",
    "spec.initContainers.*.livenessProbe.grpc.mode",
    "spec.initContainers.*.readinessProbe.grpc.mode",
    "spec.initContainers.*.startupProbe.grpc.mode",
];
/// `GenericWorkload`
const SCHEDULING_GROUP: Feature = &["spec.schedulingGroup"];
/// `EvictionRequestAPI`
const EVICTION_RESPONDERS: Feature = &["spec.evictionResponders"];
/// `VolumeBindMountOptions`
const BIND_MOUNT_OPTIONS: Feature = &[
    "spec.containers.*.volumeMounts.*.bindMountOptions",
    "spec.initContainers.*.volumeMounts.*.bindMountOptions",
    "spec.ephemeralContainers.*.volumeMounts.*.bindMountOptions",
];
/// `CSIVolumeHealth`
const VOLUME_HEALTH: Feature = &["status.volumeHealth"];
/// `ImageVolumeWithDigest`
const IMAGE_VOLUME_DIGEST: Feature = &[
    "status.containerStatuses.*.volumeMounts.*.volumeStatus",
    "status.initContainerStatuses.*.volumeMounts.*.volumeStatus",
    "status.ephemeralContainerStatuses.*.volumeMounts.*.volumeStatus",
];

const FEATURES: &[Feature] = &[
    STOP_SIGNALS,
    EMPTY_DIR_MODE,
    VOLUME_USERS,
    HTTP_PROTOCOL,
    GRPC_MODE,
    SCHEDULING_GROUP,
    EVICTION_RESPONDERS,
    BIND_MOUNT_OPTIONS,
    VOLUME_HEALTH,
    IMAGE_VOLUME_DIGEST,
];

/// What goes from the pod or template that is at `at`.
pub const fn fields(at: &'static str) -> SwitchedOff {
    SwitchedOff { at, features: FEATURES }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_lose_what_is_off_and_keep_what_they_had() {
        let spec = json!({
            "schedulingGroup": {"podGroupName": "g"},
            "containers": [{"name": "c", "lifecycle": {"stopSignal": "SIGUSR1"},
                "livenessProbe": {"grpc": {"port": 1, "mode": "TLS"}}, "readinessProbe": {"httpGet": {"port": 1, "protocol": "H2C"}}}],
            "volumes": [{"name": "v", "emptyDir": {"mode": 511}}, {"name": "w", "configMap": {"defaultUser": 1, "items": [{"key": "k", "user": 2}]}}],
        });
        let mut pod = json!({ "spec": spec });
        fields("").drop_from(&mut pod, None);
        let expected = json!({
            "containers": [{"name": "c", "livenessProbe": {"grpc": {"port": 1}}, "readinessProbe": {"httpGet": {"port": 1}}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"items": [{"key": "k"}]}}],
        });
        assert_eq!(pod["spec"], expected);
        let mut job = json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}}});
        let old = job.clone();
        fields("spec.jobTemplate.spec.template").drop_from(&mut job, Some(&old));
        assert_eq!(job, old);
    }
}
