//! Custom resources between their versions: by rewriting `apiVersion`, or by asking a conversion
//! webhook with a `ConversionReview`.
//!
//! Objects are stored in one version. Each served version has an endpoint of its own, whose cache
//! holds the objects as that version has them: converted when they come from the store, and back
//! when they are written. [`Converter`] does both; [`Served`] also prunes, and fills defaults in where
//! objects are read, as upstream does.
//!
//! Upstream: `k8s.io/apiextensions-apiserver/pkg/apiserver/conversion`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use api::field::{ErrorList, Path};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::cache::Decode;
use crate::cache::item::encode;
use crate::error::{ApiError, Result};
use crate::kinds::check::{Node, labels};
use crate::kinds::meta::annotations;
use crate::schema::Schema;
use crate::server::Api;
use crate::webhook::call;

/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Converts the objects of one definition.
pub struct Converter {
    /// `spec.conversion.webhook`; null: only `apiVersion` changes.
    webhook: Value,
    api: Weak<Api>,
}

impl Converter {
    pub fn new(definition: &Value, api: &Arc<Api>) -> Converter {
        let conversion = &definition["spec"]["conversion"];
        let webhook = if conversion["strategy"] == "Webhook" { conversion["webhook"].clone() } else { Value::Null };
        Converter { webhook, api: Arc::downgrade(api) }
    }

    /// The objects in version `to` (`group/version`); those that are in it already stay.
    pub async fn convert(&self, mut objects: Vec<Value>, to: &str) -> Result<Vec<Value>> {
        let other: Vec<usize> = (0..objects.len()).filter(|at| objects[*at]["apiVersion"] != to).collect();
        if other.is_empty() {
            return Ok(objects);
        }
        if self.webhook.is_null() {
            other.into_iter().for_each(|at| objects[at]["apiVersion"] = to.into());
            return Ok(objects);
        }
        let sent: Vec<&Value> = other.iter().map(|at| &objects[*at]).collect();
        let kind = shown_kind(sent[0]);
        let converted = self
            .ask(&sent, to)
            .await
            .map_err(|why| ApiError::internal(format!("conversion webhook for {kind} failed: {why}")))?;
        if converted.len() != other.len() {
            return Err(ApiError::internal(format!(
                "conversion webhook for {kind} returned {} objects, expected {}",
                converted.len(),
                other.len()
            )));
        }
        for (index, (at, new)) in other.into_iter().zip(converted).enumerate() {
            objects[at] = accepted(&objects[at], new, to).map_err(|why| {
                ApiError::internal(format!(
                    "conversion webhook for {kind} returned invalid converted object at index {index}: {why}"
                ))
            })?;
        }
        Ok(objects)
    }

    async fn ask(&self, objects: &[&Value], to: &str) -> Result<Vec<Value>, String> {
        let api = self.api.upgrade().ok_or("the server is stopping")?;
        let versions = self.webhook["conversionReviewVersions"].as_array().into_iter().flatten();
        let version = versions.filter_map(Value::as_str).find(|version| matches!(*version, "v1" | "v1beta1"));
        let version = format!("apiextensions.k8s.io/{}", version.ok_or("no supported conversion review versions")?);
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": version,
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects},
        });
        let answer = call::post(&*api, &self.webhook["clientConfig"], &review, TIMEOUT).await?;
        read(answer, &version, &uid)
    }
}

/// `example.com/v1, Kind=Widget`
fn shown_kind(object: &Value) -> String {
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    format!("{}, Kind={}", text("apiVersion"), text("kind"))
}

