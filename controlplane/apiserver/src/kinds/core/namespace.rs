//! Namespaces: phase and the `kubernetes` finalizer, which the namespace controller removes when
//! everything in the namespace has gone.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::Node;
use crate::kinds::meta::finalizer_name;
use crate::kinds::table::{cell, named, row, words};
use crate::kinds::value::{copy, ensure_list, ensure_map, name, set};
use crate::resource::{Column, Context, Hooks};

pub struct Namespace;

impl Hooks for Namespace {
    fn defaults(&self, namespace: &mut Value) {
        let name = name(namespace).to_owned();
        if !name.is_empty() {
            ensure_map(namespace, "metadata.labels").insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
    }

    fn prepare_create(&self, _ctx: &Context<'_>, namespace: &mut Value) {
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

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if ctx.subresource == "finalize" {
            let mut kept = old.clone();
            copy(new, &mut kept, "spec.finalizers");
            copy(new, &mut kept, "metadata.resourceVersion");
            *new = kept;
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, namespace: &Value) -> ErrorList {
        finalizers(namespace)
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        if ctx.subresource == "finalize" { finalizers(new) } else { ErrorList::new() }
    }

    fn begin_delete(&self, namespace: &mut Value) {
        set(namespace, "status.phase", "Terminating");
    }

    fn holds_deletion(&self, namespace: &Value) -> bool {
        namespace["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
    }

    fn row(&self, namespace: &Value, now: Timestamp) -> Vec<Value> {
        row(namespace, now, vec![cell(namespace, "status.phase")])
    }
}

fn finalizers(namespace: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for finalizer in Node::root(namespace).items("spec.finalizers") {
        finalizer_name(&finalizer, &mut errors);
    }
    errors
}

pub fn columns() -> Vec<Column> {
    named(vec![words("Status", "The status of the namespace")])
}
