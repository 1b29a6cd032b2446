//! StorageVersionMigrations: every object of a resource written again, so that it lies in the store
//! as the server writes it now (in a new storage version, or under a new encryption key).
//!
//! One key per resource: at most one migration of a resource is at work, the oldest. It patches each
//! object with nothing; the server writes what is stored in another form all the same. Objects that
//! change or go meanwhile are as wanted. For a custom resource, the definition learns that no other
//! version is stored any more, provided that it is still what it was when the migration began. A
//! run that stops is begun again from the first object: what is done already costs a read.

use std::sync::Arc;

use component::{Informer, Outcome, WorkQueue};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::{Context, Controller, synced};
use crate::discovery::{self, Served};
use crate::error::{During, Error, Result, is_conflict, is_not_found, message};
use crate::meta;

const WORKERS: usize = 5;
const PAGE: u32 = 500;
/// Patches of one migration under way at once.
const AT_ONCE: usize = 10;
const RUNNING: &str = "Running";
const ENDS: [&str; 2] = ["Succeeded", "Failed"];
/// The condition of a definition whose objects are being written again.
const MIGRATING: &str = "StorageMigrating";

pub fn start(context: &Context) {
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("storage-version-migrator-controller");
    let migrations = context.informers.of::<StorageVersionMigration>();
    let changed = queue.clone();
    migrations.on_change(move |change| changed.add(resource_of(change.object())));
    let worker = Arc::new(Worker { controller: controller.clone(), migrations: migrations.clone() });
    controller.run(&queue, WORKERS, synced!(migrations), move |resource: String| {
        let worker = worker.clone();
        async move { worker.reconcile(&resource).await }
    });
}

/// `deployments.apps`, `pods`.
fn resource_of(migration: &StorageVersionMigration) -> String {
    let resource = migration.spec.as_ref().map(|spec| spec.resource.clone()).unwrap_or_default();
    if resource.group.is_empty() { resource.resource } else { format!("{}.{}", resource.resource, resource.group) }
}

fn is(migration: &StorageVersionMigration, condition: &str) -> bool {
    let conditions = migration.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|known| known.type_ == condition && known.status == "True")
}

/// Whose turn it is: the oldest that has not ended.
fn next(migrations: &[Arc<StorageVersionMigration>], resource: &str) -> Option<Arc<StorageVersionMigration>> {
    let waiting = migrations.iter().filter(|migration| {
        resource_of(migration) == resource
            && !meta::is_deleting(&migration.metadata)
            && !ENDS.iter().any(|end| is(migration, end))
    });
    waiting.min_by_key(|migration| (meta::created(&migration.metadata), migration.name_any())).cloned()
}

fn set(conditions: &mut Vec<Condition>, name: &str, status: &str, reason: &str, text: &str, now: Timestamp) {
    let next = Condition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: text.to_owned(),
        last_transition_time: Time(now),
        observed_generation: None,
    };
    meta::set_condition(conditions, next);
}

/// The migration's end; the two conditions may not be true together.
fn ended(migration: &StorageVersionMigration, failure: Option<&str>, now: Timestamp) -> StorageVersionMigration {
    let mut changed = migration.clone();
    let status = changed.status.get_or_insert_default();
    // no status is accepted without one, not even that of a resource that has none
    if status.resource_version.as_ref().is_none_or(String::is_empty) {
        status.resource_version = migration.metadata.resource_version.clone();
    }
    let conditions = status.conditions.get_or_insert_default();
    if is(migration, RUNNING) {
        set(conditions, RUNNING, "False", "MigrationCompleted", "Migration completed", now);
    }
    match failure {
        None => set(conditions, "Succeeded", "True", "StorageVersionMigrationSucceeded", "", now),
        Some(text) => set(conditions, "Failed", "True", "StorageVersionMigrationFailed", text, now),
    }
    changed
}

fn storage_version(definition: &CustomResourceDefinition) -> Option<&str> {
    definition.spec.versions.iter().find(|version| version.storage).map(|version| version.name.as_str())
}

/// The definition's status with its condition, and its stored versions where `stored` is given.
fn definition_status(
    definition: &CustomResourceDefinition,
    (status, reason, text): (&str, &str, &str),
    stored: Option<&str>,
    generation: Option<i64>,
    now: Timestamp,
) -> serde_json::Value {
    let known = definition.status.clone().unwrap_or_default();
    let mut conditions = known.conditions.unwrap_or_default();
    let condition = CustomResourceDefinitionCondition {
        type_: MIGRATING.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(text.to_owned()),
        last_transition_time: meta::stamp(now),
        observed_generation: generation,
    };
    conditions.retain(|known| known.type_ != MIGRATING);
    conditions.push(condition);
    let mut patch = json!({
        "metadata": {"uid": definition.metadata.uid, "resourceVersion": definition.metadata.resource_version},
        "status": {"conditions": conditions},
    });
    if let Some(version) = stored {
        patch["status"]["storedVersions"] = json!([version]);
    }
    patch
}

