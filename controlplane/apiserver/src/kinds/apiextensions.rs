//! The `apiextensions.k8s.io` group: CustomResourceDefinition. What a definition means is worked
//! out where custom resources are served; here is what a sound one looks like.

use api::field::{Error, ErrorList, Path};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Node, Seen};
use super::table::{created_at_columns, created_at_row};
use super::value::{default, default_text, ensure_list, flag, has, list, name, set, text};
use crate::resource::{Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(created_at_columns()), Definition)]
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
        validate(definition)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new);
        for field in ["spec.group", "spec.names.plural", "spec.scope", "spec.names.kind"] {
            // Before it was established nothing depends on it but the name.
            let established = list(old, "status.conditions")
                .iter()
                .any(|c| text(c, "type") == "Established" && text(c, "status") == "True");
            if established || matches!(field, "spec.group" | "spec.names.plural") {
                Node::root(new).child(field).immutable(&mut errors, &Node::root(old).child(field));
            }
        }
        stored_versions(new, &mut errors);
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        if ctx.subresource == "status" {
            stored_versions(new, &mut errors);
        }
        errors
    }

    fn delete_finalizers(&self) -> &'static [&'static str] {
        &["customresourcecleanup.apiextensions.k8s.io"]
    }

    fn row(&self, definition: &Value, _now: Timestamp) -> Vec<Value> {
        created_at_row(definition)
    }
}

fn storage_version(definition: &Value) -> Option<String> {
    list(definition, "spec.versions")
        .iter()
        .find(|version| flag(version, "storage"))
        .map(|version| text(version, "name").to_owned())
}

/// Versions that objects are stored in must be known, and be the storage version among them.
fn stored_versions(definition: &Value, errors: &mut ErrorList) {
    let known: Vec<&str> = list(definition, "spec.versions").iter().map(|version| text(version, "name")).collect();
    for stored in Node::root(definition).items("status.storedVersions") {
        if !known.contains(&stored.text()) {
            stored.invalid(errors, "missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in it and removes it from status.storedVersions".replace("v1 was", &format!("{} was", stored.text())));
        }
    }
}

