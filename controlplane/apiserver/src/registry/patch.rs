//! PATCH as a [`Change`]: which kind of patch, and the owners of fields.

use serde_json::Value;

use super::write::Change;
use super::{Call, metadata};
use crate::error::{ApiError, Result};
use crate::patch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    pub const ACCEPTED: &'static [&'static str] = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
        "application/strategic-merge-patch+json",
    ];

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

impl Change for Patch {
    fn apply(&self, call: &Call, old: Option<&Value>) -> Result<Option<Value>> {
        if self.kind == PatchType::Apply {
            return self.apply_configuration(call, old).map(Some);
        }
        let Some(old) = old else { return Ok(None) };
        let kind = call.kind();
        let schema = call.endpoint.schema(&kind.group, &kind.version);
        let mut new = match self.kind {
            PatchType::Json => patch::json(old, &self.document)?,
            PatchType::Merge => patch::merge(old, &self.document)?,
            PatchType::Strategic => match schema.filter(|_| !call.descriptor().custom) {
                Some(schema) => patch::strategic(schema, old, &self.document)?,
                None => return Err(ApiError::unsupported_media_type(&PatchType::ACCEPTED[..3])),
            },
            PatchType::Apply => return Ok(None),
        };
        call.normalize(&mut new, &[])?;
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
    fn apply_configuration(&self, call: &Call, old: Option<&Value>) -> Result<Value> {
        let kind = call.kind();
        let mut config = self.document.clone();
        metadata::check_type(&mut config, &kind.api_version(), &kind.kind)?;
        self.report_unknown(call, &config)?;
        let schema = call.endpoint.schema(&kind.group, &kind.version).ok_or_else(|| {
            ApiError::internal(format!("no schema of {} {}: cannot apply", kind.api_version(), kind.kind))
        })?;
        patch::apply::apply(schema, old, &config, &call.manager, &call.info.subresource, call.options.force, call.now)
    }
}

impl Patch {
    /// Unknown and duplicate fields of a configuration, reported as the request asks. The engine
    /// itself needs the configuration as it was sent.
    fn report_unknown(&self, call: &Call, config: &Value) -> Result<()> {
        let mut checked = config.clone();
        call.normalize(&mut checked, &self.duplicates)
    }
}

impl Call {
    /// Notes in `managedFields` which fields this write owns, unless it was an apply (which does
    /// so itself).
    pub fn track_fields(&self, old: Option<&Value>, new: &mut Value) -> Result<()> {
        if self.applies || self.descriptor().virtual_ {
            return Ok(());
        }
        match self.endpoint.hub_schema() {
            Some(schema) => {
                patch::apply::track_update(schema, old, new, &self.manager, &self.info.subresource, self.now)
            }
            None => Ok(()),
        }
    }
}
