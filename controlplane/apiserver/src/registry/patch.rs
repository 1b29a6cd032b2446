//! PATCH as a [`Change`]: which kind of patch, and the owners of fields.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::Call;
use super::write::Change;
use crate::error::{ApiError, Result};
use crate::http::options::FieldValidation;
use crate::patch;
use crate::patch::apply::versions::Versions;
use crate::resource::{Ownable, api_version, split_api_version};
use crate::resources::Endpoint;
use crate::schema::Schema;
use crate::schema::normalize::json_type;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    /// Custom resources have no strategic merge.
    pub const OF_CUSTOM: &'static [&'static str] =
        &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

    pub fn parse(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
            "application/apply-patch+yaml" => Some(PatchType::Apply),
            _ => None,
        }
    }
}

/// A patch as the client sent it.
pub struct Patch {
    pub kind: PatchType,
    pub document: Value,
    /// Texts of duplicate fields, from parsing.
    pub duplicates: Vec<String>,
}

#[async_trait]
impl Change for Patch {
    async fn apply(&self, call: &Call, old: Option<&Value>) -> Result<Option<Value>> {
        if self.kind == PatchType::Apply {
            return self.apply_configuration(call, old).await.map(Some);
        }
        let Some(old) = old else { return Ok(None) };
        let kind = call.kind();
        let schema = call.endpoint.schema(&kind.group, &kind.version);
        let mut new = match self.kind {
            PatchType::Json => patch::json(old, &self.document)?,
            PatchType::Merge => patch::merge(old, &self.document)?,
            PatchType::Strategic => match schema.filter(|_| !call.descriptor().custom) {
                Some(schema) => patch::strategic(schema, old, &self.document)?,
                None => return Err(ApiError::unsupported_media_type(PatchType::OF_CUSTOM)),
            },
            PatchType::Apply => return Ok(None),
        };
        let patched = new.clone();
        let duplicates = self.own_problems();
        let problems =
            call.field_problems(&mut new, &duplicates).map_err(|error| self.undecodable(&error, &patched))?;
        match call.options.field_validation {
            FieldValidation::Strict if !problems.is_empty() => {
                return Err(self.refused(&format!("strict decoding error: {}", problems.join(", ")), &patched));
            }
            FieldValidation::Warn => problems.iter().for_each(|problem| call.warn(problem)),
            _ => {}
        }
        Ok(Some(new))
    }

    fn retries(&self) -> bool {
        true
    }

    fn options_kind(&self) -> &'static str {
        "PatchOptions"
    }
}

impl Patch {
    /// Duplicate fields of the patch, and unknown ones of a JSON patch's operations.
    fn own_problems(&self) -> Vec<String> {
        if self.kind != PatchType::Json {
            return self.duplicates.clone();
        }
        let mut problems = Vec::new();
        for (index, operation) in self.document.as_array().into_iter().flatten().enumerate() {
            let members = operation.as_object().into_iter().flat_map(|members| members.keys());
            for name in members.filter(|name| !matches!(name.as_str(), "op" | "path" | "from" | "value")) {
                problems.push(format!("json patch unknown field \"[{index}].{name}\""));
            }
        }
        problems.extend(self.duplicates.iter().map(|duplicate| format!("json patch {duplicate}")));
        problems
    }

    /// The patched object cannot be decoded.
    fn undecodable(&self, error: &ApiError, patched: &Value) -> ApiError {
        let why = error.message();
        match why.split_once(": json: ").filter(|(head, _)| head.contains("cannot be handled as a")) {
            None => error.clone(),
            Some((_, why)) if self.kind == PatchType::Strategic => self.refused(&unrestorable(why), patched),
            Some((_, why)) => self.refused(&format!("json: {why}"), patched),
        }
    }

    /// 422 that shows the outcome of the patch; of a strategic merge the patch itself, as Go prints it.
    fn refused(&self, why: &str, patched: &Value) -> ApiError {
        let shown =
            if self.kind == PatchType::Strategic { patch::shown::go_text(&self.document) } else { patched.to_string() };
        let error = api::field::Error::invalid(&api::field::Path::root("patch"), shown, why);
        ApiError::invalid("", "", "", &[error])
    }
}

/// What the conversion of unstructured values says where JSON decoding says
/// `cannot unmarshal A into … of type B`.
fn unrestorable(why: &str) -> String {
    let found = why.trim_start_matches("cannot unmarshal ").split(' ').next().unwrap_or_default();
    let wanted = why.rsplit(" of type ").next().unwrap_or_default().trim_start_matches('*');
    match (found, wanted) {
        ("number", "string") => "cannot convert int64 to string".to_owned(),
        ("bool", "string") => "unrecognized type: string".to_owned(),
        (_, wanted) if wanted.starts_with("[]") => format!("cannot restore slice from {}", go_kind(found)),
        (_, wanted) if wanted.starts_with("map[") => format!("cannot restore map from {}", go_kind(found)),
        (_, wanted) if wanted.contains('.') => format!("cannot restore struct from: {}", go_kind(found)),
        (_, wanted) => format!("unrecognized type: {wanted}"),
    }
}

