//! The `apiextensions.k8s.io` group: CustomResourceDefinition. What a definition means is worked
//! out where custom resources are served; here is what a sound one looks like: [`schema`] holds
//! the rules of schemas, [`structural`] those of structural ones, [`versions`] and [`conversion`] the rest.

mod conversion;
mod schema;
mod structural;
mod versions;
mod warnings;

use api::field::{Error, ErrorList, Path};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::Node;
use super::table::{boolean, created_at_columns, created_at_row, words};
use super::value::{default, default_text, ensure_list, flag, has, list, name, set, text, texts};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Definition)]
}

fn descriptor() -> Descriptor {
    let mut descriptor =
        Descriptor::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
            .cluster_scoped()
            .short(&["crd", "crds"])
            .categories(&["api-extensions"])
            .stored_under("apiextensions.k8s.io/customresourcedefinitions")
            .with_status()
            .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}

struct Definition;

impl Hooks for Definition {
    fn defaults(&self, definition: &mut Value) {
        default(definition, "spec.names", json!({}));
        let kind = text(definition, "spec.names.kind").to_owned();
        if !kind.is_empty() {
            default_text(definition, "spec.names.singular", &kind.to_lowercase());
            default_text(definition, "spec.names.listKind", &format!("{kind}List"));
        }
        default(definition, "spec.conversion", json!({"strategy": "None"}));
        if has(definition, "spec.conversion.webhook.clientConfig.service") {
            default(definition, "spec.conversion.webhook.clientConfig.service.port", 443);
        }
    }

