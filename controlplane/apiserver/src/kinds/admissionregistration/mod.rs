//! The `admissionregistration.k8s.io` group: webhooks and CEL policies.

mod bindings;
mod client;
mod matching;
mod policies;
mod webhooks;

use api::field::ErrorList;

use super::check::Node;
use crate::cel::{self, decl::Decl};
use crate::policy::Purpose;
use crate::resource::{Descriptor, Resource};
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
