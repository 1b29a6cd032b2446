//! What holds for the metadata of every object (`apimachinery/pkg/api/validation/objectmeta.go`).
//!
//! Used for built-in kinds and custom resources alike; the rule for the name itself is the
//! descriptor's.

use api::field::{Error, ErrorList};
use api::names;
use serde_json::Value;

use super::check::{IMMUTABLE, Node, labels};
use super::value::{self, has, text};
use crate::resource::NameRule;

/// Total bytes of all annotation keys and values.
const ANNOTATION_BYTES: usize = 256 * 1024;

/// What is wrong with `name`. `prefix`: it is a `generateName`, something will follow.
pub fn name_problems(rule: NameRule, name: &str, prefix: bool) -> Vec<String> {
    // A prefix may end with a dash: the generated part follows.
    let masked;
    let name = if prefix && name.len() > 1 && name.ends_with('-') {
        masked = format!("{}a", &name[..name.len() - 1]);
        &masked
    } else {
        name
    };
    match rule {
        NameRule::DnsSubdomain => names::dns1123_subdomain(name),
        NameRule::DnsLabel => names::dns1123_label(name),
        NameRule::PathSegment => names::path_segment(name),
        NameRule::Unchecked => Vec::new(),
    }
}

/// Metadata of an object about to be created (its name already generated).
pub fn validate_create(object: &Value, namespaced: bool, rule: NameRule) -> ErrorList {
    let mut errors = Vec::new();
    let meta = Node::root(object).child("metadata");
    if !text(meta.value, "generateName").is_empty() {
        let generate = meta.child("generateName");
        for problem in name_problems(rule, generate.text(), true) {
            generate.invalid(&mut errors, problem);
        }
    }
    let name = meta.child("name");
    if name.text().is_empty() {
        name.missing(&mut errors, "name or generateName is required");
    } else {
        for problem in name_problems(rule, name.text(), false) {
            name.invalid(&mut errors, problem);
        }
    }
    let namespace = meta.child("namespace");
    if namespaced {
        if namespace.required(&mut errors, "") {
            namespace.format(&mut errors, names::dns1123_label);
        }
    } else if !namespace.text().is_empty() {
        namespace.forbidden(&mut errors, "not allowed on this type");
    }
    generation(&meta, &mut errors);
    common(&meta, &mut errors);
    finalizers(&meta, object, &mut errors);
    errors
}

fn generation(meta: &Node<'_>, errors: &mut ErrorList) {
    if meta.has("generation") {
        meta.child("generation").non_negative(errors);
    }
}

