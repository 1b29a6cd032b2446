//! A CustomResourceDefinition as a [`Resource`]: its descriptor, and hooks driven by its schema.

use std::sync::Arc;

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

use super::jsonpath;
use crate::resource::{Column, Context, Descriptor, Hooks, NameRule, ScalePaths, SelectableField, Served, Text, since};
use crate::schema::Schema;
pub use crate::schema::constraints::Constraints;

/// What a definition serves.
pub struct Custom {
    pub descriptor: Descriptor,
    /// In the order of `descriptor.served`.
    pub schemas: Vec<Option<Schema>>,
}

fn owned(value: &Value) -> Text {
    value.as_str().unwrap_or_default().to_owned().into()
}

fn list(value: &Value) -> Vec<Text> {
    value.as_array().into_iter().flatten().map(owned).collect()
}

/// Reads a definition whose form was validated. `names` are the accepted ones.
pub fn read(definition: &Value, names: &Value) -> Option<Custom> {
    let spec = &definition["spec"];
    let group = spec["group"].as_str()?.to_owned();
    let versions: Vec<&Value> = spec["versions"].as_array()?.iter().collect();
    let hub = versions.iter().position(|version| version["storage"] == true)?;
    let served = versions.iter().map(|version| served(&group, version)).collect();
    let hub_version = versions[hub];
    let schemas = versions
        .iter()
        .map(|version| {
            let schema = &version["schema"]["openAPIV3Schema"];
            schema.is_object().then(|| Schema::from_openapi(schema))
        })
        .collect();
    let mut descriptor = Descriptor::new("", "", "", "");
    descriptor.served = served;
    descriptor.hub = hub;
    descriptor.kind = owned(&names["kind"]);
    descriptor.list_kind = owned(&names["listKind"]);
    descriptor.plural = owned(&names["plural"]);
    descriptor.singular = owned(&names["singular"]);
    descriptor.short_names = list(&names["shortNames"]);
    descriptor.categories = list(&names["categories"]);
    descriptor.namespaced = spec["scope"] == "Namespaced";
    descriptor.status = hub_version["subresources"]["status"].is_object();
    descriptor.scale = scale(&hub_version["subresources"]["scale"]);
    descriptor.storage_prefix = format!("{group}/{}", descriptor.plural).into();
    descriptor.selectable = selectable(hub_version);
    descriptor.columns = columns(hub_version);
    descriptor.generation = true;
    descriptor.name_rule = NameRule::DnsSubdomain;
    descriptor.custom = true;
    descriptor.returns_deleted = false;
    descriptor.create_on_update = false;
    descriptor.unconditional_update = false;
    Some(Custom { descriptor, schemas })
}

fn served(group: &str, version: &Value) -> Served {
    let name = owned(&version["name"]);
    let deprecation = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
        Some(text) => text.to_owned().into(),
        None => format!("{group}/{name} is deprecated").into(),
    });
    Served {
        group: group.to_owned().into(),
        version: name,
        deprecation,
        served: version["served"] == true,
        columns: Some(columns(version)),
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
    columns.extend(given.iter().map(|column| Column {
        name: owned(&column["name"]),
        type_: owned(&column["type"]),
        format: owned(&column["format"]),
        description: owned(&column["description"]),
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
            match (&*column.type_, found) {
                ("date", found) => since(found, now),
                ("string", Value::String(_)) | ("integer" | "number" | "boolean", _) => found.clone(),
                ("string", other) => other.to_string().into(),
                (_, other) => other.clone(),
            }
        })
        .collect()
}

/// Hooks of a custom resource: all it has to say is in its schema.
pub struct SchemaHooks {
    pub schema: Option<Schema>,
    pub constraints: Option<Arc<Constraints>>,
    pub columns: Vec<Column>,
}

impl Hooks for SchemaHooks {
    fn defaults(&self, object: &mut Value) {
        if let Some(Schema::Custom(schema)) = &self.schema {
            schema.fill_defaults(object);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, object: &Value) -> ErrorList {
        self.constraints.as_ref().map(|constraints| constraints.validate(object, None)).unwrap_or_default()
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        self.constraints.as_ref().map(|constraints| constraints.validate(new, Some(old))).unwrap_or_default()
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        self.validate_update(ctx, new, old)
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        cells(&self.columns, object, now)
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
        let custom = read(&definition, &names).unwrap();
        let descriptor = custom.descriptor;
        assert_eq!((descriptor.hub_version(), &*descriptor.plural, descriptor.status), ("v1", "crons", true));
        assert_eq!(descriptor.key("a", "b"), "/registry/example.com/crons/a/b");
        assert_eq!(descriptor.selectable[0].label, "spec.color");
        assert_eq!(descriptor.served[0].deprecation.as_deref(), Some("example.com/v1beta1 is deprecated"));
        let object =
            json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"color": "red"}});
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(cells(&descriptor.columns, &object, now), [json!("x"), json!("red"), json!("60s")]);
    }
}
