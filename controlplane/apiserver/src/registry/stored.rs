//! What goes into the store where that is another version than the one a request is handled in.

use bytes::Bytes;
use serde_json::Value;

use super::{Call, metadata};
use crate::cache::item::{encode, remove_version};
use crate::error::Result;

impl Call {
    /// Takes an object (hub version) through the version that is stored, and returns it as it is there; none
    /// where that is the hub. What the stored version has no place for is lost, and the answer to the write
    /// shows that.
    pub(super) async fn pass_through_store(&self, object: &mut Value) -> Result<Option<Value>> {
        if self.descriptor().stored_as.is_none() {
            return Ok(None);
        }
        let (hooks, revision) = (self.endpoint.hooks(), metadata::text(object, "resourceVersion").to_owned());
        let mut going = object.clone();
        remove_version(&mut going);
        let stored = hooks.to_stored(going).await?;
        *object = hooks.as_served(stored.clone()).await?;
        if !revision.is_empty() {
            object["metadata"]["resourceVersion"] = revision.into();
        }
        Ok(Some(stored))
    }
}

/// The bytes of an object that is shown as `shown`, and stored as `stored` if that is something else.
pub(super) fn stored_bytes(stored: Option<&Value>, shown: &Bytes) -> Bytes {
    stored.map_or_else(|| shown.clone(), |stored| Bytes::from(encode(stored)))
}
