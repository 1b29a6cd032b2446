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
    /// A pointer to a structure.
    Of(&'static [Field]),
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
                    (Is::Of(fields), found) => internal(found, fields),
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
