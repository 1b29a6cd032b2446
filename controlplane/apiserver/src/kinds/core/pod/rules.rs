//! What pods are refused with, rule by rule: the rules that need more of a pod than one module sees.

use serde_json::{Value, json};

use super::Pod;
use crate::kinds::tested;
use crate::patch::merge;

/// What creating a pod of one container is refused with when `extra` is merged into it.
fn refused(extra: &Value) -> String {
    let pod =
        json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    tested::created(&Pod, &merge(&pod, extra).unwrap())
}

/// Rows of (what is merged into the spec, what it is refused with below `spec`).
fn specs(rows: &[(Value, &str)]) {
    for (extra, expected) in rows {
        let found = refused(&json!({ "spec": extra }));
        assert_eq!(found.replace("spec.", ""), expected.replace("spec.", ""), "{extra}");
    }
}

/// The same of what is merged into the only container.
fn containers(rows: &[(Value, &str)]) {
    for (extra, expected) in rows {
        let container = merge(&json!({"name": "c", "image": "i"}), extra).unwrap();
        let volumes =
            json!([{"name": "v", "emptyDir": {}}, {"name": "w", "persistentVolumeClaim": {"claimName": "p"}}]);
        let found = refused(&json!({"spec": {"containers": [container], "volumes": volumes}}));
        assert_eq!(found.replace("spec.containers[0].", ""), *expected, "{extra}");
    }
}

#[test]
fn environment() {
    let from = |source: Value| json!({"env": [{"name": "A", "valueFrom": source}]});
    let field = |path: &str| from(json!({"fieldRef": {"fieldPath": path}}));
    let resource =
        |name: &str, divisor: &str| from(json!({"resourceFieldRef": {"resource": name, "divisor": divisor}}));
    let both = json!({"configMapRef": {"name": "m"}, "secretRef": {"name": "s"}});
    containers(&[
        (from(json!({})), "env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"),
        (
            json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            "env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            from(json!({"fieldRef": {"fieldPath": "metadata.name"}, "secretKeyRef": {"name": "s", "key": "k"}})),
            "env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a time",
        ),
        (
            from(json!({"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.name"}})),
            "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.name\": error converting fieldPath: unsupported pod version: v2",
        ),
        (field("spec['x']"), "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec['x']\": error converting fieldPath: field label does not support subscript: spec['x']"),
        (
            field("status.phase"),
            "env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
        ),
        (field("metadata.labels['a']"), "[]"),
        (resource("limits.cpu", "2"), "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource"),
        (
            resource("requests.memory", "3"),
            "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"requests.memory\": only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ),
        (
            resource("limits.ephemeral-storage", "3"),
            "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.ephemeral-storage\": only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource",
        ),
        (json!({"envFrom": [{}]}), "envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"),
        (json!({"envFrom": [both]}), "envFrom: Invalid value: \"\": may not have more than one field specified at a time"),
        (
            from(json!({"fileKeyRef": {"volumeName": "w", "key": "K", "path": "f"}})),
            "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Invalid value: \"w\": referenced volume must be of type emptyDir".trim_start_matches("spec.containers[0]."),
        ),
    ]);
}

