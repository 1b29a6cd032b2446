//! Whatever a client sends, hooks answer errors and never panic: objects made of the API's own
//! field names with values of any type.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::admission::fake::Fixed;
use crate::authn::UserInfo;
use crate::resource::Context;

const FIELDS: &[&str] = &[
    "metadata",
    "spec",
    "status",
    "name",
    "namespace",
    "labels",
    "annotations",
    "template",
    "containers",
    "initContainers",
    "ephemeralContainers",
    "volumes",
    "volumeMounts",
    "env",
    "valueFrom",
    "fieldRef",
    "fieldPath",
    "ports",
    "containerPort",
    "hostPort",
    "protocol",
    "resources",
    "limits",
    "requests",
    "cpu",
    "memory",
    "securityContext",
    "capabilities",
    "add",
    "selector",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "strategy",
    "type",
    "rollingUpdate",
    "maxSurge",
    "maxUnavailable",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "externalIPs",
    "nodePort",
    "targetPort",
    "port",
    "subsets",
    "addresses",
    "ip",
    "endpoints",
    "rules",
    "verbs",
    "roleRef",
    "subjects",
    "kind",
    "webhooks",
    "clientConfig",
    "service",
    "url",
    "hard",
    "scopes",
    "schedule",
    "jobTemplate",
    "affinity",
    "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "nodeSelectorTerms",
    "tolerations",
    "conditions",
    "data",
    "stringData",
    "metrics",
    "resource",
    "target",
    "versions",
    "schema",
    "openAPIV3Schema",
    "names",
    "ingress",
    "from",
    "ipBlock",
    "cidr",
    "except",
    "http",
    "paths",
    "backend",
    "volumeClaimTemplates",
    "capacity",
    "storage",
    "accessModes",
    "livenessProbe",
    "httpGet",
    "projected",
    "sources",
    "serviceAccountToken",
    "containerStatuses",
    "state",
    "terminated",
    "taints",
    "podCIDR",
    "devices",
    "exactly",
    "count",
    "limited",
    "queuing",
    "overhead",
    "podFixed",
    "certificate",
    "request",
    "signerName",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("None".to_owned()),
        Just("RollingUpdate".to_owned()),
        Just("LoadBalancer".to_owned()),
        Just("Localhost".to_owned()),
        Just("10.0.0.0/8".to_owned()),
        Just("::1".to_owned()),
        Just("5%".to_owned()),
        Just("metadata.labels['".to_owned()),
        Just("€ü".to_owned()),
        "[a-z0-9./*:%@-]{0,12}",
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..3i64).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 160, 7, |inner| {
        let key = prop_oneof![9 => proptest::sample::select(FIELDS).prop_map(str::to_owned), 1 => word()];
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => proptest::collection::vec((key, inner), 0..7).prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn hooks_never_panic(one in any_value(), two in any_value()) {
        let (cluster, user) = (Fixed::default(), UserInfo::admin());
        for resource in super::all() {
            for subresource in ["", "status", "resize", "ephemeralcontainers", "finalize", "approval"] {
                let ctx = Context { user: &user, verb: "update", group: "", namespace: "n", name: "x", subresource, dry_run: false, now: Timestamp::UNIX_EPOCH, cluster: &cluster, warnings: &Default::default() };
                let (mut new, mut old) = (json!({"metadata": {"name": "x"}}), json!({"metadata": {"name": "x"}}));
                new["spec"] = one.clone();
                new["status"] = two.clone();
                old["spec"] = two.clone();
                for mut object in [one.clone(), new] {
                    resource.hooks.defaults(&mut object);
                    if subresource.is_empty() {
                        let mut created = object.clone();
                        resource.hooks.prepare_create(&ctx, &mut created);
                        resource.hooks.validate_create(&ctx, &created);
                        resource.hooks.row(&created, Timestamp::UNIX_EPOCH);
                        resource.hooks.warnings(&created, None);
                        resource.hooks.prepare_update(&ctx, &mut object, &old);
                        resource.hooks.validate_update(&ctx, &object, &old);
                        resource.hooks.grace_period(&object, None);
                        for served in &resource.descriptor.served {
                            let hub = (resource.descriptor.hub_group(), resource.descriptor.hub_version());
                            let mut converted = object.clone();
                            if resource.hooks.convert(&mut converted, hub, (&served.group, &served.version)).is_ok() {
                                resource.hooks.convert(&mut converted, (&served.group, &served.version), hub).ok();
                            }
                        }
                    } else {
                        resource.hooks.prepare_subresource_update(&ctx, &mut object, &old);
                        resource.hooks.validate_subresource_update(&ctx, &object, &old);
                    }
                }
            }
        }
    }
}