/// Checks of created and updated metadata alike.
fn common(meta: &Node<'_>, errors: &mut ErrorList) {
    // Most objects have none of these: what is not there needs no path.
    for (field, check) in
        [("labels", labels as fn(&Node<'_>, &mut ErrorList)), ("annotations", annotations), ("ownerReferences", owners)]
    {
        if meta.has(field) {
            check(&meta.child(field), errors);
        }
    }
}

pub fn annotations(node: &Node<'_>, errors: &mut ErrorList) {
    let Some(map) = node.value.as_object() else { return };
    let mut total = 0;
    for (key, value) in map {
        for problem in names::qualified_name(&key.to_lowercase()) {
            errors.push(Error::invalid(&node.path, key.clone(), problem));
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATION_BYTES {
        errors.push(Error::too_long(&node.path, ANNOTATION_BYTES));
    }
}

fn owners(all: &Node<'_>, errors: &mut ErrorList) {
    let mut controller: Option<String> = None;
    for owner in all.each() {
        let version = owner.child("apiVersion");
        let parts: Vec<&str> = version.text().split('/').collect();
        if version.required(errors, "must not be empty") && (parts.len() > 2 || parts.last() == Some(&"")) {
            version.invalid(errors, "must be <group>/<version> or <version>");
        }
        for field in ["kind", "name", "uid"] {
            owner.child(field).required(errors, "must not be empty");
        }
        if version.text() == "v1" && owner.child("kind").text() == "Event" {
            owner.invalid(errors, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.child("controller").flag() {
            let this = format!("{}/{}", owner.child("kind").text(), owner.child("name").text());
            match &controller {
                Some(first) => all.invalid(errors, format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                )),
                None => controller = Some(this),
            }
        }
    }
}

/// `ValidateFinalizers`, and that names without a prefix are Kubernetes' own.
fn finalizers(meta: &Node<'_>, object: &Value, errors: &mut ErrorList) {
    if !meta.has("finalizers") {
        return;
    }
    let all = meta.child("finalizers");
    let items = all.each();
    for item in &items {
        for problem in names::qualified_name(item.text()) {
            errors.push(Error::invalid(&all.path, item.text(), problem));
        }
    }
    if ["orphan", "foregroundDeletion"].iter().all(|name| items.iter().any(|item| item.text() == *name)) {
        all.invalid(errors, "finalizer orphan and foregroundDeletion cannot be both set");
    }
    if is_built_in(object) {
        items.iter().for_each(|item| standard_finalizer(item, errors));
    }
}

/// Whether the object's kind is one of Kubernetes' own: finalizers of custom resources need no domain.
fn is_built_in(object: &Value) -> bool {
    let (group, version) = crate::resource::split_api_version(text(object, "apiVersion"));
    version.is_empty() || crate::schema::type_of(group, version, text(object, "kind")).is_some()
}

fn standard_finalizer(item: &Node<'_>, errors: &mut ErrorList) {
    if !item.text().contains('/') && !matches!(item.text(), "orphan" | "foregroundDeletion" | "kubernetes") {
        item.invalid(errors, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// `example.com/name`; names without a prefix are Kubernetes' own.
pub fn finalizer_name(item: &Node<'_>, errors: &mut ErrorList) {
    item.format(errors, names::qualified_name);
    standard_finalizer(item, errors);
}

/// Metadata of an update.
pub fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = Vec::new();
    let (meta, was) = (Node::root(new).child("metadata"), Node::root(old).child("metadata"));
    // A deletion starts only by DELETE; the registry keeps the old values.
    if !text(old, "metadata.deletionTimestamp").is_empty() {
        no_new_finalizers(&meta, &was, &mut errors);
    }
    if text(meta.value, "resourceVersion").is_empty() {
        errors.push(Error::invalid(&meta.child("resourceVersion").path, "", "must be specified for an update"));
    }
    generation(&meta, &mut errors);
    if value::int(meta.value, "generation") < value::int(was.value, "generation") {
        meta.child("generation").invalid(&mut errors, "must not be decremented");
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if has(was.value, field) || has(meta.value, field) {
            meta.child(field).immutable_because(&mut errors, &was.child(field), IMMUTABLE);
        }
    }
    common(&meta, &mut errors);
    finalizers(&meta, new, &mut errors);
    errors
}

fn no_new_finalizers(meta: &Node<'_>, was: &Node<'_>, errors: &mut ErrorList) {
    let before = value::texts(was.value, "finalizers");
    let mut added: Vec<&str> =
        value::texts(meta.value, "finalizers").into_iter().filter(|f| !before.contains(f)).collect();
    added.sort_unstable();
    added.dedup();
    // As Go prints a slice of strings.
    let quoted = |names: &[&str]| names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if !added.is_empty() {
        meta.child("finalizers").forbidden(
            errors,
            format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                quoted(&added)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn names_of_created_objects() {
        for (meta, namespaced, rule, error) in [
            (json!({"name": "a.b", "namespace": "x"}), true, NameRule::DnsSubdomain, ""),
            (
                json!({"name": "a.b"}),
                false,
                NameRule::DnsLabel,
                "metadata.name: Invalid value: \"a.b\": must not contain dots",
            ),
            (json!({"name": "system:x"}), false, NameRule::PathSegment, ""),
            (json!({"name": "a", "generateName": "a-"}), false, NameRule::DnsSubdomain, ""),
            (
                json!({"namespace": "x"}),
                true,
                NameRule::DnsSubdomain,
                "metadata.name: Required value: name or generateName is required",
            ),
            (json!({"name": "a"}), true, NameRule::DnsSubdomain, "metadata.namespace: Required value"),
            (
                json!({"name": "a", "namespace": "b"}),
                false,
                NameRule::DnsSubdomain,
                "metadata.namespace: Forbidden: not allowed on this type",
            ),
            (
                json!({"name": "a", "labels": {"-": "x"}}),
                false,
                NameRule::DnsSubdomain,
                "metadata.labels: Invalid value: \"-\": name part",
            ),
            (
                json!({"name": "a", "finalizers": ["x"]}),
                false,
                NameRule::DnsSubdomain,
                "metadata.finalizers[0]: Invalid value: \"x\": name is neither",
            ),
        ] {
            let found = join(&validate_create(&json!({"metadata": meta}), namespaced, rule));
            assert!(if error.is_empty() { found == "[]" } else { found.contains(error) }, "{meta}: {found}");
        }
    }

    #[test]
    fn finalizers_of_custom_resources_need_no_domain() {
        let object = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a", "finalizers": ["cleanup"]}});
        assert_eq!(join(&validate_create(&object, false, NameRule::DnsSubdomain)), "[]");
    }

    #[test]
    fn updates() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}});
        let mut new = old.clone();
        assert_eq!(validate_update(&new, &old), []);
        new["metadata"]["uid"] = json!("2");
        new["metadata"]["finalizers"] = json!(["a/b", "c/d"]);
        assert_eq!(
            join(&validate_update(&new, &old)),
            "[metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}, \
             metadata.uid: Invalid value: \"2\": field is immutable]"
        );
        let old = json!({"metadata": {"name": "a", "resourceVersion": "5"}});
        let mut new = old.clone();
        new["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        new["metadata"]["finalizers"] = json!(["a b", "orphan", "foregroundDeletion"]);
        let found = join(&validate_update(&new, &old));
        for wanted in [
            "metadata.deletionTimestamp: Invalid value: \"2026-01-01T00:00:00Z\": field is immutable",
            "metadata.finalizers: Invalid value: \"a b\": name part must consist of",
            "finalizer orphan and foregroundDeletion cannot be both set",
        ] {
            assert!(found.contains(wanted), "{found}");
        }
    }
}
