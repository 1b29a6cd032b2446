//! A CustomResourceDefinition as a resource: its descriptor, and the cells of its tables. What its
//! schema demands of objects is in [`super::hooks`].

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::jsonpath;
use crate::discovery::version_priority;
use crate::resource::{self, Column, Descriptor, NameRule, ScalePaths, SelectableField, Text, since};
use crate::schema::Schema;
use crate::schema::constraints::Constraints;

/// What a definition serves in one version.
pub struct Custom {
    pub descriptor: Descriptor,
    pub schema: Option<Schema>,
    pub constraints: Option<Arc<Constraints>>,
}

fn owned(value: &Value) -> Text {
    value.as_str().unwrap_or_default().to_owned().into()
}

fn list(value: &Value) -> Vec<Text> {
    value.as_array().into_iter().flatten().map(owned).collect()
}

/// Reads a definition whose form was validated: one resource for each of its versions, those that
/// are not served included. `names` are the accepted ones.
pub fn read(definition: &Value, names: &Value) -> Option<Vec<Custom>> {
    let versions = definition["spec"]["versions"].as_array()?;
    let storage = owned(&versions.iter().find(|version| version["storage"] == true)?["name"]);
    let mut compiled: Vec<(&Value, Schema, Arc<Constraints>)> = Vec::new();
    let mut all = Vec::new();
    for version in versions {
        let descriptor = descriptor(&definition["spec"], names, version, &storage)?;
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            all.push(Custom { descriptor, schema: None, constraints: None });
            continue;
        }
        // Versions mostly have the same one.
        let known = compiled
            .iter()
            .find(|(known, ..)| *known == schema)
            .map(|(_, schema, rules)| (schema.clone(), rules.clone()));
        let (made, constraints) = known.unwrap_or_else(|| {
            let made = (Schema::from_openapi(schema), Arc::new(Constraints::new(schema)));
            compiled.push((schema, made.0.clone(), made.1.clone()));
            made
        });
        all.push(Custom { descriptor, schema: Some(made), constraints: Some(constraints) });
    }
    Some(all)
}

fn descriptor(spec: &Value, names: &Value, version: &Value, storage: &Text) -> Option<Descriptor> {
    let group = spec["group"].as_str()?;
    let mut descriptor = Descriptor::new("", "", "", "");
    descriptor.served = vec![served(spec, names, version)];
    descriptor.stored_as = Some(storage.clone()).filter(|storage| version["name"] != **storage);
    descriptor.kind = owned(&names["kind"]);
    descriptor.list_kind = owned(&names["listKind"]);
    descriptor.plural = owned(&names["plural"]);
    descriptor.singular = owned(&names["singular"]);
    descriptor.short_names = list(&names["shortNames"]);
    descriptor.categories = list(&names["categories"]);
    descriptor.namespaced = spec["scope"] == "Namespaced";
    descriptor.status = version["subresources"]["status"].is_object();
    descriptor.scale = scale(&version["subresources"]["scale"]);
    descriptor.storage_prefix = format!("{group}/{}", descriptor.plural).into();
    descriptor.selectable = selectable(version);
    descriptor.columns = columns(version);
    descriptor.generation = true;
    descriptor.name_rule = NameRule::DnsSubdomain;
    descriptor.custom = true;
    descriptor.returns_deleted = false;
    descriptor.create_on_update = false;
    descriptor.unconditional_update = false;
    Some(descriptor)
}

fn served(spec: &Value, names: &Value, version: &Value) -> resource::Served {
    let deprecation = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
        Some(text) => text.to_owned().into(),
        None => deprecation(spec, names, version).into(),
    });
    resource::Served {
        group: owned(&spec["group"]),
        version: owned(&version["name"]),
        deprecation,
        served: version["served"] == true,
        columns: Some(columns(version)),
    }
}

/// What is said of a deprecated version whose definition says nothing itself: which newer one to use.
fn deprecation(spec: &Value, names: &Value, version: &Value) -> String {
    let shown = |name: &Value| format!("{}/{} {}", owned(&spec["group"]), owned(name), owned(&names["kind"]));
    let rank = |version: &Value| version_priority(version["name"].as_str().unwrap_or_default());
    let others = spec["versions"].as_array().into_iter().flatten();
    let newer = others.filter(|other| other["served"] == true && other["deprecated"] != true);
    match newer.filter(|other| rank(other) > rank(version)).max_by_key(|other| rank(other)) {
        Some(newest) => format!("{} is deprecated; use {}", shown(&version["name"]), shown(&newest["name"])),
        None => format!("{} is deprecated", shown(&version["name"])),
    }
}

fn path(value: &Value) -> Option<Text> {
    value.as_str().map(|text| text.trim_start_matches('.').to_owned().into())
}

fn scale(scale: &Value) -> Option<ScalePaths> {
    Some(ScalePaths {
        spec_replicas: path(&scale["specReplicasPath"])?,
        status_replicas: path(&scale["statusReplicasPath"])?,
        selector: path(&scale["labelSelectorPath"]),
    })
}

fn selectable(version: &Value) -> Vec<SelectableField> {
    let paths =
        version["selectableFields"].as_array().into_iter().flatten().filter_map(|field| path(&field["jsonPath"]));
    paths.map(|path| SelectableField { label: path.clone(), paths: vec![path], absent: "".into() }).collect()
}

