//! Placement, security, names, networks and the operating system.

use serde_json::{Value, json};

use super::{containers, refused, specs};
use crate::patch::merge;

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