struct Worker {
    controller: Controller,
    migrations: Informer<StorageVersionMigration>,
}

/// What keeps a migration from its end.
enum Stop {
    /// It cannot succeed: why.
    Failed(String),
    Later(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Later(error)
    }
}

impl Worker {
    async fn reconcile(&self, resource: &str) -> Result<Outcome> {
        let Some(migration) = next(&self.migrations.list(), resource) else { return Ok(Outcome::Done) };
        match self.migrate(&migration, resource).await {
            Ok(true) => {}
            // the write comes back as a change, newer than what is known here
            Ok(false) => return Ok(Outcome::Done),
            // nothing of the migration changes when the part of discovery that failed comes back
            Err(Stop::Later(error @ Error::Object { .. })) => {
                tracing::debug!(%error, "the migration waits for discovery");
                return Ok(Outcome::Retry);
            }
            Err(Stop::Later(error)) => return Err(error),
            Err(Stop::Failed(text)) => {
                self.tell_definition(resource, ("False", "MigrationFailed", "The migration has failed"), None).await?;
                self.write(&ended(&migration, Some(&text), meta::now())).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Returns whether it came to its end; else the next step waits for what was just written.
    async fn migrate(&self, migration: &StorageVersionMigration, resource: &str) -> std::result::Result<bool, Stop> {
        let found = discovery::discover(&self.controller.client).await?;
        let served = found.resources.into_iter().find(|served| served.name() == resource);
        let Some(served) = served.filter(|served| served.can(&["list", "patch"])) else {
            if let Some(problem) = found.failures.into_iter().next() {
                return Err(Stop::Later(Error::Object { object: format!("resource {resource}"), problem }));
            }
            return Err(Stop::Failed("resource does not exist in discovery".to_owned()));
        };
        let api: Api<DynamicObject> = Api::all_with(self.controller.client.clone(), &served.api);
        let version = migration.status.as_ref().and_then(|status| status.resource_version.clone());
        let fresh = version.is_none_or(|version| version.is_empty());
        if fresh || !is(migration, RUNNING) {
            let mut changed = migration.clone();
            let status = changed.status.get_or_insert_default();
            if fresh {
                let list = api.list_metadata(&ListParams::default().limit(1)).await;
                let list = list.during("reading the resourceVersion of", resource)?;
                status.resource_version = list.metadata.resource_version;
            }
            let text = format!("Migration {} is running", migration.name_any());
            self.tell_definition(resource, ("True", "MigrationRunning", &text), None).await?;
            let conditions = status.conditions.get_or_insert_default();
            set(conditions, RUNNING, "True", "MigrationRunning", "The migration is running", meta::now());
            self.write(&changed).await?;
            return Ok(false);
        }
        let began = self.definition(resource).await?.and_then(|definition| observed(&definition));
        self.rewrite_all(&api, &served).await?;
        let what = ("False", "MigrationSucceeded", "");
        self.tell_definition(resource, what, Some(began)).await?;
        self.write(&ended(migration, None, meta::now())).await?;
        Ok(true)
    }

    async fn rewrite_all(&self, api: &Api<DynamicObject>, served: &Served) -> std::result::Result<(), Stop> {
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = api.list_metadata(&page).await.during("listing for migration", &served.name())?;
            let objects = list.items.into_iter().map(|object| (object.namespace(), object.metadata));
            let writes = objects.map(|(namespace, meta)| self.rewrite(served, namespace, meta));
            let mut writes = futures::stream::iter(writes).buffer_unordered(AT_ONCE);
            while let Some(written) = writes.next().await {
                written?;
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = ListParams::default().limit(PAGE).continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    async fn rewrite(
        &self,
        served: &Served,
        namespace: Option<String>,
        known: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    ) -> std::result::Result<(), Stop> {
        let client = self.controller.client.clone();
        let api: Api<DynamicObject> = match &namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &served.api),
            None => Api::all_with(client, &served.api),
        };
        let name = known.name.clone().unwrap_or_default();
        let patch = json!({"metadata": {"uid": known.uid, "resourceVersion": known.resource_version}});
        let params = PatchParams { field_manager: Some(self.controller.name.clone()), ..PatchParams::default() };
        match api.patch_metadata(&name, &params, &Patch::Merge(patch)).await {
            // whoever wrote it meanwhile wrote it as it should be
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(()),
            Err(kube::Error::Api(status)) if !matches!(status.code, 408 | 429 | 500..) => {
                let error = kube::Error::Api(status);
                Err(Stop::Failed(format!("migration encountered unhandled error: {}", message(&error))))
            }
            other => Ok(other.during("writing again", &meta::display(&known)).map(drop)?),
        }
    }

    /// The resource's definition, when it is a custom one.
    async fn definition(&self, resource: &str) -> Result<Option<CustomResourceDefinition>> {
        let api: Api<CustomResourceDefinition> = self.controller.cluster();
        api.get(resource).await.unless_gone("reading the definition of", resource)
    }

    /// `done` is given at a good end: the generation that the definition had when it began.
    async fn tell_definition(
        &self,
        resource: &str,
        (status, reason, text): (&str, &str, &str),
        done: Option<Option<i64>>,
    ) -> Result<()> {
        let Some(definition) = self.definition(resource).await? else { return Ok(()) };
        let same = done.is_some_and(|began| began == definition.metadata.generation);
        let text = match (done, same) {
            (None, _) => text,
            (Some(_), true) => "The migration has succeeded and the stored versions have been updated",
            (Some(_), false) => {
                "The migration has succeeded but the stored versions have not been updated due to a generation mismatch"
            }
        };
        let stored = storage_version(&definition).filter(|_| same);
        // at its end the condition keeps what it had observed
        let generation = if status == "True" { definition.metadata.generation } else { observed(&definition) };
        let patch = definition_status(&definition, (status, reason, text), stored, generation, meta::now());
        let api: Api<CustomResourceDefinition> = self.controller.cluster();
        let patched = api.patch_status(resource, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone("telling of the migration in definition", resource).map(drop)
    }

    async fn write(&self, migration: &StorageVersionMigration) -> Result<()> {
        let (name, api) = (migration.name_any(), self.controller.cluster::<StorageVersionMigration>());
        let written = api.replace_status(&name, &PostParams::default(), migration).await;
        written.unless_gone("updating the status of migration", &name).map(drop)
    }
}

/// The generation of the definition that the migration under way began with; the present one where
/// none is noted.
fn observed(definition: &CustomResourceDefinition) -> Option<i64> {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let noted =
        conditions.into_iter().find(|known| known.type_ == MIGRATING).and_then(|known| known.observed_generation);
    noted.or(definition.metadata.generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;

    fn migration(name: &str, resource: &str, created: i64, conditions: &[&str]) -> Arc<StorageVersionMigration> {
        let conditions = conditions.iter().map(|condition| {
            json!({"type": condition, "status": "True", "reason": "R", "message": "", "lastTransitionTime": at(1)})
        });
        let value = json!({
            "metadata": {"name": name, "creationTimestamp": at(created)},
            "spec": {"resource": {"group": "example.com", "resource": resource}},
            "status": {"conditions": conditions.collect::<Vec<_>>()},
        });
        Arc::new(serde_json::from_value(value).expect("the migration is written out above"))
    }

    #[test]
    fn one_at_a_time_the_oldest_first() {
        let all = [
            migration("new", "crons", 9, &[]),
            migration("b", "crons", 5, &[RUNNING]),
            migration("a", "crons", 5, &["Failed"]),
            migration("done", "crons", 1, &["Succeeded"]),
            migration("other", "jobs", 1, &[]),
        ];
        let name = |resource| next(&all, resource).map(|migration| migration.name_any());
        assert_eq!(name("crons.example.com").as_deref(), Some("b"));
        assert_eq!(name("jobs.example.com").as_deref(), Some("other"));
        assert_eq!(name("crons"), None);
    }

    #[test]
    fn an_end_is_never_running() {
        let conditions = |failure| {
            let ended = ended(&migration("m", "crons", 1, &[RUNNING]), failure, at(7));
            let conditions = ended.status.and_then(|status| status.conditions).unwrap_or_default();
            conditions.into_iter().map(|c| (c.type_, c.status, c.reason)).collect::<Vec<_>>()
        };
        let told = |list: &[(&str, &str, &str)]| -> Vec<_> {
            list.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect()
        };
        let over = (RUNNING, "False", "MigrationCompleted");
        assert_eq!(conditions(None), told(&[over, ("Succeeded", "True", "StorageVersionMigrationSucceeded")]));
        assert_eq!(conditions(Some("no")), told(&[over, ("Failed", "True", "StorageVersionMigrationFailed")]));
    }
}