fn columns(version: &Value) -> Vec<Column> {
    let mut columns = vec![Column::name()];
    let given = version["additionalPrinterColumns"].as_array().filter(|columns| !columns.is_empty());
    let Some(given) = given else {
        let mut age = Column::age();
        age.type_ = "date".into();
        age.json_path = Some(".metadata.creationTimestamp".into());
        columns.push(age);
        return columns;
    };
    let known = given.iter().take_while(|column| jsonpath::is_path(column["jsonPath"].as_str().unwrap_or_default()));
    columns.extend(known.map(|column| Column {
        name: owned(&column["name"]),
        type_: owned(&column["type"]),
        format: owned(&column["format"]),
        description: match column["description"].as_str() {
            None | Some("") => {
                let path = column["jsonPath"].as_str().unwrap_or_default();
                format!("Custom resource definition column (in JSONPath format): {path}").into()
            }
            Some(given) => given.to_owned().into(),
        },
        priority: column["priority"].as_i64().and_then(|priority| i32::try_from(priority).ok()).unwrap_or(0),
        json_path: Some(owned(&column["jsonPath"])),
    }));
    columns
}

/// The cells of one row, from where the columns point.
pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    columns
        .iter()
        .map(|column| {
            let Some(path) = &column.json_path else { return object["metadata"]["name"].clone() };
            let Some(found) = jsonpath::find(object, path) else { return Value::Null };
            cell(&column.type_, found, now)
        })
        .collect()
}

/// A value as a column of type `kind` shows it; nothing when it is of another type.
fn cell(kind: &str, found: &Value, now: Timestamp) -> Value {
    match (kind, found) {
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) => found.clone(),
        ("string", Value::Null) => "<no value>".into(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(number)) => {
            number.as_i64().or_else(|| number.as_f64().map(|float| float as i64)).into()
        }
        ("date", Value::String(text)) if !text.is_empty() && text.parse::<Timestamp>().is_err() => "<invalid>".into(),
        ("date", Value::String(_)) => since(found, now),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_definition_becomes_a_descriptor() {
        let names = json!({"plural": "crons", "singular": "cron", "kind": "Cron", "listKind": "CronList", "shortNames": ["cr"]});
        let definition = json!({"spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [
            {"name": "v1beta1", "served": true, "storage": false, "deprecated": true, "schema": {"openAPIV3Schema": {"type": "object"}}},
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
             "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
             "selectableFields": [{"jsonPath": ".spec.color"}],
             "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"}, {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]},
        ]}});
        let mut versions = read(&definition, &names).unwrap();
        let old = versions.remove(0).descriptor;
        let descriptor = versions.remove(0).descriptor;
        assert_eq!((old.hub_version(), old.storage_version()), ("v1beta1", "v1"));
        assert_eq!((descriptor.hub_version(), &*descriptor.plural, descriptor.status), ("v1", "crons", true));
        assert_eq!(descriptor.key("a", "b"), "/registry/example.com/crons/a/b");
        assert_eq!(descriptor.selectable[0].label, "spec.color");
        let said = "example.com/v1beta1 Cron is deprecated; use example.com/v1 Cron";
        assert_eq!(old.served[0].deprecation.as_deref(), Some(said));
        let object =
            json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"color": "red"}});
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(cells(&descriptor.columns, &object, now), [json!("x"), json!("red"), json!("60s")]);
    }

    #[test]
    fn a_deprecated_version_names_a_newer_one_that_is_not() {
        let (names, old) = (json!({"kind": "Cron"}), json!({"name": "v1beta1", "deprecated": true}));
        for (others, use_) in [
            (json!([]), ""),
            (json!([{"name": "v1alpha1", "served": true}, {"name": "v1", "served": false}]), ""),
            (json!([{"name": "v1", "served": true, "deprecated": true}]), ""),
            (json!([{"name": "v2", "served": true}, {"name": "v1", "served": true}]), "; use e.com/v2 Cron"),
        ] {
            let spec = json!({"group": "e.com", "versions": others});
            assert_eq!(deprecation(&spec, &names, &old), format!("e.com/v1beta1 Cron is deprecated{use_}"));
        }
    }

    #[test]
    fn cells_of_columns() {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        for (kind, value, expected) in [
            ("string", json!("a"), json!("a")),
            ("string", json!(3), json!("3")),
            ("string", json!({"a": [1]}), json!("{\"a\":[1]}")),
            ("string", json!(null), json!("<no value>")),
            ("integer", json!(3), json!(3)),
            ("integer", json!(3.7), json!(3)),
            ("integer", json!("3"), json!(null)),
            ("number", json!(0.5), json!(0.5)),
            ("number", json!(true), json!(null)),
            ("boolean", json!(false), json!(false)),
            ("boolean", json!("true"), json!(null)),
            ("date", json!("2026-01-01T00:00:00Z"), json!("60s")),
            ("date", json!("2027-01-01T00:00:00Z"), json!("<invalid>")),
            ("date", json!("yesterday"), json!("<invalid>")),
            ("date", json!(""), json!("<unknown>")),
            ("date", json!(5), json!(null)),
        ] {
            assert_eq!(cell(kind, &value, now), expected, "{kind} {value}");
        }
        let given = json!({"additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".a"}, {"name": "B", "type": "string", "jsonPath": ".b", "description": "said"}]});
        let said: Vec<String> = columns(&given)[1..].iter().map(|column| column.description.to_string()).collect();
        assert_eq!(said, ["Custom resource definition column (in JSONPath format): .a", "said"]);
        let broken = json!({"additionalPrinterColumns": [{"name": "A", "jsonPath": ".a"}, {"name": "B", "jsonPath": ".b[\"c\"]"}, {"name": "C", "jsonPath": ".c"}]});
        let names: Vec<String> = columns(&broken).iter().map(|column| column.name.to_string()).collect();
        assert_eq!(names, ["Name", "A"], "none from the first on that has no path");
    }
}