    fn prepare_create(&self, _ctx: &Context<'_>, definition: &mut Value) {
        let stored: Vec<Value> = storage_version(definition).map(Value::from).into_iter().collect();
        set(
            definition,
            "status",
            json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}),
        );
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, _old: &Value) {
        // Objects will be stored in the new storage version from now on.
        if let Some(version) = storage_version(new) {
            let stored = ensure_list(new, "status.storedVersions");
            if !stored.iter().any(|known| *known == version) {
                stored.push(version.into());
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, definition: &Value) -> ErrorList {
        validate(definition, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_spec(new, Some(old));
        // Before it was established nothing depends on it but the name.
        let fixed = ["spec.scope", "spec.names.kind", "spec.group", "spec.names.plural"];
        for field in &fixed[if crate::crd::is_established(&old["status"]) { 0 } else { 2 }..] {
            Node::root(new).child(field).immutable(&mut errors, &Node::root(old).child(field));
        }
        stored_versions(new, &mut errors);
        approved(new, Some(old), &mut errors);
        nothing_unknown(new, Some(old), &mut errors);
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        if ctx.subresource == "status" {
            name_formats(&Node::root(new).child("status.acceptedNames"), &mut errors);
            stored_versions(new, &mut errors);
        }
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        warnings::of(new, old)
    }

    fn begin_delete(&self, definition: &mut Value) {
        let condition = (
            "Terminating",
            "True",
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon".to_owned(),
        );
        crate::crd::set_condition(&mut definition["status"], condition);
    }

    fn marks_deletion(&self) -> bool {
        true
    }

    fn delete_finalizers(&self) -> &'static [&'static str] {
        &["customresourcecleanup.apiextensions.k8s.io"]
    }

    fn row(&self, definition: &Value, _now: Timestamp) -> Vec<Value> {
        let served = list(definition, "spec.versions").iter().filter(|version| flag(version, "served"));
        let mut versions: Vec<String> = served
            .map(|version| {
                let stored = if flag(version, "storage") { "(storage)" } else { "" };
                format!("{}{stored}", text(version, "name"))
            })
            .collect();
        versions.sort_unstable();
        let mut cells = created_at_row(definition);
        cells.insert(1, text(definition, "spec.scope").into());
        cells.insert(2, versions.join(",").into());
        let wide: [Value; 4] = [
            text(definition, "spec.group").into(),
            text(definition, "spec.names.kind").into(),
            texts(definition, "spec.names.shortNames").join(",").into(),
            crate::crd::is_established(&definition["status"]).into(),
        ];
        cells.extend(wide);
        cells
    }
}

fn columns() -> Vec<Column> {
    let mut columns = created_at_columns();
    columns.insert(1, words("Scope", "Cluster/Namespaced"));
    columns.insert(2, words("Versions", "Served versions"));
    let wide = [
        words("Group", "API group"),
        words("Kind", "CustomResource kind"),
        words("ShortNames", "Short names"),
        boolean("Established", "Established status"),
    ];
    columns.extend(wide.into_iter().map(Column::wide));
    columns
}

/// What is not structural in its schemas; definitions of old may have such.
pub fn violations(definition: &Value) -> ErrorList {
    let versions = Path::root("spec").child("versions");
    let (mut errors, mut sound) = (ErrorList::new(), None);
    for (index, version) in list(definition, "spec.versions").iter().enumerate() {
        let schema = &version["schema"]["openAPIV3Schema"];
        // Versions mostly have the same one.
        if !schema.is_object() || sound == Some(schema) {
            continue;
        }
        let found = structural::validate(schema, &versions.index(index).child("schema").child("openAPIV3Schema"));
        if found.is_empty() {
            sound = Some(schema);
        }
        errors.extend(found);
    }
    errors
}

fn storage_version(definition: &Value) -> Option<String> {
    list(definition, "spec.versions")
        .iter()
        .find(|version| flag(version, "storage"))
        .map(|version| text(version, "name").to_owned())
}

/// Versions that objects are stored in must be known, and the storage version is among them.
fn stored_versions(definition: &Value, errors: &mut ErrorList) {
    let all = Node::root(definition).child("status.storedVersions");
    if all.is_empty() {
        return all.invalid(errors, "must have at least one stored version");
    }
    let stored = texts(definition, "status.storedVersions");
    let versions = list(definition, "spec.versions");
    for version in versions.iter().filter(|version| flag(version, "storage")) {
        if !stored.contains(&text(version, "name")) {
            all.invalid(errors, format!("must have the storage version {}", text(version, "name")));
        }
    }
    for stored in Node::root(definition).items("status.storedVersions") {
        let own = stored.text();
        if !versions.iter().any(|version| text(version, "name") == own) {
            stored.invalid(errors, format!("missing from spec.versions; {own} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {own} and removes {own} from status.storedVersions"));
        }
    }
}

fn validate(definition: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let wanted = format!("{}.{}", text(definition, "spec.names.plural"), text(definition, "spec.group"));
    if name(definition) != wanted {
        errors.push(Error::invalid(
            &Path::root("metadata").child("name"),
            name(definition),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    errors.extend(validate_spec(definition, old));
    approved(definition, old, &mut errors);
    nothing_unknown(definition, old, &mut errors);
    errors
}

/// Unknown fields are kept where the schema says so, not by the old switch; one that is on may stay.
fn nothing_unknown(definition: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let kept = |object: &Value| flag(object, "spec.preserveUnknownFields");
    if kept(definition) && !old.is_some_and(kept) {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(Error::invalid(&Path::root("spec").child("preserveUnknownFields"), true, why));
    }
}

fn validate_spec(definition: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(definition).child("spec");
    let group = spec.child("group");
    if group.required(&mut errors, "")
        && group.format(&mut errors, names::dns1123_subdomain)
        && !group.text().contains('.')
    {
        group.invalid(&mut errors, "should be a domain with at least one dot");
    }
    spec.child("scope").required_one_of(&mut errors, &["Cluster", "Namespaced"]);
    versions::validate(&spec, old, &mut errors);
    for field in ["plural", "singular", "kind", "listKind"] {
        spec.child("names").child(field).required(&mut errors, "");
    }
    name_formats(&spec.child("names"), &mut errors);
    conversion::validate(&spec.child("conversion"), old, &mut errors);
    errors
}

/// `ValidateCustomResourceDefinitionNames`: of a spec, and of what was accepted of it.
fn name_formats(all: &Node<'_>, errors: &mut ErrorList) {
    for (field, lower) in [("plural", true), ("singular", true), ("kind", false), ("listKind", false)] {
        let given = all.child(field);
        let checked = if lower { given.text().to_owned() } else { given.text().to_lowercase() };
        let problems = if checked.is_empty() { Vec::new() } else { names::dns1035_label(&checked) };
        for problem in problems {
            given.invalid(
                errors,
                if lower { problem } else { format!("may have mixed case, but should otherwise match: {problem}") },
            );
        }
    }
    for given in all.items("shortNames") {
        given.format(errors, names::dns1035_label);
    }
    let (kind, list_kind) = (all.child("kind"), all.child("listKind"));
    if !kind.text().is_empty() && kind.text() == list_kind.text() {
        list_kind.invalid(errors, "kind and listKind may not be the same");
    }
    for given in all.items("categories") {
        given.format(errors, names::dns1035_label);
    }
}

/// Groups of Kubernetes' own need its approval. What kind of approval there was may stay.
fn approved(definition: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    const KEY: &str = "api-approved.kubernetes.io";
    let group = text(definition, "spec.group");
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")));
    let state = |object: &Value| match super::value::annotation(object, KEY).unwrap_or("") {
        "" => 0,
        given if given.starts_with("unapproved") => 1,
        given if is_address(given) => 2,
        _ => 3,
    };
    if !protected || old.is_some_and(|old| state(old) == state(definition)) {
        return;
    }
    let path = Path::root("metadata").child("annotations").key(KEY);
    match super::value::annotation(definition, KEY) {
        None | Some("") => errors.push(Error::required(&path, "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111")),
        Some(given) if given.starts_with("unapproved") || is_address(given) => {}
        Some(given) => errors.push(Error::invalid(&path, given, "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111")),
    }
}

/// `scheme://host...`.
fn is_address(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && !rest.split(['/', '?']).next().unwrap_or("").is_empty() && !rest.contains(' ')
    })
}

#[cfg(test)]
mod tests;
