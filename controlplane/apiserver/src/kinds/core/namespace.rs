//! Namespaces: phase and the `kubernetes` finalizer, which the namespace controller removes when
//! everything in the namespace has gone.

use api::field::{ErrorList, Path};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::Node;
use crate::kinds::meta::finalizer_name;
use crate::kinds::table::{cell, named, row, words};
use crate::kinds::value::{copy, default_text, ensure_list, ensure_map, has, name, set};
use crate::resource::{Column, Context, Hooks, Ownable};

pub struct Namespace;

impl Hooks for Namespace {
    fn defaults(&self, namespace: &mut Value) {
        let name = name(namespace).to_owned();
        if !name.is_empty() {
            ensure_map(namespace, "metadata.labels").insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
        default_text(namespace, "status.phase", "Active");
    }

    fn prepare_create(&self, _ctx: &Context<'_>, namespace: &mut Value) {
        // A generated name is there only now.
        self.defaults(namespace);
        set(namespace, "status", json!({"phase": "Active"}));
        let finalizers = ensure_list(namespace, "spec.finalizers");
        if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        copy(old, new, "spec.finalizers");
        copy(old, new, "status");
    }

    fn ownable(&self, subresource: &str) -> Option<Ownable> {
        (subresource == "finalize").then_some(Ownable::AllBut(&[&["status"]]))
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if ctx.subresource == "finalize" {
            copy(old, new, "status");
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, namespace: &Value) -> ErrorList {
        finalizers(namespace, false)
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        match ctx.subresource {
            "finalize" => finalizers(new, true),
            "status" => phase(new),
            _ => ErrorList::new(),
        }
    }

    fn begin_delete(&self, namespace: &mut Value) {
        set(namespace, "status.phase", "Terminating");
    }

    fn marks_deletion(&self) -> bool {
        true
    }

    fn holds_deletion(&self, namespace: &Value) -> bool {
        namespace["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
    }

    fn row(&self, namespace: &Value, now: Timestamp) -> Vec<Value> {
        row(namespace, now, vec![cell(namespace, "status.phase")])
    }
}

/// `indexed`: whether an error names the place in the list.
fn finalizers(namespace: &Value, indexed: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let all = Node::root(namespace).child("spec.finalizers");
    for mut finalizer in Node::root(namespace).items("spec.finalizers") {
        if !indexed {
            finalizer.path = all.path.clone();
        }
        finalizer_name(&finalizer, &mut errors);
    }
    errors
}

/// The phase says whether the namespace is being deleted, nothing else.
fn phase(namespace: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (wanted, deleted) =
        if has(namespace, "metadata.deletionTimestamp") { ("Terminating", "not empty") } else { ("Active", "empty") };
    let mut phase = Node::root(namespace).child("status.phase");
    if phase.text() != wanted {
        // The name of the Go field: upstream's own slip.
        phase.path = Path::root("status").child("Phase");
        phase.invalid_text(&mut errors, format!("may only be '{wanted}' if `deletionTimestamp` is {deleted}"));
    }
    errors
}

pub fn columns() -> Vec<Column> {
    named(vec![words("Status", "The status of the namespace")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated_sub};

    #[test]
    fn refused() {
        let with = |finalizers: Value| json!({"metadata": {"name": "n"}, "spec": {"finalizers": finalizers}});
        let wrong = "Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified";
        assert_eq!(created(&Namespace, &with(json!(["a.b/c", "kubernetes"]))), "[]");
        assert_eq!(created(&Namespace, &with(json!(["kubernetes", "x"]))), format!("spec.finalizers: {wrong}"));
        let (old, new) = (with(json!([])), with(json!(["kubernetes", "x"])));
        assert_eq!(updated_sub(&Namespace, "finalize", &old, &new), format!("spec.finalizers[1]: {wrong}"));
        for (deleted, phase, expected) in [
            (false, "Active", "[]"),
            (true, "Terminating", "[]"),
            (
                false,
                "Terminating",
                "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty",
            ),
            (
                true,
                "",
                "status.Phase: Invalid value: \"\": may only be 'Terminating' if `deletionTimestamp` is not empty",
            ),
        ] {
            let mut new = json!({"metadata": {"name": "n"}, "status": {"phase": phase}});
            if deleted {
                new["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            assert_eq!(updated_sub(&Namespace, "status", &old, &new), expected, "{new}");
        }
    }

    #[test]
    fn defaults() {
        let mut named = json!({"metadata": {"name": "n"}});
        Namespace.defaults(&mut named);
        assert_eq!(named["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
        assert_eq!(named["status"]["phase"], "Active");
        let mut generated = json!({"metadata": {"generateName": "n-"}});
        Namespace.defaults(&mut generated);
        assert_eq!(generated["metadata"].get("labels"), None);
    }
}