#[test]
fn mounts_and_devices() {
    let mount = |extra: Value| merge(&json!({"name": "v", "mountPath": "/m"}), &extra).unwrap();
    let one = |extra: Value| json!({"volumeMounts": [mount(extra)]});
    containers(&[
        (
            json!({"volumeMounts": [mount(json!({})), mount(json!({"subPath": "x"}))]}),
            "volumeMounts[1].mountPath: Invalid value: \"/m\": must be unique",
        ),
        (
            json!({"volumeMounts": [{"name": "w", "mountPath": "/m"}], "volumeDevices": [{"name": "w", "devicePath": "/d"}]}),
            "[volumeMounts[0].name: Invalid value: \"w\": must not already exist in volumeDevices, volumeDevices[0].name: Invalid value: \"w\": must not already exist in volumeMounts]",
        ),
        (
            json!({"volumeMounts": [mount(json!({}))], "volumeDevices": [{"name": "w", "devicePath": "/m"}]}),
            "[volumeMounts[0].mountPath: Invalid value: \"/m\": must not already exist as a path in volumeDevices, volumeDevices[0].devicePath: Invalid value: \"/m\": must not already exist as a path in volumeMounts]",
        ),
        (
            one(json!({"subPath": "a", "subPathExpr": "b"})),
            "volumeMounts[0].subPathExpr: Invalid value: \"b\": subPathExpr and subPath are mutually exclusive",
        ),
        (one(json!({"subPath": "/a"})), "volumeMounts.subPath: Invalid value: \"/a\": must be a relative path"),
        (
            one(json!({"subPathExpr": "a/../b"})),
            "volumeMounts.subPathExpr: Invalid value: \"a/../b\": must not contain '..'",
        ),
        (
            one(json!({"mountPropagation": "Bidirectional"})),
            "volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
        ),
        (
            one(json!({"recursiveReadOnly": "Enabled", "mountPropagation": "HostToContainer"})),
            "[volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true, volumeMounts.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified]",
        ),
        (
            json!({"volumeDevices": [{"name": "w", "devicePath": "/d"}, {"name": "w", "devicePath": "/d"}]}),
            "[volumeDevices[1].name: Invalid value: \"w\": must be unique, volumeDevices[1].devicePath: Invalid value: \"/d\": must be unique]",
        ),
        (
            json!({"volumeDevices": [{"name": "v", "devicePath": "/a/../b"}]}),
            "[volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode, volumeDevices[0].devicePath: Invalid value: \"/a/../b\": can not contain backsteps ('..')]",
        ),
    ]);
}

#[test]
fn containers_alone() {
    containers(&[
        (
            json!({"readinessProbe": {"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 5}}),
            "readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
        ),
        (
            json!({"livenessProbe": {"httpGet": {"path": "/", "port": 80, "httpHeaders": [{"name": "X Y", "value": ""}]}}}),
            "livenessProbe.httpGet.httpHeaders: Invalid value: \"X Y\": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
        ),
        (
            json!({"livenessProbe": {"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}}}),
            "livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            json!({"startupProbe": {"grpc": {"port": 1}, "successThreshold": 2}}),
            "startupProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}),
            "lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
        ),
        (
            json!({"lifecycle": {"stopSignal": "SIGTERM"}}),
            "lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`",
        ),
        (
            json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}),
            "restartPolicy: Required value: must specify restartPolicy when restart rules are used",
        ),
        (
            json!({"resources": {"limits": {"hugepages-2Mi": "2Mi"}}}),
            "resources: Forbidden: HugePages require cpu or memory",
        ),
        (
            json!({"resources": {"claims": [{"name": "x"}]}}),
            "resources.claims[0]: Not found: \"x\": must be one of the names in pod.spec.resourceClaims which is empty",
        ),
    ]);
    specs(&[
        (
            json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
            "containers[0].resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when pod `restartPolicy` is 'Never'",
        ),
        (
            json!({"initContainers": [{"name": "j", "image": "i", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
            "initContainers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": must not be set to 'RestartContainer' for non-sidecar initContainers",
        ),
        (
            json!({"ephemeralContainers": [{"name": "e", "image": "i"}]}),
            "ephemeralContainers: Forbidden: cannot be set on create",
        ),
    ]);
}

#[test]
fn placement() {
    let node = |term: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}});
    let at = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let field = |key: &str, operator: &str, values: Value| {
        node(json!({"matchFields": [{"key": key, "operator": operator, "values": values}]}))
    };
    let label = |operator: &str, values: Value| {
        node(json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}))
    };
    let pods = |extra: Value| json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [merge(&json!({"topologyKey": "z"}), &extra).unwrap()]}}});
    let near = "affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
    let spread = |extra: Value| json!({"topologySpreadConstraints": [merge(&json!({"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway"}), &extra).unwrap()]});
    for (extra, expected) in [
        (
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
            format!("{at}: Required value: must have at least one node selector term"),
        ),
        (
            json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101, "preference": {}}]}}}),
            "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100".to_owned(),
        ),
        (
            field("metadata.name", "In", json!(["a", "b"])),
            format!("{at}[0].matchFields[0].values: Required value: must be only one value when `operator` is 'In' or 'NotIn' for node field selector"),
        ),
        (field("metadata.uid", "In", json!(["a"])), format!("{at}[0].matchFields[0].key: Invalid value: \"metadata.uid\": not a valid field selector key")),
        (field("metadata.name", "Exists", json!([])), format!("{at}[0].matchFields[0].operator: Invalid value: \"Exists\": not a valid selector operator")),
        (label("In", json!([])), format!("{at}[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'")),
        (label("Exists", json!(["a"])), format!("{at}[0].matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'")),
        (label("Gt", json!([])), format!("{at}[0].matchExpressions[0].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'")),
        (pods(json!({"topologyKey": ""})), format!("[{near}.topologyKey: Required value: can not be empty, {near}.topologyKey: Invalid value: \"\": name part must be non-empty, {near}.topologyKey: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')]")),
        (pods(json!({"matchLabelKeys": ["k"]})), format!("{near}.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set")),
        (
            pods(json!({"labelSelector": {}, "matchLabelKeys": ["k"], "mismatchLabelKeys": ["k"]})),
            format!("{near}.matchLabelKeys[0]: Invalid value: \"k\": exists in both matchLabelKeys and mismatchLabelKeys"),
        ),
        (
            spread(json!({"minDomains": 2})),
            "topologySpreadConstraints[0].minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway".to_owned(),
        ),
        (spread(json!({"topologyKey": ""})), "topologySpreadConstraints[0].topologyKey: Required value: can not be empty".to_owned()),
        (spread(json!({"maxSkew": 0})), "topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero".to_owned()),
        (spread(json!({"matchLabelKeys": ["k"]})), "topologySpreadConstraints[0].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set".to_owned()),
        (
            json!({"tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 5, "effect": "NoSchedule"}]}),
            "tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set".to_owned(),
        ),
        (
            json!({"tolerations": [{"key": "k", "operator": "Exists", "value": "v"}]}),
            "tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'".to_owned(),
        ),
        (
            json!({"schedulingGates": [{"name": "g"}], "nodeName": "n"}),
            "nodeName: Forbidden: cannot be set until all schedulingGates have been cleared".to_owned(),
        ),
    ] {
        specs(&[(extra, &expected)]);
    }
}