fn validate(definition: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(definition).child("spec");
    let (group, plural) = (spec.child("group"), spec.child("names.plural"));
    let wanted = format!("{}.{}", plural.text(), group.text());
    if name(definition) != wanted {
        errors.push(Error::invalid(
            &Path::root("metadata").child("name"),
            name(definition),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if group.required(&mut errors, "")
        && group.format(&mut errors, names::dns1123_subdomain)
        && !group.text().contains('.')
    {
        group.invalid(&mut errors, "should be a domain with at least one dot");
    }
    spec.child("scope").required_one_of(&mut errors, &["Cluster", "Namespaced"]);
    kind_names(&spec, &mut errors);
    versions(&spec, &mut errors);
    conversion(&spec.child("conversion"), &mut errors);
    approved(definition, &mut errors);
    errors
}

fn kind_names(spec: &Node<'_>, errors: &mut ErrorList) {
    for (field, lower) in [("plural", true), ("singular", true), ("kind", false), ("listKind", false)] {
        let given = spec.child("names").child(field);
        if !given.required(errors, "") {
            continue;
        }
        let checked = if lower { given.text().to_owned() } else { given.text().to_lowercase() };
        if let Some(problem) = names::dns1035_label(&checked) {
            given.invalid(
                errors,
                if lower { problem } else { format!("may have mixed case, but should otherwise match: {problem}") },
            );
        }
    }
    if !spec.child("names.kind").text().is_empty()
        && spec.child("names.kind").text() == spec.child("names.listKind").text()
    {
        spec.child("names.listKind").invalid(errors, "kind and listKind may not be the same");
    }
    for field in ["shortNames", "categories"] {
        for given in spec.items(&format!("names.{field}")) {
            given.format(errors, names::dns1035_label);
        }
    }
}

fn versions(spec: &Node<'_>, errors: &mut ErrorList) {
    let versions = spec.items("versions");
    if versions.is_empty() {
        return spec.child("versions").missing(errors, "");
    }
    let mut seen = Seen::default();
    for version in &versions {
        let name = version.child("name");
        name.format(errors, names::dns1035_label);
        if !seen.insert(name.text()) {
            spec.child("versions").invalid(errors, "must contain unique version names");
        }
        if !version.has("schema.openAPIV3Schema") {
            version.child("schema.openAPIV3Schema").missing(errors, "schemas are required");
        } else if version.child("schema.openAPIV3Schema.type").text().is_empty() {
            version.child("schema.openAPIV3Schema.type").missing(errors, "must not be empty at the root");
        } else if version.child("schema.openAPIV3Schema.type").text() != "object" {
            version.child("schema.openAPIV3Schema.type").invalid(errors, "must be object at the root");
        }
        subresources(version, errors);
        for column in version.items("additionalPrinterColumns") {
            column.child("name").required(errors, "");
            column.child("jsonPath").required(errors, "");
            column.child("type").required_one_of(errors, &["boolean", "date", "integer", "number", "string"]);
        }
        for field in version.items("selectableFields") {
            field.child("jsonPath").required(errors, "");
        }
    }
    let stored = versions.iter().filter(|version| version.child("storage").flag()).count();
    if stored != 1 {
        spec.child("versions").invalid(errors, "must have exactly one version marked as storage version");
    }
}

fn subresources(version: &Node<'_>, errors: &mut ErrorList) {
    let scale = version.child("subresources.scale");
    if !scale.exists() {
        return;
    }
    for (field, prefix, optional) in [
        ("specReplicasPath", ".spec.", false),
        ("statusReplicasPath", ".status.", false),
        ("labelSelectorPath", "", true),
    ] {
        let path = scale.child(field);
        if path.text().is_empty() {
            if !optional {
                path.missing(errors, "");
            }
        } else if !path.text().starts_with(prefix) || !path.text().starts_with('.') {
            path.invalid(
                errors,
                format!(
                    "should be a json path under {}",
                    if prefix.is_empty() { "either .status or .spec" } else { prefix.trim_end_matches('.') }
                ),
            );
        }
    }
}

fn conversion(conversion: &Node<'_>, errors: &mut ErrorList) {
    if !conversion.exists() {
        return;
    }
    match conversion.child("strategy").text() {
        "None" => {
            if conversion.has("webhook") {
                conversion.child("webhook").forbidden(errors, "should not be set when strategy is not set to Webhook");
            }
        }
        "Webhook" => {
            let webhook = conversion.child("webhook");
            if !webhook.has("clientConfig") {
                webhook.child("clientConfig").missing(errors, "required when strategy is set to Webhook");
            }
            webhook.child("conversionReviewVersions").required(errors, "");
        }
        _ => {
            conversion.child("strategy").required_one_of(errors, &["None", "Webhook"]);
        }
    }
}

/// Groups of Kubernetes' own need its approval.
fn approved(definition: &Value, errors: &mut ErrorList) {
    const KEY: &str = "api-approved.kubernetes.io";
    let group = text(definition, "spec.group");
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")));
    if !protected {
        return;
    }
    let path = Path::root("metadata").child("annotations").key(KEY);
    match super::value::annotation(definition, KEY) {
        None | Some("") => errors.push(Error::required(&path, "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111")),
        Some(given) if given.starts_with("unapproved") || given.starts_with("http") => {}
        Some(given) => errors.push(Error::invalid(&path, given, "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    fn definition() -> Value {
        let mut object = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
        Definition.defaults(&mut object);
        object
    }

    #[test]
    fn sound_and_unsound() {
        let sound = definition();
        assert_eq!(join(&validate(&sound)), "[]");
        assert_eq!(
            (&sound["spec"]["names"]["singular"], &sound["spec"]["names"]["listKind"]),
            (&json!("widget"), &json!("WidgetList"))
        );
        for (path, value, expected) in [
            (
                "metadata.name",
                json!("x"),
                "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
            ),
            (
                "spec.scope",
                json!("x"),
                "spec.scope: Unsupported value: \"x\": supported values: \"Cluster\", \"Namespaced\"",
            ),
            (
                "spec.versions",
                json!([{"name": "v1", "storage": true}]),
                "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
            ),
            (
                "spec.conversion",
                json!({"strategy": "Webhook"}),
                "[spec.conversion.webhook.clientConfig: Required value: required when strategy is set to Webhook, spec.conversion.webhook.conversionReviewVersions: Required value]",
            ),
        ] {
            let mut changed = definition();
            set(&mut changed, path, value);
            assert_eq!(join(&validate(&changed)), expected, "{path}");
        }
        let mut two = definition();
        two["spec"]["versions"][0]["storage"] = json!(false);
        assert!(join(&validate(&two)).ends_with("must have exactly one version marked as storage version"));
    }
}
