//! The `rbac.authorization.k8s.io` group. Escalation is checked by the authorizer, not here.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Node, label_selector};
use super::table::{created_at_columns, created_at_row, named_wide, row_wide, words};
use super::value::{default_text, has, list, list_mut, same_at, text};
use crate::resource::{Column, Context, Descriptor, Hooks, NameRule, Resource};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            descriptor("ClusterRoleBinding", "clusterrolebindings").cluster_scoped().columns(binding_columns("roleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.", ["Users in the clusterRoleBinding", "Groups in the clusterRoleBinding", "ServiceAccounts in the clusterRoleBinding"])),
            Binding { cluster: true },
        ),
        Resource::new(
            descriptor("ClusterRole", "clusterroles").cluster_scoped().columns(created_at_columns()),
            Role { cluster: true },
        ),
        Resource::new(descriptor("RoleBinding", "rolebindings").columns(binding_columns("roleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.", ["Users in the roleBinding", "Groups in the roleBinding", "ServiceAccounts in the roleBinding"])), Binding { cluster: false }),
        Resource::new(descriptor("Role", "roles").columns(created_at_columns()), Role { cluster: false }),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    let mut descriptor = Descriptor::new(GROUP, "v1", kind, plural).names(NameRule::PathSegment);
    descriptor.create_on_update = true;
    descriptor
}

struct Role {
    cluster: bool,
}

impl Hooks for Role {
    fn validate_create(&self, _ctx: &Context<'_>, role: &Value) -> ErrorList {
        validate_role(role, self.cluster)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate_role(new, self.cluster)
    }

    fn row(&self, role: &Value, _now: Timestamp) -> Vec<Value> {
        created_at_row(role)
    }
}