#[test]
fn security() {
    let context = |extra: Value| json!({ "securityContext": extra });
    specs(&[
        (
            context(json!({"runAsUser": -1})),
            "securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            context(json!({"seccompProfile": {}})),
            "securityContext.seccompProfile.type: Required value: type is required when seccompProfile is set",
        ),
        (
            context(json!({"seccompProfile": {"type": "Localhost"}})),
            "securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
        ),
        (
            context(json!({"appArmorProfile": {}})),
            "securityContext.appArmorProfile.type: Required value: type is required when appArmorProfile is set",
        ),
        (
            context(json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": " p"}})),
            "securityContext.appArmorProfile.localhostProfile: Invalid value: \" p\": must not be padded with whitespace",
        ),
        (
            context(json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": ""}})),
            "securityContext.appArmorProfile.localhostProfile: Required value: must be set when AppArmor type is Localhost",
        ),
        (
            context(json!({"appArmorProfile": {"type": "Unconfined", "localhostProfile": "p"}})),
            "securityContext.appArmorProfile.localhostProfile: Invalid value: \"p\": can only be set when AppArmor type is Localhost",
        ),
        (
            json!({"hostPID": true, "shareProcessNamespace": true}),
            "securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
        ),
        (
            context(json!({"sysctls": [{"name": "A"}]})),
            "securityContext.sysctls[0].name: Invalid value: \"A\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
        ),
        (
            json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]}}),
            "securityContext.sysctls[0].name: Invalid value: \"net.core.somaxconn\": may not be specified when 'hostNetwork' is true",
        ),
        (
            json!({"hostIPC": true, "securityContext": {"sysctls": [{"name": "kernel/shmmax", "value": "1"}]}}),
            "securityContext.sysctls[0].name: Invalid value: \"kernel/shmmax\": may not be specified when 'hostIPC' is true",
        ),
        (json!({"hostUsers": false, "hostNetwork": true}), "hostNetwork: Forbidden: when `hostUsers` is false"),
        (json!({"hostUsers": false, "hostPID": true}), "HostPID: Forbidden: when `hostUsers` is false"),
    ]);
    containers(&[(
        json!({"securityContext": {"procMount": "Unmasked"}}),
        "securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
    )]);
    let annotated =
        |key: &str, value: &str, spec: Value| json!({"metadata": {"annotations": {key: value}}, "spec": spec});
    let seccomp = "seccomp.security.alpha.kubernetes.io/pod";
    let armor = "container.apparmor.security.beta.kubernetes.io/c";
    for (pod, expected) in [
        (
            annotated("kubernetes.io/config.mirror", "m", json!({})),
            "metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"m\": must set spec.nodeName if mirror pod annotation is set",
        ),
        (
            annotated("controller.kubernetes.io/pod-deletion-cost", "+1", json!({})),
            "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"+1\": must be a 32bit integer",
        ),
        (
            annotated(seccomp, "odd", json!({})),
            "metadata.annotations.seccomp.security.alpha.kubernetes.io/pod: Invalid value: \"odd\": must be a valid seccomp profile",
        ),
        (
            annotated("container.apparmor.security.beta.kubernetes.io/x", "unconfined", json!({})),
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/x]: Invalid value: \"x\": container not found",
        ),
        (
            annotated(armor, "odd", json!({})),
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: Invalid value: \"odd\": invalid AppArmor profile name: \"odd\"",
        ),
        (
            annotated(
                seccomp,
                "unconfined",
                json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
            ),
            "spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match",
        ),
        (
            annotated(
                seccomp,
                "localhost/a",
                json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "b"}}}),
            ),
            "spec.securityContext.seccompProfile.localhostProfile: Forbidden: seccomp profile in annotation and field must match",
        ),
    ] {
        assert_eq!(refused(&pod), expected, "{pod}");
    }
}

