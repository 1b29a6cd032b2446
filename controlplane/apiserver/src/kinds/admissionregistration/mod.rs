//! The `admissionregistration.k8s.io` group: webhooks and CEL policies.

mod bindings;
mod client;
mod matching;
mod policies;
mod webhooks;

use api::field::ErrorList;
use serde_json::Value;

use super::check::Node;
use crate::cel::{self, decl::Decl};
use crate::policy::Purpose;
use crate::resource::{Descriptor, Hooks, Resource};
use bindings::{Binding, binding_columns};
pub use client::client_config;
use policies::{Policy, policy_columns};
use webhooks::{Webhooks, webhook_columns};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            descriptor("MutatingAdmissionPolicy", "mutatingadmissionpolicies").columns(policy_columns(
                "Mutations",
                "Mutation indicates the number of mutations rules defined in this configuration",
            )),
            Policy { rules: "spec.mutations" },
        ),
        Resource::new(
            descriptor("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings").columns(binding_columns()),
            Binding { actions: false },
        ),
        Resource::new(
            descriptor("MutatingWebhookConfiguration", "mutatingwebhookconfigurations").columns(webhook_columns()),
            Webhooks { mutating: true },
        ),
        Resource::new(
            descriptor("ValidatingAdmissionPolicy", "validatingadmissionpolicies").with_status().columns(
                policy_columns(
                    "Validations",
                    "Validations indicates the number of validation rules defined in this configuration",
                ),
            ),
            Policy { rules: "spec.validations" },
        ),
        Resource::new(
            descriptor("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
                .columns(binding_columns()),
            Binding { actions: true },
        ),
        Resource::new(
            descriptor("ValidatingWebhookConfiguration", "validatingwebhookconfigurations").columns(webhook_columns()),
            Webhooks { mutating: false },
        ),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    let mut descriptor = Descriptor::new("admissionregistration.k8s.io", "v1", kind, plural)
        .cluster_scoped()
        .categories(&["api-extensions"])
        .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}

/// What files of the server's own end their names with.
pub const STATIC: &str = ".static.k8s.io";

/// Fills in defaults of an object from a file, and says what is wrong with it.
pub fn of_file(kind: &str, object: &mut Value) -> ErrorList {
    let mutating = kind.starts_with("Mutating");
    let mut errors = match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            let hooks = Webhooks { mutating };
            hooks.defaults(object);
            hooks.problems(object)
        }
        "MutatingAdmissionPolicyBinding" | "ValidatingAdmissionPolicyBinding" => {
            let hooks = Binding { actions: !mutating };
            hooks.defaults(object);
            hooks.problems(object)
        }
        _ => {
            let hooks = Policy { rules: if mutating { "spec.mutations" } else { "spec.validations" } };
            hooks.defaults(object);
            hooks.problems(object)
        }
    };
    let name = Node::root(object).child("metadata.name");
    if !name.text().is_empty() {
        name.format(&mut errors, api::names::dns1123_subdomain);
    }
    errors
}

/// Names of what comes from files are nobody else's to make.
fn not_reserved(object: &Value, errors: &mut ErrorList) {
    let name = Node::root(object).child("metadata.name");
    if name.text().ends_with(STATIC) {
        let why = format!(
            "names ending with {STATIC:?} are reserved for static manifest-based configurations and cannot be managed via the API"
        );
        name.invalid(errors, why);
    }
}

/// Which variables the expressions of a webhook (or of a policy's `spec`) see.
fn purpose(owner: &Node<'_>) -> Purpose {
    if owner.has("paramKind") { Purpose::WithParams } else { Purpose::Plain }
}

/// The type of an expression that compiles and gives one of `wanted` (none: anything).
fn compiles(expression: &Node<'_>, known: &[(&str, Decl)], wanted: &[&str], errors: &mut ErrorList) -> Decl {
    let decl = match cel::compile_checked(expression.text(), known) {
        Ok((_, checked)) => checked.decl,
        Err(error) => {
            expression.invalid(errors, error.to_string());
            return Decl::dynamic();
        }
    };
    let found = decl.to_string();
    if found != "dyn" && !wanted.is_empty() && !wanted.contains(&found.as_str()) {
        let wanted = match wanted {
            [one] => (*one).to_owned(),
            all => format!("one of [{}]", all.join(" ")),
        };
        expression.invalid(errors, format!("must evaluate to {wanted}"));
    }
    decl
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use serde_json::json;

    #[test]
    fn names_of_files_are_not_made_through_the_api() {
        let named = |name: &str| json!({"metadata": {"name": name}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
        let hooks = Binding { actions: true };
        let (free, taken) = (named("static.k8s.io"), named("b.static.k8s.io"));
        assert_eq!(tested::created(&hooks, &free), "[]");
        assert_eq!(
            tested::created(&hooks, &taken),
            "metadata.name: Invalid value: \"b.static.k8s.io\": names ending with \".static.k8s.io\" are reserved for static manifest-based configurations and cannot be managed via the API"
        );
        assert_eq!(tested::updated(&hooks, &taken, &taken), "[]", "what is there already can be changed");
        for hooks in [&Webhooks { mutating: true } as &dyn Hooks, &Policy { rules: "spec.validations" }] {
            assert!(tested::created(hooks, &taken).contains("are reserved for static"));
        }
    }
}
