//! Structures in messages, as Kubernetes prints them: the bad value of an error is its *internal*
//! type, whose JSON has Go's field names, all of them, in the order of their declaration.
//!
//! ```text
//! {"key": "a", "effect": "NoSchedule"}   →   {"Key":"a","Value":"","Effect":"NoSchedule","TimeAdded":null}
//! ```

use api::field::{Error, Path};
use serde_json::Value;

/// What an internal field is, apart from its name.
pub enum Is {
    /// A plain string: `""` when missing.
    Text,
    /// A pointer, list or map: null when missing.
    Nil,
    /// A boolean: false when missing.
    Flag,
    /// A pointer to a structure.
    Of(&'static [Field]),
    /// A structure within: its zero values when missing.
    Within(&'static [Field]),
}

/// The field's name in the API and in Go.
pub struct Field(pub &'static str, pub &'static str, pub Is);

pub const CLAIM: &[Field] = &[
    Field("name", "Name", Is::Text),
    Field("resourceClaimName", "ResourceClaimName", Is::Nil),
    Field("resourceClaimTemplateName", "ResourceClaimTemplateName", Is::Nil),
];

pub const TAINT: &[Field] = &[
    Field("key", "Key", Is::Text),
    Field("value", "Value", Is::Text),
    Field("effect", "Effect", Is::Text),
    Field("timeAdded", "TimeAdded", Is::Nil),
];

pub const NODE_ADDRESS: &[Field] = &[Field("type", "Type", Is::Text), Field("address", "Address", Is::Text)];

pub const IP: &[Field] = &[Field("ip", "IP", Is::Text)];

pub const SELECTOR_TERM: &[Field] = &[
    Field("matchExpressions", "MatchExpressions", Is::Of(REQUIREMENT)),
    Field("matchFields", "MatchFields", Is::Of(REQUIREMENT)),
];

const REFERENCE: &[Field] = &[Field("name", "Name", Is::Text), Field("namespace", "Namespace", Is::Text)];

pub const CLAIM_SPEC: &[Field] = &[
    Field("accessModes", "AccessModes", Is::Nil),
    Field("selector", "Selector", Is::Nil),
    Field(
        "resources",
        "Resources",
        Is::Within(&[Field("limits", "Limits", Is::Nil), Field("requests", "Requests", Is::Nil)]),
    ),
    Field("volumeName", "VolumeName", Is::Text),
    Field("storageClassName", "StorageClassName", Is::Nil),
    Field("volumeMode", "VolumeMode", Is::Nil),
    Field(
        "dataSource",
        "DataSource",
        Is::Of(&[
            Field("apiGroup", "APIGroup", Is::Nil),
            Field("kind", "Kind", Is::Text),
            Field("name", "Name", Is::Text),
        ]),
    ),
    Field(
        "dataSourceRef",
        "DataSourceRef",
        Is::Of(&[
            Field("apiGroup", "APIGroup", Is::Nil),
            Field("kind", "Kind", Is::Text),
            Field("name", "Name", Is::Text),
            Field("namespace", "Namespace", Is::Nil),
        ]),
    ),
    Field("volumeAttributesClassName", "VolumeAttributesClassName", Is::Nil),
];

/// The sources of a PersistentVolume. Of those that no driver here mounts, only which one it is.
pub const VOLUME_SOURCE: &[Field] = &[
    Field("gcePersistentDisk", "GCEPersistentDisk", Is::Nil),
    Field("awsElasticBlockStore", "AWSElasticBlockStore", Is::Nil),
    Field("hostPath", "HostPath", Is::Of(&[Field("path", "Path", Is::Text), Field("type", "Type", Is::Nil)])),
    Field("glusterfs", "Glusterfs", Is::Nil),
    Field(
        "nfs",
        "NFS",
        Is::Of(&[
            Field("server", "Server", Is::Text),
            Field("path", "Path", Is::Text),
            Field("readOnly", "ReadOnly", Is::Flag),
        ]),
    ),
    Field("rbd", "RBD", Is::Nil),
    Field("quobyte", "Quobyte", Is::Nil),
    Field("iscsi", "ISCSI", Is::Nil),
    Field("flexVolume", "FlexVolume", Is::Nil),
    Field("cinder", "Cinder", Is::Nil),
    Field("cephfs", "CephFS", Is::Nil),
    Field("fc", "FC", Is::Nil),
    Field("flocker", "Flocker", Is::Nil),
    Field("azureFile", "AzureFile", Is::Nil),
    Field("vsphereVolume", "VsphereVolume", Is::Nil),
    Field("azureDisk", "AzureDisk", Is::Nil),
    Field("photonPersistentDisk", "PhotonPersistentDisk", Is::Nil),
    Field("portworxVolume", "PortworxVolume", Is::Nil),
    Field("scaleIO", "ScaleIO", Is::Nil),
    Field("local", "Local", Is::Of(&[Field("path", "Path", Is::Text), Field("fsType", "FSType", Is::Nil)])),
    Field("storageos", "StorageOS", Is::Nil),
    Field(
        "csi",
        "CSI",
        Is::Of(&[
            Field("driver", "Driver", Is::Text),
            Field("volumeHandle", "VolumeHandle", Is::Text),
            Field("readOnly", "ReadOnly", Is::Flag),
            Field("fsType", "FSType", Is::Text),
            Field("volumeAttributes", "VolumeAttributes", Is::Nil),
            Field("controllerPublishSecretRef", "ControllerPublishSecretRef", Is::Of(REFERENCE)),
            Field("nodeStageSecretRef", "NodeStageSecretRef", Is::Of(REFERENCE)),
            Field("nodePublishSecretRef", "NodePublishSecretRef", Is::Of(REFERENCE)),
            Field("controllerExpandSecretRef", "ControllerExpandSecretRef", Is::Of(REFERENCE)),
            Field("nodeExpandSecretRef", "NodeExpandSecretRef", Is::Of(REFERENCE)),
        ]),
    ),
];

pub const NODE_AFFINITY: &[Field] =
    &[Field("required", "Required", Is::Of(&[Field("nodeSelectorTerms", "NodeSelectorTerms", Is::Of(SELECTOR_TERM))]))];

const REQUIREMENT: &[Field] =
    &[Field("key", "Key", Is::Text), Field("operator", "Operator", Is::Text), Field("values", "Values", Is::Nil)];

pub const SECURITY_CONTEXT: &[Field] = &[
    Field("capabilities", "Capabilities", Is::Of(&[Field("add", "Add", Is::Nil), Field("drop", "Drop", Is::Nil)])),
    Field("privileged", "Privileged", Is::Nil),
    Field(
        "seLinuxOptions",
        "SELinuxOptions",
        Is::Of(&[
            Field("user", "User", Is::Text),
            Field("role", "Role", Is::Text),
            Field("type", "Type", Is::Text),
            Field("level", "Level", Is::Text),
        ]),
    ),
    Field(
        "windowsOptions",
        "WindowsOptions",
        Is::Of(&[
            Field("gmsaCredentialSpecName", "GMSACredentialSpecName", Is::Nil),
            Field("gmsaCredentialSpec", "GMSACredentialSpec", Is::Nil),
            Field("runAsUserName", "RunAsUserName", Is::Nil),
            Field("hostProcess", "HostProcess", Is::Nil),
        ]),
    ),
    Field("runAsUser", "RunAsUser", Is::Nil),
    Field("runAsGroup", "RunAsGroup", Is::Nil),
    Field("runAsNonRoot", "RunAsNonRoot", Is::Nil),
    Field("readOnlyRootFilesystem", "ReadOnlyRootFilesystem", Is::Nil),
    Field("allowPrivilegeEscalation", "AllowPrivilegeEscalation", Is::Nil),
    Field("procMount", "ProcMount", Is::Nil),
    Field("seccompProfile", "SeccompProfile", Is::Of(PROFILE)),
    Field("appArmorProfile", "AppArmorProfile", Is::Of(PROFILE)),
];

pub const PROFILE: &[Field] =
    &[Field("type", "Type", Is::Text), Field("localhostProfile", "LocalhostProfile", Is::Nil)];

/// That `value` is wrong, shown with the fields of its internal type.
pub fn invalid(path: &Path, value: &Value, fields: &'static [Field], detail: &str) -> Error {
    Error::invalid_unshown(path, format!("{}: {detail}", internal(value, fields)))
}

/// As [`invalid`] shows a value, over several lines with one space of indentation: what a diff
/// compares.
pub fn lines(value: &Value, fields: &'static [Field]) -> String {
    let compact = internal(value, fields);
    let (mut text, mut depth, mut quoted, mut escaped) = (String::new(), 0, false, false);
    let mut chars = compact.chars().peekable();
    while let Some(next) = chars.next() {
        let breaks = |text: &mut String, depth: usize| {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', depth));
        };
        match next {
            _ if quoted => {
                quoted = escaped || next != '"';
                escaped = !escaped && next == '\\';
                text.push(next);
            }
            '{' | '[' => {
                text.push(next);
                if !matches!(chars.peek(), Some('}' | ']')) {
                    depth += 1;
                    breaks(&mut text, depth);
                }
            }
            '}' | ']' => {
                if !text.ends_with(['{', '[']) {
                    depth = depth.saturating_sub(1);
                    breaks(&mut text, depth);
                }
                text.push(next);
            }
            ',' => {
                text.push(next);
                breaks(&mut text, depth);
            }
            ':' => text.push_str(": "),
            _ => {
                quoted = next == '"';
                text.push(next);
            }
        }
    }
    text
}

/// JSON of `value`, or of a list of such, with the fields of its internal type in their order.
fn internal(value: &Value, fields: &'static [Field]) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| internal(item, fields)).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(given) => {
            let shown = |Field(name, go, is): &Field| {
                let printed = match (is, given.get(*name).unwrap_or(&Value::Null)) {
                    (Is::Text, Value::Null) => "\"\"".to_owned(),
                    (Is::Flag, Value::Null) => "false".to_owned(),
                    (Is::Within(fields), Value::Null) => internal(&Value::Object(serde_json::Map::new()), fields),
                    (Is::Of(fields) | Is::Within(fields), found) => internal(found, fields),
                    (_, found) => found.to_string(),
                };
                format!("\"{go}\":{printed}")
            };
            format!("{{{}}}", fields.iter().map(shown).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_all_there_in_order() {
        assert_eq!(
            internal(&json!({"effect": "NoSchedule", "key": "a"}), TAINT),
            r#"{"Key":"a","Value":"","Effect":"NoSchedule","TimeAdded":null}"#
        );
        assert_eq!(internal(&json!([{"ip": "::1"}]), IP), r#"[{"IP":"::1"}]"#);
        assert_eq!(
            lines(&json!({"capabilities": {"add": ["a\",{"], "drop": []}}), &SECURITY_CONTEXT[..2]),
            "{\n \"Capabilities\": {\n  \"Add\": [\n   \"a\\\",{\"\n  ],\n  \"Drop\": []\n },\n \"Privileged\": null\n}"
        );
        assert_eq!(
            internal(&json!({}), &CLAIM_SPEC[2..4]),
            r#"{"Resources":{"Limits":null,"Requests":null},"VolumeName":""}"#
        );
        let context = json!({"capabilities": {"add": ["CAP_SYS_ADMIN"]}, "allowPrivilegeEscalation": false});
        assert_eq!(
            internal(&context, SECURITY_CONTEXT),
            concat!(
                r#"{"Capabilities":{"Add":["CAP_SYS_ADMIN"],"Drop":null},"Privileged":null,"SELinuxOptions":null,"#,
                r#""WindowsOptions":null,"RunAsUser":null,"RunAsGroup":null,"RunAsNonRoot":null,"#,
                r#""ReadOnlyRootFilesystem":null,"AllowPrivilegeEscalation":false,"ProcMount":null,"#,
                r#""SeccompProfile":null,"AppArmorProfile":null}"#
            )
        );
    }
}
