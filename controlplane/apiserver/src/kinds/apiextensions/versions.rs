//! What a version of a definition says: its schema and columns, fields and subresources.

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::Value;

use super::schema;
use crate::kinds::check::{Node, Seen};
use crate::kinds::value::{list, text};

pub fn validate(spec: &Node<'_>, old: Option<&Value>, errors: &mut ErrorList) {
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
