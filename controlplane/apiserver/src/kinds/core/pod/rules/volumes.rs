//! Volumes of all types.

use serde_json::{Value, json};

use super::{refused, specs};
use crate::kinds::apps::PodTemplate;
use crate::kinds::tested::created;
use crate::patch::merge;

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

/// Every pod of a template that names no image would be refused.
#[test]
fn templates_name_the_images_of_volumes() {
    let volumes = json!([{"name": "v", "image": {"pullPolicy": "Always"}}]);
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "volumes": volumes});
    let template = json!({"metadata": {"name": "a", "namespace": "n"}, "template": {"spec": spec}});
    assert_eq!(created(&PodTemplate, &template), "template.spec.volumes[0].image.reference: Required value");
    specs(&[(json!({ "volumes": volumes }), "volumes[0].image.reference: Required value")]);
}

#[test]
fn volumes_from_elsewhere() {
    let one = |kind: &str, source: Value| json!({"volumes": [{"name": "v", kind: source}]});
    let iscsi = |extra: Value| {
        one(
            "iscsi",
            merge(&json!({"targetPortal": "10.0.0.1", "iqn": "iqn.2015-02.example.com:t", "lun": 0}), &extra).unwrap(),
        )
    };
    let disk =
        |extra: Value| one("azureDisk", merge(&json!({"diskName": "d", "diskURI": "https://x"}), &extra).unwrap());
    let rows = [
        (one("nfs", json!({"server": "s", "path": "p"})), "nfs.path: Invalid value: \"p\": must be an absolute path"),
        (
            one("hostPath", json!({"path": "/a/../b"})),
            "hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            one("hostPath", json!({"path": "/a", "type": "Odd"})),
            "hostPath.type: Unsupported value: \"Odd\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
        ),
        (
            one("gcePersistentDisk", json!({"pdName": "d", "partition": 256})),
            "persistentDisk.partition: Invalid value: 256: must be between 1 and 255, inclusive",
        ),
        (one("flocker", json!({})), "flocker: Required value: one of datasetName and datasetUUID is required"),
        (
            one("flocker", json!({"datasetName": "a/b", "datasetUUID": "u"})),
            "[flocker: Invalid value: \"resource\": datasetName and datasetUUID can not be specified simultaneously, flocker.datasetName: Invalid value: \"a/b\": must not contain '/']",
        ),
        (
            one("quobyte", json!({"registry": "r", "volume": "v"})),
            "quobyte.registry: Invalid value: \"r\": must be a host:port pair or multiple pairs separated by commas",
        ),
        (
            one("quobyte", json!({"registry": "r:1", "volume": "v", "tenant": "t".repeat(65)})),
            "quobyte.tenant: Required value: must be a UUID and may not exceed a length of 64 characters",
        ),
        (one("fc", json!({})), "fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both"),
        (one("fc", json!({"targetWWNs": ["a"]})), "fc.lun: Required value: lun is required if targetWWNs is specified"),
        (
            one("fc", json!({"targetWWNs": ["a"], "wwids": ["b"], "lun": 256})),
            "[fc.targetWWNs: Invalid value: [\"a\"]: targetWWNs and wwids can not be specified simultaneously, fc.lun: Invalid value: 256: must be between 0 and 255, inclusive]",
        ),
        (
            one("flexVolume", json!({"driver": "d", "options": {"k8s.io/a": "b"}})),
            "flexVolume.options[k8s.io/a]: Invalid value: \"k8s.io/a\": kubernetes.io and k8s.io namespaces are reserved",
        ),
        (
            iscsi(json!({"iqn": "odd"})),
            "iscsi.iqn: Invalid value: \"odd\": must be valid format starting with iqn, eui, or naa",
        ),
        (iscsi(json!({"iqn": "iqn.odd"})), "iscsi.iqn: Invalid value: \"iqn.odd\": must be valid format"),
        (iscsi(json!({"lun": 256})), "iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive"),
        (iscsi(json!({"chapAuthSession": true})), "iscsi.secretRef: Required value"),
        (
            iscsi(json!({"targetPortal": "p".repeat(63), "initiatorName": "iqn.2015-02.example.com:i"})),
            "name: Invalid value: \"v\": Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
        ),
        (
            disk(json!({"kind": "Managed"})),
            "azureDisk.diskURI: Unsupported value: \"https://x\": supported values: \"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}\"",
        ),
        (
            disk(json!({"kind": "Shared", "diskURI": "/subscriptions/x"})),
            "azureDisk.diskURI: Unsupported value: \"/subscriptions/x\": supported values: \"https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd\"",
        ),
    ];
    for (extra, expected) in rows {
        let found = refused(&json!({ "spec": extra })).replace("spec.volumes[0].", "");
        assert_eq!(found, expected, "{extra}");
    }
}
