//! The `apiextensions.k8s.io` group: CustomResourceDefinition. What a definition means is worked
//! out where custom resources are served; here is what a sound one looks like: [`schema`] holds
//! the rules of schemas, [`structural`] those of structural ones.

mod schema;
mod structural;

use api::field::{Error, ErrorList, Path};
use api::names;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::admissionregistration::client_config;
use super::check::{Node, Seen};
use super::table::{created_at_columns, created_at_row};
use super::value::{default, default_text, ensure_list, flag, has, list, name, set, text, texts};
use crate::proxy::dial;
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
        validate(definition, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_spec(new, Some(old));
        // Before it was established nothing depends on it but the name.
        let established = list(old, "status.conditions")
            .iter()
            .any(|c| text(c, "type") == "Established" && text(c, "status") == "True");
        let fixed = ["spec.scope", "spec.names.kind", "spec.group", "spec.names.plural"];
        for field in &fixed[if established { 0 } else { 2 }..] {
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

    fn begin_delete(&self, definition: &mut Value) {
        let condition = (
            "Terminating",
            "True",
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon".to_owned(),
        );
        crate::crd::set_condition(&mut definition["status"], condition);
    }

    fn delete_finalizers(&self) -> &'static [&'static str] {
        &["customresourcecleanup.apiextensions.k8s.io"]
    }

    fn row(&self, definition: &Value, _now: Timestamp) -> Vec<Value> {
        created_at_row(definition)
    }
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
    versions(&spec, old, &mut errors);
    for field in ["plural", "singular", "kind", "listKind"] {
        spec.child("names").child(field).required(&mut errors, "");
    }
    name_formats(&spec.child("names"), &mut errors);
    conversion(&spec.child("conversion"), old, &mut errors);
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

fn versions(spec: &Node<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    let versions = spec.items("versions");
    if versions.is_empty() {
        spec.child("versions").invalid(errors, "must have exactly one version marked as storage version");
        return;
    }
    for version in &versions {
        if !version.has("schema.openAPIV3Schema") {
            version.child("schema.openAPIV3Schema").missing(errors, "");
        }
    }
    let mut seen = Seen::default();
    let mut twice = false;
    for version in &versions {
        let name = version.child("name");
        name.format(errors, names::dns1035_label);
        twice |= !seen.insert(name.text());
        deprecation(version, errors);
    }
    for (version, schema_path) in shared(spec, &versions, "schema", "validation") {
        let schema = version.child("schema.openAPIV3Schema");
        if !schema.exists() {
            continue;
        }
        let has_status = version.has("subresources.status");
        let before = old.and_then(|old| {
            let known = list(old, "spec.versions").iter().find(|known| known["name"] == version.value["name"])?;
            known.pointer("/schema/openAPIV3Schema")
        });
        errors.extend(schema::validate(schema.value, &schema_path.child("openAPIV3Schema"), has_status, before));
    }
    for (version, path) in shared(spec, &versions, "subresources", "subresources") {
        scale(&Node::new(version.child("subresources").value, path), errors);
    }
    for (version, path) in shared(spec, &versions, "additionalPrinterColumns", "additionalPrinterColumns") {
        let columns = list(version.value, "additionalPrinterColumns").iter().enumerate();
        columns.for_each(|(index, column)| printer_column(&Node::new(column, path.index(index)), errors));
    }
    for (version, path) in shared(spec, &versions, "selectableFields", "selectableFields") {
        selectable(&version, &path, errors);
    }
    if twice {
        spec.child("versions").invalid(errors, "must contain unique version names");
    }
    let stored = versions.iter().filter(|version| version.child("storage").flag()).count();
    if stored != 1 {
        spec.child("versions").invalid(errors, "must have exactly one version marked as storage version");
    }
}

/// The versions to look at for a field, and where messages say that it is. Upstream keeps what all
/// versions share in one place, and its messages name that.
fn shared<'a>(spec: &Node<'a>, versions: &[Node<'a>], field: &str, top: &str) -> Vec<(Node<'a>, Path)> {
    let first = &versions[0].value[field];
    if !first.is_null() && versions.iter().all(|version| version.value[field] == *first) {
        return vec![(versions[0].clone(), spec.child(top).path)];
    }
    versions.iter().map(|version| (version.clone(), version.child(field).path)).collect()
}

fn deprecation(version: &Node<'_>, errors: &mut ErrorList) {
    let warning = version.child("deprecationWarning");
    if !warning.exists() {
        return;
    }
    if !version.child("deprecated").flag() {
        return warning.invalid(errors, "can only be set for deprecated versions");
    }
    if warning.text().len() > 256 {
        warning.invalid(errors, "must be <= 256 characters long");
    }
    if warning.text().is_empty() {
        warning.invalid(errors, "must not be an empty string");
    }
    if let Some((at, _)) = warning.text().char_indices().find(|(_, c)| c.is_control()) {
        warning.invalid(
            errors,
            format!("must only contain printable UTF-8 characters; non-printable character found at index {at}"),
        );
    }
}

fn printer_column(column: &Node<'_>, errors: &mut ErrorList) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 9] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password", ""];
    column.child("name").required(errors, "");
    let (kind, format) = (column.child("type"), column.child("format"));
    let why = format!("must be one of {}", TYPES.join(","));
    if kind.text().is_empty() {
        kind.missing(errors, why);
    } else if !TYPES.contains(&kind.text()) {
        kind.invalid(errors, why);
    }
    if !FORMATS.contains(&format.text()) {
        format.invalid(errors, format!("must be one of {}", FORMATS[..8].join(",")));
    }
    let path = column.path.child("JSONPath");
    match text(column.value, "jsonPath") {
        "" => errors.push(Error::required(&path, "")),
        given if !given.starts_with('.') => {
            errors.push(Error::invalid(&path, given, "must be a simple json path starting with ."));
        }
        _ => {}
    }
}

fn selectable(version: &Node<'_>, path: &Path, errors: &mut ErrorList) {
    const MOST: usize = 8;
    let fields = list(version.value, "selectableFields");
    let schema = version.child("schema.openAPIV3Schema");
    let mut seen = Seen::default();
    let mut count = 0;
    for (index, field) in fields.iter().enumerate() {
        let (place, given) = (path.index(index).child("jsonPath"), text(field, "jsonPath"));
        if given.is_empty() {
            errors.push(Error::required(&place, ""));
            continue;
        }
        let found = match schema::field_schema(schema.value, given, false) {
            Ok(found) => found,
            Err(why) => {
                errors.push(Error::invalid(&place, given, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if given.starts_with(".metadata.") || given == ".metadata" {
            errors.push(Error::invalid(&place, given, "must not point to fields in metadata"));
        }
        if !matches!(text(found, "type"), "string" | "boolean" | "integer") {
            errors.push(Error::invalid(&place, given, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."));
        }
        count += 1;
        if !seen.insert(given) {
            errors.push(Error::duplicate(&place, given));
            count -= 1;
        }
    }
    if count > MOST {
        errors.push(Error::too_many(path, count, MOST));
    }
}

fn scale(subresources: &Node<'_>, errors: &mut ErrorList) {
    let scale = subresources.child("scale");
    if !scale.exists() {
        return;
    }
    for (field, places, required) in [
        ("specReplicasPath", &[".spec."][..], true),
        ("statusReplicasPath", &[".status."][..], true),
        ("labelSelectorPath", &[".spec.", ".status."][..], false),
    ] {
        let path = scale.child(field);
        let given = path.text();
        if given.is_empty() {
            if required {
                path.missing(errors, "");
            }
        } else if !given.starts_with('.') {
            path.invalid(errors, "must be a simple json path starting with .");
        } else if !places.iter().any(|place| given.starts_with(place)) {
            let where_to = match places {
                [one] => one.trim_end_matches('.').to_owned(),
                _ => "either .spec or .status".to_owned(),
            };
            path.invalid(errors, format!("should be a json path under {where_to}"));
        }
    }
}

/// Messages name the fields as upstream keeps them, not as `v1` has them.
fn conversion(conversion: &Node<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    if !conversion.exists() {
        return;
    }
    conversion.child("strategy").required_one_of(errors, &["None", "Webhook"]);
    let renamed = |from: &str, to: &str| Node::new(conversion.child(from).value, conversion.path.child(to));
    let config = renamed("webhook.clientConfig", "webhookClientConfig");
    let versions = renamed("webhook.conversionReviewVersions", "conversionReviewVersions");
    if conversion.child("strategy").text() != "Webhook" {
        for given in [config, versions].iter().filter(|given| given.exists() && *given.value != json!([])) {
            given.forbidden(errors, "should not be set when strategy is not set to Webhook");
        }
        return;
    }
    if config.exists() {
        client_config(&config, errors);
        let bundle = config.child("caBundle");
        if !may_be_invalid(old)
            && let Some(why) = invalid_bundle(bundle.text())
        {
            bundle.invalid(errors, why);
        }
    } else {
        config.missing(errors, "required when strategy is set to Webhook");
    }
    review_versions(&versions, old, errors);
}

/// A bundle may be as unusable as it was, and anything before the definition is established.
fn may_be_invalid(old: Option<&Value>) -> bool {
    old.is_none_or(|old| {
        !crate::crd::is_established(&old["status"])
            || invalid_bundle(text(old, "spec.conversion.webhook.clientConfig.caBundle")).is_some()
    })
}

/// Why there is no certificate in a `caBundle`.
fn invalid_bundle(bundle: &str) -> Option<String> {
    if bundle.is_empty() || dial::roots(bundle).is_ok() {
        return None;
    }
    let pem = BASE64_STANDARD.decode(bundle).unwrap_or_default();
    let pem = String::from_utf8_lossy(&pem);
    let why = match () {
        () if pem.contains("-----BEGIN CERTIFICATE-----") => "failed to parse certificate: x509: malformed certificate",
        () if pem.contains("-----BEGIN ") => "no valid certificate authority data seen",
        () => "unable to parse bytes as PEM block",
    };
    Some(format!("unable to load root certificates: {why}"))
}

fn is_known_review(version: &str) -> bool {
    matches!(version, "v1" | "v1beta1")
}

/// The forms of `ConversionReview` that the webhook understands: one of them must be known here,
/// unless none of the old ones was.
fn review_versions(all: &Node<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    let versions: Vec<&str> = all.value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if versions.is_empty() {
        return all.missing(errors, "");
    }
    let mut seen = Seen::default();
    for (index, version) in versions.iter().enumerate() {
        let value = Value::from(*version);
        let given = Node::new(&value, all.path.index(index));
        if seen.insert(*version) {
            given.format(errors, names::dns1035_label);
        } else {
            given.invalid(errors, "duplicate version");
        }
    }
    let before = old.map(|old| texts(old, "spec.conversion.webhook.conversionReviewVersions")).unwrap_or_default();
    let wanted = before.is_empty() || before.iter().any(|version| is_known_review(version));
    if wanted && !versions.iter().any(|version| is_known_review(version)) {
        all.invalid(errors, "must include at least one of v1, v1beta1");
    }
}

/// `scheme://host...`.
fn is_address(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && !rest.split(['/', '?']).next().unwrap_or("").is_empty() && !rest.contains(' ')
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
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
        assert_eq!(join(&validate(&sound, None)), "[]");
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
                "spec.versions[0].schema.openAPIV3Schema: Required value",
            ),
            (
                "spec.conversion",
                json!({"strategy": "Webhook"}),
                "[spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook, spec.conversion.conversionReviewVersions: Required value]",
            ),
        ] {
            let mut changed = definition();
            set(&mut changed, path, value);
            assert_eq!(join(&validate(&changed, None)), expected, "{path}");
        }
        let mut two = definition();
        two["spec"]["versions"][0]["storage"] = json!(false);
        assert!(join(&validate(&two, None)).ends_with("must have exactly one version marked as storage version"));
    }
    /// The errors of a definition whose one version has this schema of `spec`, and more of itself.
    fn with(spec: Value, more: &Value) -> String {
        let mut object = definition();
        let version = &mut object["spec"]["versions"][0];
        version["schema"]["openAPIV3Schema"]["properties"] = json!({"spec": spec});
        for (key, value) in more.as_object().into_iter().flatten() {
            version[key] = value.clone();
        }
        join(&validate(&object, None))
    }

    #[test]
    fn schemas_are_structural_and_sound() {
        let base = "spec.validation.openAPIV3Schema.properties[spec]";
        for (schema, expected) in [
            (json!({}), format!("{base}.type: Required value: must not be empty for specified object fields")),
            (json!({"type": "array"}), format!("{base}.items: Required value: must be specified")),
            (
                json!({"type": "text"}),
                format!(
                    "{base}.type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\""
                ),
            ),
            (
                json!({"type": "string", "pattern": "("}),
                format!("{base}.pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: "),
            ),
            (
                json!({"type": "object", "anyOf": [{"type": "object"}]}),
                format!("{base}.anyOf[0].type: Forbidden: must be empty to be structural"),
            ),
            (
                json!({"type": "integer", "default": "x"}),
                format!(
                    "{base}.default: Invalid value: \"string\": {base}.default in body must be of type integer: \"string\""
                ),
            ),
            (
                json!({"type": "object", "default": {"a": 1}}),
                format!("{base}.default: Invalid value: {{\"a\":1}}: must not have unknown fields"),
            ),
            (
                json!({"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}),
                format!(
                    "{base}.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
                ),
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
                format!(
                    "{base}.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
                ),
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
                format!(
                    "{base}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"
                ),
            ),
        ] {
            let found = with(schema.clone(), &json!({}));
            assert!(
                found.starts_with(&expected) || found.contains(&format!("[{expected}")),
                "{schema}\n{found}\n{expected}"
            );
        }
        let sound = json!({"type": "object", "properties": {
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
            "raw": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "default": ["a"]},
        }});
        assert_eq!(with(sound, &json!({})), "[]");
    }

    #[test]
    fn rules_are_compiled_typed_and_estimated() {
        let base = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]";
        let spec = |rule: &str, more: Value| {
            let mut rule_object = json!({"rule": rule});
            for (key, value) in more.as_object().into_iter().flatten() {
                rule_object[key] = value.clone();
            }
            json!({"type": "object", "x-kubernetes-validations": [rule_object], "properties": {
                "size": {"type": "integer"}, "name": {"type": "string"}, "few": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 10}},
                "many": {"type": "array", "items": {"type": "string"}}, "port": {"x-kubernetes-int-or-string": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}}, "when": {"type": "string", "format": "date-time"}}})
        };
        for rule in [
            "self.size > 3 && self.name.startsWith('a')",
            "!has(self.few) || self.few.all(x, x.size() < 4 && x.matches('^a+$'))",
            "self.few.map(x, x + 'a').exists(x, x in self.few)",
            "self.port == 3 || string(self.port) == 'a'",
            "self.labels.all(k, v, k != v) && 'a' in self.labels",
            // As the CRD of Gateway API: keys have no bound that a schema could name.
            "self.labels.all(k, k.split('/')[0].size() < 253 && k.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$'))",
            "self.when > timestamp('2020-01-01T00:00:00Z') && self.?size.orValue(2) == 2",
            "self.few.filter(x, x != 'a').size() == [1, 2].sum()",
            "quantity(self.name).isGreaterThan(quantity('1')) && oldSelf.size == self.size",
        ] {
            assert_eq!(with(spec(rule, json!({})), &json!({})), "[]", "{rule}");
        }
        for (rule, more, expected) in [
            (
                "self.sise > 3",
                json!({}),
                "compilation failed: ERROR: <input>:1:5: undefined field 'sise'\n | self.sise > 3\n | ....^",
            ),
            ("self.size == 'a'", json!({}), "found no matching overload for '_==_' applied to '(int, string)'"),
            ("self.size + 'a' == 'b'", json!({}), "found no matching overload for '_+_' applied to '(int, string)'"),
            (
                "self.size.startsWith('a')",
                json!({}),
                "found no matching overload for 'startsWith' applied to 'int.(string)'",
            ),
            ("nothing == 1", json!({}), "undeclared reference to 'nothing' (in container '')"),
            ("self.few.all(x, x > 1)", json!({}), "found no matching overload for '_>_' applied to '(string, int)'"),
            ("self.size", json!({}), "cel expression must evaluate to a bool"),
            ("self.size >", json!({}), "compilation failed: ERROR: <input>:1:12: Syntax error"),
            ("true", json!({"messageExpression": "self.size"}), "messageExpression must evaluate to a string"),
            ("true", json!({"optionalOldSelf": true}), "may not be set if oldSelf is not used in rule"),
            ("true", json!({"fieldPath": ".nothing"}), "fieldPath must be a valid path"),
            ("true", json!({"reason": "No"}), "Unsupported value: \"No\""),
            ("", json!({}), "rule: Required value: rule is not specified"),
            (
                "self.many.all(x, self.many.all(y, x == y))",
                json!({}),
                "rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
            ),
        ] {
            let found = with(spec(rule, more), &json!({}));
            assert!(found.contains(expected) && found.contains(base), "{rule}\n{found}\n{expected}");
        }
        let inside = json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}});
        assert!(with(inside, &json!({})).contains("oldSelf cannot be used on the uncorrelatable portion of the schema within spec.validation.openAPIV3Schema.properties[spec]"));
    }

    #[test]
    fn versions_say_how_they_are_shown() {
        let spec = json!({"type": "object", "properties": {"color": {"type": "string"}, "deep": {"type": "object"}}});
        for (more, expected) in [
            (
                json!({"additionalPrinterColumns": [{"name": "A", "type": "text", "jsonPath": "spec"}]}),
                "[spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string, spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting with .]",
            ),
            (
                json!({"selectableFields": [{"jsonPath": ".spec.none"}]}),
                "spec.selectableFields[0].jsonPath: Invalid value: \".spec.none\": is an invalid path: does not refer to a valid field",
            ),
            (
                json!({"selectableFields": [{"jsonPath": ".spec.deep"}]}),
                "spec.selectableFields[0].jsonPath: Invalid value: \".spec.deep\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ),
            (json!({"selectableFields": [{"jsonPath": ".spec.color"}]}), "[]"),
            (
                json!({"subresources": {"scale": {"specReplicasPath": ".status.a", "statusReplicasPath": "x", "labelSelectorPath": ".spec.a"}}}),
                "[spec.subresources.scale.specReplicasPath: Invalid value: \".status.a\": should be a json path under .spec, spec.subresources.scale.statusReplicasPath: Invalid value: \"x\": must be a simple json path starting with .]",
            ),
            (
                json!({"deprecationWarning": "x"}),
                "spec.versions[0].deprecationWarning: Invalid value: \"x\": can only be set for deprecated versions",
            ),
        ] {
            assert_eq!(with(spec.clone(), &more), expected, "{more}");
        }
    }

    #[test]
    fn names_and_stored_versions() {
        let changed = |path: &str, value: Value| {
            let mut object = definition();
            set(&mut object, path, value);
            object
        };
        for (object, expected) in [
            (definition(), "[]"),
            (
                changed("spec.scope", json!("Galaxy")),
                "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
            ),
            (
                changed("spec.names.listKind", json!("Widget")),
                "spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same",
            ),
            (
                changed("spec.versions", json!([{"name": "v1", "served": true, "storage": true}])),
                "spec.versions[0].schema.openAPIV3Schema: Required value",
            ),
        ] {
            assert_eq!(tested::created(&Definition, &object), expected);
        }
        let mut old = definition();
        set(&mut old, "status.storedVersions", json!(["v1"]));
        let with = |path: &str, value: Value| {
            let mut object = old.clone();
            set(&mut object, path, value);
            object
        };
        let status =
            |stored: Value| tested::updated_sub(&Definition, "status", &old, &with("status.storedVersions", stored));
        assert_eq!(status(json!(["v1"])), "[]");
        assert_eq!(
            status(json!([])),
            "status.storedVersions: Invalid value: []: must have at least one stored version"
        );
        assert_eq!(
            status(json!(["v0"])),
            "[status.storedVersions: Invalid value: [\"v0\"]: must have the storage version v1, \
             status.storedVersions[0]: Invalid value: \"v0\": missing from spec.versions; v0 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v0 and removes v0 from status.storedVersions]"
        );
        // Scope and kind may change until the definition is established.
        let cluster = with("spec.scope", json!("Cluster"));
        assert_eq!(tested::updated(&Definition, &old, &cluster), "[]");
        let mut established = old.clone();
        set(&mut established, "status.conditions", json!([{"type": "Established", "status": "True"}]));
        assert_eq!(
            tested::updated(&Definition, &established, &cluster),
            "spec.scope: Invalid value: \"Cluster\": field is immutable"
        );
    }

    #[test]
    fn protected_groups() {
        let of = |approval: Option<&str>| {
            let mut object = definition();
            set(&mut object, "spec.group", "x.k8s.io");
            set(&mut object, "metadata.name", "widgets.x.k8s.io");
            if let Some(approval) = approval {
                object["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": approval});
            }
            set(&mut object, "status.storedVersions", json!(["v1"]));
            object
        };
        for approval in ["https://github.com/x/y/pull/1", "unapproved, for tests"] {
            assert_eq!(tested::created(&Definition, &of(Some(approval))), "[]");
        }
        let missing = tested::created(&Definition, &of(None));
        assert!(
            missing.starts_with("metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups"),
            "{missing}"
        );
        assert!(tested::created(&Definition, &of(Some("http"))).contains("either a URL or a reason"));
        // One that is stored without approval may stay so.
        assert_eq!(tested::updated(&Definition, &of(None), &of(None)), "[]");
    }

    #[test]
    fn conversions_are_named_as_upstream_keeps_them() {
        let webhook = |bundle: &str, versions: Value| json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": versions, "clientConfig": {"url": "https://e.com/x", "caBundle": bundle}}});
        let mut established = definition();
        established["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
        let mut unusable = established.clone();
        unusable["spec"]["conversion"] = webhook("Cg==", json!(["v7"]));
        let pem = |text: &str| BASE64_STANDARD.encode(text);
        let invalid = |bundle: &str, why: &str| {
            format!(
                "spec.conversion.webhookClientConfig.caBundle: Invalid value: {bundle:?}: unable to load root certificates: {why}"
            )
        };
        let (key, broken) = (
            pem("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"),
            pem("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"),
        );
        for (old, conversion, expected) in [
            (None, webhook("Cg==", json!(["v1"])), "[]".to_owned()),
            (Some(&established), webhook("Cg==", json!(["v1"])), invalid("Cg==", "unable to parse bytes as PEM block")),
            (Some(&established), webhook(&key, json!(["v1"])), invalid(&key, "no valid certificate authority data seen")),
            (
                Some(&established),
                webhook(&broken, json!(["v1"])),
                invalid(&broken, "failed to parse certificate: x509: malformed certificate"),
            ),
            (Some(&unusable), webhook("Cg==", json!(["v8"])), "[]".to_owned()),
            (
                Some(&established),
                webhook("", json!(["v8", "v8", "-"])),
                "[spec.conversion.conversionReviewVersions[1]: Invalid value: \"v8\": duplicate version, \
                 spec.conversion.conversionReviewVersions[2]: Invalid value: \"-\": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?'), \
                 spec.conversion.conversionReviewVersions: Invalid value: [\"v8\",\"v8\",\"-\"]: must include at least one of v1, v1beta1]".to_owned(),
            ),
            (
                None,
                json!({"strategy": "None", "webhook": {"clientConfig": {"url": "https://e.com"}, "conversionReviewVersions": ["v1"]}}),
                "[spec.conversion.webhookClientConfig: Forbidden: should not be set when strategy is not set to Webhook, \
                 spec.conversion.conversionReviewVersions: Forbidden: should not be set when strategy is not set to Webhook]".to_owned(),
            ),
            (None, json!({"strategy": ""}), "spec.conversion.strategy: Required value".to_owned()),
        ] {
            let mut object = definition();
            object["spec"]["conversion"] = conversion;
            let errors = validate_spec(&object, old);
            assert_eq!(join(&errors), expected, "{}", object["spec"]["conversion"]);
        }
    }
}
