//! `scale`: the number of replicas of any resource that has one, as an `autoscaling/v1` `Scale`.

use api::field::{Error, Path};
use api::selector::Selector;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::patch::{Patch, PatchType};
use super::write::Change;
use super::{Call, subresource};
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::negotiate::View;
use crate::http::pipeline::Asked;
use crate::http::{render, resources};
use crate::resource::{Column, GroupVersionKind, ScalePaths, age, at, set_at};
use crate::{patch, schema, table};

fn kind() -> GroupVersionKind {
    GroupVersionKind::new("autoscaling", "v1", "Scale")
}

pub async fn handle(asked: &Asked, call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let paths = call.descriptor().scale.clone().ok_or_else(ApiError::no_such_path)?;
    let scale = match call.info.verb.as_str() {
        "get" => {
            let object = call.served(call.get_item().await?.decode())?;
            if lacks_replicas(call, &object, &paths) {
                let path = spec_path(&paths);
                return Err(ApiError::internal(format!("the spec replicas field {path:?} does not exist")));
            }
            scale_of(&object, &paths)
        }
        "update" => {
            let wanted = subresource::decode(asked, call, body, &kind())?;
            changed(call, &ScaleChange { paths: paths.clone(), how: How::Replace(wanted) }, &paths).await?
        }
        "patch" => {
            let patch = resources::decode_patch(asked, call, body)?;
            changed(call, &ScaleChange { paths: paths.clone(), how: How::Patch(patch) }, &paths).await?
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    shown(asked, call, scale)
}

/// A scale in the view asked for.
fn shown(asked: &Asked, call: &Call, scale: Value) -> Result<Response<Body>> {
    let output = asked.output(true, true)?;
    let value = match output.view {
        View::Object => scale,
        View::Metadata { version, .. } => table::partial(scale, version),
        View::Table { version } => {
            let metadata = json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
            let row = table::row_of(cells(&scale, call.now), scale, call.include()?, version);
            table::table(&columns(), vec![row], &metadata, version)
        }
    };
    Ok(resources::ok(StatusCode::OK, &output, render::encode(&value, &output)?, asked))
}

fn columns() -> [Column; 4] {
    let mut name = Column::name();
    name.format = "".into();
    [
        name,
        Column::new("Desired", "integer", "replicas is the desired number of instances for the scaled object."),
        Column::new(
            "Available",
            "integer",
            "replicas is the actual number of observed instances of the scaled object.",
        ),
        Column::age(),
    ]
}

fn cells(scale: &Value, now: Timestamp) -> Vec<Value> {
    let count = |path: &str| at(scale, path).as_i64().unwrap_or(0).into();
    vec![scale["metadata"]["name"].clone(), count("spec.replicas"), count("status.replicas"), age(scale, now)]
}

/// Whether a custom resource says nothing of its replicas: that is not none of them.
fn lacks_replicas(call: &Call, object: &Value, paths: &ScalePaths) -> bool {
    call.descriptor().custom && at(object, &paths.spec_replicas).is_null()
}

/// As the definition writes it.
fn spec_path(paths: &ScalePaths) -> String {
    format!(".{}", paths.spec_replicas)
}

async fn changed(call: &Call, change: &ScaleChange, paths: &ScalePaths) -> Result<Value> {
    let written = call.update(change).await?;
    Ok(scale_of(&call.served(written.value)?, paths))
}

/// The `Scale` of an object.
fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let metadata = &object["metadata"];
    let mut kept = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata[key].is_null() {
            kept.insert(key.to_owned(), metadata[key].clone());
        }
    }
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept,
        "spec": {}, "status": {"replicas": at(object, &paths.status_replicas).as_i64().unwrap_or(0)},
    });
    if let Some(replicas) = at(object, &paths.spec_replicas).as_i64() {
        scale["spec"]["replicas"] = replicas.into();
    }
    if let Some(selector) = paths.selector.as_deref().map(|path| selector_text(at(object, path))) {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// A selector as query text: it may be text, a `LabelSelector`, or a plain map of labels.
fn selector_text(selector: &Value) -> String {
    let Some(map) = selector.as_object() else { return selector.as_str().unwrap_or_default().to_owned() };
    let plain = !map.contains_key("matchLabels") && !map.contains_key("matchExpressions");
    let wrapped = if plain { json!({"matchLabels": selector}) } else { selector.clone() };
    Selector::from_json(Some(&wrapped)).map(|selector| selector.to_string()).unwrap_or_default()
}

fn check_replicas(replicas: i64, name: &str) -> Result<()> {
    if replicas >= 0 {
        return Ok(());
    }
    let error = Error::invalid(&Path::root("spec").child("replicas"), replicas, "must be greater than or equal to 0");
    Err(ApiError::invalid("autoscaling", "Scale", name, &[error]))
}

struct ScaleChange {
    paths: ScalePaths,
    how: How,
}

enum How {
    Replace(Value),
    Patch(Patch),
}

#[async_trait]
impl Change for ScaleChange {
    async fn apply(&self, call: &Call, old: Option<&Value>) -> Result<Option<Value>> {
        let Some(old) = old else { return Ok(None) };
        let scale = match &self.how {
            How::Patch(patch) if patch.kind == PatchType::Apply => {
                return self.applied(call, patch, old).await.map(Some);
            }
            How::Replace(scale) => scale.clone(),
            How::Patch(patch) => self.patched(call, patch, old)?,
        };
        let name = &call.info.name;
        if scale["metadata"]["name"].as_str().is_some_and(|own| !own.is_empty() && own != name) {
            let own = scale["metadata"]["name"].as_str().unwrap_or_default();
            return Err(ApiError::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        check_replicas(replicas, name)?;
        let mut new = old.clone();
        set_at(&mut new, &self.paths.spec_replicas, replicas.into());
        // The client's precondition, or none.
        for key in ["resourceVersion", "uid"] {
            let wanted = scale["metadata"][key].as_str().unwrap_or_default();
            if wanted.is_empty() {
                super::metadata::metadata_mut(&mut new)?.remove(key);
            } else {
                new["metadata"][key] = wanted.into();
            }
        }
        Ok(Some(new))
    }

    fn retries(&self) -> bool {
        matches!(self.how, How::Patch(_))
    }

    fn options_kind(&self) -> &'static str {
        if self.retries() { "PatchOptions" } else { "UpdateOptions" }
    }
}

impl ScaleChange {
    /// Applies the replicas of a Scale to the object that they are of: its manager owns that field,
    /// by way of the subresource.
    async fn applied(&self, call: &Call, patch: &Patch, old: &Value) -> Result<Value> {
        let mut scale = patch.document.clone();
        patch::apply::check_kind(&scale, &kind())?;
        subresource::normalize(call, &mut scale, &kind(), patch.duplicates.clone())?;
        let served = call.kind();
        let mut config = json!({"apiVersion": served.api_version(), "kind": served.kind, "metadata": {}});
        for key in ["name", "namespace"] {
            config["metadata"][key] = old["metadata"][key].clone();
        }
        super::metadata::check_name(&mut scale, &call.info.name)?;
        let replicas = &patch.document["spec"]["replicas"];
        if !replicas.is_null() {
            check_replicas(replicas.as_i64().unwrap_or(0), &call.info.name)?;
            set_at(&mut config, &self.paths.spec_replicas, replicas.clone());
        }
        let version = served.api_version();
        let mut new = patch::apply::apply(&call.owners(&version), Some(old), &config, call.options.force).await?;
        // The version read is no precondition unless the Scale made it one.
        match scale["metadata"]["resourceVersion"].as_str().unwrap_or_default() {
            "" => drop(super::metadata::metadata_mut(&mut new)?.remove("resourceVersion")),
            version => new["metadata"]["resourceVersion"] = version.into(),
        }
        Ok(new)
    }

    /// The Scale of `old`, patched.
    fn patched(&self, call: &Call, patch: &Patch, old: &Value) -> Result<Value> {
        let scale = &scale_of(old, &self.paths);
        let mut patched = match patch.kind {
            PatchType::Json => patch::json(scale, &patch.document)?,
            PatchType::Merge => patch::merge(scale, &patch.document)?,
            PatchType::Strategic => match schema::lookup(&kind()) {
                Some(schema) => patch::strategic(&schema, scale, &patch.document)?,
                None => patch::merge(scale, &patch.document)?,
            },
            // Applied to the object itself, see `applied`.
            PatchType::Apply => scale.clone(),
        };
        if lacks_replicas(call, old, &self.paths) && patched["spec"]["replicas"].is_null() {
            let path = spec_path(&self.paths);
            return Err(ApiError::bad_request(format!("the spec replicas field {path:?} cannot be empty")));
        }
        // The version read is no precondition unless the patch made it one.
        if patch.document["metadata"]["resourceVersion"].is_null() && patch.kind != PatchType::Json {
            super::metadata::metadata_mut(&mut patched)?.remove("resourceVersion");
        }
        subresource::normalize(call, &mut patched, &kind(), Vec::new())?;
        Ok(patched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_replicas_and_selector() {
        let paths = ScalePaths {
            spec_replicas: "spec.replicas".into(),
            status_replicas: "status.replicas".into(),
            selector: Some("spec.selector".into()),
        };
        let object = json!({"metadata": {"name": "web", "namespace": "a", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 2}});
        let scale = scale_of(&object, &paths);
        assert_eq!(scale["spec"], json!({"replicas": 3}));
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=web"}));
        assert_eq!(scale["metadata"], json!({"name": "web", "namespace": "a"}));
        assert_eq!(cells(&scale, Timestamp::UNIX_EPOCH), [json!("web"), json!(3), json!(2), json!("<unknown>")]);
        assert_eq!(columns().len(), 4);
        assert_eq!(selector_text(&json!({"app": "web"})), "app=web");
        assert_eq!(selector_text(&json!("a in (b)")), "a in (b)");
    }
}