#[test]
fn networks_and_names() {
    let dns = |config: Value| json!({ "dnsConfig": config });
    let long: Vec<String> = (0..33).map(|n| format!("s{n}")).collect();
    specs(&[
        (json!({"dnsPolicy": "None"}), "dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"),
        (
            json!({"dnsPolicy": "None", "dnsConfig": {}}),
            "dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
        ),
        (
            dns(json!({"nameservers": ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]})),
            "dnsConfig.nameservers: Invalid value: [\"10.0.0.1\",\"10.0.0.2\",\"10.0.0.3\",\"10.0.0.4\"]: must not have more than 3 nameservers",
        ),
        (dns(json!({"options": [{"value": "1"}]})), "dnsConfig.options[0]: Required value: must not be empty"),
        (
            json!({"hostnameOverride": "h", "setHostnameAsFQDN": true}),
            "hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true",
        ),
        (
            json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]}),
            "containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
        ),
        (
            json!({"resourceClaims": [{"name": "r"}]}),
            "resourceClaims[0]: Invalid value: {\"Name\":\"r\",\"ResourceClaimName\":null,\"ResourceClaimTemplateName\":null}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
        ),
        (
            json!({"resourceClaims": [{"name": "r", "resourceClaimName": "a", "resourceClaimTemplateName": "b"}]}),
            "resourceClaims[0]: Invalid value: {\"Name\":\"r\",\"ResourceClaimName\":\"a\",\"ResourceClaimTemplateName\":\"b\"}: at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
        ),
        (
            json!({"volumes": [{"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
            "volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set",
        ),
    ]);
    let found = refused(&json!({"spec": {"dnsConfig": {"searches": long}}}));
    assert!(found.ends_with("must not have more than 32 search paths"), "{found}");
    let wide: Vec<String> = (0..20).map(|_| "a".repeat(120)).collect();
    let found = refused(&json!({"spec": {"dnsConfig": {"searches": wide}}}));
    assert!(found.contains("must not have more than 2048 characters (including spaces) in the search list"), "{found}");
}

#[test]
fn windows() {
    let user = |name: &str| json!({"securityContext": {"windowsOptions": {"runAsUserName": name}}});
    let path = |name: &str, words: &str| {
        format!("securityContext.windowsOptions.runAsUserName: Invalid value: {name:?}: runAsUserName{words}")
    };
    for (name, words) in [
        ("", " cannot be an empty string"),
        ("a\u{1}", " cannot contain control characters"),
        ("a\\b\\c", " cannot contain more than one backslash"),
        ("a:b\\c", "'s Domain doesn't match the NetBios nor the DNS format"),
        ("d\\", "'s User cannot be empty"),
        (". .", "'s User cannot contain only periods or spaces"),
        ("a:b", "'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"),
    ] {
        let found = refused(&json!({ "spec": user(name) })).replace("spec.", "");
        let shown = path(name, words).replace("\\u{1}", "\\x01");
        assert_eq!(found, shown, "{name:?}");
    }
    let long = "u".repeat(105);
    assert!(refused(&json!({ "spec": user(&long) })).ends_with("User length must not be longer than 104 characters"));
    let process = |pods: Value, owns: Value| {
        json!({"securityContext": {"windowsOptions": {"hostProcess": pods}}, "hostNetwork": true,
        "containers": [{"name": "c", "image": "i", "securityContext": {"windowsOptions": {"hostProcess": owns}}}, {"name": "d", "image": "i"}]})
    };
    specs(&[
        (
            process(json!(null), json!(true)),
            "spec: Invalid value: \"\": If pod contains any hostProcess containers then all containers must be HostProcess containers",
        ),
        (
            process(json!(true), json!(false)),
            "[containers[0].securityContext.windowsOptions.hostProcess: Invalid value: false: pod hostProcess value must be identical if both are specified, was true, spec: Invalid value: \"\": If pod contains any hostProcess containers then all containers must be HostProcess containers]",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            "hostNetwork: Invalid value: false: hostNetwork must be true if pod contains any hostProcess containers",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"gmsaCredentialSpec": ""}}}),
            "securityContext.windowsOptions.gmsaCredentialSpec: Invalid value: \"\": gmsaCredentialSpec cannot be an empty string",
        ),
        (
            json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {"runAsUserName": "u"}}}),
            "securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
        ),
        (
            json!({"os": {"name": "windows"}, "hostPID": true, "securityContext": {"fsGroup": 1}}),
            "[securityContext.fsGroup: Forbidden: cannot be set for a windows pod, hostPID: Forbidden: cannot be set for a windows pod]",
        ),
        (json!({"os": {"name": ""}}), "os.name: Required value: cannot be empty"),
        (json!({"os": {"name": "x"}}), "os: Unsupported value: \"x\": supported values: \"linux\", \"windows\""),
    ]);
}

