use super::*;
use crate::resource::GroupVersionKind;
use crate::schema::{lookup, normalize};
use proptest::prelude::*;
use serde_json::json;

fn normalized(mut value: Value) -> Value {
    let (group, version) = split_api_version(value["apiVersion"].as_str().unwrap());
    let kind = value["kind"].as_str().unwrap().to_owned();
    let gvk = GroupVersionKind::new(group.to_owned(), version.to_owned(), kind);
    normalize(&lookup(&gvk).unwrap(), &mut value, &gvk).unwrap();
    value
}

fn round_trip(value: Value) {
    let value = normalized(value);
    let decoded = decode(&encode(&value).unwrap()).unwrap();
    assert_eq!(normalized(decoded), value);
}

#[test]
fn the_envelope_is_upstreams() {
    let bytes = encode(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"b": "2", "a": "1"}}),
    )
    .unwrap();
    // Written by hand from the contract: magic, type meta, raw (ObjectMeta with its empty strings
    // and times, then the data's entries in order), empty encoding and type.
    let meta = b"\x0a\x01c\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00";
    let mut raw = vec![0x0a, meta.len() as u8];
    raw.extend(meta);
    raw.extend(b"\x12\x06\x0a\x01a\x12\x011\x12\x06\x0a\x01b\x12\x012");
    let mut expected = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12".to_vec();
    expected.push(raw.len() as u8);
    expected.extend(&raw);
    expected.extend(b"\x1a\x00\x22\x00");
    assert_eq!(bytes, expected);
}

#[test]
fn an_eviction_of_the_old_version_is_read_as_what_it_says() {
    // The envelope, and an Eviction { metadata = 1 { name = 1 }, deleteOptions = 2 { gracePeriodSeconds = 1 } }.
    let mut bytes = b"k8s\0\x0a\x1a\x0a\x0epolicy/v1beta1\x12\x08Eviction\x12\x09".to_vec();
    bytes.extend(b"\x0a\x03\x0a\x01p\x12\x02\x08\x07");
    let eviction = decode(&bytes).unwrap();
    assert_eq!(eviction["apiVersion"], "policy/v1beta1");
    assert_eq!(
        (&eviction["metadata"]["name"], &eviction["deleteOptions"]["gracePeriodSeconds"]),
        (&json!("p"), &json!(7))
    );
    assert!(
        decode(&[b"k8s\0\x0a\x1a\x0a\x0epolicy/v1beta9\x12\x08Eviction".as_slice(), b"\x12\x00"].concat()).is_err()
    );
}

#[test]
fn objects_survive_the_round_trip() {
    round_trip(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "2024-05-01T10:00:00Z", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}],
            "managedFields": [{"manager": "m", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "c", "configMap": {"name": "x", "defaultMode": 420}}],
            "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80}], "env": [{"name": "e", "value": ""}],
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 10},
                "resources": {"limits": {"cpu": "500m"}}, "securityContext": {"runAsUser": 0, "privileged": false}}],
            "terminationGracePeriodSeconds": 0, "tolerations": [{"tolerationSeconds": -1}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}], "startTime": "2024-05-01T10:00:01Z"}}));
    round_trip(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081}]}}));
    round_trip(
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAEC/w==", "e": ""}}),
    );
    round_trip(
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"renewTime": "2024-05-01T10:00:00.123456Z", "leaseDurationSeconds": 40}}),
    );
    round_trip(
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": {"authenticated": true, "user": {"username": "u", "extra": {"k": ["a", "b"]}}}}),
    );
    round_trip(
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "spec": {"matchConstraints": {"resourceRules": [
        {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"], "resourceNames": ["x"], "scope": "*"}]}}}),
    );
    round_trip(
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": {"group": "e.com", "scope": "Cluster",
        "names": {"plural": "ws", "kind": "W"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}, "n": {"type": "number", "maximum": 1.5, "default": {"x": [1]}},
                "m": {"additionalProperties": false}, "o": {"additionalProperties": {"type": "string"}}}}}}]}}),
    );
    round_trip(
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 3, "data": {"spec": {"x": [1, null]}}}),
    );
    round_trip(
        json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "details": {"name": "x", "causes": [{"field": "f"}]}}),
    );
    round_trip(
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "5"}, "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}),
    );
    round_trip(
        json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background", "preconditions": {"uid": "u"}}),
    );
}