/// The objects in an answered review; `Err` holds upstream's words.
fn read(mut answer: Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let strict = version.ends_with("/v1");
    if strict && (answer["apiVersion"] != version || answer["kind"] != "ConversionReview") {
        return Err(format!(
            "expected webhook response of {version}, Kind=ConversionReview, got {}",
            shown_kind(&answer)
        ));
    }
    let response = answer["response"].take();
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    if strict && response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response["uid"].as_str().unwrap_or_default()));
    }
    let status = response["result"]["status"].as_str().unwrap_or_default();
    if status != "Success" {
        return Err(match response["result"]["message"].as_str().unwrap_or_default() {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_owned(),
        });
    }
    match response {
        Value::Object(mut response) => match response.remove("convertedObjects") {
            Some(Value::Array(objects)) => Ok(objects),
            _ => Ok(Vec::new()),
        },
        _ => Ok(Vec::new()),
    }
}

/// Checks one converted object: it is the same one, and of its metadata only labels and
/// annotations may have changed.
fn accepted(old: &Value, mut new: Value, to: &str) -> Result<Value, String> {
    if new["apiVersion"] != to {
        let received = new["apiVersion"].as_str().unwrap_or_default();
        return Err(format!("invalid groupVersion (expected {to}, received {received})"));
    }
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    if new["kind"] != old["kind"] {
        return Err(format!("invalid kind (expected {}, received {})", text(old, "kind"), text(&new, "kind")));
    }
    for (key, shown) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (before, after) = (text(&old["metadata"], key), text(&new["metadata"], key));
        if before != after {
            return Err(format!("must have the same {shown}: {before} != {after}"));
        }
    }
    if !new["metadata"].is_object() {
        return Err("missing metadata in converted object".to_owned());
    }
    let made = std::mem::replace(&mut new["metadata"], old["metadata"].clone());
    for key in ["labels", "annotations"] {
        let Some(metadata) = new["metadata"].as_object_mut() else { break };
        match &made[key] {
            Value::Null => drop(metadata.remove(key)),
            Value::Object(entries) => {
                if let Some((name, _)) = entries.iter().find(|(_, value)| !value.is_string()) {
                    return Err(format!("metadata.{key}[{name}] must be a string in converted object"));
                }
                // What has always been there may be as it is.
                if metadata.get(key) != Some(&made[key]) {
                    check(key, &made[key])?;
                }
                metadata.insert(key.to_owned(), made[key].clone());
            }
            _ => return Err(format!("invalid metadata.{key} in converted object")),
        }
    }
    Ok(new)
}

/// Whether these may be an object's labels or annotations.
fn check(key: &str, entries: &Value) -> Result<(), String> {
    let (mut errors, metadata) = (ErrorList::new(), Path::root("metadata"));
    if key == "labels" {
        labels(&Node::new(entries, metadata.child("labels")), &mut errors);
    } else {
        // Upstream's word for the path.
        annotations(&Node::new(entries, metadata.child("annotation")), &mut errors);
    }
    if errors.is_empty() { Ok(()) } else { Err(api::field::join(&errors)) }
}

/// What one version makes of stored objects.
pub struct Served {
    pub converter: Arc<Converter>,
    pub api_version: String,
    pub schema: Option<Schema>,
}

impl Served {
    /// Stored objects as this version has them.
    pub async fn values(&self, stored: Vec<Value>) -> Result<Vec<Value>> {
        let mut objects = self.fitted(stored).await?;
        if let Some(Schema::Custom(schema)) = &self.schema {
            objects.iter_mut().for_each(|object| schema.fill_defaults(object));
        }
        Ok(objects)
    }

    /// Objects with what this version has a place for: how they go into the store where it is the one that is
    /// stored. Defaults come when they are read.
    pub async fn fitted(&self, objects: Vec<Value>) -> Result<Vec<Value>> {
        let mut objects = self.converter.convert(objects, &self.api_version).await?;
        if let Some(Schema::Custom(schema)) = &self.schema {
            for object in &mut objects {
                schema.prune_object(object);
                schema.drop_nulls(object);
            }
        }
        Ok(objects)
    }
}