fn validate_role(role: &Value, cluster: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(role);
    for rule in root.items("rules") {
        validate_rule(&rule, !cluster, &mut errors);
    }
    if cluster && root.has("aggregationRule") {
        let selectors = root.items("aggregationRule.clusterRoleSelectors");
        if selectors.is_empty() {
            root.child("aggregationRule.clusterRoleSelectors")
                .missing(&mut errors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for selector in selectors {
            label_selector(&selector, &mut errors);
        }
    }
    // Declared rules speak last, and in fewer words.
    for rule in root.items("rules") {
        rule.child("verbs").required(&mut errors, "");
    }
    errors
}

fn validate_rule(rule: &Node<'_>, namespaced: bool, errors: &mut ErrorList) {
    let urls = rule.child("nonResourceURLs");
    if !urls.is_empty() {
        if namespaced {
            urls.invalid(errors, "namespaced rules cannot apply to non-resource URLs");
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|field| !rule.items(field).is_empty()) {
            urls.invalid(errors, "rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    if rule.items("apiGroups").is_empty() {
        rule.child("apiGroups").missing(errors, "resource rules must supply at least one api group");
    }
    if rule.items("resources").is_empty() {
        rule.child("resources").missing(errors, "resource rules must supply at least one resource");
    }
}

struct Binding {
    cluster: bool,
}

impl Hooks for Binding {
    fn defaults(&self, binding: &mut Value) {
        if has(binding, "roleRef") {
            default_text(binding, "roleRef.apiGroup", GROUP);
        }
        for subject in list_mut(binding, "subjects") {
            if matches!(text(subject, "kind"), "User" | "Group") {
                default_text(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, binding: &Value) -> ErrorList {
        validate_binding(binding, self.cluster)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_binding(new, self.cluster);
        if !same_at(old, new, "roleRef") {
            // Shown by the names of its Go fields.
            let role = |field: &str| text(new, &format!("roleRef.{field}"));
            let shown = json!({"APIGroup": role("apiGroup"), "Kind": role("kind"), "Name": role("name")});
            errors.push(Error::invalid(&Node::root(new).child("roleRef").path, shown, "cannot change roleRef"));
        }
        errors
    }

    fn row(&self, binding: &Value, now: Timestamp) -> Vec<Value> {
        let role = format!("{}/{}", text(binding, "roleRef.kind"), text(binding, "roleRef.name"));
        let subjects = |kind: &str| {
            let named = list(binding, "subjects").iter().filter(|subject| text(subject, "kind") == kind);
            let shown = named.map(|subject| match (kind, text(subject, "namespace")) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", text(subject, "name")),
                _ => text(subject, "name").to_owned(),
            });
            Value::from(shown.collect::<Vec<_>>().join(", "))
        };
        row_wide(binding, now, vec![role.into()], vec![subjects("User"), subjects("Group"), subjects("ServiceAccount")])
    }
}

fn binding_columns(role: &'static str, [users, groups, accounts]: [&'static str; 3]) -> Vec<Column> {
    named_wide(
        vec![words("Role", role)],
        vec![words("Users", users), words("Groups", groups), words("ServiceAccounts", accounts)],
    )
}

fn validate_binding(binding: &Value, cluster: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(binding);
    let role = root.child("roleRef");
    if role.child("apiGroup").text() != GROUP {
        role.child("apiGroup").one_of(&mut errors, &[GROUP]);
    }
    let kinds: &[&str] = if cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
    role.child("kind").one_of(&mut errors, kinds);
    if !role.child("name").text().is_empty() {
        role.child("name").format(&mut errors, names::path_segment);
    }
    for subject in root.items("subjects") {
        validate_subject(&subject, cluster, &mut errors);
    }
    // Declared rules speak last.
    for subject in root.items("subjects") {
        subject.child("name").required(&mut errors, "");
    }
    role.child("name").required(&mut errors, "");
    errors
}

fn validate_subject(subject: &Node<'_>, cluster: bool, errors: &mut ErrorList) {
    let (name, group) = (subject.child("name"), subject.child("apiGroup"));
    match subject.child("kind").text() {
        "ServiceAccount" => {
            if !name.text().is_empty() {
                name.format(errors, names::dns1123_subdomain);
            }
            if !group.text().is_empty() {
                errors.push(Error::not_supported(&group.path, group.text(), &[""]));
            }
            // In a RoleBinding, an account without a namespace is one of the binding's own.
            if cluster && subject.child("namespace").text().is_empty() {
                subject.child("namespace").missing(errors, "");
            }
        }
        "User" | "Group" => {
            if group.text() != GROUP {
                errors.push(Error::not_supported(&group.path, group.text(), &[GROUP]));
            }
        }
        _ => {
            subject.child("kind").one_of(errors, &["ServiceAccount", "User", "Group"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, updated};
    use api::field::join;

    #[test]
    fn roles() {
        for (rule, cluster, expected) in [
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}), false, "[]"),
            (
                json!({"verbs": []}),
                false,
                "[rules[0].apiGroups: Required value: resource rules must supply at least one api group, rules[0].resources: Required value: resource rules must supply at least one resource, rules[0].verbs: Required value]",
            ),
            (
                json!({"verbs": ["get"], "nonResourceURLs": ["/x"]}),
                false,
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ),
            (json!({"verbs": ["get"], "nonResourceURLs": ["/x"]}), true, "[]"),
        ] {
            assert_eq!(join(&validate_role(&json!({"rules": [rule]}), cluster)), expected, "{rule}");
        }
    }

    #[test]
    fn bindings() {
        let mut binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]});
        Binding { cluster: false }.defaults(&mut binding);
        assert_eq!(join(&validate_binding(&binding, false)), "[]");
        assert_eq!(
            join(&validate_binding(&binding, true)),
            "[roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\", subjects[1].namespace: Required value]"
        );
    }

    #[test]
    fn bindings_refused() {
        let with =
            |role: Value, subjects: Value| json!({"metadata": {"name": "b"}, "roleRef": role, "subjects": subjects});
        let role = json!({"kind": "Role", "name": "r"});
        for (binding, expected) in [
            (
                with(json!({"kind": "X", "apiGroup": "y"}), json!([])),
                "[roleRef.apiGroup: Unsupported value: \"y\": supported values: \"rbac.authorization.k8s.io\", \
                 roleRef.kind: Unsupported value: \"X\": supported values: \"Role\", \"ClusterRole\", roleRef.name: Required value]",
            ),
            (
                with(
                    role.clone(),
                    json!([{"kind": "Robot"}, {"kind": "ServiceAccount", "name": "a", "apiGroup": "g"}]),
                ),
                "[subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\", \
                 subjects[1].apiGroup: Unsupported value: \"g\": supported values: \"\", subjects[0].name: Required value]",
            ),
        ] {
            let mut binding = binding;
            Binding { cluster: false }.defaults(&mut binding);
            assert_eq!(join(&validate_binding(&binding, false)), expected);
        }
        let (old, new) = (with(role, json!([])), with(json!({"kind": "Role", "name": "s"}), json!([])));
        assert_eq!(
            updated(&Binding { cluster: false }, &old, &new),
            "roleRef: Invalid value: {\"APIGroup\":\"rbac.authorization.k8s.io\",\"Kind\":\"Role\",\"Name\":\"s\"}: cannot change roleRef"
        );
        let shown = with(
            json!({"kind": "Role", "name": "r"}),
            json!([{"kind": "User", "name": "u"}, {"kind": "User", "name": "v"}, {"kind": "Group", "name": "g"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]),
        );
        assert_eq!(cells(&Binding { cluster: false }, &shown, "2026-01-01T00:00:00Z"), "b|Role/r|<unknown>|u, v|g|n/s");
    }
}
