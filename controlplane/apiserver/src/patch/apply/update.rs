//! The owners of fields after plain writes: create, update, patch, and those of subresources.

use serde_json::Value;

use super::managers::{Manager, Managers, Operation};
use super::versions::Comparison;
use super::{Write, read_managers, without_metadata};
use crate::error::ApiError;

/// Notes in `new.metadata.managedFields` which fields a plain write owns from now on. Both objects
/// are in the same version, which need not be that of the request.
pub async fn track_update(write: &Write<'_>, live: Option<&Value>, new: &mut Value) -> Result<(), ApiError> {
    let metadata = new.get_mut("metadata").and_then(Value::as_object_mut);
    let sent = metadata.and_then(|metadata| metadata.remove("managedFields")).unwrap_or_default();
    let managers = live_or_sent(live, &sent, write.subresource);
    if managers.entries.is_empty() && live.is_some() {
        // An object that is not tracked stays so until someone applies to it.
        return Ok(());
    }
    match owners(write, live, new, managers).await {
        Ok(managers) => managers.write(new),
        // No write fails for want of this, e.g. of an answer to who wrote in another version.
        Err(error) => {
            tracing::debug!(%error, "owners of fields stay as they were");
            if let Some(live) = live {
                read_managers(live).write(new);
            }
        }
    }
    Ok(())
}

async fn owners(
    write: &Write<'_>,
    live: Option<&Value>,
    new: &Value,
    mut managers: Managers,
) -> Result<Managers, ApiError> {
    managers.reconcile(write.versions);
    let ignored = write.ignored();
    let mut comparison = Comparison::new(write.versions, live, new, &ignored);
    for owned in managers.entries.values_mut() {
        let Some(difference) = comparison.seen_in(&owned.api_version).await? else { continue };
        let fields = std::mem::take(&mut owned.fields);
        owned.fields = fields.difference(&difference.changed()).difference(&difference.removed);
    }
    managers.drop_empty();
    let own = comparison.last_seen_in(write.version).await?;
    let changed = own.map(|own| own.added.union(own.modified)).unwrap_or_default();
    let changed = without_metadata(changed);
    if !changed.is_empty() {
        let me = Manager::new(Operation::Update, write.manager, write.version, write.subresource);
        managers.add(me, changed, write.version, write.time());
        managers.cap();
    }
    Ok(managers)
}

/// The managed fields that a write begins with. Clients may write them, but not lose them by leaving
/// them out. An empty list, or a list of one empty entry, resets them.
fn live_or_sent(live: Option<&Value>, sent: &Value, subresource: &str) -> Managers {
    let of_live = || live.map(read_managers).unwrap_or_default();
    if !subresource.is_empty() {
        return of_live();
    }
    match sent.as_array().map(Vec::as_slice) {
        None => of_live(),
        Some([]) => Managers::default(),
        Some([Value::Object(only)]) if only.values().all(|v| v.is_null() || v == "") => Managers::default(),
        Some(_) => Managers::read(sent).filter(|managers| !managers.entries.is_empty()).unwrap_or_else(of_live),
    }
}