#[test]
fn every_kind_survives_the_round_trip() {
    for id in TypeId::all().filter(|id| id.is_object() && has_form(*id)) {
        let Some((group, version)) = crate::schema::group_of(id) else { continue };
        let group = if group == "meta.k8s.io" { "" } else { group };
        if type_of(group, version, id.kind()) != Some(id) {
            continue;
        }
        round_trip(sample(id, &crate::resource::api_version(group, version)));
    }
}

/// An object with every field set, some levels deep.
fn sample(id: TypeId, api_version: &str) -> Value {
    let mut object = sample_struct(id, 0);
    object["apiVersion"] = api_version.into();
    object["kind"] = id.kind().into();
    object
}

fn sample_struct(id: TypeId, depth: usize) -> Value {
    let fields = id.fields().filter(|field| !matches!(field.name(), "apiVersion" | "kind") || field.number() > 0);
    let members = fields.filter_map(|field| {
        let element = field.element().resolved();
        let item = sample_single(element.item(), depth)?;
        let value = match element.shape {
            crate::schema::table::Shape::Single => item,
            crate::schema::table::Shape::List => json!([item.clone(), item]),
            crate::schema::table::Shape::Map => json!({"b": item.clone(), "a": item}),
        };
        Some((field.name().to_owned(), value))
    });
    Value::Object(members.collect())
}

fn sample_single(element: crate::schema::table::Element, depth: usize) -> Option<Value> {
    use crate::schema::table::{Base, Shape};
    let element = element.resolved();
    if element.shape == Shape::List {
        return Some(json!([sample_single(element.item(), depth)?]));
    }
    Some(match element.base {
        Base::String => "text".into(),
        Base::Bool => true.into(),
        Base::Int32 => (-7).into(),
        Base::Int64 => 1_234_567_890_123_i64.into(),
        Base::Float => 2.5.into(),
        Base::Bytes => "AQID".into(),
        Base::Quantity => "1500m".into(),
        Base::IntOrString => "50%".into(),
        Base::Time => "2024-05-01T10:00:00Z".into(),
        Base::MicroTime => "2024-05-01T10:00:00.000123Z".into(),
        Base::Duration => "1h30m0s".into(),
        Base::FieldsV1 => json!({"f:a": {}}),
        Base::Raw | Base::Json => json!({"any": [1, "x"]}),
        Base::SchemaOrBool => true.into(),
        Base::SchemaOrArray | Base::SchemaOrStrings => return None,
        Base::Type(_) if depth > 6 => return None,
        Base::Type(id) => sample_struct(id, depth + 1),
    })
}

#[test]
fn watch_events_are_framed() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let frame = encode_watch_event("ADDED", &object).unwrap();
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    assert_eq!(length, frame.len() - 4);
    assert_eq!(&frame[4..11], b"\x0a\x05ADDED");
    let mut reader = Reader::new(&frame[4..]);
    let mut inner = None;
    while let Some((number, payload)) = reader.next().unwrap() {
        if let (2, Payload::Bytes(raw)) = (number, payload) {
            inner = Reader::new(raw).next().unwrap();
        }
    }
    let Some((1, Payload::Bytes(envelope))) = inner else { panic!("no object in the event") };
    assert_eq!(decode(envelope).unwrap()["metadata"]["name"], "c");
}

#[test]
fn what_has_no_protobuf_form_is_refused() {
    for value in [
        json!({"apiVersion": "example.com/v1", "kind": "Widget"}),
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"}),
    ] {
        assert_eq!(encode(&value).unwrap_err().code(), 406);
    }
    for bytes in [&b"{}"[..], b"k8s\0\xff", b"k8s\0\x12\x05ab", b""] {
        assert_eq!(decode(bytes).unwrap_err().code(), 400);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let mut pod = b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12".to_vec();
        pod.push(bytes.len().min(127) as u8);
        pod.extend(&bytes[..bytes.len().min(127)]);
        let _ = decode(&pod);
    }

    /// A valid message with bytes changed decodes to something or is refused.
    #[test]
    fn damaged_messages_never_panic(at in 0_usize..400, byte in any::<u8>()) {
        let id = type_of("", "v1", "Pod").unwrap();
        let mut bytes = encode(&sample(id, "v1")).unwrap();
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = decode(&bytes);
    }
}