#[test]
fn volumes() {
    let one =
        |source: Value| json!({"volumes": [merge(&json!({"name": "v"}), &source).unwrap()], "serviceAccountName": "s"});
    let projected = |sources: Value| one(json!({"projected": {"sources": sources}}));
    let token = |seconds: i64| projected(json!([{"serviceAccountToken": {"path": "t", "expirationSeconds": seconds}}]));
    let bundle =
        |extra: Value| projected(json!([{"clusterTrustBundle": merge(&json!({"path": "b"}), &extra).unwrap()}]));
    specs(&[
        (
            one(json!({"emptyDir": {"sizeLimit": "-1"}})),
            "volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
        ),
        (
            one(json!({"secret": {"secretName": "s", "defaultMode": 512}})),
            "volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
        ),
        (
            one(json!({"configMap": {"name": "m", "items": [{"key": "k", "path": "..x"}]}})),
            "volumes[0].configMap.items[0].path: Invalid value: \"..x\": must not start with '..'",
        ),
        (
            one(json!({"downwardAPI": {"items": [{"path": "f"}]}})),
            "volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
        ),
        (
            one(
                json!({"downwardAPI": {"items": [{"path": "f", "fieldRef": {"fieldPath": "metadata.name"}, "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}}]}}),
            ),
            "volumes[0].downwardAPI: Invalid value: \"resource\": fieldRef and resourceFieldRef can not be specified simultaneously",
        ),
        (
            json!({"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}, {"name": "w", "persistentVolumeClaim": {"claimName": "a-v"}}]}),
            "volumes[1].persistentVolumeClaim.claimName: Invalid value: \"a-v\": must not reference a PVC that gets created for an ephemeral volume",
        ),
        (
            projected(json!([{"secret": {"name": "s"}, "configMap": {"name": "m"}}])),
            "volumes[0].projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
        ),
        (
            projected(
                json!([{"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}}, {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}}]),
            ),
            "volumes[0].projected: Invalid value: \"m\": conflicting duplicate paths",
        ),
        (
            token(599),
            "volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
        ),
        (
            token((1 << 32) + 1),
            "volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds",
        ),
        (
            bundle(json!({})),
            "volumes[0].projected.sources[0].clusterTrustBundle: Required value: either name or signerName must be specified",
        ),
        (
            bundle(json!({"signerName": ""})),
            "volumes[0].projected.sources[0].clusterTrustBundle.signerName: Required value: must be a valid signer name",
        ),
    ]);
}
