use std::collections::HashMap;

use serde_json::json;

use super::*;

/// What a reader knows of these messages: enough of each kind of field.
mod wire {
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Pod {
        #[prost(message, optional, tag = "1")]
        pub metadata: Option<Meta>,
        #[prost(message, optional, tag = "2")]
        pub spec: Option<Spec>,
        #[prost(message, optional, tag = "3")]
        pub status: Option<Status>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Meta {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(int64, tag = "7")]
        pub generation: i64,
        #[prost(message, optional, tag = "8")]
        pub created: Option<Time>,
        #[prost(map = "string, string", tag = "11")]
        pub labels: HashMap<String, String>,
        #[prost(message, repeated, tag = "17")]
        pub managed: Vec<Managed>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Time {
        #[prost(int64, tag = "1")]
        pub seconds: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Managed {
        #[prost(message, optional, tag = "7")]
        pub fields: Option<Raw>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Raw {
        #[prost(bytes = "vec", tag = "1")]
        pub raw: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Spec {
        #[prost(message, repeated, tag = "1")]
        pub volumes: Vec<Volume>,
        #[prost(message, repeated, tag = "2")]
        pub containers: Vec<Container>,
        #[prost(bool, tag = "11")]
        pub host_network: bool,
        #[prost(message, optional, tag = "14")]
        pub security: Option<Security>,
        #[prost(int32, tag = "25")]
        pub priority: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Security {
        #[prost(int64, repeated, packed = "false", tag = "4")]
        pub groups: Vec<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Volume {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, optional, tag = "2")]
        pub source: Option<Source>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Source {
        #[prost(message, optional, tag = "2")]
        pub empty_dir: Option<EmptyDir>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EmptyDir {
        #[prost(string, tag = "1")]
        pub medium: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Container {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, repeated, tag = "3")]
        pub command: Vec<String>,
        #[prost(message, optional, tag = "8")]
        pub resources: Option<Resources>,
        #[prost(message, optional, tag = "10")]
        pub liveness: Option<Probe>,
        #[prost(message, repeated, tag = "19")]
        pub env_from: Vec<EnvFrom>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Resources {
        #[prost(map = "string, message", tag = "1")]
        pub limits: HashMap<String, Quantity>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Quantity {
        #[prost(string, tag = "1")]
        pub text: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Probe {
        #[prost(message, optional, tag = "1")]
        pub handler: Option<Handler>,
        #[prost(int32, tag = "4")]
        pub period_seconds: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Handler {
        #[prost(message, optional, tag = "3")]
        pub tcp: Option<Tcp>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Tcp {
        #[prost(message, optional, tag = "1")]
        pub port: Option<Port>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Port {
        #[prost(int64, tag = "1")]
        pub kind: i64,
        #[prost(int32, tag = "2")]
        pub number: i32,
        #[prost(string, tag = "3")]
        pub name: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EnvFrom {
        #[prost(message, optional, tag = "2")]
        pub config_map: Option<EnvSource>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EnvSource {
        #[prost(message, optional, tag = "1")]
        pub named: Option<Quantity>,
        #[prost(bool, tag = "2")]
        pub optional: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        #[prost(string, tag = "1")]
        pub phase: String,
    }
}

fn encoded(json: &Value) -> wire::Pod {
    let pod: Pod = serde_json::from_value(json.clone()).unwrap();
    let bytes = Encoder::new().unwrap().pod(&pod).unwrap();
    wire::Pod::decode(bytes.as_slice()).unwrap()
}

#[test]
fn readers_of_protobuf_find_what_json_says() {
    let probe = |port: Value| json!({"tcpSocket": {"port": port}, "periodSeconds": 3});
    let pod = encoded(&json!({
        "metadata": {"name": "p", "generation": 2, "creationTimestamp": "1970-01-01T00:01:00Z", "labels": {"a": "1", "b": ""},
            "managedFields": [{"fieldsV1": {"f:spec": {}}}]},
        "spec": {
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {"medium": "Memory"}}],
            "containers": [
                {"name": "c", "command": ["sh", "-c"], "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": probe(json!(80)),
                    "envFrom": [{"configMapRef": {"name": "m", "optional": true}}]},
                {"name": "d", "livenessProbe": probe(json!("http"))}],
            "hostNetwork": true, "priority": -5, "securityContext": {"supplementalGroups": [1, 2]}},
        "status": {"phase": "Running"}}));

    let meta = pod.metadata.unwrap();
    assert_eq!((meta.name.as_str(), meta.generation, meta.created.unwrap().seconds), ("p", 2, 60));
    let labels = [("a", "1"), ("b", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(meta.labels, HashMap::from(labels));
    assert_eq!(meta.managed[0].fields.as_ref().unwrap().raw, b"{\"f:spec\":{}}");

    let spec = pod.spec.unwrap();
    assert_eq!((spec.host_network, spec.priority, spec.security.clone().unwrap().groups), (true, -5, vec![1, 2]));
    let media = spec.volumes.iter().map(|volume| {
        let source = volume.source.as_ref().unwrap();
        (volume.name.as_str(), source.empty_dir.as_ref().unwrap().medium.as_str())
    });
    assert_eq!(media.collect::<Vec<_>>(), [("v", ""), ("w", "Memory")]);
    let [c, d] = spec.containers.as_slice() else { panic!("{spec:?}") };
    assert_eq!((c.name.as_str(), c.command.len()), ("c", 2));
    assert_eq!(c.resources.as_ref().unwrap().limits["cpu"].text, "100m");
    let source = c.env_from[0].config_map.as_ref().unwrap();
    assert_eq!((source.named.as_ref().unwrap().text.as_str(), source.optional), ("m", true));
    let port = |container: &wire::Container| {
        let probe = container.liveness.clone().unwrap();
        (probe.period_seconds, probe.handler.unwrap().tcp.unwrap().port.unwrap())
    };
    assert_eq!(port(c), (3, wire::Port { kind: 0, number: 80, name: String::new() }));
    assert_eq!(port(d), (3, wire::Port { kind: 1, number: 0, name: "http".to_owned() }));
    assert_eq!(pod.status.unwrap().phase, "Running");
}

/// Keys of JSON that the table does not have.
fn strangers(encoder: &Encoder, message: &str, json: &Value, found: &mut Vec<String>) {
    if ["Quantity", "IntOrString", "Time", "FieldsV1"].contains(&message) {
        return;
    }
    let fields = &encoder.messages[message];
    for (key, value) in json.as_object().into_iter().flatten() {
        let held_in = |inner: &String| encoder.messages[inner].iter().any(|field| field.name == *key);
        let holds = |around: &&Field| matches!(&around.kind, Kind::Message(inner) if held_in(inner));
        let around = fields.iter().filter(|field| field.shape == Shape::Around).find(holds);
        let own = fields.iter().find(|field| field.name == *key);
        let inner = around.and_then(|around| match &around.kind {
            Kind::Message(inner) => encoder.messages[inner].iter().find(|field| field.name == *key),
            _ => None,
        });
        match own.or(inner) {
            None => found.push(format!("{message}.{key}")),
            Some(Field { kind: Kind::Message(_), shape: Shape::Map, .. }) => {}
            Some(Field { kind: Kind::Message(inner), .. }) => {
                let items = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                items.iter().for_each(|item| strangers(encoder, inner, item, found));
            }
            Some(_) => {}
        }
    }
}

#[test]
fn the_table_knows_what_pods_have() {
    let container = json!({"name": "c", "image": "i", "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}},
            {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}],
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}, "stopSignal": "SIGINT"},
        "readinessProbe": {"httpGet": {"port": 1, "httpHeaders": [{"name": "h", "value": "v"}]}, "timeoutSeconds": 1},
        "securityContext": {"capabilities": {"add": ["X"]}, "seccompProfile": {"type": "RuntimeDefault"}},
        "resources": {"claims": [{"name": "x", "request": "r"}]}, "volumeMounts": [{"name": "v", "mountPath": "/"}]});
    let status = json!({"name": "c", "image": "i", "imageID": "d", "ready": true, "restartCount": 1,
        "state": {"terminated": {"exitCode": 1, "startedAt": "2026-01-01T00:00:00Z"}}, "allocatedResourcesStatus": [
            {"name": "claim:x", "resources": [{"resourceID": "d", "health": "Unhealthy", "message": "hot"}]}]});
    let json = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "o", "uid": "u", "controller": true}]},
        "spec": {"containers": [container], "ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "c"}],
            "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "m", "items": [{"key": "k", "path": "p", "mode": 1}]}},
                {"serviceAccountToken": {"path": "t", "expirationSeconds": 9}}]}}, {"name": "w", "csi": {"driver": "d", "volumeAttributes": {"a": "b"}}}],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm":
                {"topologyKey": "t", "labelSelector": {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}}}]}},
            "tolerations": [{"operator": "Exists", "tolerationSeconds": 5}], "resourceClaims": [{"name": "x", "resourceClaimName": "y"}],
            "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}, "readinessGates": [{"conditionType": "g"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [status],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]}});
    let pod: Pod = serde_json::from_value(json).unwrap();
    let encoder = Encoder::new().unwrap();
    let mut found = Vec::new();
    strangers(&encoder, "Pod", &serde_json::to_value(&pod).unwrap(), &mut found);
    // These are the message's type itself.
    assert_eq!(found, ["Pod.apiVersion", "Pod.kind"]);
    encoder.pod(&pod).unwrap();
}

#[test]
fn what_a_field_cannot_hold_is_said() {
    let encoder = Encoder::new().unwrap();
    let mut out = Vec::new();
    for (message, json, said) in [
        ("Pod", json!({"metadata": {"name": 1}}), "1 is no value of a pod's field name"),
        ("Pod", json!({"metadata": {"creationTimestamp": "then"}}), "\"then\" is no value of a pod's field Time"),
        ("Quantity", json!(true), "true is no value of a pod's field Quantity"),
    ] {
        assert_eq!(encoder.message(message, &json, &mut out).unwrap_err().to_string(), said);
    }
}