fn go_kind(found: &str) -> &str {
    match found {
        "number" => "int64",
        "object" => "map",
        "array" => "slice",
        other => other,
    }
}

impl Patch {
    async fn apply_configuration(&self, call: &Call, old: Option<&Value>) -> Result<Value> {
        let kind = call.kind();
        let config = &self.document;
        if !config.is_object() && !config.is_null() {
            return Err(ApiError::bad_request(format!(
                "error decoding patch: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                json_type(config)
            )));
        }
        patch::apply::check_kind(config, &kind)?;
        let applied = patch::apply::apply(&call.owners(&kind.api_version()), old, config, call.options.force).await?;
        self.report_duplicates(call)?;
        Ok(applied)
    }

    /// Keys that the configuration has twice, in the words of the YAML reader.
    fn report_duplicates(&self, call: &Call) -> Result<()> {
        if self.duplicates.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = self
            .duplicates
            .iter()
            .map(|duplicate| {
                let path = duplicate.split('"').nth(1).unwrap_or_default();
                format!("  line 1: key {:?} already set in map", path.rsplit('.').next().unwrap_or_default())
            })
            .collect();
        let why = format!("error converting YAML to JSON: yaml: unmarshal errors:\n{}", lines.join("\n"));
        match call.options.field_validation {
            FieldValidation::Strict => Err(ApiError::bad_request(format!("error strict decoding patch: {why}"))),
            FieldValidation::Warn => {
                call.warn(why);
                Ok(())
            }
            FieldValidation::Ignore => Ok(()),
        }
    }
}

impl Call {
    /// Notes in `managedFields` which fields this write owns, unless it was an apply (which does
    /// so itself). What admission and the kind itself change afterwards is nobody's; nor is the node
    /// that a pod is bound to.
    pub async fn track_fields(&self, old: Option<&Value>, new: &mut Value) -> Result<()> {
        if self.applies || self.descriptor().virtual_ || self.info.subresource == "binding" {
            return Ok(());
        }
        let version = api_version(&self.info.group, &self.info.version);
        if self.schema(&version).is_none() {
            return Ok(());
        }
        patch::apply::track_update(&self.owners(&version), old, new).await
    }

    /// This request, as far as the owners of fields go.
    pub fn owners<'a>(&'a self, version: &'a str) -> patch::apply::Write<'a> {
        let descriptor = self.descriptor();
        let hooks = self.endpoint.hooks();
        let ownable = match self.info.subresource.as_str() {
            "status" => Ownable::AllBut(hooks.reset_by_status()),
            other => hooks.ownable(other).unwrap_or(Ownable::AllBut(match other {
                "" if descriptor.status || !descriptor.custom => &[&["status"]],
                _ => &[],
            })),
        };
        patch::apply::Write {
            versions: self,
            version,
            manager: &self.manager,
            subresource: &self.info.subresource,
            ownable,
            now: self.now,
        }
    }
}

#[async_trait]
impl Versions for Call {
    fn schema(&self, version: &str) -> Option<Schema> {
        let (group, version) = split_api_version(version);
        match self.descriptor().custom {
            true => self.version_of(group, version)?.schema(group, version).cloned(),
            false => self.endpoint.schema(group, version).cloned(),
        }
    }

    async fn convert(&self, mut object: Value, version: &str) -> Result<Value> {
        let to = split_api_version(version);
        if self.descriptor().custom {
            let endpoint = self.version_of(to.0, to.1).ok_or_else(ApiError::no_such_path)?;
            return endpoint.hooks().as_served(object).await;
        }
        let from = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        self.endpoint.hooks().convert(&mut object, split_api_version(&from), to)?;
        object["apiVersion"] = version.into();
        Ok(object)
    }
}

impl Call {
    /// Of a custom resource: the endpoint of a version, served or not.
    fn version_of(&self, group: &str, version: &str) -> Option<Arc<Endpoint>> {
        let own = self.descriptor();
        if (own.hub_group(), own.hub_version()) == (group, version) {
            return Some(self.endpoint.clone());
        }
        let resources = self.api.resources();
        let found = resources.all().iter().find(|endpoint| {
            let other = endpoint.descriptor();
            other.storage_prefix == own.storage_prefix && (other.hub_group(), other.hub_version()) == (group, version)
        });
        found.cloned()
    }
}