#[async_trait]
impl Decode for Served {
    async fn decode(&self, stored: Vec<Bytes>) -> Result<Vec<Bytes>> {
        let parse = |bytes: &Bytes| {
            serde_json::from_slice::<Value>(bytes)
                .map_err(|error| ApiError::internal(format!("a stored {} cannot be read: {error}", self.api_version)))
        };
        let before = stored.iter().map(parse).collect::<Result<Vec<Value>>>()?;
        let after = self.values(before.clone()).await?;
        let encoded = stored.into_iter().zip(before).zip(after).map(|((bytes, before), after)| {
            // Mostly nothing changes: then the stored bytes are what is served.
            if before == after { bytes } else { Bytes::from(encode(&after)) }
        });
        Ok(encoded.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Value {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response})
    }

    #[test]
    fn answers_are_checked_as_upstream_does() {
        let v1 = "apiextensions.k8s.io/v1";
        let good = json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{"a": 1}]});
        assert_eq!(read(answer(good), v1, "u").unwrap(), [json!({"a": 1})]);
        for (given, why) in [
            (
                json!({"kind": "X"}),
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=X",
            ),
            (answer(Value::Null), "no response provided"),
            (answer(json!({"uid": "x"})), "expected response.uid=\"u\", got \"x\""),
            (
                answer(json!({"uid": "u", "result": {"status": "Failure"}})),
                "response.result.status was 'Failure', not 'Success'",
            ),
            (answer(json!({"uid": "u", "result": {"status": "Failure", "message": "no way"}})), "no way"),
        ] {
            assert_eq!(read(given, v1, "u").unwrap_err(), why);
        }
    }

    #[test]
    fn only_labels_and_annotations_of_metadata_change() {
        let old = json!({"apiVersion": "e.com/v1", "kind": "W", "metadata": {"name": "w", "uid": "1", "labels": {"a": "b"}, "generation": 3}});
        let new = |metadata: Value| json!({"apiVersion": "e.com/v2", "kind": "W", "metadata": metadata, "spec": 1});
        let made = accepted(
            &old,
            new(json!({"name": "w", "uid": "1", "generation": 9, "annotations": {"x": "y"}})),
            "e.com/v2",
        )
        .unwrap();
        assert_eq!(made["metadata"], json!({"name": "w", "uid": "1", "annotations": {"x": "y"}, "generation": 3}));
        for (metadata, why) in [
            (json!({"name": "x", "uid": "1"}), "must have the same name: w != x"),
            (json!({"name": "w", "uid": "2"}), "must have the same UID: 1 != 2"),
            (
                json!({"name": "w", "uid": "1", "labels": {"a": 1}}),
                "metadata.labels[a] must be a string in converted object",
            ),
        ] {
            assert_eq!(accepted(&old, new(metadata), "e.com/v2").unwrap_err(), why);
        }
        assert!(accepted(&old, old.clone(), "e.com/v2").unwrap_err().starts_with("invalid groupVersion"));
    }

    #[test]
    fn labels_and_annotations_that_a_webhook_makes_are_those_that_may_be() {
        let old = json!({"apiVersion": "e.com/v1", "kind": "W", "metadata": {"name": "w", "uid": "1"}});
        let new = |metadata: Value| json!({"apiVersion": "e.com/v2", "kind": "W", "metadata": metadata});
        let bad = json!({"name": "w", "uid": "1", "labels": {"a": "b c"}});
        let why = accepted(&old, new(bad.clone()), "e.com/v2").unwrap_err();
        assert!(why.starts_with("metadata.labels: Invalid value: \"b c\": a valid label must be"), "{why}");
        let note = json!({"name": "w", "uid": "1", "annotations": {"a b": "x"}});
        let why = accepted(&old, new(note), "e.com/v2").unwrap_err();
        assert!(why.starts_with("metadata.annotation: Invalid value: \"a b\": name part must consist of"), "{why}");
        // An object that has had them is converted all the same.
        let mut stored = old.clone();
        stored["metadata"] = bad.clone();
        assert!(accepted(&stored, new(bad), "e.com/v2").is_ok());
    }
}
