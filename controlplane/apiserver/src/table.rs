//! `Table` and `PartialObjectMetadata`: views derived from stored objects, never stored.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resource::{Column, Descriptor, Hooks};

/// What of the object goes with each row: `includeObject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Include::Metadata),
            "None" => Some(Include::None),
            "Object" => Some(Include::Object),
            _ => None,
        }
    }
}

/// The columns a version is shown with.
pub fn columns<'a>(descriptor: &'a Descriptor, group: &str, version: &str) -> &'a [Column] {
    descriptor.find_served(group, version).and_then(|served| served.columns.as_deref()).unwrap_or(&descriptor.columns)
}

fn column_definitions(columns: &[Column]) -> Value {
    let definition = |column: &Column| {
        json!({
            "name": column.name, "type": column.type_, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    };
    columns.iter().map(definition).collect()
}

pub fn table(columns: &[Column], rows: Vec<Value>, metadata: &Value, version: &str) -> Value {
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
        "columnDefinitions": column_definitions(columns), "rows": rows,
    })
}

/// One row. `object` is what the cells are made from (hub version); `shown` goes along with it, in
/// the version asked for.
pub fn row(hooks: &dyn Hooks, object: &Value, shown: Value, include: Include, now: Timestamp, version: &str) -> Value {
    let mut row = row_of(hooks.row(object, now), shown, include, version);
    let conditions = hooks.row_conditions(object);
    if !conditions.is_null() {
        row["conditions"] = conditions;
    }
    row
}

pub fn row_of(cells: Vec<Value>, shown: Value, include: Include, version: &str) -> Value {
    let mut row = json!({ "cells": cells });
    match include {
        Include::None => {}
        Include::Metadata => row["object"] = partial(shown, version),
        Include::Object => row["object"] = shown,
    }
    row
}

/// The object's metadata alone.
pub fn partial(mut object: Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"].take(),
    })
}
