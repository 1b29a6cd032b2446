//! OpenAPI version 2 as protobuf (`github.com/google/gnostic`, `openapiv2/OpenAPIv2.proto`): JSON
//! pieces to messages, by field numbers.

use serde_json::{Map, Value};

/// Collects the document's paths and definitions, each encoded at once.
#[derive(Default)]
pub struct Encoder {
    paths: Vec<u8>,
    definitions: Vec<u8>,
}

impl Encoder {
    pub fn path(&mut self, path: &str, item: &Value) {
        named(&mut self.paths, 2, path, |out| path_item(out, item));
    }

    pub fn definition(&mut self, name: &str, definition: &Value) {
        named(&mut self.definitions, 1, name, |out| schema(out, definition));
    }

    pub fn finish(self, info: &Value) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.paths.len() + self.definitions.len() + 256);
        text(&mut out, 1, "2.0");
        message(&mut out, 2, |out| {
            text(out, 1, info["title"].as_str().unwrap_or_default());
            text(out, 2, info["version"].as_str().unwrap_or_default());
        });
        bytes(&mut out, 8, &self.paths);
        bytes(&mut out, 9, &self.definitions);
        message(&mut out, 12, |out| named(out, 1, "BearerToken", |_| {}));
        message(&mut out, 13, |out| {
            named(out, 1, "BearerToken", |out| {
                message(out, 2, |out| {
                    text(out, 1, "apiKey");
                    text(out, 2, "authorization");
                    text(out, 3, "header");
                    text(out, 4, "Bearer Token authentication");
                });
            });
        });
        out
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, number: u64, value: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn text(out: &mut Vec<u8>, number: u64, value: &str) {
    if !value.is_empty() {
        bytes(out, number, value.as_bytes());
    }
}

fn flag(out: &mut Vec<u8>, number: u64, value: bool) {
    if value {
        varint(out, number << 3);
        out.push(1);
    }
}

fn message(out: &mut Vec<u8>, number: u64, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(out, number, &inner);
}

/// A map's entry: `{name = 1, value = 2}`.
fn named(out: &mut Vec<u8>, number: u64, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    message(out, number, |out| {
        text(out, 1, name);
        message(out, 2, fill);
    });
}

fn member<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn texts(out: &mut Vec<u8>, number: u64, value: &Value) {
    for item in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
        bytes(out, number, item.as_bytes());
    }
}

/// `Any {yaml = 2}`: JSON is YAML.
fn any(out: &mut Vec<u8>, value: &Value) {
    text(out, 2, &value.to_string());
}

fn extensions(out: &mut Vec<u8>, number: u64, value: &Value) {
    let members = value.as_object().into_iter().flatten();
    for (name, value) in members.filter(|(name, _)| name.starts_with("x-")) {
        named(out, number, name, |out| any(out, value));
    }
}

fn schema(out: &mut Vec<u8>, value: &Value) {
    text(out, 1, member(value, "$ref"));
    text(out, 2, member(value, "format"));
    text(out, 3, member(value, "title"));
    text(out, 4, member(value, "description"));
    if let Some(default) = value.get("default") {
        message(out, 5, |out| any(out, default));
    }
    for (key, number) in [("multipleOf", 6), ("maximum", 7), ("minimum", 9)] {
        if let Some(limit) = value[key].as_f64() {
            varint(out, number << 3 | 1);
            out.extend(limit.to_le_bytes());
        }
    }
    for (key, number) in [("exclusiveMaximum", 8), ("exclusiveMinimum", 10), ("uniqueItems", 16)] {
        flag(out, number, value[key].as_bool().unwrap_or_default());
    }
    let counts = [
        ("maxLength", 11),
        ("minLength", 12),
        ("maxItems", 14),
        ("minItems", 15),
        ("maxProperties", 17),
        ("minProperties", 18),
    ];
    for (key, number) in counts {
        if let Some(count) = value[key].as_u64() {
            varint(out, number << 3);
            varint(out, count);
        }
    }
    text(out, 13, member(value, "pattern"));
    texts(out, 19, &value["required"]);
    for allowed in value["enum"].as_array().into_iter().flatten() {
        message(out, 20, |out| any(out, allowed));
    }
    match &value["additionalProperties"] {
        Value::Bool(open) => message(out, 21, |out| {
            varint(out, 2 << 3);
            out.push(u8::from(*open));
        }),
        inner @ Value::Object(_) => message(out, 21, |out| message(out, 1, |out| schema(out, inner))),
        _ => {}
    }
    if let Some(kind) = value["type"].as_str() {
        message(out, 22, |out| text(out, 1, kind));
    }
    if value["items"].is_object() {
        message(out, 23, |out| message(out, 1, |out| schema(out, &value["items"])));
    }
    for part in value["allOf"].as_array().into_iter().flatten() {
        message(out, 24, |out| schema(out, part));
    }
    if let Some(properties) = value["properties"].as_object() {
        message(out, 25, |out| {
            for (name, property) in properties {
                named(out, 1, name, |out| schema(out, property));
            }
        });
    }
    extensions(out, 31, value);
}

fn path_item(out: &mut Vec<u8>, item: &Value) {
    let methods = [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("options", 6), ("head", 7), ("patch", 8)];
    for (method, number) in methods {
        if item[method].is_object() {
            message(out, number, |out| operation(out, &item[method]));
        }
    }
    for one in item["parameters"].as_array().into_iter().flatten() {
        message(out, 9, |out| parameter(out, one));
    }
    extensions(out, 10, item);
}

fn operation(out: &mut Vec<u8>, value: &Value) {
    texts(out, 1, &value["tags"]);
    text(out, 3, member(value, "description"));
    text(out, 5, member(value, "operationId"));
    texts(out, 6, &value["produces"]);
    texts(out, 7, &value["consumes"]);
    for one in value["parameters"].as_array().into_iter().flatten() {
        message(out, 8, |out| parameter(out, one));
    }
    let none = Map::new();
    let responses = value["responses"].as_object().unwrap_or(&none);
    message(out, 9, |out| {
        for (code, response) in responses {
            named(out, 1, code, |out| {
                message(out, 1, |out| {
                    text(out, 1, member(response, "description"));
                    if response["schema"].is_object() {
                        message(out, 2, |out| message(out, 1, |out| schema(out, &response["schema"])));
                    }
                });
            });
        }
    });
    texts(out, 10, &value["schemes"]);
    extensions(out, 13, value);
}

/// `ParametersItem {parameter = 1}`
fn parameter(out: &mut Vec<u8>, value: &Value) {
    message(out, 1, |out| match member(value, "in") {
        "body" => message(out, 1, |out| {
            text(out, 2, member(value, "name"));
            text(out, 3, "body");
            flag(out, 4, value["required"].as_bool().unwrap_or_default());
            message(out, 5, |out| schema(out, &value["schema"]));
        }),
        place => message(out, 2, |out| {
            // Query parameters have one field more in front of the type.
            let (number, shift) = if place == "query" { (3, 1) } else { (4, 0) };
            message(out, number, |out| {
                flag(out, 1, value["required"].as_bool().unwrap_or_default());
                text(out, 2, place);
                text(out, 3, member(value, "description"));
                text(out, 4, member(value, "name"));
                text(out, 5 + shift, member(value, "type"));
                flag(out, 19 + shift, value["uniqueItems"].as_bool().unwrap_or_default());
            });
        }),
    });
}
